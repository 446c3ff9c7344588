//! Plugins that see what the tenant has: its own VMs and limits, of the decision's moment, on record with it. Needs no guest.

use serde_json::{Value, json};

use crate::support::assets::plugin;
use crate::support::client::wait;
use crate::support::desk::{Desk, run};
use crate::support::{Caller, Host, facts, small};
use ostler::api::v1;
use tonic::{Code, Status};

const FAMILY: &str = "operator/plugins/family";

fn header(max_vms: &str, grants: &[&str]) -> v1::load_plugin_request::Header {
    v1::load_plugin_request::Header {
        name: FAMILY.to_owned(),
        settings: [("max-vms".to_owned(), max_vms.to_owned())].into(),
        grants: grants.iter().map(|grant| (*grant).to_owned()).collect(),
        ..Default::default()
    }
}

fn load(caller: &Caller, header: v1::load_plugin_request::Header) -> Result<v1::Plugin, Status> {
    load_component(caller, header, &plugin("family"))
}

fn load_component(
    caller: &Caller,
    header: v1::load_plugin_request::Header,
    component: &[u8],
) -> Result<v1::Plugin, Status> {
    use v1::load_plugin_request::Part;
    let chunks = component.chunks(64 << 10).map(|chunk| Part::Chunk(chunk.to_vec()));
    caller.load_parts(std::iter::once(Part::Header(header)).chain(chunks).collect())
}

fn code(status: &Status) -> String {
    facts(status).metadata.get("code").cloned().unwrap_or_default()
}

/// What the plugin saw in the newest decision, and the decision's number.
fn newest(caller: &Caller) -> (Value, String) {
    let newest = caller.decisions(v1::ListDecisionsRequest::default()).unwrap().remove(0);
    let link = newest.links.iter().find(|link| link.plugin == "family").unwrap();
    assert!(newest.links.iter().all(|link| link.plugin == "family" || link.inventory.is_empty()));
    (serde_json::from_str(&link.inventory).unwrap(), newest.name.rsplit('/').next().unwrap().to_owned())
}

