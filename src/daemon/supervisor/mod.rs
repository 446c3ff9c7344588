//! Runs VMs: one task per VM owns its lifecycle and its vmm process. Key types: [`Supervisor`], [`VmHandle`].
//!
//! ```text
//!  service ──Call──▶ vm_task ── step(state, event) ──▶ effects: launch · press · kill · release
//!                       │ ▲                                │
//!          Journal ◀────┘ └── link (Ready), pidfd (end) ◀──┴── vmm process
//!         hotplug ◀── devices that come and go while it runs
//!          Devices ◀── claimed before a launch, released when the run has ended; one by one while it runs (lending)
//! ```
//!
//! Intent goes to the [`Journal`] before each effect; `reconcile` finishes after a restart what the journal says. The
//! vmm processes outlive the daemon: nothing here ends them when it is dropped.

mod backing;
mod begin;
mod call;
mod change;
mod end;
mod hotplug;
mod images;
mod jail;
mod launch;
mod lending;
mod link;
mod live;
mod paths;
mod plan;
mod reconcile;
mod standing;
mod steps;
mod traces;
mod underway;
mod vm_task;

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::daemon::files::Files;
use crate::daemon::operation::Underway;
use crate::daemon::record::{NicLease, NvmeDevice, VfNic, VmRecord};
use crate::daemon::trace::CallId;
use crate::model::{
    Bdf, DeviceChange, DeviceId, DeviceSpec, FailureCause, Placement, RateLimits, Refused, VmId, WindowSize,
};
use crate::sys::confinement::{self, Confinement};
use crate::sys::process::{Identity, Process};
pub use backing::BackingError;
use call::{Call, Reply, Request, Wanted};
use change::Change;
pub use hotplug::HotplugError;
use hotplug::{DeviceCall, DeviceWanted};
use images::Images;
pub use jail::{Jail, JailError};
pub use paths::{MAX_RUN_DIR_LEN, VmPaths};
pub use standing::Standing;
pub use traces::{DirKind, Traces, VmCgroup, VmDir, VmProcess};
use vm_task::VmTask;

/// Calls that may wait for one VM.
const CALLS_LEN: usize = 16;

/// How long a vmm may take to make its guest stand still, or to let it go on.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(15);

/// A future on the heap, as a trait object's method gives it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The journal could not take a record; the text is its reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot record the VM: {0}")]
pub struct JournalError(pub String);

/// Where VM tasks write what they are about to do, and what came of it.
pub trait Journal: Send + Sync + 'static {
    /// `vm` changed. Returns once that would survive a crash.
    fn update(&self, vm: VmRecord) -> BoxFuture<'_, Result<(), JournalError>>;
    /// `vm` is gone, with everything that it held; its addresses are free.
    fn remove(&self, vm: VmRecord) -> BoxFuture<'_, Result<(), JournalError>>;
}

/// A VM cannot have the devices that it wants; the text goes to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DevicesError(pub String);

