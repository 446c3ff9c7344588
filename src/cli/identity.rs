//! Who the caller is: certificate, key and CA from files, and the SPIFFE id in the certificate. Key types:
//! [`Identity`], [`Caller`].
//!
//! `client` connects with it; commands ask it to complete names (`web` is the caller's own VM).

use std::path::{Path, PathBuf};

use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::api::{Parent, VmRef, parse_decision_name, parse_operation_name};
use crate::model::{DecisionId, SpecError, TenantId};

use super::args::GlobalArgs;
use super::failure::{Exit, Failure};

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A tenant: sees its own VMs.
    Tenant(TenantId),
    /// An operator: sees everything.
    Operator(String),
}

/// What the client shows to the daemon, and what it expects of it.
#[derive(Debug)]
pub(crate) struct Identity {
    /// The client's certificate, then what it is signed by.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// The client's key.
    pub(crate) key: PrivateKeyDer<'static>,
    /// CAs that the daemon's certificate may be signed by.
    pub(crate) roots: Vec<CertificateDer<'static>>,
    /// Whom the certificate names.
    pub(crate) caller: Caller,
}

impl Identity {
    /// Reads PREFIX.pem, PREFIX.key and the CA.
    pub(crate) fn load(arguments: &GlobalArgs) -> Result<Self, Failure> {
        let prefix = &arguments.identity;
        let certificate = with_ending(prefix, "pem");
        let chain = certificates(&certificate)?;
        let key_file = with_ending(prefix, "key");
        let key = PrivateKeyDer::from_pem_file(&key_file).map_err(|error| unreadable(&key_file, &error))?;
        let ca = arguments.ca.clone().unwrap_or_else(|| prefix.with_file_name("ca.pem"));
        let roots = certificates(&ca)?;
        let caller = chain.first().map(caller_of).unwrap_or_else(|| Err("it holds no certificate".to_owned()));
        let caller = caller.map_err(|reason| {
            Failure::new(Exit::Usage, format!("{}: {reason}", certificate.display())).hint(MAKE_ONE)
        })?;
        Ok(Self { chain, key, roots, caller })
    }
}

const MAKE_ONE: &str = "make one with ostler certs init --tenant NAME, and name it with --identity DIR/tenant-NAME";

impl Caller {
    /// The VM that a user means by `web`, `acme/web` or `tenants/acme/vms/web`.
    pub(crate) fn vm(&self, text: &str) -> Result<VmRef, Failure> {
        let full = match (text.split('/').collect::<Vec<_>>()[..].as_ref(), self) {
            (["tenants", ..], _) => text.to_owned(),
            ([vm], Self::Tenant(tenant)) => format!("tenants/{tenant}/vms/{vm}"),
            ([vm], Self::Operator(_)) => {
                return Err(Failure::new(Exit::Usage, format!("{vm:?} does not say whose VM it is"))
                    .hint(format!("an operator writes TENANT/{vm}")));
            }
            ([tenant, vm], _) => format!("tenants/{tenant}/vms/{vm}"),
            _ => text.to_owned(),
        };
        VmRef::parse(&full).map_err(|error| bad_name(&error))
    }

    /// The decision that a user means by `42`, `acme/42` or `tenants/acme/decisions/42`.
    pub(crate) fn decision(&self, text: &str) -> Result<DecisionId, Failure> {
        let full = match (text.split('/').collect::<Vec<_>>()[..].as_ref(), self) {
            ([number], Self::Tenant(tenant)) => format!("tenants/{tenant}/decisions/{number}"),
            ([number], Self::Operator(_)) => {
                return Err(Failure::new(Exit::Usage, format!("{number:?} does not say whose decision it is"))
                    .hint(format!("an operator writes TENANT/{number}")));
            }
            ([tenant, number], _) => format!("tenants/{tenant}/decisions/{number}"),
            _ => text.to_owned(),
        };
        parse_decision_name(&full).map_err(|error| {
            Failure::new(Exit::Usage, format!("invalid name: {}", error.reason))
                .hint("a decision is written 42, acme/42 or tenants/acme/decisions/42")
        })
    }

    /// The operation that a user means by its id, `acme/ID`, or its name.
    pub(crate) fn operation(&self, text: &str) -> Result<String, Failure> {
        let full = match (text.split('/').collect::<Vec<_>>()[..].as_ref(), self) {
            ([id], Self::Tenant(tenant)) => format!("tenants/{tenant}/operations/{id}"),
            ([id], Self::Operator(_)) => format!("operations/{id}"),
            (["operations", _], _) => text.to_owned(),
            ([tenant, id], _) => format!("tenants/{tenant}/operations/{id}"),
            _ => text.to_owned(),
        };
        parse_operation_name(&full).map(|_valid| full).map_err(|error| {
            Failure::new(Exit::Usage, format!("invalid name: {}", error.reason))
                .hint("ostler operation list shows how operations are named")
        })
    }

