//! Keys of every kind, and their forms.

use aws_lc_rs::{
    encoding::{AsDer, EcPrivateKeyRfc5915Der, Pkcs8V1Der},
    rsa::KeySize,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, RsaKeyPair},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use octollm_core::{card::ArmCard, parts::Grant};
use octollm_http::token::{ExposeSecret, KeySet, SigningKey, TokenIssuer, TokenVerifier};
use serde_json::{Value, json};

use crate::support::{Key, b64, with};

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_STANDARD.encode(der))
}

fn read(pem: String) -> SigningKey {
    SigningKey::from_pem(&pem.into()).unwrap()
}

fn p256() -> EcdsaKeyPair {
    EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()
}

/// Issues with one key and verifies with a set.
#[track_caller]
fn round_trip(key: &SigningKey, keys: KeySet) {
    let issuer = TokenIssuer::root("brain", key.clone()).build().unwrap();
    let token = issuer.issue(&Grant::new("ali", ["a:b"]), &["a:b"], &ArmCard::new("judge")).unwrap();
    let verifier = TokenVerifier::builder().audience("judge").root(keys).build().unwrap();
    assert_eq!(verifier.verify(token.expose_secret()).unwrap().subject, "ali");
}

#[tokio::test(start_paused = true)]
async fn keys_of_every_kind_sign_and_verify() {
    let ec = p256();
    let sec1: EcPrivateKeyRfc5915Der<'_> = ec.private_key().as_der().unwrap();
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let pkcs8: Pkcs8V1Der<'_> = rsa.as_der().unwrap();
    let rsa = read(pem("PRIVATE KEY", pkcs8.as_ref()));
    let pkcs1 = rsa.to_pem().unwrap().expose_secret().to_owned();
    assert!(pkcs1.starts_with("-----BEGIN RSA PRIVATE KEY-----\nMII"));
    for (key, algorithm) in [
        (SigningKey::generate().unwrap(), "EdDSA"),
        (Key::new().signing(), "EdDSA"),
        (read(pem("PRIVATE KEY", ec.to_pkcs8v1().unwrap().as_ref())), "ES256"),
        (read(pem("EC PRIVATE KEY", sec1.as_ref())), "ES256"),
        (rsa.clone(), "RS256"),
        (read(pkcs1), "RS256"),
    ] {
        let keys = KeySet::new("brain").with_key(&key).unwrap();
        let jwks = keys.to_jwks();
        assert_eq!(jwks["keys"][0]["alg"], algorithm);
        assert_eq!(jwks["keys"][0], Value::Object(key.public_jwk().unwrap()));
        round_trip(&key, keys);
        round_trip(&key, KeySet::new("brain").with_jwks(&jwks.to_string()).unwrap());
        round_trip(&key, KeySet::new("brain").with_jwks(&jwks["keys"][0].to_string()).unwrap());
        let again = SigningKey::from_pem(&key.to_pem().unwrap()).unwrap();
        assert_eq!(again.public_jwk(), key.public_jwk());
        assert_eq!(again.kid(), key.kid());
    }
    let secret = SigningKey::from_secret(&"s".repeat(32).into()).unwrap();
    let keys = KeySet::new("brain").with_key(&secret).unwrap();
    assert_eq!(keys.to_jwks(), json!({ "keys": [] }), "a secret is not published");
    assert!(secret.public_jwk().is_none() && secret.to_pem().is_none());
    round_trip(&secret, keys);
}