/// Gives VMs devices of the host and takes them back. Whatever it begins it also records, so that a daemon after this
/// one can finish it.
pub trait Devices: Send + Sync + 'static {
    /// Chooses and prepares a virtual function for each NIC of `vm` that is to be one and has none; gives these. On an
    /// error some may be `vm`'s already: [`release`](Self::release) gives them back. `operation` is told what is done; so in
    /// the next ones.
    fn claim(&self, vm: VmRecord, operation: Underway) -> BoxFuture<'_, Result<Vec<VfNic>, DevicesError>>;
    /// The same for each NVMe device without a function: its namespace, unless it has one already, and a controller for
    /// this run.
    fn claim_nvmes(&self, vm: VmRecord, operation: Underway) -> BoxFuture<'_, Result<Vec<NvmeDevice>, DevicesError>>;
    /// Chooses where `vm` runs until it is off, if that is policy's to say; `None`: anywhere, or where its spec says. It has
    /// its devices by then. [`release`](Self::release) undoes it.
    fn place(&self, vm: VmRecord, operation: Underway) -> BoxFuture<'_, Result<Option<Placement>, DevicesError>>;
    /// Records that what `vm` has for its device `id` is about to go to its process.
    fn attach(&self, vm: VmId, id: DeviceId) -> BoxFuture<'_, Result<(), DevicesError>>;
    /// The descriptors of a virtual function that is its VM's, in the order that a launch has them: its VFIO container,
    /// then the device. Blocks while the kernel resets it.
    fn open(&self, vf: &VfNic) -> Result<[OwnedFd; 2], DevicesError>;
    /// The same for the function of an NVMe device.
    fn open_nvme(&self, function: Bdf) -> Result<[OwnedFd; 2], DevicesError>;
    /// Takes back everything that `vm` has for a run, clean. What cannot be cleaned is nobody's from then on.
    fn release(&self, vm: VmId, operation: Underway) -> BoxFuture<'_, ()>;
    /// Takes back all that `vm` has for its device `id`, data included, while the others stay. Returns once nothing of it
    /// can reach the VM; to erase it may take longer. What cannot be cleaned is nobody's from then on.
    fn give_back(&self, vm: VmId, id: DeviceId, operation: Underway) -> BoxFuture<'_, ()>;
    /// Takes back what `vm` had across its runs, before it is forgotten. Returns once that is recorded; to erase it may
    /// take longer.
    fn forget(&self, vm: VmId) -> BoxFuture<'_, ()>;
}

/// Why a call on a VM failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Not in this state.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The VM was started and did not come up.
    #[error("the VM did not start: {0}")]
    StartFailed(FailureCause),
    /// Another call got in between.
    #[error("another call interrupted this one: the VM is {state}")]
    Interrupted {
        /// Where it is now.
        state: &'static str,
    },
    /// A device was not changed.
    #[error("the device was not changed: {0}")]
    ChangeFailed(String),
    /// The vmm could not make it stand still, and lets it go on.
    #[error("the VM was not paused and goes on: {cause}")]
    NotPaused {
        /// Why.
        cause: String,
    },
    /// The vmm's control socket is closed, or it does not react.
    #[error("the VM's process does not react; stop or destroy the VM")]
    Deaf,
    /// A device cannot come or go.
    #[error(transparent)]
    Device(#[from] HotplugError),
    /// What it would do could not be recorded, so it was not done.
    #[error(transparent)]
    NotRecorded(#[from] JournalError),
    /// The VM was destroyed meanwhile.
    #[error("the VM is gone")]
    Gone,
    /// It was called off, in time.
    #[error("the operation was called off: {0}")]
    CalledOff(&'static str),
    /// It is not any more what the caller took it for ([`OnlyIf`]).
    #[error("the VM has changed since you looked at it")]
    Changed,
}

/// What must hold of a VM when its task comes to a call, for the call to be done.
#[derive(Clone)]
pub struct OnlyIf(Arc<dyn Fn(&VmRecord) -> bool + Send + Sync>);

impl OnlyIf {
    /// If `holds`, which is asked in the VM's task and must not block.
    pub fn new(holds: impl Fn(&VmRecord) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(holds))
    }

    pub(crate) fn holds(&self, vm: &VmRecord) -> bool {
        (self.0)(vm)
    }
}

impl std::fmt::Debug for OnlyIf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnlyIf")
    }
}

/// What VM tasks work with.
pub struct Supervisor {
    shared: Arc<Shared>,
}

