//! NVMe of the host for VMs: who gets which namespace, behind which secondary controller, and giving them back clean.
//! Key type: [`NvmeDevices`].
//!
//! ```text
//!   first start:  offer ─▶ policy ranks ─▶ namespace CLAIMED ─▶ erased ─▶ PREPARED
//!   each start:   secondary CLAIMED ─▶ connected ─▶ PREPARED ─▶ both ATTACHED ─▶ vmm
//!   run's end:    secondary RELEASING ─▶ disconnected ─▶ FREE;  the namespace stays ATTACHED to its VM
//!   destroyed:    namespace RELEASING ─▶ erased, in the background ─▶ FREE, or QUARANTINED with the reason
//! ```
//! A whole controller is a namespace that needs no secondary: held until its VM is destroyed, and in vfio-pci until then,
//! so that no driver of the host looks at what a guest left.

mod choose;
mod claim;
mod host;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{RwLock, oneshot};
use tokio::task::JoinSet;

use super::super::plugins::Plugins;
use super::super::{Node, Principal, ServiceError};
use super::{DeviceError, HOST_TIMEOUT, on_host_within, require_operator};
use crate::daemon::crash::{self, Point};
use crate::daemon::hostdev;
use crate::daemon::inventory::{NvmeController, NvmeControllers, VFIO_DRIVER};
use crate::daemon::operation::{Step, Underway};
use crate::daemon::policy::PolicyHost;
use crate::daemon::record::{
    LeaseEvent, LeaseState, NvmeHolder, NvmeKey, NvmeLease, NvmePart, NvmeProvision, VmRecord,
};
use crate::daemon::store::Store;
use crate::daemon::supervisor::DevicesError;
use crate::model::{Bdf, DeviceId, VmId};
pub use host::NvmeView;
pub(super) use host::is_named;

/// How slowly a namespace may be erased and read back before its controller counts as stuck.
const ERASE_BYTES_PER_SECOND: u64 = 16 << 20;

/// Gives VMs NVMe devices and takes them back.
pub(super) struct NvmeDevices {
    store: Store,
    policy: PolicyHost,
    plugins: Arc<Plugins>,
    /// Rank: above the store's. Read by claims, written while a controller is provisioned, which resets it.
    provisioning: RwLock<()>,
}

impl NvmeDevices {
    pub(super) fn new(store: Store, policy: PolicyHost, plugins: Arc<Plugins>) -> Self {
        Self { store, policy, plugins, provisioning: RwLock::default() }
    }

    /// The host's controllers, none of which is being provisioned.
    pub(super) async fn shown(&self) -> Result<NvmeControllers, String> {
        let _still = self.provisioning.read().await;
        read().await
    }

    /// After a restart, before VMs are taken over: cleans what a VM held that has no process, or not this device, or does
    /// not exist, any more. Secondary controllers are waited for; erasing goes on in the background.
    pub(super) async fn reconcile(self: &Arc<Self>, vms: &[VmRecord], provisions: &[NvmeProvision]) {
        for provision in provisions {
            let controller = provision.controller;
            match self.provision(provision).await {
                Ok(()) => tracing::info!(%controller, "secondary controllers are made, which was cut off before"),
                Err(error) => {
                    tracing::error!(%controller, error, "not made: `ostler host nvme provision` tries again");
                }
            }
        }
        let of_holder =
            |holder: &NvmeHolder| vms.iter().find(|vm| vm.uid == holder.vm && vm.attachment(&holder.device).is_some());
        let is_running = |holder: &NvmeHolder| of_holder(holder).is_some_and(|vm| vm.state.has_process());
        let mut cleaning = JoinSet::new();
        for lease in self.store.snapshot().nvme_leases.values() {
            let is_over = match &lease.state {
                LeaseState::Free => false,
                LeaseState::Quarantined { reason, .. } => {
                    tracing::warn!(nvme = %lease.key, reason, "in quarantine; `ostler host release` tries again");
                    false
                }
                LeaseState::Releasing(_) => true,
                LeaseState::Claimed(holder) | LeaseState::Prepared(holder) => !is_running(holder),
                LeaseState::Attached(holder) => match lease.key.part {
                    NvmePart::Secondary(_) => !is_running(holder),
                    NvmePart::Namespace(_) | NvmePart::Whole => of_holder(holder).is_none(),
                },
            };
            if is_over {
                let (devices, lease) = (Arc::clone(self), NvmeLease::clone(lease));
                match lease.key.part {
                    NvmePart::Secondary(_) => {
                        drop(cleaning.spawn(async move { drop(devices.clean(lease, &Underway::unseen()).await) }))
                    }
                    NvmePart::Namespace(_) | NvmePart::Whole => self.clean_later(lease).await,
                }
            }
        }
        while cleaning.join_next().await.is_some() {}
    }

