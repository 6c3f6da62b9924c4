//! Every rule of a delegation link by itself.

use octollm_core::id::TaskId;
use serde_json::{Value, json};

use crate::support::{Judge, Key, b64, with};

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

#[tokio::test(start_paused = true)]
async fn every_rule_of_a_link_holds_by_itself() {
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

#[tokio::test(start_paused = true)]
async fn a_link_of_a_root_is_of_the_same_key_and_subject_as_its_token() {
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
