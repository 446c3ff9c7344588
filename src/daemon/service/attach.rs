//! Attaches and detaches devices of a VM: guards, host checks, addresses, then the VM's task. Key functions:
//! [`Node::attach_device`], [`Node::detach_device`].

use std::time::Duration;

use super::decisions::{overruled, record, told};
use super::register::{overruled_by, require_operator_for_kernel};
use super::{AttachState, CallError, HotplugError, Node, Principal, ServiceError, Terms};
use crate::daemon::crash::{self, Point};
use crate::daemon::inventory::check_nic;
use crate::daemon::policy::Unrecorded;
use crate::daemon::record::{NicLease, VmRecord, mac_of};
use crate::daemon::supervisor::DevicesError;
use crate::daemon::tenants::Use;
use crate::model::{
    AttachRequest, Decision, DecisionId, DetachRequest, DeviceId, DeviceSpec, Enforcement, Outcome, TenantId, VmFacts,
    VmImage, VmName, VmState,
};

/// How a device is taken from a running guest.
#[derive(Debug, Clone, Copy)]
pub struct Unplug {
    /// The guest is asked for it, and has so long to let it go.
    pub timeout: Duration,
    /// It is not asked.
    pub is_forced: bool,
}

impl Node {
    /// Attaches a device: now if the VM runs, else for its next start. If it is only to be validated, what comes back has it.
    pub async fn attach_device(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        device: DeviceSpec,
        terms: &Terms<VmRecord>,
    ) -> Result<VmRecord, ServiceError> {
        self.get(principal, tenant, name)?;
        if let DeviceSpec::Nic(nic) = &device {
            require_operator_for_kernel(principal, nic)?;
        }
        let _turn = self.turns.take(tenant).await;
        let vm = self.get(principal, tenant, name)?;
        if terms.left().is_some() && vm.spec.has_device(&device) {
            // An attempt that was cut off: what it put on record, a daemon's start has finished or undone.
            return Ok(VmRecord::clone(&vm));
        }
        // A name that is taken, or a full bus, needs nobody's opinion.
        let with = vm.with_device(&device, None, AttachState::Attached).map_err(HotplugError::from);
        let with = with.map_err(CallError::from)?;
        let request = AttachRequest {
            tenant: tenant.clone(),
            vm: facts(&vm),
            device: device.clone(),
            in_use: self.in_use(tenant),
        };
        let decided = self.policy.attach(self.plugins.chain(tenant, name), request).await;
        if terms.validate_only {
            allowed(tenant, name, decided.dry_run())?;
            self.check_attach(tenant, &vm, &with, &device).await?;
            if vm.state == VmState::Running {
                self.rehearse_attach(&with, &device).await?;
            }
            return self.prepare_change(&vm, terms).await.map(|_nothing| with);
        }
        let decision = self.permitted(tenant, name, decided).await?;
        crash::reach(Point::AttachDecided);
        let attached = match self.check_attach(tenant, &vm, &with, &device).await {
            Ok(()) => self.attach_permitted(&vm, device, terms).await,
            Err(error) => Err(error),
        };
        self.tell_of(decision, &attached).await;
        attached
    }

    /// What the core itself may have against a device that policy allows.
    async fn check_attach(
        &self,
        tenant: &TenantId,
        vm: &VmRecord,
        with: &VmRecord,
        device: &DeviceSpec,
    ) -> Result<(), ServiceError> {
        self.charge(tenant, &Use::of_vm(&with.spec).beyond(Use::of_vm(&vm.spec)))?;
        if let DeviceSpec::Nic(nic) = device {
            check_nic("nic", nic)?;
        }
        self.check_volume(tenant, device).await
    }

    /// Whether the host would lend what the device needs now.
    async fn rehearse_attach(&self, with: &VmRecord, device: &DeviceSpec) -> Result<(), ServiceError> {
        let not_lent = |error: DevicesError| HotplugError::NotLent { id: device.id().clone(), cause: error.0 };
        Ok(self.devices.rehearse(with).await.map_err(not_lent).map_err(CallError::from)?)
    }

    /// Attaches what policy allows and nothing stands against.
    async fn attach_permitted(
        &self,
        vm: &VmRecord,
        device: DeviceSpec,
        terms: &Terms<VmRecord>,
    ) -> Result<VmRecord, ServiceError> {
        // Free again, unless the VM's record comes to hold it.
        let lease = match &device {
            DeviceSpec::Nic(nic) if nic.vf_wish().is_none() => Some(self.addresses.lease(1)?),
            DeviceSpec::Nic(_) | DeviceSpec::Disk(_) | DeviceSpec::Nvme(_) => None,
        };
        let Some(handle) = self.prepare_change(vm, terms).await? else { return Ok(vm.clone()) };
        let (uid, id) = (vm.uid, device.id().clone());
        let subnet = lease.as_ref().and_then(|lease| lease.subnets().first().copied());
        let nic = subnet.map(|subnet| NicLease { mac: mac_of(uid, &id), id: id.clone(), subnet });
        let held = move || lease.into_iter().for_each(crate::daemon::inventory::Lease::commit);
        let vm = handle.attach(device, nic, held).await?;
        tracing::info!(tenant = %vm.tenant, vm = %vm.name, %uid, device = %id, state = vm.state.name(), "device attached");
        Ok(vm)
    }

