//! VMs from a file: what differs is shown and checked, then made so, once. Needs no guest.

use std::io::Write;
use std::process::Stdio;

use crate::support::{Host, assets, small};
use ostler::api::v1::virtual_machine::State;
use serde_json::Value;

/// `ostler apply -f -` with this file: exit code, stdout, stderr.
fn apply(host: &Host, identity: &str, file: &str, arguments: &[&str]) -> (i32, String, String) {
    let mut command = host.command(identity);
    command.args(["apply", "-f", "-"]).args(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(file.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// A table for one VM.
fn vm(name: &str, rest: &str) -> String {
    format!("[[vm]]\nname = \"{name}\"\nkernel = \"{}\"\n{rest}\n", assets::PLACEHOLDER)
}

#[test]
fn a_file_is_shown_asked_about_applied_and_then_there_is_nothing_left_to_do() {
    let host = Host::start();
    let acme = host.tenant("acme");
    host.add_volume("acme", "data.img", &[0; 1 << 20]);
    host.add_volume("acme", "more.img", &[0; 1 << 20]);
    let first = vm("web", "vcpus = 2\nmemory = \"1G\"\ndisk = [\"id=data,volume=data.img\"]\nnic = [\"id=eth0\"]")
        + &vm("db", "state = \"stopped\"");
    let apply = |file: &str, arguments: &[&str]| apply(&host, "tenant-acme", file, arguments);

    let (code, shown, _) = apply(&first, &["--dry-run"]);
    assert_eq!(code, 0);
    let register = "+  acme/web  register 2 vCPUs, 1GiB, placeholder, disk data (data.img), nic eth0";
    let register = register.replace("placeholder", assets::PLACEHOLDER);
    assert!(shown.contains(&register) && shown.ends_with("nothing was changed\n"), "{shown}");
    let (code, _, error) = apply(&first, &[]);
    assert!(code == 2 && error.contains("hint: --yes"), "{error}");
    assert!(acme.list("").unwrap().is_empty());

    let (code, shown, error) = apply(&first, &["--yes"]);
    assert_eq!((code, error.as_str()), (0, ""), "{shown}");
    assert_eq!(acme.list("").unwrap().len(), 2);
    let before = acme.list("").unwrap();
    let (code, shown, _) = apply(&first, &["--yes"]);
    assert_eq!((code, shown.as_str()), (0, "nothing is to be changed\n"));
    // Needs nobody's consent either.
    assert_eq!(apply(&first, &[]).0, 0);
    assert_eq!(acme.list("").unwrap(), before);

    let second = vm(
        "web",
        "vcpus = 2\nmemory = \"1G\"\ndisk = [\"id=data,volume=data.img,iops=500\", \"id=more,volume=more.img,ro\"]",
    );
    let (code, json, error) = apply(&second, &["--yes", "--prune", "-o", "json"]);
    assert_eq!((code, error.as_str()), (0, ""), "{json}");
    let report: Value = serde_json::from_str(&json).unwrap();
    let changes: Vec<_> = report["changes"].as_array().unwrap().iter().map(|change| change["action"].clone()).collect();
    assert_eq!(changes, ["destroy", "detach", "limit", "attach"]);
    assert_eq!(report["applied"], true);
    let spec = acme.get("web").unwrap().spec.unwrap();
    assert_eq!((spec.disks.len(), spec.nics.len()), (2, 0));
    assert_eq!(spec.disks[0].limits.unwrap().operations_per_second, 500);
    assert_eq!(acme.list("").unwrap().len(), 1);
    assert_eq!(apply(&second, &["--prune"]).1, "nothing is to be changed\n");
}

#[test]
fn what_cannot_be_done_is_told_before_anything_is() {
    let host = Host::without_policy();
    let settings = [("max-vcpus", "4")];
    host.operator().load("operator/plugins/admission", &assets::plugin("admission"), &settings).unwrap();
    let acme = host.tenant("acme");
    acme.register("web", small()).unwrap();
    let apply = |file: &str| apply(&host, "tenant-acme", file, &["--yes"]);
    // Fixed at registration.
    let (code, shown, error) = apply(&(vm("new", "") + &vm("web", "vcpus = 2\nmemory = \"128M\"")));
    assert!(code == 1 && error.contains("acme/web cannot be made as the file says"), "{error}");
    assert!(shown.contains("!  acme/web  vcpus 1 -> 2: cannot be changed in place"), "{shown}");
    // Denied by policy, absent on the host: found while nothing was changed yet.
    let (code, shown, error) = apply(&(vm("new", "") + &vm("big", "vcpus = 8")));
    assert!(code == 5 && error.contains("limit.vcpus") && shown.contains("!  acme/big"), "{shown}{error}");
    let (code, _, error) = apply(&(vm("new", "") + &vm("web", "memory = \"128M\"\ndisk = \"id=a,volume=absent.img\"")));
    assert!(code == 2 && error.contains("absent.img"), "{error}");
    assert_eq!(acme.list("").unwrap().len(), 1);
    let (code, _, error) = apply(&vm("new", "vcpu = 1"));
    assert!(code == 2 && error.contains("new: vcpu: there is no such key"), "{error}");
    let (code, _, error) = apply(&vm("globex/web", ""));
    assert!(code == 1 && error.contains("NOT_ALLOWED"), "{error}");
}

#[test]
fn a_state_that_is_not_reached_fails_and_is_tried_again() {
    let host = Host::start();
    let acme = host.tenant("acme");
    let file = vm("web", "state = \"running\"");
    // Its kernel is none.
    for begin in ["+  acme/web  register", "~  acme/web  start"] {
        let (code, shown, error) = apply(&host, "tenant-acme", &file, &["--yes"]);
        assert!(code == 1 && error.contains("acme/web: start: ") && shown.starts_with(begin), "{shown}{error}");
        assert_eq!(acme.get("web").unwrap().state(), State::Failed);
    }
    // An operator's file names tenants; only theirs is pruned.
    host.tenant("globex").register("other", small()).unwrap();
    let (code, shown, error) = apply(&host, "operator-admin", &vm("acme/db", ""), &["--yes", "--prune"]);
    assert_eq!((code, error.as_str()), (0, ""), "{shown}");
    let names: Vec<_> = host.operator().list("").unwrap().into_iter().map(|vm| vm.name).collect();
    assert_eq!(names, ["tenants/acme/vms/db", "tenants/globex/vms/other"]);
}
