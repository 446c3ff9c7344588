//! A version of a plugin that decides about a share of the VMs, until it is promoted or the node takes it back. Needs no
//! guest.

use std::process::Output;

use crate::support::assets::{plugin, rebuilt};
use crate::support::client::wait;
use crate::support::wait::{SOON, until};
use crate::support::{Caller, Host, facts, small};
use ostler::api::v1;
use ostler::api::v1::end_plugin_canary_request::End;
use ostler::api::v1::plugin::Mode;
use ostler::api::v1::plugin_canary::State;
use ostler::model::{CanaryShare, PolicyScope, canary_lot};
use tonic::{Code, Status};

const ADMISSION: &str = "operator/plugins/admission";
const OWN: &str = "tenants/acme/plugins/own";

fn sized(vcpus: u32) -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec { vcpus, ..small() }
}

/// Loads as a canary.
fn canary(
    caller: &Caller,
    name: &str,
    bytes: &[u8],
    settings: &[(&str, &str)],
    canary_percent: u32,
) -> Result<v1::Plugin, Status> {
    use v1::load_plugin_request::{Header, Part};
    let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let header = Header { name: name.to_owned(), settings, canary_percent, ..Default::default() };
    let chunks = bytes.chunks(64 << 10).map(|chunk| Part::Chunk(chunk.to_vec()));
    caller.load_parts(std::iter::once(Part::Header(header)).chain(chunks).collect())
}

fn end(caller: &Caller, name: &str, end: End) -> Result<v1::Plugin, Status> {
    let request = v1::EndPluginCanaryRequest { name: name.to_owned(), end: end.into(), ..Default::default() };
    wait(caller.plugins.clone().end_plugin_canary(request)).map(tonic::Response::into_inner)
}

fn listed(caller: &Caller, name: &str) -> v1::Plugin {
    caller.plugins("").unwrap().into_iter().find(|plugin| plugin.name == name).unwrap()
}

fn trial(caller: &Caller, name: &str) -> v1::PluginCanary {
    listed(caller, name).canary.unwrap()
}

/// What the canary is once it was rolled back: nobody waits for that.
fn rolled_back(caller: &Caller, name: &str) -> v1::PluginCanary {
    until("the canary is rolled back", SOON, || {
        Some(trial(caller, name)).filter(|canary| canary.state() == State::RolledBack)
    })
}

/// Code and reason of an error.
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let facts = facts(&answer.unwrap_err());
    (facts.code, facts.reason)
}

/// Digest that the newest decision about `vm` was made with.
fn decided_by(caller: &Caller, vm: &str) -> String {
    let request = v1::ListDecisionsRequest { subject: format!("vms/{vm}"), ..Default::default() };
    caller.decisions(request).unwrap()[0].links[0].digest.clone()
}

/// Whether acme's VM is among `percent` of those of the operator's admission plugin, by the rule that docs and code share.
fn is_chosen(digest: &str, vm: &str, percent: u32) -> bool {
    let (plugin, digest) = ("admission".parse().unwrap(), digest.parse().unwrap());
    let lot = canary_lot(&PolicyScope::Operator, &plugin, digest, &"acme".parse().unwrap(), &vm.parse().unwrap());
    CanaryShare::new(percent).unwrap().has(lot)
}

