//! Devices of one VM that come and go: the part of its task that is about them. Key types: [`DeviceCall`],
//! [`HotplugError`], [`Hotplug`].
//!
//! ```text
//!   attach   record ATTACHING ──▶ open (own task) ──▶ Attach + descriptors ──▶ Attached ──▶ record ATTACHED
//!               └──────────────────────┴──────── any failure ─────────┴──▶ record without it
//!   detach   record DETACHING ──▶ Detach ──▶ (the guest agrees) ──▶ Detached ──▶ record without it
//!                                    └── deadline: the call fails; the guest may still agree, or be asked again
//! ```
//! The record is the intent: when the run ends, or the daemon, it says what is to be finished or undone. A VM that does
//! not run is changed in its record alone. What devices of the host need besides is in `lending`.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::backing::{self, BackingError};
use super::lending::{Opened, Reclaims};
use super::plan;
use super::vm_task::{Phase, VmTask};
use super::{CallError, JournalError, OnlyIf};
use crate::daemon::crash::{self, Point};
use crate::daemon::operation::{Step, Underway};
use crate::daemon::record::{AddError, AttachState, NicLease, RNG, VmRecord};
use crate::daemon::trace::CallId;
use crate::model::{DeviceId, DeviceSpec, Refused, VmState};
use crate::wire::{FromVmm, ToVmm};

/// The last step of each call.
const RECORDING: &str = "recording what the VM has";
/// How long a vmm may take to give up a device that its guest is not asked for.
const FORCED_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a device cannot come or go.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HotplugError {
    /// It cannot be added to the VM.
    #[error(transparent)]
    Add(#[from] AddError),
    /// Its image, or its tap.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// The vmm refused it.
    #[error("device {id} cannot be attached: {cause}")]
    AttachFailed {
        /// Which.
        id: DeviceId,
        /// The vmm's words.
        cause: String,
        /// The vmm has nothing left for another device.
        is_exhausted: bool,
    },
    /// The host has nothing for it, or policy gives nothing.
    #[error("device {id} cannot be attached: {cause}")]
    NotLent {
        /// Which.
        id: DeviceId,
        /// Why.
        cause: String,
    },
    /// There is none of that name.
    #[error("the VM has no device {0}; `ostler vm get` lists them")]
    NoSuchDevice(DeviceId),
    /// The VM cannot be without it.
    #[error("device {0} is part of every VM and cannot be detached")]
    Fixed(DeviceId),
    /// Something is under way with it.
    #[error("device {0} is still being attached; try again when it is")]
    Busy(DeviceId),
    /// The guest did not let it go.
    #[error(
        "the guest has not let go of device {id} within {} ms: it has no driver for hot-plugging, or the device is in use; \
        it was asked and may still do so. Ask again, or detach by force",
        waited.as_millis()
    )]
    NotLetGo {
        /// Which.
        id: DeviceId,
        /// For how long it was waited for.
        waited: Duration,
    },
    /// The vmm does not listen.
    #[error("the VM's process does not listen; start the VM again")]
    Unreachable,
    /// The intent could not be recorded.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// A call about a device, with where its answer goes.
pub(super) struct DeviceCall {
    pub(super) wanted: DeviceWanted,
    /// Not at all, if the VM is not what the client has seen.
    pub(super) only_if: Option<OnlyIf>,
    pub(super) reply: DeviceReply,
    /// For whom it is done.
    pub(super) request: Option<CallId>,
    /// Who sees how far it is, and may call it off.
    pub(super) operation: Underway,
}

/// What it wants.
pub(super) enum DeviceWanted {
    /// The VM has this device.
    Attached {
        device: DeviceSpec,
        /// Its addresses, if it is a NIC on a tap.
        nic: Option<NicLease>,
        /// Called when a record holds the addresses, whatever comes of it: they are free with the record, not before.
        held: Box<dyn FnOnce() + Send>,
    },
    /// The VM does not have this device.
    Detached { id: DeviceId, timeout: Duration, is_forced: bool },
}

/// Where the answer to such a call goes.
pub(super) type DeviceReply = oneshot::Sender<Result<VmRecord, CallError>>;

