//! Policy about where VMs run, as far as it goes without a guest: asked at a start, on record, explained, and no more than
//! before where nobody has a say. A start fails later, for want of a kernel.

use crate::support::assets::plugin;
use crate::support::client::wait;
use crate::support::{Caller, Host, facts, small};
use ostler::api::v1;
use tonic::{Code, Status};

const PLACEMENT: &str = "operator/plugins/placement";
/// More than any host has.
const ALL: &[(&str, &str)] = &[("reserve-mib", "1000000000")];

fn decisions(caller: &Caller) -> Vec<v1::DecisionRecord> {
    caller.decisions(v1::ListDecisionsRequest { hook: "place".into(), ..Default::default() }).unwrap()
}

fn try_start(caller: &Caller) -> Result<v1::VirtualMachine, Status> {
    let start = v1::StartVirtualMachineRequest { name: caller.name("web"), validate_only: true, ..Default::default() };
    wait(caller.vms.clone().start_virtual_machine(start)).map(tonic::Response::into_inner)
}

fn operator_s(host: &Host, name: &str, settings: &[(&str, &str)]) {
    host.operator().load(name, &plugin("placement"), settings).unwrap();
}

/// The number of a node that this machine has.
fn node() -> u32 {
    let list = std::fs::read_to_string("/sys/devices/system/node/has_memory").unwrap();
    list.trim().split(['-', ',']).next().unwrap().parse().unwrap()
}

#[test]
fn where_nobody_has_a_say_a_start_asks_nobody() {
    let host = Host::start();
    let acme = host.tenant("acme");
    acme.register("web", small()).unwrap();
    assert_eq!(try_start(&acme).unwrap().placement, None);
    assert!(!acme.start("web").unwrap_err().message().contains("NUMA"));
    assert!(decisions(&acme).is_empty());
}

#[test]
fn a_start_is_placed_and_who_asks_beforehand_is_told_where_and_changes_nothing() {
    let host = Host::start();
    let acme = host.tenant("acme");
    let registered = acme.register("web", small()).unwrap();
    operator_s(&host, PLACEMENT, &[]);
    let tried = try_start(&acme).unwrap();
    let placement = tried.placement.unwrap();
    assert!(!placement.host_cpus.is_empty() && placement.decision.is_empty(), "{placement:?}");
    assert_eq!((tried.etag, decisions(&acme).len()), (registered.etag, 0));

    acme.start("web").unwrap_err();
    let [decision] = &decisions(&acme)[..] else { panic!("not one decision") };
    assert_eq!((decision.hook.as_str(), decision.subject.as_str()), ("place", "vms/web"));
    let table = acme.explain(&decision.name).unwrap();
    assert!(table.rows.iter().any(|row| row.candidate == format!("node {}", placement.numa_node)), "{table:?}");
    assert_eq!(table.plugins, ["placement"]);
    // The run did not come to be, and holds no place.
    assert_eq!(acme.get("web").unwrap().placement, None);
}

#[test]
fn a_denial_refuses_the_start_and_a_tenant_s_plugin_narrows_only() {
    let host = Host::start();
    let acme = host.tenant("acme");
    acme.register("web", small()).unwrap();
    operator_s(&host, PLACEMENT, ALL);
    for refused in [try_start(&acme).unwrap_err(), acme.start("web").unwrap_err()] {
        let refused = facts(&refused);
        assert_eq!(refused.code, Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message.contains("policy.no-candidate") && refused.message.contains("memory."), "{refused:?}");
    }
    operator_s(&host, PLACEMENT, &[]);
    acme.load("tenants/acme/plugins/own", &plugin("placement"), ALL).unwrap();
    assert!(try_start(&acme).unwrap_err().message().contains("(policy.no-candidate)"));
    // Without the operator's it would be alone, and nobody who may choose. It is no last plugin of which anything depends.
    host.operator().unload(PLACEMENT, false).unwrap();
    assert!(try_start(&acme).unwrap_err().message().contains("(policy.no-opinion)"));
    acme.unload("tenants/acme/plugins/own", false).unwrap();
    assert_eq!(try_start(&acme).unwrap().placement, None);
}

#[test]
fn an_answer_beyond_the_question_fails_closed_and_is_on_record_with_its_code() {
    let host = Host::start();
    let acme = host.tenant("acme");
    acme.register("web", small()).unwrap();
    operator_s(&host, PLACEMENT, &[]);
    for (name, told) in [("place-long", "1025 marks for "), ("place-million", "too much data is being copied")] {
        acme.load("tenants/acme/plugins/own", &plugin(&format!("hostile/{name}")), &[]).unwrap();
        let refused = facts(&acme.start("web").unwrap_err());
        assert!(refused.message.contains("(policy.bad-answer)"), "{name}: {refused:?}");
        let record = decisions(&acme).into_iter().next().unwrap();
        assert_eq!((record.allowed, record.code.as_str(), record.plugin.as_str()), (false, "policy.bad-answer", "own"));
        let [good, own] = &record.links[..] else { panic!("{name}: {record:?}") };
        assert_eq!((good.plugin.as_str(), good.verdict.as_str()), ("placement", "rank"), "{name}");
        assert_eq!((own.plugin.as_str(), own.verdict.as_str()), ("own", "policy.bad-answer"), "{name}: {own:?}");
        assert!(own.detail.contains(told) && own.detail.len() < 700, "{name}: {own:?}");
        assert_eq!(decisions(&acme).len(), if name == "place-long" { 1 } else { 2 });
    }
    acme.unload("tenants/acme/plugins/own", false).unwrap();
    assert!(try_start(&acme).unwrap().placement.is_some());
}

#[test]
fn a_vm_that_names_its_node_is_not_asked_about() {
    let host = Host::start();
    let operator = host.operator();
    operator_s(&host, PLACEMENT, ALL);
    let memory = Some(v1::MemorySpec { numa_node: Some(node()), ..Default::default() });
    operator.register("tenants/acme/vms/web", v1::VirtualMachineSpec { memory, ..small() }).unwrap();
    let acme = host.tenant("acme");
    assert_eq!(try_start(&acme).unwrap().placement, None);
    acme.start("web").unwrap_err();
    assert!(decisions(&acme).is_empty());
}
