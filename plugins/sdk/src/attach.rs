//! May this VM have this device too? `wit/attach.wit`. Key type: [`Attach`].

use crate::{Error, Policy, Refusal};

pub use crate::host::attach::exports::ostler::policy::attach_hook::{
    AttachRequest, AttachVerdict as Verdict, Device, Disk, Nic, Nvme,
};

/// A plugin with the hook `attach`.
pub trait Attach: Policy {
    /// Decides. An error never means yes: the host denies.
    fn attach(&self, request: &AttachRequest) -> Result<Verdict, Error>;
}

impl From<Refusal> for Verdict {
    fn from(refusal: Refusal) -> Self {
        Self::Deny(refusal.into())
    }
}
