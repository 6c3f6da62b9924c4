//! Tokens that are issued once and verified once, for as long as that is right.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use octollm_core::{card::ArmCard, id::TaskId, parts::Grant};
use octollm_http::token::{ExposeSecret, KeySet, SigningKey, TokenIssuer, TokenVerifier};
use serde_json::json;

use crate::support::{Clock, Judge, Key, card, head, known, unauthenticated, with};

#[tokio::test(start_paused = true)]
async fn a_token_is_issued_again_after_half_its_life() {
    let issuer = TokenIssuer::root("brain", SigningKey::generate().unwrap())
        .clock(Clock::runtime().read())
        .build()
        .unwrap();
    let (ali, judge) = (Grant::new("ali", ["a:*"]), ArmCard::new("judge"));
    let issue = || issuer.issue(&ali, &["a:b"], &judge).unwrap().expose_secret().to_owned();
    let first = issue();
    tokio::time::advance(Duration::from_secs(149)).await;
    assert_eq!(issue(), first);
    tokio::time::advance(Duration::from_secs(2)).await;
    let second = issue();
    assert_ne!(second, first);
    assert_eq!(issue(), second);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_used_again_for_the_same_only() {
    let clock = Clock::runtime();
    let issuer =
        TokenIssuer::root("brain", SigningKey::generate().unwrap()).clock(clock.read()).build().unwrap();
    let key = SigningKey::generate().unwrap();
    let ali = || Grant::new("ali", ["a:*"]);
    let judge = || card("judge", &key, &["a:b"]);
    let end = clock.now() + jiff::SignedDuration::from_secs(100);
    let cases = [
        (ali(), vec!["a:b"], judge()),
        (ali(), vec!["a:c"], judge()),
        (ali(), vec!["a:b", "a:c"], judge()),
        (ali(), vec![], judge()),
        (Grant::new("bob", ["a:*"]), vec!["a:b"], judge()),
        (Grant::new("ali", ["a:b", "a:*"]), vec!["a:b"], judge()),
        (ali().issuer("https://idp"), vec!["a:b"], judge()),
        (ali().task(TaskId::new()), vec!["a:b"], judge()),
        (ali().valid_until(end), vec!["a:b"], judge()),
        (ali(), vec!["a:b"], card("coder", &key, &["a:b"])),
        (ali(), vec!["a:b"], card("judge", &key, &["a:c"])),
        (ali(), vec!["a:b"], card("judge", &SigningKey::generate().unwrap(), &["a:b"])),
        (ali(), vec!["a:b"], ArmCard::new("judge")),
    ];
    let issue = |(grant, scopes, card): &(Grant, Vec<&str>, ArmCard)| {
        issuer.issue(grant, scopes, card).unwrap().expose_secret().to_owned()
    };
    let tokens: Vec<_> = cases.iter().map(issue).collect();
    let mut distinct = tokens.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), cases.len());
    assert_eq!(cases.iter().map(issue).collect::<Vec<_>>(), tokens, "each is used again");
}

#[tokio::test(start_paused = true)]
async fn a_verified_token_ends_when_it_expires() {
    let judge = Judge::new();
    let token = judge.root.sign(&head(), &judge.claims());
    judge.verify_text(&token).unwrap();
    tokio::time::advance(Duration::from_secs(329)).await;
    judge.verify_text(&token).unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(judge.verify_text(&token).unwrap_err().contains("expired"));
}

/// A verdict is found by the end of the token, and belongs to the whole of it.
#[tokio::test(start_paused = true)]
async fn a_text_with_the_end_of_a_verified_token_is_another() {
    let judge = Judge::new();
    let token = judge.root.sign(&head(), &judge.claims());
    judge.verify_text(&token).unwrap();
    let other = judge.root.sign(&head(), &with(&judge.claims(), json!({ "sub": "bob" })));
    let end = &token[token.len() - 32..];
    let mut texts: Vec<_> = [1, 10, 100].iter().map(|cut| token[*cut..].to_owned()).collect();
    texts.push(format!("{}{end}", &other[..other.len() - 32]));
    texts.push(format!("{}{}", &other[..other.rfind('.').unwrap()], &token[token.rfind('.').unwrap()..]));
    texts.push(end.to_owned());
    texts.extend([format!("a{token}"), format!("{token}a"), token.to_uppercase()]);
    for text in texts {
        judge.verify_text(&text).unwrap_err();
        assert!(known(&judge.verifier, &token).is_some_and(|known| known.is_ok()), "{text} drops nothing");
    }
}

