//! The task that owns one VM. Key type: [`VmTask`], a driver of `model::step`: it feeds events in and performs effects.
//!
//! ```text
//!   Phase:  Idle ──Launch──▶ Launching (own task) ──▶ Live (process + link) ──end seen──▶ Idle
//! ```

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::end;
use super::launch::{self, LaunchError, Spawned};
use super::link::{Link, LinkError};
use super::live::{KILL_TIMEOUT, Live};
use super::reconcile::Resumption;
use super::{CallError, OnlyIf, Shared, VmPaths};
use crate::daemon::record::{Run, VmRecord};
use crate::model::{Effect, Event, InstanceId, VmExit, VmState, step};
use crate::sys::process::{End, Process};
use crate::wire::{FromVmm, ToVmm};

/// How long a vmm may take from its launch message to running vCPUs.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// What a call wants to come true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    Running,
    Stopped { grace: Duration },
    Gone { is_forced: bool },
}

/// A call with where its answer goes, once what it wants is true or cannot become so.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) wanted: Wanted,
    pub(super) only_if: Option<OnlyIf>,
    pub(super) reply: oneshot::Sender<Result<VmRecord, CallError>>,
}

#[derive(Debug)]
enum Phase {
    Idle,
    Launching { spawn: JoinHandle<Result<Spawned, LaunchError>>, is_unwanted: bool },
    Live(Box<Live>),
}

/// Something to react to.
enum News {
    Call(Option<Call>),
    Spawned(Result<Spawned, LaunchError>),
    Message(FromVmm),
    LinkLost(LinkError),
    Ended,
    Timer,
}

pub(super) struct VmTask {
    shared: Arc<Shared>,
    vm: VmRecord,
    paths: VmPaths,
    calls: mpsc::Receiver<Call>,
    waiting: Vec<Call>,
    phase: Phase,
    stop_by: Option<Instant>,
    is_gone: bool,
}

impl VmTask {
    pub(super) fn new(shared: Arc<Shared>, vm: VmRecord, calls: mpsc::Receiver<Call>) -> Self {
        let paths = shared.paths(vm.uid);
        Self { shared, vm, paths, calls, waiting: Vec::new(), phase: Phase::Idle, stop_by: None, is_gone: false }
    }

    /// Runs until the VM is gone, or until nobody can call any more: then its process goes on without us.
    pub(super) async fn run(mut self, resumption: Resumption) {
        if let Some(live) = resumption.live {
            self.phase = Phase::Live(Box::new(live));
            self.take_over();
        }
        for event in resumption.events {
            self.apply(event).await;
        }
        while !self.is_gone {
            match self.news().await {
                News::Call(Some(call)) => self.answer(call).await,
                News::Call(None) => return,
                News::Spawned(result) => self.launched(result).await,
                News::Message(message) => self.message(message).await,
                News::LinkLost(error) => self.link_lost(&error),
                News::Ended => self.ended().await,
                News::Timer => self.timer().await,
            }
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
            call = self.calls.recv() => News::Call(call),
        }
    }

    async fn answer(&mut self, call: Call) {
        if call.only_if.as_ref().is_some_and(|condition| !condition.holds(&self.vm)) {
            return drop(call.reply.send(Err(CallError::Changed)));
        }
        let event = match &call.wanted {
            Wanted::Running => Event::Start,
            Wanted::Stopped { grace } => Event::Stop { grace: *grace },
            Wanted::Gone { is_forced } => Event::Destroy { is_forced: *is_forced },
        };
        match step(&self.vm.state, &event) {
            Ok(_) => {
                self.waiting.push(call);
                self.apply(event).await;
            }
            // Nobody waits for the answer any more: fine.
            Err(refused) => drop(call.reply.send(Err(refused.into()))),
        }
    }

    /// One step of the lifecycle: release what is over, record what will be, then do it.
    async fn apply(&mut self, event: Event) {
        let mut next_event = Some(event);
        while let Some(event) = next_event.take() {
            let (state, effects) = match step(&self.vm.state, &event) {
                Ok(step) => step,
                Err(refused) => {
                    tracing::debug!(uid = %self.vm.uid, %refused, "ignoring an event");
                    return;
                }
            };
            self.enter(state, &effects);
            if effects.contains(&Effect::Release) {
                // Before it is recorded: what is recorded as ended holds nothing any more.
                self.perform(Effect::Release).await;
                // A guest that resets keeps its devices: they are its own until it is off.
                if !effects.contains(&Effect::Launch) {
                    self.shared.devices.release(self.vm.uid).await;
                    self.vm.vfs.clear();
                }
            }
            let recorded = if effects.contains(&Effect::Remove) {
                Ok(()) // removed below, once everything is released
            } else {
                self.shared.journal.update(self.vm.clone()).await
            };
            if let (Err(error), true) = (&recorded, effects.contains(&Effect::Launch)) {
                // No intent on disk, no process.
                next_event = Some(Event::Exited(VmExit::LaunchFailed(error.to_string())));
            }
            for effect in effects {
                let is_due = match effect {
                    Effect::Release => false,
                    Effect::Launch => recorded.is_ok(),
                    Effect::PressPowerButton | Effect::ArmStopDeadline(_) | Effect::Kill | Effect::Remove => true,
                };
                if is_due {
                    self.perform(effect).await;
                }
            }
            self.settle();
        }
    }

