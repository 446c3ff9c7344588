//! Requests that make no sense: each has its own error, and the daemon lives on. Needs no guest; see `bad_boot` for
//! kernels that do not boot.

use std::collections::BTreeMap;

use crate::support::console::Console;
use crate::support::{ErrorFacts, Host, facts, small};
use ostler::api::v1;
use tonic::{Code, Status};

fn changed(change: impl FnOnce(&mut v1::VirtualMachineSpec)) -> Option<v1::VirtualMachineSpec> {
    let mut spec = small();
    change(&mut spec);
    Some(spec)
}

fn disk(id: &str, volume: &str) -> v1::DiskSpec {
    v1::DiskSpec { id: id.into(), volume: volume.into(), read_only: false, ..Default::default() }
}

fn many(id: &str, volume: &str) -> v1::DiskSpec {
    v1::DiskSpec { queues: 9, ..disk(id, volume) }
}

fn boot(spec: &mut v1::VirtualMachineSpec) -> &mut v1::BootSpec {
    spec.boot.as_mut().unwrap()
}

#[test]
fn each_bad_registration_has_its_own_error_and_none_leaves_a_trace() {
    let mut host = Host::start();
    let pid = host.daemon_pid();
    let acme = host.tenant("acme");
    let good = "tenants/acme/vms/web";
    let long = format!("tenants/acme/vms/{}", "x".repeat(300));
    let cases: Vec<(&str, &str, Option<v1::VirtualMachineSpec>, &str)> = vec![
        ("no spec", good, None, "spec"),
        ("no boot", good, changed(|s| s.boot = None), "spec.boot"),
        ("no kernel named", good, changed(|s| boot(s).kernel.clear()), "spec.boot.kernel"),
        ("missing kernel", good, changed(|s| boot(s).kernel = "nowhere/vmlinux".into()), "spec.boot.kernel"),
        ("kernel outside", good, changed(|s| boot(s).kernel = "../data/certs/ca.key".into()), "spec.boot.kernel"),
        ("missing initrd", good, changed(|s| boot(s).initrd = "nowhere/initrd".into()), "spec.boot.initrd"),
        ("absolute initrd", good, changed(|s| boot(s).initrd = "/etc/passwd".into()), "spec.boot.initrd"),
        ("cmdline with a line end", good, changed(|s| boot(s).cmdline = "a\nb".into()), "spec.boot.cmdline"),
        ("cmdline without end", good, changed(|s| boot(s).cmdline = "x".repeat(4000)), "spec.boot.cmdline"),
        ("no vCPUs", good, changed(|s| s.vcpus = 0), "spec.vcpus"),
        ("too many vCPUs", good, changed(|s| s.vcpus = 10_000), "spec.vcpus"),
        ("no memory", good, changed(|s| s.memory_mib = 0), "spec.memory_mib"),
        ("memory that the host lacks", good, changed(|s| s.memory_mib = 4 << 20), "spec.memory_mib"),
        ("memory beyond counting", good, changed(|s| s.memory_mib = u64::MAX), "spec.memory_mib"),
        ("missing disk", good, changed(|s| s.disks = vec![disk("root", "gone.img")]), "spec.disks"),
        ("another tenant's disk", good, changed(|s| s.disks = vec![disk("root", "../globex/a.img")]), "spec.disks"),
        ("too many queues", good, changed(|s| s.disks = vec![many("root", "gone.img")]), "spec.disks[0].queues"),
        ("bad disk id", good, changed(|s| s.disks = vec![disk("a/b", "x.img")]), "spec.disks"),
        (
            "vhost and limits",
            good,
            changed(|s| {
                let limits = Some(v1::RateLimits { bytes_per_second: 1 << 20, ..Default::default() });
                s.nics = vec![v1::NicSpec { id: "eth0".into(), vhost: true, limits, ..Default::default() }];
            }),
            "spec.nics[0].limits",
        ),
        (
            "vhost and a virtual function",
            good,
            changed(|s| {
                let sriov = Some(v1::SriovNic::default());
                s.nics = vec![v1::NicSpec { id: "vf".into(), vhost: true, sriov, ..Default::default() }];
            }),
            "spec.nics[0].vhost",
        ),
        (
            "one id twice",
            good,
            changed(|s| s.nics = vec![v1::NicSpec { id: "eth0".into(), ..Default::default() }; 2]),
            "spec.nics",
        ),
        ("no name", "", changed(|_| ()), "name"),
        ("name with /", "tenants/acme/vms/a/b", changed(|_| ()), "name"),
        ("name of 300 characters", &long, changed(|_| ()), "name"),
        ("name with a capital", "tenants/acme/vms/Web", changed(|_| ()), "name"),
        ("name that climbs", "tenants/acme/vms/..", changed(|_| ()), "name"),
    ];
    let mut texts = BTreeMap::new();
    for (what, name, spec, field) in cases {
        let facts = facts(&acme.register_exactly(name, spec).unwrap_err());
        assert!(is_about(&facts, field), "{what}: {facts:?}");
        assert!(facts.message.len() < 600, "{what}: {facts:?}");
        if let Some(same) = texts.insert(facts.message.clone(), what) {
            panic!("{what} and {same} have the same error: {}", facts.message);
        }
    }
    assert_eq!(acme.list("").unwrap(), vec![]);
    assert_eq!(host.daemon_pid(), pid);
    acme.register("web", small()).unwrap();
}

