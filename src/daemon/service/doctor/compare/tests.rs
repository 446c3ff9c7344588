//! The comparison: one case for each kind, and what must never be proposed, whatever a host shows.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::daemon::inventory::{AddressPool, VFIO_DRIVER, device_samples, nvme_samples};
use crate::daemon::record::{
    Lease, LeaseEvent, NicLease, NvmeHolder, NvmeKey, NvmePart, Subnet, VfLease, lease_samples, mac_of, samples,
};
use crate::daemon::store::{RecordFault, RecordFaultKind, Snapshot};
use crate::daemon::supervisor::{DirKind, Traces, VmCgroup, VmDir, VmProcess};
use crate::model::{MacAddr, VmState};
use crate::sys::tap;

use super::super::super::devices::key_of;
use super::super::finding::{FindingState, lasting};

/// A VM of its own number, in `state`.
fn vm(number: u8, state: VmState) -> VmRecord {
    let mut vm = samples::running("acme", &format!("vm{number}"));
    let subnet = Subnet::new([172, 30, number, 4].into()).unwrap();
    vm.nics = vec![NicLease { id: "eth0".parse().unwrap(), subnet, mac: mac_of(vm.uid, &"eth0".parse().unwrap()) }];
    vm.user = 0x4f00_0000 + u32::from(number);
    let process = Identity { pid: 1000 + u32::from(number), start_time: 7 };
    match state.has_process() {
        true => vm.run.as_mut().unwrap().process = Some(process),
        false => vm.run = None,
    }
    VmRecord { state, ..vm }
}

fn snapshot(vms: &[VmRecord]) -> Snapshot {
    Snapshot { vms: vms.iter().map(|vm| (vm.uid, Arc::new(vm.clone()))).collect(), ..Snapshot::default() }
}

/// What the host shows of VMs that are as their records say.
fn traces_of(vms: &[VmRecord]) -> Traces {
    let dir = |vm: &VmRecord, has_control| VmDir { vm: vm.uid, has_control, has_mount: false };
    let mut traces = Traces { cgroups: Some(Vec::new()), ..Traces::default() };
    for vm in vms {
        traces.state_dirs.push(dir(vm, false));
        let Some(process) = vm.run.as_ref().and_then(|run| run.process) else { continue };
        traces.processes.push(VmProcess { vm: vm.uid, identity: process, user: vm.user, is_stopped: false });
        traces.run_dirs.push(dir(vm, true));
        let cgroup = VmCgroup { vm: vm.uid, processes: vec![process.pid], unlimited: None };
        traces.cgroups.as_mut().unwrap().push(cgroup);
        let taps = vm.nics.iter().map(|nic| tap::Shown { name: nic.subnet.tap_name(), is_alike: true, is_held: true });
        traces.taps.extend(taps);
    }
    traces
}

/// A look at a host on which all is well.
fn well(vms: &[VmRecord]) -> Look {
    let snapshot = Arc::new(snapshot(vms));
    let standing = |vm: &VmRecord| {
        let process = vm.run.as_ref().and_then(|run| run.process);
        TaskFact::Stands(Standing { process, is_linked: process.is_some(), is_settled: true })
    };
    Look {
        tasks: vms.iter().map(|vm| (vm.uid, standing(vm))).collect(),
        traces: Ok(traces_of(vms)),
        before: Arc::clone(&snapshot),
        after: snapshot,
        devices: Ok(device_samples::card(2)),
        nvme: Ok(nvme_samples::primary(&[16])),
        records: Ok(Vec::new()),
        images: Vec::new(),
        stale: Vec::new(),
        addresses: AddressPool::new("172.30.0.0/16".parse().unwrap(), []),
    }
}

fn two() -> [VmRecord; 2] {
    [vm(1, VmState::Running), vm(2, VmState::Stopped)]
}

/// Kinds and objects of what is found after `change`.
fn after(change: impl FnOnce(&mut Look, &[VmRecord; 2])) -> Vec<(FindingKind, String, Remedy)> {
    let vms = two();
    let mut look = well(&vms);
    change(&mut look, &vms);
    compare(&look).into_iter().map(|finding| (finding.kind, finding.object, finding.remedy)).collect()
}

