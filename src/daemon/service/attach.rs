//! Attaches and detaches devices of a VM: guards, host checks, addresses, then the VM's task. Key functions:
//! [`Node::attach_device`], [`Node::detach_device`].

use std::time::Duration;

use super::decisions::{overruled, record, told};
use super::register::overruled_by;
use super::{AttachState, CallError, HotplugError, Node, Principal, ServiceError};
use crate::daemon::policy::Unrecorded;
use crate::daemon::record::{NicLease, VmRecord, mac_of};
use crate::daemon::supervisor::VmHandle;
use crate::model::{
    AttachRequest, Decision, DecisionId, DetachRequest, DeviceId, DeviceSpec, Enforcement, Outcome, TenantId, VmFacts,
    VmName, VmState,
};

impl Node {
    /// Attaches a device: now if the VM runs, else for its next start.
    pub async fn attach_device(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        device: DeviceSpec,
    ) -> Result<VmRecord, ServiceError> {
        let handle = self.handle(principal, tenant, name)?;
        let _turn = self.turns.take(tenant).await;
        let vm = self.get(principal, tenant, name)?;
        // A name that is taken, or a full bus, needs nobody's opinion.
        vm.with_device(&device, None, AttachState::Attached).map_err(HotplugError::from).map_err(CallError::from)?;
        let request = AttachRequest {
            tenant: tenant.clone(),
            vm: facts(&vm),
            device: device.clone(),
            in_use: self.in_use(tenant),
        };
        let decision = self.policy.attach(self.plugins.chain(tenant), request).await;
        let decision = self.permitted(tenant, name, decision).await?;
        let attached = self.attach_permitted(&handle, tenant, name, device).await;
        self.tell_of(decision, &attached).await;
        attached
    }

    /// Attaches what policy allows, if the core's own checks find nothing against it.
    async fn attach_permitted(
        &self,
        handle: &VmHandle,
        tenant: &TenantId,
        name: &VmName,
        device: DeviceSpec,
    ) -> Result<VmRecord, ServiceError> {
        self.check_volume(tenant, &device).await?;
        // Free again, unless the VM's record comes to hold it.
        let lease = match &device {
            DeviceSpec::Nic(nic) if nic.vf_wish().is_none() => Some(self.addresses.lease(1)?),
            DeviceSpec::Nic(_) | DeviceSpec::Disk(_) => None,
        };
        let (uid, id) = (handle.uid(), device.id().clone());
        let subnet = lease.as_ref().and_then(|lease| lease.subnets().first().copied());
        let nic = subnet.map(|subnet| NicLease { mac: mac_of(uid, &id), id: id.clone(), subnet });
        let held = move || lease.into_iter().for_each(crate::daemon::inventory::Lease::commit);
        let vm = handle.attach(device, nic, held).await?;
        tracing::info!(%tenant, vm = %name, %uid, device = %id, state = vm.state.name(), "device attached");
        Ok(vm)
    }

    /// Detaches a device: the guest of a running VM is asked for it, for at most `timeout`, or loses it by force.
    pub async fn detach_device(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        id: DeviceId,
        timeout: Duration,
        is_forced: bool,
    ) -> Result<VmRecord, ServiceError> {
        let handle = self.handle(principal, tenant, name)?;
        // Releases need no permission; but what an operator's plugin keeps in place only an operator takes out.
        let decision = match principal {
            Principal::Tenant(_) => {
                let vm = self.get(principal, tenant, name)?;
                let request = DetachRequest { tenant: tenant.clone(), vm: facts(&vm), device: id.clone(), is_forced };
                let decision = self.policy.detach(self.plugins.chain(tenant), request).await;
                Some(self.permitted(tenant, name, decision).await?)
            }
            Principal::Operator(_) => None,
        };
        let detached = handle.detach(id.clone(), timeout, is_forced).await.map_err(ServiceError::from);
        if let Some(decision) = decision {
            self.tell_of(decision, &detached).await;
        }
        let vm = detached?;
        let uid = vm.uid;
        tracing::info!(%tenant, vm = %name, %uid, device = %id, is_forced, state = vm.state.name(), "device detached");
        Ok(vm)
    }

    /// Puts a decision on record, and gives its id if it allows.
    async fn permitted(
        &self,
        tenant: &TenantId,
        name: &VmName,
        decision: Unrecorded<Decision>,
    ) -> Result<DecisionId, ServiceError> {
        let (id, mut decision) = record(&self.store, decision).await?;
        match &decision.outcome {
            Outcome::Allow(_) => Ok(id),
            Outcome::Deny { code, .. } => {
                tracing::info!(%tenant, vm = %name, code, took = ?decision.took, "a change of devices is denied");
                decision.id = Some(id);
                let (tenant, name) = (tenant.clone(), name.clone());
                Err(ServiceError::Denied { tenant, name, decision: Box::new(decision) })
            }
        }
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
    }
}
