//! Policy decides what is registered: limits, patches, chains, and plugins that misbehave. Needs no guest.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use ostler::api::v1;
use support::assets::plugin;
use support::{Caller, ErrorFacts, Host, facts, small};
use tonic::Code;

const ADMISSION: &str = "operator/plugins/admission";

fn sized(vcpus: u32, memory_mib: u64) -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec { vcpus, memory_mib, ..small() }
}

/// A host whose operator limits what one VM and one tenant may have.
fn limited(settings: &[(&str, &str)]) -> Host {
    let host = Host::without_policy();
    host.operator().load(ADMISSION, &plugin("admission"), settings).unwrap();
    host
}

/// Registers, expects a denial by policy with this code, and that nothing was remembered.
fn denied(caller: &Caller, vm: &str, spec: v1::VirtualMachineSpec, code: &str) -> ErrorFacts {
    let facts = facts(&caller.register(vm, spec).unwrap_err());
    assert_eq!((facts.code, facts.reason.as_str()), (Code::PermissionDenied, "POLICY_DENIED"), "{facts:?}");
    assert_eq!(facts.metadata.get("code").map(String::as_str), Some(code), "{facts:?}");
    assert_eq!(caller.get(vm).unwrap_err().code(), Code::NotFound);
    facts
}

#[test]
fn nothing_is_admitted_without_a_plugin() {
    let host = Host::without_policy();
    denied(&host.tenant("acme"), "web", small(), "policy.no-opinion");
    // An operator's request is a request like any other.
    assert_eq!(host.operator().register("web", small()).unwrap_err().code(), Code::PermissionDenied);
}

#[test]
fn a_denial_names_the_plugin_its_content_and_the_reason() {
    let host = limited(&[("max-vcpus", "2"), ("max-memory-mib", "512")]);
    let acme = host.tenant("acme");
    let loaded = acme.plugins("").unwrap();
    let facts = denied(&acme, "web", sized(4, 128), "limit.vcpus");
    assert_eq!(facts.metadata.get("plugin").map(String::as_str), Some("admission"));
    assert_eq!(facts.metadata.get("digest"), Some(&loaded[0].digest));
    assert!(facts.message.contains('4') && facts.message.contains('2'), "{facts:?}");
    denied(&acme, "web", sized(1, 1024), "limit.memory");

    let vm = acme.register("web", sized(2, 512)).unwrap();
    let admission = vm.admission.unwrap();
    assert!(admission.allowed);
    let opinion = &admission.opinions[0];
    assert_eq!(
        (opinion.plugin.as_str(), opinion.verdict.as_str(), opinion.scope.as_str()),
        ("admission", "allow", "operator")
    );
    assert_eq!(opinion.digest, loaded[0].digest);
    assert!(opinion.took.is_some_and(|took| took.seconds > 0 || took.nanos > 0));
    // What was decided stays to be read.
    assert_eq!(acme.get("web").unwrap().admission.unwrap().opinions, admission.opinions);
}

#[test]
fn a_plugin_may_make_a_vm_smaller() {
    let host = limited(&[("max-vcpus", "2"), ("max-memory-mib", "256"), ("mode", "cap")]);
    let vm = host.tenant("acme").register("web", sized(8, 4096)).unwrap();
    let spec = vm.spec.unwrap();
    assert_eq!((spec.vcpus, spec.memory_mib), (2, 256));
    let detail = &vm.admission.unwrap().opinions[0].detail;
    assert!(detail.contains("cap vCPUs at 2") && detail.contains("cap memory at 256 MiB"), "{detail}");
}

#[test]
fn totals_count_what_is_registered_and_only_that() {
    let host = limited(&[("max-vms", "2"), ("total-vcpus", "5")]);
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    acme.register("a", sized(3, 128)).unwrap();
    denied(&acme, "b", sized(3, 128), "limit.total-vcpus");
    acme.register("b", sized(2, 128)).unwrap();
    denied(&acme, "c", sized(1, 128), "limit.vms");
    globex.register("a", sized(5, 128)).unwrap();
    acme.destroy("a", false).unwrap();
    acme.register("c", sized(3, 128)).unwrap();
}

