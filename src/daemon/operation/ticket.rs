//! What an operation would be, before its work has begun. Key types: [`Ticket`], [`Subject`].

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use super::{OperationEnd, OperationName, Owner, Underway};
use crate::daemon::trace::CallId;
use crate::model::RequestId;

/// What an operation is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The call, as the API names it.
    pub method: String,
    /// Name of the resource that it is about.
    pub target: String,
    /// Who asked for it, as the audit log names it.
    pub principal: String,
    /// The id of its call, as it stands in the logs.
    pub call: Option<CallId>,
    /// Made up by the client.
    pub request: Option<RequestId>,
    /// SHA-256 of method and message, as a repetition of the request has it.
    pub fingerprint: [u8; 32],
}

impl Subject {
    /// A tenant stops its VM.
    #[cfg(test)]
    pub fn sample() -> Self {
        Self {
            method: "StopVirtualMachine".into(),
            target: "tenants/acme/vms/web".into(),
            principal: "tenant/acme".into(),
            call: None,
            request: None,
            fingerprint: [0; 32],
        }
    }

    /// Whether it is of a request with an id, and `other` of the same: in the same words, whenever it came.
    pub(super) fn is_of_request(&self, other: &Self) -> bool {
        self.request.is_some() && Self { call: None, ..self.clone() } == Self { call: None, ..other.clone() }
    }
}

/// A call that becomes an operation once its work begins: [`Operations::begin`](super::Operations::begin). A call that
/// comes to no work leaves no operation.
#[derive(Debug, Clone)]
pub struct Ticket(Arc<Waiting>);

#[derive(Debug)]
struct Waiting {
    subject: Subject,
    came: SystemTime,
    begun: OnceLock<(OperationName, Underway)>,
}

impl Ticket {
    /// Of a call that has just come.
    pub fn new(subject: Subject) -> Self {
        Self(Arc::new(Waiting { subject, came: SystemTime::now(), begun: OnceLock::new() }))
    }

    /// What it would be of.
    pub fn subject(&self) -> &Subject {
        &self.0.subject
    }

    /// When its call came.
    pub(super) fn came(&self) -> SystemTime {
        self.0.came
    }

    /// Its name, once it has begun.
    pub fn name(&self) -> Option<OperationName> {
        self.0.begun.get().map(|(name, _)| name.clone())
    }

    /// The call is answered; an operation that it has become ends with that.
    pub fn end(&self, outcome: impl FnOnce() -> OperationEnd) {
        if let Some((_, underway)) = self.0.begun.get() {
            underway.end(outcome());
        }
    }

    /// Makes it an operation of `owner`, at the first time; `make` puts it on the list.
    pub(super) fn begin(
        &self,
        owner: Owner,
        make: impl FnOnce(&OperationName) -> Underway,
    ) -> (OperationName, Underway) {
        let begun = self.0.begun.get_or_init(|| {
            let name = OperationName::new(owner);
            let underway = make(&name);
            (name, underway)
        });
        begun.clone()
    }
}
