//! Work that is under way, for those who want to see it or call it off. Key types: [`Operation`], [`Operations`],
//! [`Ticket`], [`Underway`].
//!
//! ```text
//!   rpc::change ── Ticket (what it would be) ──▶ Node::begin ──▶ Operations: RUNNING
//!                                                                  │ Underway
//!        whoever works (a VM's task, an erasing thread) ◀──────────┘ tell · open · seal
//!   rpc::change ── end(outcome) ──▶ SUCCEEDED | FAILED | CANCELLED, of which the last of each owner are kept
//! ```
//!
//! One lock arbitrates between who calls it off and who goes past the point of no return: [`Underway::seal`] tells the
//! worker whether it was called off before. All of this is in memory; what survives a daemon's end is the store's record
//! of a request, from which the next one lists what was cut off.

mod kept;
mod operations;
mod ticket;
mod underway;

use std::fmt;
use std::time::SystemTime;

use crate::model::TenantId;
pub use operations::Operations;
pub use ticket::{Subject, Ticket};
pub use underway::{Amount, NotCancellable, Step, TimedStep, Underway};

/// Whose an operation is; `None`: the host's, for operators.
pub type Owner = Option<TenantId>;

/// An operation's name: whose, and its id, a ULID.
///
/// Never the id of its call, which a client may choose and use twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OperationName {
    /// Whose.
    pub owner: Owner,
    /// Grows with time.
    pub id: String,
}

impl OperationName {
    /// A new one.
    pub fn new(owner: Owner) -> Self {
        Self { owner, id: ulid::Ulid::generate().to_string() }
    }
}

impl fmt::Display for OperationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.owner {
            Some(tenant) => write!(f, "tenants/{tenant}/operations/{}", self.id),
            None => write!(f, "operations/{}", self.id),
        }
    }
}

/// How an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationState {
    /// It is under way.
    Running,
    /// It did what was asked.
    Succeeded,
    /// It did not.
    Failed,
    /// It was called off before it was too late.
    Cancelled,
    /// The daemon ended meanwhile: what came of it is not known here.
    Interrupted,
}

impl OperationState {
    /// All that [`name`](Self::name) gives.
    pub const NAMES: [&'static str; 5] = ["RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "INTERRUPTED"];

    /// As the API has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
            Self::Interrupted => "INTERRUPTED",
        }
    }
}

/// Why an operation did not succeed, as its own call was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// A gRPC code; only `rpc` knows what it means.
    pub code: i32,
    /// For people.
    pub message: String,
    /// For programs.
    pub reason: String,
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperationEnd {
    /// It did what was asked.
    Succeeded,
    /// It did not.
    Failed(Failure),
    /// It was called off.
    Cancelled(Failure),
    /// The daemon ended meanwhile.
    Interrupted,
}

impl OperationEnd {
    /// The state that it is.
    pub fn state(&self) -> OperationState {
        match self {
            Self::Succeeded => OperationState::Succeeded,
            Self::Failed(_) => OperationState::Failed,
            Self::Cancelled(_) => OperationState::Cancelled,
            Self::Interrupted => OperationState::Interrupted,
        }
    }

    /// Why it did not succeed, as far as its call was told.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Succeeded | Self::Interrupted => None,
            Self::Failed(failure) | Self::Cancelled(failure) => Some(failure),
        }
    }
}

/// An operation as it is at one moment.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Its name.
    pub name: OperationName,
    /// What it is of.
    pub subject: Subject,
    /// When its work began.
    pub created: SystemTime,
    /// What it does, or did last.
    pub step: Option<Step>,
    /// What it was at, in order, each with its time; the last one is what it is at, or was at its end.
    pub steps: Vec<TimedStep>,
    /// Whether it can be called off now, or was.
    pub is_cancellable: bool,
    /// When and how it ended; `None`: it is under way.
    pub end: Option<(SystemTime, OperationEnd)>,
}

impl Operation {
    /// How it stands.
    pub fn state(&self) -> OperationState {
        self.end.as_ref().map_or(OperationState::Running, |(_, outcome)| outcome.state())
    }
}
