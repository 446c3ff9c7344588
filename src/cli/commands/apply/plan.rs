//! What has to be done so that a VM is as the file says. Pure. Key types: [`Plan`], [`Step`]; key function: [`plan`].

use std::collections::{BTreeMap, BTreeSet};

use crate::api::v1;
use crate::api::v1::attach_device_request::Device;
use crate::api::v1::virtual_machine::State;

use super::super::super::units::MemoryMib;
use super::file::{Goal, Wanted};

/// One call.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    Register(Box<v1::VirtualMachineSpec>),
    Start,
    Pause,
    Resume,
    Stop,
    Destroy,
    Detach(String),
    Attach(Device),
    /// Limits of a disk or a NIC; `None`: none.
    Limit(String, Option<v1::RateLimits>),
    /// What the guest keeps of its memory, in MiB; 0: all.
    Keep(u64),
}

/// What is to be done about one VM.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// tenants/{tenant}/vms/{vm}
    pub(super) name: String,
    /// As the VM was when this was planned; empty if there was none.
    pub(super) etag: String,
    /// In this order.
    pub(super) steps: Vec<Step>,
    /// Why the VM cannot be made so.
    pub(super) obstacles: Vec<String>,
    /// What differs, and is to.
    pub(super) notes: Vec<String>,
}

