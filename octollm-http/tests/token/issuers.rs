//! Which issuers a verifier accepts: roots, and identity providers.

use std::time::Duration;

use octollm_core::parts::{Caller, Grant};
use octollm_http::token::{KeySet, SigningKey, TokenIssuer, TokenVerifier};
use serde_json::{Value, json};

use crate::support::{Clock, Judge, Key, links_of, refused, unauthenticated, with};

#[tokio::test(start_paused = true)]
async fn a_verifier_names_an_audience_and_an_issuer() {
    let keys = || KeySet::new("brain").with_key(&SigningKey::generate().unwrap()).unwrap();
    let built = |builder: octollm_http::token::TokenVerifierBuilder| {
        builder.build().err().map(|error| error.setting().to_owned())
    };
    let audience = || TokenVerifier::builder().audience("judge");
    for (builder, setting) in [
        (TokenVerifier::builder(), "audience"),
        (TokenVerifier::builder().root(keys()), "audience"),
        (TokenVerifier::builder().audience("").root(keys()), "audience"),
        (audience().audience("").root(keys()), "audience"),
        (audience().root(keys()).identity_provider(keys(), "", ["a:b"]), "audience"),
        (
            TokenVerifier::builder().root(keys()).identity_provider(KeySet::new("idp"), "api", ["a:b"]),
            "audience",
        ),
        (audience(), "root"),
        (audience().root(KeySet::new("")), "root"),
        (audience().root(keys()).root(keys()), "root"),
        (audience().root(keys()).identity_provider(keys(), "api", ["a:b"]), "root"),
        (audience().root(keys()).leeway(Duration::from_secs(301)), "leeway"),
        (audience().root(keys()).max_life(Duration::ZERO), "max_life"),
        (audience().root(keys()).cache_capacity(0), "cache_capacity"),
    ] {
        assert_eq!(built(builder).as_deref(), Some(setting));
    }
    assert_eq!(built(audience().root(keys())), None);
}

#[tokio::test(start_paused = true)]
async fn equal_names_of_two_roots_are_two_callers() {
    let judge = Judge::new();
    let (other, clock) = (SigningKey::generate().unwrap(), judge.clock);
    let keys = KeySet::new("other").with_key(&other).unwrap();
    let brain = judge.keys.clone().speaks_for("https://idp");
    let verifier = TokenVerifier::builder()
        .audience("judge")
        .root(brain)
        .root(keys)
        .clock(clock.read())
        .build()
        .unwrap();
    let issuers = [
        TokenIssuer::root("brain", judge.root.signing().with_kid("k1").unwrap())
            .clock(clock.read())
            .build()
            .unwrap(),
        TokenIssuer::root("other", other).clock(clock.read()).build().unwrap(),
    ];
    let mut callers = Vec::new();
    for (issuer, grant) in [
        (&issuers[0], Grant::new("ali", ["a:b"])),
        (&issuers[1], Grant::new("ali", ["a:b"])),
        (&issuers[0], Grant::new("ali", ["a:b"]).issuer("https://idp")),
    ] {
        let card = octollm_core::card::ArmCard::new("judge");
        let token = issuer.issue(&grant, &["a:b"], &card).unwrap();
        let grant = verifier.verify(octollm_http::token::ExposeSecret::expose_secret(&token)).unwrap();
        callers.push(Caller::Known(grant));
    }
    for (at, caller) in callers.iter().enumerate() {
        let same: Vec<_> = callers.iter().map(|other| other.is_same_as(caller)).collect();
        assert_eq!(same, (0..3).map(|other| other == at).collect::<Vec<_>>());
    }
    // A root that does not speak for another issuer cannot name it.
    let grant = Grant::new("ali", ["a:b"]).issuer("https://idp");
    let token = issuers[1].issue(&grant, &["a:b"], &octollm_core::card::ArmCard::new("judge")).unwrap();
    let failure = verifier.verify(octollm_http::token::ExposeSecret::expose_secret(&token)).unwrap_err();
    assert!(unauthenticated(&failure).contains("speak for"));
}

