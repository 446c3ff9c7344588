//! Why a call failed. Key type: [`ServiceError`]; `rpc/status.rs` turns it into a gRPC status.

use super::{CanaryError, DeviceError, SignatureRefused};
use crate::daemon::inventory::{PoolExhausted, UsersExhausted};
use crate::daemon::operation::NotCancellable;
use crate::daemon::policy::LoadError;
use crate::daemon::store::{AliasRefused, Compacted, StoreError};
use crate::daemon::supervisor::CallError;
use crate::daemon::tenants::Exceeded;
use crate::model::{Decision, PolicyScope, SpecError, TenantId, VmName};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A field of the request is wrong, or the host cannot bear it.
    #[error(transparent)]
    BadField(#[from] SpecError),
    /// Missing, or another tenant's: the caller cannot tell.
    #[error("no such VM, or none that you may see")]
    NoSuchVm,
    /// Missing, removed by retention, or another tenant's: the caller cannot tell.
    #[error("no such decision on record, or none that you may see")]
    NoSuchDecision,
    /// Missing, forgotten, or another tenant's: the caller cannot tell.
    #[error("no such operation, or none that you may see")]
    NoSuchOperation,
    /// Another attempt of the same request was, while this one waited for it; with what its client was told.
    #[error("{0}")]
    CalledOff(String),
    /// It has ended, or goes to its end.
    #[error(transparent)]
    NotCancellable(#[from] NotCancellable),
    /// Nothing is bound under that name.
    #[error("no such plugin, or none that you may see")]
    NoSuchPlugin,
    /// Nothing of which another version could be kept.
    #[error(
        "no plugin of that name is loaded, so no other version of it is kept either; load one without an alias first"
    )]
    NothingBound,
    /// Nothing to go back to.
    #[error(
        "no such version of the plugin, or it is not kept any more; `ostler plugin list -o json` shows those that are"
    )]
    NoSuchVersion,
    /// An earlier version does not load any more.
    #[error("the earlier version does not load: {cause}")]
    VersionLost {
        /// Why.
        cause: String,
    },
    /// The chain has no room.
    #[error("there are {limit} plugins in this chain already; unload one first")]
    TooManyPlugins {
        /// How many may be.
        limit: u64,
    },
    /// Everything would be denied without it.
    #[error(
        "it is the operator's last plugin with the hook {hook}, and without one everything is denied there; take it out of the chain by force if that is meant"
    )]
    LastOfHook {
        /// The hook.
        hook: &'static str,
    },
    /// It would leave its chain by being loaded.
    #[error(
        "a plugin of that name is enforced, and loaded as a shadow it would decide nothing any more; load the shadow under another name"
    )]
    PluginEnforced,
    /// Its signatures.
    #[error(transparent)]
    Signature(#[from] SignatureRefused),
    /// A name of a version.
    #[error(transparent)]
    Alias(#[from] AliasRefused),
    /// A version that is, or should be, tried beside the bound one.
    #[error(transparent)]
    Canary(#[from] CanaryError),
    /// Decisions under way take too long.
    #[error("the plugin's decisions are not done yet: {cause}; try again")]
    PolicyBusy {
        /// Why.
        cause: String,
    },
    /// Another replay has not ended.
    #[error("another replay is under way on this node; try again when it has ended")]
    ReplayUnderWay,
    /// Missing, or another one: the caller cannot tell.
    #[error("no such tenant, or none that you may see")]
    NoSuchTenant,
    /// The caller may read only.
    #[error("your role is viewer: it reads, and changes nothing")]
    RoleDenied,
    /// The tenant may not have so much.
    #[error(
        "tenant {tenant} may not have so much: {}; destroy or unload what is not needed, or ask the operator for more",
        listed(exceeded)
    )]
    Quota {
        /// Whose.
        tenant: TenantId,
        /// Every limit that would be exceeded.
        exceeded: Vec<Exceeded>,
    },
    /// The tenant has a VM of that name.
    #[error("tenant {tenant} has a VM {name} already; destroy it first or choose another name")]
    AlreadyRegistered {
        /// Whose.
        tenant: TenantId,
        /// Its name.
        name: VmName,
    },
    /// Policy said no.
    #[error("policy denies tenant {tenant} the VM {name}")]
    Denied {
        /// Whose.
        tenant: TenantId,
        /// Its name.
        name: VmName,
        /// With its outcome, always a denial.
        decision: Box<Decision>,
    },
    /// The caller's identity does not allow this, whatever exists.
    #[error("your certificate does not allow this: {needs}")]
    NotAllowed {
        /// What it would need.
        needs: &'static str,
    },
    /// It is not any more what the client has seen.
    #[error("{what} has changed since you looked at it")]
    Changed {
        /// The resource's name.
        what: String,
    },
    /// One id for two requests.
    #[error("this request_id belongs to another request of yours: make up a new one for each change")]
    RequestReused,
    /// The VM's state or end forbids it.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A device of the host.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No addresses are left.
    #[error(transparent)]
    Addresses(#[from] PoolExhausted),
    /// No user ids are left.
    #[error(transparent)]
    Users(#[from] UsersExhausted),
    /// The store failed.
    #[error("the node cannot record this")]
    Store(#[from] StoreError),
    /// The component is refused.
    #[error("plugin is refused")]
    Plugin {
        /// Whose chain it was for.
        scope: PolicyScope,
        /// What is wrong.
        source: LoadError,
    },
    /// A file of the node cannot be read or written.
    #[error("the node cannot use {what}")]
    Host {
        /// Which.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A watcher read too slowly.
    #[error("you read too slowly: more changes wait than are kept for one reader; resume with your last resume_token")]
    Lagged,
    /// A watch cannot be resumed from there.
    #[error(transparent)]
    Compacted(#[from] Compacted),
    /// The daemon is about to end.
    #[error("the daemon is ending")]
    Ending,
}

fn listed(exceeded: &[Exceeded]) -> String {
    let text = |Exceeded { resource, limit, used, asked }: &Exceeded| {
        format!("{used} {resource} of {limit} are in use, {asked} more were asked for")
    };
    exceeded.iter().map(text).collect::<Vec<_>>().join(", ")
}
