//! The task that owns one VM. Key type: [`VmTask`], a driver of `model::step`: it feeds events in; `steps` performs effects.
//!
//! ```text
//!   Phase:  Idle ──Launch──▶ Launching (own task) ──▶ Live (process + link) ──end seen──▶ Idle
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::call::{Call, Reply, Request, Wanted, verdict};
use super::change::{Change, Changes};
use super::end;
use super::hotplug::{Hotplug, Progress};
use super::launch::{LaunchError, Spawned};
use super::link::{Link, LinkError};
use super::live::{KILL_TIMEOUT, Live};
use super::reconcile::Resumption;
use super::{CallError, Shared, VmPaths};
use crate::daemon::crash::{self, Point};
use crate::daemon::record::{AttachState, Attachment, VmRecord};
use crate::model::{Event, Refused, VmExit, VmState, step};
use crate::sys::process::End;
use crate::wire::{FromVmm, ToVmm};

/// How long a vmm may take from its launch message to running vCPUs: a minute, and a second for each GiB, all of which may
/// have to be cleared first.
pub(super) fn ready_within(memory_bytes: u64) -> Duration {
    Duration::from_secs(60 + (memory_bytes >> 30))
}

#[derive(Debug)]
pub(super) enum Phase {
    Idle,
    Launching { spawn: JoinHandle<Result<Spawned, LaunchError>>, is_unwanted: bool },
    Live(Box<Live>),
}

/// Something to react to.
enum News {
    Request(Option<Box<Request>>),
    Device(Progress),
    Spawned(Result<Spawned, LaunchError>),
    Message(FromVmm),
    LinkLost(LinkError),
    Ended,
    Timer,
    CalledOff,
}

pub(super) struct VmTask {
    pub(super) shared: Arc<Shared>,
    pub(super) vm: VmRecord,
    pub(super) paths: VmPaths,
    calls: mpsc::Receiver<Box<Request>>,
    pub(super) waiting: Vec<Call>,
    pub(super) phase: Phase,
    pub(super) hotplug: Hotplug,
    /// When a guest that was asked to power off is killed. `None` once it is being killed.
    pub(super) stop_by: Option<Instant>,
    /// Woken when one of the operations that wait here is called off.
    pub(super) called_off: Arc<Notify>,
    pub(super) is_gone: bool,
}

impl VmTask {
    pub(super) fn new(shared: Arc<Shared>, vm: VmRecord, calls: mpsc::Receiver<Box<Request>>) -> Self {
        Self {
            paths: shared.paths(vm.uid),
            shared,
            vm,
            calls,
            waiting: Vec::new(),
            phase: Phase::Idle,
            hotplug: Hotplug::default(),
            stop_by: None,
            called_off: Arc::default(),
            is_gone: false,
        }
    }

    /// Runs until the VM is gone, or until nobody can call any more: then its process goes on without us.
    ///
    /// What a reaction needs is allocated while it lasts: most VMs wait most of the time, and a thousand may.
    pub(super) async fn run(mut self, resumption: Resumption) {
        Box::pin(self.resume(resumption)).await;
        while !self.is_gone {
            let news = self.news().await;
            if matches!(news, News::Request(None)) {
                return;
            }
            Box::pin(self.react(news)).await;
        }
    }

    async fn resume(&mut self, resumption: Resumption) {
        if let Some(live) = resumption.live {
            self.phase = Phase::Live(Box::new(live));
            self.take_over();
            self.take_over_devices(&resumption.devices).await;
        }
        for event in resumption.events {
            self.apply(event).await;
        }
    }

    async fn react(&mut self, news: News) {
        match news {
            News::Request(Some(request)) => match request.id() {
                Some(id) => id.scope(self.request(*request)).await,
                None => self.request(*request).await,
            },
            // The task ends with this.
            News::Request(None) => {}
            News::Device(progress) => self.progress(progress).await,
            News::Spawned(result) => self.launched(result).await,
            News::Message(message) => self.message(message).await,
            News::LinkLost(error) => self.link_lost(&error),
            News::Ended => self.ended().await,
            News::Timer => self.timer().await,
            News::CalledOff => self.leave_off().await,
        }
    }

