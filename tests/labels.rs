//! Labels of VMs, and the plugin that decides by them and by images. Needs no guest.

use serde_json::{Value, json};

use crate::support::assets::{PLACEHOLDER, plugin};
use crate::support::client::wait;
use crate::support::desk::{Desk, run};
use crate::support::{Caller, Host, facts, small};
use ostler::api::v1;
use tonic::{Code, Status};

const ADMISSION: &str = "operator/plugins/admission";

fn labelled(labels: &[(&str, &str)]) -> v1::VirtualMachineSpec {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    v1::VirtualMachineSpec { labels, ..small() }
}

fn disk(id: &str, volume: &str) -> v1::DiskSpec {
    v1::DiskSpec { id: id.into(), volume: volume.into(), ..Default::default() }
}

fn code(status: &Status) -> String {
    facts(status).metadata.get("code").cloned().unwrap_or_default()
}

fn newest(caller: &Caller) -> v1::DecisionRecord {
    caller.decisions(v1::ListDecisionsRequest::default()).unwrap().remove(0)
}

/// A host whose operator wants an owner and a tier of each VM, this kernel, and volumes of one directory.
fn strict() -> Host {
    let host = Host::without_policy();
    let settings =
        [("allowed-images", PLACEHOLDER), ("allowed-volumes", "base/"), ("required-labels", "owner,tier=prod|test")];
    host.operator().load(ADMISSION, &plugin("admission"), &settings).unwrap();
    std::fs::create_dir(host.volume("acme", "base")).unwrap();
    for volume in ["base/a.img", "base/b.img"] {
        host.add_volume("acme", volume, &[0; 4096]);
    }
    host
}

