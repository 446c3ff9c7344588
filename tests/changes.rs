//! Changes that are repeated, conditional, or only tried. Needs no guest; `lifecycle` repeats them on running VMs.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::support::assets::plugin;
use crate::support::client::{spawn, wait};
use crate::support::{Caller, Host, facts, small};
use ostler::api::v1;
use tonic::{Code, Status};

fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn registration(name: &str, request_id: &str) -> v1::RegisterVirtualMachineRequest {
    let vm = v1::VirtualMachine { name: name.into(), spec: Some(small()), ..Default::default() };
    v1::RegisterVirtualMachineRequest { virtual_machine: Some(vm), request_id: request_id.into(), ..Default::default() }
}

fn register(caller: &Caller, request: v1::RegisterVirtualMachineRequest) -> Result<v1::VirtualMachine, Status> {
    wait(caller.vms.clone().register_virtual_machine(request)).map(tonic::Response::into_inner)
}

fn destroy(caller: &Caller, request: v1::DestroyVirtualMachineRequest) -> Result<(), Status> {
    wait(caller.vms.clone().destroy_virtual_machine(request)).map(drop)
}

fn destruction(name: &str, request_id: &str) -> v1::DestroyVirtualMachineRequest {
    v1::DestroyVirtualMachineRequest { name: name.into(), request_id: request_id.into(), ..Default::default() }
}

const WEB: &str = "tenants/acme/vms/web";

#[test]
fn a_repeated_request_gets_the_first_answer_and_changes_nothing() {
    let mut host = Host::start();
    let acme = host.tenant("acme");
    let (made, gone) = (new_id(), new_id());
    let first = register(&acme, registration(WEB, &made)).unwrap();
    assert_eq!(register(&acme, registration(WEB, &made)).unwrap(), first);
    // In capitals it is the same id.
    assert_eq!(register(&acme, registration(WEB, &made.to_uppercase())).unwrap(), first);
    destroy(&acme, destruction(WEB, &gone)).unwrap();
    destroy(&acme, destruction(WEB, &gone)).unwrap();
    // The answer is that of the first time, whatever became of the VM; nothing is registered anew.
    assert_eq!(register(&acme, registration(WEB, &made)).unwrap(), first);
    assert_eq!(acme.list("").unwrap(), vec![]);

    for is_asked_to_end in [false, true] {
        if is_asked_to_end {
            host.stop_daemon();
        } else {
            host.kill_daemon();
        }
        host.start_daemon();
        let acme = host.tenant("acme");
        assert_eq!(register(&acme, registration(WEB, &made)).unwrap(), first);
        destroy(&acme, destruction(WEB, &gone)).unwrap();
        assert_eq!(acme.list("").unwrap(), vec![]);
    }
    let audit = std::fs::read_to_string(host.data().join("audit.log")).unwrap();
    let fresh = audit.lines().filter(|line| line.contains(&made) && !line.contains("\"repeated\":true"));
    assert_eq!(fresh.count(), 1, "{audit}");
}

#[test]
fn one_id_is_for_one_request_of_one_caller() {
    let host = Host::start();
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    let id = new_id();
    register(&acme, registration(WEB, &id)).unwrap();
    let other = registration("tenants/acme/vms/db", &id);
    for refused in [
        register(&acme, other).unwrap_err(),
        register(
            &acme,
            v1::RegisterVirtualMachineRequest { virtual_machine: changed_spec(), ..registration(WEB, &id) },
        )
        .unwrap_err(),
        destroy(&acme, destruction(WEB, &id)).unwrap_err(),
    ] {
        let facts = facts(&refused);
        assert_eq!((facts.code, facts.reason.as_str()), (Code::InvalidArgument, "REQUEST_ID_REUSED"), "{facts:?}");
    }
    // Another caller's ids are its own: nothing of the first answer is seen, and nothing is refused.
    let theirs = register(&globex, registration("tenants/globex/vms/web", &id)).unwrap();
    assert_eq!(theirs.name, "tenants/globex/vms/web");
    let spied = facts(&register(&globex, registration(WEB, &id)).unwrap_err());
    assert_eq!(spied.reason, "REQUEST_ID_REUSED", "{spied:?}");
    assert_eq!(acme.list("").unwrap().len(), 1);
    for id in ["x", "123e4567e89b42d3a456426614174000", &"f".repeat(1 << 17)] {
        let facts = facts(&register(&acme, registration("tenants/acme/vms/new", id)).unwrap_err());
        assert_eq!((facts.code, facts.metadata["field"].as_str()), (Code::InvalidArgument, "request_id"), "{facts:?}");
        assert!(facts.message.len() < 600);
    }
}

