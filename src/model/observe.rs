//! What observers are told: a tenant's events, in batches. Key types: [`Happening`], [`ObservedEvent`], [`ObserveRequest`].
//!
//! `daemon/store` puts events on record with what they speak of, `daemon/policy` asks, `daemon/service` delivers.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{DeviceId, TenantId, VmExit, VmName};

/// Name of the hook, and so of the records of what observers were told.
pub const OBSERVE_HOOK: &str = "observe";
/// Events in one batch.
pub const MAX_BATCH_EVENTS: usize = 64;
/// Events of one batch as they are on record, together in bytes.
pub const MAX_BATCH_BYTES: usize = 32 << 10;
/// Events of one tenant that are kept.
pub const MAX_EVENTS: u64 = 4096;

/// Something that happened to a tenant's VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Happening {
    /// There is a new VM.
    VmRegistered(VmName),
    /// Its guest runs.
    VmStarted(VmName),
    /// Its guest runs no more, or did not come to run.
    VmStopped {
        /// The VM.
        vm: VmName,
        /// How it came to that.
        end: VmEnd,
    },
    /// The VM is gone.
    VmDestroyed(VmName),
    /// It has one device more.
    DeviceAttached {
        /// The VM.
        vm: VmName,
        /// The device.
        device: DeviceId,
    },
    /// It has one device less.
    DeviceDetached {
        /// The VM.
        vm: VmName,
        /// The device.
        device: DeviceId,
    },
    /// What was allowed was not done.
    DecisionOverruled {
        /// Number of the decision in the tenant's chain.
        decision: u64,
        /// Its hook.
        hook: String,
        /// What it is about.
        subject: String,
        /// Why.
        code: String,
    },
}

/// How it came that a VM does not run any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmEnd {
    /// Power-off, by the guest or a client.
    Off,
    /// It begins anew.
    Restart,
    /// See [`VmExit`], as all others.
    TripleFault,
    /// The guest's kernel said so.
    Panicked,
    /// The process was told to end.
    Killed,
    /// It did not come to run.
    LaunchFailed,
    /// The host is at fault.
    HostError,
    /// The process ended without a word.
    Vanished,
}

impl From<&VmExit> for VmEnd {
    fn from(exit: &VmExit) -> Self {
        match exit {
            VmExit::PowerOff => Self::Off,
            VmExit::Reset => Self::Restart,
            VmExit::TripleFault => Self::TripleFault,
            VmExit::Panicked => Self::Panicked,
            VmExit::Killed => Self::Killed,
            VmExit::LaunchFailed(_) => Self::LaunchFailed,
            VmExit::HostError(_) => Self::HostError,
            VmExit::Vanished(_) => Self::Vanished,
        }
    }
}

/// An event in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObservedEvent {
    /// Place among the tenant's events, from 0 without gaps.
    pub sequence: u64,
    /// When it was put on record, in seconds since 1970.
    pub moment_s: u64,
    /// What happened.
    pub what: Happening,
}

/// The question of the `observe` hook, which asks for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObserveRequest {
    /// Whose events these are.
    pub tenant: TenantId,
    /// Events before the first one that were gone before they could be told.
    #[serde(default)]
    pub missed: u64,
    /// Oldest first.
    pub events: Vec<ObservedEvent>,
}

impl ObserveRequest {
    /// The first and the last event's place; `None` if there is no event.
    pub fn span(&self) -> Option<(u64, u64)> {
        Some((self.events.first()?.sequence, self.events.last()?.sequence))
    }
}

/// An observer's answer, if it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObserveVerdict {
    /// It has heard.
    Heard,
}

/// What came of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObserveOutcome {
    /// So many events were heard.
    Heard(u64),
    /// The observer has failed at them.
    Deny {
        /// Code of the fault.
        code: String,
        /// For people.
        message: String,
        /// The observer.
        plugin: Option<String>,
    },
}

impl fmt::Display for ObserveRequest {
    /// Its place: `events/7`, `events/7-12`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.span() {
            None => f.write_str("events"),
            Some((first, last)) if first == last => write!(f, "events/{first}"),
            Some((first, last)) => write!(f, "events/{first}-{last}"),
        }
    }
}
