//! Processes, cgroups, directories and taps of VMs.

use super::super::look::{Look, TaskFact};
use super::{Finding, FindingKind as Kind, Remedy, Vms, named};
use crate::daemon::record::{AttachState, Subnet, VmRecord};
use crate::daemon::supervisor::{DirKind, Standing, Traces, VmCgroup, VmDir, VmProcess};
use crate::sys::tap;

const RESTART: &str = "restart the daemon: it takes over what runs and tells how the rest ended";
const ANEW: &str = "stop and start the VM when that is convenient";

pub(super) fn compare(look: &Look, vms: &Vms<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    for (uid, _) in look.tasks.iter().filter(|(_, task)| **task == TaskFact::Lost) {
        if let (Some(vm), true) = (look.before.vms.get(uid), look.after.vms.contains_key(uid)) {
            let detail = format!("it is {}, and nothing in the daemon drives it any more", vm.state.name());
            found.push(Finding::for_person(Kind::TaskLost, named(vm), detail, RESTART));
        }
    }
    let traces = match &look.traces {
        Ok(traces) => traces,
        Err(_told_elsewhere) => return found,
    };
    found.extend(traces.processes.iter().filter_map(|process| stray_process(process, vms)));
    found.extend(traces.cgroups.iter().flatten().filter_map(|cgroup| stray_cgroup(cgroup, vms)));
    for (dirs, kind) in [(&traces.run_dirs, DirKind::Run), (&traces.state_dirs, DirKind::State)] {
        found.extend(dirs.iter().filter_map(|dir| stray_dir(*dir, kind, vms)));
    }
    found.extend(traces.taps.iter().filter_map(|tap| stray_tap(tap, look, vms)));
    for (vm, standing) in vms.all_running() {
        found.extend(process_of(vm, standing, traces));
        // What could not be looked at is missing everywhere.
        if traces.unseen.is_empty() {
            found.extend(missing(vm, traces));
            found.extend(unconfined(vm, standing, traces));
        }
    }
    found
}

fn stray_process(process: &VmProcess, vms: &Vms<'_>) -> Option<Finding> {
    let VmProcess { vm, identity, .. } = *process;
    if vms.has_process(identity) {
        return None;
    }
    let detail = match vms.steady.get(&vm) {
        None if vms.is_known(vm) => return None,
        None => format!("it runs for a VM {vm} that does not exist"),
        Some((record, _)) => format!("it is not the process of {}, whose name it carries", named(record)),
    };
    let object = format!("process {}", identity.pid);
    Some(Finding::new(Kind::ProcessOrphaned, object, detail, Remedy::Kill(vm, identity)))
}

fn stray_cgroup(cgroup: &VmCgroup, vms: &Vms<'_>) -> Option<Finding> {
    let object = format!("cgroup {}", cgroup.vm);
    let count = cgroup.processes.len();
    if let Some(vm) = vms.off(cgroup.vm) {
        let detail = format!("{} is off; {count} processes are in it", named(vm));
        return Some(Finding::new(Kind::CgroupOrphaned, object, detail, Remedy::Tidy(cgroup.vm)));
    }
    if vms.is_known(cgroup.vm) {
        return None;
    }
    let detail = format!("the VM does not exist; {count} processes are in it");
    // Somebody has put a process of a VM here.
    if cgroup.processes.iter().any(|pid| vms.processes.iter().any(|(known, _)| known == pid)) {
        let advice = "a VM's process is in it: move that back into its VM's cgroup, or stop the VM";
        return Some(Finding::for_person(Kind::CgroupOrphaned, object, detail, advice));
    }
    Some(Finding::new(Kind::CgroupOrphaned, object, detail, Remedy::RemoveCgroup(cgroup.vm)))
}

fn stray_dir(dir: VmDir, of: DirKind, vms: &Vms<'_>) -> Option<Finding> {
    let (kind, object) = match of {
        DirKind::Run => (Kind::RunDirectoryOrphaned, format!("run directory {}", dir.vm)),
        DirKind::State => (Kind::StateDirectoryOrphaned, format!("state directory {}", dir.vm)),
    };
    let (detail, remedy) = match (vms.off(dir.vm), of) {
        (Some(vm), DirKind::Run) => (format!("{} is off", named(vm)), Remedy::Tidy(dir.vm)),
        _ if vms.is_known(dir.vm) => return None,
        _ => ("the VM does not exist".to_owned(), Remedy::RemoveDir(dir.vm, of)),
    };
    if dir.has_mount {
        let advice = "something is mounted in it: unmount that first";
        return Some(Finding::for_person(kind, object, detail, advice));
    }
    Some(Finding::new(kind, object, detail, remedy))
}

