//! The vocabulary that every role shares: ids, sizes, specs, lifecycle, decisions. Pure: no I/O, no clocks, no threads.
//!
//! A type enters here only when two roles need it. Everything is validated on construction, so that code behind this
//! door never sees a malformed name, a zero vCPU count or a relative device path.

mod decision;
mod exit;
mod id;
mod jail;
mod launch;
mod lifecycle;
mod pci;
mod spec;
mod vf;

pub use decision::{
    AdmitRequest, Decision, LimitUse, Opinion, Outcome, Patch, PluginDigest, PolicyFault, PolicyScope, Verdict,
};
pub use exit::{JAIL_FAILED, VmExit};
pub use id::{DeviceId, IdError, InstanceId, PluginId, RequestId, TenantId, VmId, VmName};
pub use jail::{JailArgsError, JailFacts};
pub use launch::{DeviceKind, DeviceLaunch, Launch, MacAddr, MacError, PciSlot};
pub use lifecycle::{Effect, Event, FailureCause, Refused, VmState, step};
pub use pci::{Bdf, BdfError};
pub use spec::{BootSpec, DiskSpec, ImagePath, NicBackend, NicSpec, SpecError, VmSpec};
pub use vf::{
    LastTenant, Mark, PfView, SelectVfRequest, VfCandidate, VfDecision, VfOutcome, VfRanking, VfSetting, VfSettings,
    VfVerdict, VfWish, VlanId,
};