#[test]
fn simultaneous_registrations_cannot_slip_past_a_limit() {
    let host = limited(&[("max-vms", "3")]);
    let acme = host.tenant("acme");
    let admitted: usize = std::thread::scope(|scope| {
        let register = |number: usize| acme.register(&format!("vm-{number}"), small()).is_ok();
        let threads: Vec<_> = (0..12).map(|number| scope.spawn(move || register(number))).collect();
        threads.into_iter().map(|thread| usize::from(thread.join().unwrap())).sum()
    });
    assert_eq!(admitted, 3);
    assert_eq!(acme.list("").unwrap().len(), 3);
}

#[test]
fn a_tenants_chain_only_narrows_and_only_for_itself() {
    let host = limited(&[("max-vcpus", "4")]);
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    acme.load("tenants/acme/plugins/own", &plugin("admission"), &[("max-vcpus", "2")]).unwrap();
    denied(&acme, "web", sized(3, 128), "limit.vcpus");
    globex.register("web", sized(3, 128)).unwrap();
    // A wider limit of the tenant's does not lift the operator's.
    acme.load("tenants/acme/plugins/own", &plugin("admission"), &[("max-vcpus", "64")]).unwrap();
    denied(&acme, "web", sized(5, 128), "limit.vcpus");
    acme.register("web", sized(3, 128)).unwrap();

    for name in [ADMISSION, "tenants/globex/plugins/own"] {
        let refused = acme.load(name, &plugin("admission"), &[]).unwrap_err();
        assert!(matches!(refused.code(), Code::PermissionDenied | Code::NotFound), "{refused:?}");
    }
    let names = |caller: &Caller| caller.plugins("").unwrap().into_iter().map(|plugin| plugin.name).collect::<Vec<_>>();
    assert_eq!(names(&acme), [ADMISSION, "tenants/acme/plugins/own"]);
    assert_eq!(names(&globex), [ADMISSION]);
}

#[test]
fn a_replaced_plugin_decides_at_once_and_a_restart_keeps_it() {
    let mut host = limited(&[("max-vcpus", "1")]);
    let acme = host.tenant("acme");
    denied(&acme, "web", sized(2, 128), "limit.vcpus");
    let loaded = host.operator().load(ADMISSION, &plugin("admission"), &[("max-vcpus", "2")]).unwrap();
    acme.register("web", sized(2, 128)).unwrap();

    assert!(host.stop_daemon().success());
    host.start_daemon();
    let acme = host.tenant("acme");
    let kept = acme.plugins("").unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!((&kept[0].digest, &kept[0].settings), (&loaded.digest, &loaded.settings));
    denied(&acme, "next", sized(3, 128), "limit.vcpus");
    acme.register("next", sized(2, 128)).unwrap();
    assert_eq!(acme.list("").unwrap().len(), 2);
}

#[test]
fn refuses_what_is_no_plugin_each_with_its_own_error() {
    let mut host = Host::start();
    let pid = host.daemon_pid();
    let operator = host.operator();
    let good = operator.plugins("").unwrap();
    let refused = |bytes: &[u8], settings: &[(&str, &str)]| {
        let facts = facts(&operator.load(ADMISSION, bytes, settings).unwrap_err());
        assert_eq!(facts.code, Code::InvalidArgument, "{facts:?}");
        facts.message
    };
    let admission = plugin("admission");
    let errors = [
        (refused(&plugin("hostile/not-wasm"), &[]), "not a WebAssembly"),
        (refused(b"", &[]), ""),
        (refused(&plugin("hostile/core-module"), &[]), "core module"),
        (refused(&plugin("hostile/truncated"), &[]), ""),
        (refused(&plugin("hostile/clock"), &[]), "import"),
        (refused(&plugin("hostile/no-hook"), &[]), "export"),
        (refused(&plugin("hostile/describe-trap"), &[]), "describe"),
        (refused(&plugin("hostile/describe-loop"), &[]), "describe"),
        (refused(&plugin("hostile/large"), &[]), "memory"),
        (refused(&admission, &[("max-cpus", "2")]), "max-cpus"),
        (refused(&admission, &[("max-vcpus", "many")]), "max-vcpus"),
    ];
    for (message, word) in &errors {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
    // Of nothing at all the host may say the same as of something that is not WebAssembly.
    let mut distinct: Vec<_> = errors.iter().filter(|(_, word)| !word.is_empty()).map(|(message, _)| message).collect();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), 9, "{errors:#?}");

    assert_eq!(operator.plugins("").unwrap(), good, "a refused load must change nothing");
    assert_eq!(host.daemon_pid(), pid);
    host.tenant("acme").register("web", small()).unwrap();
}

