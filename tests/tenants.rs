//! Tenants, roles, quotas and the bounds of each identity, from the operator's file. Needs no guest.

use std::fs;

use crate::support::assets::plugin;
use crate::support::certs::{Authority, Wish};
use crate::support::client::{connect, spawn, wait};
use crate::support::console::Console;
use crate::support::wait::{SOON, until};
use crate::support::{Caller, Host, facts, small};
use ostler::api::v1;
use ostler::api::v1::load_plugin_request::{Header, Part};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

const VIEWER: &str = "spiffe://ostler.local/people/vera";
const ADMIN: &str = "spiffe://elsewhere.example/ci/build";
const OPERATOR: &str = "spiffe://ostler.local/people/olga";

/// Replaces the file in one step, and waits until the daemon has taken it or said that it does not.
pub fn write(host: &Host, text: &str, is_usable: bool) {
    let path = host.data().join("tenants.toml");
    let lines = |word: &str| host.daemon_log().matches(word).count();
    let word = if is_usable { "tenants were read anew" } else { "file changed and is not usable" };
    let before = lines(word);
    fs::write(path.with_extension("new"), text).unwrap();
    fs::rename(path.with_extension("new"), &path).unwrap();
    until("the daemon looks at its tenants", SOON, || (lines(word) > before).then_some(()));
}

fn member(id: &str, tenant: Option<&str>, role: &str) -> String {
    let tenant = tenant.map(|tenant| format!("tenant = {tenant:?}\n")).unwrap_or_default();
    format!("[[members]]\nid = {id:?}\n{tenant}role = {role:?}\n")
}

fn as_member(host: &Host, id: &str) -> Caller {
    let identity = Authority::of(&host.certs()).issue(&Wish::for_uris(&[id]));
    Caller::new(connect(host.port(), &host.certs().join("ca.pem"), Some(identity)).unwrap(), "acme")
}

fn reason(result: Result<impl std::fmt::Debug, Status>) -> String {
    facts(&result.unwrap_err()).reason
}

#[test]
fn roles_come_from_the_file_and_change_with_it() {
    let host = Host::start();
    host.tenant("acme").register("web", small()).unwrap();
    // Before the file names it, nobody.
    let stranger = as_member(&host, ADMIN);
    assert_eq!(facts(&stranger.list("").unwrap_err()).code, Code::Unauthenticated);
    let members = [
        member(VIEWER, Some("acme"), "viewer"),
        member(ADMIN, Some("acme"), "admin"),
        member(OPERATOR, None, "operator"),
    ];
    write(&host, &members.join(""), true);

    let (viewer, admin, operator) = (as_member(&host, VIEWER), as_member(&host, ADMIN), as_member(&host, OPERATOR));
    let mut watch = viewer.watch("").unwrap();
    assert_eq!(watch.next().virtual_machine.unwrap().name, "tenants/acme/vms/web");
    assert_eq!(viewer.get("web").unwrap().name, viewer.list("").unwrap()[0].name);
    viewer.plugins("").unwrap();
    assert_eq!(reason(viewer.get("tenants/globex/vms/x")), "VM_NOT_FOUND");
    for name in ["web", "tenants/globex/vms/x", "ghost"] {
        assert_eq!(reason(viewer.register(name, small())), "ROLE_DENIED", "{name}");
        assert_eq!(reason(viewer.start(name)), "ROLE_DENIED", "{name}");
        assert_eq!(reason(viewer.stop(name, Some(0))), "ROLE_DENIED", "{name}");
        assert_eq!(reason(viewer.destroy(name, true)), "ROLE_DENIED", "{name}");
    }
    assert_eq!(reason(viewer.load("tenants/acme/plugins/x", &plugin("admission"), &[])), "ROLE_DENIED");
    // A console may be read and not typed into.
    let (_, end) = Console::attach(&viewer, "web").end();
    assert_eq!(facts(&end.unwrap_err()).reason, "NO_PROCESS");
    let typed = v1::ConsoleRequest { name: viewer.name("web"), input: b"rm -rf /\n".to_vec(), ..Default::default() };
    let typed = wait(viewer.vms.clone().console(tokio_stream::iter([typed]))).map(drop);
    assert_eq!(reason(typed), "ROLE_DENIED");

    admin.register("db", small()).unwrap();
    assert_eq!(operator.list("").unwrap().len(), 2);
    let audit = fs::read_to_string(host.data().join("audit.log")).unwrap();
    let admins = format!("\"caller\":\"tenant/acme as {ADMIN}\"");
    assert!(audit.lines().any(|line| line.contains(&admins) && line.contains("vms/db")), "{audit}");
    assert!(audit.lines().any(|line| line.contains("viewer/acme") && line.contains("ROLE_DENIED")), "{audit}");

    // Whoever becomes somebody else is cut off, with all that it watches; the others are not.
    let mut others = host.tenant("acme").watch("").unwrap();
    write(&host, &[member(VIEWER, Some("globex"), "viewer"), member(OPERATOR, None, "operator")].join(""), true);
    assert!(watch.end().is_some(), "the watch must break");
    assert_eq!(as_member(&host, VIEWER).list("").unwrap(), vec![]);
    assert_eq!(facts(&as_member(&host, ADMIN).list("").unwrap_err()).code, Code::Unauthenticated);
    assert!(others.next().initial);
    operator.list("").unwrap();
}

