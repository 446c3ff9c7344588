//! After a restart: what the record says against what the host shows. Key function: [`reconcile`], pure.
//!
//! ```text
//!   record says          host shows                           what follows
//!   no process           –                                    nothing
//!   a process            the same one, answering as it        adopted: STARTING becomes RUNNING, a stop goes on, and
//!                                                             PAUSED is what it says it is
//!   a process            the same one, silent                 killed; its exit record decides, else FAILED
//!   a process            the same one, answering as another   killed; FAILED (or what was wanted: STOPPED, gone)
//!   a process            none                                 its exit record decides, else FAILED
//! ```
//!
//! One that is silent may be at its end just now: it gets [`TO_END`] for that before it is judged.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::launch::arg0;
use super::link::{Link, watch};
use super::live::Live;
use super::{Shared, end};
use crate::daemon::record::VmRecord;
use crate::model::{DeviceId, Event, InstanceId, VmExit, VmId, VmState};
use crate::sys::process::{Process, find_by_arg0};

/// How long a process that does not answer may take to end by itself: between the guest's last instruction and the
/// process' end lie a record and the unmapping of all memory.
const TO_END: Duration = Duration::from_secs(2);

/// What the host shows of a VM that should have a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    process: ProcessFact,
    /// What the run's exit record says.
    exit: Option<VmExit>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ProcessFact {
    /// No process of the recorded id and start time.
    Gone,
    /// It lives, says that it is this run of this VM, and whether it stands still.
    Answers(VmId, InstanceId, bool),
    /// It lives, and does not answer.
    Silent,
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    /// Nothing: there is no process, and none is expected.
    Leave,
    /// Take the process over; then these events happened.
    Adopt(Vec<Event>),
    /// Kill the process; then these events happened.
    Kill(Vec<Event>),
    /// There is no process; these events happened.
    Settle(Vec<Event>),
}

fn reconcile(vm: &VmRecord, facts: &Facts) -> Action {
    if !vm.state.has_process() {
        return Action::Leave;
    }
    let recorded = vm.run.as_ref().map(|run| (vm.uid, run.instance));
    match &facts.process {
        ProcessFact::Answers(uid, instance, is_paused) if recorded == Some((*uid, *instance)) => {
            // It answers from its running loop: its vCPUs run, whether or not the Ready was heard.
            let ready = (vm.state == VmState::Starting).then_some(Event::Ready);
            // What it was asked for last, and whether we heard of it, is not on record: what it is counts.
            let motion = match (&vm.state, is_paused) {
                (VmState::Paused, false) => Some(Event::Resumed),
                (VmState::Starting | VmState::Running | VmState::Stopping | VmState::Rebooting, true) => {
                    Some(Event::Paused)
                }
                _ => None,
            };
            Action::Adopt(ready.into_iter().chain(motion).collect())
        }
        ProcessFact::Answers(..) => Action::Kill(vec![vanished("the vmm answered as another VM")]),
        // A record without an end is one of a process that was about to.
        ProcessFact::Silent => Action::Kill(vec![match &facts.exit {
            Some(exit) => Event::Exited(exit.clone()),
            None => vanished("the vmm did not answer after a restart of the daemon"),
        }]),
        ProcessFact::Gone => Action::Settle(match (&vm.state, &facts.exit) {
            // It came up, ran and ended while nobody listened.
            (
                VmState::Starting,
                Some(exit @ (VmExit::PowerOff | VmExit::Reset | VmExit::TripleFault | VmExit::Panicked)),
            ) => {
                vec![Event::Ready, Event::Exited(exit.clone())]
            }
            (VmState::Starting, None) => {
                vec![Event::Exited(VmExit::LaunchFailed("the daemon ended during the launch".into()))]
            }
            (_, Some(exit)) => vec![Event::Exited(exit.clone())],
            (_, None) => vec![vanished("process ended without a record while the daemon was down")],
        }),
    }
}

fn vanished(cause: &str) -> Event {
    Event::Exited(VmExit::Vanished(cause.into()))
}

