//! Devices of the host for VMs: who gets which, and giving them back. Key types: [`HostDevices`], [`DeviceView`].
//!
//! The only place that knows inventory, leases, policy and hostdev together. A lease is written before each change on
//! the host; what a daemon that was killed left half done is told by its leases.
//!
//! ```text
//!   claim:    inventory ─ leases ─▶ candidates ─▶ policy ranks ─▶ CLAIMED (first writer wins) ─▶ checked again
//!             ─▶ hostdev::prepare ─▶ PREPARED            attach: ATTACHED, then the descriptors go to the vmm
//!   release:  RELEASING ─▶ hostdev::release ─▶ FREE, or QUARANTINED with the reason
//! ```

mod choose;
mod claim;
#[cfg(test)]
mod lending_model;
mod nvme;
mod place;
mod rehearse;
mod strays;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::access::require_operator;
use super::plugins::Plugins;
use super::{Node, Principal, ServiceError, Terms};
use crate::daemon::crash::{self, Point};
use crate::daemon::hostdev;
use crate::daemon::inventory::{Devices, Nodes, PhysicalFunction, VirtualFunction};
use crate::daemon::operation::{Step, Underway};
use crate::daemon::policy::PolicyHost;
use crate::daemon::record::{
    Before, HeldFor, Holder, Lease, LeaseEvent, LeaseState, NvmeLease, NvmeProvision, VfKey, VfLease, VmRecord,
};
use crate::daemon::store::Store;
use crate::daemon::supervisor::DevicesError;
use crate::model::{Bdf, DeviceId, VmId};
use crate::sys::rtnl::VfConfig;
pub(super) use choose::key_of;
use nvme::NvmeDevices;
pub use nvme::NvmeView;
use place::Placer;

/// How long one device may take on the host before it counts as stuck. The kernel waits up to 60 s for a function
/// that does not come back from its reset (`PCI_RESET_WAIT`).
const HOST_TIMEOUT: Duration = Duration::from_secs(90);

/// A call about a device that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No device has this address.
    #[error("this node has no device {0} that is given to VMs")]
    NoSuchDevice(Bdf),
    /// There is nothing to release.
    #[error("device {0} is free: there is nothing to release")]
    NotHeld(Bdf),
    /// A VM has it.
    #[error("device {address} is {state} for the VM {vm}; stop the VM first")]
    InUse {
        /// Which one.
        address: Bdf,
        /// Where it is.
        state: &'static str,
        /// `tenant/name`.
        vm: String,
    },
    /// It could not be cleaned.
    #[error("device {address} stays in quarantine: {reason}")]
    Unclean {
        /// Which one.
        address: Bdf,
        /// What went wrong.
        reason: String,
    },
    /// An NVMe device keeps its data as long as its VM exists.
    #[error("{} of NVMe controller {address} is the VM {vm}'s; destroy the VM first", part(*nsid))]
    Kept {
        /// The controller, or the function of its secondary.
        address: Bdf,
        /// The namespace; 0: the function.
        nsid: u32,
        /// `tenant/name`.
        vm: String,
    },
    /// The host has a disk of it.
    #[error("NVMe controller {address} is in use by the host: {by}; unmount it, or let go of what is built on it")]
    InUseByHost {
        /// The controller.
        address: Bdf,
        /// How.
        by: String,
    },
    /// It has no secondary controllers.
    #[error("NVMe controller {0} has no virtualization management: it cannot have secondary controllers")]
    NotPrimary(Bdf),
    /// It has not so many.
    #[error("NVMe controller {address} cannot have {vfs} virtual functions, at most {most}")]
    TooManyVfs {
        /// The controller.
        address: Bdf,
        /// How many were asked for.
        vfs: u32,
        /// How many it can have.
        most: u32,
    },
    /// It was called off, in time.
    #[error("the operation was called off: {0}")]
    CalledOff(String),
    /// A controller does not do what it should.
    #[error("NVMe controller {address}: {reason}")]
    Nvme {
        /// The controller.
        address: Bdf,
        /// What went wrong.
        reason: String,
    },
    /// The host's devices cannot be read.
    #[error("cannot read the host's devices: {0}")]
    Unreadable(String),
}