/// A call that waits for vmm or guest.
struct Waiting {
    id: DeviceId,
    /// When it is answered that the guest did not let go, and how long that was from the call on. `None`: an attach.
    detach_by: Option<(Instant, Duration)>,
    reply: DeviceReply,
    operation: Underway,
}

/// What came of work for a device.
pub(super) enum Progress {
    /// Its descriptors are there, or not.
    Opened(DeviceId, Result<Opened, HotplugError>),
    /// What the host lent for it is the host's again. Why it was not attached, if that is why.
    GivenBack(DeviceId, Option<HotplugError>),
}

/// What is under way with devices.
#[derive(Default)]
pub(super) struct Hotplug {
    waiting: Vec<Waiting>,
    work: JoinSet<Progress>,
    /// What is being given back to the host.
    pub(super) returning: HashSet<DeviceId>,
    /// What the host wants back, and when it is taken from the guest.
    pub(super) reclaims: Reclaims,
}

impl Hotplug {
    /// Begins work in a task of its own, for the same call.
    pub(super) fn begin(&mut self, work: impl Future<Output = Progress> + Send + 'static) {
        match CallId::current() {
            Some(id) => self.work.spawn(id.scope(work)),
            None => self.work.spawn(work),
        };
    }

    /// Whether nothing is under way on the host, and nobody waits.
    pub(super) fn is_quiet(&self) -> bool {
        self.work.is_empty() && self.waiting.is_empty() && self.returning.is_empty()
    }

    /// The next piece of work that is done. Safe to cancel.
    pub(super) async fn progress(&mut self) -> Progress {
        loop {
            match self.work.join_next().await {
                Some(Ok(progress)) => return progress,
                // It panicked: its caller hears of it when the run ends. Nothing else is known of it.
                Some(Err(error)) => tracing::error!(%error, "work for a device ended early"),
                None => std::future::pending().await,
            }
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let calls = self.waiting.iter().filter_map(|call| Some(call.detach_by?.0));
        calls.chain(self.reclaims.next()).min()
    }

    /// The run is over: what is opened for it is closed again. Returns when nothing is under way on the host any more.
    pub(super) async fn finish(&mut self) {
        while self.work.join_next().await.is_some() {}
        self.returning.clear();
        self.reclaims.clear();
    }

    /// Takes out the calls of detachments that were called off, by device.
    pub(super) fn take_called_off(&mut self) -> HashMap<DeviceId, Vec<DeviceReply>> {
        let mut taken: HashMap<_, Vec<_>> = HashMap::new();
        let is_called_off = |call: &mut Waiting| call.detach_by.is_some() && call.operation.is_called_off();
        for call in self.waiting.extract_if(.., is_called_off) {
            taken.entry(call.id).or_default().push(call.reply);
        }
        taken
    }

    /// Whether somebody else waits for the device to go: another call, or the host.
    pub(super) fn is_wanted_back(&self, id: &DeviceId) -> bool {
        let is_asked_for = self.waiting.iter().any(|call| call.id == *id && call.detach_by.is_some());
        is_asked_for || self.returning.contains(id) || self.reclaims.wants(id)
    }

    /// The guest has let the device go: nobody can call that off any more.
    fn seal(&self, id: &DeviceId) {
        for call in self.about(id) {
            call.operation.seal();
        }
    }

    fn about<'a>(&'a self, id: &'a DeviceId) -> impl Iterator<Item = &'a Waiting> {
        self.waiting.iter().filter(move |call| call.id == *id)
    }

    /// Tells all who wait for the device to come or go what is done for it.
    pub(super) fn tell(&self, id: &DeviceId, step: &'static str) {
        self.about(id).for_each(|call| call.operation.tell(Step::new(step)));
    }

    /// The operation of the first of them.
    pub(super) fn first_about(&self, id: &DeviceId) -> Underway {
        self.about(id).next().map_or_else(Underway::unseen, |call| call.operation.clone())
    }

    fn answer(&mut self, id: &DeviceId, is_attach: bool, answer: &Result<VmRecord, CallError>) {
        let is_meant = |call: &mut Waiting| call.id == *id && call.detach_by.is_none() == is_attach;
        for call in self.waiting.extract_if(.., is_meant) {
            // Nobody waits for the answer any more: fine.
            let _ = call.reply.send(answer.clone());
        }
    }

    /// Answers calls whose deadline is over.
    pub(super) fn expire(&mut self, now: Instant) {
        let is_due = |call: &mut Waiting| call.detach_by.is_some_and(|(at, _)| at <= now);
        for call in self.waiting.extract_if(.., is_due) {
            let waited = call.detach_by.map(|(_, waited)| waited).unwrap_or_default();
            let _ = call.reply.send(Err(HotplugError::NotLetGo { id: call.id, waited }.into()));
        }
    }
}

impl VmTask {
    pub(super) async fn device_call(&mut self, call: DeviceCall) {
        let DeviceCall { wanted, only_if, reply, request: _, operation } = call;
        if only_if.is_some_and(|condition| !condition.holds(&self.vm)) {
            return drop(reply.send(Err(CallError::Changed)));
        }
        let verb = match &wanted {
            DeviceWanted::Attached { .. } => "attach a device to",
            DeviceWanted::Detached { .. } => "detach a device from",
        };
        let is_running = match &self.vm.state {
            VmState::Running => true,
            VmState::Registered | VmState::Stopped | VmState::Failed(_) => false,
            VmState::Starting | VmState::Paused | VmState::Stopping | VmState::Rebooting | VmState::Destroying => {
                let _ = reply.send(Err(Refused { verb, state: self.vm.state.name() }.into()));
                return;
            }
        };
        let is_asked = matches!(wanted, DeviceWanted::Detached { is_forced: false, .. });
        let begun = match wanted {
            DeviceWanted::Attached { device, nic, held } => {
                self.attach(&device, nic, held, is_running, &operation).await
            }
            DeviceWanted::Detached { id, timeout, is_forced } => {
                self.detach(id, timeout, is_forced, is_running, &operation).await
            }
        };
        match begun {
            Ok(None) => drop(reply.send(Ok(self.vm.clone()))),
            Ok(Some((id, detach_by))) => {
                if let Some((_, waited)) = detach_by {
                    self.show_detach(&operation, waited, is_asked);
                }
                self.hotplug.waiting.push(Waiting { id, detach_by, reply, operation });
            }
            Err(error) => drop(reply.send(Err(error.into()))),
        }
    }