#[test]
fn a_file_that_is_not_usable_changes_nothing_and_is_told() {
    let mut host = Host::start();
    let health = |host: &Host| {
        let request = HealthCheckRequest { service: "ostler.tenants".into() };
        let identity = crate::support::certs::Identity::read(&host.certs().join("operator-admin"));
        let channel = connect(host.port(), &host.certs().join("ca.pem"), Some(identity)).unwrap();
        wait(HealthClient::new(channel).check(request)).unwrap().into_inner().status()
    };
    assert_eq!(health(&host), ServingStatus::Serving);
    write(&host, "[tenants.acme]\nvms = 1\n", true);
    let acme = host.tenant("acme");
    acme.register("web", small()).unwrap();
    for text in ["[tenants.acme", "[tenants.acme]\nvm = 5", "\u{0}", "[[members]]\nid = 1"] {
        write(&host, text, false);
        assert_eq!(health(&host), ServingStatus::NotServing, "{text:?}");
        assert_eq!(reason(acme.register("db", small())), "QUOTA_EXCEEDED", "{text:?}");
        write(&host, "[tenants.acme]\nvms = 1\n", true);
        assert_eq!(health(&host), ServingStatus::Serving);
    }
    // Without the file there would be no quotas: that is no way to lift them.
    fs::remove_file(host.data().join("tenants.toml")).unwrap();
    until("it is told", SOON, || (health(&host) == ServingStatus::NotServing).then_some(()));
    assert_eq!(reason(acme.register("db", small())), "QUOTA_EXCEEDED");
    // A daemon does not begin with one that it cannot read.
    host.stop_daemon();
    fs::write(host.data().join("tenants.toml"), "[tenants").unwrap();
    let started = host.serve_briefly(&[]);
    assert!(!started.0 && started.1.contains("tenants.toml"), "{started:?}");
}