fn names(seen: &Value) -> Vec<&str> {
    seen["vms"].as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn it_is_granted_or_the_plugin_is_refused() {
    let host = Host::start();
    let operator = host.operator();
    for grants in [&[][..], &["kv"]] {
        let refused = load(&operator, header("2", grants)).unwrap_err();
        assert_eq!((facts(&refused).code, code(&refused).as_str()), (Code::InvalidArgument, "plugin.not-granted"));
        assert!(refused.message().contains("--grant inventory"), "{refused:?}");
    }
    assert_eq!(load(&operator, header("2", &["inventory"])).unwrap().grants, ["inventory"]);
    let bound = ["plugin", "list", "--operator"];
    let shown = run(host.command("operator-admin").args(bound));
    assert!(shown.code == Some(0) && shown.out.contains("inventory"), "{}{}", shown.out, shown.error);
}

#[test]
fn it_sees_the_tenants_own_vms_as_they_are_and_the_record_says_which() {
    let mut host = Host::start_with_tenants("[defaults]\nvms = 9\n[tenants.acme]\nvms = 4\n");
    load(&host.operator(), header("2", &["inventory"])).unwrap();
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    acme.register("web", small()).unwrap();
    let (seen, _) = newest(&acme);
    assert_eq!((names(&seen), &seen["rest"]), (vec![], &json!(0)), "the VM in question is not there yet: {seen}");
    acme.register("db-1", small()).unwrap();
    acme.register("web-1", small()).unwrap();
    // Another tenant has as many of that family, and is not seen.
    for name in ["web-7", "web-8"] {
        globex.register(name, small()).unwrap();
    }
    let (seen, _) = newest(&globex);
    assert_eq!((names(&seen), &seen["usage"]["vms"]), (vec!["web-7"], &json!({"used": 1, "limit": 9})));
    host.kill_daemon();
    host.start_daemon();
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    let denied = acme.register("web-2", small()).unwrap_err();
    assert_eq!((denied.code(), code(&denied).as_str()), (Code::PermissionDenied, "family.vms"), "{denied:?}");
    let (seen, number) = newest(&acme);
    assert_eq!(names(&seen), ["db-1", "web", "web-1"]);
    let web = json!({
        "state": "registered", "vcpus": 1, "memory_mib": 128, "numa_node": null, "disks": 0, "nics": 0, "vfs": 0, "nvmes": 0
    });
    assert_eq!(seen["vms"]["web"], web);
    assert_eq!(seen["usage"]["memory_mib"], json!({"used": 384, "limit": null}));
    assert_eq!(seen["usage"]["vms"], json!({"used": 3, "limit": 4}));
    // Of the same state the same revision, of a later one a larger one.
    assert_eq!(seen["revision"], json!(5));
    assert_eq!(globex.register("web-9", small()).unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(newest(&globex).0["revision"], json!(5));
    acme.destroy("web", false).unwrap();
    acme.register("web-2", small()).unwrap();
    let (seen, _) = newest(&acme);
    assert_eq!(names(&seen), ["db-1", "web-1"]);
    assert!(seen["revision"].as_u64() > Some(5), "{seen}");

    let shown = run(host.command("tenant-acme").args(["decision", "get", &number]));
    assert!(shown.out.contains("looked at 3 VMs, and not at 0, of revision 5"), "{}{}", shown.out, shown.error);
    let replayed = run(host.command("operator-admin").args(["plugin", "replay", "--name", "family", "--operator"]));
    assert!(replayed.code == Some(0) && replayed.out.contains("0 of 8 change"), "{}{}", replayed.out, replayed.error);
    assert!(acme.verify("").unwrap().iter().all(|chain| chain.fault.is_empty()));

    // A fixture that is made of the decision has what was there, and comes out the same.
    let desk = Desk::new();
    let made = run(host.command("tenant-acme").args(["plugin", "fixture", &number, "--name", "family"]));
    let fixture: Value = serde_json::from_str(&made.out).unwrap_or_else(|error| panic!("{error}: {}", made.error));
    assert_eq!(fixture["inventory"]["vms"]["web"], web);
    let dir = desk.fixture("f/denied.json", &fixture).parent().unwrap().to_owned();
    let tested = desk.ostler(&[&"test", &desk.plugin("family"), &dir]);
    assert!(tested.code == Some(0) && tested.out.contains("1 passed"), "{}{}", tested.out, tested.error);
}

#[test]
fn at_each_hook_the_vm_in_question_is_as_it_is_on_record() {
    let host = Host::start();
    host.add_volume("acme", "data.img", &[0; 4096]);
    let header = v1::load_plugin_request::Header {
        name: "tenants/acme/plugins/family".to_owned(),
        grants: vec!["inventory".to_owned()],
        ..Default::default()
    };
    // What its own plugin may see is the tenant's to say.
    let acme = host.tenant("acme");
    load_component(&acme, header, &plugin("hostile/inventory-devices")).unwrap();
    acme.register("web", small()).unwrap();
    let disk = v1::DiskSpec { id: "data".to_owned(), volume: "data.img".to_owned(), ..Default::default() };
    acme.attach("web", v1::attach_device_request::Device::Disk(disk)).unwrap();
    let (seen, _) = newest(&acme);
    assert_eq!((&seen["vms"]["web"]["disks"], &seen["usage"]["disks"]["used"]), (&json!(0), &json!(0)), "{seen}");
    acme.detach("web", "data", None, false).unwrap();
    let (seen, _) = newest(&acme);
    assert_eq!((&seen["vms"]["web"]["disks"], &seen["usage"]["disks"]["used"]), (&json!(1), &json!(1)), "{seen}");
}

#[test]
fn of_registrations_at_once_no_two_see_the_same_last_place() {
    let host = Host::start();
    load(&host.operator(), header("5", &["inventory"])).unwrap();
    let admitted: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let host = &host;
                scope.spawn(move || {
                    let caller = host.tenant("acme");
                    (0..4).filter(|at| caller.register(&format!("web-{client}{at}"), small()).is_ok()).count()
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert_eq!(admitted, 5);
    // What is only tried sees the same.
    let acme = host.tenant("acme");
    let vm = v1::VirtualMachine { name: acme.name("web-99"), spec: Some(small()), ..Default::default() };
    let tried =
        v1::RegisterVirtualMachineRequest { virtual_machine: Some(vm), validate_only: true, ..Default::default() };
    let tried = wait(acme.vms.clone().register_virtual_machine(tried)).unwrap_err();
    assert_eq!(code(&tried), "family.vms");
}