/// A part of an NVMe controller, in an error.
fn part(nsid: u32) -> String {
    if nsid == 0 { "a function".to_owned() } else { format!("namespace {nsid}") }
}

/// A card with its virtual functions and their leases.
#[derive(Debug, Clone)]
pub struct DeviceView {
    /// The card.
    pub pf: PhysicalFunction,
    /// Leases of `pf.vfs`, in their order.
    pub leases: Vec<Option<Arc<VfLease>>>,
}

/// What was released.
#[derive(Debug, Clone)]
pub enum Released {
    /// A virtual function of a network card.
    Vf(VfLease),
    /// A part of an NVMe controller.
    Nvme(NvmeLease),
}

/// Gives VMs virtual functions, NVMe devices and a node of the host, and takes them back.
pub(super) struct HostDevices {
    store: Store,
    policy: PolicyHost,
    plugins: Arc<Plugins>,
    /// Rank: above the store's. Held from the check that nobody has an address to the record of who gets it, and while a
    /// function that nobody has is taken from vfio-pci.
    addressing: Mutex<()>,
    nvme: Arc<NvmeDevices>,
    placer: Placer,
}

impl HostDevices {
    pub(super) fn new(store: Store, policy: PolicyHost, plugins: Arc<Plugins>) -> Self {
        let nvme = Arc::new(NvmeDevices::new(store.clone(), policy.clone(), Arc::clone(&plugins)));
        let placer = Placer::new(store.clone(), policy.clone(), Arc::clone(&plugins), Nodes::default());
        Self { store, policy, plugins, addressing: Mutex::default(), nvme, placer }
    }

    fn nvme(&self) -> &Arc<NvmeDevices> {
        &self.nvme
    }

    /// After a restart, before VMs are taken over: cleans what a VM held that has no process, or not this device, any
    /// more. What was coming to a VM that runs, or leaving it, its task finishes or undoes.
    pub(super) async fn reconcile(self: &Arc<Self>, vms: &[VmRecord], provisions: &[NvmeProvision]) {
        self.nvme.reconcile(vms, provisions).await;
        let is_held = |holder: &Holder| {
            let holds = |vm: &VmRecord| vm.state.has_process() && vm.attachment(&holder.nic).is_some();
            vms.iter().any(|vm| vm.uid == holder.vm && holds(vm))
        };
        let mut cleaning = JoinSet::new();
        for lease in self.store.snapshot().leases.values() {
            match &lease.state {
                LeaseState::Free => {}
                LeaseState::Quarantined { reason, .. } => {
                    tracing::warn!(vf = %lease.address, reason, "in quarantine; `ostler host release` tries again");
                }
                LeaseState::Claimed(holder)
                | LeaseState::Prepared(holder)
                | LeaseState::Attached(holder)
                | LeaseState::Releasing(holder) => {
                    if !is_held(holder) {
                        let (devices, lease) = (Arc::clone(self), VfLease::clone(lease));
                        cleaning.spawn(async move { drop(devices.clean(lease, &Underway::unseen()).await) });
                    }
                }
            }
        }
        while cleaning.join_next().await.is_some() {}
    }

    /// What `uid` holds for its device `id`; what is in quarantine stays there.
    fn held_for(&self, uid: VmId, id: &DeviceId) -> Vec<VfLease> {
        let is_for_it = |lease: &VfLease| lease.state.holder().is_some_and(|holder| holder.nic == *id);
        self.held_by(uid).into_iter().filter(is_for_it).collect()
    }

    /// Everything that `uid` holds; what is in quarantine stays there.
    fn held_by(&self, uid: VmId) -> Vec<VfLease> {
        let snapshot = self.store.snapshot();
        let is_held = |lease: &&Arc<VfLease>| {
            !matches!(lease.state, LeaseState::Quarantined { .. })
                && lease.state.holder().is_some_and(|holder| holder.vm == uid)
        };
        snapshot.leases.values().filter(is_held).map(|lease| VfLease::clone(lease)).collect()
    }