#[test]
fn quotas_are_charged_and_released_exactly() {
    let mut host = Host::start();
    write(&host, "[defaults]\nvms = 3\nvcpus = 4\nmemory-mib = 512\nplugins = 1\ndevices = 0\n", true);
    let acme = host.tenant("acme");
    let spec = |vcpus, memory_mib| v1::VirtualMachineSpec { vcpus, memory_mib, ..small() };
    acme.register("a", spec(2, 256)).unwrap();
    let refused = acme.register("b", spec(3, 512)).unwrap_err();
    let told = facts(&refused);
    assert_eq!((told.code, told.reason.as_str()), (Code::ResourceExhausted, "QUOTA_EXCEEDED"), "{told:?}");
    let violations = refused.get_error_details().quota_failure().unwrap().violations.clone();
    assert_eq!(violations.len(), 2, "{violations:?}");
    assert!(violations.iter().all(|violation| violation.subject == "tenants/acme"));
    assert_eq!((told.metadata["resource"].as_str(), told.metadata["limit"].as_str()), ("vcpus", "4"));
    let sriov = v1::NicSpec { id: "net0".into(), sriov: Some(v1::SriovNic::default()), ..Default::default() };
    let device = v1::VirtualMachineSpec { nics: vec![sriov], ..small() };
    assert_eq!(facts(&acme.register("c", device).unwrap_err()).metadata["resource"], "devices");
    // To the last unit; another tenant has its own.
    acme.register("b", spec(2, 256)).unwrap();
    host.tenant("globex").register("b", spec(4, 512)).unwrap();
    assert_eq!(reason(acme.register("c", spec(1, 64))), "QUOTA_EXCEEDED");
    // What is only validated is refused too, and charged nothing.
    let own = "tenants/acme/plugins/own";
    acme.load(own, &plugin("admission"), &[]).unwrap();
    acme.load(own, &plugin("admission"), &[]).unwrap();
    assert_eq!(reason(acme.load("tenants/acme/plugins/more", &plugin("admission"), &[])), "QUOTA_EXCEEDED");

    host.kill_daemon();
    host.start_daemon();
    let acme = host.tenant("acme");
    let usage = acme.tenant("acme").unwrap().usage.unwrap();
    assert_eq!((usage.vms, usage.vcpus, usage.memory_mib, usage.plugins), (2, 4, 512, 1));
    acme.destroy("a", false).unwrap();
    let usage = acme.tenant("acme").unwrap().usage.unwrap();
    assert_eq!((usage.vms, usage.vcpus, usage.memory_mib), (1, 2, 256));
    acme.register("c", spec(2, 256)).unwrap();
}

/// The admission plugin with another content for each `at`, and the same machine code.
fn version(at: usize) -> Vec<u8> {
    let section = [0, 2, 1, b'a' + u8::try_from(at).unwrap()];
    [plugin("admission").as_slice(), &section].concat()
}

/// So many bytes of machine code have versions of it.
fn code_bytes(host: &Host) -> usize {
    let file = host.data().join("admission.wasm");
    fs::write(&file, version(0)).unwrap();
    let output = host.command("tenant-acme").args(["plugin", "check", "-o", "json"]).arg(file).output().unwrap();
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    seen["code_bytes"].as_u64().unwrap().try_into().unwrap()
}