fn traces(look: &mut Look) -> &mut Traces {
    look.traces.as_mut().unwrap()
}

/// The only finding, with whether a repair does away with it.
fn only(found: Vec<(FindingKind, String, Remedy)>) -> (FindingKind, String, bool) {
    let [(kind, object, remedy)] = <[_; 1]>::try_from(found).unwrap();
    (kind, object, !matches!(remedy, Remedy::Person(_)))
}

#[test]
fn a_host_that_is_as_its_records_say_has_no_findings() {
    assert_eq!(after(|_, _| {}), []);
    assert_eq!(compare(&well(&[])), []);
}

#[test]
fn what_is_of_a_vm_that_does_not_exist_is_found_once_each() {
    let stranger = vm(9, VmState::Running);
    let found = after(|look, _| {
        let more = traces_of(std::slice::from_ref(&stranger));
        let traces = traces(look);
        traces.processes.extend(more.processes);
        traces.run_dirs.extend(more.run_dirs);
        traces.state_dirs.extend(more.state_dirs);
        traces.taps.extend(more.taps.into_iter().map(|tap| tap::Shown { is_held: false, ..tap }));
        traces.cgroups.as_mut().unwrap().extend(more.cgroups.unwrap());
    });
    let uid = stranger.uid;
    let process = stranger.run.unwrap().process.unwrap();
    let name = stranger.nics[0].subnet.tap_name();
    let expected = [
        (FindingKind::ProcessOrphaned, "process 1009".to_owned(), Remedy::Kill(uid, process)),
        (FindingKind::CgroupOrphaned, format!("cgroup {uid}"), Remedy::RemoveCgroup(uid)),
        (FindingKind::RunDirectoryOrphaned, format!("run directory {uid}"), Remedy::RemoveDir(uid, DirKind::Run)),
        (FindingKind::StateDirectoryOrphaned, format!("state directory {uid}"), Remedy::RemoveDir(uid, DirKind::State)),
        (FindingKind::TapOrphaned, format!("tap {name}"), Remedy::RemoveTap(name)),
    ];
    assert_eq!(found, expected);
}

#[test]
fn what_is_left_of_a_run_is_its_task_s_to_remove() {
    let found = after(|look, [_, off]| {
        let running = VmRecord { run: vm(2, VmState::Running).run, ..off.clone() };
        let more = traces_of(&[running]);
        traces(look).run_dirs.extend(more.run_dirs);
        traces(look).cgroups.as_mut().unwrap().extend(more.cgroups.unwrap());
        traces(look).processes.extend(more.processes);
        traces(look).taps.extend(more.taps.into_iter().map(|tap| tap::Shown { is_held: false, ..tap }));
    });
    let remedies: Vec<_> = found.iter().map(|(_, _, remedy)| remedy).collect();
    assert!(
        matches!(remedies[..], [Remedy::Kill(..), Remedy::Tidy(_), Remedy::Tidy(_), Remedy::RemoveTap(_)]),
        "{found:?}"
    );
}

#[test]
fn what_is_under_way_is_not_judged() {
    for task in [TaskFact::Busy, TaskFact::Stands(Standing { process: None, is_linked: false, is_settled: false })] {
        let found = after(|look, [running, off]| {
            look.tasks = [(running.uid, task), (off.uid, task)].into();
            // Its process has just gone, and the other's has come.
            traces(look).processes[0].vm = off.uid;
            traces(look).run_dirs[0].vm = off.uid;
            traces(look).cgroups.as_mut().unwrap()[0].vm = off.uid;
            traces(look).taps[0].name = off.nics[0].subnet.tap_name();
        });
        assert_eq!(found, []);
    }
    // Nor what was not the same before and after.
    let found = after(|look, [running, _]| {
        let mut after = Snapshot::clone(&look.after);
        after.vms.insert(running.uid, Arc::new(VmRecord { state: VmState::Stopping, ..running.clone() }));
        look.after = Arc::new(after);
        traces(look).run_dirs.clear();
        traces(look).taps.clear();
    });
    assert_eq!(found, []);
    // What is destroyed, or registered, meanwhile has its traces by right.
    let found = after(|look, [_, off]| {
        let mut after = Snapshot::clone(&look.after);
        after.vms.remove(&off.uid);
        look.after = Arc::new(after);
    });
    assert_eq!(found, []);
}

