//! Policy decides what is registered: limits, patches, chains, and plugins that misbehave. Needs no guest.

use crate::support::assets::plugin;
use crate::support::corpus::{corpus, heavy};
use crate::support::unhurried::unhurried;
use crate::support::{Caller, ErrorFacts, Host, facts, small};
use ostler::api::v1;
use ostler::api::v1::load_plugin_request::Header;
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
fn a_plugin_is_rolled_back_to_an_earlier_version_even_after_a_restart() {
    let mut host = limited(&[("max-vcpus", "1")]);
    let operator = host.operator();
    let trap = operator.load(ADMISSION, &plugin("hostile/trap"), &[]).unwrap();
    assert_eq!(trap.previous.len(), 1);
    denied(&host.tenant("acme"), "web", sized(1, 128), "policy.trap");
    host.kill_daemon();
    host.start_daemon();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    let back = operator.roll_back(ADMISSION, "").unwrap();
    assert_eq!(back.settings.get("max-vcpus").map(String::as_str), Some("1"));
    assert_eq!(back.previous[0].digest, trap.digest);
    denied(&acme, "big", sized(2, 128), "limit.vcpus");
    acme.register("web", sized(1, 128)).unwrap();
    // Forth again, by its digest; versions do not pile up.
    let forth = operator.roll_back(ADMISSION, &trap.digest).unwrap();
    assert_eq!((forth.digest, forth.previous.len()), (trap.digest, 1));
    let missing = operator.roll_back(ADMISSION, &format!("sha256:{}", "0".repeat(64))).unwrap_err();
    assert_eq!(facts(&missing).reason, "VERSION_NOT_FOUND");
    for at in 0..20 {
        operator.load(ADMISSION, &plugin("admission"), &[("max-vms", &at.to_string())]).unwrap();
    }
    assert_eq!(operator.plugins("").unwrap()[0].previous.len(), 8);
    assert_eq!(acme.roll_back(ADMISSION, "").unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(acme.roll_back("tenants/acme/plugins/none", "").unwrap_err().code(), Code::NotFound);
}

#[test]
fn the_operators_last_plugin_is_unloaded_only_by_force_and_then_all_is_denied() {
    let mut host = limited(&[]);
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    acme.load("tenants/acme/plugins/own", &plugin("hostile/trap"), &[]).unwrap();
    assert_eq!(acme.unload(ADMISSION, true).unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(
        host.tenant("globex").unload("tenants/acme/plugins/own", true).unwrap_err().code(),
        Code::PermissionDenied
    );
    denied(&acme, "web", small(), "policy.trap");
    acme.unload("tenants/acme/plugins/own", false).unwrap();
    assert_eq!(acme.unload("tenants/acme/plugins/own", false).unwrap_err().code(), Code::NotFound);
    acme.register("web", small()).unwrap();
    let refused = facts(&operator.unload(ADMISSION, false).unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::FailedPrecondition, "LAST_OF_HOOK"));
    acme.register("still", small()).unwrap();
    operator.load("operator/plugins/second", &plugin("hostile/abstain"), &[]).unwrap();
    operator.load("operator/plugins/third", &plugin("hostile/attach-abstain"), &[]).unwrap();
    operator.unload(ADMISSION, false).unwrap();
    denied(&acme, "next", small(), "policy.no-opinion");
    operator.unload("operator/plugins/second", true).unwrap();
    operator.unload("operator/plugins/third", true).unwrap();
    host.kill_daemon();
    host.start_daemon();
    assert!(host.operator().plugins("").unwrap().is_empty());
    assert_eq!(std::fs::read_dir(host.data().join("plugins")).unwrap().count(), 0, "components are gone too");
}

#[test]
fn a_chain_has_a_bounded_number_of_plugins() {
    let host = limited(&[]);
    let acme = host.tenant("acme");
    let load = |at: usize| acme.load(&format!("tenants/acme/plugins/p{at}"), &plugin("hostile/abstain"), &[]);
    (0..16).for_each(|at| drop(load(at).unwrap()));
    assert_eq!(facts(&load(16).unwrap_err()).reason, "TOO_MANY_PLUGINS");
    load(3).unwrap();
    acme.register("web", small()).unwrap();
}

#[test]
fn a_weight_is_of_the_name_until_another_is_given() {
    let mut host = limited(&[]);
    let load = |host: &Host, header: Header| {
        host.operator().load_as(Header { name: ADMISSION.into(), ..header }, &plugin("admission"))
    };
    let weighing =
        |host: &Host, weight| load(host, Header { weight, ..Default::default() }).map(|plugin| plugin.weight);
    assert_eq!(weighing(&host, 0).unwrap(), 1);
    let before = host.operator().plugins("").unwrap()[0].etag.clone();
    assert_eq!(weighing(&host, 100).unwrap(), 100);
    assert_ne!(host.operator().plugins("").unwrap()[0].etag, before);
    assert_eq!(weighing(&host, 0).unwrap(), 100);
    for header in [
        Header { weight: 101, ..Default::default() },
        Header { weight: 3, canary_percent: 10, ..Default::default() },
        Header { weight: 3, alias: "next".into(), ..Default::default() },
    ] {
        let told = facts(&load(&host, header).unwrap_err());
        assert_eq!((told.code, told.metadata["field"].as_str()), (Code::InvalidArgument, "weight"), "{told:?}");
    }
    // Another version, another mode and another daemon leave it as it is.
    let settings = [("max-vcpus".to_owned(), "8".to_owned())].into();
    assert_eq!(load(&host, Header { settings, ..Default::default() }).unwrap().weight, 100);
    assert_eq!(host.operator().roll_back(ADMISSION, "").unwrap().weight, 100);
    assert_eq!(load(&host, Header { canary_percent: 10, ..Default::default() }).unwrap().weight, 100);
    assert_eq!(weighing(&host, 0).unwrap(), 100);
    host.kill_daemon();
    host.start_daemon();
    assert_eq!(host.operator().plugins("").unwrap()[0].weight, 100);
    let acme = host.tenant("acme");
    acme.register("web", small()).unwrap();
    let decisions = acme.decisions(v1::ListDecisionsRequest::default()).unwrap();
    assert_eq!(decisions[0].links[0].weight, 100);
    let run = |arguments: &[&str]| {
        let output = host.command("operator-admin").arg("plugin").args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    let file = host.data().join("admission.wasm");
    std::fs::write(&file, plugin("admission")).unwrap();
    let (code, table) = run(&["load", file.to_str().unwrap(), "--operator", "--weight", "3"]);
    assert!(code == Some(0) && table.contains("enforced ×3"), "{table}");
    assert!(run(&["list"]).1.contains("enforced ×3"));
    for refused in ["0", "101", "many"] {
        assert_eq!(run(&["load", file.to_str().unwrap(), "--operator", "--weight", refused]).0, Some(2));
    }
    assert_eq!(weighing(&host, 1).unwrap(), 1);
    assert!(!run(&["list"]).1.contains('×'));
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
fn a_plugin_that_keeps_failing_is_left_alone_for_that_tenant_only() {
    let host = Host::without_policy();
    let (operator, acme, globex) = (host.operator(), host.tenant("acme"), host.tenant("globex"));
    operator.load(ADMISSION, &plugin("admission"), &[]).unwrap();
    acme.load("tenants/acme/plugins/own", &plugin("hostile/loop"), &[]).unwrap();
    let codes: Vec<_> = (0..7)
        .map(|_| facts(&acme.register("web", small()).unwrap_err()).metadata.get("code").cloned().unwrap_or_default())
        .collect();
    assert!(codes[..5].iter().all(|code| code != "policy.breaker-open"), "{codes:?}");
    assert_eq!(codes[5..], ["policy.breaker-open", "policy.breaker-open"]);
    let own = |caller: &Caller| caller.plugins("tenants/acme").unwrap().into_iter().find(|p| p.name.ends_with("/own"));
    let breaker = &own(&acme).unwrap().breakers[0];
    assert_eq!((breaker.hook.as_str(), breaker.tenant.as_str()), ("admit", "tenants/acme"));
    assert_eq!(own(&operator).unwrap().breakers.len(), 1);
    // On record, closed to nobody else, and gone with the version that failed.
    let records = acme.decisions(ostler::api::v1::ListDecisionsRequest::default()).unwrap();
    assert_eq!((records[0].code.as_str(), records[0].links[1].fuel), ("policy.breaker-open", 0));
    globex.register("web", small()).unwrap();
    acme.load("tenants/acme/plugins/own", &plugin("hostile/abstain"), &[]).unwrap();
    acme.register("web", small()).unwrap();

    // An operator's plugin that fails at one tenant's requests: the other is not told.
    operator.load("operator/plugins/second", &plugin("hostile/trap"), &[]).unwrap();
    (0..6).for_each(|_| drop(acme.register("next", small())));
    let second =
        |caller: &Caller| caller.plugins("").unwrap().into_iter().find(|p| p.name.ends_with("/second")).unwrap();
    assert_eq!(second(&acme).breakers.len(), 1);
    assert!(second(&globex).breakers.is_empty());
}

/// Resident memory of the daemon, in KiB (proc_pid_status(5)).
fn resident_kib(host: &mut Host) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.daemon_pid().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

#[test]
fn an_attack_on_the_compiler_costs_the_daemon_nothing() {
    let mut host = Host::start();
    let (pid, acme) = (host.daemon_pid(), host.tenant("acme"));
    let load = |bytes: &[u8]| {
        let refused = facts(&acme.load("tenants/acme/plugins/own", bytes, &[]).unwrap_err());
        assert_eq!((refused.code, refused.reason.as_str()), (Code::InvalidArgument, "PLUGIN_REFUSED"), "{refused:?}");
        refused.metadata["code"].clone()
    };
    load(&plugin("hostile/no-hook"));
    let before = resident_kib(&mut host);
    for (name, bytes, expected) in corpus() {
        assert_eq!(load(&bytes), expected, "{name}");
    }
    for (name, bytes) in heavy() {
        unhurried(|| acme.load("tenants/acme/plugins/own", &bytes, &[])).unwrap_or_else(|e| panic!("{name}: {e}"));
        acme.register("web", small()).unwrap();
        acme.destroy("web", false).unwrap();
    }
    let grown = resident_kib(&mut host).saturating_sub(before);
    println!("the daemon's memory grew by {grown} KiB");
    assert!(grown < 16 << 10, "grew by {grown} KiB");
    assert_eq!(host.daemon_pid(), pid);
    acme.register("web", small()).unwrap();
    let compilers = std::process::Command::new("pgrep")
        .args(["-f", "^ostler-compile", "-P"])
        .arg(pid.unwrap().to_string())
        .output();
    assert!(compilers.is_ok_and(|found| found.stdout.is_empty()), "a compiler is left");
}

#[test]
fn compiled_plugins_are_kept_and_forged_ones_are_not_believed() {
    let mut host = limited(&[("max-vcpus", "2")]);
    let kept = |host: &Host| {
        let entries = std::fs::read_dir(host.data().join("compiled")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let files = kept(&host);
    assert_eq!(files.len(), 1, "{files:?}");
    let written = std::fs::read(&files[0]).unwrap();
    // Somebody puts other machine code there: not believed, made anew.
    let mut forged = written.clone();
    let middle = forged.len() / 2;
    forged[middle] ^= 1;
    for replacement in [forged, b"\x7fELF".to_vec(), Vec::new()] {
        host.kill_daemon();
        std::fs::write(&files[0], replacement).unwrap();
        host.start_daemon();
        let loaded = host.operator().plugins("").unwrap();
        assert!(loaded[0].failure.is_empty(), "{loaded:?}");
        denied(&host.tenant("acme"), "big", sized(4, 128), "limit.vcpus");
        assert_eq!(std::fs::read(&files[0]).unwrap(), written);
    }
    // What nobody names any more is gone.
    host.operator().unload(ADMISSION, true).unwrap();
    assert!(kept(&host).is_empty());
}

#[test]
fn plugins_that_misbehave_deny_and_harm_nobody() {
    let mut host = Host::start();
    let pids = (host.daemon_pid(), host.policy_host_pid());
    assert!(pids.1.is_some());
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
    assert_eq!((host.daemon_pid(), host.policy_host_pid()), pids);
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
