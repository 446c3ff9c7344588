//! The life of a VM as one pure function. Key types: [`VmState`], [`Event`], [`Effect`], [`step`].
//!
//! The driver (`daemon/supervisor`) performs the effects and feeds what comes of them back as events.
//!
//! ```text
//!               Start                Ready              Stop
//!  REGISTERED ────────▶ STARTING ───────────▶ RUNNING ────────▶ STOPPING ──Exited──▶ STOPPED
//!      │  ▲                │  ▲                  │ │                │                  │
//!      │  │      Exited    │  └────Exited(Reset)─┘ │ Exited         │ Deadline: kill   │ Start
//!      │  │ (launch failed)▼                       ▼                ▼                  ▼
//!      │  └───────────── FAILED ◀──Exited(fault)── STOPPED (power-off)              STARTING
//!      │                   │
//!      └──Destroy──────────┴──▶ (any state) DESTROYING ──Exited──▶ gone
//!
//!                 Pause, then Paused                    Reboot              Exited
//!        RUNNING ◀──────────────────▶ PAUSED   RUNNING ────────▶ STOPPING ────────▶ STARTING
//!                 Resume, then Resumed         PAUSED            (for a reboot)
//!
//!        STOPPING, also for a reboot ──StopWithdrawn (in the grace)──▶ RUNNING
//! ```
//! A VM is PAUSED once its vmm says so, not when it is asked for: as with Ready, what the process is decides, also after
//! a restart of the daemon. A stop, a reboot or a destroy in between undoes the pause.

use std::fmt;
use std::time::Duration;

use super::VmExit;

/// Where a VM is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmState {
    /// Known, never started (or reset to that by the operator).
    Registered,
    /// A vmm process is being launched; the guest has not run yet.
    Starting,
    /// The guest runs.
    Running,
    /// The guest's vCPUs and devices stand still.
    Paused,
    /// The guest was asked to power off, or is being killed.
    Stopping,
    /// The same, and it is to be started again when it is off.
    Rebooting,
    /// The guest powered off, or was stopped by force.
    Stopped,
    /// The run ended by a fault.
    Failed(FailureCause),
    /// The VM is being killed in order to be forgotten.
    Destroying,
}

/// Why a VM is FAILED: the end that was not asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailureCause(pub VmExit);

impl fmt::Display for FailureCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl VmState {
    /// All that [`name`](Self::name) gives.
    pub const NAMES: [&'static str; 8] =
        ["REGISTERED", "STARTING", "RUNNING", "PAUSED", "STOPPING", "STOPPED", "FAILED", "DESTROYING"];

    /// The state's name, as the API and the command line print it. A reboot is a stop, as far as anybody sees.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Registered => "REGISTERED",
            Self::Starting => "STARTING",
            Self::Running => "RUNNING",
            Self::Paused => "PAUSED",
            Self::Stopping | Self::Rebooting => "STOPPING",
            Self::Stopped => "STOPPED",
            Self::Failed(_) => "FAILED",
            Self::Destroying => "DESTROYING",
        }
    }

    /// Whether a vmm process may exist in this state.
    pub fn has_process(&self) -> bool {
        match self {
            Self::Starting | Self::Running | Self::Paused | Self::Stopping | Self::Rebooting | Self::Destroying => true,
            Self::Registered | Self::Stopped | Self::Failed(_) => false,
        }
    }
}

/// What happens to a VM: a call, or news from its vmm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The client wants it to run.
    Start,
    /// The vmm reported that its vCPUs run.
    Ready,
    /// The client wants it to power off, by force after `grace` (zero: at once).
    Stop {
        /// How long the guest has to power off by itself.
        grace: Duration,
    },
    /// The client wants it off and on again, off by force after `grace` (zero: at once).
    Reboot {
        /// How long the guest has to power off by itself.
        grace: Duration,
    },
    /// The client wants it to stand still.
    Pause,
    /// The vmm reported that it does.
    Paused,
    /// The client wants it to go on.
    Resume,
    /// The vmm reported that it does.
    Resumed,
    /// The client wants its power button pressed, and nothing else.
    PowerButton,
    /// The client wants every vCPU to have a non-maskable interrupt.
    Nmi,
    /// The grace of a stop is over.
    StopDeadline,
    /// The client has called a stop or a reboot off. Only fed in while the grace lasts and no force was used. The button
    /// stays pressed: a guest that powers off all the same is STOPPED.
    StopWithdrawn,
    /// The vmm process is gone.
    Exited(VmExit),
    /// The client wants it forgotten; `is_forced` allows that while it runs.
    Destroy {
        /// Kill it first if it has a process.
        is_forced: bool,
    },
}