    async fn news(&mut self) -> News {
        let timer = self.next_timer();
        let process = async {
            match &mut self.phase {
                Phase::Idle => std::future::pending().await,
                Phase::Launching { spawn, .. } => News::Spawned(match spawn.await {
                    Ok(result) => result,
                    Err(error) => Err(LaunchError::Spawn(std::io::Error::other(error))),
                }),
                Phase::Live(live) => live_news(live).await,
            }
        };
        tokio::select! {
            news = process => news,
            () = sleep_until(timer) => News::Timer,
            () = self.called_off.notified() => News::CalledOff,
            progress = self.hotplug.progress() => News::Device(progress),
            request = self.calls.recv() => News::Request(request),
        }
    }

    async fn request(&mut self, request: Request) {
        match request {
            Request::Lifecycle(call) => self.answer(call).await,
            Request::Device(call) => self.device_call(call).await,
            // Nobody waits for the answer any more: fine.
            Request::Look(reply) => drop(reply.send(self.standing())),
            Request::Tidy(reply) => drop(reply.send(self.tidy().await)),
        }
    }

    async fn answer(&mut self, call: Call) {
        if call.only_if.as_ref().is_some_and(|condition| !condition.holds(&self.vm)) {
            return drop(call.reply.send(Err(CallError::Changed)));
        }
        if let Wanted::Changed(change) = call.wanted {
            return self.change(change, call.reply).await;
        }
        let event = call.wanted.event();
        match step(&self.vm.state, &event) {
            Ok(_) if call.wanted.needs_the_vmm() && !self.is_linked() => drop(call.reply.send(Err(CallError::Deaf))),
            Ok(_) => {
                self.waiting.push(call);
                self.apply(event).await;
            }
            // Nobody waits for the answer any more: fine.
            Err(refused) => drop(call.reply.send(Err(refused.into()))),
        }
    }

    /// Changes a device: on record first if it is to stay so, then in the vmm.
    async fn change(&mut self, change: Change, reply: Reply) {
        let is_settled = matches!(self.phase, Phase::Idle) || self.vm.state == VmState::Running;
        if !is_settled || self.vm.state == VmState::Destroying {
            let refused = Refused { verb: "change a device of", state: self.vm.state.name() };
            return drop(reply.send(Err(refused.into())));
        }
        let is_coming = |device: &Attachment| device.state == AttachState::Attaching;
        if self.vm.attachment(&change.device).is_some_and(is_coming) {
            let text = format!("device {} is still being attached", change.device);
            return drop(reply.send(Err(CallError::ChangeFailed(text))));
        }
        let changed = match change.kept_in(&self.vm.spec) {
            Ok(changed) => changed,
            Err(text) => return drop(reply.send(Err(CallError::ChangeFailed(text)))),
        };
        if let Some(spec) = changed {
            let before = std::mem::replace(&mut self.vm.spec, spec);
            if let Err(error) = self.shared.journal.update(self.vm.clone()).await {
                self.vm.spec = before;
                return drop(reply.send(Err(CallError::ChangeFailed(error.to_string()))));
            }
        }
        let Phase::Live(live) = &mut self.phase else { return drop(reply.send(Ok(self.vm.clone()))) };
        // A process that writes beyond its limit is ended by the kernel: first the limit, then the length.
        if let Err(error) = live.process.get_ref().allow_file_len(change.file_bytes) {
            return drop(reply.send(Err(CallError::ChangeFailed(format!("cannot raise its file limit: {error}")))));
        }
        live.changes.send(live.link.as_ref(), change, reply);
    }

    fn is_linked(&self) -> bool {
        matches!(&self.phase, Phase::Live(live) if live.link.is_some())
    }

    pub(super) fn tell(&mut self, message: &ToVmm) {
        let Phase::Live(live) = &mut self.phase else { return };
        let sent = live.link.as_ref().map(|link| link.send(message, &[]));
        if !matches!(sent, Some(Ok(()))) {
            tracing::warn!(uid = %self.vm.uid, ?message, "the vmm does not listen; a stop kills it when the grace is over");
        }
    }

    /// A pause that the vmm could not make.
    fn not_paused(&mut self, cause: &str) {
        for call in std::mem::take(&mut self.waiting) {
            match call.wanted {
                Wanted::Paused => drop(call.reply.send(Err(CallError::NotPaused { cause: cause.to_owned() }))),
                _ => self.waiting.push(call),
            }
        }
    }

