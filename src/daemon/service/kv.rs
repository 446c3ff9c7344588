//! What plugins remember: shown to who owns the plugin, and cleared. Key type: [`PluginKv`].

use std::sync::Arc;

use super::plugins::require_chain;
use super::{Node, Principal, ServiceError, Terms};
use crate::daemon::policy::KvShelf;
use crate::daemon::store::Store;
use crate::model::{KvPlace, KvStore, PluginId, PolicyScope, TenantId};

impl KvShelf for Store {
    fn read(&self, place: &KvPlace) -> Arc<KvStore> {
        self.kv(place)
    }
}

/// What a plugin remembers about a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginKv {
    /// Where.
    pub place: KvPlace,
    /// What.
    pub store: Arc<KvStore>,
}

/// Names a plugin, and about whom it remembers something.
#[derive(Debug, Clone)]
pub struct KvOf {
    /// The plugin's chain.
    pub scope: PolicyScope,
    /// Its name there.
    pub name: PluginId,
    /// The tenant; a tenant's own plugin knows no other than its owner.
    pub tenant: TenantId,
}

impl Node {
    /// What a plugin remembers about a tenant.
    pub fn plugin_kv(&self, principal: &Principal, of: KvOf) -> Result<PluginKv, ServiceError> {
        let place = self.kv_place(principal, of)?;
        Ok(PluginKv { store: self.store.kv(&place), place })
    }

    /// Has a plugin remember nothing about a tenant any more. Decisions under way are made first.
    pub async fn clear_plugin_kv(
        &self,
        principal: &Principal,
        of: KvOf,
        terms: &Terms<()>,
    ) -> Result<(), ServiceError> {
        let place = self.kv_place(principal, of)?;
        if terms.validate_only {
            return Ok(());
        }
        let _told = self.observers.turn().await;
        let turn = self.policy.turn(&place.tenant).await;
        let _turn = turn.map_err(|fault| ServiceError::PolicyBusy { cause: fault.to_string() })?;
        let request = terms.success(&());
        self.store.clear_kv_for(place.clone(), request.clone()).await?;
        self.requests.written(request).await;
        tracing::info!(plugin = place.plugin, scope = ?place.scope, tenant = %place.tenant, %principal, "plugin's memory cleared");
        Ok(())
    }

    fn kv_place(&self, principal: &Principal, of: KvOf) -> Result<KvPlace, ServiceError> {
        let KvOf { scope, name, tenant } = of;
        // What an operator's plugin knows of a tenant is the operator's.
        require_chain(principal, &scope)?;
        self.plugins.view(&scope, &name)?;
        if matches!(&scope, PolicyScope::Tenant(owner) if *owner != tenant) {
            return Err(ServiceError::NoSuchTenant);
        }
        Ok(KvPlace { scope, plugin: name.to_string(), tenant })
    }
}
