//! Makes a run: opens what the vmm may not open itself, starts its process. Key functions: [`launch`],
//! [`Spawned::send`].
//!
//! ```text
//!   launch: devices of the host are claimed (unless the VM kept them through a reset)
//!   spawn (blocking): run dir · cgroup · control.sock (bound) ──fd 3──▶ jail, then vmm process
//!   vm_task: records pid and start time
//!   send: connects to control.sock ── Launch{roles} + descriptors ──▶ vmm; our copies are closed
//! ```
//! Until `send` the vmm holds nothing but its socket: a daemon that dies in between leaves a process that ends by
//! itself, or is found by its name (`arg0`) and killed.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use super::backing::{BackingError, lock, open_nic};
use super::link::{Link, LinkError};
use super::plan::{PlanError, plan};
use super::{DevicesError, Shared, VmPaths};
use crate::daemon::crash::{self, Point};
use crate::daemon::operation::{Step, Underway};
use crate::daemon::record::{NvmeDevice, VfNic, VmRecord};
use crate::daemon::trace::CallId;
use crate::model::{CpuList, InstanceId, JailFacts, Launch, NicSpec, PageSize, Placement, SpecError, VmId};
use crate::sys;
use crate::sys::cgroup::CgroupError;
use crate::sys::packet::Listener;
use crate::sys::process::Process;
use crate::sys::spawn::Isolation;
use crate::wire::{Role, ToVmm, console_ring, counters, encode_launch};

