//! May this device leave this VM? A veto: `wit/detach.wit`. Key type: [`Detach`].

use crate::{Error, Policy, Refusal};

pub use crate::host::detach::exports::ostler::policy::detach_hook::{DetachRequest, DetachVerdict as Verdict};

/// A plugin with the hook `detach`.
pub trait Detach: Policy {
    /// Decides. An error keeps the device.
    fn detach(&self, request: &DetachRequest) -> Result<Verdict, Error>;
}

impl From<Refusal> for Verdict {
    fn from(refusal: Refusal) -> Self {
        Self::Deny(refusal.into())
    }
}
