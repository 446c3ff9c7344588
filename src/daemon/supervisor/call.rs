//! What is asked of a VM's task, and when it is answered. Key types: [`Wanted`], [`Request`]; key function: [`verdict`].

use std::time::Duration;

use tokio::sync::oneshot;

use super::change::Change;
use super::hotplug::DeviceCall;
use super::standing::Standing;
use super::{CallError, OnlyIf};
use crate::daemon::operation::Underway;
use crate::daemon::record::VmRecord;
use crate::daemon::trace::CallId;
use crate::model::{Event, VmState};

/// What a call wants to come true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    Running,
    Stopped {
        grace: Duration,
    },
    /// Off and on again.
    Rebooted {
        grace: Duration,
    },
    Paused,
    Resumed,
    Gone {
        is_forced: bool,
    },
    /// Answered by the vmm, or at once if there is none.
    Changed(Change),
    /// The power button pressed, once.
    Pressed,
    /// Every vCPU interrupted, once.
    Interrupted,
}

impl Wanted {
    pub(super) fn event(&self) -> Event {
        match self {
            Self::Running => Event::Start,
            Self::Stopped { grace } => Event::Stop { grace: *grace },
            Self::Rebooted { grace } => Event::Reboot { grace: *grace },
            Self::Paused => Event::Pause,
            Self::Resumed => Event::Resume,
            Self::Gone { is_forced } => Event::Destroy { is_forced: *is_forced },
            Self::Pressed => Event::PowerButton,
            Self::Interrupted => Event::Nmi,
            Self::Changed(_) => unreachable!("a change is no step of the lifecycle"),
        }
    }

    /// Whether it is true once a run has ended.
    pub(super) fn ends_the_run(&self) -> bool {
        matches!(self, Self::Stopped { .. } | Self::Rebooted { .. } | Self::Gone { .. })
    }

    /// Whether only the vmm can make it true.
    pub(super) fn needs_the_vmm(&self) -> bool {
        match self {
            Self::Paused | Self::Resumed | Self::Pressed | Self::Interrupted => true,
            Self::Running | Self::Stopped { .. } | Self::Rebooted { .. } | Self::Gone { .. } | Self::Changed(_) => {
                false
            }
        }
    }
}

/// A call with where its answer goes, once what it wants is true or cannot become so.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) wanted: Wanted,
    pub(super) only_if: Option<OnlyIf>,
    pub(super) reply: Reply,
    /// For whom it is done.
    pub(super) request: Option<CallId>,
    /// Who sees how far it is, and may call it off.
    pub(super) operation: Underway,
}

/// Where its answer goes.
pub(super) type Reply = oneshot::Sender<Result<VmRecord, CallError>>;

/// What a handle asks.
pub(super) enum Request {
    Lifecycle(Call),
    Device(DeviceCall),
    /// How the task stands.
    Look(oneshot::Sender<Standing>),
    /// To remove what a VM that is off should not have; whether it was off.
    Tidy(oneshot::Sender<bool>),
}

impl Request {
    pub(super) fn id(&self) -> Option<CallId> {
        match self {
            Self::Lifecycle(call) => call.request.clone(),
            Self::Device(call) => call.request.clone(),
            Self::Look(_) | Self::Tidy(_) => None,
        }
    }
}

/// The answer to a call as far as the VM's state gives one.
pub(super) fn verdict(wanted: &Wanted, vm: &VmRecord, is_gone: bool) -> Option<Result<VmRecord, CallError>> {
    use VmState as S;
    let interrupted = || Some(Err(CallError::Interrupted { state: vm.state.name() }));
    let done = || Some(Ok(vm.clone()));
    match (wanted, &vm.state) {
        (Wanted::Gone { .. }, _) => is_gone.then(|| Ok(vm.clone())),
        (Wanted::Changed(_), _) => unreachable!("changes wait with their process"),
        (Wanted::Pressed | Wanted::Interrupted, _) => done(),
        (_, S::Destroying) if is_gone => Some(Err(CallError::Gone)),
        (_, S::Destroying) => interrupted(),

        (Wanted::Running | Wanted::Rebooted { .. }, S::Starting) => None,
        (Wanted::Running | Wanted::Rebooted { .. }, S::Running) => done(),
        (Wanted::Running | Wanted::Rebooted { .. }, S::Failed(cause)) => {
            Some(Err(CallError::StartFailed(cause.clone())))
        }
        (Wanted::Rebooted { .. }, S::Rebooting) => None,
        (Wanted::Running, S::Registered | S::Paused | S::Stopping | S::Rebooting | S::Stopped) => interrupted(),
        (Wanted::Rebooted { .. }, S::Registered | S::Paused | S::Stopping | S::Stopped) => interrupted(),

        (Wanted::Stopped { .. }, S::Stopping) => None,
        (Wanted::Stopped { .. }, S::Stopped) => done(),
        (
            Wanted::Stopped { .. },
            S::Registered | S::Starting | S::Running | S::Paused | S::Rebooting | S::Failed(_),
        ) => interrupted(),

        (Wanted::Paused, S::Running) | (Wanted::Resumed, S::Paused) => None,
        (Wanted::Paused, S::Paused) | (Wanted::Resumed, S::Running) => done(),
        (
            Wanted::Paused | Wanted::Resumed,
            S::Registered | S::Starting | S::Stopping | S::Rebooting | S::Stopped | S::Failed(_),
        ) => interrupted(),
    }
}
