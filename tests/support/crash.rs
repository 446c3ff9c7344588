//! A daemon that dies where it is told to, and what is left of it. Key type: [`Footprint`]; key functions:
//! [`Host::crash`], [`assert_consistent`].

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ostler::api::v1;
use ostler::api::v1::device_lease::State as Lease;
use ostler::api::v1::virtual_machine::State;
use ostler::daemon::crash::Point;
use ostler::sys::image;

use super::client::{Caller, spawn, wait};
use super::host::{Host, taps};
use super::wait::{BOOT, SOON, until, within};

/// What `crash` tries: it needs no guest.
pub const RECORDS: &[Point] = &[
    Point::RequestBegun,
    Point::RequestAnswered,
    Point::KvWritten,
    Point::EventsWritten,
    Point::ObserverHeard,
    Point::RegisterDecided,
    Point::RegisterRecorded,
    Point::PluginWritten,
    Point::PluginRecorded,
    Point::PluginUnloaded,
    Point::CanaryRolledBack,
    Point::DiskGrown,
    Point::AttachDecided,
    Point::DetachDecided,
    Point::BootDevices,
    Point::BootSwept,
    Point::BootResumed,
    Point::EndDirectory,
    Point::EndCgroup,
    Point::EndReleased,
    Point::DestroyRecorded,
    Point::DestroyErased,
    Point::DestroyForgotten,
    Point::AttachRecorded,
    Point::DetachRecorded,
];

/// What `crash_runs` tries: processes of VMs, and devices that come to running ones.
pub const RUNS: &[Point] = &[
    Point::EndDirectory,
    Point::EndCgroup,
    Point::EndReleased,
    Point::DestroyRecorded,
    Point::DestroyErased,
    Point::DestroyForgotten,
    Point::AttachRecorded,
    Point::DetachRecorded,
    Point::StartRecorded,
    Point::LaunchDirectories,
    Point::LaunchSockets,
    Point::LaunchOpened,
    Point::LaunchFiles,
    Point::LaunchCgroup,
    Point::LaunchSpawned,
    Point::LaunchRecorded,
    Point::LaunchSent,
    Point::RunReady,
    Point::RunRecorded,
    Point::StopRecorded,
    Point::StopPressed,
    Point::StopKilled,
    Point::EndSeen,
    Point::EndRecorded,
    Point::AttachOpened,
    Point::AttachSent,
    Point::AttachHeard,
    Point::AttachSettled,
    Point::DetachSent,
    Point::DetachHeard,
    Point::DetachSettled,
];

/// What `crash_devices` tries: virtual functions and NVMe.
pub const DEVICES: &[Point] = &[
    Point::VfClaimed,
    Point::VfSet,
    Point::VfBound,
    Point::VfReady,
    Point::VfPrepared,
    Point::VfAttached,
    Point::VfReleasing,
    Point::VfReset,
    Point::VfUnbound,
    Point::VfRestored,
    Point::VfFree,
    Point::FunctionRecorded,
    Point::FunctionReturned,
    Point::DataClaimed,
    Point::NamespaceTaken,
    Point::NamespaceErased,
    Point::NamespaceLeft,
    Point::DataPrepared,
    Point::SecondaryClaimed,
    Point::SecondaryBound,
    Point::SecondaryConnected,
    Point::SecondaryPrepared,
    Point::ControllerLent,
    Point::NvmeAttached,
    Point::SecondaryReleasing,
    Point::SecondaryUnbound,
    Point::SecondaryEmptied,
    Point::SecondaryFree,
    Point::DataReleasing,
    Point::ControllerReturned,
    Point::DataFree,
    Point::ProvisionRecorded,
    Point::ProvisionCleared,
    Point::ProvisionReset,
    Point::ProvisionEnabled,
    Point::ProvisionOnline,
    Point::ProvisionDone,
];

/// A fresh id for a request that will be repeated.
pub fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

