//! Settings that are right, and settings that are refused.

use octollm_core::error::ErrorKind;
use octollm_http::client::{Arms, ClientConfig, ConfigError, UrlProblem};

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
        ("judge:8103", UrlProblem::NoScheme),
        ("https://judge", UrlProblem::TlsNotSupported),
        ("http://me:password@judge", UrlProblem::Credentials),
        ("", UrlProblem::Empty),
        ("http://judge,", UrlProblem::Empty),
        ("http://judge,nowhere at all", UrlProblem::Malformed),
    ] {
        let error = Arms::from_vars([("OCTOLLM_ARM_JUDGE", value)]).unwrap_err();
        assert_eq!(error, ConfigError::BadUrl { name: "OCTOLLM_ARM_JUDGE".into(), problem }, "{value}");
        assert!(
            error.to_string().starts_with("OCTOLLM_ARM_JUDGE: ")
                && !error.to_string().contains("me:password")
        );
    }
    for name in ["OCTOLLM_ARM_", "OCTOLLM_ARM_1", "OCTOLLM_ARM_A.B", "OCTOLLM_ARM_Ä"] {
        let error = Arms::from_vars([(name, "http://judge")]).unwrap_err();
        assert_eq!(error, ConfigError::BadArmId { name: name.into() });
    }
    let twice = [("OCTOLLM_ARM_JUDGE", "http://a"), ("OCTOLLM_ARM_judge", "http://b")];
    assert_eq!(
        Arms::from_vars(twice).unwrap_err(),
        ConfigError::ArmTwice { name: "OCTOLLM_ARM_judge".into() }
    );
}

#[test]
fn a_builder_tells_its_mistakes_when_it_builds() {
    let builder =
        Arms::builder().endpoint("judge", "http://a").endpoint_serving::<Check>("judge", "http://a");
    assert!(matches!(builder.build(), Err(ConfigError::ArmTwice { .. })));
    let config = ClientConfig { max_connections: 0, ..ClientConfig::default() };
    assert!(matches!(Arms::builder().config(config).build(), Err(ConfigError::OutOfRange { .. })));
}
