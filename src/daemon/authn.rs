//! Who the client is: peer certificate to [`Principal`] (`daemon/tenants` may say otherwise). Called by `rpc` once per connection; pure.
//!
//! The certificate's chain has been verified by TLS before; here only its identity is read: exactly one URI in the
//! subject alternative names, a SPIFFE id of the form that the public contract names (SPIFFE X.509-SVID §2, §5).

use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::model::{IdError, TenantId};

/// Longest SPIFFE id, in bytes (SPIFFE-ID §2.3).
const MAX_SPIFFE_ID_LEN: usize = 2048;

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    /// A tenant's admin: sees and changes its own VMs.
    Tenant(TenantId),
    /// Sees what the tenant's admin sees, and changes nothing.
    Viewer(TenantId),
    /// Sees and changes all.
    Operator(TenantId),
}

impl Principal {
    /// Whether `tenant`'s resources exist for this caller.
    pub fn may_see(&self, tenant: &TenantId) -> bool {
        match self {
            Self::Tenant(own) | Self::Viewer(own) => own == tenant,
            Self::Operator(_) => true,
        }
    }

    /// Whose resources it sees; `None`: everybody's.
    pub fn tenant(&self) -> Option<&TenantId> {
        match self {
            Self::Tenant(own) | Self::Viewer(own) => Some(own),
            Self::Operator(_) => None,
        }
    }

    /// Whether it may change what it sees.
    pub fn may_change(&self) -> bool {
        !matches!(self, Self::Viewer(_))
    }
}

/// A caller with what tells it from others of the same rights.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// What it may.
    pub principal: Principal,
    /// Its SPIFFE id, if that was not what says so.
    pub member: Option<String>,
}

impl std::ops::Deref for Identity {
    type Target = Principal;

    fn deref(&self) -> &Principal {
        &self.principal
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.member {
            None => self.principal.fmt(f),
            Some(id) => write!(f, "{} as {id}", self.principal),
        }
    }
}

impl std::fmt::Display for Principal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tenant(name) => write!(f, "tenant/{name}"),
            Self::Viewer(name) => write!(f, "viewer/{name}"),
            Self::Operator(name) => write!(f, "operator/{name}"),
        }
    }
}

/// Why a certificate names no caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthnError {
    /// Not a certificate that can be read.
    #[error("client certificate cannot be parsed")]
    Unreadable,
    /// A certificate authority shows itself as a client.
    #[error("client certificate is one of a certificate authority; those sign, they do not authenticate")]
    SigningCertificate,
    /// None, or more than one URI.
    #[error("client certificate has {count} URI names, exactly one spiffe:// id is needed")]
    UriCount {
        /// How many there are.
        count: usize,
    },
    /// The URI is not of the expected form.
    #[error(
        "client certificate's id {id:?} is not spiffe://{trust_domain}/tenant/<name> or …/operator/<name>, and no \
         member in tenants.toml"
    )]
    NotAPrincipal {
        /// The URI.
        id: String,
        /// What the daemon serves.
        trust_domain: String,
    },
    /// The last part is not a DNS label.
    #[error("client certificate's id {id:?} ends in a bad name")]
    BadName {
        /// The URI.
        id: String,
        /// What is wrong with it.
        source: IdError,
    },
}

/// The one URI name of the leaf certificate `der`.
pub fn spiffe_id(der: &[u8]) -> Result<String, AuthnError> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| AuthnError::Unreadable)?;
    if !rest.is_empty() {
        return Err(AuthnError::Unreadable);
    }
    let mut uris = Vec::new();
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                return Err(AuthnError::SigningCertificate);
            }
            ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() || usage.crl_sign() => {
                return Err(AuthnError::SigningCertificate);
            }
            ParsedExtension::SubjectAlternativeName(names) => {
                uris.extend(names.general_names.iter().filter_map(|name| match name {
                    GeneralName::URI(uri) => Some((*uri).to_owned()),
                    _ => None,
                }));
            }
            _ => {}
        }
    }
    match uris.as_slice() {
        [uri] => Ok(uri.clone()),
        _ => Err(AuthnError::UriCount { count: uris.len() }),
    }
}

