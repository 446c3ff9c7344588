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
//! ```

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
    /// The guest was asked to power off, or is being killed.
    Stopping,
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
    pub const NAMES: [&'static str; 7] =
        ["REGISTERED", "STARTING", "RUNNING", "STOPPING", "STOPPED", "FAILED", "DESTROYING"];

    /// The state's name, as the API and the command line print it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Registered => "REGISTERED",
            Self::Starting => "STARTING",
            Self::Running => "RUNNING",
            Self::Stopping => "STOPPING",
            Self::Stopped => "STOPPED",
            Self::Failed(_) => "FAILED",
            Self::Destroying => "DESTROYING",
        }
    }

    /// Whether a vmm process may exist in this state.
    pub fn has_process(&self) -> bool {
        match self {
            Self::Starting | Self::Running | Self::Stopping | Self::Destroying => true,
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
    /// The grace of a stop is over.
    StopDeadline,
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
            Self::StopDeadline => "stop deadline",
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
    /// Press the guest's ACPI power button.
    PressPowerButton,
    /// Feed [`Event::StopDeadline`] back after this long.
    ArmStopDeadline(Duration),
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
    use VmState as S;
    let refused = || Err(Refused { verb: event.verb(), state: state.name() });
    match (state, event) {
        (S::Registered | S::Stopped | S::Failed(_), Event::Start) => Ok((S::Starting, vec![Effect::Launch])),
        (S::Starting | S::Running | S::Stopping | S::Destroying, Event::Start) => refused(),

        (S::Starting, Event::Ready) => Ok((S::Running, vec![])),
        (S::Registered | S::Running | S::Stopping | S::Stopped | S::Failed(_) | S::Destroying, Event::Ready) => {
            refused()
        }

        (S::Running, Event::Stop { grace }) if !grace.is_zero() => {
            Ok((S::Stopping, vec![Effect::PressPowerButton, Effect::ArmStopDeadline(*grace)]))
        }
        // A guest that is not up yet has no power button to press; one that ignores it may be stopped harder.
        (S::Starting | S::Running | S::Stopping, Event::Stop { .. }) => Ok((S::Stopping, vec![Effect::Kill])),
        (S::Registered | S::Stopped | S::Failed(_) | S::Destroying, Event::Stop { .. }) => refused(),

        (S::Stopping, Event::StopDeadline) => Ok((S::Stopping, vec![Effect::Kill])),
        (S::Registered | S::Starting | S::Running | S::Stopped | S::Failed(_) | S::Destroying, Event::StopDeadline) => {
            refused()
        }

        (S::Running, Event::Exited(VmExit::Reset)) => Ok((S::Starting, vec![Effect::Release, Effect::Launch])),
        (S::Running, Event::Exited(VmExit::PowerOff)) => Ok((S::Stopped, vec![Effect::Release])),
        (S::Starting | S::Running, Event::Exited(exit)) => {
            Ok((S::Failed(FailureCause(exit.clone())), vec![Effect::Release]))
        }
        (S::Stopping, Event::Exited(_)) => Ok((S::Stopped, vec![Effect::Release])),
        (S::Destroying, Event::Exited(_)) => Ok((S::Destroying, vec![Effect::Release, Effect::Remove])),
        (S::Registered | S::Stopped | S::Failed(_), Event::Exited(_)) => refused(),

        (S::Registered | S::Stopped | S::Failed(_), Event::Destroy { .. }) => {
            Ok((S::Destroying, vec![Effect::Release, Effect::Remove]))
        }
        (S::Starting | S::Running | S::Stopping, Event::Destroy { is_forced: true }) => {
            Ok((S::Destroying, vec![Effect::Kill]))
        }
        (S::Starting | S::Running | S::Stopping | S::Destroying, Event::Destroy { .. }) => refused(),
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
            Just(Event::StopDeadline),
            prop_oneof![
                Just(VmExit::PowerOff),
                Just(VmExit::Reset),
                Just(VmExit::TripleFault),
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
            for event in events {
                if matches!(event, Event::Exited(_)) && processes == 0 {
                    continue; // a process that is not there cannot exit
                }
                let Ok((next, effects)) = step(&state, &event) else { continue };
                if matches!(event, Event::Exited(_)) {
                    processes -= 1;
                }
                let mut is_gone = false;
                for effect in effects {
                    match effect {
                        Effect::Launch => { processes += 1; is_held = true; }
                        Effect::Kill | Effect::PressPowerButton => prop_assert_eq!(processes, 1),
                        Effect::Release => is_held = false,
                        Effect::Remove => { prop_assert!(!is_held); is_gone = true; }
                        Effect::ArmStopDeadline(grace) => prop_assert!(!grace.is_zero()),
                    }
                }
                prop_assert!((0..=1).contains(&processes));
                if is_gone {
                    prop_assert_eq!(processes, 0);
                    return Ok(());
                }
                prop_assert_eq!(next.has_process(), processes == 1, "{:?}", next);
                state = next;
            }
        }
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
    }
}
