//! Tokens as the environment configures them: keys from files at both ends, and what is refused.

use std::fs;

use octollm_core::{
    error::{ErrorKind, Failure},
    parts::Caller,
};
use octollm_http::{
    Arms, OrchestratorClient, Server,
    io::Pipes,
    token::{ExposeSecret, KeySet, SigningKey},
};
use tempfile::TempDir;

use crate::wired::{Judge, Look};

/// The private key of the root `portal` and its public keys, in files.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let (files, key) = (Self(tempfile::tempdir().unwrap()), SigningKey::generate().unwrap());
        fs::write(files.path("key.pem"), key.to_pem().unwrap().expose_secret()).unwrap();
        let keys = KeySet::new("portal").with_key(&key).unwrap().to_jwks();
        fs::write(files.path("keys.json"), keys.to_string()).unwrap();
        files
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn server(&self) -> Vec<(&'static str, String)> {
        vec![
            ("OCTOLLM_SERVER_TOKEN_ISSUER", "portal".into()),
            ("OCTOLLM_SERVER_TOKEN_KEYS_FILE", self.path("keys.json")),
        ]
    }

    fn client(&self) -> Vec<(&'static str, String)> {
        vec![
            ("OCTOLLM_ARM_JUDGE", "http://judge".into()),
            ("OCTOLLM_CLIENT_TOKEN_ISSUER", "portal".into()),
            ("OCTOLLM_CLIENT_TOKEN_KEY_FILE", self.path("key.pem")),
        ]
    }
}

fn judge() -> Server {
    Server::new("judge").arm::<Look>(Judge)
}

#[tokio::test]
async fn a_root_and_a_server_have_their_keys_from_files() {
    let (files, pipes) = (Files::new(), Pipes::new());
    let nobody = |_: &http::request::Parts| Err(Failure::of(ErrorKind::Unauthenticated));
    let server = judge().authenticate(nobody).vars(files.server()).unwrap();
    tokio::spawn(server.listen(pipes.listen("judge").unwrap()).unwrap().run());
    let client =
        |variables| Arms::builder().connector(pipes.clone()).vars(variables).unwrap().build().unwrap();
    let ali = || Caller::known("ali", ["code:*"]);
    let said = client(files.client()).on_behalf_of(ali()).call(Look {}).await.unwrap();
    assert_eq!(said, "ali of portal by -");

    // Another root of that name, and no root.
    let refused = client(Files::new().client()).on_behalf_of(ali()).call(Look {}).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthenticated);
    let refused = client(files.client()[..1].to_vec()).on_behalf_of(ali()).call(Look {}).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthenticated);
    // An audience of its own.
    let mut server = files.server();
    server.push(("OCTOLLM_SERVER_TOKEN_AUDIENCE", "verdicts".into()));
    tokio::spawn(judge().vars(server).unwrap().listen(pipes.listen("judge:81").unwrap()).unwrap().run());
    let mut there = files.client();
    there[0].1 = "http://judge:81".into();
    let refused = client(there).on_behalf_of(ali()).call(Look {}).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthenticated);
}

#[test]
fn what_is_missing_or_no_key_is_named() {
    let files = Files::new();
    let refused = |variables: Vec<(&str, String)>| judge().vars(variables).err().unwrap();
    let server = |index: usize, value: String| {
        let mut variables = files.server();
        variables[index].1 = value;
        variables
    };
    for (variables, setting) in [
        (files.server()[..1].to_vec(), "OCTOLLM_SERVER_TOKEN_ISSUER"),
        (files.server()[1..].to_vec(), "OCTOLLM_SERVER_TOKEN_KEYS_FILE"),
        (server(1, files.path("no.json")), "OCTOLLM_SERVER_TOKEN_KEYS_FILE"),
        (server(1, files.path("key.pem")), "OCTOLLM_SERVER_TOKEN_KEYS_FILE"),
        (server(0, String::new()), "OCTOLLM_SERVER_TOKEN_ISSUER"),
        (
            [files.server(), vec![("OCTOLLM_SERVER_TOKEN_KEYS_URL", "https://x/keys".into())]].concat(),
            "OCTOLLM_SERVER_TOKEN_ISSUER",
        ),
        (
            vec![files.server()[0].clone(), ("OCTOLLM_SERVER_TOKEN_KEYS_URL", "ftp://me:swordfish@x".into())],
            "OCTOLLM_SERVER_TOKEN_KEYS_URL",
        ),
        (
            [files.server(), vec![("OCTOLLM_SERVER_TOKEN_SPEAKS_FOR", "portal,".into())]].concat(),
            "OCTOLLM_SERVER_TOKEN_SPEAKS_FOR",
        ),
        (
            [files.server(), vec![("OCTOLLM_SERVER_OPEN_TO_ALL", "true".into())]].concat(),
            "OCTOLLM_SERVER_OPEN_TO_ALL",
        ),
    ] {
        let error = refused(variables);
        assert_eq!(error.setting(), setting, "{error}");
        let secret = fs::read_to_string(files.path("key.pem")).unwrap();
        let shown = octollm_core::error::Error::from(error);
        let shown = format!("{shown} {shown:?}");
        let line = secret.lines().nth(1).unwrap();
        assert!(!shown.contains(line) && !shown.contains("swordfish"), "{shown}");
    }
    let url =
        vec![files.server()[0].clone(), ("OCTOLLM_SERVER_TOKEN_KEYS_URL", "http://localhost:1/keys".into())];
    assert!(judge().vars(url).unwrap().into_service().is_ok());

    for (variables, setting) in [
        (files.client()[1..2].to_vec(), "OCTOLLM_CLIENT_TOKEN_KEY_FILE"),
        (files.client()[2..].to_vec(), "OCTOLLM_CLIENT_TOKEN_KEY_FILE"),
        (
            [files.client(), vec![("OCTOLLM_CLIENT_TOKEN_ARM", "coder".into())]].concat(),
            "OCTOLLM_CLIENT_TOKEN_KEY_FILE",
        ),
        (
            vec![files.client()[1].clone(), ("OCTOLLM_CLIENT_TOKEN_KEY_FILE", files.path("keys.json"))],
            "OCTOLLM_CLIENT_TOKEN_KEY_FILE",
        ),
        (vec![("OCTOLLM_CLIENT_TOKEN_ARM", "The Coder".into())], "OCTOLLM_CLIENT_TOKEN_ARM"),
    ] {
        assert_eq!(Arms::from_vars(variables).unwrap_err().setting(), setting);
    }
}

#[test]
fn tokens_in_cleartext_are_allowed_by_the_environment_too() {
    let files = Files::new();
    let mut variables = files.client();
    assert_eq!(Arms::from_vars(variables.clone()).unwrap_err().setting(), "judge");
    variables.push(("OCTOLLM_CLIENT_CLEARTEXT", "true".into()));
    assert!(Arms::from_vars(variables.clone()).is_ok());
    variables.push(("OCTOLLM_CLIENT_ORCHESTRATOR_URL", "http://brain:8000".into()));
    assert!(OrchestratorClient::from_vars(variables.clone()).is_ok());
    variables.retain(|(name, _)| *name != "OCTOLLM_CLIENT_CLEARTEXT");
    assert_eq!(OrchestratorClient::from_vars(variables).unwrap_err().setting(), "orchestrator");
}
