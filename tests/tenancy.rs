//! Who gets in, and what tenants see of each other. Needs no guest.

use crate::support::certs::{Authority, Identity, Wish};
use crate::support::client::{connect, wait};
use crate::support::{Caller, Host, facts, small};
use ostler::api::v1;
use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Status};

const ACME: &str = "spiffe://ostler.local/tenant/acme";

/// Every method of the public API, as the daemon's own descriptor names it.
fn methods() -> Vec<PathAndQuery> {
    let described = prost_types::FileDescriptorSet::decode(v1::DESCRIPTORS).unwrap();
    let mut methods = Vec::new();
    for file in described.file.iter().filter(|file| file.package() == "ostler.v1") {
        for service in &file.service {
            let path = |method: &str| format!("/ostler.v1.{}/{method}", service.name()).parse().unwrap();
            methods.extend(service.method.iter().map(|method| path(method.name())));
        }
    }
    methods
}

/// Calls any method with one empty message. `Ok` means that the daemon took the call: an answer began.
fn call(host: &Host, identity: Option<Identity>, method: &PathAndQuery) -> Result<(), Refusal> {
    let channel = connect(host.port(), &host.certs().join("ca.pem"), identity).map_err(|_| Refusal::Connection)?;
    let mut grpc = tonic::client::Grpc::new(channel);
    wait(async {
        grpc.ready().await.map_err(|_| Refusal::Connection)?;
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let request = tonic::Request::new(tokio_stream::iter([()]));
        grpc.streaming::<_, (), (), _>(request, method.clone(), codec).await?;
        Ok(())
    })
}

/// How a caller was turned away.
#[derive(Debug)]
enum Refusal {
    /// No connection, or it was cut.
    Connection,
    /// By gRPC.
    Status(Status),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        // With a source the status was made by this client, from a broken connection.
        if std::error::Error::source(&status).is_some() { Self::Connection } else { Self::Status(status) }
    }
}

impl Refusal {
    fn is_for_identity(&self) -> bool {
        match self {
            Self::Connection => true,
            Self::Status(status) => status.code() == Code::Unauthenticated,
        }
    }
}

#[test]
fn every_method_refuses_every_caller_without_a_proper_certificate() {
    let host = Host::without_policy();
    let (ours, foreign) = (Authority::of(&host.certs()), Authority::unknown());
    let wish = |uris: &[&str]| Wish::for_uris(uris);
    let issue = |uris: &[&str]| Some(ours.issue(&wish(uris)));
    let callers: Vec<(&str, Option<Identity>)> = vec![
        ("no certificate", None),
        ("another CA", Some(foreign.issue(&wish(&[ACME])))),
        ("expired", Some(ours.issue(&Wish { valid_days: -30..-1, ..wish(&[ACME]) }))),
        ("not yet valid", Some(ours.issue(&Wish { valid_days: 1..30, ..wish(&[ACME]) }))),
        ("a CA as client", Some(ours.issue(&Wish { is_ca: true, ..wish(&[ACME]) }))),
        ("for servers only", Some(ours.issue(&Wish { is_for_servers: true, ..wish(&[ACME]) }))),
        ("no id", issue(&[])),
        ("two ids", issue(&[ACME, "spiffe://ostler.local/tenant/globex"])),
        ("no path", issue(&["spiffe://ostler.local"])),
        ("another trust domain", issue(&["spiffe://elsewhere.example/tenant/acme"])),
        ("another scheme", issue(&["https://ostler.local/tenant/acme"])),
        ("neither tenant nor operator", issue(&["spiffe://ostler.local/host/acme"])),
        ("not a tenant's name", issue(&["spiffe://ostler.local/tenant/Acme_Inc"])),
        ("a path below the tenant", issue(&["spiffe://ostler.local/tenant/acme/admin"])),
    ];
    let methods = methods();
    assert!(methods.len() >= 10, "{methods:?}");
    for (who, identity) in &callers {
        for method in &methods {
            match call(&host, identity.clone(), method) {
                Err(refusal) if refusal.is_for_identity() => {}
                other => panic!("{who} on {method}: {other:?}"),
            }
        }
    }
    // The same calls get past the door with a proper certificate, whatever becomes of the empty message.
    for uri in [ACME, "spiffe://ostler.local/operator/second"] {
        for method in &methods {
            if let Err(refusal) = call(&host, issue(&[uri]), method) {
                assert!(!refusal.is_for_identity(), "{uri} on {method}: {refusal:?}");
            }
        }
    }
}

#[test]
fn does_not_answer_without_tls() {
    use std::io::{Read, Write};
    let host = Host::without_policy();
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", host.port())).unwrap();
    stream.set_read_timeout(Some(crate::support::wait::SOON)).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut answer = Vec::new();
    // A TLS alert, or the end; never HTTP/2 SETTINGS (frame type 4).
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer[0] == 0x15, "{answer:?}");
}