fn changed_spec() -> Option<v1::VirtualMachine> {
    let spec = Some(v1::VirtualMachineSpec { vcpus: 2, ..small() });
    Some(v1::VirtualMachine { name: WEB.into(), spec, ..Default::default() })
}

#[test]
fn a_failure_is_not_remembered() {
    let host = Host::without_policy();
    let acme = host.tenant("acme");
    let id = new_id();
    assert_eq!(facts(&register(&acme, registration(WEB, &id)).unwrap_err()).reason, "POLICY_DENIED");
    host.operator().load("operator/plugins/admission", &plugin("admission"), &[]).unwrap();
    let first = register(&acme, registration(WEB, &id)).unwrap();
    assert_eq!(register(&acme, registration(WEB, &id)).unwrap(), first);
}

#[test]
fn of_many_repetitions_at_once_one_is_done_and_all_get_its_answer() {
    let host = Host::start();
    let acme = host.tenant("acme");
    let id = new_id();
    let (answers, received) = std::sync::mpsc::channel();
    for _ in 0..20 {
        let (mut vms, answers, request) = (acme.vms.clone(), answers.clone(), registration(WEB, &id));
        spawn(async move {
            let answer = vms.register_virtual_machine(request).await;
            answers.send(answer.map(tonic::Response::into_inner)).unwrap();
        });
    }
    drop(answers);
    let answers: Vec<_> = received.iter().map(Result::unwrap).collect();
    assert_eq!(answers.len(), 20);
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(acme.list("").unwrap().len(), 1);
}

/// Whenever the daemon dies: after the repetition there is one VM, and its answer is about it.
#[test]
fn a_daemon_that_is_killed_between_effect_and_answer_neither_loses_nor_doubles() {
    let mut host = Host::start();
    let mut doubtful = 0;
    for round in 0..12u64 {
        let (vm, id) = (format!("tenants/acme/vms/vm{round}"), new_id());
        let (answers, received) = std::sync::mpsc::channel();
        let (mut vms, request) = (host.tenant("acme").vms.clone(), registration(&vm, &id));
        spawn(async move {
            let is_answered = vms.register_virtual_machine(request).await.is_ok();
            let _ = answers.send(is_answered);
        });
        // From before the call arrives to after it is answered.
        let was_answered = received.recv_timeout(Duration::from_micros(400 * round)).unwrap_or(false);
        host.kill_daemon();
        doubtful += u32::from(!was_answered);
        host.start_daemon();
        let acme = host.tenant("acme");
        let before = acme.get(&vm).ok();
        let answer = register(&acme, registration(&vm, &id)).unwrap();
        assert!(before.is_none_or(|before| before.uid == answer.uid), "round {round}");
        assert_eq!(acme.get(&vm).unwrap().uid, answer.uid);
        assert_eq!(acme.list("").unwrap().len() as u64, round + 1);
    }
    assert!(doubtful > 0, "every call was answered before the daemon died: nothing was tried");
}

