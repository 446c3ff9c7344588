//! The API's messages as JSON and as text. Key types: [`VmView`], [`DecisionView`].
//!
//! JSON keys mirror `proto/ostler/v1` and stay stable: times are RFC 3339, durations are nanoseconds (`took_ns`),
//! enum values are their names.

mod canary;
pub(crate) mod decision;
pub(crate) mod host;
pub(crate) mod nvme;
pub(crate) mod operation;
pub(crate) mod plugin;
pub(crate) mod stats;
pub(crate) mod top;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::api::v1;

use super::failure::{Exit, Failure};
use super::print;
use super::units::MemoryMib;

/// A VM.
#[derive(Debug, Serialize)]
pub(crate) struct VmView {
    pub(crate) name: String,
    uid: String,
    pub(crate) state: String,
    pub(crate) failure: String,
    spec: SpecView,
    vmm_pid: u32,
    nics: Vec<NicStatusView>,
    nvme: Vec<nvme::NvmeStatusView>,
    devices: Vec<DeviceView>,
    create_time: Option<String>,
    pub(crate) update_time: Option<String>,
    pub(crate) admission: Option<DecisionView>,
    placement: Option<PlacementView>,
    memory_use: Option<stats::MemoryUseView>,
    etag: String,
}

/// Where policy has the VM run.
#[derive(Debug, Serialize)]
struct PlacementView {
    numa_node: u32,
    host_cpus: String,
    decision: String,
}