/// What a VM's task begins with.
#[derive(Debug, Default)]
pub(super) struct Resumption {
    /// The process that was taken over.
    pub(super) live: Option<Live>,
    /// The devices that it has.
    pub(super) devices: Vec<DeviceId>,
    /// What happened meanwhile.
    pub(super) events: Vec<Event>,
}

/// Gathers the facts, decides, and does away with what must not go on.
pub(super) async fn resume(shared: &Arc<Shared>, vm: &VmRecord) -> Resumption {
    let paths = shared.paths(vm.uid);
    let run = vm.run.as_ref();
    let recorded = run.and_then(|run| run.process);
    let mut process = recorded.and_then(|identity| Process::find(identity).ok().flatten());
    let mut link = None;
    let mut devices = Vec::new();
    let mut fact = ProcessFact::Gone;
    if let Some(found) = &process {
        fact = ProcessFact::Silent;
        if let Ok(connected) = Link::connect(&paths.control())
            && let Ok(greeting) = connected.hello().await
        {
            fact = ProcessFact::Answers(greeting.vm, greeting.instance, greeting.is_paused);
            devices = greeting.devices;
            link = Some(connected);
        } else if ends_by_itself(found).await {
            fact = ProcessFact::Gone;
            process = None;
        }
    }
    let exit = match run {
        Some(run) => end::read_record(&paths, run.instance).await,
        None => None,
    };
    let exit = match (exit, &fact) {
        // It ended while nobody looked: its cgroup may still tell why.
        (None, ProcessFact::Gone) if vm.state.has_process() && shared.was_out_of_memory(vm.uid).await => {
            Some(end::out_of_memory())
        }
        (exit, _) => exit,
    };
    let facts = Facts { process: fact, exit };
    let action = reconcile(vm, &facts);
    if action == Action::Leave {
        tracing::debug!(tenant = %vm.tenant, vm = %vm.name, uid = %vm.uid, "left as it is");
    } else {
        tracing::info!(tenant = %vm.tenant, vm = %vm.name, uid = %vm.uid, ?action, "reconciled");
    }
    let events = match action {
        Action::Adopt(events) => match process.take().map(|process| Live::new(process, link)) {
            Some(Ok(live)) => return Resumption { live: Some(live), devices, events },
            Some(Err(_)) | None => vec![vanished("the vmm cannot be watched")],
        },
        // Only what a daemon that died in between did not remove.
        Action::Leave => {
            // Of a thousand VMs hardly one: a look at each, and no thread for it.
            if paths.run_dir().exists() {
                let _ = tokio::fs::remove_dir_all(paths.run_dir()).await;
            }
            shared.remove_cgroup(vm.uid).await;
            return Resumption::default();
        }
        Action::Kill(events) | Action::Settle(events) => events,
    };
    // Also processes of which a daemon that was killed could not record the id.
    let leftovers = tokio::task::spawn_blocking({
        let (name, user) = (arg0(vm.uid), vm.user);
        move || find_by_arg0(&name, user).unwrap_or_default()
    });
    for leftover in process.into_iter().chain(leftovers.await.unwrap_or_default()) {
        kill(leftover).await;
    }
    Resumption { live: None, devices: Vec::new(), events }
}

/// Whether a process is gone, or goes within [`TO_END`].
async fn ends_by_itself(process: &Process) -> bool {
    let Ok(watched) = watch(process.as_fd()) else { return false };
    let is_over = tokio::time::timeout(TO_END, watched.readable()).await.is_ok();
    if is_over {
        let _ = process.try_reap();
    }
    is_over
}

