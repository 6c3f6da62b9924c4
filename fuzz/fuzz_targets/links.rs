//! A token with a list of delegation links, each with a valid signature by one of four keys. What is accepted begins at the root, and no
//! scope is wider than the first link.
#![no_main]

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use libfuzzer_sys::fuzz_target;
use octollm_core::context::Grant;
use octollm_fuzz::{NOW, jwk, key, sign, verifier};
use serde_json::{Map, Value, json};

fuzz_target!(|data: &[u8]| {
    let mut links: Vec<String> = Vec::new();
    let mut first: Option<(u8, Value)> = None;
    let mut chunks = data.split(|byte| *byte == 0).take(7).peekable();
    let mut token = None;
    while let Some(chunk) = chunks.next() {
        let Some((signer, changes)) = chunk.split_first() else { continue };
        let is_token = chunks.peek().is_none();
        let hop = u8::try_from(links.len()).expect("at most 7");
        // A valid link or token of a chain from the root, with any members changed.
        let mut claims = json!({
            "iss": name(hop), "sub": "ali", "iat": NOW, "exp": NOW + 300, "scope": "a:b c:d",
        });
        match is_token {
            true => (claims["aud"], claims["jti"]) = (json!("judge"), json!("t")),
            false => {
                claims["may_act"] = json!({ "sub": name(hop + 1) });
                claims["cnf"] = json!({ "jwk": jwk(&key(hop + 1)) });
                if let Some(last) = links.last() {
                    claims["prv"] = json!(BASE64.encode(digest(&SHA256, last.as_bytes())));
                }
            }
        }
        if let Ok(changes) = serde_json::from_slice::<Map<String, Value>>(changes) {
            for (member, value) in changes {
                claims[member] = value;
            }
        }
        if is_token && !links.is_empty() && claims.get("prf").is_none() {
            claims["prf"] = json!(links);
        }
        let kid = if hop == 0 { r#","kid":"k""# } else { "" };
        let kind = if is_token { "at+jwt" } else { "delegation+jwt" };
        let head = format!(r#"{{"alg":"EdDSA","typ":"{kind}"{kid}}}"#);
        let signer = if signer.is_ascii_digit() { signer - b'0' } else { hop };
        let text = sign(&key(signer), head.as_bytes(), claims.to_string().as_bytes());
        if first.is_none() {
            first = Some((signer, claims));
        }
        if is_token { token = Some(text) } else { links.push(text) }
    }
    let Some(token) = token else { return };
    let verifier = verifier();
    let Ok(grant) = verifier.verify(&token) else { return };
    let (signer, first) = first.expect("a token has claims");
    // A token may replace its list of links, but then none of them is a link of another token's text.
    assert_eq!((signer, &first["iss"], &first["sub"]), (0, &json!("brain"), &json!(grant.subject)));
    let given = Grant::new("ali", first["scope"].as_str().expect("scopes").split(' '));
    assert!(grant.scopes.iter().all(|scope| given.has_scope(scope)), "{grant:?} of {first}");
    assert!(grant.links.as_deref().is_none_or(|links| links.len() <= 4));
});

fn name(hop: u8) -> String {
    if hop == 0 { "brain".into() } else { format!("arm{hop}") }
}
