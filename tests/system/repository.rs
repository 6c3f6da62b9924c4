//! What holds of the repository itself.

#[test]
fn no_dependency_signs_with_the_rsa_crate() {
    let lock = include_str!("../../Cargo.lock");
    let has = |name: &str| lock.lines().any(|line| line == format!("name = \"{name}\""));
    assert!(has("jsonwebtoken") && has("aws-lc-rs"));
    // It has a timing attack without a patch (RUSTSEC-2023-0071). The feature `rust_crypto` of jsonwebtoken needs it.
    assert!(!has("rsa"));
}

#[test]
fn every_test_that_the_documents_name_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("docs/reliability.md")).expect("it is there");
    let named: Vec<_> = document.split('`').filter_map(|code| code.split_once(".rs::")).collect();
    assert!(named.len() > 40, "{named:?}");
    for (path, test) in named {
        let path = format!("{path}.rs");
        let source =
            std::fs::read_to_string(root.join(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let declared = format!("fn {test}()");
        let is_test = source.lines().zip(source.lines().skip(1)).any(|(attribute, line)| {
            attribute.trim_start().starts_with("#[t")
                && attribute.contains("test")
                && line.ends_with(&format!("{declared} {{"))
        });
        assert!(is_test, "{path} has no test {test}");
    }
}
