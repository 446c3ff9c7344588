//! Tests of the development certificates: what is written, what is kept, and that TLS accepts and refuses rightly.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::ServerName;

use super::*;
use crate::cli::args::GlobalArgs;
use crate::cli::identity::{Caller, Identity};

fn arguments(directory: &Path) -> CertsInitArgs {
    CertsInitArgs {
        dir: directory.to_owned(),
        tenants: vec!["acme".into()],
        operators: vec!["admin".into()],
        server_names: vec!["node-1.example".into(), "10.0.0.7".into()],
        days: 30,
    }
}

fn actions(made: &[Made]) -> Vec<(&str, &str)> {
    made.iter().map(|made| (made.certificate.rsplit('/').next().unwrap(), made.action)).collect()
}

#[test]
fn a_second_run_adds_what_is_missing_and_keeps_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let first = make(&arguments(directory.path())).unwrap();
    let files = ["ca.pem", "server.pem", "operator-admin.pem", "tenant-acme.pem"];
    assert_eq!(actions(&first), files.map(|file| (file, "created")));
    assert!(first[1].names.contains("node-1.example") && first[1].names.contains("10.0.0.7"), "{}", first[1].names);
    let ca = fs::read(directory.path().join("ca.pem")).unwrap();

    let mut more = arguments(directory.path());
    more.tenants.push("globex".into());
    let second = make(&more).unwrap();
    let mut expected = files.map(|file| (file, "kept")).to_vec();
    expected.push(("tenant-globex.pem", "created"));
    assert_eq!(actions(&second), expected);
    assert_eq!(fs::read(directory.path().join("ca.pem")).unwrap(), ca);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 10);
}

#[test]
fn keys_are_for_their_owner_only() {
    let directory = tempfile::tempdir().unwrap();
    let inner = directory.path().join("a/b");
    make(&arguments(&inner)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&inner), 0o700);
    for key in ["ca.key", "server.key", "operator-admin.key", "tenant-acme.key"] {
        assert_eq!(mode(&inner.join(key)), 0o600, "{key}");
    }
}

#[test]
fn finishes_a_run_that_was_cut_short_and_refuses_a_certificate_without_its_key() {
    let directory = tempfile::tempdir().unwrap();
    make(&arguments(directory.path())).unwrap();
    let file = |name: &str| directory.path().join(name);
    let key = fs::read(file("tenant-acme.key")).unwrap();
    fs::remove_file(file("tenant-acme.pem")).unwrap();
    make(&arguments(directory.path())).unwrap();
    assert_eq!(fs::read(file("tenant-acme.key")).unwrap(), key);

    fs::remove_file(file("tenant-acme.key")).unwrap();
    assert!(make(&arguments(directory.path())).unwrap_err().message.contains("has no key"));
    fs::remove_file(file("ca.key")).unwrap();
    assert!(make(&arguments(directory.path())).unwrap_err().hint.unwrap().contains("cannot sign"));
}

#[test]
fn refuses_names_that_no_certificate_may_carry() {
    let directory = tempfile::tempdir().unwrap();
    for change in [
        |a: &mut CertsInitArgs| a.tenants.push("a/b".into()),
        |a: &mut CertsInitArgs| a.operators.push("Root".into()),
        |a: &mut CertsInitArgs| a.server_names.push("not a host".into()),
    ] {
        let mut arguments = arguments(directory.path());
        change(&mut arguments);
        assert_eq!(make(&arguments).unwrap_err().exit, Exit::Usage);
    }
}

/// Whether a TLS 1.3 handshake between the daemon's and this client's certificate succeeds, in memory.
fn handshake(server: &Path, client: &Path, identity: &str, host: &str) -> Result<Caller, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = |path: &Path| CertificateDer::pem_file_iter(path).unwrap().map(Result::unwrap).collect::<Vec<_>>();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(chain(&server.join("ca.pem")).remove(0)).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let server_config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            chain(&server.join("server.pem")),
            PrivateKeyDer::from_pem_file(server.join("server.key")).unwrap(),
        )
        .unwrap();
    let global = GlobalArgs {
        endpoint: String::new(),
        identity: client.join(identity),
        ca: Some(server.join("ca.pem")),
        output: Output::Table,
    };
    let identity = Identity::load(&global).map_err(|failure| failure.to_string())?;
    let caller = identity.caller.clone();
    let client_config = crate::cli::client::tls_config(identity).map_err(|failure| failure.to_string())?;
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(client_config), name).unwrap();
    let mut server = rustls::ServerConnection::new(Arc::new(server_config)).unwrap();
    let text = |error: rustls::Error| error.to_string();
    while client.is_handshaking() || server.is_handshaking() {
        let mut flight = Vec::new();
        client.write_tls(&mut flight).unwrap();
        server.read_tls(&mut flight.as_slice()).unwrap();
        server.process_new_packets().map_err(text)?;
        let mut flight = Vec::new();
        server.write_tls(&mut flight).unwrap();
        client.read_tls(&mut flight.as_slice()).unwrap();
        client.process_new_packets().map_err(text)?;
    }
    Ok(caller)
}

#[test]
fn tls_accepts_the_identities_of_one_ca_and_refuses_anothers() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make(&arguments(ours.path())).unwrap();
    make(&arguments(theirs.path())).unwrap();
    let with = |identity, host| handshake(ours.path(), ours.path(), identity, host);
    for host in ["localhost", "127.0.0.1", "::1", "node-1.example", "10.0.0.7"] {
        assert_eq!(with("tenant-acme", host), Ok(Caller::Tenant("acme".parse().unwrap())), "{host}");
    }
    assert_eq!(with("operator-admin", "localhost"), Ok(Caller::Operator("admin".into())));
    assert!(with("tenant-acme", "elsewhere.example").unwrap_err().contains("not valid for name"));
    assert!(handshake(ours.path(), theirs.path(), "tenant-acme", "localhost").is_err());
    // The daemon's certificate is none of a client's, and names nobody.
    assert!(with("server", "localhost").unwrap_err().contains("SPIFFE"));
    assert!(with("tenant-nobody", "localhost").unwrap_err().contains("cannot read"));
}