/// Why a run could not be made. The text goes to the client.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    File(#[from] SpecError),
    #[error(transparent)]
    Devices(#[from] DevicesError),
    #[error(transparent)]
    Backing(#[from] BackingError),
    #[error("cannot open /dev/kvm: {0}; load the kvm module and let the daemon read and write the device")]
    Kvm(io::Error),
    #[error(
        "{needed} pages of {size} are needed, and {free} are free; the host's operator reserves more with \
         `echo N > /sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages`"
    )]
    Hugepages { needed: u64, free: u64, size: PageSize, kib: u64 },
    #[error("this host has no pages of {0}")]
    NoSuchPages(PageSize),
    #[error("cannot prepare {what}: {source}")]
    Host { what: &'static str, source: io::Error },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("cannot start the vmm process: {0}")]
    Spawn(io::Error),
    #[error("cannot send the launch: {0}")]
    Send(#[from] LinkError),
}

/// A vmm process that waits for its launch, and that launch.
#[derive(Debug)]
pub(super) struct Spawned {
    pub(super) process: Process,
    /// Virtual functions that the VM has for this run.
    pub(super) vfs: Vec<VfNic>,
    /// NVMe devices that it has, each with its function.
    pub(super) nvmes: Vec<NvmeDevice>,
    /// Where it runs, if policy has chosen that.
    pub(super) placement: Option<Box<Placement>>,
    roles: Vec<Role>,
    descriptors: Vec<OwnedFd>,
}

impl Spawned {
    /// Sends the launch and closes our copies of everything that goes with it.
    pub(super) fn send(self, paths: &VmPaths) -> Result<(Process, Link), (Process, LaunchError)> {
        let launch = ToVmm::Launch { roles: self.roles };
        let sent =
            Link::connect(&paths.control()).and_then(|link| link.send(&launch, &self.descriptors).map(|()| link));
        match sent {
            Ok(link) => Ok((self.process, link)),
            Err(error) => Err((self.process, error.into())),
        }
    }
}

/// What is told while the process is made.
pub(super) const SPAWNING: &str = "starting the VM's process";

/// What names of vmm processes begin with.
pub(super) const ARG0: &str = "ostler-vm-";

/// The name under which `uid`'s vmm process shows in the process list; unique to it.
pub(super) fn arg0(uid: VmId) -> String {
    format!("{ARG0}{uid}")
}

/// Claims the devices that `vm` needs and has not, and a place, then makes the run `instance`. `operation` is told what is
/// done.
pub(super) async fn launch(
    shared: Arc<Shared>,
    mut vm: VmRecord,
    instance: InstanceId,
    operation: Underway,
) -> Result<Spawned, LaunchError> {
    if vm.spec.nics().iter().any(|nic| nic.vf_wish().is_some()) {
        vm.vfs.extend(shared.devices.claim(vm.clone(), operation.clone()).await?);
    }
    if !vm.spec.nvmes().is_empty() {
        let given = shared.devices.claim_nvmes(vm.clone(), operation.clone()).await?;
        vm.nvmes.retain(|known| given.iter().all(|device| device.id != known.id));
        vm.nvmes.extend(given);
    }
    // A guest that resets stays where it is, as it keeps its devices.
    if vm.placement.is_none() {
        vm.placement = shared.devices.place(vm.clone(), operation.clone()).await?.map(Box::new);
    }
    for id in vm.devices_of_host() {
        shared.devices.attach(vm.uid, id).await?;
    }
    // Without a call: the guest has reset, or a daemon before this one was asked.
    let request = CallId::current().unwrap_or_else(|| CallId::new(None)).to_string();
    tracing::info!(uid = %vm.uid, %instance, call = request, "launching");
    operation.tell(Step::new("opening what the VM's process gets"));
    let spawned = tokio::task::spawn_blocking(move || spawn(&shared, &vm, instance, request, &operation)).await;
    spawned.unwrap_or_else(|error| Err(LaunchError::Spawn(io::Error::other(error))))
}

/// Opens everything for `vm` and starts its process. Blocks. What it opened is closed again on an error.
fn spawn(
    shared: &Shared,
    vm: &VmRecord,
    instance: InstanceId,
    request: String,
    operation: &Underway,
) -> Result<Spawned, LaunchError> {
    let paths = shared.paths(vm.uid);
    let launch = Launch { request, ..plan(vm, instance)? };
    check_hugepages(launch.memory.pages, launch.memory_bytes)?;
    make_dirs(&paths)?;
    crash::reach(Point::LaunchDirectories);
    let control = Listener::bind(&paths.control()).map_err(host("control socket"))?;
    let console = UnixListener::bind(paths.console()).map_err(host("console socket"))?;
    crash::reach(Point::LaunchSockets);

    let config = sys::sealed::seal("ostler-launch", &encode_launch(&launch)).map_err(host("configuration"))?;
    let mut passed = vec![(Role::Config, config)];
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").map_err(LaunchError::Kvm)?;
    passed.push((Role::Kvm, kvm.into()));
    let image = |file| shared.images.shared(file).map_err(host("image"));
    passed.push((Role::Kernel, image(shared.files.kernel(&vm.spec)?)?));
    if let Some(initrd) = shared.files.initrd(&vm.spec)? {
        passed.push((Role::Initrd, image(initrd)?));
    }
    let mut longest_file_bytes = 0;
    for (index, disk) in vm.spec.disks().iter().enumerate() {
        let image = shared.files.disk(&vm.tenant, index, disk)?;
        lock(&image, disk)?;
        if !disk.is_read_only {
            longest_file_bytes = longest_file_bytes.max(image.metadata().map_err(host("disk"))?.len());
        }
        passed.push((Role::Device(disk.id.clone()), image.into()));
    }
    for nic in &vm.nics {
        let spec = vm.spec.nics().iter().find(|spec| spec.id == nic.id);
        let opened = open_nic(nic.subnet, spec.and_then(NicSpec::tap).unwrap_or_default())?.into_iter();
        passed.extend(opened.map(|descriptor| (Role::Device(nic.id.clone()), descriptor)));
    }
    for vf in &vm.vfs {
        passed.extend(shared.devices.open(vf)?.map(|descriptor| (Role::Device(vf.id.clone()), descriptor)));
    }
    for (nvme, function) in vm.nvmes.iter().filter_map(|nvme| Some((nvme, nvme.function?))) {
        passed
            .extend(shared.devices.open_nvme(function)?.map(|descriptor| (Role::Device(nvme.id.clone()), descriptor)));
    }
    if let Some(vsock) = vm.spec.vsock() {
        let listener = UnixListener::bind(paths.vsock()).map_err(host("vsock socket"))?;
        passed.push((Role::Device(vsock.id().clone()), listener.into()));
    }
    crash::reach(Point::LaunchOpened);
    passed.push((Role::ConsoleListener, console.into()));
    passed.push((Role::ConsoleRing, make_ring(&paths.console_ring()).map_err(host("console ring"))?.into()));
    let counters = make_counters(&paths.counters()).map_err(host("counters"))?;
    passed.push((Role::Counters, counters.into()));
    let exit_record = create(&paths.exit_record(instance)).map_err(host("exit record"))?;
    passed.push((Role::ExitRecord, exit_record.into()));

    let log = create(&paths.log()).map_err(host("vmm log"))?;
    crash::reach(Point::LaunchFiles);
    let facts = JailFacts::new(&launch, vm.user, longest_file_bytes);
    let cpus = vm.placement.as_ref().map(|placement| &placement.cpus).or(launch.cpus.host_cpus.as_ref());
    operation.tell(Step::new(SPAWNING));
    let process = start(shared, &launch, &facts, cpus, control.as_fd(), log)?;
    crash::reach(Point::LaunchSpawned);
    let (roles, descriptors) = passed.into_iter().unzip();
    let (vfs, nvmes, placement) = (vm.vfs.clone(), vm.nvmes.clone(), vm.placement.clone());
    Ok(Spawned { process, vfs, nvmes, placement, roles, descriptors })
}

/// Says what is lacking before a process is made; the kernel's own word for it is ENOMEM.
fn check_hugepages(size: PageSize, memory_bytes: u64) -> Result<(), LaunchError> {
    if !size.is_huge() {
        return Ok(());
    }
    let (needed, kib) = (memory_bytes / size.bytes(), size.bytes() >> 10);
    match sys::hugepages::free(kib) {
        None => Err(LaunchError::NoSuchPages(size)),
        Some(free) if free < needed => Err(LaunchError::Hugepages { needed, free, size, kib }),
        Some(_) => Ok(()),
    }
}

/// Starts the process: in its cgroup, which holds it on `cpus`, and as the role `jail`, which becomes the vmm; without a jail
/// as the vmm itself.
fn start(
    shared: &Shared,
    launch: &Launch,
    facts: &JailFacts,
    cpus: Option<&CpuList>,
    control: BorrowedFd<'_>,
    log: File,
) -> Result<Process, LaunchError> {
    let (program, name) = (&shared.vmm, arg0(launch.vm));
    let started = match &shared.jail {
        None => sys::spawn::detached(program, &name, &["vmm".as_ref()], control, log),
        Some(jail) => {
            let cgroup = jail.make(launch.vm, facts, cpus)?;
            crash::reach(Point::LaunchCgroup);
            let args: Vec<String> =
                [format!("request={}", launch.request)].into_iter().chain(facts.to_args()).collect();
            let args: Vec<&OsStr> = std::iter::once("jail".as_ref()).chain(args.iter().map(OsStr::new)).collect();
            let isolation = Isolation { cgroup: Some(cgroup.as_fd()), has_own_pids: true };
            sys::spawn::isolated(program, &name, &args, control, log, isolation)
        }
    };
    started.map_err(LaunchError::Spawn)
}

/// Both directories, empty of what an earlier run left (except its console and its log).
fn make_dirs(paths: &VmPaths) -> Result<(), LaunchError> {
    remove_dir(paths.run_dir()).map_err(host("run directory"))?;
    let mut private = DirBuilder::new();
    private.recursive(true).mode(0o700);
    private.create(paths.run_dir()).map_err(host("run directory"))?;
    private.create(paths.state_dir()).map_err(host("state directory"))?;
    for entry in std::fs::read_dir(paths.state_dir()).map_err(host("state directory"))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("exit-") {
            std::fs::remove_file(entry.path()).map_err(host("exit record"))?;
        }
    }
    Ok(())
}

/// Removes a directory with its content; an absent one is fine.
pub(super) fn remove_dir(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn make_ring(path: &Path) -> io::Result<File> {
    let file = create(path)?;
    file.set_len(console_ring::FILE_LEN as u64)?;
    Ok(file)
}

fn make_counters(path: &Path) -> io::Result<File> {
    let file = create(path)?;
    file.set_len(counters::FILE_LEN as u64)?;
    // The first moment is ours: what follows is the jail's time.
    file.write_all_at(&sys::counter_page::now_ns().to_le_bytes(), counters::Phase::Spawned.at() as u64)?;
    Ok(file)
}

/// A new, empty file that only the daemon's user reads.
fn create(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError::Host { what, source }
}
