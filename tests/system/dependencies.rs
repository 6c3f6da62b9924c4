//! What the tree of dependencies must not have.

#[test]
fn no_dependency_signs_with_the_rsa_crate() {
    let lock = include_str!("../../Cargo.lock");
    let has = |name: &str| lock.lines().any(|line| line == format!("name = \"{name}\""));
    assert!(has("jsonwebtoken") && has("aws-lc-rs"));
    // It has a timing attack without a patch (RUSTSEC-2023-0071). The feature `rust_crypto` of jsonwebtoken needs it.
    assert!(!has("rsa"));
}
