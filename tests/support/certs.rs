//! Client identities, good and bad: the harness's own authority, or the daemon's.

use std::path::Path;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};

/// A certificate with its key, as a client shows it.
#[derive(Debug)]
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl Identity {
    /// PREFIX.pem and PREFIX.key.
    pub fn read(prefix: &Path) -> Self {
        let chain = CertificateDer::pem_file_iter(prefix.with_extension("pem")).unwrap().map(Result::unwrap).collect();
        Self { chain, key: PrivateKeyDer::from_pem_file(prefix.with_extension("key")).unwrap() }
    }
}

/// Something that signs certificates.
pub struct Authority(Issuer<'static, KeyPair>);

/// What a certificate says.
#[derive(Clone)]
pub struct Wish {
    pub uris: Vec<String>,
    pub valid_days: std::ops::Range<i64>,
    pub is_ca: bool,
    pub is_for_servers: bool,
}

impl Wish {
    /// A usable client certificate with these URIs.
    pub fn for_uris(uris: &[&str]) -> Self {
        let uris = uris.iter().map(|uri| (*uri).to_owned()).collect();
        Self { uris, valid_days: -1..30, is_ca: false, is_for_servers: false }
    }
}

impl Authority {
    /// One that the daemon does not know.
    pub fn unknown() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(Issuer::new(parameters, KeyPair::generate().unwrap()))
    }

    /// The one that the daemon trusts, from `ostler certs init`.
    pub fn of(directory: &Path) -> Self {
        let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
        let key = KeyPair::from_pem(&read("ca.key")).unwrap();
        Self(Issuer::from_ca_cert_pem(&read("ca.pem"), key).unwrap())
    }

    /// Signs a certificate.
    pub fn issue(&self, wish: &Wish) -> Identity {
        let (certificate, key) = self.sign(wish);
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Identity { chain: vec![certificate.der().clone()], key }
    }

    /// Signs a certificate and writes PREFIX.pem and PREFIX.key.
    pub fn issue_files(&self, wish: &Wish, prefix: &Path) {
        let (certificate, key) = self.sign(wish);
        std::fs::write(prefix.with_extension("pem"), certificate.pem()).unwrap();
        std::fs::write(prefix.with_extension("key"), key.serialize_pem()).unwrap();
    }

    fn sign(&self, wish: &Wish) -> (Certificate, KeyPair) {
        let mut parameters = CertificateParams::default();
        let now = OffsetDateTime::now_utc();
        parameters.not_before = now + Duration::days(wish.valid_days.start);
        parameters.not_after = now + Duration::days(wish.valid_days.end);
        parameters.subject_alt_names =
            wish.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())).collect();
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if wish.is_ca {
            parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            parameters.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }
        parameters.extended_key_usages = vec![match wish.is_for_servers {
            true => ExtendedKeyUsagePurpose::ServerAuth,
            false => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        (certificate, key)
    }
}