#[derive(Debug, Default, Serialize)]
struct SpecView {
    vcpus: u32,
    memory_mib: u64,
    boot: BootView,
    disks: Vec<DiskView>,
    nics: Vec<NicView>,
    nvme: Vec<nvme::NvmeSpecView>,
    vsock: Option<VsockView>,
    /// `SERIAL`, `VIRTIO`.
    console: String,
    memory: MemoryView,
    cpus: CpusView,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct VsockView {
    cid: u32,
}

#[derive(Debug, Default, Serialize)]
struct MemoryView {
    /// `NONE`, `SIZE_2M`, `SIZE_1G`.
    hugepages: String,
    prefault: bool,
    numa_node: Option<u32>,
    balloon: Option<BalloonView>,
}

#[derive(Debug, Serialize)]
struct BalloonView {
    /// 0: all.
    keep_mib: u64,
}

#[derive(Debug, Default, Serialize)]
struct CpusView {
    host_cpus: String,
    topology: Option<TopologyView>,
}

#[derive(Debug, Serialize)]
struct TopologyView {
    sockets: u32,
    cores: u32,
    threads: u32,
}

#[derive(Debug, Default, Serialize)]
struct BootView {
    kernel: String,
    initrd: String,
    cmdline: String,
}

#[derive(Debug, Serialize)]
struct DiskView {
    id: String,
    volume: String,
    read_only: bool,
    direct: bool,
    queues: u32,
    limits: Option<LimitsView>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct LimitsView {
    bytes_per_second: u64,
    bytes_burst: u64,
    operations_per_second: u64,
    operations_burst: u64,
}

#[derive(Debug, Serialize)]
struct NicView {
    id: String,
    sriov: Option<SriovView>,
    limits: Option<LimitsView>,
    queues: u32,
    vhost: bool,
}

#[derive(Debug, Serialize)]
struct SriovView {
    mac: String,
    vlan: u32,
}

#[derive(Debug, Serialize)]
struct NicStatusView {
    id: String,
    mac: String,
    tap: String,
    host_address: String,
    guest_address: String,
    vf_address: String,
    pf_interface: String,
}

#[derive(Debug, Serialize)]
struct DeviceView {
    id: String,
    slot: u32,
    state: String,
}

/// What policy said.
#[derive(Debug, Serialize)]
pub(crate) struct DecisionView {
    allowed: bool,
    code: String,
    message: String,
    opinions: Vec<OpinionView>,
    took_ns: u64,
    record: String,
}

#[derive(Debug, Serialize)]
struct OpinionView {
    plugin: String,
    digest: String,
    scope: String,
    verdict: String,
    detail: String,
    fuel: u64,
    took_ns: u64,
}

impl From<v1::VirtualMachine> for VmView {
    fn from(vm: v1::VirtualMachine) -> Self {
        Self {
            state: vm.state().as_str_name().to_owned(),
            name: vm.name,
            uid: vm.uid,
            failure: vm.failure,
            spec: vm.spec.map(SpecView::from).unwrap_or_default(),
            vmm_pid: vm.vmm_pid,
            nics: vm.nics.into_iter().map(NicStatusView::from).collect(),
            nvme: vm.nvme.into_iter().map(nvme::NvmeStatusView::from).collect(),
            devices: vm.devices.into_iter().map(DeviceView::from).collect(),
            create_time: vm.create_time.and_then(moment),
            update_time: vm.update_time.and_then(moment),
            admission: vm.admission.map(DecisionView::from),
            placement: vm.placement.map(PlacementView::from),
            memory_use: vm.memory_use.map(stats::MemoryUseView::from),
            etag: vm.etag,
        }
    }
}

impl From<v1::Placement> for PlacementView {
    fn from(placement: v1::Placement) -> Self {
        let v1::Placement { numa_node, host_cpus, decision } = placement;
        Self { numa_node, host_cpus, decision }
    }
}

impl PlacementView {
    fn text(&self) -> String {
        let decision = short(&self.decision);
        let by = if decision.is_empty() { String::new() } else { format!(" (decision {decision})") };
        format!("NUMA node {}, CPUs {}{by}", self.numa_node, self.host_cpus)
    }
}

impl From<v1::VirtualMachineSpec> for SpecView {
    fn from(spec: v1::VirtualMachineSpec) -> Self {
        let console = spec.console().as_str_name().to_owned();
        let boot = spec.boot.unwrap_or_default();
        let disks = spec.disks.into_iter();
        Self {
            vcpus: spec.vcpus,
            memory_mib: spec.memory_mib,
            boot: BootView { kernel: boot.kernel, initrd: boot.initrd, cmdline: boot.cmdline },
            disks: disks.map(DiskView::from).collect(),
            nics: spec.nics.into_iter().map(NicView::from).collect(),
            memory: MemoryView::from(spec.memory.unwrap_or_default()),
            cpus: CpusView::from(spec.cpus.unwrap_or_default()),
            nvme: spec.nvme.into_iter().map(nvme::NvmeSpecView::from).collect(),
            vsock: spec.vsock.map(|vsock| VsockView { cid: vsock.cid }),
            console,
            labels: spec.labels,
        }
    }
}

impl From<v1::RateLimits> for LimitsView {
    fn from(limits: v1::RateLimits) -> Self {
        let v1::RateLimits { bytes_per_second, bytes_burst, operations_per_second, operations_burst } = limits;
        Self { bytes_per_second, bytes_burst, operations_per_second, operations_burst }
    }
}

impl LimitsView {
    /// As words of a list; none for what is not limited.
    fn words(self) -> impl Iterator<Item = String> {
        let rate = |per_second: u64, what: &str| (per_second > 0).then(|| format!("{per_second} {what}/s"));
        [rate(self.bytes_per_second, "bytes"), rate(self.operations_per_second, "operations")].into_iter().flatten()
    }
}

impl From<v1::DiskSpec> for DiskView {
    fn from(disk: v1::DiskSpec) -> Self {
        let v1::DiskSpec { id, volume, read_only, direct, queues, limits } = disk;
        Self { id, volume, read_only, direct, queues, limits: limits.map(LimitsView::from) }
    }
}

impl From<v1::MemorySpec> for MemoryView {
    fn from(memory: v1::MemorySpec) -> Self {
        let hugepages = memory.hugepages().as_str_name().to_owned();
        let balloon = memory.balloon.map(|balloon| BalloonView { keep_mib: balloon.keep_mib });
        Self { hugepages, prefault: memory.prefault, numa_node: memory.numa_node, balloon }
    }
}

impl MemoryView {
    /// What differs from the default.
    fn text(&self) -> String {
        let mut said = Vec::new();
        match self.hugepages.as_str() {
            "SIZE_2M" => said.push("2M hugepages".to_owned()),
            "SIZE_1G" => said.push("1G hugepages".to_owned()),
            _ => {}
        }
        said.extend(self.prefault.then(|| "prefaulted".to_owned()));
        said.extend(self.numa_node.map(|node| format!("NUMA node {node}")));
        said.join(", ")
    }
}

impl BalloonView {
    fn text(&self) -> String {
        match self.keep_mib {
            0 => "the guest keeps all memory".to_owned(),
            keep => format!("the guest keeps {}", MemoryMib(keep)),
        }
    }
}

impl From<v1::CpuSpec> for CpusView {
    fn from(cpus: v1::CpuSpec) -> Self {
        let topology = |t: v1::CpuTopology| TopologyView { sockets: t.sockets, cores: t.cores, threads: t.threads };
        Self { host_cpus: cpus.host_cpus, topology: cpus.topology.map(topology) }
    }
}

impl From<v1::NicSpec> for NicView {
    fn from(nic: v1::NicSpec) -> Self {
        let sriov = nic.sriov.map(|sriov| SriovView { mac: sriov.mac, vlan: sriov.vlan });
        Self { id: nic.id, sriov, limits: nic.limits.map(LimitsView::from), queues: nic.queues, vhost: nic.vhost }
    }
}

impl From<v1::NicStatus> for NicStatusView {
    fn from(nic: v1::NicStatus) -> Self {
        let v1::NicStatus { id, mac, tap, host_address, guest_address, vf_address, pf_interface } = nic;
        Self { id, mac, tap, host_address, guest_address, vf_address, pf_interface }
    }
}

impl From<v1::DeviceStatus> for DeviceView {
    fn from(device: v1::DeviceStatus) -> Self {
        Self { state: device.state().as_str_name().to_owned(), id: device.id, slot: device.slot }
    }
}

impl From<v1::Decision> for DecisionView {
    fn from(decision: v1::Decision) -> Self {
        Self {
            allowed: decision.allowed,
            code: decision.code,
            message: decision.message,
            opinions: decision.opinions.into_iter().map(OpinionView::from).collect(),
            took_ns: nanos(decision.took),
            record: decision.record,
        }
    }
}

impl From<v1::Opinion> for OpinionView {
    fn from(opinion: v1::Opinion) -> Self {
        let v1::Opinion { plugin, digest, scope, verdict, detail, fuel, took } = opinion;
        Self { plugin, digest, scope, verdict, detail, fuel, took_ns: nanos(took) }
    }
}

impl VmView {
    /// `tenant/vm` instead of the full name.
    pub(crate) fn short_name(&self) -> String {
        short(&self.name)
    }