/// Whether an error blames the field, in its metadata and in its text.
fn is_about(facts: &ErrorFacts, field: &str) -> bool {
    let is_code = matches!(
        facts.code,
        Code::InvalidArgument | Code::NotFound | Code::ResourceExhausted | Code::FailedPrecondition
    );
    let named = facts.metadata.get("field").is_some_and(|named| named.contains(field));
    is_code && named && facts.message.contains(field)
}

#[test]
fn a_nic_for_the_kernel_is_an_operator_s_to_give_on_a_host_that_has_the_module() {
    let host = Host::start();
    let served = || v1::NicSpec { id: "eth0".into(), vhost: true, ..Default::default() };
    let spec = || changed(|s| s.nics = vec![served()]).unwrap();
    let (acme, operator) = (host.tenant("acme"), host.operator());
    let foreign = facts(&acme.register("web", spec()).unwrap_err());
    assert_eq!((foreign.code, foreign.reason.as_str()), (Code::PermissionDenied, "NOT_ALLOWED"));
    assert!(foreign.message.contains("vhost is given by an operator"), "{foreign:?}");
    acme.register("plain", small()).unwrap();
    let device = v1::attach_device_request::Device::Nic(served());
    assert_eq!(facts(&acme.attach("plain", device.clone()).unwrap_err()).reason, "NOT_ALLOWED");
    let (registered, attached) =
        (operator.register("tenants/acme/vms/web", spec()), operator.attach("tenants/acme/vms/plain", device));
    if std::path::Path::new("/dev/vhost-net").exists() {
        assert!(registered.unwrap().spec.unwrap().nics[0].vhost && attached.is_ok());
        let limited = operator.limit("tenants/acme/vms/web", "eth0", v1::RateLimits::default()).unwrap_err();
        assert_eq!(facts(&limited).reason, "CHANGE_FAILED");
        return;
    }
    for (refused, field) in [(registered.unwrap_err(), "spec.nics[0].vhost"), (attached.unwrap_err(), "nic.vhost")] {
        let refused = facts(&refused);
        assert!(is_about(&refused, field) && refused.message.contains("modprobe vhost_net"), "{refused:?}");
    }
}

#[test]
fn a_name_is_taken_once() {
    let host = Host::start();
    let acme = host.tenant("acme");
    let first = acme.register("web", small()).unwrap();
    let again = acme.register("web", changed(|s| s.vcpus = 2).unwrap()).unwrap_err();
    assert_eq!(facts(&again).code, Code::AlreadyExists);
    assert!(again.message().contains("web"), "{again:?}");
    assert_eq!(acme.get("web").unwrap(), first);
    acme.destroy("web", false).unwrap();
    let second = acme.register("web", small()).unwrap();
    assert_ne!(first.uid, second.uid);
}

#[test]
fn calls_about_no_vm_or_in_the_wrong_state_say_so() {
    let host = Host::start();
    let acme = host.tenant("acme");
    for missing in [
        acme.get("ghost").unwrap_err(),
        acme.start("ghost").unwrap_err(),
        acme.stop("ghost", None).unwrap_err(),
        acme.destroy("ghost", true).unwrap_err(),
        Console::attach(&acme, "ghost").end().1.unwrap_err(),
    ] {
        assert_eq!(facts(&missing).code, Code::NotFound, "{missing:?}");
    }
    for malformed in ["", "ghost", "tenants/acme", "tenants/acme/vms/a/b"] {
        let request = v1::GetVirtualMachineRequest { name: malformed.into() };
        let refused = crate::support::client::wait(acme.vms.clone().get_virtual_machine(request)).unwrap_err();
        assert_eq!(facts(&refused).code, Code::InvalidArgument, "{malformed:?}: {refused:?}");
    }
    acme.register("web", small()).unwrap();
    let idle = acme.stop("web", None).unwrap_err();
    assert_eq!(facts(&idle).code, Code::FailedPrecondition);
    assert!(idle.message().contains("REGISTERED"), "{idle:?}");
    let (printed, end) = Console::attach(&acme, "web").end();
    assert_eq!((printed.as_str(), end.unwrap_err().code()), ("", Code::FailedPrecondition));
}