#[test]
fn a_fault_of_a_running_vm_is_told_and_left_to_a_person() {
    let web = || "VM acme/vm1".to_owned();
    type Change = fn(&mut Look, &[VmRecord; 2]);
    let cases: [(FindingKind, Change); 10] = [
        (FindingKind::ProcessLost, |look, [running, _]| {
            traces(look).gone = running.run.as_ref().unwrap().process.into_iter().collect();
        }),
        (FindingKind::ProcessLost, |look, [running, _]| {
            let standing = Standing { process: None, is_linked: false, is_settled: true };
            look.tasks.insert(running.uid, TaskFact::Stands(standing));
            traces(look).cgroups = None;
        }),
        (FindingKind::ProcessSilent, |look, _| traces(look).processes[0].is_stopped = true),
        (FindingKind::ProcessSilent, |look, [running, _]| {
            let process = running.run.as_ref().unwrap().process;
            let standing = Standing { process, is_linked: false, is_settled: true };
            look.tasks.insert(running.uid, TaskFact::Stands(standing));
        }),
        (FindingKind::TaskLost, |look, [running, _]| {
            look.tasks.insert(running.uid, TaskFact::Lost);
        }),
        (FindingKind::VmIncomplete, |look, _| traces(look).run_dirs[0].has_control = false),
        (FindingKind::VmIncomplete, |look, _| traces(look).taps.clear()),
        (FindingKind::VmUnconfined, |look, _| traces(look).cgroups.as_mut().unwrap().clear()),
        (FindingKind::VmUnconfined, |look, _| {
            traces(look).cgroups.as_mut().unwrap()[0].unlimited = Some("memory.max");
        }),
        (FindingKind::VmUnconfined, |look, _| traces(look).processes[0].user = 0),
    ];
    for (number, (kind, change)) in cases.into_iter().enumerate() {
        assert_eq!(only(after(change)), (kind, web(), false), "case {number}");
    }
    // Nobody has looked at the interfaces: that none is seen says nothing.
    let found = after(|look, _| {
        traces(look).taps.clear();
        traces(look).unseen.push("network interfaces: forbidden".into());
    });
    assert_eq!(only(found), (FindingKind::NotLookedAt, "host".into(), false));
}

#[test]
fn what_may_be_somebody_else_s_is_left_to_a_person_or_not_told_at_all() {
    let tap = |name: &str, is_alike, is_held| tap::Shown { name: name.into(), is_alike, is_held };
    let own = Subnet::new([172, 30, 200, 0].into()).unwrap().tap_name();
    let with = |shown: tap::Shown| after(|look, _| traces(look).taps.push(shown));
    assert_eq!(only(with(tap(&own, true, false))), (FindingKind::TapOrphaned, format!("tap {own}"), true));
    for (is_alike, is_held) in [(false, false), (true, true)] {
        assert_eq!(only(with(tap(&own, is_alike, is_held))), (FindingKind::TapOrphaned, format!("tap {own}"), false));
    }
    let other_network = Subnet::new([172, 31, 0, 0].into()).unwrap().tap_name();
    for name in [other_network.as_str(), "ostrich", "ost", "tap0"] {
        assert_eq!(with(tap(name, true, false)), [], "{name}");
    }
    // A VM's process in a cgroup of a VM that does not exist; a mount in a directory of one.
    let stranger = vm(9, VmState::Running);
    let found = after(|look, [running, _]| {
        let pid = running.run.as_ref().unwrap().process.unwrap().pid;
        let cgroup = VmCgroup { vm: stranger.uid, processes: vec![pid], unlimited: None };
        traces(look).cgroups.as_mut().unwrap().push(cgroup);
    });
    assert_eq!(only(found), (FindingKind::CgroupOrphaned, format!("cgroup {}", stranger.uid), false));
    let found = after(|look, _| {
        let dir = VmDir { vm: stranger.uid, has_control: false, has_mount: true };
        traces(look).state_dirs.push(dir);
    });
    assert_eq!(only(found), (FindingKind::StateDirectoryOrphaned, format!("state directory {}", stranger.uid), false));
}

