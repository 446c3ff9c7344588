//! Requests to `model` types and back. The only place that knows both.
//!
//! `daemon/rpc` calls it at the door, `cli` where it needs a validated value. Everything that comes from a client is
//! checked here or in the constructors of `model`; errors name the field as the client wrote it (`spec.disks[1].id`).

pub use crate::api::resources::kept_from_proto;
pub use crate::api::times::{
    DEFAULT_GRACE, DEFAULT_UNPLUG, DEFAULT_WAIT, MAX_GRACE, duration_from_proto, duration_to_proto, grace_from_proto,
    timestamp_to_proto, unplug_timeout_from_proto, wait_from_proto,
};
use crate::api::{decision_name, resources, scope_name, v1};
use crate::model::{
    BootSpec, ConsoleSpec, Decision, DeviceId, DeviceSpec, DiskSpec, IdError, ImagePath, Labels, MacAddr, MacError,
    NicBackend, NicSpec, NvmeSpec, NvmeWish, Opinion, Outcome, Patch, Rate, RateLimits, ServedBy, SpecError, TapSpec,
    Verdict, VfWish, VlanId, VmSpec, VmState, VsockSpec,
};

/// A validated VM from a request's spec. Everything is checked that does not depend on the host.
pub fn spec_from_proto(spec: v1::VirtualMachineSpec) -> Result<VmSpec, SpecError> {
    let boot = boot_from_proto(spec.boot.ok_or_else(|| SpecError::new("spec.boot", "is missing: name a kernel"))?)?;
    let disks =
        spec.disks.into_iter().enumerate().map(|(index, disk)| disk_from_proto(&format!("spec.disks[{index}]"), disk));
    let disks = disks.collect::<Result<_, _>>()?;
    let nics =
        spec.nics.into_iter().enumerate().map(|(index, nic)| nic_from_proto(&format!("spec.nics[{index}]"), &nic));
    let nics = nics.collect::<Result<_, _>>()?;
    let nvmes = spec.nvme.into_iter().enumerate();
    let nvmes = nvmes.map(|(index, nvme)| nvme_from_proto(&format!("spec.nvme[{index}]"), &nvme));
    let nvmes = nvmes.collect::<Result<_, _>>()?;
    let whole = VmSpec::new(spec.vcpus, spec.memory_mib, boot, disks, nics)?.with_nvmes(nvmes)?;
    let whole = whole.with_vsock(spec.vsock.map(vsock_from_proto).transpose()?)?;
    let whole =
        resources::from_proto(whole, spec.memory, spec.cpus)?.with_console(console_from_proto(spec.console)?)?;
    Ok(whole.with_labels(Labels::new(spec.labels)?))
}

/// A spec as the API shows it; [`spec_from_proto`] gives the same spec back.
pub fn spec_to_proto(spec: &VmSpec) -> v1::VirtualMachineSpec {
    let boot = spec.boot();
    v1::VirtualMachineSpec {
        vcpus: spec.vcpus(),
        memory_mib: spec.memory_mib(),
        boot: Some(v1::BootSpec {
            kernel: boot.kernel.to_string(),
            initrd: boot.initrd.as_ref().map(ImagePath::to_string).unwrap_or_default(),
            cmdline: boot.cmdline.clone(),
        }),
        disks: spec
            .disks()
            .iter()
            .map(|disk| v1::DiskSpec {
                id: disk.id.to_string(),
                volume: disk.volume.to_string(),
                read_only: disk.is_read_only,
                direct: disk.is_direct,
                queues: disk.queues.into(),
                limits: limits_to_proto(disk.limits),
            })
            .collect(),
        nics: spec.nics().iter().map(nic_to_proto).collect(),
        memory: resources::memory_to_proto(spec.memory(), spec.balloon()),
        cpus: resources::cpus_to_proto(spec.cpus()),
        nvme: spec.nvmes().iter().map(nvme_to_proto).collect(),
        vsock: spec.vsock().map(|vsock| v1::VsockSpec { cid: vsock.cid() }),
        console: console_to_proto(spec.console()).into(),
        labels: spec.labels().as_map().clone(),
    }
}