    /// Where it would run, of a start that is only validated.
    pub(crate) fn tried_place(&self) -> Option<String> {
        self.placement.as_ref().filter(|placement| placement.decision.is_empty()).map(PlacementView::text)
    }

    /// The state, with the cause if it is FAILED.
    pub(crate) fn state_text(&self) -> String {
        if self.failure.is_empty() { self.state.clone() } else { format!("{} ({})", self.state, self.failure) }
    }

    /// Everything, for one VM.
    pub(crate) fn text(&self) -> String {
        let mut facts = vec![
            ("name", self.short_name()),
            ("uid", self.uid.clone()),
            ("state", self.state_text()),
            ("vcpus", self.spec.vcpus.to_string()),
            ("memory", MemoryMib(self.spec.memory_mib).to_string()),
            ("kernel", self.spec.boot.kernel.clone()),
        ];
        let mut add = |key, value: String| {
            if !value.is_empty() {
                facts.push((key, value));
            }
        };
        add("initrd", self.spec.boot.initrd.clone());
        add("cmdline", self.spec.boot.cmdline.clone());
        add("pages", self.spec.memory.text());
        add("balloon", self.spec.memory.balloon.as_ref().map(BalloonView::text).unwrap_or_default());
        add("host cpus", self.spec.cpus.host_cpus.clone());
        if let Some(t) = &self.spec.cpus.topology {
            add("topology", format!("{} sockets × {} cores × {} threads", t.sockets, t.cores, t.threads));
        }
        add("placed", self.placement.as_ref().map(PlacementView::text).unwrap_or_default());
        add("disks", lines(self.spec.disks.iter().map(DiskView::text)));
        add("nics", lines(self.nics.iter().map(|nic| nic.text(self.spec.nics.iter().find(|spec| spec.id == nic.id)))));
        let status = |id: &str| self.nvme.iter().find(|nvme| nvme.id == id);
        add("nvme", lines(self.spec.nvme.iter().map(|nvme| nvme.text(status(&nvme.id)))));
        add("vsock", self.spec.vsock.as_ref().map(|vsock| format!("context id {}", vsock.cid)).unwrap_or_default());
        add("console", if self.spec.console == "VIRTIO" { "virtio, hvc0".to_owned() } else { String::new() });
        add("labels", lines(self.spec.labels.iter().map(|(key, value)| format!("{key}={value}"))));
        add("devices", lines(self.devices.iter().map(DeviceView::text)));
        add("vmm pid", if self.vmm_pid == 0 { String::new() } else { self.vmm_pid.to_string() });
        add("takes", self.memory_use.map(stats::MemoryUseView::text).unwrap_or_default());
        add("created", self.create_time.clone().unwrap_or_default());
        add("updated", self.update_time.clone().unwrap_or_default());
        if let Some(admission) = &self.admission {
            add("admitted by", admission.text());
        }
        print::facts(&facts)
    }
}

impl DeviceView {
    fn text(&self) -> String {
        format!("{}: slot {}, {}", self.id, self.slot, self.state)
    }
}

impl DiskView {
    fn text(&self) -> String {
        let mut words = vec![if self.read_only { "ro" } else { "rw" }.to_owned()];
        if self.direct {
            words.push("direct".to_owned());
        }
        if self.queues > 1 {
            words.push(format!("{} queues", self.queues));
        }
        words.extend(self.limits.into_iter().flat_map(LimitsView::words));
        format!("{}: {} ({})", self.id, self.volume, words.join(", "))
    }
}

impl NicStatusView {
    fn text(&self, spec: Option<&NicView>) -> String {
        if let Some(wish) = spec.and_then(|spec| spec.sriov.as_ref()) {
            if !self.vf_address.is_empty() {
                return format!("{}: {}, VF {} of {}", self.id, self.mac, self.vf_address, self.pf_interface);
            }
            let mac = if wish.mac.is_empty() { String::new() } else { format!(", {}", wish.mac) };
            let vlan = if wish.vlan == 0 { String::new() } else { format!(", VLAN {}", wish.vlan) };
            return format!("{}: SR-IOV{mac}{vlan}", self.id);
        }
        let mut tap = if self.tap.is_empty() { String::new() } else { format!(", tap {}", self.tap) };
        if spec.is_some_and(|spec| spec.vhost) {
            tap.push_str(", vhost");
        }
        let limits = spec.and_then(|spec| spec.limits).into_iter().flat_map(LimitsView::words);
        let limits: String = limits.map(|word| format!(", {word}")).collect();
        format!("{}: {}, guest {}, host {}{tap}{limits}", self.id, self.mac, self.guest_address, self.host_address)
    }
}

impl DecisionView {
    /// One line per plugin: who, which version, how fast, what it said; and the whole time when they are several.
    pub(crate) fn text(&self) -> String {
        let mut said: Vec<_> = self.opinions.iter().map(OpinionView::text).collect();
        if said.len() != 1 {
            let whole = print::duration(Duration::from_nanos(self.took_ns));
            said.push(format!("{} plugins in {whole}", self.opinions.len()));
        }
        said.join("\n")
    }
}

impl OpinionView {
    fn text(&self) -> String {
        let took = print::duration(Duration::from_nanos(self.took_ns));
        let detail = if self.detail.is_empty() { String::new() } else { format!(": {}", self.detail) };
        format!("{} {} in {took}, {}{detail}", self.plugin, print::short_digest(&self.digest), self.verdict)
    }
}

/// A table of VMs.
pub(crate) fn vm_table(vms: &[VmView]) -> String {
    let rows: Vec<_> = vms
        .iter()
        .map(|vm| {
            [
                vm.short_name(),
                vm.state.clone(),
                vm.spec.vcpus.to_string(),
                MemoryMib(vm.spec.memory_mib).to_string(),
                vm.nics.first().map(|nic| nic.guest_address.clone()).unwrap_or_default(),
                vm.failure.clone(),
            ]
        })
        .collect();
    print::table(["NAME", "STATE", "VCPUS", "MEMORY", "ADDRESS", "FAILURE"], &rows)
}

/// `tenants/acme/vms/web`, or a decision, as people write it.
pub(crate) fn short(name: &str) -> String {
    match name.split('/').collect::<Vec<_>>()[..] {
        ["tenants", tenant, "vms" | "decisions", last] => format!("{tenant}/{last}"),
        _ => name.to_owned(),
    }
}

/// A value as JSON: one line, or indented.
pub(crate) fn json(value: &impl Serialize, is_one_line: bool) -> Result<String, Failure> {
    let text = if is_one_line { serde_json::to_string(value) } else { serde_json::to_string_pretty(value) };
    text.map(|text| text + "\n").map_err(|error| Failure::new(Exit::Refused, format!("cannot write JSON: {error}")))
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.collect::<Vec<_>>().join("\n")
}

fn moment(moment: prost_types::Timestamp) -> Option<String> {
    let nanos = i128::from(moment.seconds) * 1_000_000_000 + i128::from(moment.nanos);
    OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?.format(&Rfc3339).ok()
}

fn nanos(duration: Option<prost_types::Duration>) -> u64 {
    let duration = duration.and_then(|duration| Duration::try_from(duration).ok()).unwrap_or_default();
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