/// The lease of the first function of the sample's card, for `vm`'s NIC, after `events`.
fn lease_of(vm: &VmRecord, nic: &str, events: impl IntoIterator<Item = LeaseEvent>) -> VfLease {
    let devices = device_samples::card(2);
    let (pf, vf) = devices.vfs().next().unwrap();
    let mut holder = lease_samples::holder("acme");
    (holder.vm, holder.nic) = (vm.uid, nic.parse().unwrap());
    let lease = VfLease::unheld(key_of(pf, vf).unwrap(), vf.address).after(LeaseEvent::Claim(holder)).unwrap();
    events.into_iter().fold(lease, |lease, event| lease.after(event).unwrap())
}

fn put(look: &mut Look, lease: &VfLease) {
    let mut snapshot = Snapshot::clone(&look.after);
    snapshot.leases.insert(lease.key, Arc::new(lease.clone()));
    look.before = Arc::new(snapshot);
    look.after = Arc::clone(&look.before);
}

/// Has vfio-pci bound to the first function, with this address.
fn bind(look: &mut Look, mac: MacAddr) {
    let vf = &mut look.devices.as_mut().unwrap().pfs[0].vfs[0];
    vf.driver = Some(VFIO_DRIVER.to_owned());
    vf.config.as_mut().unwrap().mac = mac.0;
}

#[test]
fn a_lease_without_a_vm_that_runs_with_it_is_stranded_and_a_quarantine_is_told() {
    use LeaseEvent::{Attached, Prepared, Release, Unclean};
    let function = || "virtual function 0000:01:10.0".to_owned();
    let held = [Prepared, Attached];
    // By a VM that does not exist, is off, or has no such device.
    let stranger = vm(9, VmState::Running);
    let [running, off] = two();
    let stranded = |vm: &VmRecord, nic: &str, vms: &[VmRecord]| {
        let mut look = well(vms);
        let lease = lease_of(vm, nic, held.clone());
        put(&mut look, &lease);
        let found = compare(&look);
        assert!(found.iter().all(|finding| finding.remedy == Remedy::CleanVf(lease.key, 3)), "{found:?}");
        found.into_iter().map(|finding| (finding.kind, finding.object)).collect::<Vec<_>>()
    };
    let vms = [running.clone(), off.clone()];
    for (vm, nic) in [(&stranger, "eth0"), (&off, "eth0"), (&running, "gone")] {
        assert_eq!(stranded(vm, nic, &vms), [(FindingKind::LeaseStranded, function())]);
    }
    // One that runs with it has it; it must be what the lease says.
    let lease = lease_of(&running, "eth0", held.clone());
    let mac = lease.state.holder().unwrap().mac;
    let shown = |change: &dyn Fn(&mut Look)| {
        let mut look = well(&vms);
        put(&mut look, &lease);
        bind(&mut look, mac);
        change(&mut look);
        compare(&look).into_iter().map(|finding| (finding.kind, finding.object, finding.state)).collect::<Vec<_>>()
    };
    assert_eq!(shown(&|_| {}), []);
    let changed = [(FindingKind::DeviceChanged, function(), FindingState::NeedsOperator)];
    assert_eq!(shown(&|look| look.devices.as_mut().unwrap().pfs[0].vfs[0].driver = None), changed);
    assert_eq!(shown(&|look| bind(look, MacAddr([2, 9, 9, 9, 9, 9]))), changed);
    assert_eq!(shown(&|look| drop(look.devices.as_mut().unwrap().pfs[0].vfs.remove(0))), changed);

    let quarantined = lease_of(&off, "eth0", [Release, Unclean("it cannot be reset".into())]);
    let found = after(|look, _| put(look, &quarantined));
    assert_eq!(only(found), (FindingKind::DeviceQuarantined, function(), true));
    let releasing = lease_of(&off, "eth0", [Release]);
    assert_eq!(only(after(|look, _| put(look, &releasing))), (FindingKind::LeaseStranded, function(), false));
}