impl Step {
    /// What programs know it by.
    pub(super) fn action(&self) -> &'static str {
        match self {
            Self::Register(_) => "register",
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Stop => "stop",
            Self::Destroy => "destroy",
            Self::Detach(_) => "detach",
            Self::Attach(_) => "attach",
            Self::Limit(..) => "limit",
            Self::Keep(_) => "balloon",
        }
    }

    /// What it is about.
    pub(super) fn detail(&self) -> String {
        match self {
            Self::Register(spec) => {
                let mut words = vec![format!("{} vCPUs", spec.vcpus), MemoryMib(spec.memory_mib).to_string()];
                words.extend(spec.boot.iter().map(|boot| boot.kernel.clone()));
                words.extend(spec.disks.iter().map(|disk| format!("disk {} ({})", disk.id, disk.volume)));
                words.extend(spec.nics.iter().map(|nic| format!("nic {}", nic.id)));
                words.extend(spec.nvme.iter().map(|nvme| format!("nvme {}", nvme.id)));
                words.extend(spec.labels.iter().map(|(key, value)| format!("label {key}={value}")));
                words.join(", ")
            }
            Self::Start | Self::Pause | Self::Resume | Self::Stop | Self::Destroy => String::new(),
            Self::Detach(id) => id.clone(),
            Self::Attach(Device::Disk(disk)) => format!("disk {} ({})", disk.id, disk.volume),
            Self::Attach(Device::Nic(nic)) => format!("nic {}", nic.id),
            Self::Attach(Device::Nvme(nvme)) => format!("nvme {}", nvme.id),
            Self::Keep(0) => "keep all".to_owned(),
            Self::Keep(mib) => format!("keep {}", MemoryMib(*mib)),
            Self::Limit(id, None) => format!("{id} (none)"),
            Self::Limit(id, Some(limits)) => {
                let word = |rate: u64, what: &str| (rate > 0).then(|| format!("{rate} {what}/s"));
                let words = [word(limits.bytes_per_second, "bytes"), word(limits.operations_per_second, "operations")];
                format!("{id} ({})", words.into_iter().flatten().collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// Whether the VM is in another state behind it, so that what follows cannot be checked before.
    pub(super) fn changes_state(&self) -> bool {
        matches!(self, Self::Register(_) | Self::Start | Self::Pause | Self::Resume | Self::Stop | Self::Destroy)
    }
}

/// From what there is to what is wanted.
pub(super) fn plan(wanted: &Wanted, actual: Option<&v1::VirtualMachine>) -> Plan {
    let mut plan = Plan { name: wanted.name.clone(), ..Plan::default() };
    let Some(actual) = actual else {
        plan.steps.push(Step::Register(Box::new(wanted.spec.clone())));
        match wanted.goal {
            None | Some(Goal::Stopped) => {}
            Some(Goal::Running) => plan.steps.push(Step::Start),
            Some(Goal::Paused) => plan.steps.extend([Step::Start, Step::Pause]),
        }
        return plan;
    };
    plan.etag.clone_from(&actual.etag);
    let has = actual.spec.clone().unwrap_or_default();
    compare_fixed(&wanted.spec, &has, is_narrowed(actual), &mut plan);
    let mut devices = Vec::new();
    compare_devices(&wanted.spec, &has, &mut devices, &mut plan);
    devices.extend(kept(&wanted.spec, &has));
    let nothing = Vec::new;
    let (before, after) = match (wanted.goal, actual.state()) {
        (None, _) => (nothing(), nothing()),
        (Some(_), state @ (State::Stopping | State::Destroying)) => {
            plan.obstacles.push(format!("it is {}: wait until that is over", state.as_str_name()));
            (nothing(), nothing())
        }
        (Some(Goal::Running), State::Running | State::Starting) => (nothing(), nothing()),
        (Some(Goal::Running), State::Paused) => (vec![Step::Resume], nothing()),
        (Some(Goal::Running), _) => (nothing(), vec![Step::Start]),
        (Some(Goal::Paused), State::Paused) => (nothing(), nothing()),
        (Some(Goal::Paused), State::Running | State::Starting) => (nothing(), vec![Step::Pause]),
        (Some(Goal::Paused), _) => (nothing(), vec![Step::Start, Step::Pause]),
        (Some(Goal::Stopped), State::Running | State::Starting | State::Paused) => (vec![Step::Stop], nothing()),
        (Some(Goal::Stopped), _) => (nothing(), nothing()),
    };
    plan.steps = [before, devices, after].concat();
    plan
}

/// For a VM that is not to be there.
pub(super) fn removal(actual: &v1::VirtualMachine) -> Plan {
    let is_off = matches!(actual.state(), State::Registered | State::Stopped | State::Failed);
    let steps = if is_off { vec![Step::Destroy] } else { vec![Step::Stop, Step::Destroy] };
    Plan { name: actual.name.clone(), etag: actual.etag.clone(), steps, ..Plan::default() }
}

/// Whether policy made the VM smaller than it was asked for.
fn is_narrowed(actual: &v1::VirtualMachine) -> bool {
    let opinions = actual.admission.iter().flat_map(|admission| &admission.opinions);
    opinions.into_iter().any(|opinion| opinion.verdict == "allow" && !opinion.detail.is_empty())
}

/// What is fixed when a VM is registered.
fn compare_fixed(wanted: &v1::VirtualMachineSpec, has: &v1::VirtualMachineSpec, is_narrowed: bool, plan: &mut Plan) {
    let mut sized = |what: &str, wanted: u64, has: u64, shown: &dyn Fn(u64) -> String| {
        if is_narrowed && has < wanted {
            plan.notes.push(format!("{what} {}: policy allows no more", shown(has)));
        } else if has != wanted {
            plan.obstacles.push(format!("{what} {} -> {}", shown(has), shown(wanted)));
        }
    };
    sized("vcpus", wanted.vcpus.into(), has.vcpus.into(), &|count| count.to_string());
    sized("memory", wanted.memory_mib, has.memory_mib, &|mib| MemoryMib(mib).to_string());
    let boot = |spec: &v1::VirtualMachineSpec| spec.boot.clone().unwrap_or_default();
    let (wants, had) = (boot(wanted), boot(has));
    for (what, wanted, has) in [
        ("kernel", &wants.kernel, &had.kernel),
        ("initrd", &wants.initrd, &had.initrd),
        ("cmdline", &wants.cmdline, &had.cmdline),
    ] {
        if wanted != has {
            plan.obstacles.push(format!("{what} {has:?} -> {wanted:?}"));
        }
    }
    let keys: BTreeSet<_> = wanted.labels.keys().chain(has.labels.keys()).collect();
    for key in keys {
        let (wants, had) = (wanted.labels.get(key), has.labels.get(key));
        if wants != had {
            let shown = |value: Option<&String>| value.map_or_else(|| "none".to_owned(), |value| format!("{value:?}"));
            plan.obstacles.push(format!("label {key} {} -> {}", shown(had), shown(wants)));
        }
    }
    for (what, is_same) in [
        ("pages, NUMA node or balloon", shape(wanted) == shape(has)),
        ("host CPUs or topology", wanted.cpus == has.cpus),
        ("other settings", rest(wanted) == rest(has)),
    ] {
        if !is_same {
            plan.obstacles.push(format!("{what} differ"));
        }
    }
    for obstacle in &mut plan.obstacles {
        obstacle.push_str(": cannot be changed in place (destroy the VM, or change the file)");
    }
}

/// Where memory comes from and may go, whatever the guest keeps of it.
fn shape(spec: &v1::VirtualMachineSpec) -> Option<v1::MemorySpec> {
    spec.memory.map(|memory| v1::MemorySpec { balloon: memory.balloon.map(|_| v1::BalloonSpec::default()), ..memory })
}

/// Another size of the balloon, if there is one: of what policy left of the memory.
fn kept(wanted: &v1::VirtualMachineSpec, has: &v1::VirtualMachineSpec) -> Option<Step> {
    let keep = |spec: &v1::VirtualMachineSpec| Some(spec.memory?.balloon?.keep_mib);
    let (wanted, had) = (keep(wanted)?, keep(has)?);
    let wanted = if wanted > has.memory_mib { 0 } else { wanted };
    (wanted != had).then_some(Step::Keep(wanted))
}

/// What no comparison knows by name: a field that was added to the API is not overlooked.
fn rest(spec: &v1::VirtualMachineSpec) -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec {
        vcpus: 0,
        memory_mib: 0,
        boot: None,
        disks: Vec::new(),
        nics: Vec::new(),
        nvme: Vec::new(),
        memory: None,
        cpus: None,
        labels: BTreeMap::new(),
        ..spec.clone()
    }
}

/// Devices come and go; of one that stays only the limits can change.
fn compare_devices(
    wanted: &v1::VirtualMachineSpec,
    has: &v1::VirtualMachineSpec,
    steps: &mut Vec<Step>,
    plan: &mut Plan,
) {
    let mut limits = Vec::new();
    let mut attach = Vec::new();
    let mut changed = |kind: &str, id: &str| {
        plan.obstacles
            .push(format!("{kind} {id} differs: cannot be changed in place (give it another id, or detach it first)"));
    };
    for disk in &wanted.disks {
        match has.disks.iter().find(|has| has.id == disk.id) {
            None => attach.push(Step::Attach(Device::Disk(disk.clone()))),
            Some(has) if has == disk => {}
            Some(has) if *disk == (v1::DiskSpec { limits: disk.limits, ..has.clone() }) => {
                limits.push(Step::Limit(disk.id.clone(), disk.limits));
            }
            Some(_) => changed("disk", &disk.id),
        }
    }
    for nic in &wanted.nics {
        match has.nics.iter().find(|has| has.id == nic.id) {
            None => attach.push(Step::Attach(Device::Nic(nic.clone()))),
            Some(has) if has == nic => {}
            Some(has) if *nic == (v1::NicSpec { limits: nic.limits, ..has.clone() }) => {
                limits.push(Step::Limit(nic.id.clone(), nic.limits));
            }
            Some(_) => changed("nic", &nic.id),
        }
    }
    for nvme in &wanted.nvme {
        match has.nvme.iter().find(|has| has.id == nvme.id) {
            None => attach.push(Step::Attach(Device::Nvme(nvme.clone()))),
            Some(has) if has == nvme => {}
            Some(_) => changed("nvme", &nvme.id),
        }
    }
    let gone = has.disks.iter().map(|disk| &disk.id).filter(|id| wanted.disks.iter().all(|disk| disk.id != **id));
    steps.extend(gone.cloned().map(Step::Detach));
    let gone = has.nics.iter().map(|nic| &nic.id).filter(|id| wanted.nics.iter().all(|nic| nic.id != **id));
    steps.extend(gone.cloned().map(Step::Detach));
    for gone in has.nvme.iter().filter(|has| wanted.nvme.iter().all(|nvme| nvme.id != has.id)) {
        plan.notes.push(format!("nvme {}: its data is erased", gone.id));
        steps.push(Step::Detach(gone.id.clone()));
    }
    steps.append(&mut limits);
    steps.append(&mut attach);
}

#[cfg(test)]
mod tests;
