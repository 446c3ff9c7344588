//! A VM's NVMe devices from the wish to the bound function. Key function: [`NvmeDevices::claim`].

use super::super::super::decisions::{overruled, record, told};
use super::choose::{self, key_of, lease_of};
use super::host::is_the_one;
use super::{DevicesError, HOST_TIMEOUT, NvmeDevices, controller_of, hostdev, on_host_within, on_own_thread, read};
use crate::daemon::crash::{self, Point};
use crate::daemon::hostdev::nvme::NvmePlace;
use crate::daemon::operation::{Step, Underway};
use crate::daemon::record::{LeaseEvent, LeaseState, NvmeDevice, NvmeHolder, NvmeLease, NvmePart, VmRecord};
use crate::daemon::store::StoreError;
use crate::model::{Bdf, Enforcement, NvmeDecision, NvmeOutcome, NvmeSpec, denier};

/// How often policy is asked anew because others took everything that it chose; and how often another secondary
/// controller is looked for.
const MAX_ROUNDS: usize = 3;

impl NvmeDevices {
    /// Gives every NVMe device of `vm` its namespace, unless it has one, and a controller for this run. On an error some
    /// may be `vm`'s already.
    pub(in super::super) async fn claim(
        &self,
        vm: &VmRecord,
        operation: &Underway,
    ) -> Result<Vec<NvmeDevice>, DevicesError> {
        let _provisioning = self.provisioning.read().await;
        let mut given = Vec::new();
        let has_function =
            |nvme: &&NvmeSpec| vm.nvmes.iter().any(|device| device.id == nvme.id && device.function.is_some());
        for nvme in vm.spec.nvmes().iter().filter(|nvme| !has_function(nvme)) {
            let data = match self.own(vm, nvme)? {
                Some(lease) => lease,
                None => self.choose(vm, nvme, operation).await?,
            };
            let data = self.make_clean(data, operation).await?;
            given.push(match data.key.part {
                NvmePart::Namespace(nsid) => self.connect(vm, nvme, (&data, nsid), operation).await?,
                NvmePart::Whole => self.lend(vm, nvme, &data, operation).await?,
                NvmePart::Secondary(_) => return Err(DevicesError("a secondary controller holds no data".into())),
            });
        }
        Ok(given)
    }

    /// Whether [`claim`](Self::claim) would get what it needs, without taking anything: what policy says is on no record.
    pub(in super::super) async fn rehearse(&self, vm: &VmRecord) -> Result<(), DevicesError> {
        for nvme in vm.spec.nvmes() {
            if self.own(vm, nvme)?.is_some() {
                continue;
            }
            let found = read().await.map_err(DevicesError)?;
            let offer = choose::offer(&found, &self.store.snapshot().nvme_leases, vm, nvme)?;
            let decided = self.policy.select_nvme(self.plugins.chain(&vm.tenant, &vm.name), offer.request).await;
            order_of(nvme, decided.dry_run())?;
        }
        Ok(())
    }

    /// What the device has of an earlier run.
    fn own(&self, vm: &VmRecord, nvme: &NvmeSpec) -> Result<Option<NvmeLease>, DevicesError> {
        let snapshot = self.store.snapshot();
        let mut of_device = snapshot.nvme_leases.values().filter(|lease| {
            let is_it = |holder: &NvmeHolder| holder.vm == vm.uid && holder.device == nvme.id;
            lease.state.holder().is_some_and(is_it) && !matches!(lease.key.part, NvmePart::Secondary(_))
        });
        let has = |lease: &NvmeLease| !matches!(lease.state, LeaseState::Releasing(_) | LeaseState::Quarantined { .. });
        match of_device.clone().find(|lease| has(lease)) {
            Some(lease) => Ok(Some(NvmeLease::clone(lease))),
            // An attempt that failed before the guest saw anything.
            None => match of_device.next() {
                Some(lease) if vm.nvmes.iter().any(|device| device.id == nvme.id) => {
                    let (part, state) = (lease.key.part, lease.state.name());
                    Err(DevicesError(format!("NVMe device {} has lost its {part}: it is {state}", nvme.id)))
                }
                _ => Ok(None),
            },
        }
    }