/// Kills a process and waits until it is gone.
async fn kill(process: Process) {
    tracing::warn!(pid = process.identity().pid, "killing a vmm process that cannot be taken over");
    if let Err(error) = process.kill() {
        return tracing::error!(%error, "cannot kill it");
    }
    if let Ok(watched) = watch(process) {
        let _ = watched.readable().await;
        let _ = watched.get_ref().try_reap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::record::samples;
    use crate::model::step;

    fn vm(state: VmState) -> VmRecord {
        VmRecord { state, ..samples::running("acme", "web") }
    }

    fn own_answer(vm: &VmRecord) -> ProcessFact {
        ProcessFact::Answers(vm.uid, vm.run.as_ref().unwrap().instance, false)
    }

    #[test]
    fn leaves_a_vm_that_should_have_no_process() {
        let gone = Facts { process: ProcessFact::Gone, exit: None };
        for state in [VmState::Registered, VmState::Stopped] {
            assert_eq!(reconcile(&vm(state), &gone), Action::Leave);
        }
    }

    #[test]
    fn adopts_only_the_very_run_that_is_recorded() {
        let running = vm(VmState::Running);
        let facts = |process| Facts { process, exit: None };
        assert_eq!(reconcile(&running, &facts(own_answer(&running))), Action::Adopt(vec![]));
        let stopping = vm(VmState::Stopping);
        assert_eq!(reconcile(&stopping, &facts(own_answer(&stopping))), Action::Adopt(vec![]));
        let starting = vm(VmState::Starting);
        assert_eq!(reconcile(&starting, &facts(own_answer(&starting))), Action::Adopt(vec![Event::Ready]));
        let other = ProcessFact::Answers(running.uid, InstanceId::new(), false);
        assert!(matches!(reconcile(&running, &facts(other)), Action::Kill(_)));
        assert!(matches!(reconcile(&running, &facts(ProcessFact::Silent)), Action::Kill(_)));
    }

    #[test]
    fn a_process_that_is_silent_at_its_end_ended_as_its_record_says() {
        let after = |state: VmState, exit| {
            let Action::Kill(events) = reconcile(&vm(state.clone()), &Facts { process: ProcessFact::Silent, exit })
            else {
                panic!("not killed");
            };
            events.iter().fold(state, |state, event| step(&state, event).unwrap().0)
        };
        assert_eq!(after(VmState::Running, Some(VmExit::PowerOff)), VmState::Stopped);
        assert!(matches!(after(VmState::Running, None), VmState::Failed(_)));
    }

    #[test]
    fn a_vm_is_paused_if_its_process_is_whatever_the_record_says() {
        let after = |state: VmState, is_paused| {
            let vm = vm(state.clone());
            let process = ProcessFact::Answers(vm.uid, vm.run.as_ref().unwrap().instance, is_paused);
            let Action::Adopt(events) = reconcile(&vm, &Facts { process, exit: None }) else { panic!("not adopted") };
            events.iter().fold((state, vec![]), |(state, _), event| step(&state, event).unwrap())
        };
        assert_eq!(after(VmState::Running, true).0, VmState::Paused);
        assert_eq!(after(VmState::Paused, true).0, VmState::Paused);
        assert_eq!(after(VmState::Paused, false).0, VmState::Running);
        // A stop that was begun wants a guest that reacts.
        assert_eq!(after(VmState::Stopping, true), (VmState::Stopping, vec![crate::model::Effect::Resume]));
    }

    #[test]
    fn the_exit_record_tells_how_an_unseen_run_ended() {
        let end = |state, exit| {
            let Action::Settle(events) = reconcile(&vm(state), &Facts { process: ProcessFact::Gone, exit }) else {
                panic!("a process");
            };
            events
        };
        let after = |state: VmState, exit: Option<VmExit>| {
            let events = end(state.clone(), exit);
            events.iter().fold(state, |state, event| step(&state, event).unwrap().0)
        };
        assert_eq!(after(VmState::Running, Some(VmExit::PowerOff)), VmState::Stopped);
        assert_eq!(after(VmState::Running, Some(VmExit::Reset)), VmState::Starting);
        assert!(
            matches!(after(VmState::Running, None), VmState::Failed(cause) if cause.to_string().contains("record"))
        );
        assert_eq!(after(VmState::Starting, Some(VmExit::PowerOff)), VmState::Stopped);
        assert!(
            matches!(after(VmState::Starting, None), VmState::Failed(cause) if cause.to_string().contains("launch"))
        );
        assert_eq!(after(VmState::Stopping, None), VmState::Stopped);
        assert_eq!(after(VmState::Rebooting, None), VmState::Starting);
        assert!(matches!(after(VmState::Paused, None), VmState::Failed(_)));
        assert_eq!(after(VmState::Destroying, None), VmState::Destroying);
    }
}