    /// Records that the device comes, and has it opened if there is a vmm to send it to.
    async fn attach(
        &mut self,
        device: &DeviceSpec,
        nic: Option<NicLease>,
        held: Box<dyn FnOnce() + Send>,
        is_running: bool,
        operation: &Underway,
    ) -> Result<Option<Begun>, HotplugError> {
        let id = device.id().clone();
        let state = if is_running { AttachState::Attaching } else { AttachState::Attached };
        let next = self.vm.with_device(device, nic, state)?;
        held();
        self.record_devices(next).await?;
        crash::reach(Point::AttachRecorded);
        if !is_running {
            return Ok(None);
        }
        // Before the work, which tells more.
        operation.tell(Step::new("preparing the device on the host"));
        if self.vm.devices_of_host().contains(&id) {
            self.borrow(id.clone(), operation);
            return Ok(Some((id, None)));
        }
        let (shared, vm, device) = (Arc::clone(&self.shared), self.vm.clone(), device.clone());
        let opening = tokio::task::spawn_blocking(move || backing::open(&shared, &vm, &device));
        let of = id.clone();
        self.hotplug.begin(async move {
            let host = |cause| BackingError::Host { what: "device", cause };
            let opened = opening.await.unwrap_or_else(|error| Err(host(error.to_string())));
            let opened = opened.map(|descriptors| Opened { descriptors, function: None });
            Progress::Opened(of, opened.map_err(HotplugError::from))
        });
        Ok(Some((id, None)))
    }