/// An entry costs a valid signature, and more than the capacity drops what is not used.
#[tokio::test(start_paused = true)]
async fn more_tokens_than_the_capacity_are_verified_again() {
    let judge = Judge::new();
    let builder = TokenVerifier::builder().audience("judge").root(judge.keys.clone()).cache_capacity(4);
    let verifier = builder.clock(judge.clock.read()).build().unwrap();
    let token = |n: usize| judge.root.sign(&head(), &with(&judge.claims(), json!({ "jti": n.to_string() })));
    let used = token(0);
    verifier.verify(&used).unwrap();
    for n in 1..20 {
        verifier.verify(&token(n)).unwrap();
        verifier.verify("a.b.c").unwrap_err();
        assert_eq!(known(&verifier, &used), Some(Ok(())), "used between all others, at {n}");
    }
    assert_eq!(known(&verifier, &token(1)), None);
    verifier.verify(&token(1)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_removed_key_ends_what_it_signed_at_once() {
    let (root, arm, clock) =
        (SigningKey::generate().unwrap(), SigningKey::generate().unwrap(), Clock::runtime());
    let keys =
        KeySet::new("brain").with_key(&root).unwrap().with_key(&SigningKey::generate().unwrap()).unwrap();
    let issuer = TokenIssuer::root("brain", root.clone()).clock(clock.read()).build().unwrap();
    let verifier = |id: &str| {
        TokenVerifier::builder().audience(id).root(keys.clone()).clock(clock.read()).build().unwrap()
    };
    let (at_coder, at_judge) = (verifier("coder"), verifier("judge"));
    let first = issuer.issue(&Grant::new("ali", ["a:*"]), &["a:b"], &card("coder", &arm, &["a:*"])).unwrap();
    let grant = at_coder.verify(first.expose_secret()).unwrap();
    let coder = TokenIssuer::arm("coder", arm).clock(clock.read()).build().unwrap();
    let second = coder.issue(&grant, &["a:b"], &ArmCard::new("judge")).unwrap();
    at_judge.verify(second.expose_secret()).unwrap();
    assert!(keys.remove(root.kid()));
    assert!(!keys.remove(root.kid()));
    for (verifier, token) in [(&at_coder, &first), (&at_judge, &second)] {
        assert_eq!(known(verifier, token.expose_secret()), None, "no verdict is left");
        let message = unauthenticated(&verifier.verify(token.expose_secret()).unwrap_err());
        assert!(message.contains("no key of this id"), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fetched_set_replaces_the_one_before_it() {
    let judge = Judge::new();
    let (next, head_of) = (Key::new(), |kid: &str| with(&head(), json!({ "kid": kid })));
    let token = judge.root.sign(&head(), &judge.claims());
    judge.verify_text(&token).unwrap();
    let jwk = |key: &Key, kid: &str| with(&key.jwk(), json!({ "kid": kid }));
    let set = |keys: &[serde_json::Value]| judge.keys.set_jwks(&json!({ "keys": keys }).to_string());
    // What both sets have remains.
    set(&[jwk(&judge.root, "k1"), jwk(&next, "k2")]).unwrap();
    judge.verify_text(&token).unwrap();
    let newer = next.sign(&head_of("k2"), &judge.claims());
    judge.verify_text(&newer).unwrap();
    // A set that is refused changes nothing.
    set(&[jwk(&next, "k2"), jwk(&judge.root, "k2")]).unwrap_err();
    judge.keys.set_jwks("<html>").unwrap_err();
    judge.verify_text(&token).unwrap();
    set(&[jwk(&next, "k2")]).unwrap();
    assert!(judge.verify_text(&token).unwrap_err().contains("no key of this id"));
    judge.verify_text(&newer).unwrap();
    // Another key under the same id is another key.
    set(&[jwk(&judge.root, "k2")]).unwrap();
    assert!(judge.verify_text(&newer).unwrap_err().contains("signature"));
    judge.verify_text(&judge.root.sign(&head_of("k2"), &judge.claims())).unwrap();
}

/// A clock of the system, which somebody sets.
#[derive(Clone)]
struct SetClock(Arc<AtomicI64>);

impl SetClock {
    fn read(&self) -> impl Fn() -> Timestamp + Send + Sync + 'static {
        let now = self.0.clone();
        move || Timestamp::from_second(now.load(Ordering::SeqCst)).unwrap()
    }

    fn set(&self, now: i64) {
        self.0.store(now, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn fault_43_a_clock_that_is_set_back_underflows_nothing_and_revives_no_token() {
    let now = Timestamp::now().as_second();
    let clock = SetClock(Arc::new(AtomicI64::new(now)));
    let key = SigningKey::generate().unwrap();
    let keys = KeySet::new("brain").with_key(&key).unwrap();
    let issuer = TokenIssuer::root("brain", key).clock(clock.read()).build().unwrap();
    let verifier = TokenVerifier::builder().audience("judge").root(keys).clock(clock.read()).build().unwrap();
    let (ali, judge) = (Grant::new("ali", ["a:*"]), ArmCard::new("judge"));
    let issue = || issuer.issue(&ali, &["a:b"], &judge).unwrap().expose_secret().to_owned();
    let first = issue();
    verifier.verify(&first).unwrap();
    for back in [31, 3600, 365 * 24 * 3600, now, now + 1, now + 365 * 24 * 3600] {
        clock.set(now - back);
        // It was issued in what is the future now, whether the verdict was remembered or not.
        let refused = verifier.verify(&first).unwrap_err();
        assert_eq!(unauthenticated(&refused), "the token is not valid: it is not valid yet", "{back} s back");
        assert!(known(&verifier, &first).is_none_or(|known| known.is_err()));
        // A fresh one is issued by the clock as it is, and valid by it, as long as that shows a time after 1970.
        let again = issuer.issue(&ali, &["a:b"], &judge).map(|token| token.expose_secret().to_owned());
        match again {
            Ok(again) if back <= now => {
                assert_ne!(again, first);
                verifier.verify(&again).unwrap();
            }
            _ => assert!(back > now),
        }
        clock.set(now);
        verifier.verify(&first).unwrap();
    }
    clock.set(now + 400);
    assert_eq!(
        unauthenticated(&verifier.verify(&first).unwrap_err()),
        "the token is not valid: it has expired"
    );
}