impl Host {
    /// Has the daemon die at `point` of `call`, which must come to it, and starts the next one.
    pub fn crash<T: 'static>(&mut self, point: Point, call: impl FnOnce(&Self) -> Call<T>) {
        self.die(point, call);
        self.start_daemon();
    }

    /// The same, and all vmms die too before the next daemon starts.
    pub fn crash_with_vmms<T: 'static>(&mut self, point: Point, call: impl FnOnce(&Self) -> Call<T>) {
        self.die(point, call);
        self.kill_vmms();
        until("the end of the vmms", SOON, || self.vmm_processes().is_empty().then_some(()));
        self.start_daemon();
    }

    fn die<T: 'static>(&mut self, point: Point, call: impl FnOnce(&Self) -> Call<T>) {
        self.kill_daemon();
        self.start_daemon_armed(point);
        let Call(request) = call(self);
        spawn(async move { drop(request.await) });
        self.await_crash(point);
    }
}

/// A call that is made later, or twice. A box, since each call is a type of its own.
pub struct Call<T>(pub std::pin::Pin<Box<dyn Future<Output = Result<T, tonic::Status>> + Send>>);

impl<T> Call<T> {
    pub fn new(request: impl Future<Output = Result<tonic::Response<T>, tonic::Status>> + Send + 'static) -> Self {
        Self(Box::pin(async move { request.await.map(tonic::Response::into_inner) }))
    }

    /// Makes it.
    pub fn make(self) -> Result<T, tonic::Status> {
        wait(self.0)
    }
}

/// Everything on the host that a VM could have left behind.
#[derive(Debug, PartialEq, Eq)]
pub struct Footprint {
    files: BTreeSet<String>,
    processes: Vec<u32>,
    taps: BTreeSet<String>,
    cgroups: Vec<PathBuf>,
    mounts: BTreeSet<String>,
    descriptors: Vec<String>,
    held: Vec<(String, v1::DeviceLease)>,
    vms: Vec<String>,
}

impl Footprint {
    /// Of a daemon that has done nothing yet: what it has from loading plugins differs.
    pub fn of_fresh(host: &mut Host) -> Self {
        host.kill_daemon();
        host.start_daemon();
        Self::of(host)
    }

    fn of(host: &mut Host) -> Self {
        let mut files = BTreeSet::new();
        for dir in [host.data(), host.run_dir()] {
            collect(&dir, &mut files);
        }
        let operator = host.operator();
        let mut vms: Vec<_> = operator.list("").unwrap().into_iter().map(|vm| vm.uid).collect();
        vms.sort();
        Self {
            files,
            processes: host.vmm_processes(),
            taps: taps().into_iter().collect(),
            cgroups: host.cgroups(),
            mounts: mounts(),
            descriptors: host.daemon_pid().map(descriptors).unwrap_or_default(),
            held: held(&operator),
            vms,
        }
    }

    /// Waits until the host is like this again: what is erased in the background takes a while.
    pub fn expect_again(&self, host: &mut Host, what: &str) {
        let mut last = None;
        let is_again = within(BOOT, || {
            let now = last.insert(Self::of(host));
            (now == self).then_some(())
        });
        assert!(is_again.is_some(), "{what}: before {self:#?}\nafter {last:#?}");
    }
}

/// Paths of files that are neither the store nor a log.
fn collect(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        found.insert(path.display().to_string());
        if path.is_dir() {
            collect(&path, found);
        }
    }
}

fn mounts() -> BTreeSet<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect()
}

/// Images that the daemon keeps for further VMs, one copy of each: kernels and initrds of what tests boot.
const KEPT_IMAGES: usize = 6;

/// Of the daemon: files and devices by path, the rest by kind. Sockets are its clients', and the images that it keeps are
/// nobody's.
fn descriptors(pid: u32) -> Vec<String> {
    let targets = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let targets = targets.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string()));
    let mut targets: Vec<_> =
        targets.filter(|target| !target.starts_with("socket:") && !target.contains("wasm-memory")).collect();
    for target in &mut targets {
        // Pipes have numbers; its own files are named after the process.
        *target = target.split("pipe:").next().unwrap_or_default().replace(&format!("/proc/{pid}/"), "/proc/self/");
    }
    let all = targets.len();
    targets.retain(|target| !target.contains(image::NAME));
    assert!(all - targets.len() <= KEPT_IMAGES, "{} images are kept", all - targets.len());
    targets.sort();
    targets
}

