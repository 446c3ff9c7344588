//! TLS 1.3 with client certificates. Key type: [`Trust`], what a set of files comes to.
//!
//! No resumption: a resumed session would skip the check of the client's certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};

/// HTTP/2 (RFC 7540 §3.1), the only protocol that is spoken.
pub(super) const ALPN: &[u8] = b"h2";

/// Where the daemon's certificate, its key and the clients' authority are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The daemon's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Authorities that sign client certificates, PEM.
    pub client_ca: PathBuf,
    /// Their revocation lists, PEM. If the file exists, every client certificate must be covered by a list that has not
    /// expired (RFC 5280 §5); what is not is refused.
    pub client_crl: PathBuf,
}

impl TlsFiles {
    /// All of them, with what each holds.
    pub(super) fn all(&self) -> [(&'static str, &Path); 4] {
        [
            (CERTIFICATE, &self.certificate),
            (KEY, &self.key),
            (AUTHORITIES, &self.client_ca),
            (REVOCATIONS, &self.client_crl),
        ]
    }
}

const CERTIFICATE: &str = "the daemon's certificate";
const KEY: &str = "the daemon's private key";
const AUTHORITIES: &str = "client certificate authorities";
const REVOCATIONS: &str = "the revocation list";

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is absent or not what it should be.
    #[error("cannot read {what} from {path}; `ostler certs init` makes certificates")]
    File {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls_pki_types::pem::Error,
    },
    /// The certificates do not fit.
    #[error("certificates cannot be used")]
    Unusable(#[from] rustls::Error),
    /// The authorities cannot verify anybody.
    #[error("client certificate authorities cannot be used")]
    Authorities(#[from] rustls::client::VerifierBuilderError),
}

/// What the daemon shows its clients, and whom it believes.
#[derive(Clone)]
pub struct Trust {
    /// For new connections.
    pub(super) config: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    /// Whether there is a revocation list.
    pub(super) checks_revocation: bool,
}

impl Trust {
    /// What `files` describe now.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut authorities = RootCertStore::empty();
        for authority in certificates(AUTHORITIES, &files.client_ca)? {
            authorities.add(authority)?;
        }
        let revoked = revocations(&files.client_crl)?;
        let checks_revocation = !revoked.is_empty();
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), Arc::clone(&provider));
        let verifier = builder.with_crls(revoked).enforce_revocation_expiration().build()?;
        let chain = certificates(CERTIFICATE, &files.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&files.key);
        let key = key.map_err(|source| TlsError::File { what: KEY, path: files.key.clone(), source })?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::clone(&verifier))
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(Self { config: Arc::new(config), verifier, checks_revocation })
    }

    /// Whether a client with this chain would get in now, and why not.
    pub(super) fn check(&self, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        self.verifier.verify_client_cert(leaf, intermediates, UnixTime::now()).map(drop)
    }
}

/// The lists in the file; none if there is no file.
fn revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let failed = |source| TlsError::File { what: REVOCATIONS, path: path.to_owned(), source };
    if !path.try_exists().map_err(|error| failed(rustls_pki_types::pem::Error::Io(error)))? {
        return Ok(Vec::new());
    }
    let found: Vec<_> =
        CertificateRevocationListDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    if found.is_empty() { Err(failed(rustls_pki_types::pem::Error::NoItemsFound)) } else { Ok(found) }
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::File { what, path: path.to_owned(), source };
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    if found.is_empty() { Err(failed(rustls_pki_types::pem::Error::NoItemsFound)) } else { Ok(found) }
}
