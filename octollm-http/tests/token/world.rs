//! What an attacker has been sent, what it composes of that, and what the model knows.

use std::sync::OnceLock;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::support::{Key, b64};

pub(crate) const TASKS: [Option<&str>; 3] =
    [None, Some("task_3fK9aZ0qLw81bXyT"), Some("task_4fK9aZ0qLw81bXyT")];
pub(crate) const SUBJECTS: [&str; 3] = ["ali", "bob", "eve"];
pub(crate) const SCOPES: [&str; 7] =
    ["code:run", "code:*", "code:admin", "data:read", "data:*", "tasks:admin", "*"];
/// The roots, the honest arms, and those of the attacker.
pub(crate) const NAMES: [&str; 7] = ["brain", "other", "honest", "judge", "mal", "mel", "mol"];
pub(crate) const MINE: [usize; 3] = [4, 5, 6];
pub(crate) const JUDGE: usize = 3;

pub(crate) fn key(name: usize) -> &'static Key {
    static KEYS: OnceLock<Vec<Key>> = OnceLock::new();
    &KEYS.get_or_init(|| NAMES.iter().map(|_| Key::new()).collect())[name]
}

/// What a link covers, in the model.
#[derive(Debug, Clone)]
pub(crate) struct Cover {
    pub(crate) root: &'static str,
    pub(crate) subject: &'static str,
    pub(crate) task: Option<&'static str>,
    pub(crate) scopes: Vec<&'static str>,
    pub(crate) end: i64,
}

impl Cover {
    pub(crate) fn covers(
        &self,
        root: &str,
        subject: &str,
        task: Option<&str>,
        scopes: &[String],
        end: i64,
    ) -> bool {
        self.root == root
            && self.subject == subject
            && (self.task.is_none() || self.task == task)
            && end <= self.end
            && scopes.iter().all(|scope| self.scopes.iter().any(|own| includes(own, scope)))
    }
}

/// Whether a scope includes another, by the words of the specification.
pub(crate) fn includes(own: &str, scope: &str) -> bool {
    let (Some((entity, verbs)), Some((other, verb))) = (own.split_once(':'), scope.split_once(':')) else {
        return false;
    };
    let named = ["admin", "register", "serve", "publish"].contains(&verb);
    entity == other && (verbs == verb || verbs == "*" && !named)
}

/// A link as the attacker composes it. Names are positions in [`NAMES`].
#[derive(Debug, Clone)]
pub(crate) struct LinkOf {
    /// A link that is not composed, but was received.
    pub(crate) received: Option<String>,
    pub(crate) iss: usize,
    pub(crate) sub: &'static str,
    pub(crate) to: usize,
    pub(crate) key: usize,
    pub(crate) scopes: Vec<&'static str>,
    pub(crate) iat: i64,
    pub(crate) exp: i64,
    pub(crate) task: Option<&'static str>,
    pub(crate) prv: Option<String>,
    pub(crate) signer: usize,
    pub(crate) typ: &'static str,
    pub(crate) extra: Value,
}

impl LinkOf {
    pub(crate) fn text(&self, before: Option<&str>) -> String {
        if let Some(text) = &self.received {
            return text.clone();
        }
        let mut claims = json!({
            "iss": NAMES[self.iss], "sub": self.sub, "may_act": { "sub": NAMES[self.to] },
            "cnf": { "jwk": key(self.key).jwk() }, "scope": self.scopes.join(" "),
            "iat": self.iat, "exp": self.exp,
        });
        if let Some(task) = self.task {
            claims["task"] = task.into();
        }
        if let Some(prv) = self.prv.clone().or_else(|| before.map(hash)) {
            claims["prv"] = prv.into();
        }
        merge(&mut claims, &self.extra);
        let head = json!({ "alg": "EdDSA", "typ": self.typ, "kid": NAMES[self.iss] });
        key(self.signer).sign(&head, &claims)
    }
}

pub(crate) fn merge(claims: &mut Value, extra: &Value) {
    for (member, value) in extra.as_object().into_iter().flatten() {
        claims[member] = value.clone();
    }
}

pub(crate) fn hash(link: &str) -> String {
    b64(digest(&SHA256, link.as_bytes()))
}

/// One link of a chain: from, to, scopes, seconds, task.
pub(crate) type Hop = (usize, usize, &'static [&'static str], i64, Option<&'static str>);

/// What the attacker has been sent, and what the model knows of it.
pub(crate) struct World {
    pub(crate) now: i64,
    pub(crate) chains: Vec<Vec<LinkOf>>,
    /// Links and tokens, as texts.
    pub(crate) seen: Vec<String>,
    pub(crate) covers: Vec<Cover>,
}

