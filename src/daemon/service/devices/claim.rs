//! A VM's virtual functions from the wish to the bound device. Implements `supervisor::Devices` for [`HostDevices`].

use std::os::fd::OwnedFd;

use super::super::decisions::{overruled, record, told};
use super::choose::{self, Candidate, key_of};
use super::{HostDevices, hostdev, on_host, place_of, read};
use crate::daemon::crash::{self, Point};
use crate::daemon::inventory::Devices;
use crate::daemon::operation::{Step, Underway};
use crate::daemon::record::{Holder, LeaseEvent, NvmeDevice, VfKey, VfLease, VfNic, VmRecord, mac_of};
use crate::daemon::store::StoreError;
use crate::daemon::supervisor::{BoxFuture, DevicesError};
use crate::model::{
    Bdf, DeviceId, Enforcement, NicSpec, Placement, VfDecision, VfOutcome, VfSettings, VfWish, VmId, denier,
};
use crate::sys::rtnl::VfConfig;

/// How often policy is asked anew because others took everything that it chose.
const MAX_ROUNDS: usize = 3;

impl crate::daemon::supervisor::Devices for HostDevices {
    fn claim(&self, vm: VmRecord, operation: Underway) -> BoxFuture<'_, Result<Vec<VfNic>, DevicesError>> {
        Box::pin(async move {
            let mut given = Vec::new();
            let has_none = |nic: &&NicSpec| vm.vfs.iter().all(|vf| vf.id != nic.id);
            let lacking = vm.spec.nics().iter().filter(has_none);
            for (nic, wish) in lacking.filter_map(|nic| Some((nic, nic.vf_wish()?))) {
                given.push(self.claim_one(&vm, nic, wish, &operation).await?);
            }
            Ok(given)
        })
    }

    fn attach(&self, uid: VmId, id: DeviceId) -> BoxFuture<'_, Result<(), DevicesError>> {
        Box::pin(async move {
            for lease in self.held_for(uid, &id) {
                self.advance(&lease, LeaseEvent::Attached).await.map_err(DevicesError)?;
                crash::reach(Point::VfAttached);
            }
            self.nvme().attach(uid, &id).await
        })
    }

    fn give_back(&self, uid: VmId, id: DeviceId, operation: Underway) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            for lease in self.held_for(uid, &id) {
                // What went wrong is in the log and in the lease.
                let _ = self.clean(lease, &operation).await;
            }
            self.nvme().give_back(uid, &id, &operation).await;
        })
    }

    fn claim_nvmes(&self, vm: VmRecord, operation: Underway) -> BoxFuture<'_, Result<Vec<NvmeDevice>, DevicesError>> {
        Box::pin(async move { self.nvme().claim(&vm, &operation).await })
    }

    fn place(&self, vm: VmRecord, operation: Underway) -> BoxFuture<'_, Result<Option<Placement>, DevicesError>> {
        Box::pin(async move { self.placer.place(&vm, &operation).await })
    }

    fn open_nvme(&self, function: Bdf) -> Result<[OwnedFd; 2], DevicesError> {
        let opened = hostdev::open(function).map_err(|error| DevicesError(error.to_string()))?;
        Ok([opened.container, opened.device])
    }

    fn forget(&self, uid: VmId) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.nvme().forget(uid).await })
    }

    fn open(&self, vf: &VfNic) -> Result<[OwnedFd; 2], DevicesError> {
        let opened = hostdev::open(vf.address).map_err(|error| DevicesError(error.to_string()))?;
        Ok([opened.container, opened.device])
    }

    fn release(&self, uid: VmId, operation: Underway) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            for lease in self.held_by(uid) {
                // What went wrong is in the log and in the lease.
                let _ = self.clean(lease, &operation).await;
            }
            self.nvme().release(uid, &operation).await;
            self.placer.release(uid);
        })
    }
}