/// What all tasks share.
pub(crate) struct Shared {
    /// Opens kernels and disks.
    pub(crate) files: Files,
    /// What they boot, shared.
    pub(crate) images: Images,
    /// Sockets: `<run>/vms/<uid>/`.
    pub(crate) run_dir: PathBuf,
    /// Consoles, exit records and logs: `<data>/vms/<uid>/`.
    pub(crate) state_dir: PathBuf,
    /// The program that is run in the role `jail`, or `vmm` without one.
    pub(crate) vmm: PathBuf,
    /// What VMs are confined with; `None`: nothing (`--no-jail`).
    pub(crate) jail: Option<Jail>,
    /// Where intents are written.
    pub(crate) journal: Arc<dyn Journal>,
    /// Where devices of the host come from.
    pub(crate) devices: Arc<dyn Devices>,
}

impl Shared {
    pub(crate) fn paths(&self, uid: VmId) -> VmPaths {
        VmPaths::new(&self.run_dir, &self.state_dir, uid)
    }

    /// Whether the kernel has killed something of `uid`'s for want of memory in this run.
    pub(crate) async fn was_out_of_memory(self: &Arc<Self>, uid: VmId) -> bool {
        let shared = Arc::clone(self);
        let looked =
            tokio::task::spawn_blocking(move || shared.jail.as_ref().is_some_and(|jail| jail.was_out_of_memory(uid)));
        looked.await.unwrap_or(false)
    }

    /// Removes the cgroup of `uid`, if there is one, and says so where it cannot.
    pub(crate) async fn remove_cgroup(self: &Arc<Self>, uid: VmId) {
        if !self.jail.as_ref().is_some_and(|jail| jail.has(uid)) {
            return;
        }
        let shared = Arc::clone(self);
        let removed = tokio::task::spawn_blocking(move || shared.jail.as_ref().map_or(Ok(()), |jail| jail.remove(uid)));
        match removed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%uid, %error, "cannot remove a cgroup"),
            Err(error) => tracing::error!(%uid, %error, "cannot remove a cgroup"),
        }
    }
}

impl Supervisor {
    /// `run_dir` and `state_dir` are made (0700) if they are absent.
    pub fn new(
        files: Files,
        run_dir: &Path,
        data_dir: &Path,
        vmm: &Path,
        jail: Option<Jail>,
        journal: Arc<dyn Journal>,
        devices: Arc<dyn Devices>,
    ) -> Self {
        let (run_dir, state_dir) = (run_dir.join("vms"), data_dir.join("vms"));
        let (vmm, images) = (vmm.to_owned(), Images::default());
        Self { shared: Arc::new(Shared { files, images, run_dir, state_dir, vmm, jail, journal, devices }) }
    }

    /// Where `uid`'s files are.
    pub fn paths(&self, uid: VmId) -> VmPaths {
        self.shared.paths(uid)
    }