fn nic_to_proto(nic: &NicSpec) -> v1::NicSpec {
    let sriov = nic.vf_wish().map(|wish| v1::SriovNic {
        mac: wish.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        vlan: wish.vlan.map_or(0, |vlan| vlan.number().into()),
    });
    let limits = nic.tap().and_then(|tap| limits_to_proto(tap.limits));
    let queues = nic.tap().map_or(0, |tap| tap.queues.into());
    v1::NicSpec { id: nic.id.to_string(), sriov, limits, queues, vhost: nic.is_kernel_served() }
}

/// Limits as the API shows them; none at all is nothing.
fn limits_to_proto(limits: RateLimits) -> Option<v1::RateLimits> {
    let RateLimits { bandwidth, operations } = limits;
    let parts = |rate: Option<Rate>| rate.map_or((0, 0), |rate| (rate.per_second(), rate.burst()));
    let ((bytes_per_second, bytes_burst), (operations_per_second, operations_burst)) =
        (parts(bandwidth), parts(operations));
    let shown = v1::RateLimits { bytes_per_second, bytes_burst, operations_per_second, operations_burst };
    (limits != RateLimits::default()).then_some(shown)
}

/// Limits from a request; `field` names them in errors.
pub fn limits_from_proto(field: &str, limits: Option<v1::RateLimits>) -> Result<RateLimits, SpecError> {
    let limits = limits.unwrap_or_default();
    let rate = |what: &str, per_second, burst| match (per_second, burst) {
        (0, 0) => Ok(None),
        (0, burst) => {
            Err(SpecError::new(format!("{field}.{what}_burst"), format!("a burst of {burst} goes with a rate")))
        }
        (per_second, burst) => Rate::new(&format!("{field}.{what}_per_second"), per_second, burst).map(Some),
    };
    Ok(RateLimits {
        bandwidth: rate("bytes", limits.bytes_per_second, limits.bytes_burst)?,
        operations: rate("operations", limits.operations_per_second, limits.operations_burst)?,
    })
}

fn nvme_to_proto(nvme: &NvmeSpec) -> v1::NvmeSpec {
    use v1::nvme_spec::Kind;
    let kind = match nvme.wish {
        NvmeWish::Namespace { min_bytes } => Kind::Namespace(v1::NvmeNamespace { min_bytes }),
        NvmeWish::Controller => Kind::Controller(v1::NvmeController {}),
    };
    v1::NvmeSpec { id: nvme.id.to_string(), kind: Some(kind) }
}

/// A state as the API shows it. The cause of a failure travels beside it ([`failure_to_proto`]).
pub fn state_to_proto(state: &VmState) -> v1::virtual_machine::State {
    use v1::virtual_machine::State;
    match state {
        VmState::Registered => State::Registered,
        VmState::Starting => State::Starting,
        VmState::Running => State::Running,
        VmState::Paused => State::Paused,
        VmState::Stopping | VmState::Rebooting => State::Stopping,
        VmState::Stopped => State::Stopped,
        VmState::Failed(_) => State::Failed,
        VmState::Destroying => State::Destroying,
    }
}

/// Why a VM is FAILED; empty for every other state.
pub fn failure_to_proto(state: &VmState) -> String {
    match state {
        VmState::Failed(cause) => cause.to_string(),
        VmState::Registered
        | VmState::Starting
        | VmState::Running
        | VmState::Paused
        | VmState::Stopping
        | VmState::Rebooting
        | VmState::Stopped
        | VmState::Destroying => String::new(),
    }
}

