//! Settings that are right, and settings that are refused.

use octollm_core::error::ErrorKind;
use octollm_http::client::Arms;

use crate::peer::{Check, check};

#[tokio::test(start_paused = true)]
async fn without_variables_no_arm_is_known() {
    let arms = Arms::from_vars([("PATH", "/bin")]).unwrap();
    let error = arms.call(check()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContractNotOffered);
    assert!(arms.cards().await.is_empty());
}

#[test]
fn a_bad_variable_is_named_and_its_secrets_are_not() {
    for (value, problem) in [
        ("judge:8103", "no scheme"),
        #[cfg(not(feature = "tls"))]
        ("https://judge", "feature `tls`"),
        ("http://me:password@judge", "credentials"),
        ("", "empty"),
        ("http://judge,", "empty"),
        ("http://judge,nowhere at all", "not a URL"),
    ] {
        let error = Arms::from_vars([("OCTOLLM_ARM_JUDGE", value)]).unwrap_err();
        assert_eq!(error.setting(), "OCTOLLM_ARM_JUDGE");
        let text = error.to_string();
        assert!(text.contains(problem) && !text.contains("me:password"), "{text}");
    }
    for name in ["OCTOLLM_ARM_", "OCTOLLM_ARM_1", "OCTOLLM_ARM_A.B", "OCTOLLM_ARM_Ä"] {
        let error = Arms::from_vars([(name, "http://judge")]).unwrap_err();
        assert_eq!(error.setting(), name);
        assert!(error.to_string().contains("is not an arm id"), "{error}");
    }
    let twice = [("OCTOLLM_ARM_JUDGE", "http://a"), ("OCTOLLM_ARM_judge", "http://b")];
    let error = Arms::from_vars(twice).unwrap_err();
    assert_eq!(error.to_string(), "`OCTOLLM_ARM_judge` names an arm that is set already");
}

#[test]
fn a_builder_reports_its_mistakes_when_it_builds() {
    let builder =
        Arms::builder().endpoint("judge", "http://a").endpoint_serving::<Check>("judge", "http://a");
    assert!(builder.build().unwrap_err().to_string().contains("is set already"));
    assert_eq!(Arms::builder().max_connections(0).build().unwrap_err().setting(), "max_connections");
}