    /// Records that the device goes, and tells the vmm if there is one.
    async fn detach(
        &mut self,
        id: DeviceId,
        timeout: Duration,
        is_forced: bool,
        is_running: bool,
        operation: &Underway,
    ) -> Result<Option<Begun>, HotplugError> {
        if id.as_str() == RNG || self.vm.spec.is_fixed(&id) {
            return Err(HotplugError::Fixed(id));
        }
        if self.vm.attachment(&id).is_none() {
            return Err(HotplugError::NoSuchDevice(id));
        }
        if !is_running {
            let is_of_host = self.vm.devices_of_host().contains(&id);
            let mut next = self.vm.clone();
            next.remove_device(&id);
            self.record_devices(next).await?;
            crash::reach(Point::DetachRecorded);
            if is_of_host {
                // What it holds across runs. Its lease tells a daemon after this one that no VM has it any more.
                self.shared.devices.give_back(self.vm.uid, id, operation.for_telling()).await;
            }
            return Ok(None);
        }
        self.detach_running(&id, is_forced).await?;
        let waited = if is_forced { FORCED_TIMEOUT } else { timeout };
        Ok(Some((id, Some((Instant::now() + waited, waited)))))
    }

    /// Records that the device leaves the run, and tells the vmm.
    pub(super) async fn detach_running(&mut self, id: &DeviceId, is_forced: bool) -> Result<(), HotplugError> {
        let attachment = self.vm.attachment(id).ok_or_else(|| HotplugError::NoSuchDevice(id.clone()))?;
        match attachment.state {
            AttachState::Attaching => return Err(HotplugError::Busy(id.clone())),
            AttachState::Attached => {
                let mut next = self.vm.clone();
                next.set_device(id, AttachState::Detaching);
                self.record_devices(next).await?;
                crash::reach(Point::DetachRecorded);
            }
            // Asked again, maybe by force this time.
            AttachState::Detaching => {}
        }
        let is_sent = self.send(&ToVmm::Detach { id: id.clone(), is_forced }, &[]);
        crash::reach(Point::DetachSent);
        if is_sent { Ok(()) } else { Err(HotplugError::Unreachable) }
    }

    /// Work for a device is done.
    pub(super) async fn progress(&mut self, progress: Progress) {
        match progress {
            Progress::Opened(id, opened) => self.opened(id, opened).await,
            Progress::GivenBack(id, failed) => self.given_back(&id, failed).await,
        }
    }

    /// The descriptors of a device are there, or not: send it, or forget it.
    async fn opened(&mut self, id: DeviceId, opened: Result<Opened, HotplugError>) {
        // The run that it was opened for may be over.
        if self.vm.attachment(&id).is_none_or(|attachment| attachment.state != AttachState::Attaching) {
            return;
        }
        crash::reach(Point::AttachOpened);
        let sent = match opened {
            Ok(opened) => self.hand_over(&id, opened).await,
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            self.attach_failed(id, error).await;
        }
    }

    async fn hand_over(&mut self, id: &DeviceId, opened: Opened) -> Result<(), HotplugError> {
        let Opened { descriptors, function } = opened;
        if let Some(function) = function {
            self.record_function(function).await?;
        }
        let no_plan = |error: plan::PlanError| HotplugError::AttachFailed {
            id: id.clone(),
            cause: error.to_string(),
            is_exhausted: false,
        };
        let device = plan::device(&self.vm, id).map_err(no_plan)?;
        self.hotplug.tell(id, "attaching the device to the VM's process");
        let is_sent = self.send(&ToVmm::Attach(device), &descriptors);
        crash::reach(Point::AttachSent);
        if is_sent { Ok(()) } else { Err(HotplugError::Unreachable) }
    }