    /// Records that what `uid` has for its device `id` is about to go to its process.
    pub(super) async fn attach(&self, uid: VmId, id: &DeviceId) -> Result<(), DevicesError> {
        for lease in self.held_for(uid, id) {
            self.advance(&lease, LeaseEvent::Attached).await.map_err(DevicesError)?;
            crash::reach(Point::NvmeAttached);
        }
        Ok(())
    }

    /// Takes back all that `uid` has for its device `id`: first the controller, then, in the background, the data.
    pub(super) async fn give_back(self: &Arc<Self>, uid: VmId, id: &DeviceId, operation: &Underway) {
        let (secondaries, data): (Vec<_>, Vec<_>) =
            self.held_for(uid, id).into_iter().partition(|lease| matches!(lease.key.part, NvmePart::Secondary(_)));
        for lease in secondaries {
            // What went wrong is in the log and in the lease.
            let _ = self.clean(lease, operation).await;
        }
        for lease in data {
            self.clean_later(lease).await;
        }
    }

    /// Takes back what `uid` has for a run, and what it has not got to see.
    pub(super) async fn release(self: &Arc<Self>, uid: VmId, operation: &Underway) {
        let (secondaries, data): (Vec<_>, Vec<_>) =
            self.held_by(uid).into_iter().partition(|lease| matches!(lease.key.part, NvmePart::Secondary(_)));
        for lease in secondaries {
            // What went wrong is in the log and in the lease.
            let _ = self.clean(lease, operation).await;
        }
        for lease in data {
            if !matches!(lease.state, LeaseState::Attached(_)) {
                self.clean_later(lease).await;
            } else if lease.key.part == NvmePart::Whole {
                let address = lease.key.controller;
                let work = move || hostdev::nvme::reset_controller(address).map_err(|error| error.to_string());
                if let Err(error) = on_host_within(HOST_TIMEOUT, work).await {
                    tracing::error!(controller = %address, error, "not reset after a run: the next start tries again");
                }
            }
        }
    }

    /// Takes back everything that `uid` has: it is about to be forgotten.
    pub(super) async fn forget(self: &Arc<Self>, uid: VmId) {
        for lease in self.held_by(uid) {
            self.clean_later(lease).await;
        }
    }

    /// What `uid` holds for its device `id`; what is in quarantine, or being cleaned, stays there.
    fn held_for(&self, uid: VmId, id: &DeviceId) -> Vec<NvmeLease> {
        let is_for_it = |lease: &NvmeLease| lease.state.holder().is_some_and(|holder| holder.device == *id);
        self.held_by(uid).into_iter().filter(is_for_it).collect()
    }

    /// Everything that `uid` holds; what is in quarantine, or being cleaned, stays there.
    fn held_by(&self, uid: VmId) -> Vec<NvmeLease> {
        let snapshot = self.store.snapshot();
        let is_held = |lease: &&Arc<NvmeLease>| {
            matches!(lease.state, LeaseState::Claimed(_) | LeaseState::Prepared(_) | LeaseState::Attached(_))
                && lease.state.holder().is_some_and(|holder| holder.vm == uid)
        };
        snapshot.nvme_leases.values().filter(is_held).map(|lease| NvmeLease::clone(lease)).collect()
    }

    /// Records that it is to be cleaned; then cleans it while others go on. A daemon that is killed meanwhile finds it
    /// RELEASING.
    pub(super) async fn clean_later(self: &Arc<Self>, lease: NvmeLease) {
        match self.advance(&lease, LeaseEvent::Release).await {
            Ok(releasing) => {
                crash::reach(Point::DataReleasing);
                let devices = Arc::clone(self);
                tokio::spawn(async move { drop(devices.finish(releasing, &Underway::unseen()).await) });
            }
            Err(error) => tracing::error!(nvme = %lease.key, error, "not released: the next start of the daemon will"),
        }
    }

    /// Cleans it and frees it; quarantines it if that fails, or is called off. The error is what went wrong.
    pub(super) async fn clean(&self, lease: NvmeLease, operation: &Underway) -> Result<NvmeLease, DeviceError> {
        let address = lease.address;
        let releasing = self.advance(&lease, LeaseEvent::Release).await;
        let releasing = releasing.map_err(|reason| DeviceError::Unclean { address, reason })?;
        crash::reach(Point::SecondaryReleasing);
        operation.tell(Step::new("cleaning the device"));
        self.finish(releasing, operation).await
    }