#[test]
fn a_canary_decides_about_its_share_and_always_about_the_same_vms() {
    let mut host = Host::start();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    let stable = listed(&operator, ADMISSION);
    let loaded = canary(&operator, ADMISSION, &rebuilt("admission"), &[("max-vms", "999")], 20).unwrap();
    let tried = loaded.canary.clone().unwrap().version.unwrap();
    assert_eq!((&loaded.digest, loaded.settings.len()), (&stable.digest, 0));
    assert!(tried.digest != stable.digest && loaded.etag != stable.etag);

    let names: Vec<_> = (0..200).map(|at| format!("vm-{at}")).collect();
    names.iter().for_each(|name| drop(acme.register(name, sized(1)).unwrap()));
    let records = acme.decisions(v1::ListDecisionsRequest::default()).unwrap();
    assert_eq!(records.len(), 200);
    let mut chosen = 0;
    for record in &records {
        let vm = record.subject.trim_start_matches("vms/");
        // One version's as a whole: content and settings.
        let is_chosen = is_chosen(&tried.digest, vm, 20);
        let version = if is_chosen { (&tried.digest, &tried.settings) } else { (&stable.digest, &stable.settings) };
        assert_eq!((&record.links[0].digest, &record.links[0].settings), version, "{vm}");
        chosen += usize::from(is_chosen);
    }
    assert!((20..=60).contains(&chosen), "{chosen} of 200 are no 20 %");
    let shown = trial(&operator, ADMISSION);
    let asked = |counts: Option<v1::plugin_canary::Counts>| counts.map(|counts| (counts.asked, counts.denied));
    assert_eq!(asked(shown.canary_counts), Some((chosen as u64, 0)));
    assert_eq!(asked(shown.stable_counts), Some((200 - chosen as u64, 0)));
    // How others' requests come out is not a tenant's to know.
    assert_eq!((trial(&acme, ADMISSION).canary_counts, trial(&acme, ADMISSION).percent), (None, 20));

    // Other decisions about a VM, and those of the next daemon, are the same version's.
    let one = names.iter().find(|name| is_chosen(&tried.digest, name, 20)).unwrap();
    let nic = v1::NicSpec { id: "eth0".into(), ..Default::default() };
    acme.attach(one, v1::attach_device_request::Device::Nic(nic)).unwrap();
    assert_eq!(decided_by(&acme, one), tried.digest);
    for is_killed in [false, true] {
        if is_killed {
            host.kill_daemon()
        } else {
            assert!(host.stop_daemon().success())
        }
        host.start_daemon();
        let (operator, acme) = (host.operator(), host.tenant("acme"));
        let again = trial(&operator, ADMISSION);
        assert_eq!((again.state(), again.percent, &again.version), (State::Active, 20, &Some(tried.clone())));
        assert_eq!(asked(again.canary_counts), Some((0, 0)), "counts begin anew");
        for name in names.iter().take(20) {
            acme.destroy(name, false).unwrap();
            acme.register(name, sized(1)).unwrap();
            assert_eq!(decided_by(&acme, name) == tried.digest, is_chosen(&tried.digest, name, 20), "{name}");
        }
    }

    // Asked again, each version says the same for the same fuel.
    let Output { status, stdout, .. } =
        host.command("operator-admin").args(["plugin", "replay", "--name", "admission"]).output().unwrap();
    let text = String::from_utf8(stdout).unwrap();
    assert!(status.success() && text.starts_with("0 of 241 change"), "{text}");
}

#[test]
fn a_canary_is_given_more_and_then_all_in_one_step() {
    let host = Host::start();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    let stable = listed(&operator, ADMISSION);
    let names: Vec<_> = (0..40).map(|at| format!("vm-{at}")).collect();
    let decide = |percent: u32| {
        let loaded = canary(&operator, ADMISSION, &rebuilt("admission"), &[("max-vms", "999")], percent).unwrap();
        let tried = loaded.canary.unwrap().version.unwrap();
        let of = |name: &&String| {
            acme.register(name, sized(1)).unwrap();
            acme.destroy(name, false).unwrap();
            decided_by(&acme, name) == tried.digest
        };
        (tried.clone(), names.iter().filter(of).cloned().collect::<Vec<_>>())
    };
    let ((tried, few), (_, more)) = (decide(20), decide(60));
    assert!(few.iter().all(|name| more.contains(name)) && few.len() < more.len(), "{few:?} {more:?}");
    let promoted = end(&operator, ADMISSION, End::Promote).unwrap();
    assert_eq!((&promoted.digest, &promoted.settings, &promoted.canary), (&tried.digest, &tried.settings, &None));
    assert_eq!((promoted.previous[0].digest.as_str(), promoted.previous.len()), (stable.digest.as_str(), 1));
    for name in &names {
        acme.register(name, sized(1)).unwrap();
        assert_eq!(decided_by(&acme, name), tried.digest);
    }
    assert_eq!(operator.roll_back(ADMISSION, "").unwrap().digest, stable.digest);
}