    /// Cleans a device and frees it; quarantines it if that fails. The error is what went wrong. `operation` is told what is
    /// done.
    async fn clean(&self, lease: VfLease, operation: &Underway) -> Result<VfLease, DeviceError> {
        let address = lease.address;
        let unclean = |reason: String| DeviceError::Unclean { address, reason };
        let Some(holder) = lease.state.holder() else { return Err(DeviceError::NotHeld(address)) };
        let (key, original) = (lease.key, holder.original);
        let releasing = self.advance(&lease, LeaseEvent::Release).await.map_err(unclean)?;
        crash::reach(Point::VfReleasing);
        let operation = operation.clone();
        match on_host(move || clean_on_host(key, address, &original, &operation)).await {
            Ok(()) => {
                tracing::info!(vf = %address, "virtual function is clean and free");
                let free = self.advance(&releasing, LeaseEvent::Cleaned).await.map_err(unclean)?;
                crash::reach(Point::VfFree);
                Ok(free)
            }
            Err(reason) => {
                tracing::error!(vf = %address, reason, "virtual function goes to quarantine");
                self.advance(&releasing, LeaseEvent::Unclean(reason.clone())).await.map_err(unclean)?;
                Err(unclean(reason))
            }
        }
    }

    /// Writes the lease's next state.
    async fn advance(&self, lease: &VfLease, event: LeaseEvent) -> Result<VfLease, String> {
        let next = lease.after(event).map_err(|refused| refused.to_string())?;
        self.store.put_lease(next.clone()).await.map_err(|error| error.to_string())?;
        Ok(next)
    }
}

/// Reads the host's devices.
async fn read() -> Result<Devices, String> {
    on_host(|| Devices::read().map_err(|error| error.to_string())).await
}

/// Runs blocking work on the host within [`HOST_TIMEOUT`].
async fn on_host<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    on_host_within(HOST_TIMEOUT, work).await
}

/// Runs blocking work on the host; what is stuck in the kernel after `patience` goes on by itself.
async fn on_host_within<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    match tokio::time::timeout(patience, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => Err(format!("the work on the host ended early: {error}")),
        Err(_elapsed) => Err(format!("the host did not finish within {} s", patience.as_secs())),
    }
}

fn clean_on_host(key: VfKey, address: Bdf, original: &VfConfig, operation: &Underway) -> Result<(), String> {
    let devices = Devices::read().map_err(|error| error.to_string())?;
    if let Some(pf) = devices.pfs.iter().find(|pf| pf.address == key.pf && pf.link.is_none() && !pf.vfs.is_empty()) {
        return Err(format!("network card {} has no driver that shows its settings", pf.address));
    }
    let found = devices.vfs().find(|(pf, vf)| key_of(pf, vf) == Some(key));
    let Some((pf, vf)) = found else {
        // With the function went its settings and whatever a guest left in it.
        tracing::warn!(vf = %address, "virtual function is not there any more");
        return Ok(());
    };
    let place = place_of(pf, vf)?;
    match hostdev::release(&place, original, operation) {
        // It may have gone meanwhile: the host took it back from its VM to do away with it.
        Err(error) if Devices::read().is_ok_and(|now| now.vf(address).is_none()) => {
            tracing::warn!(vf = %address, %error, "virtual function went while it was cleaned");
            Ok(())
        }
        released => released.map_err(|error| error.to_string()),
    }
}

fn place_of(pf: &PhysicalFunction, vf: &VirtualFunction) -> Result<hostdev::VfPlace, String> {
    let pf_interface = pf.interface.clone().ok_or_else(|| format!("network card {} has no driver", pf.address))?;
    Ok(hostdev::VfPlace { pf_interface, index: vf.index, address: vf.address })
}