#[test]
fn machine_code_of_plugins_is_charged_once_for_each_content() {
    let mut host = Host::start();
    write(&host, "[tenants.acme]\nplugin-memory-mib = 1\n", true);
    let acme = host.tenant("acme");
    let fit = (1 << 20) / code_bytes(&host);
    assert!((3..14).contains(&fit), "{fit}");
    let name = |at: usize| format!("tenants/acme/plugins/p{at}");
    // One content under two names; versions that are only kept.
    acme.load(&name(0), &version(0), &[]).unwrap();
    acme.load("tenants/acme/plugins/twin", &version(0), &[]).unwrap();
    let (spare, wanted) = (fit, fit + 1..fit + 5);
    for at in spare..wanted.end {
        let header = Header { name: name(0), alias: format!("v{at}"), ..Default::default() };
        acme.load_as(header, &version(at)).unwrap();
    }
    (1..fit - 1).for_each(|at| drop(acme.load(&name(at), &version(at), &[]).unwrap()));
    // There is room for one more, and four want it.
    let (answers, received) = std::sync::mpsc::channel();
    for at in wanted {
        let (mut plugins, answers) = (acme.plugins.clone(), answers.clone());
        let header = Part::Header(Header { name: name(at), ..Default::default() });
        let parts = [header, Part::Chunk(version(at))].map(|part| v1::LoadPluginRequest { part: Some(part) });
        spawn(async move { drop(answers.send(plugins.load_plugin(tokio_stream::iter(parts)).await.map(drop))) });
    }
    drop(answers);
    assert_eq!(received.iter().filter(Result::is_ok).count(), 1);
    assert_eq!(acme.tenant("acme").unwrap().usage.unwrap().plugin_memory_mib, 1);

    let more = "tenants/acme/plugins/more";
    let refused = |told: Result<v1::Plugin, Status>| {
        let told = facts(&told.unwrap_err());
        assert_eq!((told.code, told.reason.as_str()), (Code::ResourceExhausted, "QUOTA_EXCEEDED"), "{told:?}");
        let figures = ["resource", "limit", "used", "asked"].map(|key| told.metadata[key].clone());
        assert_eq!(figures, ["plugin_memory_mib", "1", "1", "1"], "{told:?}");
        assert!(told.message.contains("unload"), "{told:?}");
    };
    refused(acme.load(more, &version(spare), &[]));
    refused(acme.load_as(Header { name: more.into(), validate_only: true, ..Default::default() }, &version(spare)));
    refused(acme.load_as(Header { name: name(1), canary_percent: 10, ..Default::default() }, &version(spare)));
    // Its content stays, for the twin has it.
    refused(acme.follow(&name(0), &format!("v{spare}")));
    // In the place of one that has its content to itself.
    acme.load(&name(1), &version(spare), &[]).unwrap();
    host.kill_daemon();
    host.start_daemon();
    let acme = host.tenant("acme");
    assert_eq!(acme.tenant("acme").unwrap().usage.unwrap().plugin_memory_mib, 1);
    refused(acme.load(more, &version(1), &[]));
    acme.unload(&name(1), false).unwrap();
    acme.load(more, &version(1), &[]).unwrap();
    host.operator().load("operator/plugins/more", &version(spare), &[]).unwrap();
}

#[test]
fn a_tenants_components_have_the_size_that_the_operator_says() {
    let host = Host::start();
    let globex = host.tenant("globex");
    // A custom section of 1 MiB and two bytes, its length in LEB128 (core specification §5.2.2).
    let large = [plugin("admission"), vec![0, 0x82, 0x80, 0x40, 1, b'x'], vec![0; 1 << 20]].concat();
    globex.load("tenants/globex/plugins/own", &large, &[]).unwrap();
    write(&host, "[tenants.globex]\nplugin-size-mib = 1\n", true);
    let told = facts(&globex.load("tenants/globex/plugins/own", &large, &[]).unwrap_err());
    assert_eq!((told.code, told.metadata["code"].as_str()), (Code::InvalidArgument, "plugin.too-large"), "{told:?}");
    globex.load("tenants/globex/plugins/own", &plugin("admission"), &[]).unwrap();
    host.tenant("acme").load("tenants/acme/plugins/own", &large, &[]).unwrap();
    let quota = globex.tenant("globex").unwrap().quota.unwrap();
    assert_eq!((quota.plugin_memory_mib, quota.plugin_size_mib), (Some(128), Some(1)));
}

#[test]
fn two_that_want_the_last_place_do_not_both_get_it() {
    let host = Host::start();
    write(&host, "[tenants.acme]\nvms = 4\n", true);
    let acme = host.tenant("acme");
    let (answers, received) = std::sync::mpsc::channel();
    for at in 0..12 {
        let (mut vms, answers) = (acme.vms.clone(), answers.clone());
        let vm = v1::VirtualMachine { name: acme.name(&format!("vm{at}")), spec: Some(small()), ..Default::default() };
        let request = v1::RegisterVirtualMachineRequest { virtual_machine: Some(vm), ..Default::default() };
        spawn(async move { drop(answers.send(vms.register_virtual_machine(request).await.map(drop))) });
    }
    drop(answers);
    let (done, refused): (Vec<_>, Vec<_>) = received.iter().partition(Result::is_ok);
    assert_eq!((done.len(), refused.len()), (4, 8));
    assert_eq!(acme.list("").unwrap().len(), 4);
}