#[test]
fn an_etag_guards_against_changes_that_were_not_seen() {
    let mut host = Host::start();
    let acme = host.tenant("acme");
    let seen = acme.register("web", small()).unwrap();
    assert!(seen.etag.starts_with('"') && seen.etag.ends_with('"') && seen.etag.len() > 10, "{}", seen.etag);
    assert_eq!(acme.get("web").unwrap().etag, seen.etag);
    assert_eq!(acme.list("").unwrap()[0].etag, seen.etag);
    host.kill_daemon();
    host.start_daemon();
    let acme = host.tenant("acme");
    assert_eq!(acme.get("web").unwrap().etag, seen.etag, "the same after a restart");

    // A start that fails changes the VM all the same.
    let start = |etag: &str| {
        let request = v1::StartVirtualMachineRequest { name: WEB.into(), etag: etag.into(), ..Default::default() };
        facts(&wait(acme.vms.clone().start_virtual_machine(request)).unwrap_err())
    };
    assert_eq!(start("\"another\"").reason, "ETAG_MISMATCH");
    assert_eq!(acme.get("web").unwrap(), seen, "nothing happened");
    assert_eq!(start(&seen.etag).reason, "START_FAILED");
    let now = acme.get("web").unwrap();
    assert_ne!(now.etag, seen.etag);
    let stale = facts(
        &destroy(&acme, v1::DestroyVirtualMachineRequest { etag: seen.etag.clone(), ..destruction(WEB, "") })
            .unwrap_err(),
    );
    assert_eq!((stale.code, stale.reason.as_str()), (Code::Aborted, "ETAG_MISMATCH"), "{stale:?}");
    // Another tenant's etag opens nothing.
    let globex = host.tenant("globex");
    let spied = destroy(&globex, v1::DestroyVirtualMachineRequest { etag: now.etag.clone(), ..destruction(WEB, "") });
    assert_eq!(facts(&spied.unwrap_err()).reason, "VM_NOT_FOUND");
    destroy(&acme, v1::DestroyVirtualMachineRequest { etag: now.etag, ..destruction(WEB, "") }).unwrap();

    let operator = host.operator();
    let loaded = operator.plugins("operator").unwrap().remove(0);
    let load = |etag: &str| load(&operator, |header| header.etag = etag.into());
    assert_eq!(facts(&load("\"another\"").unwrap_err()).reason, "ETAG_MISMATCH");
    let replaced = load(&loaded.etag).unwrap();
    assert_ne!(replaced.etag, loaded.etag);
    assert_eq!(facts(&load(&loaded.etag).unwrap_err()).reason, "ETAG_MISMATCH");
}

/// Loads the admission plugin anew, with a header that is changed.
fn load(caller: &Caller, change: impl FnOnce(&mut v1::load_plugin_request::Header)) -> Result<v1::Plugin, Status> {
    use v1::load_plugin_request::{Header, Part};
    let mut header = Header { name: "operator/plugins/admission".into(), ..Default::default() };
    change(&mut header);
    let component = plugin("admission");
    let chunks = component.chunks(64 << 10).map(|chunk| Part::Chunk(chunk.to_vec()));
    caller.load_parts(std::iter::once(Part::Header(header)).chain(chunks).collect())
}