impl Event {
    fn verb(&self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Ready => "ready",
            Self::Stop { .. } => "stop",
            Self::Reboot { .. } => "reboot",
            Self::Pause => "pause",
            Self::Paused => "paused",
            Self::Resume => "resume",
            Self::Resumed => "resumed",
            Self::PowerButton => "press the power button of",
            Self::Nmi => "interrupt",
            Self::StopDeadline => "stop deadline",
            Self::StopWithdrawn => "call off the stop of",
            Self::Exited(_) => "exit",
            Self::Destroy { .. } => "destroy",
        }
    }
}

/// What the driver must do after a step, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Launch a vmm process.
    Launch,
    /// Have the vmm make vCPUs and devices stand still; it answers with [`Event::Paused`].
    Pause,
    /// Have the vmm let them go on; it answers with [`Event::Resumed`].
    Resume,
    /// Press the guest's ACPI power button.
    PressPowerButton,
    /// Have the vmm interrupt every vCPU.
    InjectNmi,
    /// Feed [`Event::StopDeadline`] back after this long.
    ArmStopDeadline(Duration),
    /// Do not feed it back any more.
    DisarmStopDeadline,
    /// Kill the vmm process.
    Kill,
    /// Give back everything that a run holds on the host (tap, sockets, descriptors).
    Release,
    /// Forget the VM.
    Remove,
}

/// The event is not legal in this state: FAILED_PRECONDITION for a call, a logged oddity for news.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {verb} a VM that is {state}")]
pub struct Refused {
    /// What was asked.
    pub verb: &'static str,
    /// The state that forbids it.
    pub state: &'static str,
}

/// The next state and what to do about it; or a refusal that changes nothing.
pub fn step(state: &VmState, event: &Event) -> Result<(VmState, Vec<Effect>), Refused> {
    let next = match event {
        Event::Start | Event::Ready => starting(state, event),
        Event::Stop { .. } | Event::Reboot { .. } | Event::StopDeadline => stopping(state, event),
        Event::StopWithdrawn => going_on(state),
        Event::Pause | Event::Paused | Event::Resume | Event::Resumed => pausing(state, event),
        Event::PowerButton | Event::Nmi => signalling(state, event),
        Event::Exited(exit) => exited(state, exit),
        Event::Destroy { is_forced } => destroying(state, *is_forced),
    };
    next.ok_or(Refused { verb: event.verb(), state: state.name() })
}

/// `None`: refused.
type Next = Option<(VmState, Vec<Effect>)>;

fn starting(state: &VmState, event: &Event) -> Next {
    use VmState as S;
    match (state, event) {
        (S::Registered | S::Stopped | S::Failed(_), Event::Start) => Some((S::Starting, vec![Effect::Launch])),
        (S::Starting, Event::Ready) => Some((S::Running, vec![])),
        _ => None,
    }
}

fn stopping(state: &VmState, event: &Event) -> Next {
    use VmState as S;
    let (target, grace) = match event {
        Event::Stop { grace } => (S::Stopping, *grace),
        Event::Reboot { grace } => (S::Rebooting, *grace),
        _ => {
            let is_stopping = matches!(state, S::Stopping | S::Rebooting);
            return is_stopping.then(|| (state.clone(), vec![Effect::Kill]));
        }
    };
    let ask = [Effect::PressPowerButton, Effect::ArmStopDeadline(grace)];
    match state {
        S::Running if !grace.is_zero() => Some((target, ask.to_vec())),
        // Nobody stands still and reacts to a button.
        S::Paused if !grace.is_zero() => Some((target, [vec![Effect::Resume], ask.to_vec()].concat())),
        S::Running | S::Paused => Some((target, vec![Effect::Kill])),
        // One that ignores the button may be stopped harder. A stop also ends the wish to start again.
        S::Stopping | S::Rebooting if target == S::Stopping || *state == target => Some((target, vec![Effect::Kill])),
        // A guest that is not up yet has no power button to press.
        S::Starting if target == S::Stopping => Some((target, vec![Effect::Kill])),
        S::Starting | S::Stopping | S::Rebooting | S::Registered | S::Stopped | S::Failed(_) | S::Destroying => None,
    }
}

