//! Changes of devices while a VM runs: a longer disk, other limits, more memory or less. Key functions:
//! [`Node::resize_disk`], [`Node::limit_device`], [`Node::set_balloon`].
//!
//! Each comes to the same if it is made twice: after a crash a repetition is just made again.

use super::{CallError, Node, Principal, ServiceError, Terms};
use crate::daemon::crash::{self, Point};
use crate::daemon::record::VmRecord;
use crate::daemon::supervisor::VmHandle;
use crate::model::{DeviceId, RateLimits, Refused, SpecError, TenantId, VmName, VmState};

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
        terms: &Terms<u64>,
    ) -> Result<u64, ServiceError> {
        self.get(principal, tenant, name)?;
        if size.is_some() && !matches!(principal, Principal::Operator(_)) {
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
        let handle = self.prepare_change(&vm, terms).await?;
        let is_made = handle.is_some();
        let (files, tenant) = (self.files.clone(), tenant.clone());
        let grown = tokio::task::spawn_blocking(move || match is_made {
            true => files.grow(&tenant, index, &spec, size),
            false => files.grown(&tenant, index, &spec, size),
        });
        let len = grown.await.map_err(|_ended| ServiceError::Ending)??;
        crash::reach(Point::DiskGrown);
        if let Some(handle) = handle {
            handle.resized(disk, len).await?;
        }
        Ok(len)
    }

    /// Gives a disk, or a NIC on a tap, other limits. If it is only to be validated, what comes back has them.
    pub async fn limit_device(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        device: DeviceId,
        limits: RateLimits,
        terms: &Terms<VmRecord>,
    ) -> Result<VmRecord, ServiceError> {
        let vm = self.get(principal, tenant, name)?;
        if vm.spec.nics().iter().any(|nic| nic.id == device && nic.is_kernel_served()) {
            let cause = "the host's kernel moves its frames (vhost) and keeps no limits; detach the NIC, and attach one \
                         without vhost";
            return Err(CallError::ChangeFailed(format!("device {device}: {cause}")).into());
        }
        let Some(limited) = vm.spec.clone().with_limits(&device, limits) else {
            let reason = format!("the VM has no disk and no NIC on a tap named {device}");
            return Err(SpecError::new("device", reason).into());
        };
        // An attempt that was cut off has put them on record, which changed the etag; whether the vmm was told is not known.
        let is_recorded = terms.left().is_some() && limited == vm.spec;
        let etag = terms.etag.clone().filter(|_| !is_recorded);
        match self.prepare_change(&vm, &Terms { etag, ..terms.clone() }).await? {
            Some(handle) => Ok(handle.limit(device, limits).await?),
            None => Ok(VmRecord { spec: limited, ..VmRecord::clone(&vm) }),
        }
    }

    /// Has the guest keep so much of its memory; `None`: all. If it is only to be validated, what comes back has it.
    pub async fn set_balloon(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
        keep_mib: Option<u64>,
        terms: &Terms<VmRecord>,
    ) -> Result<VmRecord, ServiceError> {
        let vm = self.get(principal, tenant, name)?;
        let Some(balloon) = vm.spec.balloon().map(|balloon| balloon.id().clone()) else {
            let cause = "the VM has no balloon: one is asked for when the VM is registered";
            return Err(CallError::ChangeFailed(cause.to_owned()).into());
        };
        let kept = vm.spec.clone().with_kept(keep_mib)?;
        // As for limits.
        let is_recorded = terms.left().is_some() && kept == vm.spec;
        let etag = terms.etag.clone().filter(|_| !is_recorded);
        match self.prepare_change(&vm, &Terms { etag, ..terms.clone() }).await? {
            Some(handle) => Ok(handle.keep(balloon, keep_mib).await?),
            None => Ok(VmRecord { spec: kept, ..VmRecord::clone(&vm) }),
        }
    }

    /// As [`prepare_if`](Self::prepare_if), for a change of a device: not while the VM is on its way, nor paused.
    pub(super) async fn prepare_change<T>(
        &self,
        vm: &VmRecord,
        terms: &Terms<T>,
    ) -> Result<Option<VmHandle>, ServiceError> {
        let is_legal = || match vm.state {
            VmState::Registered | VmState::Running | VmState::Stopped | VmState::Failed(_) => Ok(()),
            VmState::Starting | VmState::Paused | VmState::Stopping | VmState::Rebooting | VmState::Destroying => {
                Err(Refused { verb: "change a device of", state: vm.state.name() })
            }
        };
        self.prepare_if(vm, terms, is_legal).await
    }
}