#[test]
fn a_function_in_vfio_pci_that_is_free_is_taken_back_only_if_it_was_ours() {
    let [running, _] = two();
    let free = lease_of(&running, "eth0", [LeaseEvent::Release, LeaseEvent::Cleaned]);
    let unbound = after(|look, _| bind(look, MacAddr([0; 6])));
    assert_eq!(only(unbound), (FindingKind::BindingUnexplained, "virtual function 0000:01:10.0".into(), false));
    let ours = after(|look, _| {
        put(look, &free);
        bind(look, MacAddr([0; 6]));
    });
    assert_eq!(only(ours), (FindingKind::BindingUnexplained, "virtual function 0000:01:10.0".into(), true));
    let of_secondary = after(|look, _| {
        let facts = look.nvme.as_mut().unwrap().controllers[0].facts.as_mut().unwrap();
        facts.secondaries[0].function.as_mut().unwrap().driver = Some(VFIO_DRIVER.into());
    });
    assert_eq!(
        only(of_secondary),
        (FindingKind::BindingUnexplained, "NVMe controller 1 of 0000:02:00.0".into(), false)
    );
}

#[test]
fn a_namespace_is_its_vm_s_across_runs_and_a_secondary_controller_is_not() {
    let stranger = vm(9, VmState::Running);
    let [running, off] = two();
    let of = |vm: &VmRecord, part, events: &[LeaseEvent<NvmeHolder>]| {
        let controller = crate::model::Bdf::new(0, 2, 0, 0).unwrap();
        let key = NvmeKey { controller, serial: "LAB".into(), part };
        let holder = NvmeHolder { vm: vm.uid, tenant: vm.tenant.clone(), device: "root".parse().unwrap() };
        let lease = Lease::unheld(key, controller).after(LeaseEvent::Claim(holder)).unwrap();
        let lease = events.iter().fold(lease, |lease, event| lease.after(event.clone()).unwrap());
        let mut look = well(&[running.clone(), off.clone()]);
        let mut snapshot = Snapshot::clone(&look.after);
        snapshot.nvme_leases.insert(lease.key.clone(), Arc::new(lease));
        look.before = Arc::new(snapshot);
        look.after = Arc::clone(&look.before);
        compare(&look).into_iter().map(|finding| (finding.kind, finding.state)).collect::<Vec<_>>()
    };
    let (data, secondary) = (NvmePart::Namespace(2), NvmePart::Secondary(1));
    let attached = [LeaseEvent::Prepared, LeaseEvent::Attached];
    let stranded = [(FindingKind::LeaseStranded, FindingState::Repairable)];
    for vm in [&running, &off] {
        assert_eq!(of(vm, data, &attached), []);
    }
    assert_eq!(of(&running, secondary, &attached), []);
    assert_eq!(of(&off, secondary, &attached), stranded);
    // What it never got to see is not its own.
    assert_eq!(of(&off, data, &attached[..1]), stranded);
    assert_eq!(of(&stranger, data, &attached), stranded);
    assert_eq!(of(&stranger, data, &[LeaseEvent::Release]), [], "it is being erased");
    let unclean = [LeaseEvent::Release, LeaseEvent::Unclean("not zero".into())];
    assert_eq!(of(&off, data, &unclean), [(FindingKind::DeviceQuarantined, FindingState::NeedsOperator)]);
}