    /// The record after the step, before any of its effects.
    fn enter(&mut self, state: VmState, effects: &[Effect]) {
        let cause = match &state {
            VmState::Failed(cause) => cause.to_string(),
            _ => String::new(),
        };
        let VmRecord { uid, tenant, name, .. } = &self.vm;
        tracing::info!(%tenant, vm = %name, %uid, from = self.vm.state.name(), to = state.name(), cause, "transition");
        self.vm.state = state;
        self.vm.updated = SystemTime::now();
        for effect in effects {
            match effect {
                Effect::Launch => {
                    self.vm.run = Some(Run { instance: InstanceId::new(), process: None, kill_at: None });
                }
                Effect::ArmStopDeadline(grace) => {
                    self.stop_by = Some(Instant::now() + *grace);
                    if let Some(run) = &mut self.vm.run {
                        run.kill_at = SystemTime::now().checked_add(*grace);
                    }
                }
                Effect::Release => {
                    self.vm.run = None;
                    self.stop_by = None;
                }
                Effect::PressPowerButton | Effect::Kill | Effect::Remove => {}
            }
        }
    }

    async fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Launch => self.launch(),
            Effect::PressPowerButton => self.press_power_button(),
            Effect::ArmStopDeadline(_) => {} // armed when it was recorded
            Effect::Kill => match &mut self.phase {
                Phase::Live(live) => live.kill(),
                Phase::Launching { is_unwanted, .. } => *is_unwanted = true,
                Phase::Idle => {}
            },
            Effect::Release => {
                self.phase = Phase::Idle;
                let run_dir = self.paths.run_dir().to_owned();
                blocking(move || launch::remove_dir(&run_dir), "run directory").await;
                self.shared.remove_cgroup(self.vm.uid).await;
            }
            Effect::Remove => {
                let state_dir = self.paths.state_dir().to_owned();
                blocking(move || launch::remove_dir(&state_dir), "state directory").await;
                if let Err(error) = self.shared.journal.remove(self.vm.clone()).await {
                    tracing::error!(uid = %self.vm.uid, %error, "destroyed, but not forgotten: the next start will");
                }
                self.is_gone = true;
            }
        }
    }

    fn launch(&mut self) {
        let Some(run) = &self.vm.run else { return };
        let (shared, vm, instance) = (Arc::clone(&self.shared), self.vm.clone(), run.instance);
        // In a task of its own: calls are answered meanwhile, and a claim is finished even if nobody waits for it.
        let spawn = tokio::spawn(launch::launch(shared, vm, instance));
        self.phase = Phase::Launching { spawn, is_unwanted: false };
    }

    /// The process is there, or not: record it, then send it its launch.
    async fn launched(&mut self, result: Result<Spawned, LaunchError>) {
        let is_unwanted = matches!(self.phase, Phase::Launching { is_unwanted: true, .. });
        self.phase = Phase::Idle;
        let spawned = match result {
            Ok(spawned) => spawned,
            Err(error) => return self.apply(Event::Exited(VmExit::LaunchFailed(error.to_string()))).await,
        };
        if let Some(run) = &mut self.vm.run {
            run.process = Some(spawned.process.identity());
        }
        self.vm.vfs.clone_from(&spawned.vfs);
        let recorded = self.shared.journal.update(self.vm.clone()).await;
        let (process, link, last_word) = match recorded {
            Err(error) => (spawned.process, None, Some(VmExit::LaunchFailed(error.to_string()))),
            Ok(()) if is_unwanted => (spawned.process, None, Some(VmExit::Killed)),
            Ok(()) => match spawned.send(&self.paths) {
                Ok((process, link)) => (process, Some(link), None),
                Err((process, error)) => (process, None, Some(VmExit::LaunchFailed(error.to_string()))),
            },
        };
        if let Err(error) = process_killed_unless(&process, last_word.is_none()) {
            tracing::error!(%error, uid = %self.vm.uid, "cannot kill a vmm process");
        }
        match Live::new(process, link) {
            Ok(mut live) => {
                live.ready_by = last_word.is_none().then(|| Instant::now() + READY_TIMEOUT);
                live.last_word = last_word;
                self.phase = Phase::Live(Box::new(live));
            }
            Err(error) => {
                // Unwatched, it must not live: the handle is gone with the error, its name is not.
                launch_leftovers_killed(&self.vm);
                self.apply(Event::Exited(VmExit::HostError(format!("cannot watch the vmm: {error}")))).await;
            }
        }
    }

    /// A process of an earlier daemon: go on with what that one was doing.
    fn take_over(&mut self) {
        match self.vm.state {
            VmState::Stopping => {
                let left = self.vm.run.as_ref().and_then(|run| run.kill_at);
                let left = left.and_then(|at| at.duration_since(SystemTime::now()).ok()).unwrap_or_default();
                self.stop_by = Some(Instant::now() + left);
                self.press_power_button(); // the earlier one may not have come to it
            }
            VmState::Destroying => {
                if let Phase::Live(live) = &mut self.phase {
                    live.kill();
                }
            }
            _ => {}
        }
    }

    fn press_power_button(&mut self) {
        let Phase::Live(live) = &mut self.phase else { return };
        let sent = live.link.as_ref().map(|link| link.send(&ToVmm::PowerButton, &[]));
        if !matches!(sent, Some(Ok(()))) {
            tracing::warn!(uid = %self.vm.uid, "the vmm does not listen: it is killed when the grace is over");
        }
    }

    async fn message(&mut self, message: FromVmm) {
        match message {
            FromVmm::Ready { build_ns } => {
                tracing::debug!(uid = %self.vm.uid, build_ns, "vmm is ready");
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
            FromVmm::Hello { .. } => {}
        }
    }

    fn link_lost(&mut self, error: &LinkError) {
        tracing::debug!(uid = %self.vm.uid, %error, "control link is down");
        if let Phase::Live(live) = &mut self.phase {
            live.link = None;
            // A vmm that cannot say Ready any more never will.
            if live.ready_by.take().is_some() {
                live.kill_by = Some(Instant::now() + KILL_TIMEOUT);
            }
        }
    }

    async fn ended(&mut self) {
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
        let exit = match record.or(live.last_word) {
            Some(exit) => exit,
            None => end::inferred(end, live.process.get_ref().identity(), &self.paths).await,
        };
        self.apply(Event::Exited(exit)).await;
    }

    fn next_timer(&self) -> Option<Instant> {
        let (ready_by, kill_by) = match &self.phase {
            Phase::Live(live) => (live.ready_by, live.kill_by),
            Phase::Idle | Phase::Launching { .. } => (None, None),
        };
        [ready_by, kill_by, self.stop_by].into_iter().flatten().min()
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
                let seconds = READY_TIMEOUT.as_secs();
                live.last_word = Some(VmExit::LaunchFailed(format!("vCPUs do not run after {seconds} s")));
                live.kill_by_signal();
            }
        }
        if is_due(self.stop_by) {
            self.stop_by = None;
            self.apply(Event::StopDeadline).await;
        }
    }

    /// Answers calls whose wish is true now, or cannot become so any more.
    fn settle(&mut self) {
        for call in std::mem::take(&mut self.waiting) {
            match verdict(&call.wanted, &self.vm, self.is_gone) {
                Some(verdict) => drop(call.reply.send(verdict)),
                None => self.waiting.push(call),
            }
        }
    }
}