/// A stop that was called off leaves a guest that runs, also one that was paused before: it had to react to the button.
fn going_on(state: &VmState) -> Next {
    use VmState as S;
    match state {
        S::Stopping | S::Rebooting => Some((S::Running, vec![Effect::DisarmStopDeadline])),
        S::Registered | S::Starting | S::Running | S::Paused | S::Stopped | S::Failed(_) | S::Destroying => None,
    }
}

/// A pause is asked for and then reported; what is so already is asked for again, which does no harm.
fn pausing(state: &VmState, event: &Event) -> Next {
    use VmState as S;
    match (state, event) {
        (S::Running, Event::Pause) => Some((S::Running, vec![Effect::Pause])),
        (S::Running | S::Paused, Event::Paused) => Some((S::Paused, vec![])),
        (S::Paused, Event::Pause) | (S::Running, Event::Resume) => Some((state.clone(), vec![])),
        (S::Paused, Event::Resume) => Some((S::Paused, vec![Effect::Resume])),
        (S::Running | S::Paused, Event::Resumed) => Some((S::Running, vec![])),
        // A stop came in between: it wants a guest that reacts.
        (S::Stopping | S::Rebooting, Event::Paused) => Some((state.clone(), vec![Effect::Resume])),
        _ => None,
    }
}

fn signalling(state: &VmState, event: &Event) -> Next {
    use VmState as S;
    match (state, event) {
        (S::Running, Event::PowerButton) => Some((S::Running, vec![Effect::PressPowerButton])),
        // Also one that does not stop: what it hangs in is what an NMI shows.
        (S::Running | S::Stopping | S::Rebooting, Event::Nmi) => Some((state.clone(), vec![Effect::InjectNmi])),
        _ => None,
    }
}

fn exited(state: &VmState, exit: &VmExit) -> Next {
    use VmState as S;
    match (state, exit) {
        (S::Running | S::Paused, VmExit::Reset) | (S::Rebooting, _) => {
            Some((S::Starting, vec![Effect::Release, Effect::Launch]))
        }
        (S::Running | S::Paused, VmExit::PowerOff) | (S::Stopping, _) => Some((S::Stopped, vec![Effect::Release])),
        (S::Starting | S::Running | S::Paused, _) => {
            Some((S::Failed(FailureCause(exit.clone())), vec![Effect::Release]))
        }
        (S::Destroying, _) => Some((S::Destroying, vec![Effect::Release, Effect::Remove])),
        (S::Registered | S::Stopped | S::Failed(_), _) => None,
    }
}

