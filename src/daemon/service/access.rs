//! Who may see which VM, and finding one. Key type: [`Whose`].

use std::sync::Arc;

use super::{Node, Principal, ServiceError};
use crate::daemon::record::VmRecord;
use crate::model::{TenantId, VmName};

/// Whose VMs or plugins a call is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// All that the caller may see.
    Own,
    /// Every tenant's, by wish: operators only.
    All,
    /// One tenant's.
    Tenant(TenantId),
}

impl Whose {
    /// Which tenants that is for `principal`: `None` for all.
    pub(super) fn resolve(&self, principal: &Principal) -> Result<Option<TenantId>, ServiceError> {
        match (self, principal) {
            (Self::Own | Self::All, Principal::Operator(_)) => Ok(None),
            (Self::Own, Principal::Tenant(own) | Principal::Viewer(own)) => Ok(Some(own.clone())),
            (Self::All, Principal::Tenant(_) | Principal::Viewer(_)) => {
                Err(ServiceError::NotAllowed { needs: "an operator may see all tenants" })
            }
            (Self::Tenant(tenant), principal) => {
                require_own(principal, tenant)?;
                Ok(Some(tenant.clone()))
            }
        }
    }
}

/// Refuses to act in another tenant's name.
pub(super) fn require_own(principal: &Principal, tenant: &TenantId) -> Result<(), ServiceError> {
    if principal.may_see(tenant) {
        return Ok(());
    }
    Err(ServiceError::NotAllowed { needs: "an operator, or the tenant itself" })
}

/// Refuses to show or change the host to anybody else.
pub(super) fn require_operator(principal: &Principal) -> Result<(), ServiceError> {
    match principal {
        Principal::Operator(_) => Ok(()),
        Principal::Tenant(_) | Principal::Viewer(_) => {
            Err(ServiceError::NotAllowed { needs: "an operator may see and change the host" })
        }
    }
}

impl Node {
    /// The VM as it is now.
    pub fn get(&self, principal: &Principal, tenant: &TenantId, name: &VmName) -> Result<Arc<VmRecord>, ServiceError> {
        if !principal.may_see(tenant) {
            return Err(ServiceError::NoSuchVm);
        }
        self.find(tenant, name).ok_or(ServiceError::NoSuchVm)
    }

    /// VMs by tenant, then name.
    pub fn list(&self, principal: &Principal, whose: &Whose) -> Result<Vec<Arc<VmRecord>>, ServiceError> {
        let tenant = whose.resolve(principal)?;
        let snapshot = self.store.snapshot();
        let is_asked_for = |vm: &&Arc<VmRecord>| tenant.as_ref().is_none_or(|tenant| vm.tenant == *tenant);
        let mut vms: Vec<_> = snapshot.vms.values().filter(is_asked_for).cloned().collect();
        vms.sort_by(|a, b| (&a.tenant, &a.name).cmp(&(&b.tenant, &b.name)));
        Ok(vms)
    }

    pub(super) fn find(&self, tenant: &TenantId, name: &VmName) -> Option<Arc<VmRecord>> {
        self.store.snapshot().vms.values().find(|vm| vm.tenant == *tenant && vm.name == *name).cloned()
    }
}
