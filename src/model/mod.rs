//! The vocabulary that every role shares: ids, sizes, specs, lifecycle, decisions. Pure: no I/O, no clocks, no threads.
//!
//! A type enters here only when two roles need it. Everything is validated on construction, so that code behind this
//! door never sees a malformed name, a zero vCPU count or a relative device path.

mod attach;
mod decision;
mod exit;
mod id;
mod jail;
mod launch;
mod lifecycle;
mod pci;
mod spec;
mod vf;

pub use attach::{AttachRequest, DetachRequest, VmFacts};
pub use decision::{
    AdmitRequest, Decision, LimitUse, Opinion, Outcome, Patch, PluginDigest, PolicyFault, PolicyScope, Verdict,
};
pub use exit::{JAIL_FAILED, VmExit};
pub use id::{DeviceId, IdError, InstanceId, PluginId, TenantId, VmId, VmName};
pub use jail::{JailArgsError, JailFacts};
pub use launch::{DeviceKind, DeviceLaunch, Launch, MacAddr, MacError, PciSlot, SPARE_DEVICES};
pub use lifecycle::{Effect, Event, FailureCause, Refused, VmState, step};
pub use pci::{Bdf, BdfError};
pub use spec::{BootSpec, DeviceSpec, DiskSpec, ImagePath, NicBackend, NicSpec, SpecError, VmSpec};
pub use vf::{
    LastTenant, Mark, PfView, SelectVfRequest, VfCandidate, VfDecision, VfOutcome, VfRanking, VfSetting, VfSettings,
    VfVerdict, VfWish, VlanId,
};