/// All that a caller can learn about a VM by name, error by error.
fn probes(caller: &Caller, name: &str) -> Vec<Status> {
    let watch = caller.watch("tenants/globex");
    let watch = watch.err().unwrap_or_else(|| Status::ok("watch is silent"));
    vec![
        caller.get(name).unwrap_err(),
        caller.start(name).unwrap_err(),
        caller.stop(name, Some(0)).unwrap_err(),
        caller.inspect_jail(name).unwrap_err(),
        caller.destroy(name, false).unwrap_err(),
        caller.destroy(name, true).unwrap_err(),
        crate::support::console::Console::attach(caller, name).end().1.unwrap_err(),
        caller.list("tenants/globex").err().unwrap_or_else(|| Status::ok("list is empty")),
        watch,
    ]
}

fn shown(status: &Status) -> (Code, String, Vec<u8>) {
    (status.code(), status.message().to_owned(), status.details().to_vec())
}

#[test]
fn anothers_vm_looks_exactly_like_a_missing_one() {
    let host = Host::start();
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    let name = "tenants/globex/vms/secret";
    let before = probes(&acme, name);
    globex.register("secret", small()).unwrap();
    let after = probes(&acme, name);
    for (missing, anothers) in before.iter().zip(&after) {
        assert_eq!(shown(missing), shown(anothers));
    }
    for status in &before[..7] {
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
    }
    assert_eq!(globex.get("secret").unwrap().state(), v1::virtual_machine::State::Registered);
}

#[test]
fn a_tenant_cannot_register_in_anothers_name() {
    let host = Host::start();
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    let name = "tenants/globex/vms/trojan";
    let fresh = acme.register_exactly(name, Some(small())).unwrap_err();
    assert!(matches!(fresh.code(), Code::NotFound | Code::PermissionDenied), "{fresh:?}");
    assert_eq!(globex.list("").unwrap(), vec![]);
    globex.register("trojan", small()).unwrap();
    // Not ALREADY_EXISTS: that would tell.
    assert_eq!(shown(&acme.register_exactly(name, Some(small())).unwrap_err()), shown(&fresh));
}

#[test]
fn lists_and_watches_show_a_tenant_its_own_and_an_operator_all() {
    let host = Host::start();
    let (acme, globex, operator) = (host.tenant("acme"), host.tenant("globex"), host.operator());
    let mut watch = acme.watch("").unwrap();
    globex.register("hidden", small()).unwrap();
    acme.register("web", small()).unwrap();
    let names = |vms: Vec<v1::VirtualMachine>| vms.into_iter().map(|vm| vm.name).collect::<Vec<_>>();
    assert_eq!(names(acme.list("").unwrap()), ["tenants/acme/vms/web"]);
    assert_eq!(names(acme.list("tenants/acme").unwrap()), ["tenants/acme/vms/web"]);
    let all = ["tenants/acme/vms/web", "tenants/globex/vms/hidden"];
    assert_eq!(names(operator.list("").unwrap()), all);
    assert_eq!(names(operator.list("tenants/-").unwrap()), all);
    assert_eq!(names(operator.list("tenants/globex").unwrap()), all[1..]);
    assert!(acme.list("tenants/-").is_err());
    // The first thing that acme hears is about itself, though globex was earlier.
    assert_eq!(watch.next().virtual_machine.unwrap().name, "tenants/acme/vms/web");
}

#[test]
fn an_operator_may_act_for_a_tenant() {
    let host = Host::start();
    let operator = host.operator();
    let name = "tenants/globex/vms/web";
    operator.register_exactly(name, Some(small())).unwrap();
    assert_eq!(host.tenant("globex").get("web").unwrap().name, name);
    operator.destroy(name, false).unwrap();
    assert_eq!(facts(&host.tenant("globex").get("web").unwrap_err()).code, Code::NotFound);
}

#[test]
fn two_tenants_may_use_one_name() {
    let host = Host::start();
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    let (ours, theirs) = (acme.register("web", small()).unwrap(), globex.register("web", small()).unwrap());
    assert_ne!(ours.uid, theirs.uid);
    acme.destroy("web", false).unwrap();
    assert_eq!(globex.get("web").unwrap().uid, theirs.uid);
}

#[test]
fn only_an_operator_sees_and_changes_the_devices_of_the_host() {
    let host = Host::without_policy();
    host.operator().devices().unwrap();
    // Whether it exists or not: a tenant learns nothing.
    for status in
        [host.tenant("acme").devices().unwrap_err(), host.tenant("acme").release_device("0000:ff:1f.7").unwrap_err()]
    {
        let refused = facts(&status);
        assert_eq!((refused.code, refused.reason.as_str()), (Code::PermissionDenied, "NOT_ALLOWED"), "{refused:?}");
    }
    let missing = facts(&host.operator().release_device("0000:ff:1f.7").unwrap_err());
    assert_eq!((missing.code, missing.reason.as_str()), (Code::NotFound, "DEVICE_NOT_FOUND"), "{missing:?}");
    let malformed = facts(&host.operator().release_device("eth0").unwrap_err());
    assert_eq!((malformed.code, malformed.metadata["field"].as_str()), (Code::InvalidArgument, "address"));
}