/// Devices of the host that are not free, with their leases.
fn held(operator: &Caller) -> Vec<(String, v1::DeviceLease)> {
    let vfs = operator.devices().unwrap().into_iter().flat_map(|pf| pf.virtual_functions);
    let vfs = vfs.filter_map(|vf| Some((vf.address, vf.lease?)));
    let parts = operator.nvme_controllers().unwrap().into_iter().flat_map(|controller| {
        let address = controller.address;
        let secondaries = controller.secondaries.into_iter().filter_map(|one| one.lease);
        let namespaces = controller.namespaces.into_iter().filter_map(|one| one.lease);
        let leases = secondaries.chain(namespaces).chain(controller.lease);
        leases.map(|lease| (address.clone(), lease)).collect::<Vec<_>>()
    });
    let is_held = |lease: &v1::DeviceLease| !matches!(lease.state(), Lease::Free | Lease::Unspecified);
    vfs.chain(parts).filter(|(_, lease)| is_held(lease)).collect()
}

/// Waits until nothing is being erased any more.
pub fn until_erased(host: &Host) {
    let operator = host.operator();
    until("the end of the erasing", BOOT, || {
        held(&operator).iter().all(|(_, lease)| lease.state() != Lease::Releasing).then_some(())
    });
}

/// What the daemon says of its VMs is what the host shows: none has more or less, and nothing is anybody's else.
pub fn assert_consistent(host: &Host, what: &str) {
    let operator = host.operator();
    let is_moving =
        |vm: &v1::VirtualMachine| matches!(vm.state(), State::Starting | State::Stopping | State::Destroying);
    let is_changing =
        |vm: &v1::VirtualMachine| vm.devices.iter().any(|device| device.state() != v1::device_status::State::Attached);
    let vms = until(&format!("{what}: the end of what was under way"), BOOT, || {
        let vms = operator.list("").unwrap();
        let is_still = !vms.iter().any(|vm| is_moving(vm) || is_changing(vm));
        is_still.then_some(vms)
    });
    let running: Vec<_> = vms.iter().filter(|vm| matches!(vm.state(), State::Running | State::Paused)).collect();
    let names = |paths: Vec<PathBuf>| -> BTreeSet<String> {
        paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    };
    let uids: BTreeSet<_> = running.iter().map(|vm| vm.uid.clone()).collect();
    assert_eq!(names(host.run_entries()), uids, "{what}: run directories");
    if host.is_jailed() {
        assert_eq!(names(host.cgroups()), uids, "{what}: cgroups");
    }
    let processes: BTreeSet<_> = host.vmm_processes().into_iter().collect();
    assert_eq!(processes, running.iter().map(|vm| vm.vmm_pid).collect(), "{what}: processes");
    let shown: BTreeSet<_> = taps().into_iter().collect();
    let owned = running.iter().flat_map(|vm| &vm.nics).map(|nic| nic.tap.clone()).filter(|tap| !tap.is_empty());
    assert_eq!(shown, owned.collect(), "{what}: taps");
    for (address, lease) in held(&operator) {
        let is_owned = lease.state() == Lease::Releasing || vms.iter().any(|vm| vm.uid == lease.vm_uid);
        assert!(is_owned && lease.state() != Lease::Quarantined, "{what}: {address} {lease:?}");
    }
    let all: BTreeSet<_> = vms.iter().map(|vm| vm.uid.clone()).collect();
    let states = fs::read_dir(host.data().join("vms")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let states = names(states);
    assert!(states.is_subset(&all), "{what}: {states:?} of VMs {all:?}");
    assert_eq!(components(host), bound(&operator), "{what}: components");
    for chain in operator.verify("").unwrap() {
        assert!(chain.fault.is_empty(), "{what}: {chain:?}");
    }
}

/// Files of components, by digest.
fn components(host: &Host) -> BTreeSet<String> {
    let files = fs::read_dir(host.data().join("plugins")).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| path.file_name().unwrap().to_string_lossy().replace(".wasm", "")).collect()
}

/// Digests of what is bound, or was and can be bound again.
fn bound(operator: &Caller) -> BTreeSet<String> {
    let plugins = operator.plugins("tenants/-").unwrap().into_iter();
    let digests = plugins.flat_map(|plugin| {
        let previous = plugin.previous.into_iter().map(|version| version.digest);
        previous.chain([plugin.digest]).collect::<Vec<_>>()
    });
    digests.map(|digest| digest.trim_start_matches("sha256:").to_owned()).collect()
}