#[test]
fn a_tenant_sees_itself_and_an_operator_all() {
    let host = Host::start();
    write(&host, "[tenants.acme]\nvms = 7\n", true);
    host.tenant("globex").register("web", small()).unwrap();
    let (acme, operator) = (host.tenant("acme"), host.operator());
    let list = |caller: &Caller| {
        let tenants = wait(caller.tenants.clone().list_tenants(v1::ListTenantsRequest::default())).unwrap();
        tenants.into_inner().tenants.into_iter().map(|tenant| tenant.name).collect::<Vec<_>>()
    };
    assert_eq!(list(&acme), ["tenants/acme"]);
    assert_eq!(list(&operator), ["tenants/acme", "tenants/globex"]);
    assert_eq!(acme.tenant("acme").unwrap().quota.unwrap().vms, Some(7));
    assert_eq!(operator.tenant("globex").unwrap().quota.unwrap().vms, None);
    let shown = |status: Status| (status.code(), status.message().to_owned(), status.details().to_vec());
    let missing = shown(acme.tenant("nobody").unwrap_err());
    assert_eq!(missing, shown(acme.tenant("globex").unwrap_err()));
    assert_eq!(missing.0, Code::NotFound);
    assert_eq!(reason(operator.tenant("nobody")), "TENANT_NOT_FOUND");

    let run = |identity: &str, arguments: &[&str]| {
        let output = host.command(identity).arg("tenant").args(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, table, error) = run("operator-admin", &["list"]);
    assert!(code == Some(0) && table.contains("0/7") && table.contains("globex"), "{table}{error}");
    let (_, json, _) = run("tenant-acme", &["get", "-o", "json"]);
    let tenant: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&tenant["quota"]["vms"], &tenant["usage"]["vms"]), (&7.into(), &0.into()));
    let (code, _, error) = run("tenant-acme", &["get", "globex"]);
    assert!(code == Some(4) && error.contains("hint: ostler tenant list"), "{error}");
}

#[test]
fn one_identity_is_slowed_down_and_nobody_else() {
    let host = Host::start();
    write(&host, "[limits]\nrequests-per-second = 5\nburst = 10\nconnections = 3\n", true);
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    let refused = until("a call is refused", SOON, || acme.list("").err());
    let told = facts(&refused);
    assert_eq!((told.code, told.reason.as_str()), (Code::ResourceExhausted, "RATE_LIMITED"), "{told:?}");
    let wait_for = refused.get_error_details().retry_info().unwrap().retry_delay.unwrap();
    assert!(!wait_for.is_zero() && wait_for.as_millis() <= 200, "{wait_for:?}");
    globex.list("").unwrap();
    until("it may call again", SOON, || acme.list("").ok());

    // Three connections: this is one of them.
    let more: Vec<_> = (0..2).map(|_| host.tenant("acme")).collect();
    // The daemon counts a connection once it has seen the certificate, which is after the client takes it for open: an
    // answer, whatever it says, comes later.
    more.iter().for_each(|caller| drop(caller.list("")));
    let too_many = until("a call is refused", SOON, || {
        let status = host.tenant("acme").list("").unwrap_err();
        let is_told = status.get_details_error_info().is_some_and(|info| info.reason == "TOO_MANY_CONNECTIONS");
        is_told.then_some(status)
    });
    assert!(too_many.get_error_details().retry_info().is_some());
    drop(more);
    host.tenant("globex").list("").unwrap();
    until("there is a place again", SOON, || {
        let ca = host.certs().join("ca.pem");
        let identity = crate::support::certs::Identity::read(&host.certs().join("tenant-acme"));
        let channel = connect(host.port(), &ca, Some(identity)).ok()?;
        Caller::new(channel, "acme").list("").ok()
    });
}

#[test]
fn nothing_is_served_without_certificates_wherever_it_listens() {
    let mut host = Host::start();
    host.stop_daemon();
    fs::rename(host.certs(), host.data().join("elsewhere")).unwrap();
    for address in ["0.0.0.0:0", "[::]:0", "127.0.0.1:0"] {
        let (is_serving, log) = host.serve_briefly(&["--listen", address]);
        assert!(!is_serving && log.contains("ostler certs init"), "{address}: {log}");
    }
}