#[test]
fn what_only_one_may_have_is_found_when_two_have_it() {
    let [running, mut off] = two();
    (off.user, off.nics[0].subnet) = (running.user, running.nics[0].subnet);
    let mut look = well(&[running.clone(), off]);
    traces(&mut look).taps.truncate(1);
    let found: Vec<_> = compare(&look).into_iter().map(|finding| (finding.kind, finding.object)).collect();
    let expected = ["network 172.30.1.4", "user id 1325400065"].map(|what| (FindingKind::HeldTwice, what.to_owned()));
    assert_eq!(found, expected);
    // An idle function with a VM's address would take its frames; one that has none yet has not.
    let found = after(|look, [running, _]| {
        let mac = running.nics[0].mac.0;
        look.devices.as_mut().unwrap().pfs[0].vfs[1].config.as_mut().unwrap().mac = mac;
    });
    assert_eq!(only(found).0, FindingKind::HeldTwice);
    let found = after(|look, _| {
        for vf in &mut look.devices.as_mut().unwrap().pfs[0].vfs {
            vf.config.as_mut().unwrap().mac = [2, 0, 0, 0, 0, 77];
        }
    });
    assert_eq!(found, [], "that is the host's own affair");
}

#[test]
fn records_images_and_files_are_told_for_themselves() {
    let fault = |key: String, what| Ok(vec![RecordFault { table: "vms", key, what }]);
    let found = after(|look, [running, _]| look.records = fault(running.uid.to_string(), RecordFaultKind::Unwritten));
    assert_eq!(only(found).0, FindingKind::RecordUnwritten);
    let found =
        after(|look, _| look.records = fault("01J".into(), RecordFaultKind::Unreadable("it has format 9".into())));
    assert_eq!(only(found).0, FindingKind::RecordUnreadable);
    // One that is just being written is on its way.
    let found = after(|look, [running, _]| {
        look.records = fault(running.uid.to_string(), RecordFaultKind::Unwritten);
        let mut after = Snapshot::clone(&look.after);
        after.vms.insert(running.uid, Arc::new(VmRecord { state: VmState::Stopping, ..running.clone() }));
        look.after = Arc::new(after);
    });
    assert_eq!(found, []);
    let history = RecordFault { table: "history", key: "7".into(), what: RecordFaultKind::Unreadable("x".into()) };
    assert_eq!(only(after(|look, _| look.records = Ok(vec![history]))).0, FindingKind::RecordUnreadable);
    assert_eq!(only(after(|look, _| look.records = Err("store is closed".into()))).0, FindingKind::RecordUnwritten);
    let found = after(|look, [_, off]| look.images.push((off.uid, "root.img does not exist".into())));
    assert_eq!(only(found), (FindingKind::ImageUnusable, "VM acme/vm2".into(), false));
    let found = after(|look, _| look.stale.push("/data/plugins/a.partial".into()));
    assert_eq!(only(found), (FindingKind::FileStale, "file /data/plugins/a.partial".into(), true));
    let found = after(|look, _| look.nvme = Err("no".into()));
    assert_eq!(only(found), (FindingKind::NotLookedAt, "NVMe controllers".into(), false));
}

#[test]
fn a_card_that_says_nothing_matters_only_if_somebody_has_a_part_of_it() {
    let mute = |look: &mut Look| look.devices.as_mut().unwrap().pfs[0].link = None;
    assert_eq!(after(|look, _| mute(look)), []);
    let found = after(|look, [running, _]| {
        let lease = lease_of(running, "eth0", [LeaseEvent::Prepared, LeaseEvent::Attached]);
        put(look, &lease);
        mute(look);
    });
    assert_eq!(only(found), (FindingKind::NotLookedAt, "network card 0000:01:00.0".into(), false));
    let mute = |look: &mut Look| look.nvme.as_mut().unwrap().controllers[0].facts = Err("no answer".into());
    assert_eq!(after(|look, _| mute(look)), []);
}

#[test]
fn only_what_both_looks_have_seen_is_a_finding() {
    let finding = |object: &str, detail: &str| {
        Finding::new(FindingKind::FileStale, object.into(), detail, Remedy::RemoveFile(object.into()))
    };
    let first = [finding("a", "then"), finding("b", "then")];
    let second = vec![finding("c", "now"), finding("b", "now"), finding("b", "now")];
    assert_eq!(lasting(&first, second), [finding("b", "now")]);
}