#[test]
fn a_grace_is_between_zero_and_ten_minutes() {
    let host = Host::start();
    let acme = host.tenant("acme");
    acme.register("web", small()).unwrap();
    let stop = |seconds, nanos| {
        let grace = Some(prost_types::Duration { seconds, nanos });
        let request = v1::StopVirtualMachineRequest { name: acme.name("web"), grace, ..Default::default() };
        crate::support::client::wait(acme.vms.clone().stop_virtual_machine(request)).unwrap_err()
    };
    for (seconds, nanos) in [(-1, 0), (0, -1), (601, 0), (i64::MAX, 0), (0, i32::MAX)] {
        let facts = facts(&stop(seconds, nanos));
        assert_eq!(facts.code, Code::InvalidArgument, "{facts:?}");
        assert_eq!(facts.metadata.get("field").map(String::as_str), Some("grace"), "{facts:?}");
    }
    assert_eq!(stop(600, 0).code(), Code::FailedPrecondition);
}

#[test]
fn parents_that_are_none_are_refused() {
    let host = Host::start();
    let operator = host.operator();
    for parent in ["acme", "tenants", "tenants/", "tenants/A", "tenants/acme/vms", "operator/x"] {
        let refused: [Status; 2] = [operator.list(parent).unwrap_err(), operator.plugins(parent).unwrap_err()];
        for status in refused {
            assert_eq!(facts(&status).code, Code::InvalidArgument, "{parent:?}: {status:?}");
        }
    }
}

#[test]
fn uploads_that_break_the_protocol_are_refused() {
    use v1::load_plugin_request::{Header, Part};
    let mut host = Host::start();
    let pid = host.daemon_pid();
    let operator = host.operator();
    let header = |name: &str| Part::Header(Header { name: name.into(), ..Default::default() });
    let name = "operator/plugins/x";
    let chunk = |len: usize| Part::Chunk(vec![0; len]);
    let too_much = std::iter::once(header(name)).chain((0..385).map(|_| chunk(64 << 10))).collect();
    for (what, parts) in [
        ("nothing", vec![]),
        ("no header", vec![chunk(8)]),
        ("no component", vec![header(name)]),
        ("two headers", vec![header(name), header(name)]),
        ("bad name", vec![header("operator/plugins/A B"), chunk(8)]),
        ("no name", vec![header(""), chunk(8)]),
        ("a chunk that is too long", vec![header(name), chunk((64 << 10) + 1)]),
        ("more than 24 MiB", too_much),
    ] {
        let refused = operator.load_parts(parts).unwrap_err();
        let code = facts(&refused).code;
        assert!(matches!(code, Code::InvalidArgument | Code::ResourceExhausted), "{what}: {refused:?}");
    }
    assert_eq!(operator.plugins("").unwrap().len(), 1);
    assert_eq!(host.daemon_pid(), pid);
}

#[test]
fn a_request_without_end_is_cut_and_others_go_on() {
    let mut host = Host::start();
    let pid = host.daemon_pid();
    let acme = host.tenant("acme");
    let huge = changed(|s| s.disks = vec![disk("a", &"x".repeat(1 << 10)); 8 << 10]);
    let refused = acme.register_exactly("tenants/acme/vms/web", huge).unwrap_err();
    assert!(
        matches!(refused.code(), Code::InvalidArgument | Code::OutOfRange | Code::ResourceExhausted),
        "{refused:?}"
    );
    assert_eq!(host.tenant("acme").list("").unwrap(), vec![]);
    assert_eq!(host.daemon_pid(), pid);
}

#[test]
fn a_second_daemon_on_the_same_directory_is_refused() {
    let mut host = Host::start();
    let pid = host.daemon_pid();
    let second = std::process::Command::new(crate::support::assets::binary())
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(host.data())
        .arg("--run-dir")
        .arg(host.run_dir())
        .output()
        .unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.contains(&*host.data().to_string_lossy()), "{text}");
    assert_eq!(host.daemon_pid(), pid);
    host.tenant("acme").register("web", small()).unwrap();
}
