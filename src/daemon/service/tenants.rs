//! What each tenant may have and has. Key type: [`TenantView`].

use std::collections::BTreeSet;

use super::{Node, Principal, ServiceError};
use crate::daemon::tenants::{ChainSigners, Followed, Quota, Use};
use crate::model::{PolicyScope, TenantId};

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantView {
    /// Which.
    pub tenant: TenantId,
    /// What it may have.
    pub quota: Quota,
    /// What it has.
    pub used: Use,
    /// Whose signatures plugins in its own chain must bear.
    pub signers: ChainSigners,
}

impl Node {
    /// Who is who and may have what, as it changes.
    pub fn tenants(&self) -> &Followed {
        &self.tenants
    }

    /// The tenant: the caller's own, or (operators) one that the file names or that has something.
    pub fn get_tenant(&self, principal: &Principal, tenant: &TenantId) -> Result<TenantView, ServiceError> {
        let is_own = principal.tenant() == Some(tenant);
        if is_own || (principal.may_see(tenant) && self.known_tenants().contains(tenant)) {
            return Ok(self.view(tenant.clone()));
        }
        Err(ServiceError::NoSuchTenant)
    }

    /// Every tenant that the caller may see.
    pub fn list_tenants(&self, principal: &Principal) -> Vec<TenantView> {
        match principal.tenant() {
            Some(own) => vec![self.view(own.clone())],
            None => self.known_tenants().into_iter().map(|tenant| self.view(tenant)).collect(),
        }
    }

    /// Refuses what `tenant` may not have beside what it has. Its answer holds for as long as the caller keeps others
    /// from charging the same tenant.
    pub(super) fn charge(&self, tenant: &TenantId, asked: &Use) -> Result<(), ServiceError> {
        let quota = self.tenants.tenants.borrow().quota(tenant);
        let exceeded = quota.check(&self.used_by(tenant), asked);
        if exceeded.is_empty() {
            return Ok(());
        }
        Err(ServiceError::Quota { tenant: tenant.clone(), exceeded })
    }

    fn view(&self, tenant: TenantId) -> TenantView {
        let quota = self.tenants.tenants.borrow().quota(&tenant);
        let signers = self.chain_signers(&PolicyScope::Tenant(tenant.clone()));
        TenantView { quota, used: self.used_by(&tenant), signers, tenant }
    }

    /// Worked out from the records, and from the plugins that are loaded, each time: exact after whatever crash.
    fn used_by(&self, tenant: &TenantId) -> Use {
        let snapshot = self.store.snapshot();
        let own = snapshot.vms.values().filter(|vm| vm.tenant == *tenant);
        let vms = own.map(|vm| Use::of_vm(&vm.spec)).fold(Use::default(), Use::plus);
        let scope = PolicyScope::Tenant(tenant.clone());
        Use { plugins: self.plugins.count(&scope), plugin_memory_mib: self.plugins.code_mib(&scope, None), ..vms }
    }

    fn known_tenants(&self) -> BTreeSet<TenantId> {
        let mut known: BTreeSet<_> = self.tenants.tenants.borrow().named().cloned().collect();
        known.extend(self.store.snapshot().vms.values().map(|vm| vm.tenant.clone()));
        known.extend(self.plugins.owners());
        known
    }
}
