//! A token: any text, or any head and claims with a valid signature. What is accepted is whole, and remains so.
#![no_main]

use libfuzzer_sys::fuzz_target;
use octollm_fuzz::{NOW, key, sign, verifier};

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let token = match (kind % 2, data.iter().position(|byte| *byte == 0)) {
        (0, _) => String::from_utf8_lossy(data).into_owned(),
        (_, Some(end)) => sign(&key(0), &data[..end], &data[end + 1..]),
        // The claims alone, with the head of a token.
        (_, None) => sign(&key(0), br#"{"alg":"EdDSA","typ":"at+jwt","kid":"k"}"#, data),
    };
    let verifier = verifier();
    let Ok(grant) = verifier.verify(&token) else {
        assert!(verifier.verify(&token).is_err());
        return;
    };
    assert_eq!(kind % 2, 1, "no text without the key is a token");
    assert!((1..=256).contains(&grant.subject.len()));
    let end = grant.valid_until.expect("an end").as_second();
    assert!((NOW - 30..=NOW + 330).contains(&end), "{end}");
    assert_eq!(*verifier.verify(&token).expect("it was verified before"), *grant);
});