/// A decision with every plugin's part in it.
pub fn decision_to_proto(decision: &Decision) -> v1::Decision {
    let (allowed, code, message) = match &decision.outcome {
        Outcome::Allow(patches) => (true, String::new(), patches_text(patches)),
        Outcome::Deny { code, message, plugin: _ } => (false, code.clone(), message.clone()),
    };
    v1::Decision {
        allowed,
        code,
        message,
        opinions: decision.opinions.iter().map(opinion_to_proto).collect(),
        took: Some(duration_to_proto(decision.took)),
        record: decision.id.as_ref().map(decision_name).unwrap_or_default(),
    }
}

fn opinion_to_proto(opinion: &Opinion) -> v1::Opinion {
    let (verdict, detail) = match &opinion.verdict {
        Ok(Verdict::Allow(patches)) => ("allow", patches_text(patches)),
        Ok(Verdict::Deny { code, message }) => ("deny", format!("{code}: {message}")),
        Ok(Verdict::Abstain) => ("abstain", String::new()),
        Err(fault) => (fault.code(), fault.to_string()),
    };
    v1::Opinion {
        plugin: opinion.plugin.clone(),
        digest: opinion.digest.to_string(),
        scope: scope_name(&opinion.scope),
        verdict: verdict.to_owned(),
        detail,
        fuel: opinion.fuel,
        took: Some(duration_to_proto(opinion.took)),
    }
}

fn patches_text(patches: &[Patch]) -> String {
    patches.iter().map(Patch::to_string).collect::<Vec<_>>().join(", ")
}

/// A device that is to be attached.
pub fn device_from_proto(device: Option<v1::attach_device_request::Device>) -> Result<DeviceSpec, SpecError> {
    use v1::attach_device_request::Device;
    match device {
        Some(Device::Disk(disk)) => disk_from_proto("disk", disk).map(DeviceSpec::Disk),
        Some(Device::Nic(nic)) => nic_from_proto("nic", &nic).map(DeviceSpec::Nic),
        Some(Device::Nvme(nvme)) => nvme_from_proto("nvme", &nvme).map(DeviceSpec::Nvme),
        None => Err(SpecError::new("device", "is missing: name a disk, a nic or an nvme")),
    }
}

/// The name of a device that is to be detached.
pub fn device_id_from_proto(id: &str) -> Result<DeviceId, SpecError> {
    device_id("device_id".to_owned(), id)
}

fn boot_from_proto(boot: v1::BootSpec) -> Result<BootSpec, SpecError> {
    let initrd = match boot.initrd.as_str() {
        "" => None,
        path => Some(ImagePath::new("spec.boot.initrd", path)?),
    };
    Ok(BootSpec { kernel: ImagePath::new("spec.boot.kernel", &boot.kernel)?, initrd, cmdline: boot.cmdline })
}

/// `field`: where the disk stands in the request.
fn disk_from_proto(field: &str, disk: v1::DiskSpec) -> Result<DiskSpec, SpecError> {
    Ok(DiskSpec {
        id: device_id(format!("{field}.id"), &disk.id)?,
        volume: ImagePath::new(&format!("{field}.volume"), &disk.volume)?,
        is_read_only: disk.read_only,
        is_direct: disk.direct,
        // Which numbers are too many is for the spec to say.
        queues: u16::try_from(disk.queues.max(1)).unwrap_or(u16::MAX),
        limits: limits_from_proto(&format!("{field}.limits"), disk.limits)?,
    })
}