/// An identity provider, and an edge that accepts its access tokens for `api`.
struct Edge {
    provider: Key,
    verifier: TokenVerifier,
    claims: Value,
}

impl Edge {
    fn new() -> Self {
        let (provider, clock) = (Key::new(), Clock::runtime());
        let jwks = json!({ "keys": [with(&provider.jwk(), json!({ "kid": "p1", "use": "sig" }))] });
        let keys = KeySet::new("https://idp").with_jwks(&jwks.to_string()).unwrap();
        let root = KeySet::new("brain").with_key(&SigningKey::generate().unwrap()).unwrap();
        let builder = TokenVerifier::builder().audience("brain").root(root).clock(clock.read());
        let verifier = builder.identity_provider(keys, "api", ["task:run", "data:*"]).build().unwrap();
        let now = clock.now().as_second();
        let claims = json!({
            "iss": "https://idp", "sub": "u-1", "aud": "api", "iat": now, "exp": now + 3600,
            "scope": "openid task:run data:read tasks:admin",
        });
        Self { provider, verifier, claims }
    }

    fn verify(&self, head: Value, changes: Value) -> Result<std::sync::Arc<Grant>, String> {
        let head = with(&json!({ "alg": "EdDSA", "typ": "JWT", "kid": "p1" }), head);
        let token = self.provider.sign(&head, &with(&self.claims, changes));
        self.verifier.verify(&token).map_err(|failure| unauthenticated(&failure))
    }
}

#[tokio::test(start_paused = true)]
async fn an_identity_provider_has_its_own_audience_and_a_ceiling() {
    let edge = Edge::new();
    for (head, changes) in [
        (json!({}), json!({})),
        (json!({ "typ": "at+jwt" }), json!({})),
        (json!({}), json!({ "aud": ["account", "api"] })),
        (json!({}), json!({ "scope": null, "scp": "task:run data:read" })),
        (json!({}), json!({ "scope": null, "scp": ["task:run", "data:read"] })),
        (json!({}), json!({ "jti": "x", "azp": "web", "typ": "Bearer" })),
    ] {
        let grant = edge.verify(head, changes.clone()).unwrap();
        assert_eq!((grant.issuer.as_deref(), &*grant.subject), (Some("https://idp"), "u-1"));
        assert_eq!(grant.scopes, ["data:read", "task:run"], "no more than the ceiling: {changes}");
        assert!(links_of(&grant).is_empty());
    }
    assert_eq!(edge.verify(json!({}), json!({ "scope": null })).unwrap().scopes, [""; 0]);
    for (head, changes) in [
        (json!({ "typ": "delegation+jwt" }), json!({})),
        (json!({ "typ": null }), json!({})),
        (json!({}), json!({ "nonce": "n" })),
        (json!({}), json!({ "at_hash": "h" })),
        (json!({}), json!({ "typ": "ID" })),
        (json!({}), json!({ "aud": "brain" })),
        (json!({}), json!({ "aud": ["web"] })),
        (json!({}), json!({ "aud": null })),
        (json!({}), json!({ "iss": "brain" })),
        (json!({}), json!({ "exp": edge.claims["exp"].as_i64().unwrap() + 24 * 3600 })),
    ] {
        assert!(edge.verify(head.clone(), changes.clone()).is_err(), "{head} {changes}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_arm_refuses_the_token_of_an_identity_provider() {
    let (judge, edge) = (Judge::new(), Edge::new());
    let head = json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": "p1" });
    let claims = with(&edge.claims, json!({ "aud": "judge", "jti": "t", "exp": judge.now() + 300 }));
    refused(judge.verify_text(&edge.provider.sign(&head, &claims)), "issuer is not trusted", &claims);
}
