//! Certificates for a test, made in it.

use std::{
    fs,
    ops::Range,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use octollm_http::io::rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, pem::PemObject},
};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, date_time_ymd,
};
use tempfile::TempDir;

/// An authority, and the directory of the files of its certificates.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

const NOW: Range<i64> = -1..1;

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = valid(CertificateParams::default(), -48..48);
        // Two authorities differ in more than their keys.
        let name = KeyPair::generate().unwrap().public_key_pem();
        params.distinguished_name.push(DnType::CommonName, &name[70..90]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { issuer, directory: tempfile::tempdir().unwrap() };
        fs::write(authority.file("ca.pem"), authority.issuer.pem()).unwrap();
        authority
    }

    /// The path of a file; that of the authority itself is `ca.pem`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Signs a certificate for these hosts, valid between two times in hours from now.
    pub(crate) fn sign(&self, hosts: &[&str], hours: Range<i64>) -> (Certificate, KeyPair) {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = valid(CertificateParams::new(hosts).unwrap(), hours);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Writes a certificate for these hosts, valid now, and its key.
    pub(crate) fn write(&self, hosts: &[&str]) -> (PathBuf, PathBuf) {
        self.write_valid(hosts, NOW)
    }

    pub(crate) fn write_valid(&self, hosts: &[&str], hours: Range<i64>) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.sign(hosts, hours);
        let files = (self.file("tls.crt"), self.file("tls.key"));
        fs::write(&files.0, certificate.pem()).unwrap();
        fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }

    /// A client that trusts this authority.
    pub(crate) fn trusted(&self) -> ClientConfig {
        self.client(None)
    }

    /// The same, with a certificate for this name that `signer` has signed.
    pub(crate) fn known(&self, name: &str, signer: &Self) -> ClientConfig {
        self.client(Some(signer.sign(&[name], NOW)))
    }

    fn client(&self, own: Option<(Certificate, KeyPair)>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        match own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
            }
        }
    }
}

fn valid(mut params: CertificateParams, hours: Range<i64>) -> CertificateParams {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let at = |hour: i64| {
        date_time_ymd(1970, 1, 1) + Duration::from_secs(now.checked_add_signed(hour * 3600).unwrap())
    };
    (params.not_before, params.not_after) = (at(hours.start), at(hours.end));
    params
}