    async fn message(&mut self, message: FromVmm) {
        match message {
            FromVmm::Ready { build_ns } => {
                tracing::debug!(uid = %self.vm.uid, build_ns, "vmm is ready");
                crash::reach(Point::RunReady);
                if let Phase::Live(live) = &mut self.phase {
                    live.ready_by = None;
                }
                self.apply(Event::Ready).await;
            }
            FromVmm::Ended(exit) => {
                if let Phase::Live(live) = &mut self.phase {
                    live.last_word.get_or_insert(exit);
                }
            }
            FromVmm::DeviceChanged { device, error } => {
                if let Phase::Live(live) = &mut self.phase {
                    live.changes.answered(&device, error, &self.vm);
                }
            }
            FromVmm::Paused => self.apply(Event::Paused).await,
            FromVmm::Resumed => self.apply(Event::Resumed).await,
            FromVmm::NotPaused { cause } => self.not_paused(&cause),
            other => self.device_news(other).await,
        }
    }

    fn link_lost(&mut self, error: &LinkError) {
        tracing::debug!(uid = %self.vm.uid, %error, "control link is down");
        if let Phase::Live(live) = &mut self.phase {
            live.link = None;
            live.changes = Changes::default();
            // A vmm that cannot say Ready any more never will.
            if live.ready_by.take().is_some() {
                live.kill_by = Some(Instant::now() + KILL_TIMEOUT);
            }
        }
    }

    async fn ended(&mut self) {
        crash::reach(Point::EndSeen);
        while let Phase::Live(live) = &self.phase
            && let Some(message) = live.link.as_ref().and_then(Link::try_receive)
        {
            self.message(message).await;
        }
        let Phase::Live(live) = std::mem::replace(&mut self.phase, Phase::Idle) else { return };
        let end = live.process.get_ref().try_reap().ok().flatten().unwrap_or(End::Unknown);
        let record = match &self.vm.run {
            Some(run) => end::read_record(&self.paths, run.instance).await,
            None => None,
        };
        // A jail that ends so has said why, whatever we saw of it meanwhile.
        let last_word = live.last_word.filter(|_| !end::is_of_the_jail(end));
        let exit = match record.or(last_word) {
            Some(exit) => exit,
            None => {
                // Before its cgroup is removed.
                let was_out_of_memory = self.shared.was_out_of_memory(self.vm.uid).await;
                end::inferred(end, live.process.get_ref().identity(), &self.paths, was_out_of_memory).await
            }
        };
        self.apply(Event::Exited(exit)).await;
    }

    fn next_timer(&self) -> Option<Instant> {
        let (ready_by, kill_by) = match &self.phase {
            Phase::Live(live) => (live.ready_by, live.kill_by),
            Phase::Idle | Phase::Launching { .. } => (None, None),
        };
        [ready_by, kill_by, self.stop_by, self.hotplug.next_deadline()].into_iter().flatten().min()
    }

    async fn timer(&mut self) {
        let now = Instant::now();
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if let Phase::Live(live) = &mut self.phase {
            if is_due(live.kill_by) {
                live.kill_by_signal();
            }
            if is_due(live.ready_by) {
                live.ready_by = None;
                let seconds = ready_within(self.vm.spec.memory_bytes()).as_secs();
                live.last_word = Some(VmExit::LaunchFailed(format!("vCPUs do not run after {seconds} s")));
                live.kill_by_signal();
            }
        }
        // What was called off in time is not too late.
        self.leave_off().await;
        self.hotplug.expire(now);
        self.take_reclaimed(now).await;
        if is_due(self.stop_by) {
            self.use_force().await;
        }
    }

    /// Answers calls whose wish is true now, or cannot become so any more.
    pub(super) fn settle(&mut self) {
        self.settle_device_calls();
        for call in std::mem::take(&mut self.waiting) {
            if call.reply.is_closed() {
                continue; // nobody waits for it any more
            }
            match verdict(&call.wanted, &self.vm, self.is_gone) {
                Some(verdict) => drop(call.reply.send(verdict)),
                None => {
                    self.show(&call);
                    self.waiting.push(call);
                }
            }
        }
    }
}

async fn live_news(live: &mut Live) -> News {
    let link = async {
        match &live.link {
            Some(link) => link.receive().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased; // what it said comes before its end
        message = link => message.map_or_else(News::LinkLost, News::Message),
        _ready = live.process.readable() => News::Ended,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::{Resumption, VmTask};

    fn size_of_future<F>(_: impl FnOnce(VmTask, Resumption) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_vm_that_only_waits_holds_little_memory() {
        let size = size_of_future(VmTask::run);
        assert!(size <= 3 << 10, "a VM's task takes {size} bytes");
    }
}