/// Whom the id's path names, within `trust_domain`.
pub fn parse_spiffe_id(id: &str, trust_domain: &str) -> Result<Principal, AuthnError> {
    let not_a_principal =
        || AuthnError::NotAPrincipal { id: id.chars().take(80).collect(), trust_domain: trust_domain.to_owned() };
    if id.len() > MAX_SPIFFE_ID_LEN {
        return Err(not_a_principal());
    }
    let path = id
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.strip_prefix(trust_domain))
        .and_then(|rest| rest.strip_prefix('/'))
        .ok_or_else(not_a_principal)?;
    let (kind, name) = path.split_once('/').ok_or_else(not_a_principal)?;
    let parse = || name.parse().map_err(|source| AuthnError::BadName { id: id.chars().take(80).collect(), source });
    match kind {
        "tenant" => Ok(Principal::Tenant(parse()?)),
        "operator" => Ok(Principal::Operator(parse()?)),
        _ => Err(not_a_principal()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};

    fn certificate(uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn identify(der: &[u8], trust_domain: &str) -> Result<Principal, AuthnError> {
        parse_spiffe_id(&spiffe_id(der)?, trust_domain)
    }

    fn identify_uris(uris: &[&str]) -> Result<Principal, AuthnError> {
        identify(&certificate(uris, |_| {}), "ostler.local")
    }

    #[test]
    fn reads_tenants_and_operators() {
        let tenant = identify_uris(&["spiffe://ostler.local/tenant/acme"]).unwrap();
        assert_eq!(tenant, Principal::Tenant("acme".parse().unwrap()));
        assert!(tenant.may_see(&"acme".parse().unwrap()) && !tenant.may_see(&"bob".parse().unwrap()));
        let operator = identify_uris(&["spiffe://ostler.local/operator/admin"]).unwrap();
        assert!(operator.may_see(&"bob".parse().unwrap()));
    }

    #[test]
    fn refuses_everything_but_one_id_of_its_own_domain() {
        assert_eq!(identify_uris(&[]), Err(AuthnError::UriCount { count: 0 }));
        let two = ["spiffe://ostler.local/tenant/a", "spiffe://ostler.local/operator/a"];
        assert_eq!(identify_uris(&two), Err(AuthnError::UriCount { count: 2 }));
        for id in [
            "spiffe://evil.example/tenant/acme",
            "spiffe://ostler.local.evil/tenant/acme",
            "spiffe://ostler.local/tenant",
            "spiffe://ostler.local/",
            "spiffe://ostler.local/root/acme",
            "https://ostler.local/tenant/acme",
            "SPIFFE://ostler.local/tenant/acme",
        ] {
            assert!(matches!(identify_uris(&[id]), Err(AuthnError::NotAPrincipal { .. })), "{id}");
        }
        for id in ["tenant/", "tenant/a/b", "tenant/..", "operator/A", "tenant/a?x"] {
            let id = format!("spiffe://ostler.local/{id}");
            assert!(matches!(identify_uris(&[&id]), Err(AuthnError::BadName { .. })), "{id}");
        }
    }

    #[test]
    fn refuses_a_signing_certificate() {
        let id = ["spiffe://ostler.local/tenant/acme"];
        let ca = certificate(&id, |params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
        assert_eq!(identify(&ca, "ostler.local"), Err(AuthnError::SigningCertificate));
        let signer = certificate(&id, |params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
        assert_eq!(identify(&signer, "ostler.local"), Err(AuthnError::SigningCertificate));
    }

    proptest! {
        #[test]
        fn never_panics_on_foreign_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..512), id in "\\PC{0,40}") {
            let _ = identify(&bytes, "ostler.local");
            let _ = parse_spiffe_id(&id, "ostler.local");
        }
    }
}