impl Node {
    /// Network cards with virtual functions and who has them. For operators.
    pub async fn list_devices(&self, principal: &Principal) -> Result<Vec<DeviceView>, ServiceError> {
        require_operator(principal)?;
        let devices = read().await.map_err(DeviceError::Unreadable)?;
        let leases = &self.store.snapshot().leases;
        let view = |pf: PhysicalFunction| {
            let of_vfs = pf.vfs.iter().map(|vf| leases.get(&key_of(&pf, vf)?).cloned());
            DeviceView { leases: of_vfs.collect(), pf }
        };
        Ok(devices.pfs.into_iter().map(view).collect())
    }

    /// Cleans a device that no VM has any more, and frees it: a virtual function of a network card, a secondary NVMe
    /// controller or a whole one, or (`nsid` is not 0) a namespace. For operators.
    pub async fn release_device(
        &self,
        principal: &Principal,
        address: Bdf,
        nsid: u32,
        terms: &Terms<Released>,
    ) -> Result<Released, ServiceError> {
        require_operator(principal)?;
        match self.release_nvme(address, nsid, terms).await? {
            Some(lease) => Ok(Released::Nvme(lease)),
            None => self.release_vf(principal, address, terms).await.map(Released::Vf),
        }
    }

    /// The lease of a device whose release is under way; the caller has been found to be an operator by that.
    pub fn released_so_far(&self, address: Bdf, nsid: u32) -> Result<Released, ServiceError> {
        let snapshot = self.store.snapshot();
        let vf = snapshot.leases.values().find(|lease| lease.address == address && nsid == 0);
        let nvme = snapshot.nvme_leases.values().find(|lease| nvme::is_named(lease, address, nsid));
        let vf = vf.map(|lease| Released::Vf(VfLease::clone(lease)));
        let lease = nvme.map(|lease| Released::Nvme(NvmeLease::clone(lease))).or(vf);
        lease.ok_or_else(|| DeviceError::NoSuchDevice(address).into())
    }

    async fn release_vf(
        &self,
        principal: &Principal,
        address: Bdf,
        terms: &Terms<Released>,
    ) -> Result<VfLease, ServiceError> {
        let snapshot = self.store.snapshot();
        if let Some(Before::Lease { address, generation }) = terms.left()
            && let Some(lease) = snapshot.leases.values().find(|lease| lease.address == *address)
            && (lease.state == LeaseState::Free && lease.generation != *generation)
        {
            // An attempt that was cut off had done it, or the daemon's start did.
            return Ok(VfLease::clone(lease));
        }
        let held = snapshot.leases.values().find(|lease| lease.address == address && lease.state != LeaseState::Free);
        let Some((lease, holder)) = held.and_then(|lease| Some((lease, lease.state.holder()?))) else {
            let devices = read().await.map_err(DeviceError::Unreadable)?;
            let is_there = devices.vf(address).is_some();
            return Err(
                if is_there { DeviceError::NotHeld(address) } else { DeviceError::NoSuchDevice(address) }.into()
            );
        };
        let is_quarantined = matches!(lease.state, LeaseState::Quarantined { .. });
        if let Some(vm) = snapshot.vms.get(&holder.vm).filter(|vm| vm.state.has_process() && !is_quarantined) {
            let vm = format!("{}/{}", vm.tenant, vm.name);
            return Err(DeviceError::InUse { address, state: lease.state.name(), vm }.into());
        }
        let what = format!("the lease of virtual function {address}");
        terms.require_etag(&what, || Some(lease_etag(lease)))?;
        if terms.validate_only {
            return Ok(VfLease::clone(lease));
        }
        let operation = self.begin(terms, None, Before::Lease { address, generation: lease.generation }).await?;
        operation.tell(Step::new("cleaning the virtual function"));
        tracing::info!(vf = %address, %principal, "release asked for");
        Ok(self.devices.clean(VfLease::clone(lease), &operation).await?)
    }
}

/// Changes with every change of the lease's state.
pub fn lease_etag<K: Clone, H: HeldFor>(lease: &Lease<K, H>) -> String {
    format!("\"{}\"", lease.generation)
}
