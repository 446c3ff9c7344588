//! Attaches and detaches devices of a VM: guards, host checks, addresses, then the VM's task. Key functions:
//! [`Node::attach_device`], [`Node::detach_device`].

use std::time::Duration;

use super::{AttachState, CallError, HotplugError, Node, Principal, ServiceError};
use crate::daemon::record::{NicLease, VmRecord, mac_of};
use crate::model::{
    AttachRequest, Decision, DetachRequest, DeviceId, DeviceSpec, Outcome, TenantId, VmFacts, VmName, VmState,
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
        permitted(tenant, name, decision)?;
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
        if let Principal::Tenant(_) = principal {
            let vm = self.get(principal, tenant, name)?;
            let request = DetachRequest { tenant: tenant.clone(), vm: facts(&vm), device: id.clone(), is_forced };
            let decision = self.policy.detach(self.plugins.chain(tenant), request).await;
            permitted(tenant, name, decision)?;
        }
        let vm = handle.detach(id.clone(), timeout, is_forced).await?;
        let uid = vm.uid;
        tracing::info!(%tenant, vm = %name, %uid, device = %id, is_forced, state = vm.state.name(), "device detached");
        Ok(vm)
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

fn permitted(tenant: &TenantId, name: &VmName, decision: Decision) -> Result<(), ServiceError> {
    match &decision.outcome {
        Outcome::Allow(_) => Ok(()),
        Outcome::Deny { code, .. } => {
            tracing::info!(%tenant, vm = %name, code, took = ?decision.took, "a change of devices is denied");
            let (tenant, name) = (tenant.clone(), name.clone());
            Err(ServiceError::Denied { tenant, name, decision: Box::new(decision) })
        }
    }
}