#[test]
fn plugins_that_misbehave_deny_and_harm_nobody() {
    let mut host = Host::start();
    let pid = host.daemon_pid();
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    for (name, codes) in [
        ("trap", &["policy.trap"][..]),
        ("recursion", &["policy.trap", "policy.budget"]),
        ("loop", &["policy.deadline", "policy.budget"]),
        ("fill", &["policy.deadline", "policy.budget"]),
        ("memory", &["policy.memory"]),
        ("undecided", &["policy.refused"]),
        ("widen", &["policy.bad-answer"]),
        ("zero", &["policy.bad-answer"]),
        ("forge", &["policy.bad-answer"]),
        ("ramble", &["policy.bad-answer"]),
        ("bad-utf8", &["policy.bad-answer", "policy.trap"]),
        ("far-away", &["policy.bad-answer", "policy.trap"]),
    ] {
        acme.load("tenants/acme/plugins/own", &plugin(&format!("hostile/{name}")), &[]).unwrap();
        let facts = facts(&acme.register("web", small()).unwrap_err());
        assert_eq!((facts.code, facts.reason.as_str()), (Code::PermissionDenied, "POLICY_DENIED"), "{name}: {facts:?}");
        let code = facts.metadata.get("code").map(String::as_str).unwrap_or_default();
        assert!(codes.contains(&code), "{name}: {facts:?}");
        assert_eq!(facts.metadata.get("plugin").map(String::as_str), Some("own"), "{name}: {facts:?}");
        // Everybody else's decisions go on.
        globex.register("web", small()).unwrap();
        globex.destroy("web", false).unwrap();
    }
    acme.load("tenants/acme/plugins/own", &plugin("hostile/abstain"), &[]).unwrap();
    acme.register("web", small()).unwrap();
    assert_eq!(host.daemon_pid(), pid);
}

#[test]
fn devices_of_a_vm_are_decided_about_too() {
    use v1::attach_device_request::Device;
    let host = limited(&[("max-disks", "1")]);
    let (acme, operator) = (host.tenant("acme"), host.operator());
    acme.register("web", small()).unwrap();
    host.add_volume("acme", "data.img", &[0; 4096]);
    let disk = |id: &str| {
        Device::Disk(v1::DiskSpec { id: id.to_owned(), volume: "data.img".to_owned(), ..Default::default() })
    };
    let code = |error: tonic::Status| {
        let facts = facts(&error);
        assert_eq!((facts.code, facts.reason.as_str()), (Code::PermissionDenied, "POLICY_DENIED"), "{facts:?}");
        facts.metadata["code"].clone()
    };
    acme.attach("web", disk("data")).unwrap();
    assert_eq!(code(acme.attach("web", disk("more")).unwrap_err()), "limit.disks");
    assert_eq!(acme.get("web").unwrap().devices.len(), 1);
    // What is kept in place only an operator takes out, whatever the tenant says.
    operator.load("operator/plugins/keep", &plugin("hostile/detach-keep"), &[]).unwrap();
    for force in [false, true] {
        assert_eq!(code(acme.detach("web", "data", None, force).unwrap_err()), "device.kept");
    }
    assert!(operator.detach("web", "data", None, false).unwrap().devices.is_empty());
    // A tenant's own plugin narrows, and a broken one denies.
    acme.load("tenants/acme/plugins/own", &plugin("hostile/attach-trap"), &[]).unwrap();
    assert_eq!(code(acme.attach("web", disk("data")).unwrap_err()), "policy.trap");
}
