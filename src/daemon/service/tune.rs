//! Changes of devices while a VM runs: a longer disk, other limits. Key functions: [`Node::resize_disk`],
//! [`Node::limit_device`].

use super::{Node, Principal, ServiceError};
use crate::daemon::record::VmRecord;
use crate::model::{DeviceId, RateLimits, SpecError, TenantId, VmName};

impl Node {
    /// Grows the volume of a disk to `size` bytes, if one is given, and has the guest told of the length that it has.
    /// Gives that length.
    pub async fn resize_disk(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        disk: DeviceId,
        size: Option<u64>,
    ) -> Result<u64, ServiceError> {
        let handle = self.handle(principal, tenant, name)?;
        if size.is_some() && matches!(principal, Principal::Tenant(_)) {
            let needs = "an operator grows volumes; without a size your guest is told of one that has grown";
            return Err(ServiceError::NotAllowed { needs });
        }
        // Of two calls neither may shorten what the other has grown.
        let _turn = self.turns.take(tenant).await;
        let vm = self.get(principal, tenant, name)?;
        let found = vm.spec.disks().iter().enumerate().find(|(_, spec)| spec.id == disk);
        let Some((index, spec)) = found.map(|(index, spec)| (index, spec.clone())) else {
            return Err(SpecError::new("disk", format!("the VM has no disk {disk}")).into());
        };
        let (files, tenant) = (self.files.clone(), tenant.clone());
        let grown = tokio::task::spawn_blocking(move || files.grow(&tenant, index, &spec, size)).await;
        let len = grown.map_err(|_ended| ServiceError::Ending)??;
        handle.resized(disk, len).await?;
        Ok(len)
    }

    /// Gives a disk, or a NIC on a tap, other limits.
    pub async fn limit_device(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        device: DeviceId,
        limits: RateLimits,
    ) -> Result<VmRecord, ServiceError> {
        let handle = self.handle(principal, tenant, name)?;
        let vm = self.get(principal, tenant, name)?;
        if vm.spec.clone().with_limits(&device, limits).is_none() {
            let reason = format!("the VM has no disk and no NIC on a tap named {device}");
            return Err(SpecError::new("device", reason).into());
        }
        Ok(handle.limit(device, limits).await?)
    }
}
