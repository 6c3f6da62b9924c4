//! Every rule of a token by itself: what breaks one is refused with 401.

use octollm_core::{error::ErrorKind, parts::Caller};
use octollm_http::token::{KeySet, SigningKey, TokenVerifier};
use serde_json::{Value, json};

use crate::support::{Judge, Key, b64, head, links_of, refused, unauthenticated, with};

#[tokio::test(start_paused = true)]
async fn a_valid_token_says_who_calls() {
    let judge = Judge::new();
    let task = octollm_core::id::TaskId::new();
    let claims = with(&judge.claims(), json!({ "scope": "code:validate  data:*", "task": task }));
    let grant = judge.verifier.verify(&judge.root.sign(&head(), &claims)).unwrap();
    assert_eq!((grant.issuer.as_deref(), &*grant.subject), (Some("brain"), "ali"));
    assert_eq!(grant.scopes, ["code:validate", "data:*"]);
    assert_eq!(grant.task, Some(task));
    assert_eq!(grant.valid_until.unwrap().as_second(), judge.now() + 300);
    assert!(links_of(&grant).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_token_has_three_parts_of_base64url() {
    let judge = Judge::new();
    let token = judge.root.sign(&head(), &judge.claims());
    let parts: Vec<_> = token.split('.').collect();
    let [head, claims, signature] = parts[..] else { unreachable!() };
    for text in [
        "",
        ".",
        "..",
        "...",
        head,
        &format!("{head}.{claims}"),
        &format!("{head}.{claims}."),
        &format!(".{claims}.{signature}"),
        &format!("{token}.{signature}"),
        &format!("{token}.{claims}.{signature}"),
        &format!("{token}="),
        &format!("{head}=.{claims}.{signature}"),
        &format!("{token} "),
        &format!(" {token}"),
        &format!("{head}.{claims}.{}", signature.replacen(&signature[..1], "+", 1)),
        &format!("{head}.{claims}.{signature}A"),
    ] {
        refused(judge.verify_text(text), "not valid", &text);
    }
    // The last character has bits that no byte has.
    let last = signature.chars().next_back().unwrap();
    let other = char::from(last as u8 + 1);
    refused(judge.verify_text(&format!("{head}.{claims}.{}{other}", &signature[..85])), "not valid", &other);
    let long = with(&judge.claims(), json!({ "scope": "code:validate ".repeat(600) }));
    refused(judge.verify(&long), "longer than 8 KiB", &"long");
    judge.verify_text(&token).unwrap();
}

#[tokio::test(start_paused = true)]
async fn parts_are_objects_with_each_member_once() {
    let judge = Judge::new();
    let (good_head, good) = (head().to_string(), judge.claims().to_string());
    for (head, claims) in [
        (&*good_head, "[]"),
        (&good_head, "{"),
        (&good_head, "null"),
        ("[]", &good),
        ("\"at+jwt\"", &good),
        (r#"{"alg":"EdDSA","typ":"at+jwt","kid":"k1"} x"#, &good),
        (r#"{"alg":"EdDSA","alg":"EdDSA","typ":"at+jwt","kid":"k1"}"#, &good),
        (&good_head, &good.replacen('{', r#"{"aud":"coder","#, 1)),
        (&good_head, &good.replacen('{', "{\"x\":NaN,", 1)),
        (&good_head, &good.replacen('{', "{\"x\":1e999,", 1)),
        (&good_head, &good.replacen('{', &format!("{{\"x\":{},", "[".repeat(200) + &"]".repeat(200)), 1)),
    ] {
        let token = judge.root.sign_text(head, claims);
        refused(judge.verify_text(&token), "not an object in JSON", &(head, claims));
    }
}

#[tokio::test(start_paused = true)]
async fn the_algorithm_is_that_of_the_key() {
    let judge = Judge::new();
    let claims = judge.claims();
    for algorithm in ["none", "None", "", "HS256", "HS512", "RS256", "ES256", "PS256", "eddsa", "Ed25519"] {
        let token = judge.root.sign(&with(&head(), json!({ "alg": algorithm })), &claims);
        refused(judge.verify_text(&token), "algorithm", &algorithm);
        let unsigned = format!("{}.", token.rsplit_once('.').unwrap().0);
        refused(judge.verify_text(&unsigned), "not valid", &algorithm);
    }
    for algorithm in [json!(null), json!(1), json!(["EdDSA"])] {
        let head = with(&head(), json!({ "alg": algorithm }));
        refused(judge.verify_text(&judge.root.sign(&head, &claims)), "algorithm", &algorithm);
    }
}

#[tokio::test(start_paused = true)]
async fn a_public_key_is_no_secret() {
    let judge = Judge::new();
    let message = format!(
        "{}.{}",
        b64(r#"{"alg":"HS256","typ":"at+jwt","kid":"k1"}"#),
        b64(judge.claims().to_string())
    );
    let pem = judge.keys.to_jwks().to_string();
    for secret in [judge.root.public(), b64(judge.root.public()).as_bytes(), pem.as_bytes()] {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
        let signature = aws_lc_rs::hmac::sign(&key, message.as_bytes());
        refused(judge.verify_text(&format!("{message}.{}", b64(signature))), "algorithm", &"HS256");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_in_a_head_is_followed() {
    let judge = Judge::new();
    let eve = Key::new();
    for parameter in [
        json!({ "crit": ["exp"] }),
        json!({ "crit": [] }),
        json!({ "b64": false, "crit": ["b64"] }),
        json!({ "jku": "https://eve/jwks.json" }),
        json!({ "x5u": "https://eve/cert" }),
        json!({ "x5c": ["MIIB"] }),
        json!({ "jwk": eve.jwk() }),
        json!({ "zip": "DEF" }),
    ] {
        for key in [&judge.root, &eve] {
            let token = key.sign(&with(&head(), parameter.clone()), &judge.claims());
            refused(judge.verify_text(&token), "parameter", &parameter);
        }
    }
    // What is not known is ignored, as RFC 7515 says.
    let token = judge.root.sign(&with(&head(), json!({ "x5t": "abc", "nonce": 1 })), &judge.claims());
    judge.verify_text(&token).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_key_is_found_by_its_id_alone() {
    let judge = Judge::new();
    for kid in [
        json!("../../etc/passwd"),
        json!("' OR 1=1"),
        json!("k".repeat(65)),
        json!("k1\0"),
        json!(""),
        json!(1),
        json!(["k1"]),
        json!("K1"),
        json!("k"),
        json!("k2"),
    ] {
        let token = judge.root.sign(&with(&head(), json!({ "kid": kid })), &judge.claims());
        refused(judge.verify_text(&token), "key", &kid);
    }
    refused(judge.verify_text(&Key::new().sign(&head(), &judge.claims())), "signature", &"another key");
    // Without an id it is the only key of its issuer.
    let token = judge.root.sign(&with(&head(), json!({ "kid": null })), &judge.claims());
    judge.verify_text(&token).unwrap();
    let keys = judge.keys.clone().with_key(&SigningKey::generate().unwrap()).unwrap();
    let verifier = TokenVerifier::builder().audience("judge").root(keys).build().unwrap();
    assert!(unauthenticated(&verifier.verify(&token).unwrap_err()).contains("names no key"));
}

#[tokio::test(start_paused = true)]
async fn a_key_is_bound_to_its_issuer() {
    let judge = Judge::new();
    let other = Key::new();
    let keys = KeySet::new("other").with_key(&other.signing().with_kid("k2").unwrap()).unwrap();
    let builder = TokenVerifier::builder().audience("judge").root(judge.keys.clone()).root(keys);
    let verifier = builder.clock(judge.clock.read()).build().unwrap();
    let from = |issuer: &str| with(&judge.claims(), json!({ "iss": issuer }));
    let kid = |kid: &str| with(&head(), json!({ "kid": kid }));
    assert_eq!(
        verifier.verify(&other.sign(&kid("k2"), &from("other"))).unwrap().issuer.as_deref(),
        Some("other")
    );
    for (key, kid, issuer) in
        [(&other, kid("k2"), "brain"), (&judge.root, kid("k1"), "other"), (&other, kid("k2"), "third")]
    {
        unauthenticated(&verifier.verify(&key.sign(&kid, &from(issuer))).unwrap_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_has_its_own_type() {
    let judge = Judge::new();
    for kind in [json!("at+jwt"), json!("AT+JWT"), json!("application/at+jwt")] {
        let token = judge.root.sign(&with(&head(), json!({ "typ": kind })), &judge.claims());
        judge.verify_text(&token).unwrap();
    }
    for kind in [
        json!("JWT"),
        json!("jwt"),
        json!("delegation+jwt"),
        json!("id+jwt"),
        json!(""),
        json!(null),
        json!(1),
    ] {
        let token = judge.root.sign(&with(&head(), json!({ "typ": kind })), &judge.claims());
        refused(judge.verify_text(&token), "type", &kind);
    }
}

#[tokio::test(start_paused = true)]
async fn every_claim_is_there_and_of_its_type() {
    let judge = Judge::new();
    let now = judge.now();
    for changes in [
        json!({ "iss": null }),
        json!({ "iss": 1 }),
        json!({ "iss": ["brain"] }),
        json!({ "iss": "" }),
        json!({ "iss": "Brain" }),
        json!({ "iss": "brain " }),
        json!({ "sub": null }),
        json!({ "sub": 1 }),
        json!({ "sub": "" }),
        json!({ "sub": "a\nb" }),
        json!({ "sub": "x".repeat(257) }),
        json!({ "aud": null }),
        json!({ "aud": 1 }),
        json!({ "aud": {} }),
        json!({ "aud": ["judge"] }),
        json!({ "aud": "coder" }),
        json!({ "aud": "judge2" }),
        json!({ "aud": "jud" }),
        json!({ "aud": "" }),
        json!({ "exp": null }),
        json!({ "exp": (now + 300).to_string() }),
        json!({ "exp": -1 }),
        json!({ "exp": 1e300 }),
        json!({ "exp": 1e10 }),
        json!({ "exp": u64::MAX }),
        json!({ "exp": i64::MAX }),
        json!({ "iat": null }),
        json!({ "iat": "now" }),
        json!({ "iat": -1 }),
        json!({ "nbf": "now" }),
        json!({ "nbf": -1 }),
        json!({ "jti": null }),
        json!({ "jti": 7 }),
        json!({ "jti": "" }),
        json!({ "scope": null }),
        json!({ "scope": ["code:validate"] }),
        json!({ "scope": "code:validate\ttask:run" }),
        json!({ "scope": "\"code:validate\"" }),
        json!({ "task": 1 }),
        json!({ "task": "" }),
        json!({ "task": "task_1" }),
        json!({ "sub_id": "ali" }),
        json!({ "sub_id": { "format": "opaque", "iss": "brain", "sub": "ali" } }),
        json!({ "sub_id": { "format": "iss_sub", "iss": "brain", "sub": "eve" } }),
        json!({ "sub_id": { "format": "iss_sub", "iss": "https://idp", "sub": "ali" } }),
        json!({ "prf": [] }),
        json!({ "prf": "x" }),
        json!({ "prf": [1] }),
        json!({ "dlg": [] }),
        json!({ "dlg": "x" }),
    ] {
        refused(judge.verify(&with(&judge.claims(), changes.clone())), "not valid", &changes);
    }
    for claim in ["nbf", "task", "prf", "dlg", "sub_id"] {
        let mut claims = judge.claims();
        claims[claim] = Value::Null;
        refused(judge.verify(&claims), "not valid", &claim);
    }
    // What is not known is ignored, as RFC 7519 says.
    judge.verify(&with(&judge.claims(), json!({ "azp": 1.5, "x": { "y": [null] } }))).unwrap();
}

#[tokio::test(start_paused = true)]
async fn times_are_those_of_the_verifier() {
    let judge = Judge::new();
    let now = judge.now();
    for (iat, exp) in [(0, 300), (-300, 0), (-329, -29), (30, 330), (-10, 1)] {
        judge.verify(&with(&judge.claims(), json!({ "iat": now + iat, "exp": now + exp }))).unwrap();
    }
    for (iat, exp, rule) in [
        (0, 301, "life"),
        (0, 0, "life"),
        (10, 5, "life"),
        (-330, -30, "expired"),
        (-4000, -3900, "expired"),
        (31, 331, "not valid yet"),
        (4000, 4100, "not valid yet"),
    ] {
        let claims = with(&judge.claims(), json!({ "iat": now + iat, "exp": now + exp }));
        refused(judge.verify(&claims), rule, &(iat, exp));
    }
    judge.verify(&with(&judge.claims(), json!({ "nbf": now + 30 }))).unwrap();
    refused(judge.verify(&with(&judge.claims(), json!({ "nbf": now + 31 }))), "not valid yet", &"nbf");
    refused(judge.verify(&with(&judge.claims(), json!({ "iat": 0 }))), "life", &"iat");
}

/// The bad input that is answered 403: the token is valid, and its scopes do not cover the contract's.
#[tokio::test(start_paused = true)]
async fn a_scope_is_matched_whole() {
    let judge = Judge::new();
    for (scope, kind) in [
        ("code:validate", None),
        ("code:*", None),
        ("a:b code:validate", None),
        ("", Some(ErrorKind::InsufficientScope)),
        ("code:val", Some(ErrorKind::InsufficientScope)),
        ("code:validate2", Some(ErrorKind::InsufficientScope)),
        ("ode:validate", Some(ErrorKind::InsufficientScope)),
        ("CODE:VALIDATE", Some(ErrorKind::InsufficientScope)),
        ("*", Some(ErrorKind::InsufficientScope)),
        ("*:*", Some(ErrorKind::InsufficientScope)),
        ("*:validate", Some(ErrorKind::InsufficientScope)),
        ("code", Some(ErrorKind::InsufficientScope)),
        ("code:", Some(ErrorKind::InsufficientScope)),
        ("code,code:validate", Some(ErrorKind::InsufficientScope)),
    ] {
        let token = judge.root.sign(&head(), &with(&judge.claims(), json!({ "scope": scope })));
        let caller = Caller::Known(judge.verifier.verify(&token).unwrap());
        assert_eq!(caller.may("code:validate").err().map(|failure| failure.kind), kind, "{scope}");
    }
}