#[test]
fn labels_are_kept_as_they_were_registered() {
    let mut host = Host::start();
    let acme = host.tenant("acme");
    let labels = [("owner", "web team"), ("example.org/tier", "prod"), ("empty", "")];
    let registered = acme.register("web", labelled(&labels)).unwrap().spec.unwrap();
    assert_eq!(registered.labels, labelled(&labels).labels);
    acme.register("db", labelled(&[("owner", "db")])).unwrap();
    host.kill_daemon();
    host.start_daemon();
    let acme = host.tenant("acme");
    assert_eq!(acme.get("web").unwrap().spec.unwrap(), registered);

    let listed = |filter: &str| {
        let request = v1::ListVirtualMachinesRequest { filter: filter.into(), ..Default::default() };
        let answer = wait(acme.vms.clone().list_virtual_machines(request)).unwrap().into_inner();
        answer.virtual_machines.into_iter().map(|vm| vm.name).collect::<Vec<_>>()
    };
    assert_eq!(listed(r#"labels.owner = "web team""#), ["tenants/acme/vms/web"]);
    assert_eq!(listed("labels.example.org/tier != test"), ["tenants/acme/vms/web"]);
    assert_eq!(listed("labels.owner : b"), ["tenants/acme/vms/db", "tenants/acme/vms/web"]);
    assert_eq!(listed("labels.other : b"), [""; 0]);
}

#[test]
fn what_is_no_label_is_a_bad_field() {
    let host = Host::start();
    let acme = host.tenant("acme");
    for (key, value) in [("Owner", "x"), ("", "x"), ("a b", "x"), ("owner", "a\nb"), ("owner", &"x".repeat(254))] {
        let refused = facts(&acme.register("web", labelled(&[(key, value)])).unwrap_err());
        assert_eq!(
            (refused.code, refused.reason.as_str()),
            (Code::InvalidArgument, "BAD_FIELD"),
            "{key:?}: {refused:?}"
        );
        assert_eq!(refused.metadata.get("field").map(String::as_str), Some("spec.labels"), "{refused:?}");
    }
    let many: Vec<_> = (0..33).map(|at| format!("k{at}")).collect();
    let many: Vec<_> = many.iter().map(|key| (key.as_str(), "")).collect();
    assert_eq!(acme.register("web", labelled(&many)).unwrap_err().code(), Code::InvalidArgument);
    acme.register("web", labelled(&many[..32])).unwrap();
    // Who is refused has asked nobody.
    assert_eq!(acme.decisions(v1::ListDecisionsRequest::default()).unwrap().len(), 1);
}

#[test]
fn the_command_line_and_a_file_give_them_and_show_them() {
    let host = Host::start();
    let ostler = |arguments: &[&str]| run(host.command("tenant-acme").args(arguments));
    let register = ["vm", "register", "web", "--kernel", PLACEHOLDER, "--memory", "128M"];
    let given = ostler(&[&register[..], &["--label", "owner=web", "--label", "tier="]].concat());
    assert_eq!(given.code, Some(0), "{}{}", given.out, given.error);
    let shown = ostler(&["vm", "get", "web", "-o", "json"]).json();
    assert_eq!(shown["spec"]["labels"], json!({"owner": "web", "tier": ""}));
    assert!(ostler(&["vm", "get", "web"]).out.contains("owner=web"));
    let listed = ostler(&["vm", "list", "-o", "json", "--filter", "labels.owner = web"]).json();
    assert_eq!(listed["virtual_machines"][0]["spec"]["labels"]["owner"], "web");
    let twice = ostler(&[&register[..], &["--label", "a=1", "--label", "a=2"]].concat());
    assert!(twice.code != Some(0) && twice.error.contains("\"a\" is given twice"), "{}", twice.error);

    let desk = Desk::new();
    let apply = |label: &str| {
        let text = format!(
            "[[vm]]\nname = \"web\"\nkernel = \"{PLACEHOLDER}\"\nmemory = \"128M\"\nlabel = [{label}, \"tier=\"]\n"
        );
        let file = desk.write("vms.toml", text.as_bytes());
        ostler(&["apply", "--yes", "-f", file.to_str().unwrap()])
    };
    let same = apply("\"owner=web\"");
    assert!(same.code == Some(0) && !same.out.contains('!'), "{}{}", same.out, same.error);
    let other = apply("\"owner=db\"");
    assert!(
        other.code != Some(0) && other.out.contains("label owner \"web\" -> \"db\""),
        "{}{}",
        other.out,
        other.error
    );
}

#[test]
fn a_vm_is_admitted_by_its_images_and_its_labels() {
    let host = strict();
    host.add_volume("acme", "mine.img", &[0; 4096]);
    let acme = host.tenant("acme");
    let good = || labelled(&[("owner", "web"), ("tier", "prod")]);
    let denied = |spec| {
        let denied = acme.register("web", spec).unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied, "{denied:?}");
        assert_eq!(acme.get("web").unwrap_err().code(), Code::NotFound);
        code(&denied)
    };
    assert_eq!(denied(labelled(&[("tier", "prod")])), "label.missing");
    assert_eq!(denied(labelled(&[("owner", "web"), ("tier", "lab")])), "label.not-allowed");
    // Policy is asked whether or not there is such a file.
    let boot = v1::BootSpec { kernel: "other/vmlinux".into(), ..Default::default() };
    assert_eq!(denied(v1::VirtualMachineSpec { boot: Some(boot), ..good() }), "image.not-allowed");
    let boot = v1::BootSpec { initrd: "other/initrd".into(), ..good().boot.unwrap() };
    assert_eq!(denied(v1::VirtualMachineSpec { boot: Some(boot), ..good() }), "image.not-allowed");
    assert_eq!(
        denied(v1::VirtualMachineSpec { disks: vec![disk("root", "mine.img")], ..good() }),
        "volume.not-allowed"
    );
    // No path leaves a directory that is allowed: it is refused before anybody is asked.
    let sly = v1::VirtualMachineSpec { disks: vec![disk("root", "base/../mine.img")], ..good() };
    let refused = acme.register("web", sly).unwrap_err();
    assert_eq!((refused.code(), facts(&refused).reason.as_str()), (Code::InvalidArgument, "BAD_FIELD"));

    acme.register("web", v1::VirtualMachineSpec { disks: vec![disk("root", "base/a.img")], ..good() }).unwrap();
    let attach = |volume| acme.attach("web", v1::attach_device_request::Device::Disk(disk("data", volume)));
    assert_eq!(code(&attach("mine.img").unwrap_err()), "volume.not-allowed");
    attach("base/b.img").unwrap();
}

#[test]
fn the_record_says_what_the_plugin_saw_and_a_replay_goes_by_that() {
    let host = strict();
    let acme = host.tenant("acme");
    let spec = labelled(&[("owner", "web"), ("tier", "test")]);
    acme.register("web", v1::VirtualMachineSpec { disks: vec![disk("root", "base/a.img")], ..spec }).unwrap();
    let record = newest(&acme);
    let question: Value = serde_json::from_str(&record.question).unwrap();
    assert_eq!(question["labels"], json!({"owner": "web", "tier": "test"}));
    let images = json!([{"kernel": PLACEHOLDER}, {"disk": {"id": "root", "volume": "base/a.img"}}]);
    assert_eq!(question["images"], images);
    let number = record.name.rsplit('/').next().unwrap().to_owned();
    let shown = run(host.command("tenant-acme").args(["decision", "get", &number, "-o", "json"]));
    assert!(shown.out.contains("base/a.img"), "{}{}", shown.out, shown.error);

    // A device that comes is asked about with what the VM is, without the device; the VM keeps its labels.
    acme.attach("web", v1::attach_device_request::Device::Disk(disk("data", "base/b.img"))).unwrap();
    let question: Value = serde_json::from_str(&newest(&acme).question).unwrap();
    assert_eq!((&question["vm"]["labels"]["owner"], &question["vm"]["images"]), (&json!("web"), &images));
    assert_eq!(acme.get("web").unwrap().spec.unwrap().labels["tier"], "test");

    acme.register("bad", labelled(&[])).unwrap_err();
    let replayed = run(host.command("operator-admin").args(["plugin", "replay", "--name", "admission", "--operator"]));
    assert!(replayed.code == Some(0) && replayed.out.contains("0 of 3 change"), "{}{}", replayed.out, replayed.error);

    // A fixture that is made of the decision comes out the same, and one that says nothing of labels is not taken for a VM
    // without them.
    let desk = Desk::new();
    let made = run(host.command("tenant-acme").args(["plugin", "fixture", &number]));
    let mut fixture: Value = serde_json::from_str(&made.out).unwrap_or_else(|error| panic!("{error}: {}", made.error));
    let dir = desk.fixture("f/web.json", &fixture).parent().unwrap().to_owned();
    let tested = desk.ostler(&[&"test", &desk.plugin("admission"), &dir]);
    assert!(tested.code == Some(0) && tested.out.contains("1 passed"), "{}{}", tested.out, tested.error);
    assert!(fixture["question"].as_object_mut().unwrap().remove("labels").is_some());
    let dir = desk.fixture("g/web.json", &fixture).parent().unwrap().to_owned();
    let tested = desk.ostler(&[&"test", &desk.plugin("admission"), &dir]);
    assert!(tested.code != Some(0), "{}{}", tested.out, tested.error);
    let said = format!("{}{}", tested.out, tested.error);
    assert!(said.contains("does not say which labels"), "{said}");
}