    /// The parent of a list: `tenant` if one is named, else everything that the caller may see.
    pub(crate) fn parent(&self, tenant: Option<&str>) -> Result<Parent, Failure> {
        match tenant {
            None => Ok(Parent::Own),
            Some(tenant) => Parent::parse(&format!("tenants/{tenant}")).map_err(|error| bad_name(&error)),
        }
    }
}

fn bad_name(error: &SpecError) -> Failure {
    Failure::new(Exit::Usage, format!("invalid name: {}", error.reason))
        .hint("a VM is written web, acme/web or tenants/acme/vms/web")
}

fn with_ending(prefix: &Path, ending: &str) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(".");
    path.push(ending);
    path.into()
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let read = || CertificateDer::pem_file_iter(file)?.collect::<Result<Vec<_>, _>>();
    match read() {
        Ok(found) if found.is_empty() => {
            Err(Failure::new(Exit::Usage, format!("{} holds no certificate", file.display())).hint(MAKE_ONE))
        }
        Ok(found) => Ok(found),
        Err(error) => Err(unreadable(file, &error)),
    }
}

fn unreadable(file: &Path, error: &pem::Error) -> Failure {
    let reason = match error {
        pem::Error::Io(error) => error.to_string(),
        other => format!("not PEM: {other}"),
    };
    Failure::new(Exit::Usage, format!("cannot read {}: {reason}", file.display())).hint(MAKE_ONE)
}

/// Whom a certificate names: the one SPIFFE id among its URI SANs.
fn caller_of(certificate: &CertificateDer<'_>) -> Result<Caller, String> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| "it is not an X.509 certificate".to_owned())?;
    let names = parsed.subject_alternative_name().map_err(|_| "its alternative names are malformed".to_owned())?;
    let mut ids = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("spiffe://"),
        _ => None,
    });
    match (ids.next(), ids.next()) {
        // What another id may is in the daemon's tenants.toml: it writes names as an operator does, in full.
        (Some(id), None) => Ok(caller_from_spiffe(id).unwrap_or_else(|| Caller::Operator(id.to_owned()))),
        _ => Err("it does not name exactly one SPIFFE id".to_owned()),
    }
}

fn caller_from_spiffe(id: &str) -> Option<Caller> {
    match id.split('/').collect::<Vec<_>>()[..] {
        [_, "tenant", tenant] => tenant.parse().ok().map(Caller::Tenant),
        // Operators are named by the same rule as tenants.
        [_, "operator", name] => name.parse::<TenantId>().ok().map(|_| Caller::Operator(name.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant() -> Caller {
        Caller::Tenant("acme".parse().unwrap())
    }

    #[test]
    fn completes_a_tenants_own_names_only() {
        let operator = Caller::Operator("admin".into());
        assert_eq!(tenant().vm("web").unwrap().to_string(), "tenants/acme/vms/web");
        for caller in [tenant(), operator.clone()] {
            assert_eq!(caller.vm("globex/web").unwrap().to_string(), "tenants/globex/vms/web");
            assert_eq!(caller.vm("tenants/globex/vms/web").unwrap().to_string(), "tenants/globex/vms/web");
        }
        let failure = operator.vm("web").unwrap_err();
        assert_eq!((failure.exit, failure.hint.as_deref()), (Exit::Usage, Some("an operator writes TENANT/web")));
    }

    #[test]
    fn refuses_names_that_are_none() {
        for name in ["", "a/b/c", "tenants/acme", "tenants/acme/vms/web/x", "Web", "acme/", &"x".repeat(300)] {
            assert_eq!(tenant().vm(name).unwrap_err().exit, Exit::Usage, "{name}");
        }
    }

    #[test]
    fn reads_tenants_and_operators_from_spiffe_ids() {
        assert_eq!(caller_from_spiffe("ostler.local/tenant/acme"), Some(tenant()));
        assert_eq!(caller_from_spiffe("x/operator/admin"), Some(Caller::Operator("admin".into())));
        for id in ["", "x", "x/tenant", "x/tenant/", "x/tenant/a/b", "x/tenant/A", "x/host/a", "x/operator/"] {
            assert_eq!(caller_from_spiffe(id), None, "{id}");
        }
    }
}
