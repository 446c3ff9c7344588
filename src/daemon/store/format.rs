//! Records as JSON documents, and back through the constructors of `model`: a file that somebody edited is refused, not
//! believed.
//!
//! The types here are the file's, apart from `model`'s on purpose: renaming something there must not change what is on
//! disk. A field may be added with `#[serde(default)]`; anything else is a new [`FORMAT`] with a reader for the old.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::decision::StoredDecision;
use super::{PluginRecord, PluginVersion, nvme};
use crate::daemon::record::{AttachState, Attachment, NicLease, Run, Subnet, VfNic, VmRecord, attachments_of, mac_of};
use crate::model::{
    BootSpec, CpuSpec, DiskSpec, FailureCause, ImagePath, MemorySpec, NicBackend, NicSpec, PageSize, PciSlot,
    PluginDigest, PolicyScope, Rate, RateLimits, TapSpec, Topology, VfWish, VlanId, VmExit, VmSpec, VmState, VsockSpec,
};
use crate::sys::process::Identity;

/// Number of the format that is written.
pub(super) const FORMAT: u32 = 1;

/// Why a record was refused, for people.
pub(super) type Unusable = String;

#[derive(Serialize, Deserialize)]
struct StoredVm {
    format: u32,
    uid: String,
    tenant: String,
    name: String,
    spec: StoredSpec,
    /// Absent: of a daemon that gave slots in the spec's order.
    #[serde(default)]
    devices: Option<Vec<StoredDevice>>,
    state: StoredState,
    run: Option<StoredRun>,
    nics: Vec<StoredNic>,
    #[serde(default)]
    vfs: Vec<StoredVf>,
    #[serde(default)]
    nvmes: Vec<nvme::StoredDevice>,
    /// 0: of a daemon that gave VMs no user of their own.
    #[serde(default)]
    user: u32,
    created_ms: u64,
    updated_ms: u64,
    admission: StoredDecision,
}

#[derive(Serialize, Deserialize)]
struct StoredSpec {
    vcpus: u32,
    memory_mib: u64,
    kernel: String,
    initrd: Option<String>,
    cmdline: String,
    disks: Vec<StoredDisk>,
    nics: Vec<String>,
    /// Those of `nics` that are virtual functions, with what is asked of them.
    #[serde(default)]
    vf_wishes: BTreeMap<String, StoredWish>,
    #[serde(default)]
    nvmes: Vec<nvme::StoredSpec>,
    /// The others, where there is something to say.
    #[serde(default)]
    taps: BTreeMap<String, StoredTap>,
    #[serde(default)]
    resources: StoredResources,
    /// The guest's context id.
    #[serde(default)]
    vsock: Option<u32>,
}

/// What a record of before this had by default.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct StoredResources {
    /// 0: ordinary pages.
    hugepage_mib: u32,
    prefault: bool,
    numa_node: Option<u32>,
    host_cpus: Option<String>,
    /// Sockets, cores, threads.
    topology: Option<[u32; 3]>,
}

#[derive(Serialize, Deserialize)]
struct StoredWish {
    mac: Option<String>,
    vlan: Option<u16>,
}

#[derive(Serialize, Deserialize)]
struct StoredDisk {
    id: String,
    volume: String,
    read_only: bool,
    #[serde(default)]
    direct: bool,
    #[serde(default = "one")]
    queues: u16,
    #[serde(default)]
    limits: StoredLimits,
}

/// What there is to say of a NIC on a tap.
#[derive(Serialize, Deserialize)]
struct StoredTap {
    #[serde(default)]
    limits: StoredLimits,
    #[serde(default = "one")]
    queues: u16,
}

/// Per second and at once; a rate of 0: no limit.
#[derive(Default, Serialize, Deserialize)]
struct StoredLimits {
    bytes: (u64, u64),
    operations: (u64, u64),
}

