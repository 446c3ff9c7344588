//! Start, stop, destroy: find the VM, ask its task. No policy here: it decides grants, never releases.

use std::time::Duration;

use super::{Node, Principal, ServiceError};
use crate::daemon::record::VmRecord;
use crate::model::{TenantId, VmName};

impl Node {
    /// Starts the VM; returns once its vCPUs run, or with why they do not.
    pub async fn start_vm(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
    ) -> Result<VmRecord, ServiceError> {
        Ok(self.handle(principal, tenant, name)?.start().await?)
    }

    /// Stops the VM, by force once `grace` is over; returns when it is stopped.
    pub async fn stop_vm(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        grace: Duration,
    ) -> Result<VmRecord, ServiceError> {
        Ok(self.handle(principal, tenant, name)?.stop(grace).await?)
    }

    /// Forgets the VM, and kills it first if it runs and `is_forced`.
    pub async fn destroy_vm(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        is_forced: bool,
    ) -> Result<(), ServiceError> {
        self.handle(principal, tenant, name)?.destroy(is_forced).await?;
        Ok(())
    }
}