    /// What `process` has and may do, as the kernel shows it; `None` when it is gone. `turn` ends when all is read, even if
    /// nobody waits for it any more.
    pub async fn confinement(&self, process: Identity, turn: impl Send + 'static) -> io::Result<Option<Confinement>> {
        let read = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            if Process::find(process)?.is_none() {
                return Ok(None);
            }
            let read = confinement::read(process.pid);
            // Only if it was the same process all the time.
            if Process::find(process)?.is_none() { Ok(None) } else { read.map(Some) }
        });
        read.await.map_err(io::Error::other)?
    }

    /// A task for a VM that has just been registered.
    pub fn adopt_new(&self, vm: VmRecord) -> VmHandle {
        let (handle, task) = self.task(vm);
        tokio::spawn(task.run(reconcile::Resumption::default()));
        handle
    }

    /// A task for a VM that a daemon before this one left: its process is found again, or its end is told.
    ///
    /// Takes up to 10 s when the process does not answer. `keep` gets the handle before the task runs.
    pub async fn resume(&self, vm: VmRecord, keep: impl FnOnce(VmHandle)) {
        let resumption = reconcile::resume(&self.shared, &vm).await;
        let (handle, task) = self.task(vm);
        keep(handle);
        tokio::spawn(task.run(resumption));
    }

    /// Removes what belongs to no VM in `known`: directories and cgroups of VMs whose registration or removal was cut
    /// short.
    pub async fn sweep(&self, known: &[VmId]) {
        let unknown = self.shared.jail.iter().flat_map(Jail::vms).filter(|uid| !known.contains(uid));
        for uid in unknown.collect::<Vec<_>>() {
            tracing::info!(%uid, "removing the cgroup of an unknown VM");
            self.shared.remove_cgroup(uid).await;
        }
        for dir in [&self.shared.run_dir, &self.shared.state_dir] {
            let Ok(mut entries) = tokio::fs::read_dir(dir).await else { continue };
            while let Ok(Some(entry)) = entries.next_entry().await {
                let uid = entry.file_name().to_str().and_then(|name| name.parse::<VmId>().ok());
                if uid.is_some_and(|uid| !known.contains(&uid)) {
                    tracing::info!(path = %entry.path().display(), "removing what is left of an unknown VM");
                    let _ = tokio::fs::remove_dir_all(entry.path()).await;
                }
            }
        }
    }

    fn task(&self, vm: VmRecord) -> (VmHandle, VmTask) {
        let (calls, inbox) = mpsc::channel(CALLS_LEN);
        (
            VmHandle { uid: vm.uid, calls, only_if: None, operation: Underway::unseen() },
            VmTask::new(Arc::clone(&self.shared), vm, inbox),
        )
    }
}

/// Calls a VM's task.
#[derive(Debug, Clone)]
pub struct VmHandle {
    uid: VmId,
    /// Boxed: a channel keeps room for 32 from its first on, and there may be a thousand of them.
    calls: mpsc::Sender<Box<Request>>,
    only_if: Option<OnlyIf>,
    operation: Underway,
}

impl VmHandle {
    /// The same VM, for calls that are done only if `condition` holds when its task comes to them.
    pub fn only_if(self, condition: Option<OnlyIf>) -> Self {
        Self { only_if: condition, ..self }
    }

    /// The same VM, for a call that `operation` is of.
    pub fn part_of(self, operation: Underway) -> Self {
        Self { operation, ..self }
    }

    /// Which VM.
    pub fn uid(&self) -> VmId {
        self.uid
    }

    async fn ask(&self, request: Request) -> Result<(), CallError> {
        self.calls.send(Box::new(request)).await.map_err(|_| CallError::Gone)
    }

    /// Starts it and waits until its vCPUs run.
    pub async fn start(&self) -> Result<VmRecord, CallError> {
        self.call(Wanted::Running).await
    }

    /// Presses the power button, kills it when `grace` is over, and waits until it is stopped.
    pub async fn stop(&self, grace: Duration) -> Result<VmRecord, CallError> {
        self.call(Wanted::Stopped { grace }).await
    }

    /// The same, and starts it again; waits until its vCPUs run.
    pub async fn reboot(&self, grace: Duration) -> Result<VmRecord, CallError> {
        self.call(Wanted::Rebooted { grace }).await
    }

    /// Makes vCPUs and devices stand still; waits until they do.
    pub async fn pause(&self) -> Result<VmRecord, CallError> {
        self.call_soon(Wanted::Paused).await
    }

    /// Undoes [`VmHandle::pause`].
    pub async fn resume(&self) -> Result<VmRecord, CallError> {
        self.call_soon(Wanted::Resumed).await
    }

    /// Presses the power button and does not wait for what the guest makes of it.
    pub async fn press_power_button(&self) -> Result<VmRecord, CallError> {
        self.call_soon(Wanted::Pressed).await
    }

    /// Gives every vCPU a non-maskable interrupt.
    pub async fn inject_nmi(&self) -> Result<VmRecord, CallError> {
        self.call_soon(Wanted::Interrupted).await
    }

    /// Forgets it, killing it first if `is_forced` and it runs; waits until it is gone.
    pub async fn destroy(&self, is_forced: bool) -> Result<VmRecord, CallError> {
        self.call(Wanted::Gone { is_forced }).await
    }

