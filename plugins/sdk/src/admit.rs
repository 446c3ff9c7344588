//! May this VM be registered? `wit/admit.wit`. Key type: [`Admit`].

use crate::{Error, Policy, Refusal};

pub use crate::host::admit::exports::ostler::policy::admit_hook::{AdmitRequest, Verdict, VmPatch};

/// A plugin with the hook `admit`.
pub trait Admit: Policy {
    /// Decides. An error never means yes: the host denies.
    fn admit(&self, request: &AdmitRequest) -> Result<Verdict, Error>;
}

impl From<Refusal> for Verdict {
    fn from(refusal: Refusal) -> Self {
        Self::Deny(refusal.into())
    }
}
