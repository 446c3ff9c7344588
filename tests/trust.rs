//! Certificates, authorities and revocations change while the daemon serves. Needs no guest.

use std::fs;
use std::path::Path;

use crate::support::certs::{Authority, Identity, Wish};
use crate::support::client::{connect, wait};
use crate::support::wait::{SOON, until};
use crate::support::{Caller, Host, small};
use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, SerialNumber};
use time::{Duration, OffsetDateTime};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Whether a new connection with this certificate gets an answer.
fn gets_in(host: &Host, identity: &Identity) -> bool {
    connect(host.port(), &host.certs().join("ca.pem"), Some(identity.clone()))
        .is_ok_and(|channel| Caller::new(channel, "acme").list("").is_ok())
}

fn identity(host: &Host, name: &str) -> Identity {
    Identity::read(&host.certs().join(name))
}

fn revoke(host: &Host, certificates: &[&str]) {
    let mut command = host.command("operator-admin");
    command.args(["certs", "revoke", "--dir"]).arg(host.certs());
    command.args(certificates.iter().map(|name| host.certs().join(name)));
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Replaces a file in one step, as a careful operator does.
fn replace(path: &Path, content: &str) {
    let part = path.with_extension("new");
    fs::write(&part, content).unwrap();
    fs::rename(part, path).unwrap();
}

/// What the health service says of the certificates.
fn health(host: &Host) -> ServingStatus {
    let operator = Some(identity(host, "operator-admin"));
    let channel = connect(host.port(), &host.certs().join("ca.pem"), operator).unwrap();
    let request = HealthCheckRequest { service: "ostler.certificates".into() };
    wait(HealthClient::new(channel).check(request)).unwrap().into_inner().status()
}

#[test]
fn a_revoked_client_is_cut_off_and_others_are_not() {
    let host = Host::start();
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    let (mut cut, mut kept) = (acme.watch("").unwrap(), globex.watch("").unwrap());
    revoke(&host, &[]);
    until("the empty list is followed", SOON, || host.daemon_log().contains("read anew").then_some(()));
    assert!(gets_in(&host, &identity(&host, "tenant-acme")));

    revoke(&host, &["tenant-acme.pem"]);
    assert!(cut.end().is_some(), "the watch must break, not end");
    assert!(!gets_in(&host, &identity(&host, "tenant-acme")));
    globex.register("web", small()).unwrap();
    assert_eq!(kept.next().virtual_machine.unwrap().name, "tenants/globex/vms/web");
    assert!(acme.list("").is_err());
}

#[test]
fn unusable_files_change_nothing_and_are_told() {
    let host = Host::start();
    let globex = host.tenant("globex");
    let mut kept = globex.watch("").unwrap();
    assert_eq!(health(&host), ServingStatus::Serving);
    revoke(&host, &["tenant-acme.pem"]);
    until("the list is followed", SOON, || (!gets_in(&host, &identity(&host, "tenant-acme"))).then_some(()));
    let list = host.certs().join("crl.pem");
    let whole = fs::read_to_string(&list).unwrap();
    let lists = ["not a list", "", &whole[..whole.len() / 2]];
    for content in lists {
        replace(&list, content);
        until("the daemon says so", SOON, || (health(&host) == ServingStatus::NotServing).then_some(()));
        assert!(!gets_in(&host, &identity(&host, "tenant-acme")), "{content:?}");
        assert!(gets_in(&host, &identity(&host, "tenant-globex")), "{content:?}");
        replace(&list, &whole);
        until("it is well again", SOON, || (health(&host) == ServingStatus::Serving).then_some(()));
    }
    // A list that disappears would let everybody in again.
    fs::remove_file(&list).unwrap();
    until("the daemon says so", SOON, || (health(&host) == ServingStatus::NotServing).then_some(()));
    assert!(!gets_in(&host, &identity(&host, "tenant-acme")));
    globex.register("web", small()).unwrap();
    assert_eq!(kept.next().virtual_machine.unwrap().name, "tenants/globex/vms/web");
}

#[test]
fn an_expired_list_lets_nobody_in() {
    let host = Host::start();
    let read = |name: &str| fs::read_to_string(host.certs().join(name)).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap();
    let now = OffsetDateTime::now_utc();
    let list = CertificateRevocationListParams {
        this_update: now - Duration::days(2),
        next_update: now - Duration::days(1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let globex = identity(&host, "tenant-globex");
    assert!(gets_in(&host, &globex));
    replace(&host.certs().join("crl.pem"), &list.signed_by(&issuer).unwrap().pem().unwrap());
    until("nobody gets in", SOON, || (!gets_in(&host, &globex)).then_some(()));
    revoke(&host, &[]);
    until("a renewed list helps", SOON, || gets_in(&host, &globex).then_some(()));
}

#[test]
fn authorities_are_added_and_removed() {
    let host = Host::start();
    let (next_certs, ca) = (tempfile::tempdir().unwrap(), host.certs().join("ca.pem"));
    let mut init = host.command("operator-admin");
    init.args(["certs", "init", "--tenant", "acme", "--dir"]).arg(next_certs.path());
    assert!(init.output().unwrap().status.success());
    let next = Authority::of(next_certs.path()).issue(&Wish::for_uris(&["spiffe://ostler.local/tenant/acme"]));
    let (old, trusted) = (identity(&host, "tenant-acme"), fs::read_to_string(&ca).unwrap());
    let mut watch = host.tenant("acme").watch("").unwrap();
    assert!(gets_in(&host, &old) && !gets_in(&host, &next));

    let added = fs::read_to_string(next_certs.path().join("ca.pem")).unwrap();
    replace(&ca, &format!("{trusted}{added}"));
    until("the new authority's client gets in", SOON, || gets_in(&host, &next).then_some(()));
    assert!(gets_in(&host, &old));
    host.tenant("acme").register("web", small()).unwrap();
    assert_eq!(watch.next().virtual_machine.unwrap().name, "tenants/acme/vms/web");

    // This client's own view of the daemon stays: its certificate is still the old authority's.
    let daemons = tempfile::NamedTempFile::new().unwrap();
    fs::write(daemons.path(), &trusted).unwrap();
    replace(&ca, &added);
    assert!(watch.end().is_some());
    let enters = |identity: &Identity| {
        connect(host.port(), daemons.path(), Some(identity.clone()))
            .is_ok_and(|channel| Caller::new(channel, "acme").get("web").is_ok())
    };
    assert!(enters(&next) && !enters(&old));
}

#[test]
fn the_daemons_own_certificate_is_replaced() {
    let host = Host::start();
    let mut watch = host.tenant("acme").watch("").unwrap();
    let certs = tempfile::tempdir().unwrap();
    for name in ["ca.pem", "ca.key"] {
        fs::copy(host.certs().join(name), certs.path().join(name)).unwrap();
    }
    let mut init = host.command("operator-admin");
    init.args(["certs", "init", "--server-name", "node-2.example", "--dir"]).arg(certs.path());
    assert!(init.output().unwrap().status.success());
    let served = || crate::support::client::served_certificate(host.port());
    let before = served();
    for name in ["server.key", "server.pem"] {
        replace(&host.certs().join(name), &fs::read_to_string(certs.path().join(name)).unwrap());
    }
    until("the new certificate is shown", SOON, || (served() != before).then_some(()));
    assert!(gets_in(&host, &identity(&host, "tenant-acme")));
    host.tenant("acme").register("web", small()).unwrap();
    assert_eq!(watch.next().virtual_machine.unwrap().name, "tenants/acme/vms/web");
}
