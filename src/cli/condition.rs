//! What a VM can be waited for: `running`, `deleted`, `device=data:attached`. Pure. Key types: [`Condition`], [`Verdict`].

use std::fmt;
use std::str::FromStr;

use crate::api::v1;
use crate::api::v1::device_status::State as DeviceState;
use crate::api::v1::virtual_machine::State;

/// A condition of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It is in this state.
    State(State),
    /// It is gone, or was never there.
    Deleted,
    /// The device of this id is attached to it.
    Attached(String),
    /// It has no device of this id.
    Detached(String),
}

/// What one look at the VM says about a wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is over.
    Met,
    /// It goes on.
    NotYet,
    /// It is in vain.
    OutOfReach,
}

const FORMS: &str = "registered, running, paused, stopped, failed, deleted, device=ID:attached or device=ID:detached";

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("{text:?} cannot be waited for: write {FORMS}");
        if let Some(device) = text.strip_prefix("device=") {
            return match device.split_once(':') {
                Some((id, "attached")) if !id.is_empty() => Ok(Self::Attached(id.to_owned())),
                Some((id, "detached")) if !id.is_empty() => Ok(Self::Detached(id.to_owned())),
                _ => Err(unknown()),
            };
        }
        match text.to_ascii_lowercase().as_str() {
            "registered" => Ok(Self::State(State::Registered)),
            "running" => Ok(Self::State(State::Running)),
            "paused" => Ok(Self::State(State::Paused)),
            "stopped" => Ok(Self::State(State::Stopped)),
            "failed" => Ok(Self::State(State::Failed)),
            "deleted" | "destroyed" => Ok(Self::Deleted),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(state) => f.write_str(state.as_str_name()),
            Self::Deleted => f.write_str("DESTROYED"),
            Self::Attached(id) => write!(f, "{id} ATTACHED"),
            Self::Detached(id) => write!(f, "{id} DETACHED"),
        }
    }
}

impl Condition {
    /// Judges a VM as it is now; `is_initial`: as it was when the wait began, rather than a change since.
    pub(crate) fn verdict(&self, vm: &v1::VirtualMachine, is_initial: bool) -> Verdict {
        let is_gone = vm.state() == State::Destroyed;
        let met = match self {
            Self::State(wanted) => vm.state() == *wanted,
            Self::Deleted => is_gone,
            Self::Attached(id) => {
                vm.devices.iter().any(|device| device.id == *id && device.state() == DeviceState::Attached)
            }
            Self::Detached(id) => vm.devices.iter().all(|device| device.id != *id),
        };
        match (self, vm.state()) {
            (Self::Attached(_), _) if is_gone => Verdict::OutOfReach,
            _ if met => Verdict::Met,
            (_, State::Destroyed) => Verdict::OutOfReach,
            (Self::State(_), State::Destroying) => Verdict::OutOfReach,
            // No run is left that could power off.
            (Self::State(State::Stopped), State::Failed) => Verdict::OutOfReach,
            // One that was FAILED before may be about to be started; one that fails now is not.
            (Self::State(State::Running | State::Paused), State::Failed) if !is_initial => Verdict::OutOfReach,
            _ => Verdict::NotYet,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vm(state: State) -> v1::VirtualMachine {
        v1::VirtualMachine { state: state.into(), ..Default::default() }
    }

    fn with_device(state: DeviceState) -> v1::VirtualMachine {
        let device = v1::DeviceStatus { id: "data".into(), slot: 3, state: state.into() };
        v1::VirtualMachine { devices: vec![device], ..vm(State::Running) }
    }

    #[test]
    fn reads_what_can_be_waited_for_and_lists_it_when_it_cannot() {
        assert_eq!("Running".parse(), Ok(Condition::State(State::Running)));
        assert_eq!("destroyed".parse(), Ok(Condition::Deleted));
        assert_eq!("device=data:attached".parse(), Ok(Condition::Attached("data".into())));
        for text in ["", "starting", "device=", "device=data", "device=:attached", "device=data:gone"] {
            let error = text.parse::<Condition>().unwrap_err();
            assert!(error.contains("device=ID:detached"), "{error}");
        }
    }

    #[test]
    fn tells_met_from_not_yet_from_out_of_reach() {
        use Verdict::{Met, NotYet, OutOfReach};
        for (condition, state, is_initial, verdict) in [
            ("running", State::Running, true, Met),
            ("running", State::Starting, false, NotYet),
            ("running", State::Failed, true, NotYet),
            ("running", State::Failed, false, OutOfReach),
            ("running", State::Destroying, false, OutOfReach),
            ("paused", State::Failed, false, OutOfReach),
            ("paused", State::Stopped, false, NotYet),
            ("stopped", State::Failed, true, OutOfReach),
            ("stopped", State::Stopping, false, NotYet),
            ("failed", State::Failed, true, Met),
            ("failed", State::Destroyed, false, OutOfReach),
            ("deleted", State::Destroying, false, NotYet),
            ("deleted", State::Destroyed, false, Met),
            ("device=data:detached", State::Running, true, Met),
            ("device=data:attached", State::Running, true, NotYet),
            ("device=data:attached", State::Destroyed, false, OutOfReach),
        ] {
            let found = condition.parse::<Condition>().unwrap().verdict(&vm(state), is_initial);
            assert_eq!(found, verdict, "{condition} when {state:?}");
        }
    }

    #[test]
    fn a_device_is_attached_when_the_guest_was_told_and_detached_when_it_is_gone() {
        let verdict = |condition: &str, state| {
            condition.parse::<Condition>().unwrap().verdict(&with_device(state), false) == Verdict::Met
        };
        assert!(verdict("device=data:attached", DeviceState::Attached));
        assert!(!verdict("device=data:attached", DeviceState::Attaching));
        assert!(!verdict("device=data:attached", DeviceState::Detaching));
        assert!(!verdict("device=data:detached", DeviceState::Detaching));
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in ".{0,24}") {
            let _ = text.parse::<Condition>();
        }
    }
}
