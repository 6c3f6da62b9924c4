//! A JWK set, a private JWK and a PEM. A set that is read is written, and read again, as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use octollm_http::token::{KeySet, SigningKey};

fuzz_target!(|text: &str| {
    let keys = KeySet::new("brain");
    let before = keys.to_jwks();
    match keys.set_jwks(text) {
        Ok(()) => {
            let written = keys.to_jwks();
            let again = KeySet::new("brain").with_jwks(&written.to_string()).expect("what was written");
            assert_eq!(again.to_jwks(), written);
            for key in written["keys"].as_array().expect("keys") {
                assert!(
                    ["d", "p", "q", "dp", "dq", "qi", "k"].iter().all(|member| key.get(member).is_none())
                );
            }
        }
        Err(_) => assert_eq!(keys.to_jwks(), before, "an error changes nothing"),
    }
    if let Ok(key) = SigningKey::from_jwk(&text.into()) {
        assert!(KeySet::new("brain").with_key(&key).is_ok());
    }
    let _ = KeySet::new("brain").with_pem(None, text);
    let _ = SigningKey::from_pem(&text.into());
});
