//! Who changed what is written down. Needs no guest.

use std::fs;

use crate::support::assets::plugin;
use crate::support::{Host, small};

/// Caller, method, resource, outcome and reason of each line.
fn lines(host: &Host) -> Vec<[String; 5]> {
    let text = fs::read_to_string(host.data().join("audit.log")).unwrap();
    let line = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["time"].as_str().is_some_and(|time| time.ends_with('Z')) && line["took_us"].is_u64(), "{line}");
        ["caller", "method", "resource", "outcome", "reason"]
            .map(|key| line[key].as_str().unwrap_or_default().to_owned())
    };
    text.lines().map(line).collect()
}

#[test]
fn every_change_and_every_attempt_leaves_a_line_with_its_outcome() {
    let mut host = Host::without_policy();
    let (acme, operator) = (host.tenant("acme"), host.operator());
    acme.register("web", small()).unwrap_err();
    operator.load("operator/plugins/admission", &plugin("admission"), &[]).unwrap();
    acme.load("operator/plugins/mine", &plugin("admission"), &[]).unwrap_err();
    acme.register("web", small()).unwrap();
    acme.register("web", small()).unwrap_err();
    acme.destroy("tenants/globex/vms/web", true).unwrap_err();
    let expected: Vec<[&str; 5]> = vec![
        ["tenant/acme", "RegisterVirtualMachine", "tenants/acme/vms/web", "PERMISSION_DENIED", "POLICY_DENIED"],
        ["operator/admin", "LoadPlugin", "operator/plugins/admission", "OK", ""],
        ["tenant/acme", "LoadPlugin", "operator/plugins/mine", "PERMISSION_DENIED", "NOT_ALLOWED"],
        ["tenant/acme", "RegisterVirtualMachine", "tenants/acme/vms/web", "OK", ""],
        ["tenant/acme", "RegisterVirtualMachine", "tenants/acme/vms/web", "ALREADY_EXISTS", "VM_EXISTS"],
        ["tenant/acme", "DestroyVirtualMachine", "tenants/globex/vms/web", "NOT_FOUND", "VM_NOT_FOUND"],
    ];
    assert_eq!(lines(&host), expected);

    // Reading leaves none; and neither does what cannot be read.
    acme.get("web").unwrap();
    acme.list("").unwrap();
    acme.start("not/a/name").unwrap_err();
    assert_eq!(lines(&host).len(), expected.len());

    // A new daemon goes on with the log.
    host.kill_daemon();
    host.start_daemon();
    host.tenant("acme").destroy("web", false).unwrap();
    let last = ["tenant/acme", "DestroyVirtualMachine", "tenants/acme/vms/web", "OK", ""];
    assert_eq!(lines(&host).last().unwrap(), &last);
    assert_eq!(lines(&host).len(), expected.len() + 1);
}