/// Queues of a device from before it could have several.
fn one() -> u16 {
    1
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredState {
    Registered,
    Starting,
    Running,
    Paused,
    Stopping,
    Rebooting,
    Stopped,
    Failed(StoredExit),
    Destroying,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredExit {
    PowerOff,
    Reset,
    TripleFault,
    Panicked,
    Killed,
    LaunchFailed(String),
    HostError(String),
    Vanished(String),
}

#[derive(Serialize, Deserialize)]
struct StoredRun {
    instance: String,
    pid: Option<u32>,
    start_time: Option<u64>,
    kill_at_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct StoredDevice {
    id: String,
    slot: u8,
    state: StoredAttach,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredAttach {
    Attaching,
    Attached,
    Detaching,
}

#[derive(Serialize, Deserialize)]
struct StoredNic {
    id: String,
    network: Ipv4Addr,
}

#[derive(Serialize, Deserialize)]
struct StoredVf {
    id: String,
    address: String,
    pf_interface: String,
    mac: String,
}

#[derive(Serialize, Deserialize)]
struct StoredPlugin {
    format: u32,
    tenant: Option<String>,
    name: String,
    digest: String,
    settings: BTreeMap<String, String>,
    loaded_ms: u64,
    #[serde(default)]
    previous: Vec<StoredVersion>,
}

#[derive(Serialize, Deserialize)]
struct StoredVersion {
    digest: String,
    settings: BTreeMap<String, String>,
    loaded_ms: u64,
}

/// Reads only the format's number, whatever else the record holds.
#[derive(Deserialize)]
struct Header {
    format: u32,
}

pub(super) fn encode_vm(vm: &VmRecord) -> Vec<u8> {
    to_json(&StoredVm {
        format: FORMAT,
        uid: vm.uid.to_string(),
        tenant: vm.tenant.to_string(),
        name: vm.name.to_string(),
        spec: store_spec(&vm.spec),
        devices: Some(vm.devices.iter().map(store_device).collect()),
        state: store_state(&vm.state),
        run: vm.run.as_ref().map(store_run),
        nics: vm.nics.iter().map(|n| StoredNic { id: n.id.to_string(), network: n.subnet.network() }).collect(),
        vfs: vm.vfs.iter().map(store_vf).collect(),
        nvmes: vm.nvmes.iter().map(nvme::store_device).collect(),
        user: vm.user,
        created_ms: to_ms(vm.created),
        updated_ms: to_ms(vm.updated),
        admission: StoredDecision::from(&vm.admission),
    })
}

pub(super) fn decode_vm(bytes: &[u8]) -> Result<VmRecord, Unusable> {
    let vm: StoredVm = from_json(bytes)?;
    let uid = vm.uid.parse().map_err(text)?;
    let nics = vm.nics.into_iter().map(|nic| {
        let id = nic.id.parse().map_err(text)?;
        let subnet = Subnet::new(nic.network).ok_or_else(|| format!("{} names no /30", nic.network))?;
        Ok::<_, Unusable>(NicLease { mac: mac_of(uid, &id), id, subnet })
    });
    let nics = nics.collect::<Result<_, _>>()?;
    let tenant = vm.tenant.parse().map_err(text)?;
    let spec = load_spec(vm.spec)?;
    let devices = match vm.devices {
        Some(devices) => load_devices(devices, &spec)?,
        None => attachments_of(&spec),
    };
    Ok(VmRecord {
        uid,
        name: vm.name.parse().map_err(text)?,
        spec,
        devices,
        state: load_state(vm.state),
        run: vm.run.map(load_run).transpose()?,
        nics,
        vfs: vm.vfs.into_iter().map(load_vf).collect::<Result<_, _>>()?,
        nvmes: vm.nvmes.into_iter().map(nvme::load_device).collect::<Result<_, _>>()?,
        user: vm.user,
        created: from_ms(vm.created_ms)?,
        updated: from_ms(vm.updated_ms)?,
        admission: vm.admission.load(&tenant)?,
        tenant,
    })
}

pub(super) fn plugin_key(plugin: &PluginRecord) -> String {
    match &plugin.scope {
        PolicyScope::Operator => format!("operator/{}", plugin.name),
        PolicyScope::Tenant(tenant) => format!("tenant/{tenant}/{}", plugin.name),
    }
}

pub(super) fn encode_plugin(plugin: &PluginRecord) -> Vec<u8> {
    to_json(&StoredPlugin {
        format: FORMAT,
        tenant: tenant_of(&plugin.scope),
        name: plugin.name.to_string(),
        digest: plugin.digest.to_string(),
        settings: plugin.settings.clone(),
        loaded_ms: to_ms(plugin.loaded),
        previous: plugin.previous.iter().map(store_version).collect(),
    })
}

fn store_version(version: &PluginVersion) -> StoredVersion {
    let PluginVersion { digest, settings, loaded } = version;
    StoredVersion { digest: digest.to_string(), settings: settings.clone(), loaded_ms: to_ms(*loaded) }
}

fn load_version(version: StoredVersion) -> Result<PluginVersion, Unusable> {
    let StoredVersion { digest, settings, loaded_ms } = version;
    Ok(PluginVersion { digest: parse_digest(&digest)?, settings, loaded: from_ms(loaded_ms)? })
}

pub(super) fn decode_plugin(bytes: &[u8]) -> Result<PluginRecord, Unusable> {
    let plugin: StoredPlugin = from_json(bytes)?;
    Ok(PluginRecord {
        scope: scope_of(plugin.tenant)?,
        name: plugin.name.parse().map_err(text)?,
        digest: parse_digest(&plugin.digest)?,
        settings: plugin.settings,
        loaded: from_ms(plugin.loaded_ms)?,
        previous: plugin.previous.into_iter().map(load_version).collect::<Result<_, _>>()?,
    })
}

pub(super) fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|error| unreachable!("plain structs with text keys: {error}"))
}

pub(super) fn from_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Unusable> {
    let header: Header = serde_json::from_slice(bytes).map_err(text)?;
    if header.format != FORMAT {
        return Err(format!("it has format {}, this daemon reads format {FORMAT}", header.format));
    }
    serde_json::from_slice(bytes).map_err(text)
}

pub(super) fn text(error: impl std::fmt::Display) -> Unusable {
    error.to_string()
}

fn store_spec(spec: &VmSpec) -> StoredSpec {
    let boot = spec.boot();
    StoredSpec {
        vcpus: spec.vcpus(),
        memory_mib: spec.memory_mib(),
        kernel: boot.kernel.to_string(),
        initrd: boot.initrd.as_ref().map(ImagePath::to_string),
        cmdline: boot.cmdline.clone(),
        disks: spec
            .disks()
            .iter()
            .map(|disk| StoredDisk {
                id: disk.id.to_string(),
                volume: disk.volume.to_string(),
                read_only: disk.is_read_only,
                direct: disk.is_direct,
                queues: disk.queues,
                limits: store_limits(disk.limits),
            })
            .collect(),
        nics: spec.nics().iter().map(|nic| nic.id.to_string()).collect(),
        vf_wishes: spec
            .nics()
            .iter()
            .filter_map(|nic| Some((nic.id.to_string(), store_wish(nic.vf_wish()?))))
            .collect(),
        taps: spec.nics().iter().filter_map(|nic| Some((nic.id.to_string(), store_tap(nic.tap()?)))).collect(),
        resources: store_resources(spec),
        nvmes: spec.nvmes().iter().map(nvme::store_spec).collect(),
        vsock: spec.vsock().map(VsockSpec::cid),
    }
}

fn store_tap(tap: TapSpec) -> StoredTap {
    StoredTap { limits: store_limits(tap.limits), queues: tap.queues }
}

fn load_tap(tap: &StoredTap) -> Result<TapSpec, Unusable> {
    Ok(TapSpec { limits: load_limits(&tap.limits)?, queues: tap.queues })
}

fn store_limits(limits: RateLimits) -> StoredLimits {
    let parts = |rate: Option<Rate>| rate.map_or((0, 0), |rate| (rate.per_second(), rate.burst()));
    StoredLimits { bytes: parts(limits.bandwidth), operations: parts(limits.operations) }
}

fn load_limits(limits: &StoredLimits) -> Result<RateLimits, Unusable> {
    let rate = |(per_second, burst)| match per_second {
        0 => Ok(None),
        _ => Rate::new("limits", per_second, burst).map(Some).map_err(text),
    };
    Ok(RateLimits { bandwidth: rate(limits.bytes)?, operations: rate(limits.operations)? })
}

fn store_resources(spec: &VmSpec) -> StoredResources {
    let (memory, cpus) = (spec.memory(), spec.cpus());
    StoredResources {
        hugepage_mib: if memory.pages.is_huge() { (memory.pages.bytes() >> 20) as u32 } else { 0 },
        prefault: memory.is_prefaulted,
        numa_node: memory.numa_node,
        host_cpus: cpus.host_cpus.as_ref().map(ToString::to_string),
        topology: cpus.topology.map(|t| [t.sockets(), t.cores(), t.threads()]),
    }
}

fn load_resources(spec: VmSpec, stored: StoredResources) -> Result<VmSpec, Unusable> {
    let pages = match stored.hugepage_mib {
        0 => PageSize::Small,
        2 => PageSize::Huge2M,
        1024 => PageSize::Huge1G,
        other => return Err(format!("there are no pages of {other} MiB")),
    };
    let memory = MemorySpec { pages, is_prefaulted: stored.prefault, numa_node: stored.numa_node };
    let topology =
        stored.topology.map(|[sockets, cores, threads]| Topology::new(sockets, cores, threads, spec.vcpus()));
    let topology = topology.transpose().map_err(text)?;
    let host_cpus = stored.host_cpus.map(|list| list.parse().map_err(text)).transpose()?;
    spec.with_memory(memory).and_then(|spec| spec.with_cpus(CpuSpec { host_cpus, topology })).map_err(text)
}

fn store_wish(wish: VfWish) -> StoredWish {
    StoredWish { mac: wish.mac.map(|mac| mac.to_string()), vlan: wish.vlan.map(VlanId::number) }
}

fn load_wish(wish: &StoredWish) -> Result<VfWish, Unusable> {
    let vlan = |number| VlanId::new(number).ok_or_else(|| format!("{number} is no VLAN"));
    Ok(VfWish {
        mac: wish.mac.as_ref().map(|mac| mac.parse()).transpose().map_err(text)?,
        vlan: wish.vlan.map(vlan).transpose()?,
    })
}

fn store_device(device: &Attachment) -> StoredDevice {
    let state = match device.state {
        AttachState::Attaching => StoredAttach::Attaching,
        AttachState::Attached => StoredAttach::Attached,
        AttachState::Detaching => StoredAttach::Detaching,
    };
    StoredDevice { id: device.id.to_string(), slot: device.slot.number(), state }
}

/// The slots of the devices of `spec`: each has one, and no two the same.
fn load_devices(devices: Vec<StoredDevice>, spec: &VmSpec) -> Result<Vec<Attachment>, Unusable> {
    let devices = devices.into_iter().map(|device| {
        let state = match device.state {
            StoredAttach::Attaching => AttachState::Attaching,
            StoredAttach::Attached => AttachState::Attached,
            StoredAttach::Detaching => AttachState::Detaching,
        };
        let slot = PciSlot::new(device.slot).ok_or_else(|| format!("{} is no slot", device.slot))?;
        Ok::<_, Unusable>(Attachment { id: device.id.parse().map_err(text)?, slot, state })
    });
    let devices = devices.collect::<Result<Vec<_>, _>>()?;
    let slots: BTreeSet<_> = devices.iter().map(|device| device.slot).collect();
    let is_whole = spec.device_ids().collect::<BTreeSet<_>>() == devices.iter().map(|device| &device.id).collect();
    match is_whole && slots.len() == devices.len() {
        true => Ok(devices),
        false => Err("its devices and their slots do not go together".to_owned()),
    }
}

fn store_vf(vf: &VfNic) -> StoredVf {
    StoredVf {
        id: vf.id.to_string(),
        address: vf.address.to_string(),
        pf_interface: vf.pf_interface.clone(),
        mac: vf.mac.to_string(),
    }
}

fn load_vf(vf: StoredVf) -> Result<VfNic, Unusable> {
    Ok(VfNic {
        id: vf.id.parse().map_err(text)?,
        address: vf.address.parse().map_err(text)?,
        pf_interface: vf.pf_interface,
        mac: vf.mac.parse().map_err(text)?,
    })
}

fn load_spec(spec: StoredSpec) -> Result<VmSpec, Unusable> {
    let boot = BootSpec {
        kernel: ImagePath::new("kernel", &spec.kernel).map_err(text)?,
        initrd: spec.initrd.map(|path| ImagePath::new("initrd", &path)).transpose().map_err(text)?,
        cmdline: spec.cmdline,
    };
    let disks = spec.disks.into_iter().map(|disk| {
        Ok::<_, Unusable>(DiskSpec {
            id: disk.id.parse().map_err(text)?,
            volume: ImagePath::new("volume", &disk.volume).map_err(text)?,
            is_read_only: disk.read_only,
            is_direct: disk.direct,
            queues: disk.queues,
            limits: load_limits(&disk.limits)?,
        })
    });
    let disks = disks.collect::<Result<_, _>>()?;
    let nics = spec.nics.iter().map(|id| {
        let wish = spec.vf_wishes.get(id).map(load_wish).transpose()?;
        let tap = spec.taps.get(id).map(load_tap).transpose()?.unwrap_or_default();
        let backend = wish.map_or(NicBackend::Tap(tap), NicBackend::Sriov);
        Ok::<_, Unusable>(NicSpec { id: id.parse().map_err(text)?, backend })
    });
    let nics = nics.collect::<Result<_, _>>()?;
    let nvmes = spec.nvmes.into_iter().map(nvme::load_spec).collect::<Result<_, _>>()?;
    let whole = VmSpec::new(spec.vcpus, spec.memory_mib, boot, disks, nics).map_err(text)?;
    let vsock = spec.vsock.map(VsockSpec::new).transpose().map_err(text)?;
    let whole = whole.with_nvmes(nvmes).and_then(|whole| whole.with_vsock(vsock)).map_err(text)?;
    load_resources(whole, spec.resources)
}

fn store_state(state: &VmState) -> StoredState {
    match state {
        VmState::Registered => StoredState::Registered,
        VmState::Starting => StoredState::Starting,
        VmState::Running => StoredState::Running,
        VmState::Paused => StoredState::Paused,
        VmState::Stopping => StoredState::Stopping,
        VmState::Rebooting => StoredState::Rebooting,
        VmState::Stopped => StoredState::Stopped,
        VmState::Failed(FailureCause(exit)) => StoredState::Failed(match exit.clone() {
            VmExit::PowerOff => StoredExit::PowerOff,
            VmExit::Reset => StoredExit::Reset,
            VmExit::TripleFault => StoredExit::TripleFault,
            VmExit::Panicked => StoredExit::Panicked,
            VmExit::Killed => StoredExit::Killed,
            VmExit::LaunchFailed(cause) => StoredExit::LaunchFailed(cause),
            VmExit::HostError(cause) => StoredExit::HostError(cause),
            VmExit::Vanished(cause) => StoredExit::Vanished(cause),
        }),
        VmState::Destroying => StoredState::Destroying,
    }
}

fn load_state(state: StoredState) -> VmState {
    match state {
        StoredState::Registered => VmState::Registered,
        StoredState::Starting => VmState::Starting,
        StoredState::Running => VmState::Running,
        StoredState::Paused => VmState::Paused,
        StoredState::Stopping => VmState::Stopping,
        StoredState::Rebooting => VmState::Rebooting,
        StoredState::Stopped => VmState::Stopped,
        StoredState::Failed(exit) => VmState::Failed(FailureCause(match exit {
            StoredExit::PowerOff => VmExit::PowerOff,
            StoredExit::Reset => VmExit::Reset,
            StoredExit::TripleFault => VmExit::TripleFault,
            StoredExit::Panicked => VmExit::Panicked,
            StoredExit::Killed => VmExit::Killed,
            StoredExit::LaunchFailed(cause) => VmExit::LaunchFailed(cause),
            StoredExit::HostError(cause) => VmExit::HostError(cause),
            StoredExit::Vanished(cause) => VmExit::Vanished(cause),
        })),
        StoredState::Destroying => VmState::Destroying,
    }
}

fn store_run(run: &Run) -> StoredRun {
    StoredRun {
        instance: run.instance.to_string(),
        pid: run.process.map(|process| process.pid),
        start_time: run.process.map(|process| process.start_time),
        kill_at_ms: run.kill_at.map(to_ms),
    }
}

fn load_run(run: StoredRun) -> Result<Run, Unusable> {
    Ok(Run {
        instance: run.instance.parse().map_err(text)?,
        process: run.pid.zip(run.start_time).map(|(pid, start_time)| Identity { pid, start_time }),
        kill_at: run.kill_at_ms.map(from_ms).transpose()?,
    })
}

pub(super) fn tenant_of(scope: &PolicyScope) -> Option<String> {
    match scope {
        PolicyScope::Operator => None,
        PolicyScope::Tenant(tenant) => Some(tenant.to_string()),
    }
}

pub(super) fn scope_of(tenant: Option<String>) -> Result<PolicyScope, Unusable> {
    tenant.map_or(Ok(PolicyScope::Operator), |tenant| tenant.parse().map(PolicyScope::Tenant).map_err(text))
}

pub(super) fn parse_digest(digest: &str) -> Result<PluginDigest, Unusable> {
    digest.parse().map_err(text)
}

pub(super) fn to_ms(moment: SystemTime) -> u64 {
    let since_epoch = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn from_ms(ms: u64) -> Result<SystemTime, Unusable> {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).ok_or_else(|| format!("{ms} ms is no time"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::record::{NvmeDevice, samples};
    use crate::model::{NvmeSpec, NvmeWish};
    use proptest::prelude::*;

    #[test]
    fn every_state_round_trips() {
        let exits = [
            VmExit::PowerOff,
            VmExit::Reset,
            VmExit::TripleFault,
            VmExit::Panicked,
            VmExit::Killed,
            VmExit::LaunchFailed("no kernel".into()),
            VmExit::HostError("EFAULT".into()),
            VmExit::Vanished("killed by signal 9".into()),
        ];
        let states = [
            VmState::Registered,
            VmState::Starting,
            VmState::Running,
            VmState::Paused,
            VmState::Stopping,
            VmState::Rebooting,
            VmState::Stopped,
            VmState::Destroying,
        ];
        let mut vm = samples::running("acme", "web");
        for state in states.into_iter().chain(exits.map(|exit| VmState::Failed(FailureCause(exit)))) {
            vm.state = state;
            assert_eq!(decode_vm(&encode_vm(&vm)).as_ref(), Ok(&vm));
        }
        let wish = VfWish { mac: "02:00:00:00:00:01".parse().ok(), vlan: VlanId::new(100) };
        let nic = NicSpec { id: "vf0".parse().unwrap(), backend: NicBackend::Sriov(wish) };
        vm.spec = VmSpec::new(1, 128, vm.spec.boot().clone(), vec![], vec![vm.spec.nics()[0].clone(), nic]).unwrap();
        vm.devices = attachments_of(&vm.spec);
        vm.devices[0].state = AttachState::Detaching;
        vm.devices[1].slot = PciSlot::new(31).unwrap();
        vm.devices[1].state = AttachState::Attaching;
        vm.vfs = vec![VfNic {
            id: "vf0".parse().unwrap(),
            address: "0000:01:10.1".parse().unwrap(),
            pf_interface: "eth0".into(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
        }];
        assert_eq!(decode_vm(&encode_vm(&vm)).as_ref(), Ok(&vm));
        let (data, disk) = ("data".parse().unwrap(), "disk".parse().unwrap());
        let namespace = NvmeSpec { id: data, wish: NvmeWish::Namespace { min_bytes: 64 << 20 } };
        let whole = NvmeSpec { id: disk, wish: NvmeWish::Controller };
        vm.spec = vm.spec.with_nvmes(vec![namespace, whole]).unwrap();
        vm.devices = attachments_of(&vm.spec);
        vm.nvmes = vec![NvmeDevice {
            id: "data".parse().unwrap(),
            function: Some("0000:02:00.1".parse().unwrap()),
            controller: "0000:02:00.0".parse().unwrap(),
            serial: "LAB".into(),
            nsid: Some(2),
            size_bytes: 64 << 20,
        }];
        assert_eq!(decode_vm(&encode_vm(&vm)).as_ref(), Ok(&vm));
        let memory = MemorySpec { pages: PageSize::Huge2M, is_prefaulted: true, numa_node: Some(0) };
        let cpus = CpuSpec { host_cpus: "0-1,4".parse().ok(), topology: Topology::new(1, 1, 1, 1).ok() };
        vm.spec = vm.spec.with_memory(memory).unwrap().with_cpus(cpus).unwrap();
        vm.run = None;
        assert_eq!(decode_vm(&encode_vm(&vm)).as_ref(), Ok(&vm));
    }

    #[test]
    fn devices_and_slots_go_together_or_the_record_is_of_no_use() {
        let vm = samples::running("acme", "web");
        let with = |change: fn(&mut Vec<Attachment>)| {
            let mut vm = vm.clone();
            change(&mut vm.devices);
            decode_vm(&encode_vm(&vm))
        };
        assert!(with(|_| {}).is_ok());
        assert!(with(|devices| drop(devices.pop())).is_err());
        assert!(with(|devices| devices[1].slot = devices[0].slot).is_err());
        assert!(with(|devices| devices[1].id = "other".parse().unwrap()).is_err());
    }

    #[test]
    fn reads_a_record_from_before_there_were_devices_of_the_host() {
        let vm = samples::running("acme", "web");
        let mut json: serde_json::Value = serde_json::from_slice(&encode_vm(&vm)).unwrap();
        assert!(json.as_object_mut().unwrap().remove("vfs").is_some());
        // Nor was there a choice of slots.
        assert!(json.as_object_mut().unwrap().remove("devices").is_some());
        assert!(json["spec"].as_object_mut().unwrap().remove("vf_wishes").is_some());
        assert!(json["spec"].as_object_mut().unwrap().remove("taps").is_some());
        assert!(json["spec"].as_object_mut().unwrap().remove("resources").is_some());
        assert!(json.as_object_mut().unwrap().remove("nvmes").is_some());
        assert!(json["spec"].as_object_mut().unwrap().remove("nvmes").is_some());
        assert!(json["spec"].as_object_mut().unwrap().remove("vsock").is_some());
        assert_eq!(decode_vm(json.to_string().as_bytes()), Ok(vm));
    }

    #[test]
    fn reads_a_disk_from_before_it_could_be_direct_or_have_queues() {
        let mut json: serde_json::Value = serde_json::from_slice(&encode_vm(&samples::running("acme", "web"))).unwrap();
        let disk = json["spec"]["disks"][0].as_object_mut().unwrap();
        assert!(["direct", "queues", "limits"].iter().all(|field| disk.remove(*field).is_some()));
        let disk = decode_vm(json.to_string().as_bytes()).unwrap().spec.disks()[0].clone();
        assert_eq!((disk.is_direct, disk.queues, disk.limits), (false, 1, RateLimits::default()));
    }

    #[test]
    fn refuses_a_record_of_a_newer_daemon_and_one_that_breaks_a_bound() {
        let json = String::from_utf8(encode_vm(&samples::running("acme", "web"))).unwrap();
        let newer = json.replace("\"format\":1", "\"format\":2");
        assert!(decode_vm(newer.as_bytes()).unwrap_err().contains("format 2"));
        let edited = json.replace("\"vcpus\":2", "\"vcpus\":0");
        assert!(decode_vm(edited.as_bytes()).unwrap_err().contains("vcpus"));
        let escaping = json.replace("linux/vmlinux", "../vmlinux");
        assert!(decode_vm(escaping.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn never_panics_on_foreign_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..256), text in "\\PC{0,80}") {
            let _ = decode_vm(&bytes);
            let _ = decode_plugin(&bytes);
            let _ = parse_digest(&text);
        }
    }
}