#[test]
fn replay_asks_each_version_what_it_decided_itself() {
    let host = Host::start();
    let acme = host.tenant("acme");
    acme.load(OWN, &plugin("hostile/abstain"), &[]).unwrap();
    canary(&acme, OWN, &plugin("hostile/undecided"), &[], 50).unwrap();
    let refused = (0..16).filter(|at| acme.register(&format!("vm-{at}"), small()).is_err()).count();
    assert!((1..16).contains(&refused), "{refused} of 16");
    let replay = || {
        let output = host.command("tenant-acme").args(["plugin", "replay", "--name", "own"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let text = replay();
    assert!(text.starts_with("0 of 16 change"), "{text}");
    // Without the canary all of it is asked of the bound version.
    end(&acme, OWN, End::Drop).unwrap();
    let text = replay();
    assert!(text.contains(&format!("{refused} of 16 change")), "{text}");
}

#[test]
fn what_denies_more_than_the_bound_version_is_rolled_back() {
    let mut host = Host::start();
    let (operator, acme, globex) = (host.operator(), host.tenant("acme"), host.tenant("globex"));
    canary(&operator, ADMISSION, &rebuilt("admission"), &[("max-vcpus", "1")], 50).unwrap();
    let tried = trial(&operator, ADMISSION).version.unwrap().digest;
    let is_chosen = |vm: &str| is_chosen(&tried, vm, 50);
    // Who tries again and again counts once, and who only tries not at all.
    let denied = (0..).map(|at| format!("loop-{at}")).find(|name| is_chosen(name)).unwrap();
    for _ in 0..40 {
        assert_eq!(refused(acme.register(&denied, sized(2))).0, Code::PermissionDenied);
    }
    for at in 0..60 {
        let name = format!("tenants/acme/vms/dry-{at}");
        let vm = v1::VirtualMachine { name, spec: Some(sized(2)), ..Default::default() };
        let request =
            v1::RegisterVirtualMachineRequest { virtual_machine: Some(vm), validate_only: true, ..Default::default() };
        let _ = wait(acme.vms.clone().register_virtual_machine(request));
    }
    let counts = trial(&operator, ADMISSION).canary_counts.unwrap();
    assert_eq!((counts.asked, counts.denied, counts.failed), (1, 1, 0));

    // What both deny is no rise.
    let request = |at: usize| acme.register(&format!("vm-{at}"), sized(2));
    let mut denials = 0;
    let mut at = 0;
    while trial(&operator, ADMISSION).state() == State::Active {
        denials += usize::from(request(at).is_err());
        at += 1;
        assert!(at < 100, "it denied {denials} of {at} and is not rolled back");
    }
    let canary = rolled_back(&operator, ADMISSION);
    assert_eq!(canary.code, "canary.denials");
    assert!(denials >= 19 && at - denials >= 20, "{denials} of {at}");
    assert!(canary.message.contains("with the canary, 0 of"), "{}", canary.message);
    assert!(canary.roll_back_time.is_some() && canary.canary_counts.is_none());
    // Said after it is done.
    until("the roll-back is logged", SOON, || host.daemon_log().contains("canary rolled back").then_some(()));
    assert_eq!((trial(&globex, ADMISSION).code, trial(&globex, ADMISSION).message), (canary.code, String::new()));

    // The bound version decides again, of the next daemon too; what it was is shown until somebody acts.
    acme.register(&denied, sized(2)).unwrap();
    host.kill_daemon();
    host.start_daemon();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    assert_eq!(trial(&operator, ADMISSION).state(), State::RolledBack);
    (200..220).for_each(|at| drop(acme.register(&format!("vm-{at}"), sized(2)).unwrap()));
    let nothing = (Code::FailedPrecondition, "NO_CANARY".to_owned());
    assert_eq!(refused(end(&operator, ADMISSION, End::Promote)), nothing);
    assert_eq!(end(&operator, ADMISSION, End::Drop).unwrap().canary, None);
    assert_eq!(refused(end(&operator, ADMISSION, End::Drop)), nothing);
}

#[test]
fn what_the_bound_version_denies_as_well_is_no_rise() {
    let host = Host::without_policy();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    operator.load(ADMISSION, &plugin("admission"), &[("max-vcpus", "1")]).unwrap();
    canary(&operator, ADMISSION, &rebuilt("admission"), &[("max-vcpus", "1")], 50).unwrap();
    for at in 0..120 {
        assert_eq!(acme.register(&format!("vm-{at}"), sized(1 + at % 2)).is_err(), at % 2 == 1);
    }
    let canary = trial(&operator, ADMISSION);
    let (with, without) = (canary.canary_counts.unwrap(), canary.stable_counts.unwrap());
    assert_eq!((canary.state(), with.asked + without.asked, with.denied + without.denied), (State::Active, 120, 60));
    assert!(with.denied >= 10, "{with:?}");
    assert_eq!(end(&operator, ADMISSION, End::Drop).unwrap().canary, None);
}

#[test]
fn what_traps_is_rolled_back_at_once() {
    let host = Host::start();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    acme.load(OWN, &plugin("hostile/abstain"), &[]).unwrap();
    canary(&acme, OWN, &plugin("hostile/trap"), &[], 60).unwrap();
    let mut failed = 0;
    for at in 0..100 {
        if acme.register(&format!("vm-{at}"), small()).is_err() {
            failed += 1;
        }
        if failed >= 5 {
            break;
        }
    }
    let canary = rolled_back(&acme, OWN);
    assert_eq!((canary.code.as_str(), failed), ("canary.breaker-open", 5));
    assert!(canary.message.contains("policy.trap"), "{}", canary.message);
    (0..40).for_each(|at| drop(acme.register(&format!("new-{at}"), small()).unwrap()));
    assert_eq!(listed(&operator, OWN).breakers, [], "the bound version has not failed");
    // Its component is not kept.
    let kept = std::fs::read_dir(host.data().join("plugins")).unwrap().count();
    assert_eq!(kept, 2, "the operator's, and the bound one");
}

#[test]
fn what_cannot_be_loaded_again_is_rolled_back_before_anything_is_decided() {
    let mut host = Host::start();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    let loaded = canary(&operator, ADMISSION, &rebuilt("admission"), &[], 50).unwrap();
    let digest = loaded.canary.unwrap().version.unwrap().digest;
    acme.register("web", small()).unwrap();
    host.kill_daemon();
    let file = format!("{}.wasm", digest.trim_start_matches("sha256:"));
    std::fs::remove_file(host.data().join("plugins").join(file)).unwrap();
    host.start_daemon();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    let canary = trial(&operator, ADMISSION);
    assert_eq!((canary.state(), canary.code.as_str()), (State::RolledBack, "canary.lost"));
    (0..20).for_each(|at| drop(acme.register(&format!("vm-{at}"), small()).unwrap()));
}

#[test]
fn a_canary_needs_a_version_to_stand_beside_and_counts_as_a_plugin() {
    let host = Host::start();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    let unfit = (Code::FailedPrecondition, "CANARY_UNFIT".to_owned());
    let active = (Code::FailedPrecondition, "CANARY_ACTIVE".to_owned());
    assert_eq!(refused(canary(&acme, OWN, &plugin("admission"), &[], 10)), unfit);
    assert_eq!(refused(canary(&operator, ADMISSION, &plugin("hostile/trap"), &[], 10)), unfit, "other hooks");
    for percent in [100, 266] {
        assert_eq!(refused(canary(&operator, ADMISSION, &plugin("admission"), &[], percent)).0, Code::InvalidArgument);
    }
    assert_eq!(refused(canary(&acme, ADMISSION, &plugin("admission"), &[], 10)).0, Code::PermissionDenied);
    assert_eq!(refused(end(&operator, ADMISSION, End::Unspecified)).0, Code::InvalidArgument);

    // While it is tried, what it is compared with stays.
    canary(&operator, ADMISSION, &rebuilt("admission"), &[], 10).unwrap();
    for mode in [Mode::Enforced, Mode::Shadow] {
        let request =
            v1::SetPluginModeRequest { name: ADMISSION.into(), mode: mode.into(), force: true, ..Default::default() };
        assert_eq!(refused(wait(operator.plugins.clone().set_plugin_mode(request))), active);
    }
    assert_eq!(refused(operator.roll_back(ADMISSION, "")), active);
    // A load for all ends the trial.
    assert_eq!(operator.load(ADMISSION, &plugin("admission"), &[]).unwrap().canary, None);

    (1..15).for_each(|at| drop(operator.load(&format!("operator/plugins/p{at}"), &plugin("admission"), &[]).unwrap()));
    canary(&operator, ADMISSION, &rebuilt("admission"), &[], 10).unwrap();
    let full = (Code::ResourceExhausted, "TOO_MANY_PLUGINS".to_owned());
    assert_eq!(refused(operator.load("operator/plugins/p15", &plugin("admission"), &[])), full);
    assert_eq!(refused(canary(&operator, "operator/plugins/p1", &rebuilt("admission"), &[], 10)), full);
    // Another in its place is no further one.
    canary(&operator, ADMISSION, &rebuilt("admission"), &[("max-vcpus", "9")], 10).unwrap();
    end(&operator, ADMISSION, End::Drop).unwrap();
    operator.load("operator/plugins/p15", &plugin("admission"), &[]).unwrap();
}

#[test]
fn the_command_line_tries_a_version_on_a_share_and_promotes_it() {
    let host = Host::start();
    let file = host.data().join("admission.wasm");
    std::fs::write(&file, rebuilt("admission")).unwrap();
    let run = |arguments: &[&str]| -> (Option<i32>, String) {
        let Output { status, stdout, stderr } = host.command("operator-admin").args(arguments).output().unwrap();
        (status.code(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
    };
    let load = ["plugin", "load", file.to_str().unwrap(), "--operator", "--canary", "10%", "--setting", "max-vcpus=8"];
    let (code, text) = run(&load);
    assert!(code == Some(0) && text.contains("canary 10%") && text.contains("max-vcpus=8"), "{text}");
    let (_, text) = run(&["plugin", "list"]);
    assert!(text.contains("0 asked, 0 denied, 0 failed; bound version: 0 asked"), "{text}");
    // Without the word it is not the canary that is meant.
    let (code, text) = run(&["plugin", "demote", "admission", "--operator"]);
    assert!(code == Some(6) && text.contains("--canary"), "{code:?} {text}");
    let (code, text) = run(&["plugin", "promote", "admission", "--operator", "--canary", "--validate-only"]);
    assert!(code == Some(0) && text.contains("nothing was changed"), "{text}");
    let (code, text) = run(&["plugin", "promote", "admission", "--operator", "--canary"]);
    assert!(code == Some(0) && !text.contains("canary") && text.contains("max-vcpus=8"), "{text}");
    assert!(run(&load).1.contains("canary"), "a version may stand beside itself");
    let (code, text) = run(&["plugin", "demote", "admission", "--operator", "--canary"]);
    assert!(code == Some(0) && !text.contains("canary"), "{text}");
    assert_ne!(run(&["plugin", "promote", "admission", "--operator", "--canary"]).0, Some(0));
}
