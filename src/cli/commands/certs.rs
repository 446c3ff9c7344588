//! `ostler certs`: a development CA, the certificates that it signs and revokes. No daemon is asked.
//!
//! ```text
//!   DIR/ca.pem ca.key              signs the rest; keep ca.key off the node in production
//!   DIR/server.pem server.key      the daemon: localhost, 127.0.0.1, ::1 and --server-name
//!   DIR/operator-NAME.pem .key     spiffe://ostler.local/operator/NAME
//!   DIR/tenant-NAME.pem .key       spiffe://ostler.local/tenant/NAME
//!   DIR/crl.pem                    what is revoked, from the first `certs revoke` on
//! ```
//!
//! What exists is never replaced: a second run adds what is missing. Keys are readable by their owner only.

mod revocation;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::model::TenantId;

use super::super::args::{CertsInitArgs, Output, TRUST_DOMAIN};
use super::super::failure::{Exit, Failure};
use super::super::view::json;
use super::super::{print, show};

pub(crate) use revocation::revoke;

/// Days that a new CA is valid: longer than any certificate that it signs at once.
const CA_DAYS: u32 = 3660;
/// Certificates are valid from a little before now: clocks differ.
const SKEW: Duration = Duration::hours(1);

/// What a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    Ca,
    Server(Vec<String>),
    Operator(String),
    Tenant(TenantId),
}

/// One row of the report.
#[derive(Debug, Serialize)]
struct Made {
    certificate: String,
    /// `created` or `kept`.
    action: &'static str,
    names: String,
    not_after: String,
}

#[derive(Serialize)]
struct Report {
    certificates: Vec<Made>,
}

/// Makes what is missing in the directory, and shows what is there.
pub(crate) fn init(arguments: &CertsInitArgs, output: Output) -> Result<(), Failure> {
    let made = make(arguments)?;
    if output == Output::Json {
        return show(&json(&Report { certificates: made }, false)?);
    }
    let rows: Vec<_> = made
        .iter()
        .map(|made| [made.certificate.clone(), made.action.to_owned(), made.names.clone(), made.not_after.clone()])
        .collect();
    show(&print::table(["CERTIFICATE", "ACTION", "FOR", "EXPIRES"], &rows))
}

fn make(arguments: &CertsInitArgs) -> Result<Vec<Made>, Failure> {
    let subjects = subjects(arguments)?;
    let directory = &arguments.dir;
    let failed = |error| Failure::local(format_args!("cannot create {}", directory.display()), &error);
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    let (issuer, ca) = authority(directory)?;
    let mut made = vec![ca];
    for subject in subjects {
        made.push(ensure(directory, &subject, &issuer, arguments.days)?);
    }
    Ok(made)
}

fn subjects(arguments: &CertsInitArgs) -> Result<Vec<Subject>, Failure> {
    let label = |option: &str, name: &str| {
        name.parse::<TenantId>().map_err(|error| Failure::new(Exit::Usage, format!("{option} {name:?}: {error}")))
    };
    let mut subjects = vec![Subject::Server(arguments.server_names.clone())];
    for operator in &arguments.operators {
        subjects.push(Subject::Operator(label("--operator", operator)?.to_string()));
    }
    for tenant in &arguments.tenants {
        subjects.push(Subject::Tenant(label("--tenant", tenant)?));
    }
    Ok(subjects)
}

/// The CA of the directory; a new one only if neither its certificate nor its key is there.
fn authority(directory: &Path) -> Result<(Issuer<'static, KeyPair>, Made), Failure> {
    let files = Files::of(directory, &Subject::Ca);
    if files.certificate.exists() {
        let pem = read(&files.certificate)?;
        let key = KeyPair::from_pem(&read(&files.key).map_err(|failure| {
            failure.hint("without its key this CA cannot sign; move the directory away to start anew")
        })?);
        let key = key.map_err(|error| unusable(&files.key, &error))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(|error| unusable(&files.certificate, &error))?;
        let made = describe(&files, &Subject::Ca, "kept")?;
        return Ok((issuer, made));
    }
    let key = files.key()?;
    let mut parameters = parameters(&Subject::Ca, CA_DAYS)?;
    parameters.distinguished_name.push(DnType::CommonName, format!("{} {}", Subject::Ca.common_name(), tag(&key)));
    let certificate = parameters.self_signed(&key).map_err(|error| unusable(&files.certificate, &error))?;
    create(&files.certificate, certificate.pem().as_bytes(), 0o644)?;
    Ok((Issuer::new(parameters, key), describe(&files, &Subject::Ca, "created")?))
}