    /// Has the guest told that the image of `disk` is `len` bytes long now. A VM that is off will find it so.
    pub async fn resized(&self, disk: DeviceId, len: u64) -> Result<VmRecord, CallError> {
        self.change(Change { device: disk, what: DeviceChange::Resized, file_bytes: len }).await
    }

    /// Gives a disk, or a NIC on a tap, other limits, at once and for later.
    pub async fn limit(&self, device: DeviceId, limits: RateLimits) -> Result<VmRecord, CallError> {
        self.change(Change { device, what: DeviceChange::Limits(limits), file_bytes: 0 }).await
    }

    /// Has the guest keep so much of its memory; `None`: all.
    pub async fn keep(&self, balloon: DeviceId, keep_mib: Option<u64>) -> Result<VmRecord, CallError> {
        self.change(Change { device: balloon, what: DeviceChange::Balloon { keep_mib }, file_bytes: 0 }).await
    }

    /// Has the guest told how large the window on its console is. Not waited for: where it cannot be told now (the VM is
    /// paused, or has no process) it is not.
    pub async fn tell_window(&self, console: DeviceId, size: WindowSize) -> Result<(), CallError> {
        let change = Change { device: console, what: DeviceChange::Window(size), file_bytes: 0 };
        let (reply, _not_waited_for) = oneshot::channel();
        self.ask(Request::Lifecycle(self.asked(Wanted::Changed(change), reply))).await
    }

    async fn change(&self, change: Change) -> Result<VmRecord, CallError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Lifecycle(self.asked(Wanted::Changed(change), reply))).await?;
        // Dropped unanswered: its process ended meanwhile.
        answer.await.unwrap_or(Err(CallError::Interrupted { state: "without a process" }))
    }

    /// A call that the vmm answers at once, if it is well.
    async fn call_soon(&self, wanted: Wanted) -> Result<VmRecord, CallError> {
        tokio::time::timeout(PAUSE_TIMEOUT, self.call(wanted)).await.unwrap_or(Err(CallError::Deaf))
    }

    /// Attaches a device, now if the VM runs and else for its next start; returns when the guest has been told. `nic`: its
    /// addresses, if it is a NIC on a tap; `held` is called once the VM's record holds them.
    pub async fn attach(
        &self,
        device: DeviceSpec,
        nic: Option<NicLease>,
        held: impl FnOnce() + Send + 'static,
    ) -> Result<VmRecord, CallError> {
        self.device_call(DeviceWanted::Attached { device, nic, held: Box::new(held) }).await
    }

    /// Detaches a device: asks the guest of a running VM for it and waits for at most `timeout`, or takes it by force.
    pub async fn detach(&self, id: DeviceId, timeout: Duration, is_forced: bool) -> Result<VmRecord, CallError> {
        self.device_call(DeviceWanted::Detached { id, timeout, is_forced }).await
    }

    async fn device_call(&self, wanted: DeviceWanted) -> Result<VmRecord, CallError> {
        let (reply, answer) = oneshot::channel();
        let (only_if, operation) = (self.only_if.clone(), self.operation.clone());
        let call = DeviceCall { wanted, only_if, reply, request: CallId::current(), operation };
        self.ask(Request::Device(call)).await?;
        answer.await.map_err(|_| CallError::Gone)?
    }

    async fn call(&self, wanted: Wanted) -> Result<VmRecord, CallError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Lifecycle(self.asked(wanted, reply))).await?;
        answer.await.map_err(|_| CallError::Gone)?
    }

    fn asked(&self, wanted: Wanted, reply: Reply) -> Call {
        let (only_if, operation) = (self.only_if.clone(), self.operation.clone());
        Call { wanted, only_if, reply, request: CallId::current(), operation }
    }
}

#[cfg(test)]
mod tests;
