//! Authority that is passed on: what an arm issues, and every rule of a link by itself.

use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::{Engine, prelude::BASE64_STANDARD};
use octollm_core::{
    card::ArmCard,
    error::ErrorKind,
    id::TaskId,
    parts::{Caller, Grant},
};
use octollm_http::token::{ExposeSecret, KeySet, SigningKey, TokenIssuer, TokenVerifier};
use serde_json::json;

use crate::support::{Clock, card, claims_of, links_of, unauthenticated};

/// An arm with its key, its issuer and its verifier.
struct ArmOf {
    card: ArmCard,
    issuer: TokenIssuer,
    verifier: TokenVerifier,
}

/// The root `brain`, and the verifiers of arms.
struct System {
    root: TokenIssuer,
    keys: KeySet,
    clock: Clock,
}

impl System {
    fn new() -> Self {
        let (key, clock) = (SigningKey::generate().unwrap(), Clock::runtime());
        let keys = KeySet::new("brain").with_key(&key).unwrap();
        Self { root: TokenIssuer::root("brain", key).clock(clock.read()).build().unwrap(), keys, clock }
    }

    fn arm(&self, id: &str, needs: &[&str]) -> ArmOf {
        self.arm_with(id, needs, SigningKey::generate().unwrap())
    }

    fn arm_with(&self, id: &str, needs: &[&str], key: SigningKey) -> ArmOf {
        let roots = TokenVerifier::builder().audience(id).root(self.keys.clone()).clock(self.clock.read());
        let card = card(id, &key, needs);
        let issuer = TokenIssuer::arm(id, key).clock(self.clock.read()).build().unwrap();
        ArmOf { card, issuer, verifier: roots.build().unwrap() }
    }
}

