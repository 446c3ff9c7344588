//! What has happened to a tenant's VMs: `wit/observe.wit`. Key type: [`Observe`].

use crate::{Error, Policy};

pub use crate::host::observe::exports::ostler::policy::observe_hook::{
    Batch, DeviceOfVm, Event, Happening, OverruledDecision, StoppedVm, VmEnd,
};

/// A plugin with the hook `observe`.
pub trait Observe: Policy {
    /// Hears. After an error the batch comes again, and nothing of what was written meanwhile is kept.
    fn observe(&self, batch: &Batch) -> Result<(), Error>;
}