    async fn finish(&self, releasing: NvmeLease, operation: &Underway) -> Result<NvmeLease, DeviceError> {
        let address = releasing.address;
        let unclean = |reason: String| DeviceError::Unclean { address, reason };
        let key = releasing.key.clone();
        let cleaned = match self.patience(&key).await {
            Ok(patience) => {
                let own = self.namespaces_of(&releasing);
                let (operation, lease) = (operation.clone(), releasing.clone());
                on_own_thread(patience, move || host::clean(&lease, &own, &operation)).await
            }
            Err(error) => Err(error),
        };
        match cleaned {
            Ok(unique_id) => {
                tracing::info!(nvme = %releasing.key, "clean and free");
                let cleaned = NvmeLease { unique_id, ..releasing };
                let free = self.advance(&cleaned, LeaseEvent::Cleaned).await.map_err(unclean)?;
                crash::reach(match free.key.part {
                    NvmePart::Secondary(_) => Point::SecondaryFree,
                    NvmePart::Namespace(_) | NvmePart::Whole => Point::DataFree,
                });
                Ok(free)
            }
            Err(reason) => {
                tracing::error!(nvme = %releasing.key, reason, "goes to quarantine");
                self.advance(&releasing, LeaseEvent::Unclean(reason.clone())).await.map_err(unclean)?;
                Err(if operation.is_called_off() { DeviceError::CalledOff(reason) } else { unclean(reason) })
            }
        }
    }

    /// Ids of the namespaces of this controller that the holder of `lease` has.
    fn namespaces_of(&self, lease: &NvmeLease) -> Vec<u32> {
        let Some(vm) = lease.state.holder().map(|holder| holder.vm) else { return Vec::new() };
        let snapshot = self.store.snapshot();
        let of_it = snapshot.nvme_leases.values().filter(|other| {
            other.key.controller == lease.key.controller && other.state.holder().is_some_and(|holder| holder.vm == vm)
        });
        let nsid = |other: &Arc<NvmeLease>| match other.key.part {
            NvmePart::Namespace(nsid) => Some(nsid),
            NvmePart::Whole | NvmePart::Secondary(_) => None,
        };
        of_it.filter_map(nsid).collect()
    }

    /// How long it may take to clean: what is erased is also read.
    async fn patience(&self, key: &NvmeKey) -> Result<Duration, String> {
        let found = read().await?;
        let facts = found.get(key.controller).and_then(|controller| controller.facts.as_ref().ok());
        let sizes = facts.into_iter().flat_map(|facts| &facts.namespaces);
        let bytes: u64 = match key.part {
            NvmePart::Secondary(_) => 0,
            NvmePart::Namespace(nsid) => sizes.filter(|one| one.nsid == nsid).map(|one| one.size_bytes).sum(),
            // It cannot be asked while vfio-pci has it.
            NvmePart::Whole => return Ok(Duration::from_secs(24 * 3600)),
        };
        Ok(HOST_TIMEOUT + Duration::from_secs(bytes / ERASE_BYTES_PER_SECOND))
    }

    /// Writes the lease's next state.
    async fn advance(&self, lease: &NvmeLease, event: LeaseEvent<NvmeHolder>) -> Result<NvmeLease, String> {
        let next = lease.after(event).map_err(|refused| refused.to_string())?;
        self.store.put_nvme_lease(next.clone()).await.map_err(|error| error.to_string())?;
        Ok(next)
    }
}

/// Runs work that may take hours: on a thread of its own, which a daemon that ends does not wait for.
async fn on_own_thread<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let (done, answer) = oneshot::channel();
    let thread = std::thread::Builder::new().name("nvme-clean".into());
    // Nobody waits for the answer any more: fine.
    let started = thread.spawn(move || drop(done.send(work())));
    started.map_err(|error| format!("cannot start a thread: {error}"))?;
    match tokio::time::timeout(patience, answer).await {
        Ok(Ok(result)) => result,
        Ok(Err(_panicked)) => Err("the work on the host ended early".to_owned()),
        Err(_elapsed) => Err(format!("the host did not finish within {} s", patience.as_secs())),
    }
}

/// Reads the host's controllers.
async fn read() -> Result<NvmeControllers, String> {
    on_host_within(HOST_TIMEOUT, || NvmeControllers::read().map_err(|error| error.to_string())).await
}

/// The controller that a key names, if it is still that one and answers.
fn controller_of<'a>(found: &'a NvmeControllers, key: &NvmeKey) -> Result<&'a NvmeController, String> {
    let controller =
        found.get(key.controller).ok_or_else(|| format!("NVMe controller {} is not there", key.controller))?;
    match &controller.facts {
        Ok(facts) if facts.identity.serial == key.serial => Ok(controller),
        Ok(facts) => Err(format!(
            "NVMe controller {} is another one: serial {} instead of {}",
            key.controller, facts.identity.serial, key.serial
        )),
        Err(problem) => Err(format!("NVMe controller {} does not answer: {problem}", key.controller)),
    }
}
