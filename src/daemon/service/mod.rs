//! The use cases, one file each: only order and guards. Key types: [`Node`], [`ServiceError`].
//!
//! The only place that knows store, supervisor, policy and inventory together. `rpc` calls it with validated values.

mod access;
mod aliases;
mod attach;
mod boot;
mod canary;
mod console;
mod decisions;
mod devices;
mod doctor;
mod error;
mod holdings;
mod inspect;
mod kv;
mod ledger;
mod lifecycle;
mod observers;
mod operations;
mod plugins;
mod register;
mod replay;
mod request;
mod room;
mod signatures;
mod stats;
mod tenants;
mod tune;
mod turns;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{Mutex, Semaphore};

pub use crate::daemon::authn::{AuthnError, Identity, Principal, spiffe_id};
use crate::daemon::files::Files;
pub use crate::daemon::inventory::{Acs, Bridge, GroupMember, NvmeController, NvmeFacts, VirtualFunction};
use crate::daemon::inventory::{AddressPool, HostFacts, UserPool};
use crate::daemon::operation::Operations;
pub use crate::daemon::operation::{Failure, Operation, OperationEnd, OperationName, OperationState, Subject, Ticket};
use crate::daemon::policy::PolicyHost;
pub use crate::daemon::policy::{BreakerState, Change};
pub use crate::daemon::record::{
    AddError, AttachState, Attachment, HeldFor, Lease, LeaseState, NvmeDevice, NvmePart, RequestKey, Subnet, VmRecord,
};
use crate::daemon::store::Store;
pub use crate::daemon::store::{
    AliasRefused, CanaryRecord, CanaryState, Compacted, DecisionQuery, PluginVersion, ResumePoint, StoredDecision,
    plugin_etag, vm_etag,
};
use crate::daemon::supervisor::Supervisor;
pub use crate::daemon::supervisor::{BackingError, CallError, HotplugError};
pub use crate::daemon::tenants::{ChainSigners, Exceeded, Followed, Limits, Tenants, Unsigned};
use crate::model::TenantId;
use crate::sys::program::Program;
pub use access::Whose;
pub use aliases::AliasPlace;
pub use attach::Unplug;
pub use boot::BootError;
pub use canary::{CanaryEnd, CanaryError, CanaryPlace};
pub use console::{Console, Window};
pub use decisions::{Exported, Verified};
use devices::HostDevices;
pub use devices::{DeviceError, DeviceView, NvmeView, Released, lease_etag};
pub use doctor::{Finding, FindingKind, FindingState};
pub use error::ServiceError;
pub use inspect::Confinement;
pub use kv::{KvOf, PluginKv};
use ledger::Handles;
pub use observers::ObserverStatus;
use observers::Observers;
use plugins::Plugins;
pub use plugins::{PluginPlace, PluginStatus, PluginUpload, PluginView};
pub use replay::{Asked, Replay, ReplayEvent, ReplaySummary};
use request::Requests;
pub use request::{Answer, Claim, Terms};
pub use signatures::SignatureRefused;
pub use stats::{HostUse, MemoryUse, VmStats, VmUsage};
pub use tenants::TenantView;
use turns::Turns;
pub use watch::WatchItem;

/// Everything that a call works with.
pub struct Node {
    store: Store,
    supervisor: Arc<Supervisor>,
    handles: Handles,
    policy: PolicyHost,
    plugins: Arc<Plugins>,
    observers: Arc<Observers>,
    devices: Arc<HostDevices>,
    files: Files,
    facts: HostFacts,
    addresses: AddressPool,
    users: UserPool,
    /// Registrations, one at a time per tenant.
    turns: Turns<TenantId>,
    /// Looks at processes of VMs, one at a time per tenant.
    inspections: Turns<TenantId>,
    requests: Requests,
    operations: Operations,
    tenants: Followed,
    /// One permit: a replay takes a CPU for a while.
    replays: Arc<Semaphore>,
    /// Rank: above everything. Repairs of the host, one after the other.
    repairs: Mutex<()>,
    /// Where the store is, and files beside it.
    data: PathBuf,
}

/// Where a node keeps what.
#[derive(Debug)]
pub struct Places {
    /// The store, plugins, consoles, logs.
    pub data: PathBuf,
    /// Sockets.
    pub run: PathBuf,
    /// Kernels and initrds.
    pub images: PathBuf,
    /// Disk images, one directory per tenant.
    pub volumes: PathBuf,
    /// The program that runs a VM, open for as long as the daemon runs.
    pub vmm: Program,
}

impl Places {
    /// Directory of components.
    fn plugins(&self) -> PathBuf {
        self.data.join("plugins")
    }

    /// The operator's file of tenants.
    fn tenants(&self) -> PathBuf {
        self.data.join("tenants.toml")
    }

    /// The store's file.
    fn store(&self) -> PathBuf {
        self.data.join("store.redb")
    }

    fn files(&self) -> Files {
        Files::new(Path::new(&self.images), Path::new(&self.volumes))
    }
}

/// How VMs are confined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JailConfig {
    /// Directory of cgroup v2 below which every VM has a group.
    pub cgroup: PathBuf,
    /// First of the user ids that vmm processes run as.
    pub first_user: u32,
}

/// A node that several calls use at once.
pub type SharedNode = Arc<Node>;