fn nic_from_proto(field: &str, nic: &v1::NicSpec) -> Result<NicSpec, SpecError> {
    let id = device_id(format!("{field}.id"), &nic.id)?;
    let limits = limits_from_proto(&format!("{field}.limits"), nic.limits)?;
    let Some(sriov) = &nic.sriov else {
        // Which numbers are too many is for the spec to say.
        let queues = u16::try_from(nic.queues.max(1)).unwrap_or(u16::MAX);
        let served_by = if nic.vhost { ServedBy::Kernel } else { ServedBy::Vmm };
        return Ok(NicSpec { id, backend: NicBackend::Tap(TapSpec { limits, queues, served_by }) });
    };
    if nic.vhost {
        let reason = "vhost goes with a tap: a virtual function is driven by the guest itself";
        return Err(SpecError::new(format!("{field}.vhost"), reason));
    }
    if nic.queues != 0 {
        let reason = "queues go with a tap: a virtual function has those of its card";
        return Err(SpecError::new(format!("{field}.queues"), reason));
    }
    if limits != RateLimits::default() {
        let reason = "a virtual function has no limits here: its card keeps them (policy may set a rate)";
        return Err(SpecError::new(format!("{field}.limits"), reason));
    }
    let mac = match sriov.mac.as_str() {
        "" => None,
        text => Some(text.parse::<MacAddr>().map_err(|error: MacError| {
            let shown: String = text.chars().take(64).collect();
            SpecError::new(format!("{field}.sriov.mac"), format!("{shown:?}: {error}"))
        })?),
    };
    let vlan = match sriov.vlan {
        0 => None,
        number => Some(u16::try_from(number).ok().and_then(VlanId::new).ok_or_else(|| {
            let field = format!("{field}.sriov.vlan");
            SpecError::new(field, format!("{number} is no VLAN: 1 to 4094, or 0 for none"))
        })?),
    };
    Ok(NicSpec { id, backend: NicBackend::Sriov(VfWish { mac, vlan }) })
}

fn nvme_from_proto(field: &str, nvme: &v1::NvmeSpec) -> Result<NvmeSpec, SpecError> {
    use v1::nvme_spec::Kind;
    let id = device_id(format!("{field}.id"), &nvme.id)?;
    let wish = match &nvme.kind {
        Some(Kind::Namespace(namespace)) => NvmeWish::Namespace { min_bytes: namespace.min_bytes },
        Some(Kind::Controller(v1::NvmeController {})) => NvmeWish::Controller,
        None => {
            let reason = "says neither namespace nor controller";
            return Err(SpecError::new(format!("{field}.kind"), reason));
        }
    };
    Ok(NvmeSpec { id, wish })
}

/// No number at all is the first that a guest may have.
fn vsock_from_proto(vsock: v1::VsockSpec) -> Result<VsockSpec, SpecError> {
    if vsock.cid == 0 { Ok(VsockSpec::default()) } else { VsockSpec::new(vsock.cid) }
}

fn console_from_proto(console: i32) -> Result<ConsoleSpec, SpecError> {
    match v1::virtual_machine_spec::Console::try_from(console) {
        Ok(v1::virtual_machine_spec::Console::Serial) => Ok(ConsoleSpec::Serial),
        Ok(v1::virtual_machine_spec::Console::Virtio) => Ok(ConsoleSpec::Virtio),
        Err(_) => Err(SpecError::new("spec.console", format!("{console} is neither SERIAL nor VIRTIO"))),
    }
}

fn console_to_proto(console: ConsoleSpec) -> v1::virtual_machine_spec::Console {
    match console {
        ConsoleSpec::Serial => v1::virtual_machine_spec::Console::Serial,
        ConsoleSpec::Virtio => v1::virtual_machine_spec::Console::Virtio,
    }
}