impl World {
    pub(crate) fn new(now: i64) -> Self {
        let mut world = Self { now, chains: Vec::new(), seen: Vec::new(), covers: Vec::new() };
        let [_, one, two] = TASKS;
        world.issue("ali", &[(0, 4, &["code:*", "data:read"], 300, one)]);
        world.issue("ali", &[(0, 4, &["code:run"], 100, None)]);
        world.issue(
            "bob",
            &[(0, 2, &["data:*", "tasks:admin"], 300, None), (2, 5, &["data:read"], 200, None)],
        );
        world.issue(
            "bob",
            &[
                (0, 2, &["data:*", "code:*"], 300, None),
                (2, 4, &["data:*", "code:run"], 300, two),
                (4, 2, &["data:read"], 300, two),
                (2, 6, &["data:read"], 250, two),
            ],
        );
        world.issue("ali", &[(1, 6, &["tasks:admin", "data:*"], 300, None)]);
        world.issue("eve", &[(0, 6, &["code:*"], 300, None)]);
        world
    }

    /// Issues links one after another, as roots and honest arms do, and tokens to the arms of the attacker.
    pub(crate) fn issue(&mut self, sub: &'static str, hops: &[Hop]) {
        let mut chain: Vec<LinkOf> = Vec::new();
        for &(iss, to, scopes, life, task) in hops {
            let (iat, exp) = (self.now, self.now + life);
            let scopes = scopes.to_vec();
            let mut link = LinkOf {
                received: None,
                iss,
                sub,
                to,
                key: to,
                scopes,
                iat,
                exp,
                task,
                prv: None,
                signer: iss,
                typ: "delegation+jwt",
                extra: json!({}),
            };
            let text = link.text(chain.last().and_then(|link| link.received.as_deref()));
            link.received = Some(text.clone());
            if MINE.contains(&to) && !MINE.contains(&iss) {
                let root = NAMES[chain.first().map_or(iss, |first| first.iss)];
                let scopes = link.scopes.clone();
                self.covers.push(Cover { root, subject: sub, task, scopes, end: exp });
                let prf: Vec<_> = chain.iter().filter_map(|link| link.received.clone()).collect();
                let token = TokenOf::of(&chain, to, self.now, exp, sub, task);
                let mut token = TokenOf { signer: iss, iss, dlg: Some(text.clone()), ..token };
                token.scopes = link.scopes.clone();
                self.seen.push(token.text(&prf));
            }
            self.seen.push(text);
            chain.push(link);
        }
        self.chains.push(chain);
    }

    pub(crate) fn seen(&self, at: usize) -> String {
        self.seen[at % self.seen.len()].clone()
    }
}

/// A token as the attacker composes it.
#[derive(Debug, Clone)]
pub(crate) struct TokenOf {
    pub(crate) iss: usize,
    pub(crate) sub: &'static str,
    pub(crate) aud: usize,
    pub(crate) scopes: Vec<&'static str>,
    pub(crate) iat: i64,
    pub(crate) exp: i64,
    pub(crate) task: Option<&'static str>,
    pub(crate) dlg: Option<String>,
    pub(crate) signer: usize,
    pub(crate) typ: &'static str,
    pub(crate) extra: Value,
}

impl TokenOf {
    pub(crate) fn of(
        chain: &[LinkOf],
        aud: usize,
        iat: i64,
        exp: i64,
        sub: &'static str,
        task: Option<&'static str>,
    ) -> Self {
        let iss = chain.last().map_or(0, |link| link.to);
        let scopes = chain.last().map_or_else(Vec::new, |link| link.scopes.clone());
        Self {
            iss,
            sub,
            aud,
            scopes,
            iat,
            exp,
            task,
            dlg: None,
            signer: iss,
            typ: "at+jwt",
            extra: json!({}),
        }
    }

    pub(crate) fn text(&self, prf: &[String]) -> String {
        let mut claims = json!({
            "iss": NAMES[self.iss], "sub": self.sub, "aud": NAMES[self.aud], "jti": "t",
            "scope": self.scopes.join(" "), "iat": self.iat, "exp": self.exp,
        });
        if let Some(task) = self.task {
            claims["task"] = task.into();
        }
        if !prf.is_empty() {
            claims["prf"] = prf.into();
        }
        if let Some(dlg) = &self.dlg {
            claims["dlg"] = dlg.as_str().into();
        }
        merge(&mut claims, &self.extra);
        let head = json!({ "alg": "EdDSA", "typ": self.typ, "kid": NAMES[self.iss] });
        key(self.signer).sign(&head, &claims)
    }
}
