//! Settings that are right, and settings that are refused.

use octollm_core::error::ErrorKind;
use octollm_http::client::{Arms, OrchestratorClient};

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

#[test]
fn limits_of_the_environment_are_checked_and_named() {
    for (name, value, problem) in [
        ("OCTOLLM_CLIENT_CONNECT_TIMEOUT", "2", "is not a time"),
        ("OCTOLLM_CLIENT_CONNECT_TIMEOUT", "0s", "is 0ns: set it to a value from 1ns to 86400s"),
        ("OCTOLLM_CLIENT_MAX_ANSWER", "8MB", "is not a number of bytes"),
        ("OCTOLLM_CLIENT_MAX_CONNECTIONS", "1KiB", "is not a whole number"),
        ("OCTOLLM_CLIENT_MAX_CONECTIONS", "10", "is no setting of octollm"),
        ("OCTOLLM_ARMS", "http://judge", "is no setting of octollm"),
        ("OCTOLLM_ARM_JUDGE_SERVICE_HOST", "10.0.0.1", "enableServiceLinks: false"),
        ("OCTOLLM_ARM_JUDGE_PORT", "tcp://10.0.0.1:80", "enableServiceLinks: false"),
    ] {
        let error = Arms::from_vars([(name, value)]).unwrap_err();
        assert_eq!(error.setting(), name);
        assert!(error.to_string().contains(problem), "{error}");
    }
    // Those of a server and of a brain in the same process are not the client's.
    let both =
        [("OCTOLLM_CLIENT_MAX_IDLE", "5"), ("OCTOLLM_SERVER_MAX_BODY", "x"), ("OCTOLLM_BRAIN_LEASE", "x")];
    assert!(Arms::from_vars(both).is_ok());
    // The most connections can be lowered alone: no more are idle than may be open.
    assert!(Arms::from_vars([("OCTOLLM_CLIENT_MAX_CONNECTIONS", "1")]).is_ok());
}

#[test]
fn the_orchestrator_of_the_environment_has_a_url() {
    let url = "OCTOLLM_CLIENT_ORCHESTRATOR_URL";
    for variables in
        [vec![], vec![(url, "")], vec![(url, "brain:8000")], vec![(url, "http://me:password@brain")]]
    {
        let error = OrchestratorClient::from_vars(variables).unwrap_err();
        assert_eq!(error.setting(), url);
        assert!(!error.to_string().contains("password"), "{error}");
    }
    assert!(
        OrchestratorClient::from_vars([(url, "http://brain:8000"), ("OCTOLLM_ARM_JUDGE", "http://judge")])
            .is_ok()
    );
}