    /// Asks policy, and records the claim.
    async fn choose(&self, vm: &VmRecord, nvme: &NvmeSpec, operation: &Underway) -> Result<NvmeLease, DevicesError> {
        for _ in 0..MAX_ROUNDS {
            operation.tell(Step::new("looking for namespaces and controllers"));
            let found = read().await.map_err(DevicesError)?;
            let offer = choose::offer(&found, &self.store.snapshot().nvme_leases, vm, nvme)?;
            operation.tell(Step::new("asking policy for a namespace or a controller"));
            let decided = self.policy.select_nvme(self.plugins.chain(&vm.tenant, &vm.name), offer.request).await;
            let (id, decision) =
                record(&self.store, &self.plugins, decided).await.map_err(|error| DevicesError(error.to_string()))?;
            tracing::info!(tenant = %vm.tenant, vm = %vm.name, device = %nvme.id, ?decision.outcome, took = ?decision.took, "NVMe decision");
            let chosen = order_of(nvme, decision)?.into_iter().filter_map(|index| offer.candidates.get(index));
            let taken = self.take_first(chosen, vm, nvme).await;
            let enforcement = match &taken {
                Ok(Some(lease)) => Enforcement::Enforced(lease.key.to_string()),
                Ok(None) => overruled("core.taken", "others took everything of the order meanwhile"),
                Err(error) => overruled("core.unfit", &error.to_string()),
            };
            told(&self.store, id, enforcement).await;
            if let Some(lease) = taken? {
                return Ok(lease);
            }
        }
        Err(DevicesError(format!("other VMs took everything that policy chose for NVMe device {}; try again", nvme.id)))
    }

