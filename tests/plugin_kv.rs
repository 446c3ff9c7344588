//! Plugins that remember: with the decision or not at all, for each tenant, across restarts, until they go. Needs no guest.

use std::process::Output;

use crate::support::assets::plugin;
use crate::support::client::wait;
use crate::support::{Caller, Host, facts, small};
use ostler::api::v1;
use tonic::{Code, Status};

const RATE: &str = "operator/plugins/rate";
const OWN: &str = "tenants/acme/plugins/rate";
/// Does not end while a test runs.
const YEAR: (&str, &str) = ("window-s", "31536000");

fn header(name: &str, max_requests: &str) -> v1::load_plugin_request::Header {
    let settings = [("max-requests", max_requests), YEAR].map(|(key, value)| (key.to_owned(), value.to_owned()));
    v1::load_plugin_request::Header {
        name: name.to_owned(),
        settings: settings.into(),
        grants: vec!["kv".to_owned()],
        ..Default::default()
    }
}

fn load(caller: &Caller, header: v1::load_plugin_request::Header) -> Result<v1::Plugin, Status> {
    use v1::load_plugin_request::Part;
    let component = plugin("rate");
    let chunks = component.chunks(64 << 10).map(|chunk| Part::Chunk(chunk.to_vec()));
    caller.load_parts(std::iter::once(Part::Header(header)).chain(chunks).collect())
}

fn remembered(caller: &Caller, name: &str, tenant: &str) -> Result<Vec<(String, String)>, Status> {
    let request = v1::GetPluginKvRequest { name: name.to_owned(), tenant: tenant.to_owned() };
    let kv = wait(caller.plugins.clone().get_plugin_kv(request))?.into_inner();
    assert_eq!((kv.name.as_str(), kv.write_time.is_some()), (name, !kv.entries.is_empty()));
    Ok(kv.entries.into_iter().map(|entry| (entry.key, String::from_utf8(entry.value).unwrap())).collect())
}

/// What the operator's plugin has counted.
fn count(host: &Host, tenant: &str) -> u64 {
    let entries = remembered(&host.operator(), RATE, &format!("tenants/{tenant}")).unwrap();
    entries.iter().find(|(key, _)| key == "count").map_or(0, |(_, count)| count.parse().unwrap())
}

fn code(status: &Status) -> String {
    facts(status).metadata.get("code").cloned().unwrap_or_default()
}