#[tokio::test(start_paused = true)]
async fn public_keys_are_read_from_a_pem() {
    let (ed, ec) = (Key::new(), p256());
    let spki = [&b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00"[..], ed.public()].concat();
    let set = KeySet::new("brain").with_pem(None, &pem("PUBLIC KEY", &spki)).unwrap();
    round_trip(&ed.signing(), set);
    let ec_key = read(pem("PRIVATE KEY", ec.to_pkcs8v1().unwrap().as_ref()));
    let public = aws_lc_rs::signature::KeyPair::public_key(&ec);
    let spki: aws_lc_rs::encoding::PublicKeyX509Der<'_> = public.as_der().unwrap();
    let set = KeySet::new("brain").with_pem(None, &pem("PUBLIC KEY", spki.as_ref())).unwrap();
    round_trip(&ec_key, set);
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let spki: aws_lc_rs::encoding::PublicKeyX509Der<'_> =
        aws_lc_rs::signature::KeyPair::public_key(&rsa).as_der().unwrap();
    let pkcs8: Pkcs8V1Der<'_> = rsa.as_der().unwrap();
    let set = KeySet::new("brain").with_pem(Some("r1"), &pem("PUBLIC KEY", spki.as_ref())).unwrap();
    round_trip(&read(pem("PRIVATE KEY", pkcs8.as_ref())).with_kid("r1").unwrap(), set);
    for bad in [
        "",
        "x",
        &pem("PUBLIC KEY", b"x"),
        &pem("PRIVATE KEY", &spki_of(&ed)),
        &pem("CERTIFICATE", &spki_of(&ed)),
    ] {
        KeySet::new("brain").with_pem(None, bad).expect_err(bad);
    }
}

fn spki_of(key: &Key) -> Vec<u8> {
    [&b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00"[..], key.public()].concat()
}

/// The examples of RFC 8037 appendix A.
#[tokio::test(start_paused = true)]
async fn jwks_and_thumbprints_are_those_of_the_rfc() {
    let public =
        json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
    let private = with(&public, json!({ "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A" }));
    let key = SigningKey::from_jwk(&private.to_string().into()).unwrap();
    assert_eq!(key.kid(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    round_trip(&key, KeySet::new("brain").with_jwks(&public.to_string()).unwrap());
    let ec = p256();
    let point = aws_lc_rs::signature::KeyPair::public_key(&ec).as_ref().to_vec();
    let d: aws_lc_rs::encoding::EcPrivateKeyBin<'_> =
        aws_lc_rs::encoding::AsBigEndian::as_be_bytes(&ec.private_key()).unwrap();
    let public =
        json!({ "kty": "EC", "crv": "P-256", "x": b64(&point[1..33]), "y": b64(&point[33..]), "kid": "e" });
    let key = with(&public, json!({ "d": b64(d.as_ref()) }));
    let key = SigningKey::from_jwk(&key.to_string().into()).unwrap();
    assert_eq!(key.kid(), "e");
    round_trip(&key, KeySet::new("brain").with_jwks(&public.to_string()).unwrap());
    let secret = json!({ "kty": "oct", "k": b64([7; 32]) });
    let key = SigningKey::from_jwk(&secret.to_string().into()).unwrap();
    round_trip(&key, KeySet::new("brain").with_key(&key).unwrap());
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_weak_or_of_another_kind_are_refused() {
    for length in [0, 1, 31] {
        SigningKey::from_secret(&"s".repeat(length).into()).unwrap_err();
        let jwk = json!({ "kty": "oct", "k": b64(vec![7; length]) });
        SigningKey::from_jwk(&jwk.to_string().into()).unwrap_err();
    }
    let (one, other) = (Key::new(), Key::new());
    let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    for text in [
        "".to_owned(),
        "-----BEGIN PRIVATE KEY-----\n".to_owned(),
        pem("PRIVATE KEY", b"x"),
        pem("RSA PRIVATE KEY", b"x"),
        pem("EC PRIVATE KEY", b"x"),
        pem("PUBLIC KEY", &spki_of(&one)),
        pem("PRIVATE KEY", p384.to_pkcs8v1().unwrap().as_ref()),
    ] {
        SigningKey::from_pem(&text.clone().into()).expect_err(&text);
    }
    for jwk in [
        one.jwk(),
        with(&one.jwk(), json!({ "d": b64([1; 32]) })),
        with(&one.jwk(), json!({ "d": b64([1; 31]) })),
        with(&one.jwk(), json!({ "d": 1 })),
        with(&other.jwk(), json!({ "crv": "X25519" })),
        json!([]),
        json!({ "kty": "oct" }),
    ] {
        SigningKey::from_jwk(&jwk.to_string().into()).expect_err(&jwk.to_string());
    }
    for kid in ["", "a b", "../x", "a\0", "a'b", &"k".repeat(65)] {
        one.signing().with_kid(kid).expect_err(kid);
    }
    let secret = SigningKey::from_secret(&"s".repeat(32).into()).unwrap();
    let error = TokenIssuer::arm("coder", secret).build().unwrap_err();
    assert_eq!(error.setting(), "arm");
}

#[tokio::test(start_paused = true)]
async fn a_set_has_public_keys_for_signatures() {
    let key = Key::new();
    let kids = |jwks: Value| {
        let set = KeySet::new("idp").with_jwks(&jwks.to_string()).map_err(|error| error.to_string())?;
        let kids =
            set.to_jwks()["keys"].as_array().unwrap().iter().map(|key| key["kid"].to_string()).collect();
        Ok::<Vec<_>, String>(kids)
    };
    let jwk = |changes: Value| with(&with(&key.jwk(), json!({ "kid": "k" })), changes);
    // Others are ignored, as RFC 7517 §5 says.
    for other in [
        json!({ "use": "enc" }),
        json!({ "alg": "ES256" }),
        json!({ "kty": "XYZ" }),
        json!({ "crv": "X25519" }),
        json!({ "x": "AA" }),
        json!({ "x": format!("{}=", b64(key.public())) }),
        json!({ "kid": "a b" }),
        json!({ "kid": 1 }),
        json!({ "kty": "RSA", "n": b64([0xff; 128]), "e": "AQAB" }),
        json!({ "kty": "RSA", "n": b64([0x7f; 256]), "e": "AQAB" }),
        json!({ "kty": "RSA", "n": "", "e": "" }),
        json!({ "kty": "EC", "crv": "P-384", "x": b64([1; 48]), "y": b64([1; 48]) }),
    ] {
        assert_eq!(kids(json!({ "keys": [jwk(other.clone())] })), Ok(vec![]), "{other}");
    }
    assert_eq!(
        kids(json!({ "keys": [jwk(json!({ "use": "sig", "alg": "EdDSA", "x5t": "x" }))] })),
        Ok(vec!["\"k\"".to_owned()])
    );
    for bad in [
        json!([]),
        json!({}),
        json!({ "keys": {} }),
        json!({ "keys": [1] }),
        json!({ "keys": [jwk(json!({})), jwk(json!({}))] }),
        json!({ "keys": [jwk(json!({ "d": "AA" }))] }),
        json!({ "keys": [{ "kty": "oct", "k": b64([1; 32]) }] }),
        json!({ "keys": vec![json!({}); 101] }),
    ] {
        kids(bad.clone()).expect_err(&bad.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn no_output_shows_a_secret() {
    let secret = "correct horse battery staple, twice over";
    let key = SigningKey::from_secret(&secret.into()).unwrap();
    let ed = SigningKey::generate().unwrap();
    let private = ed.to_pem().unwrap();
    let issuer = TokenIssuer::root("brain", key.clone());
    let keys = KeySet::new("brain").with_key(&key).unwrap();
    let builder = TokenVerifier::builder().audience("judge").root(keys.clone());
    let mut shown = format!("{key:?} {ed:?} {private:?} {issuer:?} {keys:?} {builder:?}");
    let (issuer, verifier) = (issuer.build().unwrap(), builder.build().unwrap());
    let token = issuer.issue(&Grant::new("ali", ["a:b"]), &["a:b"], &ArmCard::new("judge")).unwrap();
    let parts: Vec<_> = token.expose_secret().split('.').collect();
    let failure = verifier.verify(&format!("{}.{}.{}", parts[0], parts[1], b64([1; 32]))).unwrap_err();
    shown += &format!("{issuer:?} {verifier:?} {token:?} {failure:?} {failure}");
    for hidden in [secret, &b64(secret), parts[1], parts[2], private.expose_secret().lines().nth(1).unwrap()]
    {
        assert!(!shown.contains(hidden), "{shown}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_file_is_created_once_and_only_its_owner_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    let kids: Vec<_> = std::thread::scope(|scope| {
        let start = || SigningKey::from_file_or_new(&path).unwrap().kid().to_owned();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(kids.iter().all(|kid| *kid == kids[0]), "{kids:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    std::fs::write(&path, "nothing").unwrap();
    for wrong in [&path, &folder.path().join("missing/key.pem"), folder.path()] {
        let error = SigningKey::from_file_or_new(wrong).unwrap_err();
        assert_eq!(error.setting(), wrong.display().to_string());
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "nothing", "a file that is no key is not replaced");
}

#[tokio::test(start_paused = true)]
async fn in_development_a_file_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    let verifier = TokenVerifier::development(&path).unwrap().audience("judge").build().unwrap();
    let token = TokenIssuer::development(&path)
        .unwrap()
        .issue(&Grant::new("ali", ["a:b"]), &["a:b"], &ArmCard::new("judge"))
        .unwrap();
    assert_eq!(verifier.verify(token.expose_secret()).unwrap().subject, "ali");
    let other = TokenVerifier::development(folder.path().join("other.pem")).unwrap();
    let other = other.audience("judge").build().unwrap();
    assert!(other.verify(token.expose_secret()).is_err());
}