    /// Claims the first of `chosen` that is still to be had; `None` if none is.
    async fn take_first<'a>(
        &self,
        chosen: impl Iterator<Item = &'a NvmeLease>,
        vm: &VmRecord,
        nvme: &NvmeSpec,
    ) -> Result<Option<NvmeLease>, DevicesError> {
        for candidate in chosen {
            if let Some(lease) = self.take(candidate, vm, nvme).await? {
                return Ok(Some(lease));
            }
        }
        Ok(None)
    }

    /// Records the claim; `None` if somebody was faster.
    async fn take(&self, free: &NvmeLease, vm: &VmRecord, nvme: &NvmeSpec) -> Result<Option<NvmeLease>, DevicesError> {
        let holder = NvmeHolder { vm: vm.uid, tenant: vm.tenant.clone(), device: nvme.id.clone() };
        let claim = free.after(LeaseEvent::Claim(holder)).map_err(|refused| DevicesError(refused.to_string()))?;
        match self.store.put_nvme_lease(claim.clone()).await {
            Ok(()) => {
                crash::reach(match claim.key.part {
                    NvmePart::Secondary(_) => Point::SecondaryClaimed,
                    NvmePart::Namespace(_) | NvmePart::Whole => Point::DataClaimed,
                });
                Ok(Some(claim))
            }
            Err(StoreError::Stale(_)) => Ok(None),
            Err(error) => Err(DevicesError(error.to_string())),
        }
    }

    /// Erases what was only claimed, unless this very device came back clean from a VM before.
    async fn make_clean(&self, lease: NvmeLease, operation: &Underway) -> Result<NvmeLease, DevicesError> {
        if !matches!(lease.state, LeaseState::Claimed(_)) {
            return Ok(lease);
        }
        if lease.last_tenant.is_none() {
            let key = lease.key.clone();
            let patience = self.patience(&key).await.map_err(DevicesError)?;
            let operation = operation.clone();
            let erase = move || super::host::erase_before_use(&key, &operation);
            on_own_thread(patience, erase).await.map_err(DevicesError)?;
        }
        let prepared = self.advance(&lease, LeaseEvent::Prepared).await.map_err(DevicesError)?;
        crash::reach(Point::DataPrepared);
        Ok(prepared)
    }

    /// Puts a secondary controller between the namespace and the guest.
    async fn connect(
        &self,
        vm: &VmRecord,
        nvme: &NvmeSpec,
        (data, nsid): (&NvmeLease, u32),
        operation: &Underway,
    ) -> Result<NvmeDevice, DevicesError> {
        for _ in 0..MAX_ROUNDS {
            operation.tell(Step::new("choosing a controller for the namespace"));
            let found = read().await.map_err(DevicesError)?;
            let controller = controller_of(&found, &data.key).map_err(DevicesError)?;
            let (Ok(facts), Some(primary)) = (&controller.facts, &controller.device) else { continue };
            let leases = &self.store.snapshot().nvme_leases;
            let Some(namespace) = facts.namespaces.iter().find(|namespace| namespace.nsid == nsid) else {
                return Err(DevicesError(format!(
                    "namespace {nsid} of NVMe device {} does not exist any more",
                    nvme.id
                )));
            };
            if !is_the_one(namespace, data) {
                let text =
                    "is not the one that the VM was given: that was deleted, and its data with it; detach the device";
                return Err(DevicesError(format!("namespace {nsid} of NVMe device {} {text}", nvme.id)));
            }
            let free = choose::free_secondaries(controller, facts, leases);
            let Some((secondary, function)) = free.first() else {
                let text = "no secondary controller is free on the NVMe controller that has its namespace; try again";
                return Err(DevicesError(format!("NVMe device {}: {text}", nvme.id)));
            };
            let key = key_of(data.key.controller, facts, NvmePart::Secondary(secondary.id));
            let lease = lease_of(key, function.address, leases);
            let Some(lease) = self.take(&lease, vm, nvme).await? else { continue };
            let place = NvmePlace { primary: primary.clone(), controller: secondary.id, function: function.address };
            let operation = operation.clone();
            let work = move || hostdev::nvme::connect(&place, nsid, &operation).map_err(|error| error.to_string());
            on_host_within(HOST_TIMEOUT, work).await.map_err(DevicesError)?;
            self.advance(&lease, LeaseEvent::Prepared).await.map_err(DevicesError)?;
            crash::reach(Point::SecondaryPrepared);
            return Ok(device(nvme, data, Some(nsid), function.address, namespace.size_bytes));
        }
        Err(DevicesError(format!("other VMs took every secondary controller for NVMe device {}; try again", nvme.id)))
    }

    /// Gives a whole controller to vfio-pci.
    async fn lend(
        &self,
        vm: &VmRecord,
        nvme: &NvmeSpec,
        data: &NvmeLease,
        operation: &Underway,
    ) -> Result<NvmeDevice, DevicesError> {
        let found = read().await.map_err(DevicesError)?;
        let controller = data.key.controller;
        // In vfio-pci since an earlier run it says nothing of itself: its size is as it was.
        let facts = found.get(controller).and_then(|one| one.facts.as_ref().ok());
        let before = vm.nvmes.iter().find(|device| device.id == nvme.id).map_or(0, |device| device.size_bytes);
        let size_bytes = facts.map_or(before, |facts| facts.namespaces.iter().map(|one| one.size_bytes).sum());
        let operation = operation.clone();
        let work = move || hostdev::nvme::lend_controller(controller, &operation).map_err(|error| error.to_string());
        on_host_within(HOST_TIMEOUT, work).await.map_err(DevicesError)?;
        Ok(device(nvme, data, None, controller, size_bytes))
    }
}

/// In which order policy would have the candidates taken, or its denial.
fn order_of(nvme: &NvmeSpec, decision: NvmeDecision) -> Result<Vec<usize>, DevicesError> {
    match decision.outcome {
        NvmeOutcome::Select { order } => Ok(order),
        NvmeOutcome::Deny { code, message, plugin } => {
            let who = denier(plugin.as_deref());
            Err(DevicesError(format!("{who} gives NVMe device {} nothing: {message} ({code})", nvme.id)))
        }
    }
}

fn device(nvme: &NvmeSpec, data: &NvmeLease, nsid: Option<u32>, function: Bdf, size_bytes: u64) -> NvmeDevice {
    NvmeDevice {
        id: nvme.id.clone(),
        function: Some(function),
        controller: data.key.controller,
        serial: data.key.serial.clone(),
        nsid,
        size_bytes,
    }
}

#[cfg(test)]
mod tests;