fn stray_tap(tap: &tap::Shown, look: &Look, vms: &Vms<'_>) -> Option<Finding> {
    let subnet = Subnet::of_tap(&tap.name)?;
    let has_it = |vm: &VmRecord| vm.nics.iter().any(|nic| nic.subnet == subnet);
    let records = look.before.vms.values().chain(look.after.vms.values());
    let holders: Vec<_> = records.filter(|vm| has_it(vm)).collect();
    if holders.iter().any(|vm| vms.off(vm.uid).is_none()) {
        return None;
    }
    let detail = match holders.first() {
        Some(vm) => format!("{} is off", named(vm)),
        // Another daemon of this host may have named it, with another network.
        None if !look.addresses.has(subnet) => return None,
        None => "no VM has its network".to_owned(),
    };
    let object = format!("tap {}", tap.name);
    if tap.is_held {
        let advice = format!(
            "it goes with the process that has it open, which `grep -l 'iff:.*{}$' /proc/[0-9]*/fdinfo/*` finds",
            tap.name
        );
        return Some(Finding::for_person(Kind::TapOrphaned, object, detail, &advice));
    }
    if !tap.is_alike {
        let detail = format!("{detail}, and it is not made as those of VMs are");
        let advice = format!("if nothing needs it: ip link delete {}", tap.name);
        return Some(Finding::for_person(Kind::TapOrphaned, object, detail, &advice));
    }
    Some(Finding::new(Kind::TapOrphaned, object, detail, Remedy::RemoveTap(tap.name.clone())))
}

/// Whether the process of a running VM is there, is its task's, and listens.
fn process_of(vm: &VmRecord, standing: Standing, traces: &Traces) -> Option<Finding> {
    let recorded = vm.run.as_ref().and_then(|run| run.process);
    let Some(process) = recorded.filter(|process| Some(*process) == standing.process) else {
        let pid = |of: Option<crate::sys::process::Identity>| of.map_or("none".to_owned(), |one| one.pid.to_string());
        let detail = format!("its record has process {}, its task {}", pid(recorded), pid(standing.process));
        return Some(Finding::for_person(Kind::ProcessLost, named(vm), detail, RESTART));
    };
    if traces.gone.contains(&process) {
        let detail = format!("its process {} is gone, and the daemon has not noticed", process.pid);
        return Some(Finding::for_person(Kind::ProcessLost, named(vm), detail, RESTART));
    }
    let shown = traces.processes.iter().find(|shown| shown.identity == process);
    if shown.is_some_and(|shown| shown.is_stopped) {
        let detail = format!("its process {} was stopped by a signal", process.pid);
        let advice = format!("kill -CONT {} lets it go on", process.pid);
        return Some(Finding::for_person(Kind::ProcessSilent, named(vm), detail, &advice));
    }
    if !standing.is_linked {
        let detail = format!("its process {} does not listen to the daemon", process.pid);
        let advice = "stop the VM: its process is killed when the grace is over";
        return Some(Finding::for_person(Kind::ProcessSilent, named(vm), detail, advice));
    }
    None
}

/// What a running VM had on the host and has no more.
fn missing(vm: &VmRecord, traces: &Traces) -> Option<Finding> {
    let mut lacks = Vec::new();
    let is_own = |dir: &&VmDir| dir.vm == vm.uid;
    match traces.run_dirs.iter().find(is_own) {
        Some(dir) if dir.has_control => {}
        _ => lacks.push("its control socket: a daemon that starts anew would not find it, and kill it".to_owned()),
    }
    if !traces.state_dirs.iter().any(|dir| is_own(&dir)) {
        lacks.push("its directory of console and log".to_owned());
    }
    let is_attached = |id| vm.attachment(id).is_some_and(|attachment| attachment.state == AttachState::Attached);
    for nic in vm.nics.iter().filter(|nic| is_attached(&nic.id)) {
        let name = nic.subnet.tap_name();
        if !traces.taps.iter().any(|tap| tap.name == name) {
            lacks.push(format!("the tap {name} of its NIC {}", nic.id));
        }
    }
    let detail = format!("it runs without {}", lacks.join("; without "));
    (!lacks.is_empty()).then(|| Finding::for_person(Kind::VmIncomplete, named(vm), detail, ANEW))
}

/// What of its jail a running VM has lost. Where VMs have none, nothing.
fn unconfined(vm: &VmRecord, standing: Standing, traces: &Traces) -> Option<Finding> {
    let (cgroups, process) = (traces.cgroups.as_ref()?, standing.process?);
    if traces.gone.contains(&process) {
        return None;
    }
    let detail = match cgroups.iter().find(|cgroup| cgroup.vm == vm.uid) {
        None => Some("it has no cgroup".to_owned()),
        Some(cgroup) if !cgroup.processes.contains(&process.pid) => Some("its process is not in its cgroup".to_owned()),
        Some(cgroup) => cgroup.unlimited.map(|file| format!("its cgroup has no limit ({file})")),
    };
    let of_process = || match traces.processes.iter().find(|shown| shown.identity == process) {
        None => Some("its process does not carry its name any more".to_owned()),
        Some(shown) if shown.user != vm.user => Some(format!("its process is user {}, not {}", shown.user, vm.user)),
        Some(_) => None,
    };
    let detail = detail.or_else(of_process)?;
    Some(Finding::for_person(Kind::VmUnconfined, named(vm), detail, ANEW))
}
