//! The API's messages as JSON and as text. Key types: [`VmView`], [`PluginView`], [`DecisionView`].
//!
//! JSON keys mirror `proto/ostler/v1` and stay stable: times are RFC 3339, durations are nanoseconds (`took_ns`),
//! enum values are their names.

pub(crate) mod host;

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
    create_time: Option<String>,
    update_time: Option<String>,
    pub(crate) admission: Option<DecisionView>,
    etag: String,
}

#[derive(Debug, Default, Serialize)]
struct SpecView {
    vcpus: u32,
    memory_mib: u64,
    boot: BootView,
    disks: Vec<DiskView>,
    nics: Vec<NicView>,
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
}

#[derive(Debug, Serialize)]
struct NicView {
    id: String,
    sriov: Option<SriovView>,
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

/// What policy said.
#[derive(Debug, Serialize)]
pub(crate) struct DecisionView {
    allowed: bool,
    code: String,
    message: String,
    opinions: Vec<OpinionView>,
    took_ns: u64,
}

#[derive(Debug, Serialize)]
struct OpinionView {
    plugin: String,
    digest: String,
    scope: String,
    verdict: String,
    detail: String,
    took_ns: u64,
}

/// A plugin.
#[derive(Debug, Serialize)]
pub(crate) struct PluginView {
    name: String,
    digest: String,
    hooks: Vec<String>,
    version: String,
    summary: String,
    settings: BTreeMap<String, String>,
    size_bytes: u64,
    load_time: Option<String>,
    failure: String,
    etag: String,
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
            create_time: vm.create_time.and_then(moment),
            update_time: vm.update_time.and_then(moment),
            admission: vm.admission.map(DecisionView::from),
            etag: vm.etag,
        }
    }
}

impl From<v1::VirtualMachineSpec> for SpecView {
    fn from(spec: v1::VirtualMachineSpec) -> Self {
        let boot = spec.boot.unwrap_or_default();
        let disks = spec.disks.into_iter();
        Self {
            vcpus: spec.vcpus,
            memory_mib: spec.memory_mib,
            boot: BootView { kernel: boot.kernel, initrd: boot.initrd, cmdline: boot.cmdline },
            disks: disks.map(|d| DiskView { id: d.id, volume: d.volume, read_only: d.read_only }).collect(),
            nics: spec.nics.into_iter().map(NicView::from).collect(),
        }
    }
}

impl From<v1::NicSpec> for NicView {
    fn from(nic: v1::NicSpec) -> Self {
        Self { id: nic.id, sriov: nic.sriov.map(|sriov| SriovView { mac: sriov.mac, vlan: sriov.vlan }) }
    }
}

impl From<v1::NicStatus> for NicStatusView {
    fn from(nic: v1::NicStatus) -> Self {
        let v1::NicStatus { id, mac, tap, host_address, guest_address, vf_address, pf_interface } = nic;
        Self { id, mac, tap, host_address, guest_address, vf_address, pf_interface }
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
        }
    }
}

impl From<v1::Opinion> for OpinionView {
    fn from(opinion: v1::Opinion) -> Self {
        let v1::Opinion { plugin, digest, scope, verdict, detail, took } = opinion;
        Self { plugin, digest, scope, verdict, detail, took_ns: nanos(took) }
    }
}

impl From<v1::Plugin> for PluginView {
    fn from(plugin: v1::Plugin) -> Self {
        Self {
            name: plugin.name,
            digest: plugin.digest,
            hooks: plugin.hooks,
            version: plugin.version,
            summary: plugin.summary,
            settings: plugin.settings.into_iter().collect(),
            size_bytes: plugin.size_bytes,
            load_time: plugin.load_time.and_then(moment),
            failure: plugin.failure,
            etag: plugin.etag,
        }
    }
}

impl VmView {
    /// `tenant/vm` instead of the full name.
    pub(crate) fn short_name(&self) -> String {
        short(&self.name)
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
        add("disks", lines(self.spec.disks.iter().map(DiskView::text)));
        add("nics", lines(self.nics.iter().map(|nic| nic.text(self.spec.nics.iter().find(|spec| spec.id == nic.id)))));
        add("vmm pid", if self.vmm_pid == 0 { String::new() } else { self.vmm_pid.to_string() });
        add("created", self.create_time.clone().unwrap_or_default());
        add("updated", self.update_time.clone().unwrap_or_default());
        if let Some(admission) = &self.admission {
            add("admitted by", admission.text());
        }
        print::facts(&facts)
    }
}

impl DiskView {
    fn text(&self) -> String {
        format!("{}: {} ({})", self.id, self.volume, if self.read_only { "ro" } else { "rw" })
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
        let tap = if self.tap.is_empty() { String::new() } else { format!(", tap {}", self.tap) };
        format!("{}: {}, guest {}, host {}{tap}", self.id, self.mac, self.guest_address, self.host_address)
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

/// A table of plugins.
pub(crate) fn plugin_table(plugins: &[PluginView]) -> String {
    let rows: Vec<_> = plugins
        .iter()
        .map(|plugin| {
            [
                plugin.name.clone(),
                plugin.version.clone(),
                plugin.hooks.join(","),
                print::short_digest(&plugin.digest),
                plugin.settings.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" "),
                if plugin.failure.is_empty() { plugin.summary.clone() } else { format!("BROKEN: {}", plugin.failure) },
            ]
        })
        .collect();
    print::table(["NAME", "VERSION", "HOOKS", "DIGEST", "SETTINGS", "SUMMARY"], &rows)
}

/// `tenants/acme/vms/web` as people write it.
pub(crate) fn short(name: &str) -> String {
    match name.split('/').collect::<Vec<_>>()[..] {
        ["tenants", tenant, "vms", vm] => format!("{tenant}/{vm}"),
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