impl HostDevices {
    async fn claim_one(
        &self,
        vm: &VmRecord,
        nic: &NicSpec,
        wish: VfWish,
        operation: &Underway,
    ) -> Result<VfNic, DevicesError> {
        for _ in 0..MAX_ROUNDS {
            operation.tell(Step::new("looking for virtual functions"));
            let devices = read().await.map_err(DevicesError)?;
            let offer = choose::offer(&devices, &self.store.snapshot().leases, vm, &nic.id, wish)?;
            operation.tell(Step::new("asking policy for a virtual function"));
            let decided = self.policy.select_vf(self.plugins.chain(&vm.tenant, &vm.name), offer.request).await;
            let (id, decision) =
                record(&self.store, &self.plugins, decided).await.map_err(|error| DevicesError(error.to_string()))?;
            tracing::info!(tenant = %vm.tenant, vm = %vm.name, nic = %nic.id, ?decision.outcome, took = ?decision.took, "VF decision");
            let (order, settings) = match decision {
                VfDecision { outcome: VfOutcome::Select { order, settings }, .. } => (order, settings),
                VfDecision { outcome: VfOutcome::Deny { code, message, plugin }, .. } => {
                    let who = denier(plugin.as_deref());
                    return Err(DevicesError(format!("{who} gives NIC {} no VF: {message} ({code})", nic.id)));
                }
            };
            let chosen = order.into_iter().filter_map(|index| offer.candidates.get(index));
            let given = self.give(vm, nic, chosen, &settings, &devices, operation).await;
            let enforcement = match &given {
                Ok(Some(vf)) => Enforcement::Enforced(vf.address.to_string()),
                Ok(None) => overruled("core.taken", "others took every VF of the order meanwhile"),
                Err(error) => overruled("core.unfit", &error.to_string()),
            };
            told(&self.store, id, enforcement).await;
            if let Some(vf) = given? {
                return Ok(vf);
            }
        }
        Err(DevicesError(format!("other VMs took every VF that policy chose for NIC {}; try again", nic.id)))
    }

    /// Takes the first of `chosen` that is still to be had and makes it ready; `None` if none is.
    async fn give<'a>(
        &self,
        vm: &VmRecord,
        nic: &NicSpec,
        chosen: impl Iterator<Item = &'a Candidate>,
        settings: &VfSettings,
        devices: &Devices,
        operation: &Underway,
    ) -> Result<Option<VfNic>, DevicesError> {
        let mac = settings.mac.unwrap_or_else(|| mac_of(vm.uid, &nic.id));
        for candidate in chosen {
            let (uid, tenant) = (vm.uid, vm.tenant.clone());
            let holder = Holder { vm: uid, tenant, nic: nic.id.clone(), mac, original: candidate.original };
            if let Some(lease) = self.take(candidate, holder, devices).await? {
                self.make_ready(&lease, choose::wanted(settings, mac), operation.clone()).await?;
                let pf_interface = candidate.pf_interface.clone();
                return Ok(Some(VfNic { id: nic.id.clone(), address: lease.address, pf_interface, mac }));
            }
        }
        Ok(None)
    }

    /// Records the claim; `None` if somebody was faster.
    async fn take(
        &self,
        candidate: &Candidate,
        holder: Holder,
        devices: &Devices,
    ) -> Result<Option<VfLease>, DevicesError> {
        let _addressing = self.addressing.lock().await;
        let mac = holder.mac;
        if choose::is_mac_taken(mac, candidate.lease.key, devices, &self.store.snapshot().leases) {
            return Err(DevicesError(format!("another network interface of this node has the address {mac} already")));
        }
        let claim = candidate.lease.after(LeaseEvent::Claim(holder));
        let claim = claim.map_err(|refused| DevicesError(refused.to_string()))?;
        match self.store.put_lease(claim.clone()).await {
            Ok(()) => {
                crash::reach(Point::VfClaimed);
                Ok(Some(claim))
            }
            Err(StoreError::Stale(_)) => Ok(None),
            Err(error) => Err(DevicesError(error.to_string())),
        }
    }

    /// Looks at the claimed function once more, then sets, binds and resets it.
    async fn make_ready(&self, lease: &VfLease, wanted: VfConfig, operation: Underway) -> Result<(), DevicesError> {
        let key = lease.key;
        on_host(move || prepare_on_host(key, &wanted, &operation)).await.map_err(DevicesError)?;
        self.advance(lease, LeaseEvent::Prepared).await.map_err(DevicesError)?;
        crash::reach(Point::VfPrepared);
        Ok(())
    }
}

fn prepare_on_host(key: VfKey, wanted: &VfConfig, operation: &Underway) -> Result<(), String> {
    let devices = Devices::read().map_err(|error| error.to_string())?;
    let found = devices.vfs().find(|(pf, vf)| key_of(pf, vf) == Some(key));
    let Some((pf, vf)) = found else { return Err("the chosen VF is not there any more; try again".into()) };
    if let Some(reason) = choose::unfit(pf, vf) {
        return Err(format!("VF {} cannot be lent any more: {reason}", vf.address));
    }
    hostdev::prepare(&place_of(pf, vf)?, wanted, operation).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