    /// What the vmm says of a device.
    pub(super) async fn device_news(&mut self, message: FromVmm) {
        match message {
            FromVmm::Attached(id) => {
                crash::reach(Point::AttachHeard);
                self.hotplug.tell(&id, RECORDING);
                let mut next = self.vm.clone();
                next.set_device(&id, AttachState::Attached);
                self.record_fact(next).await;
                crash::reach(Point::AttachSettled);
                self.hotplug.answer(&id, true, &Ok(self.vm.clone()));
            }
            FromVmm::AttachFailed { id, cause, is_exhausted } => {
                let error = HotplugError::AttachFailed { id: id.clone(), cause, is_exhausted };
                self.attach_failed(id, error).await;
            }
            // What the vmm does not have is as good as detached.
            FromVmm::Detached(id) | FromVmm::DetachFailed { id, .. } => {
                crash::reach(Point::DetachHeard);
                self.hotplug.seal(&id);
                if self.vm.devices_of_host().contains(&id) {
                    self.give_back(id, None);
                } else {
                    self.forget_device(&id, None).await;
                }
            }
            FromVmm::DeviceWanted(id) => self.reclaim(id).await,
            FromVmm::DetachAsked(id) => tracing::debug!(uid = %self.vm.uid, device = %id, "the guest was asked"),
            FromVmm::Hello { .. }
            | FromVmm::Ready { .. }
            | FromVmm::Ended(_)
            | FromVmm::DeviceChanged { .. }
            | FromVmm::Paused
            | FromVmm::Resumed
            | FromVmm::NotPaused { .. } => {}
        }
    }

    async fn attach_failed(&mut self, id: DeviceId, error: HotplugError) {
        if self.vm.devices_of_host().contains(&id) {
            self.give_back(id, Some(error));
        } else {
            self.forget_device(&id, Some(error)).await;
        }
    }

    /// The VM does not have the device any more, or never got it.
    pub(super) async fn forget_device(&mut self, id: &DeviceId, failed: Option<HotplugError>) {
        self.hotplug.reclaims.forget(id);
        self.hotplug.tell(id, RECORDING);
        let mut next = self.vm.clone();
        next.remove_device(id);
        self.record_fact(next).await;
        crash::reach(Point::DetachSettled);
        match failed {
            Some(error) => self.hotplug.answer(id, true, &Err(error.into())),
            None => self.hotplug.answer(id, false, &Ok(self.vm.clone())),
        }
    }

    /// A vmm of an earlier daemon has `present`: finish or undo what that one began.
    pub(super) async fn take_over_devices(&mut self, present: &[DeviceId]) {
        self.give_back_absent(present);
        let mut next = self.vm.clone();
        next.settle_devices_with(present);
        if next != self.vm {
            self.record_fact(next).await;
        }
        for attachment in self.vm.devices.clone() {
            if attachment.state == AttachState::Detaching && present.contains(&attachment.id) {
                // The earlier one may not have come to it.
                self.send(&ToVmm::Detach { id: attachment.id, is_forced: false }, &[]);
            }
        }
    }

    /// Answers calls about devices whose wish is true or cannot become so, now that the run may be over.
    pub(super) fn settle_device_calls(&mut self) {
        let interrupted = Err(CallError::Interrupted { state: self.vm.state.name() });
        for (id, is_attach) in
            self.hotplug.waiting.iter().map(|call| (call.id.clone(), call.detach_by.is_none())).collect::<Vec<_>>()
        {
            if self.vm.attachment(&id).is_none() {
                let answer = if is_attach { interrupted.clone() } else { Ok(self.vm.clone()) };
                self.hotplug.answer(&id, is_attach, &answer);
            }
        }
    }

    /// Makes an intent the record. If it cannot be kept, it is not done.
    async fn record_devices(&mut self, next: VmRecord) -> Result<(), HotplugError> {
        let before = std::mem::replace(&mut self.vm, next);
        self.vm.updated = SystemTime::now();
        let Err(error) = self.shared.journal.update(self.vm.clone()).await else { return Ok(()) };
        self.record_fact(before).await;
        Err(error.into())
    }

    /// Makes a fact the record; it is one whether or not the disk takes it.
    pub(super) async fn record_fact(&mut self, next: VmRecord) {
        self.vm = next;
        self.vm.updated = SystemTime::now();
        if let Err(error) = self.shared.journal.update(self.vm.clone()).await {
            tracing::error!(uid = %self.vm.uid, %error, "a change of devices is not on disk: the next start will see");
        }
    }

    fn send(&self, message: &ToVmm, descriptors: &[OwnedFd]) -> bool {
        let Phase::Live(live) = &self.phase else { return false };
        live.link.as_ref().is_some_and(|link| link.send(message, descriptors).is_ok())
    }
}

/// What a call waits for: a device, and until when if it is to go.
type Begun = (DeviceId, Option<(Instant, Duration)>);