/// Calls an arm: the grant that it gets.
fn call(issuer: &TokenIssuer, grant: &Grant, scope: &str, to: &ArmOf) -> Grant {
    let token = issuer.issue(grant, &[scope], &to.card).unwrap();
    Grant::clone(&to.verifier.verify(token.expose_secret()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn three_hops_are_each_narrower() {
    let system = System::new();
    let coder = system.arm("coder", &["code:*", "data:read"]);
    let judge = system.arm("judge", &["data:read", "net:fetch"]);
    let store = system.arm("store", &[]);
    let task = TaskId::new();
    let ali = Grant::new("ali", ["task:run", "code:*", "data:*"]).task(task.clone());

    let at_coder = call(&system.root, &ali, "task:run", &coder);
    assert_eq!((at_coder.scopes.as_slice(), links_of(&at_coder).len()), (&["task:run".to_owned()][..], 1));
    let at_judge = call(&coder.issuer, &at_coder, "code:validate", &judge);
    assert_eq!(
        (at_judge.scopes.as_slice(), links_of(&at_judge).len()),
        (&["code:validate".to_owned()][..], 2)
    );
    let at_store = call(&judge.issuer, &at_judge, "data:read", &store);
    assert_eq!((at_store.scopes.as_slice(), links_of(&at_store).len()), (&["data:read".to_owned()][..], 0));
    for grant in [&at_coder, &at_judge, &at_store] {
        let caller = Caller::Known(grant.clone().into());
        assert!(
            caller.is_same_as(&Caller::Known(ali.clone().issuer("brain").into())),
            "one subject throughout"
        );
        assert_eq!(grant.task, Some(task.clone()));
    }

    // Each that tries for more fails by itself, and the link that it holds covers no more.
    let scopes =
        |grant: &Grant| claims_of(links_of(grant).last().unwrap())["scope"].as_str().unwrap().to_owned();
    assert_eq!(scopes(&at_coder), "code:* data:read");
    assert_eq!(scopes(&at_judge), "data:read", "what the judge needs and the coder has");
    for (issuer, grant, scope) in [
        (&coder.issuer, &at_coder, "data:write"),
        (&coder.issuer, &at_coder, "task:run"),
        (&coder.issuer, &at_coder, "code:admin"),
        (&judge.issuer, &at_judge, "code:validate"),
        (&judge.issuer, &at_judge, "net:fetch"),
        (&system.root, &ali, "tasks:admin"),
    ] {
        let failure = issuer.issue(grant, &[scope], &store.card).unwrap_err();
        assert_eq!(
            (failure.kind, failure.may_have_executed),
            (ErrorKind::InsufficientScope, false),
            "{scope}"
        );
    }
    // The store got no link.
    let failure = store.issuer.issue(&at_store, &["data:read"], &judge.card).unwrap_err();
    assert!(unauthenticated(&failure).contains("has not delegated"));
}

#[tokio::test(start_paused = true)]
async fn the_key_of_a_delegate_may_be_of_p256() {
    let system = System::new();
    let pkcs8 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap().to_pkcs8v1().unwrap();
    let body = BASE64_STANDARD.encode(pkcs8.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
    let coder = system.arm_with("coder", &["code:*"], SigningKey::from_pem(&pem.into()).unwrap());
    let judge = system.arm("judge", &["code:*"]);
    let at_coder = call(&system.root, &Grant::new("ali", ["code:*"]), "code:run", &coder);
    let at_judge = call(&coder.issuer, &at_coder, "code:run", &judge);
    assert_eq!((&*at_judge.subject, links_of(&at_judge).len()), ("ali", 2));
}

#[tokio::test(start_paused = true)]
async fn a_token_is_for_one_arm_and_signed_by_the_one_before_it() {
    let system = System::new();
    let (coder, judge) = (system.arm("coder", &["code:*"]), system.arm("judge", &["code:*"]));
    let ali = Grant::new("ali", ["code:*"]);
    let first = system.root.issue(&ali, &["code:run"], &coder.card).unwrap();
    unauthenticated(&judge.verifier.verify(first.expose_secret()).unwrap_err());
    let at_coder = coder.verifier.verify(first.expose_secret()).unwrap();
    let second = coder.issuer.issue(&at_coder, &["code:run"], &judge.card).unwrap();
    unauthenticated(&coder.verifier.verify(second.expose_secret()).unwrap_err());
    let at_judge = judge.verifier.verify(second.expose_secret()).unwrap();
    // The links name the coder first: the judge cannot sign as its caller, nor the coder with another key.
    let imposter = TokenIssuer::arm("coder", SigningKey::generate().unwrap())
        .clock(system.clock.read())
        .build()
        .unwrap();
    for (issuer, grant) in [(&judge.issuer, &at_coder), (&coder.issuer, &at_judge), (&imposter, &at_coder)] {
        let failure = issuer.issue(grant, &["code:run"], &judge.card).unwrap_err();
        assert!(unauthenticated(&failure).contains("has not delegated"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_arm_does_not_need_it_does_not_get() {
    let system = System::new();
    let ali = Grant::new("ali", ["code:*"]);
    let mut cards = vec![system.arm("coder", &[]).card, system.arm("coder", &["data:read"]).card];
    cards.push(ArmCard::new("coder"));
    let mut needy = ArmCard::new("coder");
    needy.needs = vec!["code:run".to_owned()];
    cards.push(needy);
    for card in cards {
        let token = system.root.issue(&ali, &["code:run"], &card).unwrap();
        assert_eq!(claims_of(token.expose_secret()).get("dlg"), None, "{card:?}");
    }
    // A key that is none of an arm's is refused before anything is sent.
    let mut wrong = system.arm("coder", &["code:run"]).card;
    for jwk in [
        json!({ "kty": "oct", "k": "AAAA" }),
        json!({}),
        json!({ "kty": "OKP", "crv": "Ed25519", "x": "AA" }),
    ] {
        wrong.key = jwk.as_object().cloned();
        let failure = system.root.issue(&ali, &["code:run"], &wrong).unwrap_err();
        assert_eq!((failure.kind, failure.may_have_executed), (ErrorKind::BadResponse, false));
    }
}

#[tokio::test(start_paused = true)]
async fn four_links_are_the_most() {
    let system = System::new();
    let arms: Vec<_> = (0..6).map(|n| system.arm(&format!("arm{n}"), &["code:*"])).collect();
    let mut grant = call(&system.root, &Grant::new("ali", ["code:*"]), "code:run", &arms[0]);
    for (hop, pair) in arms.windows(2).enumerate().take(4) {
        assert_eq!(links_of(&grant).len(), hop + 1);
        grant = call(&pair[0].issuer, &grant, "code:run", &pair[1]);
    }
    // The fifth arm can be called, and cannot call on.
    assert_eq!(links_of(&grant).len(), 0);
    unauthenticated(&arms[4].issuer.issue(&grant, &["code:run"], &arms[5].card).unwrap_err());
}

#[tokio::test(start_paused = true)]
async fn authority_ends_for_all_at_once() {
    let system = System::new();
    let (coder, judge) = (system.arm("coder", &["code:*"]), system.arm("judge", &["code:*"]));
    let end = system.clock.now() + jiff::SignedDuration::from_secs(60);
    let ali = Grant::new("ali", ["code:*"]).valid_until(end);
    let at_coder = call(&system.root, &ali, "code:run", &coder);
    tokio::time::advance(Duration::from_secs(40)).await;
    let token = coder.issuer.issue(&at_coder, &["code:run"], &judge.card).unwrap();
    let claims = claims_of(token.expose_secret());
    assert_eq!(claims["exp"], end.as_second());
    assert_eq!(claims_of(claims["dlg"].as_str().unwrap())["exp"], end.as_second());
    tokio::time::advance(Duration::from_secs(20)).await;
    for (issuer, grant) in [(&system.root, &ali), (&coder.issuer, &at_coder)] {
        let failure = issuer.issue(grant, &["code:run"], &judge.card).unwrap_err();
        assert!(unauthenticated(&failure).contains("has ended"));
    }
    // The verifier's leeway is for the difference of clocks.
    tokio::time::advance(Duration::from_secs(29)).await;
    judge.verifier.verify(token.expose_secret()).unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    unauthenticated(&judge.verifier.verify(token.expose_secret()).unwrap_err());
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_set_stays() {
    let system = System::new();
    let (coder, judge) = (system.arm("coder", &["code:*"]), system.arm("judge", &["code:*"]));
    let (one, two) = (TaskId::new(), TaskId::new());
    let bound = call(&system.root, &Grant::new("ali", ["code:*"]).task(one.clone()), "code:run", &coder);
    let at_judge = call(&coder.issuer, &bound, "code:run", &judge);
    assert_eq!(at_judge.task, Some(one.clone()));
    let mut other = bound.clone();
    other.task = Some(two.clone());
    let failure = coder.issuer.issue(&other, &["code:run"], &judge.card).unwrap_err();
    assert_eq!(failure.kind, ErrorKind::InsufficientScope);
    // A task that is not set can be set later.
    let mut free = call(&system.root, &Grant::new("ali", ["code:*"]), "code:run", &coder);
    free.task = Some(two.clone());
    assert_eq!(call(&coder.issuer, &free, "code:run", &judge).task, Some(two));
}

#[tokio::test(start_paused = true)]
async fn the_first_issuer_stays() {
    let system = System::new();
    let keys = system.keys.clone().speaks_for("https://idp");
    let system = System { keys, ..system };
    let (coder, judge) = (system.arm("coder", &["code:*"]), system.arm("judge", &["code:*"]));
    let ali = Grant::new("ali", ["code:*"]).issuer("https://idp");
    let at_coder = call(&system.root, &ali, "code:run", &coder);
    let at_judge = call(&coder.issuer, &at_coder, "code:run", &judge);
    assert_eq!(at_coder.issuer.as_deref(), Some("https://idp"));
    assert_eq!(at_judge.issuer.as_deref(), Some("https://idp"));
}
