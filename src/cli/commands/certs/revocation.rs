//! `ostler certs revoke`: the development CA's revocation list (RFC 5280 §5).
//!
//! The list is replaced as a whole and only grows; a daemon that follows it cuts a revoked client's connections.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::{Files, SKEW, Subject, authority, unusable};
use crate::cli::args::{CertsRevokeArgs, Output};
use crate::cli::failure::{Exit, Failure};
use crate::cli::view::json;
use crate::cli::{print, show};

/// What is revoked: serial number to when.
type Revoked = BTreeMap<Vec<u8>, OffsetDateTime>;

#[derive(Serialize)]
struct Report {
    list: String,
    number: u64,
    revoked: usize,
    not_after: String,
}

/// Adds certificates to the list, or only renews it.
pub(crate) fn revoke(arguments: &CertsRevokeArgs, output: Output) -> Result<(), Failure> {
    let report = renew(arguments)?;
    if output == Output::Json {
        return show(&json(&report, false)?);
    }
    let row = [report.list, report.number.to_string(), report.revoked.to_string(), report.not_after];
    show(&print::table(["LIST", "NUMBER", "REVOKED", "EXPIRES"], &[row]))
}

fn renew(arguments: &CertsRevokeArgs) -> Result<Report, Failure> {
    let directory = &arguments.dir;
    let ca = Files::of(directory, &Subject::Ca);
    if !ca.certificate.exists() {
        return Err(Failure::new(Exit::Refused, format!("there is no CA in {}", directory.display()))
            .hint("name the directory that `ostler certs init` made: --dir"));
    }
    let (issuer, _) = authority(directory)?;
    let path = directory.join("crl.pem");
    let (mut revoked, number) = match path.exists() {
        true => read(&path)?,
        false => (Revoked::new(), 0),
    };
    let now = OffsetDateTime::now_utc();
    let ca_der = CertificateDer::from_pem_file(&ca.certificate).map_err(|_| broken(&ca.certificate))?;
    let (_, ca_parsed) = X509Certificate::from_der(&ca_der).map_err(|_| broken(&ca.certificate))?;
    for file in &arguments.certificates {
        let der = CertificateDer::from_pem_file(file).map_err(|_| broken(file))?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| broken(file))?;
        if certificate.issuer() != ca_parsed.subject() {
            let why = format!("{} was not signed by {}", file.display(), ca.certificate.display());
            return Err(Failure::new(Exit::Refused, why).hint("only the CA that signed a certificate can revoke it"));
        }
        revoked.entry(certificate.raw_serial().to_vec()).or_insert(now);
    }
    let number = number + 1;
    let next_update = now + Duration::days(i64::from(arguments.days));
    let entries = revoked.iter().map(|(serial, revocation_time)| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: *revocation_time,
        reason_code: None,
        invalidity_date: None,
    });
    let list = CertificateRevocationListParams {
        this_update: now - SKEW,
        next_update,
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: entries.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let pem = list.signed_by(&issuer).and_then(|list| list.pem()).map_err(|error| unusable(&path, &error))?;
    replace(&path, pem.as_bytes())?;
    let not_after = next_update.format(&Rfc3339).unwrap_or_default();
    Ok(Report { list: path.display().to_string(), number, revoked: revoked.len(), not_after })
}

/// What an earlier list revokes, and its number.
fn read(path: &Path) -> Result<(Revoked, u64), Failure> {
    let unreadable = || {
        Failure::new(Exit::Refused, format!("{} is not a revocation list", path.display()))
            .hint("it is needed to keep what it revokes; put it back from a copy")
    };
    let der = CertificateRevocationListDer::from_pem_file(path).map_err(|_| unreadable())?;
    let (_, list) = CertificateRevocationList::from_der(&der).map_err(|_| unreadable())?;
    let entries = list.iter_revoked_certificates();
    let revoked = entries.map(|entry| (entry.raw_serial().to_vec(), entry.revocation_date.to_datetime())).collect();
    let number = list.crl_number().and_then(|number| number.to_u64_digits().first().copied()).unwrap_or(0);
    Ok((revoked, number))
}

fn broken(path: &Path) -> Failure {
    Failure::new(Exit::Refused, format!("{} is not a PEM certificate", path.display()))
}

/// Replaces the file in one step: a daemon sees the old list or the new one.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let part = path.with_extension("part");
    let write = || {
        let mut file = File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|error| Failure::local(format_args!("cannot write {}", path.display()), &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::CertsInitArgs;

    fn directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let arguments = CertsInitArgs {
            dir: directory.path().to_owned(),
            tenants: vec!["acme".into(), "globex".into()],
            operators: vec!["admin".into()],
            server_names: Vec::new(),
            days: 30,
        };
        super::super::make(&arguments).unwrap();
        directory
    }

    fn revoke_files(directory: &Path, files: &[&str]) -> Result<Report, Failure> {
        let certificates = files.iter().map(|file| directory.join(file)).collect();
        renew(&CertsRevokeArgs { certificates, dir: directory.to_owned(), days: 30 })
    }

    #[test]
    fn the_list_grows_and_is_numbered() {
        let directory = directory();
        let path = directory.path();
        let figures = |report: Report| (report.number, report.revoked);
        assert_eq!(figures(revoke_files(path, &[]).unwrap()), (1, 0));
        assert_eq!(figures(revoke_files(path, &["tenant-acme.pem"]).unwrap()), (2, 1));
        let (first, _) = read(&path.join("crl.pem")).unwrap();
        assert_eq!(figures(revoke_files(path, &["tenant-acme.pem", "tenant-globex.pem"]).unwrap()), (3, 2));
        let (second, number) = read(&path.join("crl.pem")).unwrap();
        assert_eq!(number, 3);
        // When something was revoked is not rewritten.
        assert!(first.iter().all(|(serial, when)| second.get(serial) == Some(when)));
    }

    #[test]
    fn refuses_what_it_cannot_revoke_and_keeps_the_list() {
        let (directory, other) = (directory(), directory());
        let path = directory.path();
        revoke_files(path, &["tenant-acme.pem"]).unwrap();
        let before = fs::read(path.join("crl.pem")).unwrap();
        fs::copy(other.path().join("tenant-acme.pem"), path.join("foreign.pem")).unwrap();
        for file in ["foreign.pem", "tenant-acme.key", "absent.pem"] {
            assert!(revoke_files(path, &[file]).is_err(), "{file}");
        }
        assert_eq!(fs::read(path.join("crl.pem")).unwrap(), before);
        fs::write(path.join("crl.pem"), "torn").unwrap();
        assert!(revoke_files(path, &["tenant-globex.pem"]).is_err());
        assert_eq!(fs::read(path.join("crl.pem")).unwrap(), b"torn");
        assert!(revoke_files(&path.join("nowhere"), &[]).is_err());
    }
}