fn destroying(state: &VmState, is_forced: bool) -> Next {
    use VmState as S;
    match state {
        S::Registered | S::Stopped | S::Failed(_) => Some((S::Destroying, vec![Effect::Release, Effect::Remove])),
        S::Starting | S::Running | S::Paused | S::Stopping | S::Rebooting if is_forced => {
            Some((S::Destroying, vec![Effect::Kill]))
        }
        S::Starting | S::Running | S::Paused | S::Stopping | S::Rebooting | S::Destroying => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Start),
            Just(Event::Ready),
            (0u64..3).prop_map(|s| Event::Stop { grace: Duration::from_secs(s) }),
            (0u64..3).prop_map(|s| Event::Reboot { grace: Duration::from_secs(s) }),
            Just(Event::Pause),
            Just(Event::Paused),
            Just(Event::Resume),
            Just(Event::Resumed),
            Just(Event::PowerButton),
            Just(Event::Nmi),
            Just(Event::StopDeadline),
            Just(Event::StopWithdrawn),
            prop_oneof![
                Just(VmExit::PowerOff),
                Just(VmExit::Reset),
                Just(VmExit::TripleFault),
                Just(VmExit::Panicked),
                Just(VmExit::Killed),
                Just(VmExit::LaunchFailed("x".into())),
                Just(VmExit::Vanished("signal 9".into())),
            ]
            .prop_map(Event::Exited),
            any::<bool>().prop_map(|is_forced| Event::Destroy { is_forced }),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: one process at most, released exactly once each, gone only when released.
        #[test]
        fn never_doubles_a_process_and_never_leaks_one(events in proptest::collection::vec(any_event(), 0..64)) {
            let mut state = VmState::Registered;
            let mut processes = 0i32;
            let mut is_held = false;
            let mut is_armed = false;
            for event in events {
                if matches!(event, Event::Exited(_)) && processes == 0 {
                    continue; // a process that is not there cannot exit
                }
                if matches!(event, Event::StopDeadline | Event::StopWithdrawn) && !is_armed {
                    continue; // its driver feeds these in while the deadline is armed only
                }
                let Ok((next, effects)) = step(&state, &event) else { continue };
                if matches!(event, Event::Exited(_)) {
                    processes -= 1;
                }
                let mut is_gone = false;
                for effect in effects {
                    match effect {
                        Effect::Launch => { processes += 1; is_held = true; }
                        Effect::Kill => { prop_assert_eq!(processes, 1); is_armed = false; }
                        Effect::PressPowerButton
                        | Effect::InjectNmi
                        | Effect::Pause
                        | Effect::Resume => prop_assert_eq!(processes, 1),
                        Effect::Release => { is_held = false; is_armed = false; }
                        Effect::Remove => { prop_assert!(!is_held); is_gone = true; }
                        Effect::ArmStopDeadline(grace) => { prop_assert!(!grace.is_zero()); is_armed = true; }
                        Effect::DisarmStopDeadline => { prop_assert!(is_armed); is_armed = false; }
                    }
                }
                prop_assert!((0..=1).contains(&processes));
                if is_gone {
                    prop_assert_eq!(processes, 0);
                    return Ok(());
                }
                prop_assert_eq!(next.has_process(), processes == 1, "{:?}", next);
                // Whoever goes on has nothing to fear of an earlier stop.
                prop_assert!(!is_armed || matches!(next, VmState::Stopping | VmState::Rebooting), "{:?}", next);
                state = next;
            }
        }

        /// A stop in its grace, called off: the guest goes on, and is killed only if somebody asks for it anew.
        #[test]
        fn a_stop_that_was_called_off_kills_nobody(
            is_paused in any::<bool>(),
            is_reboot in any::<bool>(),
            events in proptest::collection::vec(any_event(), 0..16),
        ) {
            let grace = Duration::from_secs(1);
            let before = if is_paused { VmState::Paused } else { VmState::Running };
            let stop = if is_reboot { Event::Reboot { grace } } else { Event::Stop { grace } };
            let (stopping, _) = step(&before, &stop).unwrap();
            let (mut state, effects) = step(&stopping, &Event::StopWithdrawn).unwrap();
            prop_assert_eq!((&state, effects), (&VmState::Running, vec![Effect::DisarmStopDeadline]));
            for event in events {
                if matches!(event, Event::Stop { .. } | Event::Reboot { .. } | Event::Destroy { .. } | Event::Exited(_)) {
                    break;
                }
                let Ok((next, effects)) = step(&state, &event) else { continue };
                prop_assert!(!effects.contains(&Effect::Kill), "{:?}", event);
                state = next;
            }
            let running = VmState::Running;
            prop_assert_eq!(step(&running, &Event::Exited(VmExit::PowerOff)).unwrap().0, VmState::Stopped);
        }
    }

    proptest! {
        /// The vmm as it is beside the VM as it is said to be: whenever no report is on its way, a VM that is PAUSED
        /// stands still and one that is RUNNING, or was asked to stop, does not.
        #[test]
        fn a_pause_is_what_the_vmm_is(events in proptest::collection::vec(any_event(), 0..64)) {
            let mut state = VmState::Registered;
            let mut stands_still = false;
            // Told to end: what is sent to it afterwards it never reads.
            let mut is_doomed = false;
            for event in events {
                // Reports come from the vmm below, and from nowhere else.
                // And nobody withdraws a stop that has used force.
                if matches!(event, Event::StopWithdrawn) && is_doomed {
                    continue;
                }
                if matches!(event, Event::Paused | Event::Resumed) || matches!(event, Event::Exited(_)) && !state.has_process() {
                    continue;
                }
                let mut due = std::collections::VecDeque::from([event]);
                while let Some(event) = due.pop_front() {
                    let Ok((next, effects)) = step(&state, &event) else { continue };
                    for effect in effects {
                        match effect {
                            Effect::Pause => { stands_still = true; due.push_back(Event::Paused); }
                            Effect::Resume => { stands_still = false; due.push_back(Event::Resumed); }
                            Effect::PressPowerButton | Effect::InjectNmi => prop_assert!(!stands_still || is_doomed),
                            Effect::Kill => is_doomed = true,
                            Effect::Launch => { stands_still = false; is_doomed = false; }
                            _ => {}
                        }
                    }
                    state = next;
                }
                match state {
                    VmState::Paused => prop_assert!(stands_still),
                    VmState::Running | VmState::Stopping | VmState::Rebooting => {
                        // One that is being killed may die as it stands.
                        prop_assert!(!stands_still || state != VmState::Running);
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn a_stop_that_crosses_a_pause_undoes_it() {
        let (asked, effects) = step(&VmState::Running, &Event::Pause).unwrap();
        assert_eq!((&asked, effects), (&VmState::Running, vec![Effect::Pause]));
        let (stopping, _) = step(&asked, &Event::Stop { grace: Duration::from_secs(1) }).unwrap();
        let (stopping, effects) = step(&stopping, &Event::Paused).unwrap();
        assert_eq!((stopping, effects), (VmState::Stopping, vec![Effect::Resume]));
    }

    #[test]
    fn pause_and_resume_of_what_is_so_already_change_nothing() {
        assert_eq!(step(&VmState::Paused, &Event::Pause), Ok((VmState::Paused, vec![])));
        assert_eq!(step(&VmState::Running, &Event::Resume), Ok((VmState::Running, vec![])));
        for state in [VmState::Registered, VmState::Starting, VmState::Stopping, VmState::Stopped, VmState::Destroying]
        {
            assert!(step(&state, &Event::Pause).is_err() && step(&state, &Event::Resume).is_err(), "{state:?}");
        }
        assert_eq!(
            step(&VmState::Paused, &Event::Nmi).unwrap_err().to_string(),
            "cannot interrupt a VM that is PAUSED"
        );
    }

    #[test]
    fn a_reboot_starts_again_however_the_guest_ended_unless_a_stop_came_after() {
        let reboot = Event::Reboot { grace: Duration::from_secs(9) };
        let (rebooting, _) = step(&VmState::Running, &reboot).unwrap();
        for exit in [VmExit::PowerOff, VmExit::Reset, VmExit::Killed, VmExit::TripleFault] {
            let (state, effects) = step(&rebooting, &Event::Exited(exit)).unwrap();
            assert_eq!((state, effects), (VmState::Starting, vec![Effect::Release, Effect::Launch]));
        }
        let (stopping, effects) = step(&rebooting, &Event::Stop { grace: Duration::from_secs(9) }).unwrap();
        assert_eq!((&stopping, effects), (&VmState::Stopping, vec![Effect::Kill]));
        assert_eq!(step(&stopping, &Event::Exited(VmExit::PowerOff)).unwrap().0, VmState::Stopped);
        assert!(step(&stopping, &reboot).is_err() && step(&VmState::Stopped, &reboot).is_err());
    }

    #[test]
    fn names_the_state_that_forbids_a_call() {
        let refused = step(&VmState::Running, &Event::Start).unwrap_err();
        assert_eq!(refused.to_string(), "cannot start a VM that is RUNNING");
    }

    #[test]
    fn tells_a_power_off_from_a_fault() {
        let end = |exit| step(&VmState::Running, &Event::Exited(exit)).unwrap().0;
        assert_eq!(end(VmExit::PowerOff), VmState::Stopped);
        assert_eq!(end(VmExit::Reset), VmState::Starting);
        assert!(matches!(end(VmExit::TripleFault), VmState::Failed(_)));
        assert!(
            matches!(end(VmExit::Panicked), VmState::Failed(cause) if cause.to_string() == "guest kernel panicked")
        );
    }
}
