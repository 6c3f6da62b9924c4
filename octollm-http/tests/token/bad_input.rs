//! Bad input of a server, row by row: a request with such a token is answered 401 or 403, and the arm does not run.

use async_trait::async_trait;
use aws_lc_rs::hmac;
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use octollm_core::{Arm, Context, error::ArmError};
use octollm_http::{
    Server,
    server::HttpService,
    token::{KeySet, TokenVerifier},
};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{Judge, Key, b64, head, with};

/// Validates nothing.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "code.validate", output = bool)]
struct Validate {}

/// Must not run, unless `sub` is `ali`.
struct Validates;

#[async_trait]
impl Arm<Validate> for Validates {
    async fn execute(&self, _: Validate, cx: &Context) -> Result<bool, ArmError> {
        assert_eq!(cx.caller().subject(), Some("ali"));
        Ok(true)
    }
}

/// Status, challenge and body of the answer to a request with this token.
async fn ask(service: &HttpService, token: Option<&str>) -> (u16, String, Value) {
    let request = Request::post("/validate").header("content-type", "application/json");
    let request = match token {
        Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
        None => request,
    };
    let answer = service.clone().oneshot(request.body(Full::from("{}")).unwrap()).await.unwrap();
    let challenge = answer.headers().get(header::WWW_AUTHENTICATE);
    let challenge = challenge.map(|field| field.to_str().unwrap().to_owned()).unwrap_or_default();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, challenge, serde_json::from_slice(&body).unwrap())
}

/// The judge as a server, which trusts the root `other` as well.
fn server(judge: &Judge, other: &Key) -> HttpService {
    let other = KeySet::new("other").with_key(&other.signing().with_kid("o1").unwrap()).unwrap();
    let verifier = TokenVerifier::builder().audience("judge").root(judge.keys.clone()).root(other);
    let verifier = verifier.clock(judge.clock.read()).build().unwrap();
    Server::new("judge").arm(Validates).authenticate(verifier).into_service().unwrap()
}

#[tokio::test(start_paused = true)]
async fn every_row_of_401_over_http() {
    let (judge, other) = (Judge::new(), Key::new());
    let service = server(&judge, &other);
    let good = judge.root.sign(&head(), &judge.claims());
    assert_eq!(ask(&service, Some(&good)).await, (200, String::new(), json!(true)));
    let (status, challenge, problem) = ask(&service, None).await;
    assert_eq!((status, &*challenge, &problem["may_have_executed"]), (401, "Bearer", &json!(false)));

    let now = judge.now();
    let parts: Vec<_> = good.split('.').collect();
    let with_head = |change: Value| judge.root.sign(&with(&head(), change), &judge.claims());
    let with_claims = |change: Value| judge.root.sign(&head(), &with(&judge.claims(), change));
    let hs256 = {
        let claims = b64(judge.claims().to_string());
        let message = format!("{}.{claims}", b64(r#"{"alg":"HS256","typ":"at+jwt","kid":"k1"}"#));
        let signature =
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, judge.root.public()), message.as_bytes());
        format!("{message}.{}", b64(signature))
    };
    let link = with(
        &judge.claims(),
        json!({ "aud": null, "jti": null, "may_act": { "sub": "judge" }, "cnf": { "jwk": other.jwk() } }),
    );
    for (row, token) in [
        ("2 segments", parts[..2].join(".")),
        ("4 segments", format!("{good}.{}", parts[2])),
        ("5 segments", format!("{good}.{}.{}", parts[1], parts[2])),
        ("padding in base64url", format!("{good}=")),
        ("alg none", format!("{}.{}.", b64(r#"{"alg":"none","typ":"at+jwt"}"#), parts[1])),
        ("HS256 signed with the public key", hs256),
        ("alg not the key's", with_head(json!({ "alg": "ES256" }))),
        ("crit", with_head(json!({ "crit": ["exp"] }))),
        ("jku", with_head(json!({ "jku": "https://eve/jwks.json" }))),
        ("x5u", with_head(json!({ "x5u": "https://eve/cert" }))),
        ("jwk", other.sign(&with(&head(), json!({ "jwk": other.jwk() })), &judge.claims())),
        ("kid ../../etc/passwd", with_head(json!({ "kid": "../../etc/passwd" }))),
        ("kid ' OR 1=1", with_head(json!({ "kid": "' OR 1=1" }))),
        ("kid > 64 characters", with_head(json!({ "kid": "k".repeat(65) }))),
        ("kid with NUL", with_head(json!({ "kid": "k1\0" }))),
        ("typ not at+jwt", with_head(json!({ "typ": "JWT" }))),
        ("a link as a token", judge.root.sign(&with(&head(), json!({ "typ": "delegation+jwt" })), &link)),
        ("exp missing", with_claims(json!({ "exp": null }))),
        ("exp a string", with_claims(json!({ "exp": (now + 300).to_string() }))),
        ("exp negative", with_claims(json!({ "exp": -1 }))),
        ("exp 1e300", with_claims(json!({ "exp": 1e300 }))),
        ("exp past", with_claims(json!({ "iat": now - 200, "exp": now - 30 }))),
        ("nbf in future", with_claims(json!({ "nbf": now + 60 }))),
        ("iat in future", with_claims(json!({ "iat": now + 60, "exp": now + 300 }))),
        ("aud missing", with_claims(json!({ "aud": null }))),
        ("aud a number", with_claims(json!({ "aud": 1 }))),
        ("aud an object", with_claims(json!({ "aud": {} }))),
        ("aud another's", with_claims(json!({ "aud": "coder" }))),
        ("iss missing", with_claims(json!({ "iss": null }))),
        ("kid of another issuer", other.sign(&with(&head(), json!({ "kid": "o1" })), &judge.claims())),
        ("iss of another key", with_claims(json!({ "iss": "other" }))),
        ("life over the limit", with_claims(json!({ "exp": now + 301 }))),
        ("> 8 KiB", with_claims(json!({ "scope": "code:validate ".repeat(600) }))),
        ("ID token", with_head(json!({ "typ": "id+jwt" }))),
    ] {
        let (status, challenge, problem) = ask(&service, Some(&token)).await;
        assert_eq!((status, &*challenge), (401, "Bearer error=\"invalid_token\""), "{row}: {problem}");
        assert_eq!(problem["code"], "unauthenticated", "{row}");
        assert_eq!(problem["may_have_executed"], false, "{row}");
        assert!(!problem.to_string().contains(parts[2]), "{row}: no part of a token is in the answer");
    }
}

#[tokio::test(start_paused = true)]
async fn every_row_of_403_over_http() {
    let judge = Judge::new();
    let service = server(&judge, &Key::new());
    for (row, scope) in [
        ("lacking", "data:read"),
        ("none", ""),
        ("a prefix", "code:val"),
        ("a substring", "ode:validate"),
        ("longer", "code:validate2"),
        ("another case", "Code:Validate"),
        ("*", "*"),
        ("*:*", "*:*"),
        ("*:validate", "*:validate"),
    ] {
        let token = judge.root.sign(&head(), &with(&judge.claims(), json!({ "scope": scope })));
        let (status, challenge, problem) = ask(&service, Some(&token)).await;
        let expected = "Bearer error=\"insufficient_scope\", scope=\"code:validate\"";
        assert_eq!((status, &*challenge), (403, expected), "{row}: {problem}");
        assert_eq!(problem["may_have_executed"], false, "{row}");
    }
}
