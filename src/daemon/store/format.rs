//! Records as JSON documents, and back through the constructors of `model`: a file that somebody edited is refused, not
//! believed.
//!
//! The types here are the file's, apart from `model`'s on purpose: renaming something there must not change what is on
//! disk. A field may be added with `#[serde(default)]`; anything else is a new [`FORMAT`] with a reader for the old.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::PluginRecord;
use super::decision::StoredDecision;
use crate::daemon::record::{NicLease, Run, Subnet, VfNic, VmRecord, mac_of};
use crate::model::{
    BootSpec, DiskSpec, FailureCause, ImagePath, NicBackend, NicSpec, PluginDigest, PolicyScope, VfWish, VlanId,
    VmExit, VmSpec, VmState,
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
    state: StoredState,
    run: Option<StoredRun>,
    nics: Vec<StoredNic>,
    #[serde(default)]
    vfs: Vec<StoredVf>,
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
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredState {
    Registered,
    Starting,
    Running,
    Stopping,
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
        state: store_state(&vm.state),
        run: vm.run.as_ref().map(store_run),
        nics: vm.nics.iter().map(|n| StoredNic { id: n.id.to_string(), network: n.subnet.network() }).collect(),
        vfs: vm.vfs.iter().map(store_vf).collect(),
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
    Ok(VmRecord {
        uid,
        tenant: vm.tenant.parse().map_err(text)?,
        name: vm.name.parse().map_err(text)?,
        spec: load_spec(vm.spec)?,
        state: load_state(vm.state),
        run: vm.run.map(load_run).transpose()?,
        nics,
        vfs: vm.vfs.into_iter().map(load_vf).collect::<Result<_, _>>()?,
        user: vm.user,
        created: from_ms(vm.created_ms)?,
        updated: from_ms(vm.updated_ms)?,
        admission: vm.admission.load()?,
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
    })
}

pub(super) fn decode_plugin(bytes: &[u8]) -> Result<PluginRecord, Unusable> {
    let plugin: StoredPlugin = from_json(bytes)?;
    Ok(PluginRecord {
        scope: scope_of(plugin.tenant)?,
        name: plugin.name.parse().map_err(text)?,
        digest: parse_digest(&plugin.digest)?,
        settings: plugin.settings,
        loaded: from_ms(plugin.loaded_ms)?,
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
            })
            .collect(),
        nics: spec.nics().iter().map(|nic| nic.id.to_string()).collect(),
        vf_wishes: spec
            .nics()
            .iter()
            .filter_map(|nic| Some((nic.id.to_string(), store_wish(nic.vf_wish()?))))
            .collect(),
    }
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
        })
    });
    let disks = disks.collect::<Result<_, _>>()?;
    let nics = spec.nics.iter().map(|id| {
        let wish = spec.vf_wishes.get(id).map(load_wish).transpose()?;
        let backend = wish.map_or(NicBackend::Tap, NicBackend::Sriov);
        Ok::<_, Unusable>(NicSpec { id: id.parse().map_err(text)?, backend })
    });
    let nics = nics.collect::<Result<_, _>>()?;
    VmSpec::new(spec.vcpus, spec.memory_mib, boot, disks, nics).map_err(text)
}

fn store_state(state: &VmState) -> StoredState {
    match state {
        VmState::Registered => StoredState::Registered,
        VmState::Starting => StoredState::Starting,
        VmState::Running => StoredState::Running,
        VmState::Stopping => StoredState::Stopping,
        VmState::Stopped => StoredState::Stopped,
        VmState::Failed(FailureCause(exit)) => StoredState::Failed(match exit.clone() {
            VmExit::PowerOff => StoredExit::PowerOff,
            VmExit::Reset => StoredExit::Reset,
            VmExit::TripleFault => StoredExit::TripleFault,
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
        StoredState::Stopping => VmState::Stopping,
        StoredState::Stopped => VmState::Stopped,
        StoredState::Failed(exit) => VmState::Failed(FailureCause(match exit {
            StoredExit::PowerOff => VmExit::PowerOff,
            StoredExit::Reset => VmExit::Reset,
            StoredExit::TripleFault => VmExit::TripleFault,
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
    let refuse = || format!("{digest:?} is not a digest");
    let hex = digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.is_ascii()).ok_or_else(refuse)?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).map_err(text)?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| refuse())?;
    }
    Ok(PluginDigest(bytes))
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
    use crate::daemon::record::samples;
    use proptest::prelude::*;

    #[test]
    fn every_state_round_trips() {
        let exits = [
            VmExit::PowerOff,
            VmExit::Reset,
            VmExit::TripleFault,
            VmExit::Killed,
            VmExit::LaunchFailed("no kernel".into()),
            VmExit::HostError("EFAULT".into()),
            VmExit::Vanished("killed by signal 9".into()),
        ];
        let states = [
            VmState::Registered,
            VmState::Starting,
            VmState::Running,
            VmState::Stopping,
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
        vm.vfs = vec![VfNic {
            id: "vf0".parse().unwrap(),
            address: "0000:01:10.1".parse().unwrap(),
            pf_interface: "eth0".into(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
        }];
        assert_eq!(decode_vm(&encode_vm(&vm)).as_ref(), Ok(&vm));
        vm.run = None;
        assert_eq!(decode_vm(&encode_vm(&vm)).as_ref(), Ok(&vm));
    }

    #[test]
    fn reads_a_record_from_before_there_were_virtual_functions() {
        let vm = samples::running("acme", "web");
        let mut json: serde_json::Value = serde_json::from_slice(&encode_vm(&vm)).unwrap();
        assert!(json.as_object_mut().unwrap().remove("vfs").is_some());
        assert!(json["spec"].as_object_mut().unwrap().remove("vf_wishes").is_some());
        assert_eq!(decode_vm(json.to_string().as_bytes()), Ok(vm));
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