fn ostler(host: &Host, identity: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = host.command(identity).args(arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
}

#[test]
fn what_is_not_granted_is_refused_and_what_is_granted_is_of_the_version() {
    let host = Host::start();
    let operator = host.operator();
    let refused = load(&operator, v1::load_plugin_request::Header { grants: vec![], ..header(RATE, "2") }).unwrap_err();
    let facts = facts(&refused);
    assert_eq!((facts.code, facts.reason.as_str()), (Code::InvalidArgument, "PLUGIN_REFUSED"));
    assert_eq!(facts.metadata["code"], "plugin.not-granted");
    let unknown = v1::load_plugin_request::Header { grants: vec!["clock".into()], ..header(RATE, "2") };
    let unknown = load(&operator, unknown).unwrap_err();
    assert_eq!((unknown.code(), unknown.message().contains("clock")), (Code::InvalidArgument, true), "{unknown:?}");

    assert_eq!(load(&operator, header(RATE, "2")).unwrap().grants, ["kv"]);
    operator.load(RATE, &plugin("admission"), &[]).unwrap();
    let bound = operator.plugins("operator").unwrap().into_iter().find(|plugin| plugin.name == RATE).unwrap();
    assert_eq!((bound.grants.len(), bound.previous[0].grants.clone()), (0, vec!["kv".to_owned()]));
    assert_eq!(operator.roll_back(RATE, "").unwrap().grants, ["kv"]);
    // In the tenant's own chain it is the tenant's to grant.
    assert_eq!(load(&host.tenant("acme"), header(OWN, "2")).unwrap().grants, ["kv"]);
}

#[test]
fn requests_are_counted_across_restarts_and_only_those_that_were_decided() {
    let mut host = Host::start();
    load(&host.operator(), header(RATE, "2")).unwrap();
    let acme = host.tenant("acme");
    acme.register("one", small()).unwrap();
    // What is only tried is not counted, nor what fails before policy is asked.
    let vm = v1::VirtualMachine { name: acme.name("tried"), spec: Some(small()), ..Default::default() };
    let tried =
        v1::RegisterVirtualMachineRequest { virtual_machine: Some(vm), validate_only: true, ..Default::default() };
    wait(acme.vms.clone().register_virtual_machine(tried)).unwrap();
    assert_eq!(acme.register("one", small()).unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(count(&host, "acme"), 1);
    host.kill_daemon();
    host.start_daemon();
    let acme = host.tenant("acme");
    acme.register("two", small()).unwrap();
    let denied = acme.register("three", small()).unwrap_err();
    assert_eq!((denied.code(), code(&denied).as_str()), (Code::PermissionDenied, "rate.requests"), "{denied:?}");
    assert_eq!((count(&host, "acme"), count(&host, "globex")), (3, 0));
    host.tenant("globex").register("one", small()).unwrap();
    assert_eq!(count(&host, "globex"), 1);

    // The record has what was read and written; a replay has nothing else to go by.
    let newest = acme.decisions(v1::ListDecisionsRequest::default()).unwrap().remove(0);
    let link = newest.links.iter().find(|link| link.plugin == "rate").unwrap();
    let (read, wrote): (serde_json::Value, serde_json::Value) =
        (serde_json::from_str(&link.kv_read).unwrap(), serde_json::from_str(&link.kv_wrote).unwrap());
    assert_eq!((&read["count"], &wrote["count"]), (&"2".into(), &"3".into()));
    assert!(newest.links.iter().all(|link| link.plugin == "rate" || link.kv_read.is_empty()));
    let (status, text) = ostler(&host, "operator-admin", &["plugin", "replay", "--name", "rate", "--operator"]);
    assert!(status == Some(0) && text.contains("0 of 4 change"), "{text}");
    let number = newest.name.rsplit('/').next().unwrap();
    let (_, text) = ostler(&host, "operator-admin", &["decision", "get", &format!("acme/{number}")]);
    assert!(text.contains("wrote {\"count\":\"3\""), "{text}");
    assert!(host.tenant("acme").verify("").unwrap().iter().all(|chain| chain.fault.is_empty()));
}

#[test]
fn it_is_shown_to_its_owner_cleared_and_gone_with_the_plugin() {
    let host = Host::start();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    load(&operator, header(RATE, "2")).unwrap();
    load(&acme, header(OWN, "9")).unwrap();
    for name in ["one", "two"] {
        acme.register(name, small()).unwrap();
    }
    assert_eq!(remembered(&acme, OWN, "").unwrap()[0], ("count".to_owned(), "2".to_owned()));
    assert_eq!(remembered(&operator, OWN, "tenants/acme").unwrap().len(), 2);
    // The operator's plugin is the operator's; a tenant's knows no other tenant; and which tenant must be said.
    assert_eq!(remembered(&acme, RATE, "tenants/acme").unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(remembered(&operator, OWN, "tenants/globex").unwrap_err().code(), Code::NotFound);
    assert_eq!(remembered(&host.tenant("globex"), OWN, "").unwrap_err().code(), Code::PermissionDenied);
    for tenant in ["", "operator", "tenants/-"] {
        assert_eq!(remembered(&operator, RATE, tenant).unwrap_err().code(), Code::InvalidArgument, "{tenant}");
    }
    let none = remembered(&operator, "operator/plugins/none", "tenants/acme").unwrap_err();
    assert_eq!(facts(&none).reason, "PLUGIN_NOT_FOUND");

    let about = ["--operator", "--about", "acme"];
    let kv = |what: &str, more: &[&str]| {
        ostler(&host, "operator-admin", &[&["plugin", "kv", what, "rate"], &about[..], more].concat())
    };
    let (status, text) = kv("list", &[]);
    assert!(status == Some(0) && text.contains("count   \"2\""), "{text}");
    assert_eq!(ostler(&host, "operator-admin", &["plugin", "kv", "list", "rate", "--operator"]).0, Some(2));
    assert_eq!(code(&acme.register("three", small()).unwrap_err()), "rate.requests");
    assert_eq!((kv("clear", &["--validate-only"]).0, count(&host, "acme")), (Some(0), 3));
    assert_eq!((kv("clear", &[]).0, count(&host, "acme")), (Some(0), 0));
    acme.register("three", small()).unwrap();
    assert_eq!(remembered(&acme, OWN, "").unwrap()[0].1, "3", "who was not asked did not count");

    operator.unload(RATE, false).unwrap();
    assert_eq!(remembered(&operator, RATE, "tenants/acme").unwrap_err().code(), Code::NotFound);
    load(&operator, header(RATE, "1")).unwrap();
    assert_eq!(count(&host, "acme"), 0);
    assert_eq!(host.operator().check_host().unwrap(), []);
}

#[test]
fn of_requests_of_many_clients_at_once_none_is_forgotten() {
    let host = Host::start();
    load(&host.operator(), header(RATE, "1000")).unwrap();
    std::thread::scope(|scope| {
        for client in 0..4 {
            let host = &host;
            scope.spawn(move || {
                let caller = host.tenant(if client == 3 { "globex" } else { "acme" });
                (0..10).for_each(|at| drop(caller.register(&format!("vm-{client}-{at}"), small()).unwrap()));
            });
        }
    });
    assert_eq!((count(&host, "acme"), count(&host, "globex")), (30, 10));
}