fn device_id(field: String, text: &str) -> Result<DeviceId, SpecError> {
    text.parse().map_err(|error: IdError| SpecError::new(field, error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{FailureCause, PluginDigest, PolicyFault, PolicyScope, VmExit};
    use proptest::prelude::*;
    use v1::virtual_machine::State;

    fn small() -> v1::VirtualMachineSpec {
        v1::VirtualMachineSpec {
            vcpus: 1,
            memory_mib: 128,
            boot: Some(v1::BootSpec {
                kernel: "linux-6.12/vmlinux".into(),
                initrd: "linux-6.12/initrd".into(),
                cmdline: "quiet".into(),
            }),
            disks: vec![v1::DiskSpec {
                id: "root".into(),
                volume: "hello.img".into(),
                read_only: true,
                direct: true,
                queues: 2,
                limits: limits(10 << 20, 0),
            }],
            nics: vec![v1::NicSpec { id: "eth0".into(), queues: 2, ..Default::default() }],
            labels: [("team".to_owned(), "web".to_owned())].into(),
            ..Default::default()
        }
    }

    /// As the API shows them: bursts named, and nothing where there is no limit.
    fn limits(bytes: u64, operations: u64) -> Option<v1::RateLimits> {
        let burst = |rate: u64| if rate == 0 { 0 } else { (rate / 10).max(1) };
        let limits = v1::RateLimits {
            bytes_per_second: bytes,
            bytes_burst: burst(bytes),
            operations_per_second: operations,
            operations_burst: burst(operations),
        };
        (bytes + operations > 0).then_some(limits)
    }

    fn refused_field(change: impl FnOnce(&mut v1::VirtualMachineSpec)) -> String {
        let mut spec = small();
        change(&mut spec);
        spec_from_proto(spec).unwrap_err().field
    }

    #[test]
    fn names_the_field_that_is_wrong() {
        assert_eq!(refused_field(|s| s.boot = None), "spec.boot");
        assert_eq!(refused_field(|s| s.boot.as_mut().unwrap().kernel.clear()), "spec.boot.kernel");
        assert_eq!(refused_field(|s| s.boot.as_mut().unwrap().initrd = "/boot/x".into()), "spec.boot.initrd");
        assert_eq!(refused_field(|s| s.vcpus = 0), "spec.vcpus");
        assert_eq!(refused_field(|s| s.disks[0].id = "a/b".into()), "spec.disks[0].id");
        assert_eq!(refused_field(|s| s.disks[0].volume = "../other/disk".into()), "spec.disks[0].volume");
        assert_eq!(
            refused_field(|s| s.nics.push(v1::NicSpec { id: "x".repeat(300), ..Default::default() })),
            "spec.nics[1].id"
        );
        assert_eq!(refused_field(|s| s.disks[0].queues = 9), "spec.disks[0].queues");
        assert_eq!(refused_field(|s| s.disks[0].queues = 1 << 16), "spec.disks[0].queues");
        let burst = v1::RateLimits { bytes_burst: 1, ..Default::default() };
        assert_eq!(refused_field(|s| s.disks[0].limits = Some(burst)), "spec.disks[0].limits.bytes_burst");
        let huge = v1::RateLimits { operations_per_second: u64::MAX, ..Default::default() };
        assert_eq!(refused_field(|s| s.nics[0].limits = Some(huge)), "spec.nics[0].limits.operations_per_second");
        assert_eq!(
            refused_field(|s| {
                s.nics[0].sriov = Some(v1::SriovNic::default());
                s.nics[0].queues = 0;
                s.nics[0].limits = limits(1, 0);
            }),
            "spec.nics[0].limits"
        );
        assert_eq!(refused_field(|s| s.nics[0].queues = 5), "spec.nics[0].queues");
        assert_eq!(refused_field(|s| s.nics[0].sriov = Some(v1::SriovNic::default())), "spec.nics[0].queues");
        let sriov = |mac: &str, vlan| v1::NicSpec {
            id: "vf".into(),
            sriov: Some(v1::SriovNic { mac: mac.into(), vlan }),
            ..Default::default()
        };
        assert_eq!(refused_field(|s| s.nics[0] = sriov("02:00", 0)), "spec.nics[0].sriov.mac");
        assert_eq!(refused_field(|s| s.nics[0] = sriov("ff:ff:ff:ff:ff:ff", 0)), "spec.nics[0].sriov.mac");
        assert_eq!(refused_field(|s| s.nics[0] = sriov("", 4095)), "spec.nics[0].sriov.vlan");
        assert_eq!(refused_field(|s| s.nics[0] = sriov("", 1 << 16 | 1)), "spec.nics[0].sriov.vlan");
        assert_eq!(refused_field(|s| s.nvme.push(nvme(("a/b".into(), None)))), "spec.nvme[0].id");
        assert_eq!(refused_field(|s| s.nvme.push(nvme(("a".into(), Some(0))))), "spec.nvme[0].min_bytes");
        let kindless = v1::NvmeSpec { id: "a".into(), kind: None };
        assert_eq!(refused_field(|s| s.nvme.push(kindless)), "spec.nvme[0].kind");
        assert_eq!(refused_field(|s| s.console = 2), "spec.console");
        assert_eq!(refused_field(|s| drop(s.labels.insert("Team".into(), String::new()))), "spec.labels");
    }

    #[test]
    fn shows_the_cause_of_a_failure_only() {
        let failed = VmState::Failed(FailureCause(VmExit::TripleFault));
        assert_eq!(state_to_proto(&failed), State::Failed);
        assert_eq!(failure_to_proto(&failed), "guest triple-faulted");
        assert_eq!(failure_to_proto(&VmState::Running), "");
    }

    #[test]
    fn api_names_states_as_the_model_does() {
        let states = [VmState::Registered, VmState::Starting, VmState::Running, VmState::Stopping, VmState::Stopped];
        for state in states
            .into_iter()
            .chain([VmState::Paused, VmState::Rebooting])
            .chain([VmState::Failed(FailureCause(VmExit::Killed)), VmState::Destroying])
        {
            assert_eq!(state_to_proto(&state).as_str_name(), state.name());
        }
    }

    #[test]
    fn explains_a_decision_plugin_by_plugin() {
        let opinion = |verdict| Opinion {
            plugin: "admission".into(),
            digest: PluginDigest([7; 32]),
            scope: PolicyScope::Tenant("acme".parse().unwrap()),
            weight: Default::default(),
            verdict,
            fuel: 0,
            took: Duration::from_micros(40),
        };
        let shown = decision_to_proto(&Decision {
            outcome: Outcome::Deny { code: "policy.deadline".into(), message: "late".into(), plugin: None },
            opinions: vec![
                opinion(Ok(Verdict::Allow(vec![Patch::CapVcpus(2), Patch::CapMemoryMib(256)]))),
                opinion(Ok(Verdict::Deny { code: "limit.vms".into(), message: "3 of 3".into() })),
                opinion(Ok(Verdict::Abstain)),
                opinion(Err(PolicyFault::Deadline(Duration::from_millis(50)))),
            ],
            took: Duration::from_micros(90),
            id: None,
        });
        assert!(!shown.allowed);
        assert_eq!((shown.code.as_str(), shown.message.as_str()), ("policy.deadline", "late"));
        let said: Vec<_> = shown.opinions.iter().map(|o| (o.verdict.as_str(), o.detail.as_str())).collect();
        assert_eq!(
            said,
            [
                ("allow", "cap vCPUs at 2, cap memory at 256 MiB"),
                ("deny", "limit.vms: 3 of 3"),
                ("abstain", ""),
                ("policy.deadline", "plugin ran longer than 50ms"),
            ]
        );
        assert_eq!(shown.opinions[0].scope, "tenants/acme");
        assert!(shown.opinions[0].digest.starts_with("sha256:0707"));
    }

    /// A namespace of some size, or a whole controller.
    fn nvme((id, min_bytes): (String, Option<u64>)) -> v1::NvmeSpec {
        use v1::nvme_spec::Kind;
        let kind = match min_bytes {
            Some(min_bytes) => Kind::Namespace(v1::NvmeNamespace { min_bytes }),
            None => Kind::Controller(v1::NvmeController {}),
        };
        v1::NvmeSpec { id, kind: Some(kind) }
    }

    prop_compose! {
        fn any_spec()(
            vcpus in prop_oneof![0u32..200, any::<u32>()],
            memory_mib in prop_oneof![0u64..10_000, any::<u64>()],
            kernel in "(\\PC{0,12}|[a-z]{1,9}(/[a-z.]{1,5}){0,2})",
            initrd in "(\\PC{0,12}|[a-z]{1,9}(/[a-z.]{1,5}){0,2}|)",
            cmdline in "([ -~]{0,30}|\\PC{0,12})",
            has_boot in prop::bool::weighted(0.9),
            disks in prop::collection::vec(("([a-z0-9-]{0,4}|\\PC{0,4})", "([a-z./]{0,8})", any::<bool>(), any::<bool>(), prop_oneof![1u32..9, 1u32..]), 0..4),
            nics in prop::collection::vec("([a-z0-9-]{0,4}|\\PC{0,4})", 0..30),
            nvmes in prop::collection::vec(("[a-z]{0,3}", prop::option::of(any::<u64>())), 0..3),
        ) -> v1::VirtualMachineSpec {
            v1::VirtualMachineSpec {
                vcpus,
                memory_mib,
                boot: has_boot.then_some(v1::BootSpec { kernel, initrd, cmdline }),
                disks: disks.into_iter().map(|(id, volume, read_only, direct, queues)| {
                    v1::DiskSpec { id, volume, read_only, direct, queues, limits: None }
                }).collect(),
                nics: nics.into_iter().map(|id| v1::NicSpec { id, queues: 1, ..Default::default() }).collect(),
                nvme: nvmes.into_iter().map(nvme).collect(),
                ..Default::default()
            }
        }
    }

    prop_compose! {
        fn valid_spec()(
            vcpus in 1u32..=128,
            memory_mib in 64u64..=4 << 20,
            kernel in "[a-z0-9]{1,9}(/[a-z0-9]{1,5}){0,2}",
            initrd in "([a-z]{1,9}(/[a-z]{1,5}){0,2}|)",
            cmdline in "[ -~]{0,200}",
            disks in prop::collection::vec(("[a-z0-9/]{0}[a-z0-9]{1,12}", any::<bool>(), any::<bool>(), 1u32..=8), 0..8),
            nics in prop::collection::vec(prop::option::of((prop::option::of(any::<[u8; 6]>()), 0u32..4095)), 0..8),
            nvmes in prop::collection::vec(prop::option::of(1u64 << 20..=u64::MAX), 0..8),
            console in 0..2,
        ) -> v1::VirtualMachineSpec {
            v1::VirtualMachineSpec {
                vcpus,
                memory_mib,
                boot: Some(v1::BootSpec { kernel, initrd, cmdline }),
                disks: disks.into_iter().enumerate().map(|(index, (volume, read_only, direct, queues))| {
                    let limits = limits(u64::from(queues) * 1000, queues.into());
                    v1::DiskSpec { id: format!("disk-{index}"), volume, read_only, direct, queues, limits }
                }).collect(),
                nics: nics.into_iter().enumerate().map(|(index, sriov)| v1::NicSpec {
                    id: format!("eth{index}"),
                    sriov: sriov.map(|(mac, vlan)| v1::SriovNic {
                        // A station's address: locally administered, unicast.
                        mac: mac.map(|m| MacAddr([2, m[1], m[2], m[3], m[4], m[5]]).to_string()).unwrap_or_default(),
                        vlan,
                    }),
                    limits: if sriov.is_some() { None } else { limits(0, index as u64) },
                    queues: if sriov.is_some() { 0 } else { index as u32 % 4 + 1 },
                    vhost: sriov.is_none() && index == 0,
                }).collect(),
                nvme: nvmes.into_iter().enumerate().map(|(index, size)| nvme((format!("nvme{index}"), size))).collect(),
                console,
                ..Default::default()
            }
        }
    }

    proptest! {
        #[test]
        fn every_valid_spec_round_trips(spec in valid_spec()) {
            prop_assert_eq!(spec_to_proto(&spec_from_proto(spec.clone()).unwrap()), spec);
        }

        #[test]
        fn never_panics_and_names_a_field_when_it_refuses(spec in any_spec()) {
            match spec_from_proto(spec.clone()) {
                Ok(valid) => prop_assert_eq!(spec_to_proto(&valid), spec),
                Err(error) => prop_assert!(error.field.starts_with("spec.")),
            }
        }
    }
}
