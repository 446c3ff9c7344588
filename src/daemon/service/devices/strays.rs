//! Devices that a comparison of store and host has found to be nobody's: cleaned as at a start of the daemon. Each is
//! only what it was when it was found, or left alone.

use super::{HostDevices, choose, on_host, read};
use crate::daemon::hostdev;
use crate::daemon::inventory::{Devices, NvmeControllers};
use crate::daemon::operation::Underway;
use crate::daemon::record::{LeaseState, NvmeKey, NvmeLease, NvmePart, VfKey, VfLease};
use crate::model::Bdf;

/// Somebody was faster.
const CHANGED: &str = "it has changed meanwhile";

impl HostDevices {
    /// Network cards as the host shows them now.
    pub(in crate::daemon::service) async fn shown(&self) -> Result<Devices, String> {
        read().await
    }

    /// NVMe controllers as they show themselves now; not while one is being provisioned.
    pub(in crate::daemon::service) async fn shown_nvme(&self) -> Result<NvmeControllers, String> {
        self.nvme().shown().await
    }

    /// What `ostler host release` does, for a lease that is still of this generation.
    pub(in crate::daemon::service) async fn clean_stray(&self, key: VfKey, generation: u64) -> Result<(), String> {
        let lease = self.store.snapshot().leases.get(&key).cloned();
        let Some(lease) = lease.filter(|lease| lease.generation == generation) else { return Err(CHANGED.to_owned()) };
        self.clean(VfLease::clone(&lease), &Underway::unseen()).await.map(drop).map_err(|error| error.to_string())
    }

    /// The same of NVMe. Returns for a namespace or a whole controller once it is recorded: to erase it takes longer.
    pub(in crate::daemon::service) async fn clean_stray_nvme(
        &self,
        key: &NvmeKey,
        generation: u64,
    ) -> Result<(), String> {
        let lease = self.store.snapshot().nvme_leases.get(key).cloned();
        let Some(lease) = lease.filter(|lease| lease.generation == generation) else { return Err(CHANGED.to_owned()) };
        match key.part {
            NvmePart::Secondary(_) => {
                let cleaned = self.nvme().clean(NvmeLease::clone(&lease), &Underway::unseen()).await;
                cleaned.map(drop).map_err(|error| error.to_string())
            }
            NvmePart::Namespace(_) | NvmePart::Whole => {
                self.nvme().clean_later(NvmeLease::clone(&lease)).await;
                Ok(())
            }
        }
    }

    /// Takes a function from vfio-pci that was lent before, is free by its lease, and that no program has open.
    pub(in crate::daemon::service) async fn unbind_stray(&self, key: VfKey, address: Bdf) -> Result<(), String> {
        // Nobody claims it meanwhile.
        let _addressing = self.addressing.lock().await;
        let lease = self.store.snapshot().leases.get(&key).cloned();
        if lease.is_none_or(|lease| lease.state != LeaseState::Free) {
            return Err(CHANGED.to_owned());
        }
        let devices = read().await?;
        if devices.vf(address).is_none_or(|(pf, vf)| choose::key_of(pf, vf) != Some(key)) {
            return Err(CHANGED.to_owned());
        }
        on_host(move || hostdev::unbind_unused(address).map_err(|error| error.to_string())).await
    }
}