/// Every file below the data directory but the logs, with its content, and the names in the run directory.
fn traces(host: &Host) -> BTreeMap<String, Vec<u8>> {
    fn collect(directory: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            let name = entry.display().to_string();
            if entry.is_dir() {
                found.insert(name, vec![]);
                collect(&entry, found);
            } else if entry.is_file() && !name.ends_with("audit.log") {
                found.insert(name, std::fs::read(&entry).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    collect(&host.data(), &mut found);
    collect(&host.run_dir(), &mut found);
    found
}

#[test]
fn what_is_only_validated_leaves_no_trace_and_is_refused_as_the_real_call_would_be() {
    let host = Host::start();
    let (acme, operator) = (host.tenant("acme"), host.operator());
    acme.register("web", small()).unwrap();
    let mut watch = acme.watch("").unwrap();
    watch.next();
    // What was done about the registration goes to disk behind its answer, and would be taken for a trace of what follows.
    assert_eq!(acme.settled_decisions().len(), 1);
    let (before, taps) = (traces(&host), crate::support::host::taps());
    let id = new_id();
    let dry = |name: &str| v1::RegisterVirtualMachineRequest { validate_only: true, ..registration(name, &id) };
    let shown = register(&acme, dry("tenants/acme/vms/new")).unwrap();
    assert_eq!((shown.state(), shown.spec.unwrap()), (v1::virtual_machine::State::Registered, small()));
    let refusals = [
        (register(&acme, dry(WEB)).unwrap_err(), "VM_EXISTS"),
        (register(&acme, dry("tenants/globex/vms/x")).unwrap_err(), "NOT_ALLOWED"),
    ];
    for (refused, reason) in refusals {
        assert_eq!(facts(&refused).reason, reason);
    }
    let start = v1::StartVirtualMachineRequest { name: WEB.into(), validate_only: true, ..Default::default() };
    wait(acme.vms.clone().start_virtual_machine(start)).unwrap();
    let stop = v1::StopVirtualMachineRequest { name: WEB.into(), validate_only: true, ..Default::default() };
    assert_eq!(facts(&wait(acme.vms.clone().stop_virtual_machine(stop)).unwrap_err()).reason, "WRONG_STATE");
    let reboot = v1::RebootVirtualMachineRequest { name: WEB.into(), validate_only: true, ..Default::default() };
    assert_eq!(facts(&wait(acme.vms.clone().reboot_virtual_machine(reboot)).unwrap_err()).reason, "WRONG_STATE");
    let dry_destroy = |name: &str| v1::DestroyVirtualMachineRequest { validate_only: true, ..destruction(name, &id) };
    destroy(&acme, dry_destroy(WEB)).unwrap();
    assert_eq!(facts(&destroy(&acme, dry_destroy("tenants/acme/vms/ghost")).unwrap_err()).reason, "VM_NOT_FOUND");
    let plugin = load(&operator, |header| {
        header.validate_only = true;
        header.settings.insert("max-vcpus".into(), "1".into());
    });
    assert_eq!(plugin.unwrap().settings["max-vcpus"], "1");
    let refused = load(&operator, |header| {
        header.validate_only = true;
        header.settings.insert("max-cpus".into(), "1".into());
    });
    assert_eq!(facts(&refused.unwrap_err()).reason, "PLUGIN_REFUSED");
    let name = "operator/plugins/admission".to_owned();
    let unload = v1::UnloadPluginRequest { name, force: true, validate_only: true, ..Default::default() };
    wait(operator.plugins.clone().unload_plugin(unload)).unwrap();
    let denied = load(&acme, |header| header.validate_only = true);
    assert_eq!(facts(&denied.unwrap_err()).reason, "NOT_ALLOWED");
    let release =
        v1::ReleaseHostDeviceRequest { address: "0000:ff:1f.7".into(), validate_only: true, ..Default::default() };
    let missing = wait(operator.host.clone().release_host_device(release)).unwrap_err();
    assert_eq!(facts(&missing).reason, "DEVICE_NOT_FOUND");

    // One registration was made: what was only validated is on no record.
    assert_eq!(operator.decisions(v1::ListDecisionsRequest::default()).unwrap().len(), 1);
    assert_eq!(crate::support::host::taps(), taps);
    let after = traces(&host);
    let differs: Vec<_> =
        after.iter().filter(|(name, bytes)| before.get(*name) != Some(bytes)).map(|(n, _)| n).collect();
    assert!(differs.is_empty() && before.len() == after.len(), "{differs:?}");
    assert_eq!(operator.plugins("operator").unwrap()[0].settings.len(), 0);
    // The id was not used up, and what was validated can be done; the watch hears of this first.
    register(&acme, registration("tenants/acme/vms/new", &id)).unwrap();
    assert_eq!(watch.next().virtual_machine.unwrap().name, "tenants/acme/vms/new");
}

#[test]
fn policy_is_asked_when_a_registration_is_validated() {
    let host = Host::without_policy();
    let dry = v1::RegisterVirtualMachineRequest { validate_only: true, ..registration(WEB, "") };
    assert_eq!(facts(&register(&host.tenant("acme"), dry).unwrap_err()).reason, "POLICY_DENIED");
}