/// Tells two CAs apart in errors and in lists: without it both would be the issuer of each other's certificates by name.
fn tag(key: &KeyPair) -> String {
    // The first byte of a point only says that it is uncompressed (SEC 1 §2.3.3).
    key.public_key_raw().iter().skip(1).take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// One certificate of the directory; a new one only if it is not there.
fn ensure(directory: &Path, subject: &Subject, issuer: &Issuer<'static, KeyPair>, days: u32) -> Result<Made, Failure> {
    let files = Files::of(directory, subject);
    if files.certificate.exists() {
        if !files.key.exists() {
            return Err(Failure::new(Exit::Refused, format!("{} has no key beside it", files.certificate.display()))
                .hint("put its key back, or remove the certificate and run ostler certs init again"));
        }
        return describe(&files, subject, "kept");
    }
    let key = files.key()?;
    let certificate =
        parameters(subject, days)?.signed_by(&key, issuer).map_err(|error| unusable(&files.certificate, &error))?;
    create(&files.certificate, certificate.pem().as_bytes(), 0o644)?;
    describe(&files, subject, "created")
}

fn parameters(subject: &Subject, days: u32) -> Result<CertificateParams, Failure> {
    let mut parameters = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    parameters.not_before = now - SKEW;
    parameters.not_after = now + Duration::days(i64::from(days));
    parameters.use_authority_key_identifier_extension = *subject != Subject::Ca;
    parameters.distinguished_name.push(DnType::CommonName, subject.common_name());
    parameters.subject_alt_names = subject.alternative_names()?;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    match subject {
        Subject::Ca => {
            parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        }
        Subject::Server(_) => parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
        Subject::Operator(_) | Subject::Tenant(_) => {
            parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        }
    }
    Ok(parameters)
}

impl Subject {
    fn file_stem(&self) -> String {
        match self {
            Self::Ca => "ca".to_owned(),
            Self::Server(_) => "server".to_owned(),
            Self::Operator(name) => format!("operator-{name}"),
            Self::Tenant(tenant) => format!("tenant-{tenant}"),
        }
    }

    fn common_name(&self) -> String {
        match self {
            Self::Ca => "Ostler development CA".to_owned(),
            Self::Server(_) => "ostler".to_owned(),
            Self::Operator(name) => format!("operator {name}"),
            Self::Tenant(tenant) => format!("tenant {tenant}"),
        }
    }

    fn alternative_names(&self) -> Result<Vec<SanType>, Failure> {
        let uri = |path: String| {
            let uri = format!("spiffe://{TRUST_DOMAIN}/{path}");
            Ok(vec![SanType::URI(uri.try_into().map_err(|_| bad_name(&path))?)])
        };
        match self {
            Self::Ca => Ok(Vec::new()),
            Self::Operator(name) => uri(format!("operator/{name}")),
            Self::Tenant(tenant) => uri(format!("tenant/{tenant}")),
            Self::Server(further) => {
                let mut names = vec![
                    SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                    SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
                ];
                for name in std::iter::once("localhost").chain(further.iter().map(String::as_str)) {
                    names.push(match name.parse() {
                        Ok(address) => SanType::IpAddress(address),
                        Err(_) => SanType::DnsName(dns_name(name)?.try_into().map_err(|_| bad_name(name))?),
                    });
                }
                Ok(names)
            }
        }
    }
}

/// RFC 1123 host names only: a wrong one would be noticed at the first connection, far from here.
fn dns_name(name: &str) -> Result<String, Failure> {
    rustls_pki_types::DnsName::try_from(name).map(|_| name.to_owned()).map_err(|_| bad_name(name))
}

fn bad_name(name: &str) -> Failure {
    Failure::new(Exit::Usage, format!("{name:?} is not a host name or an address"))
}

/// A certificate and its key.
#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn of(directory: &Path, subject: &Subject) -> Self {
        let stem = subject.file_stem();
        Self { certificate: directory.join(format!("{stem}.pem")), key: directory.join(format!("{stem}.key")) }
    }

    /// The key that is there (from a run that was cut short), else a new one.
    fn key(&self) -> Result<KeyPair, Failure> {
        if self.key.exists() {
            return KeyPair::from_pem(&read(&self.key)?).map_err(|error| unusable(&self.key, &error));
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| unusable(&self.key, &error))?;
        create(&self.key, key.serialize_pem().as_bytes(), 0o600)?;
        Ok(key)
    }
}

fn describe(files: &Files, subject: &Subject, action: &'static str) -> Result<Made, Failure> {
    let broken = |reason: &str| Failure::new(Exit::Refused, format!("{}: {reason}", files.certificate.display()));
    let der = CertificateDer::from_pem_file(&files.certificate).map_err(|_| broken("is not a PEM certificate"))?;
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| broken("is not an X.509 certificate"))?;
    let not_after = parsed.validity().not_after.to_datetime();
    let mut shown = not_after.format(&Rfc3339).unwrap_or_default();
    if not_after < OffsetDateTime::now_utc() {
        shown.push_str(" (EXPIRED: remove it and its key, then run this again)");
    }
    let names = match subject {
        Subject::Ca => parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok()).collect(),
        Subject::Server(_) | Subject::Operator(_) | Subject::Tenant(_) => san_text(&parsed),
    };
    Ok(Made { certificate: files.certificate.display().to_string(), action, names, not_after: shown })
}

/// The alternative names as the certificate has them, which may differ from what this run would write.
fn san_text(parsed: &X509Certificate<'_>) -> String {
    use x509_parser::extensions::GeneralName;
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return String::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::URI(text) | GeneralName::DNSName(text) => Some((*text).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect::<Vec<_>>().join(", ")
}

/// Writes a new file, whole or not at all; an existing one is never touched.
pub(super) fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    let part = path.with_extension("part");
    let write = || -> io::Result<()> {
        match fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        // link(2) refuses an existing target, which rename(2) would replace.
        fs::hard_link(&part, path)?;
        fs::remove_file(&part)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|error| Failure::local(format_args!("cannot create {}", path.display()), &error))
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::local(format_args!("cannot read {}", path.display()), &error))
}

fn unusable(path: &Path, error: &rcgen::Error) -> Failure {
    Failure::new(Exit::Refused, format!("{} is not usable: {error}", path.display()))
}

#[cfg(test)]
mod tests;