    /// Detaches a device. If it is only to be validated, what comes back is without it.
    pub async fn detach_device(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        id: DeviceId,
        manner: Unplug,
        terms: &Terms<VmRecord>,
    ) -> Result<VmRecord, ServiceError> {
        let vm = self.get(principal, tenant, name)?;
        if terms.left().is_some() && vm.attachment(&id).is_none() {
            return Ok(VmRecord::clone(&vm));
        }
        // Releases need no permission; but what an operator's plugin keeps in place only an operator takes out.
        let decision = match principal {
            Principal::Tenant(_) | Principal::Viewer(_) => {
                let is_forced = manner.is_forced;
                let request = DetachRequest { tenant: tenant.clone(), vm: facts(&vm), device: id.clone(), is_forced };
                let decided = self.policy.detach(self.plugins.chain(tenant, name), request).await;
                match terms.validate_only {
                    true => allowed(tenant, name, decided.dry_run()).map(|()| None)?,
                    false => Some(self.permitted(tenant, name, decided).await?),
                }
            }
            Principal::Operator(_) => None,
        };
        crash::reach(Point::DetachDecided);
        let detached = self.detach_permitted(&vm, id, manner, terms).await;
        if let Some(decision) = decision {
            self.tell_of(decision, &detached).await;
        }
        detached
    }

    async fn detach_permitted(
        &self,
        vm: &VmRecord,
        id: DeviceId,
        manner: Unplug,
        terms: &Terms<VmRecord>,
    ) -> Result<VmRecord, ServiceError> {
        let Some(handle) = self.prepare_change(vm, terms).await? else {
            let missing = || CallError::from(HotplugError::NoSuchDevice(id.clone()));
            vm.attachment(&id).ok_or_else(missing)?;
            let mut without = vm.clone();
            without.remove_device(&id);
            return Ok(without);
        };
        let Unplug { timeout, is_forced } = manner;
        let vm = handle.detach(id.clone(), timeout, is_forced).await?;
        let (uid, state) = (vm.uid, vm.state.name());
        tracing::info!(tenant = %vm.tenant, vm = %vm.name, %uid, device = %id, is_forced, state, "device detached");
        Ok(vm)
    }

    /// Puts a decision on record, and gives its id if it allows.
    async fn permitted(
        &self,
        tenant: &TenantId,
        name: &VmName,
        decision: Unrecorded<Decision>,
    ) -> Result<DecisionId, ServiceError> {
        let (id, mut decision) = record(&self.store, &self.plugins, decision).await?;
        decision.id = Some(id.clone());
        allowed(tenant, name, decision).map(|()| id)
    }

    /// Puts on record what became of a change of devices that was allowed.
    async fn tell_of(&self, decision: DecisionId, changed: &Result<VmRecord, ServiceError>) {
        let enforcement = match changed {
            Ok(vm) => Enforcement::Enforced(vm.uid.to_string()),
            Err(error) => overruled(&overruled_by(error), &error.to_string()),
        };
        told(&self.store, decision, enforcement).await;
    }

    /// Whether the image of a disk can be opened; that nobody else has it is seen when it is.
    async fn check_volume(&self, tenant: &TenantId, device: &DeviceSpec) -> Result<(), ServiceError> {
        let DeviceSpec::Disk(disk) = device else { return Ok(()) };
        let (files, tenant, disk) = (self.files.clone(), tenant.clone(), disk.clone());
        let checked = tokio::task::spawn_blocking(move || files.single_disk(&tenant, &disk).map(drop)).await;
        checked.unwrap_or(Ok(())).map_err(ServiceError::from)
    }
}

/// The denial, if it is one.
fn allowed(tenant: &TenantId, name: &VmName, decision: Decision) -> Result<(), ServiceError> {
    let Outcome::Deny { code, .. } = &decision.outcome else { return Ok(()) };
    tracing::info!(%tenant, vm = %name, code, took = ?decision.took, "a change of devices is denied");
    let (tenant, name) = (tenant.clone(), name.clone());
    Err(ServiceError::Denied { tenant, name, decision: Box::new(decision) })
}

/// A VM as policy is told of it.
fn facts(vm: &VmRecord) -> VmFacts {
    // Bounded by the number of PCI slots.
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    VmFacts {
        name: vm.name.clone(),
        vcpus: vm.spec.vcpus(),
        memory_mib: vm.spec.memory_mib(),
        disks: count(vm.spec.disks().len()),
        nics: count(vm.spec.nics().len()),
        is_running: vm.state == VmState::Running,
        labels: Some(vm.spec.labels().clone()),
        images: Some(VmImage::all_of(&vm.spec)),
    }
}
