//! Scopes from everywhere: what is no scope grants nothing, wherever it comes in.

use std::cell::Cell;

use octollm_core::{card::ArmCard, error::ErrorKind, parts::Grant};
use octollm_http::{
    Server,
    token::{ExposeSecret, KeySet, SigningKey, TokenIssuer, TokenVerifier},
};
use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::{Value, json};

use crate::{
    support::{Clock, Judge, Key, card, claims_of, head, links_of, refused, with},
    world::includes,
};

/// A root, and the arm `coder`, which it calls.
struct Pair {
    issuer: TokenIssuer,
    coder: SigningKey,
    verifier: TokenVerifier,
}

impl Pair {
    fn new() -> Self {
        let key = || SigningKey::generate().unwrap();
        let (root, clock) = (key(), Clock::runtime());
        let keys = KeySet::new("brain").with_key(&root).unwrap();
        let verifier =
            TokenVerifier::builder().audience("coder").root(keys).clock(clock.read()).build().unwrap();
        Self {
            issuer: TokenIssuer::root("brain", root).clock(clock.read()).build().unwrap(),
            coder: key(),
            verifier,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_blank_in_a_scope_grants_no_verb_that_is_granted_by_name() {
    let pair = Pair::new();
    let ali = Grant::new("ali", ["code:*", "text:*"]);
    // On a card: what is no scope is not delegated, and the rest is.
    let needs = ["code:admin x", "code:publish\t", "code: admin", "code:run"];
    let coder = card("coder", &pair.coder, &needs);
    let token = pair.issuer.issue(&ali, &["text:count"], &coder).unwrap();
    let grant = pair.verifier.verify(token.expose_secret()).unwrap();
    assert_eq!(claims_of(links_of(&grant).last().unwrap())["scope"], "code:run");
    // On a card from the network.
    let read: ArmCard = serde_json::from_value(json!({
        "arm_id": "coder", "needs": ["code:admin x", 1, "code:run", null, "code", "data:*"],
    }))
    .unwrap();
    assert_eq!(read.needs, ["code:run", "data:*"]);
    // In a request for a token.
    for scope in [
        "text:admin x",
        "text:admin ",
        " text:admin",
        "text:x text:admin",
        "text:a:b",
        "text:",
        ":a",
        "text:ä",
    ] {
        let failure = pair.issuer.issue(&ali, &[scope], &coder).unwrap_err();
        assert_eq!(failure.kind, ErrorKind::InsufficientScope, "{scope:?}");
        // Also where the grant names it.
        let failure = pair.issuer.issue(&Grant::new("ali", [scope]), &[scope], &coder).unwrap_err();
        assert_eq!(failure.kind, ErrorKind::InsufficientScope, "{scope:?}");
    }
    // In a grant: it is worth nothing by itself, and does not spoil the rest.
    let mut eve = Grant::new("eve", ["code:admin x", "*", "code:run"]);
    assert_eq!(eve.scopes, ["code:run"]);
    eve.scopes.extend(["code:admin x".into(), "code:x code:publish".into()]);
    let token = pair
        .issuer
        .issue(&eve, &["code:run"], &card("coder", &pair.coder, &["code:*", "code:admin"]))
        .unwrap();
    let grant = pair.verifier.verify(token.expose_secret()).unwrap();
    assert_eq!(claims_of(links_of(&grant).last().unwrap())["scope"], "code:run");
}

#[tokio::test(start_paused = true)]
async fn scopes_of_an_identity_provider_are_words() {
    let (provider, clock) = (Key::new(), Clock::runtime());
    let keys = KeySet::new("https://idp")
        .with_jwks(&with(&provider.jwk(), json!({ "kid": "p" })).to_string())
        .unwrap();
    let builder = |ceiling: &[&str]| {
        TokenVerifier::builder()
            .identity_provider(keys.clone(), "api", ceiling.iter().copied())
            .clock(clock.read())
    };
    let verifier = builder(&["tasks:*", "code:*"]).build().unwrap();
    let verify = |changes: Value| {
        let now = clock.now().as_second();
        let claims = json!({ "iss": "https://idp", "sub": "u", "aud": "api", "iat": now, "exp": now + 300 });
        let token =
            provider.sign(&with(&head(), json!({ "typ": "JWT", "kid": "p" })), &with(&claims, changes));
        verifier.verify(&token).map(|grant| grant.scopes.clone())
    };
    for changes in [
        json!({ "scp": ["tasks:admin x", "tasks:read"] }),
        json!({ "scp": ["tasks:admin ", "tasks:read\t"] }),
        json!({ "scp": "tasks:admin\u{a0} tasks:read" }),
        json!({ "scope": ["tasks:read tasks:admin"] }),
        json!({ "scope": "openid tasks:read", "scp": ["profile  code:admin"] }),
    ] {
        assert_eq!(verify(changes.clone()).unwrap(), ["tasks:read"], "{changes}");
    }
    // An audience is a name, of which no part counts.
    for aud in [json!("x api"), json!(["x api"]), json!("api ")] {
        assert!(verify(json!({ "aud": aud.clone(), "scp": "tasks:read" })).is_err(), "{aud}");
    }
    let error = builder(&["tasks:*", "code"]).build().unwrap_err();
    assert_eq!(error.setting(), "identity_provider");
}

#[tokio::test(start_paused = true)]
async fn a_token_of_a_delegate_has_scopes_alone() {
    let judge = Judge::new();
    for scope in ["code:validate\t", "code:\u{e4}", "code:\"x\""] {
        refused(judge.verify(&with(&judge.claims(), json!({ "scope": scope }))), "malformed", &scope);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_needs_scopes_alone() {
    for need in ["code:admin x", "code", "", "code:a:b"] {
        let error = Server::new("coder")
            .needs_scope("code:run")
            .needs_scope(need)
            .open_to_all()
            .into_service()
            .unwrap_err();
        assert_eq!(error.setting(), "needs", "{need:?}");
    }
    Server::new("coder").needs_scope("code:run").open_to_all().into_service().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_card_with_too_many_needs_has_none() {
    let read = |count: usize| {
        let needs: Vec<_> = (0..count).map(|n| format!("a{n}:b")).collect();
        serde_json::from_value::<ArmCard>(json!({ "arm_id": "coder", "needs": needs })).unwrap().needs.len()
    };
    assert_eq!((read(256), read(257), read(95_000)), (256, 0, 0));
    let long = json!({ "arm_id": "coder", "needs": ["a:b", format!("a:{}", "b".repeat(255))] });
    assert_eq!(serde_json::from_value::<ArmCard>(long).unwrap().needs, ["a:b"]);
    let server = |count: usize| {
        let needs = (0..count).map(|n| format!("a{n}:b"));
        needs.fold(Server::new("coder").open_to_all(), Server::needs_scope).into_service()
    };
    server(256).unwrap();
    assert_eq!(server(257).unwrap_err().setting(), "needs");
}

/// Texts that are nearly scopes.
fn text() -> impl Strategy<Value = String> {
    let part =
        prop::sample::select(vec!["a", "b", "admin", "publish", "*", ":", " ", "\t", "\u{a0}", "\"", ""]);
    prop_oneof![
        6 => prop::collection::vec(part, 1..6).prop_map(|parts| parts.concat()),
        3 => prop::sample::select(vec!["a:*", "a:b", "b:*", "a:admin"]).prop_map(str::to_owned),
        1 => ".*",
    ]
}

/// Issues a token of what is granted, with a link for what is needed, and checks what a verifier reads.
fn issued(
    granted: &[String],
    needed: &[String],
    asked: &[String],
    in_full: bool,
) -> Result<bool, TestCaseError> {
    let pair = Pair::new();
    let mut ali = Grant::new("ali", granted);
    if in_full {
        ali.scopes = granted.to_vec();
    }
    let needs: Vec<_> = needed.iter().map(|need| &**need).collect();
    let asked: Vec<_> = asked.iter().map(|scope| &**scope).collect();
    let card = card("coder", &pair.coder, &needs);
    let Ok(token) = pair.issuer.issue(&ali, &asked, &card) else { return Ok(false) };
    let grant = pair.verifier.verify(token.expose_secret());
    let grant = grant.map_err(|failure| TestCaseError::fail(failure.message))?;
    let covered = |list: &[String], scope: &str| list.iter().any(|own| includes(own, scope));
    for scope in &grant.scopes {
        prop_assert!(covered(granted, scope), "{scope:?} of {granted:?}");
    }
    let link = links_of(&grant).last().map(|link| claims_of(link)["scope"].as_str().unwrap().to_owned());
    for scope in link.iter().flat_map(|link| link.split(' ')) {
        prop_assert!(
            covered(granted, scope) && covered(needed, scope),
            "{scope:?} of {granted:?}, {needed:?}"
        );
    }
    Ok(link.is_some())
}

/// Whatever is granted, needed and asked for: a verifier reads nothing that is wider.
#[test]
fn a_token_and_its_link_are_never_wider_than_what_was_granted() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let _inside = runtime.enter();
    let list = |most| prop::collection::vec(text(), 0..most);
    let config = ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() };
    let linked = Cell::new(0);
    let result = TestRunner::new(config).run(
        &(list(5), list(5), list(2), any::<bool>()),
        |(granted, needed, asked, in_full)| {
            linked.set(linked.get() + u32::from(issued(&granted, &needed, &asked, in_full)?));
            Ok(())
        },
    );
    result.unwrap_or_else(|error| panic!("{error}"));
    assert!(linked.get() > 20, "{} tokens had a link", linked.get());
}