/// The answer to a call as far as the VM's state gives one.
fn verdict(wanted: &Wanted, vm: &VmRecord, is_gone: bool) -> Option<Result<VmRecord, CallError>> {
    let interrupted = || Some(Err(CallError::Interrupted { state: vm.state.name() }));
    match (wanted, &vm.state) {
        (Wanted::Gone { .. }, _) => is_gone.then(|| Ok(vm.clone())),
        (Wanted::Running | Wanted::Stopped { .. }, VmState::Destroying) if is_gone => Some(Err(CallError::Gone)),
        (Wanted::Running, VmState::Starting) | (Wanted::Stopped { .. }, VmState::Stopping) => None,
        (Wanted::Running, VmState::Running) | (Wanted::Stopped { .. }, VmState::Stopped) => Some(Ok(vm.clone())),
        (Wanted::Running, VmState::Failed(cause)) => Some(Err(CallError::StartFailed(cause.clone()))),
        (Wanted::Running, VmState::Registered | VmState::Stopping | VmState::Stopped | VmState::Destroying) => {
            interrupted()
        }
        (
            Wanted::Stopped { .. },
            VmState::Registered | VmState::Starting | VmState::Running | VmState::Failed(_) | VmState::Destroying,
        ) => interrupted(),
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

fn process_killed_unless(process: &Process, is_wanted: bool) -> std::io::Result<()> {
    if is_wanted { Ok(()) } else { process.kill() }
}

fn launch_leftovers_killed(vm: &VmRecord) {
    for process in crate::sys::process::find_by_arg0(&launch::arg0(vm.uid), vm.user).unwrap_or_default() {
        let _ = process.kill();
    }
}

async fn blocking(work: impl FnOnce() -> std::io::Result<()> + Send + 'static, what: &'static str) {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "cannot remove a {what}"),
        Err(error) => tracing::error!(%error, "cannot remove a {what}"),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
