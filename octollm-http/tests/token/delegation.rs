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
use serde_json::{Value, json};

use crate::support::{Clock, Judge, Key, b64, card, claims_of, links_of, unauthenticated, with};

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

#[test]
fn three_hops_are_each_narrower() {
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

#[test]
fn the_key_of_a_delegate_may_be_of_p256() {
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

#[test]
fn a_token_is_for_one_arm_and_signed_by_the_one_before_it() {
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

#[test]
fn what_an_arm_does_not_need_it_does_not_get() {
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

#[test]
fn four_links_are_the_most() {
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

#[test]
fn a_task_that_is_set_stays() {
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

#[test]
fn the_first_issuer_stays() {
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

/// A chain written by hand: `brain` delegates to `coder`, which delegates to `tester`, which calls `judge`.
struct Chain {
    judge: Judge,
    coder: Key,
    tester: Key,
    eve: Key,
    /// The claims of the two links, of the token, and of the link onward, without `prv`, `prf` and `dlg`.
    claims: [Value; 4],
}

/// The part of a chain that a case changes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    First,
    Second,
    Token,
    Onward,
}

impl Chain {
    fn new() -> Self {
        let (judge, coder, tester, eve) = (Judge::new(), Key::new(), Key::new(), Key::new());
        let (iat, exp) = (judge.now(), judge.now() + 200);
        let link = |iss: &str, to: &str, key: &Key, scope: &str| {
            json!({
                "iss": iss, "sub": "ali", "may_act": { "sub": to }, "cnf": { "jwk": key.jwk() },
                "scope": scope, "iat": iat, "exp": exp, "task": "task_3fK9aZ0qLw81bXyT",
            })
        };
        let token = json!({
            "iss": "tester", "sub": "ali", "aud": "judge", "scope": "code:run", "iat": iat, "exp": exp,
            "jti": "t", "task": "task_3fK9aZ0qLw81bXyT",
        });
        let claims = [
            link("brain", "coder", &coder, "code:* data:read"),
            link("coder", "tester", &tester, "code:run data:read"),
            token,
            link("tester", "judge", &judge.root, "data:read"),
        ];
        Self { judge, coder, tester, eve, claims }
    }

    /// The token, with changes of the claims, of the head and of the signer of one part.
    fn token(&self, part: Option<Part>, claims: Value, head: Value, by: Option<&Key>) -> String {
        let changed = |at: Part, automatic: Value, key: &Key| {
            let link = if at == Part::Token { "at+jwt" } else { "delegation+jwt" };
            let mut head_of = json!({ "alg": "EdDSA", "typ": link });
            if at == Part::First {
                head_of["kid"] = "k1".into();
            }
            let claims_of = with(&self.claims[at as usize], automatic);
            if part != Some(at) {
                return key.sign(&head_of, &claims_of);
            }
            by.unwrap_or(key).sign(&with(&head_of, head.clone()), &with(&claims_of, claims.clone()))
        };
        let prv = |link: &str| b64(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, link.as_bytes()));
        let first = changed(Part::First, json!({}), &self.judge.root);
        let second = changed(Part::Second, json!({ "prv": prv(&first) }), &self.coder);
        let onward = changed(Part::Onward, json!({ "prv": prv(&second) }), &self.tester);
        changed(Part::Token, json!({ "prf": [first, second], "dlg": onward }), &self.tester)
    }
}

#[test]
fn every_rule_of_a_link_holds_by_itself() {
    use Part::{First, Onward, Second, Token};
    let chain = Chain::new();
    let now = chain.judge.now();
    chain.judge.verify_text(&chain.token(None, json!({}), json!({}), None)).unwrap();
    let ec_private = with(&chain.eve.jwk(), json!({ "d": b64([1; 32]) }));
    let rsa = json!({ "kty": "RSA", "e": "AQAB", "n": b64([0xff; 256]) });
    for (parts, changes, rule) in [
        (&[First, Second, Onward][..], json!({ "aud": "judge" }), "audience"),
        (&[First, Second, Token, Onward], json!({ "sub": "eve" }), "subject"),
        (&[First, Second, Token, Onward], json!({ "sub": null }), "malformed"),
        (
            &[Second, Token, Onward],
            json!({ "sub_id": { "format": "iss_sub", "iss": "x", "sub": "ali" } }),
            "subject",
        ),
        (&[Second, Token, Onward], json!({ "task": null }), "task"),
        (&[First, Second, Token, Onward], json!({ "task": "task_4fK9aZ0qLw81bXyT" }), "task"),
        (&[First], json!({ "iss": "other" }), "not a root"),
        (&[First], json!({ "iss": "coder" }), "not a root"),
        (&[Second, Token, Onward], json!({ "iss": "brain" }), "issuer"),
        (&[Second, Token, Onward], json!({ "iss": "judge" }), "issuer"),
        (&[First], json!({ "prv": b64([0; 32]) }), "first link names one"),
        (&[Second, Onward], json!({ "prv": null }), "link before it"),
        (&[Second, Onward], json!({ "prv": b64([0; 32]) }), "link before it"),
        (&[Second, Onward], json!({ "scope": "code:* data:read data:write" }), "wider"),
        (&[Second, Token, Onward], json!({ "scope": "code:admin" }), "wider"),
        (&[Second, Token, Onward], json!({ "scope": "*" }), "wider"),
        (&[Token, Onward], json!({ "scope": "code:*" }), "wider"),
        (&[Second, Token, Onward], json!({ "exp": now + 201 }), "longer than its link"),
        (&[First], json!({ "exp": now + 301 }), "life"),
        (&[First, Second, Token, Onward], json!({ "iat": now - 101 }), "life"),
        (&[First, Second, Token, Onward], json!({ "iat": now + 31 }), "not valid yet"),
        (&[First, Second, Token, Onward], json!({ "nbf": now + 31 }), "not valid yet"),
        (&[First, Second, Token, Onward], json!({ "iat": now - 100, "exp": now - 30 }), "expired"),
        (&[First, Second, Token, Onward], json!({ "exp": null }), "malformed"),
        (&[First, Second, Token, Onward], json!({ "scope": null }), "malformed"),
        (&[First, Second, Onward], json!({ "may_act": null }), "malformed"),
        (&[First, Second, Onward], json!({ "may_act": "judge" }), "malformed"),
        (&[First, Second], json!({ "may_act": { "sub": "eve" } }), "issuer"),
        (&[First, Second, Onward], json!({ "may_act": { "sub": "brain" } }), "delegates to a root"),
        (&[Onward], json!({ "may_act": { "sub": "eve" } }), "another arm"),
        (&[First, Second, Onward], json!({ "cnf": null }), "malformed"),
        (&[First, Second, Onward], json!({ "cnf": { "jwk": ec_private } }), "private part"),
        (&[First, Second, Onward], json!({ "cnf": { "jwk": rsa } }), "neither Ed25519 nor P-256"),
        (
            &[First, Second, Onward],
            json!({ "cnf": { "jwk": { "kty": "oct", "k": b64([1; 32]) } } }),
            "private part",
        ),
        (&[First, Second], json!({ "cnf": { "jwk": chain.eve.jwk() } }), "signature"),
        (&[Token], json!({ "aud": "eve" }), "audience"),
        (&[Token], json!({ "prf": null }), "not trusted"),
        (&[Token], json!({ "prf": [] }), "no links"),
    ] {
        for part in parts {
            let message =
                chain.judge.verify_text(&chain.token(Some(*part), changes.clone(), json!({}), None));
            let message = message.expect_err(&format!("accepted: {part:?} {changes}"));
            // A link that fits, and a root of another subject, task or key, break the rule of what follows.
            assert!(message.contains(rule), "{part:?} {changes}: {message}");
        }
    }
    for (parts, head) in [
        (&[First, Second, Onward][..], json!({ "typ": "at+jwt" })),
        (&[First, Second, Onward], json!({ "typ": "JWT" })),
        (&[Token], json!({ "typ": "delegation+jwt" })),
        (&[First, Second, Token, Onward], json!({ "alg": "none" })),
        (&[First, Second, Token, Onward], json!({ "alg": "HS256" })),
        (&[First, Second, Token, Onward], json!({ "crit": ["exp"] })),
        (&[First, Second, Token, Onward], json!({ "jwk": chain.eve.jwk() })),
    ] {
        for part in parts {
            let token = chain.token(Some(*part), json!({}), head.clone(), None);
            assert!(chain.judge.verify_text(&token).is_err(), "{part:?} {head}");
        }
    }
    for part in [First, Second, Token, Onward] {
        for by in [&chain.judge.root, &chain.coder, &chain.tester, &chain.eve] {
            let own = match part {
                First => &chain.judge.root,
                Second => &chain.coder,
                Token | Onward => &chain.tester,
            };
            let token = chain.token(Some(part), json!({}), json!({}), Some(by));
            assert_eq!(chain.judge.verify_text(&token).is_ok(), std::ptr::eq(own, by), "{part:?}");
        }
    }
    // An id of a key selects among those of a root alone: that of the others is ignored.
    for part in [Second, Token, Onward] {
        chain.judge.verify_text(&chain.token(Some(part), json!({}), json!({ "kid": "k1" }), None)).unwrap();
    }
}

#[test]
fn a_link_of_a_root_is_of_the_same_key_and_subject_as_its_token() {
    let judge = Judge::new();
    let link = |changes: Value, key: &Key| {
        let claims = json!({
            "iss": "brain", "sub": "ali", "may_act": { "sub": "judge" }, "cnf": { "jwk": Key::new().jwk() },
            "scope": "a:b", "iat": judge.now(), "exp": judge.now() + 300,
        });
        let head = json!({ "alg": "EdDSA", "typ": "delegation+jwt", "kid": "k1" });
        let dlg = key.sign(&head, &with(&claims, changes));
        judge.verify(&with(&judge.claims(), json!({ "dlg": dlg })))
    };
    link(json!({}), &judge.root).unwrap();
    // A link may cover more than the token, and be limited to a task where the token is not.
    link(json!({ "scope": "x:* y:z", "task": TaskId::new() }), &judge.root).unwrap();
    for changes in [
        json!({ "sub": "bob" }),
        json!({ "iss": "other" }),
        json!({ "may_act": { "sub": "coder" } }),
        json!({ "prv": b64([0; 32]) }),
        json!({ "exp": judge.now() + 301 }),
    ] {
        link(changes.clone(), &judge.root).expect_err(&changes.to_string());
    }
    link(json!({}), &Key::new()).unwrap_err();
}
