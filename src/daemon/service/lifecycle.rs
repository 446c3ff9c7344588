//! Start, stop, pause, reboot, destroy: find the VM, ask its task. No policy here: it decides grants, never releases.

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

    /// Powers the VM off, by force once `grace` is over, and starts it again; returns once its vCPUs run.
    pub async fn reboot_vm(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        grace: Duration,
    ) -> Result<VmRecord, ServiceError> {
        Ok(self.handle(principal, tenant, name)?.reboot(grace).await?)
    }

    /// Makes the VM's vCPUs and devices stand still; returns when they do.
    pub async fn pause_vm(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
    ) -> Result<VmRecord, ServiceError> {
        Ok(self.handle(principal, tenant, name)?.pause().await?)
    }

    /// Lets the VM go on.
    pub async fn resume_vm(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
    ) -> Result<VmRecord, ServiceError> {
        Ok(self.handle(principal, tenant, name)?.resume().await?)
    }

    /// Presses the VM's power button; what the guest makes of it is its own affair.
    pub async fn press_power_button(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
    ) -> Result<VmRecord, ServiceError> {
        Ok(self.handle(principal, tenant, name)?.press_power_button().await?)
    }

    /// Gives every vCPU of the VM a non-maskable interrupt.
    pub async fn inject_nmi(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
    ) -> Result<VmRecord, ServiceError> {
        Ok(self.handle(principal, tenant, name)?.inject_nmi().await?)
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