/// How a VM is, for the test below.
#[derive(Debug, Clone, Copy)]
struct Shape {
    is_running: bool,
    /// Its task stands still and its record stays the same.
    is_steady: bool,
    /// It has a record at all.
    is_known: bool,
    /// What the host shows of it: process, cgroup, run directory, state directory, tap.
    shown: [bool; 5],
    is_tap_held: bool,
}

fn any_shape() -> impl Strategy<Value = Shape> {
    (any::<[bool; 4]>(), any::<[bool; 5]>()).prop_map(|([is_running, is_steady, is_known, is_tap_held], shown)| Shape {
        is_running,
        is_steady,
        is_known,
        shown,
        is_tap_held,
    })
}

/// The VM as the host shows it.
fn shown(vm: &VmRecord, shape: Shape) -> Traces {
    let as_if = VmRecord { run: self::vm(0, VmState::Running).run, ..vm.clone() };
    let as_if = if vm.run.is_some() { vm.clone() } else { as_if };
    let mut traces = traces_of(&[as_if]);
    let [process, cgroup, run_dir, state_dir, tap] = shape.shown;
    traces.processes.retain(|_| process);
    traces.cgroups.as_mut().unwrap().retain(|_| cgroup);
    traces.run_dirs.retain(|_| run_dir);
    traces.state_dirs.retain(|_| state_dir);
    traces.taps.retain(|_| tap);
    traces.taps.iter_mut().for_each(|tap| tap.is_held = shape.is_tap_held);
    traces
}

proptest! {
    /// Whatever the host shows: nothing of a VM that runs, or has something under way, is ever to be removed, and of one
    /// that is off only what its task removes.
    #[test]
    fn nothing_of_a_vm_that_lives_is_ever_to_be_removed(shapes in proptest::collection::vec(any_shape(), 0..6)) {
        let all: Vec<_> = shapes.iter().zip(1u8..).map(|(shape, number)| {
            (*shape, vm(number, if shape.is_running { VmState::Running } else { VmState::Stopped }))
        }).collect();
        let known: Vec<_> = all.iter().filter(|(shape, _)| shape.is_known).map(|(_, vm)| vm.clone()).collect();
        let mut look = well(&known);
        let mut found = Traces { cgroups: Some(Vec::new()), ..Traces::default() };
        for (shape, vm) in &all {
            let of = shown(vm, *shape);
            found.processes.extend(of.processes);
            found.run_dirs.extend(of.run_dirs);
            found.state_dirs.extend(of.state_dirs);
            found.taps.extend(of.taps);
            found.cgroups.as_mut().unwrap().extend(of.cgroups.unwrap());
            if shape.is_known && !shape.is_steady {
                look.tasks.insert(vm.uid, TaskFact::Busy);
            }
        }
        look.traces = Ok(found);
        let shape_of = |uid: VmId| all.iter().find(|(_, vm)| vm.uid == uid).unwrap().0;
        for finding in compare(&look) {
            match &finding.remedy {
                Remedy::Kill(uid, identity) => {
                    let shape = shape_of(*uid);
                    let is_of_record = known.iter().any(|vm| vm.run.as_ref().is_some_and(|run| run.process == Some(*identity)));
                    prop_assert!(!is_of_record && (!shape.is_known || shape.is_steady), "{finding:?} {shape:?}");
                }
                Remedy::RemoveCgroup(uid) | Remedy::RemoveDir(uid, _) => {
                    prop_assert!(!shape_of(*uid).is_known, "{finding:?}");
                }
                Remedy::Tidy(uid) => {
                    let shape = shape_of(*uid);
                    prop_assert!(shape.is_known && shape.is_steady && !shape.is_running, "{finding:?} {shape:?}");
                }
                Remedy::RemoveTap(name) => {
                    let (shape, _) = all.iter().find(|(_, vm)| vm.nics[0].subnet.tap_name() == *name).unwrap();
                    let is_idle = !shape.is_known || (shape.is_steady && !shape.is_running);
                    prop_assert!(is_idle && !shape.is_tap_held, "{finding:?} {shape:?}");
                }
                Remedy::Person(_) => {}
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
