//! Loads and lists policy plugins, and gives each decision its chain. Key types: [`Plugins`], [`PluginView`].
//!
//! Order of a load: compile (in the policy host), component to disk, record to the store, new table in one step.
//! Decisions under way keep the table that they began with.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::access::require_own;
use super::{Node, Principal, ServiceError, Terms, Whose};
use crate::daemon::policy::{Bound, LoadedPlugin, PolicyHost};
use crate::daemon::store::{PluginRecord, plugin_etag};
use crate::daemon::tenants::Use;
use crate::model::{PluginDigest, PluginId, PolicyScope, TenantId};

/// Ordered as a chain is asked: the operator's, then each tenant's, by name.
type Table = BTreeMap<(PolicyScope, PluginId), PluginView>;

/// A bound plugin.
#[derive(Debug, Clone)]
pub struct PluginView {
    /// As it is remembered.
    pub record: PluginRecord,
    /// As it is asked.
    pub plugin: LoadedPlugin,
}

/// All bound plugins.
#[derive(Debug)]
pub(super) struct Plugins {
    dir: PathBuf,
    /// Rank: leaf. Guards the pointer; held for a swap only.
    table: RwLock<Arc<Table>>,
    /// One load at a time: store and table change in the same order.
    turn: tokio::sync::Mutex<()>,
}

impl Plugins {
    /// Loads again what `records` say. One that does not load stands in its chain and denies.
    pub(super) async fn restore(dir: &Path, records: Vec<PluginRecord>, host: &PolicyHost) -> Self {
        let mut table = Table::new();
        for record in records {
            let plugin = match reload(dir, &record, host).await {
                Ok(plugin) => plugin,
                Err(cause) => {
                    tracing::error!(plugin = %record.name, digest = %record.digest, cause, "plugin does not load; its chain denies");
                    LoadedPlugin::broken(record.name.as_str(), record.digest, cause)
                }
            };
            table.insert((record.scope.clone(), record.name.clone()), PluginView { record, plugin });
        }
        let plugins =
            Self { dir: dir.to_owned(), table: RwLock::new(Arc::new(table)), turn: tokio::sync::Mutex::default() };
        plugins.sweep();
        plugins
    }

    /// Whom `tenant`'s decisions pass: the operator's plugins, then its own, each by name.
    pub(super) fn chain(&self, tenant: &TenantId) -> Arc<[Bound]> {
        let table = self.table();
        let is_asked = |scope: &PolicyScope| match scope {
            PolicyScope::Operator => true,
            PolicyScope::Tenant(own) => own == tenant,
        };
        let asked = table.iter().filter(|((scope, _), _)| is_asked(scope));
        asked
            .map(|((scope, name), view)| Bound {
                name: name.to_string(),
                scope: scope.clone(),
                plugin: view.plugin.clone(),
            })
            .collect()
    }

    /// How many are bound in `scope`.
    pub(super) fn count(&self, scope: &PolicyScope) -> u64 {
        let bound = self.table().keys().filter(|(bound, _)| bound == scope).count();
        u64::try_from(bound).unwrap_or(u64::MAX)
    }

    /// Tenants that have any.
    pub(super) fn owners(&self) -> Vec<TenantId> {
        let table = self.table();
        let owner = |(scope, _): &(PolicyScope, PluginId)| match scope {
            PolicyScope::Operator => None,
            PolicyScope::Tenant(tenant) => Some(tenant.clone()),
        };
        table.keys().filter_map(owner).collect()
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn bind(&self, view: PluginView) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = Table::clone(&table);
        next.insert((view.record.scope.clone(), view.record.name.clone()), view);
        *table = Arc::new(next);
    }

    /// Removes components that no binding names any more.
    fn sweep(&self) {
        let kept: Vec<_> = self.table().values().map(|view| file_name(view.record.digest)).collect();
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            if !kept.iter().any(|name| entry.file_name() == name.as_str()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

async fn reload(dir: &Path, record: &PluginRecord, host: &PolicyHost) -> Result<LoadedPlugin, String> {
    let path = dir.join(file_name(record.digest));
    let bytes = tokio::fs::read(&path).await.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    if PluginDigest(Sha256::digest(&bytes).into()) != record.digest {
        return Err(format!("{} is not what was loaded", path.display()));
    }
    host.load(bytes, record.settings.clone()).await.map_err(|error| error.to_string())
}

impl Node {
    /// Compiles `component` and binds it as `name` in `scope`, in place of what was bound there.
    pub async fn load_plugin(
        &self,
        principal: &Principal,
        scope: PolicyScope,
        name: PluginId,
        component: Vec<u8>,
        settings: BTreeMap<String, String>,
        terms: &Terms<PluginView>,
    ) -> Result<PluginView, ServiceError> {
        match (&scope, principal) {
            (PolicyScope::Operator, Principal::Operator(_)) => {}
            (PolicyScope::Operator, Principal::Tenant(_) | Principal::Viewer(_)) => {
                return Err(ServiceError::NotAllowed { needs: "an operator loads the operator's plugins" });
            }
            (PolicyScope::Tenant(tenant), principal) => require_own(principal, tenant)?,
        }
        let plugin = self
            .policy
            .load(component.clone(), settings.clone())
            .await
            .map_err(|source| ServiceError::Plugin { scope: scope.clone(), source })?;
        let _turn = self.plugins.turn.lock().await;
        terms.require_etag(&format!("plugin {name}"), || {
            self.plugins.table().get(&(scope.clone(), name.clone())).map(|view| plugin_etag(&view.record))
        })?;
        let digest = plugin.digest();
        let is_new = !self.plugins.table().contains_key(&(scope.clone(), name.clone()));
        if let (PolicyScope::Tenant(tenant), true) = (&scope, is_new) {
            self.charge(tenant, &Use { plugins: 1, ..Use::default() })?;
        }
        let record = PluginRecord { scope, name, digest, settings, loaded: SystemTime::now() };
        let view = PluginView { record: record.clone(), plugin };
        if terms.validate_only {
            return Ok(view);
        }
        let path = self.plugins.dir.join(file_name(digest));
        let written = tokio::task::spawn_blocking(move || write_durably(&path, &component)).await;
        written
            .unwrap_or_else(|ended| Err(io::Error::other(ended)))
            .map_err(|source| ServiceError::Host { what: "the component", source })?;
        let request = terms.success(&view);
        self.store.put_plugin_for(record.clone(), request.clone()).await?;
        self.requests.written(request).await;
        tracing::info!(plugin = %record.name, %digest, scope = ?record.scope, %principal, "plugin loaded");
        self.plugins.bind(view.clone());
        self.plugins.sweep();
        Ok(view)
    }

    /// Plugins of the chains that `principal` may see, in the order asked. `None` lists the operator's alone.
    pub fn list_plugins(&self, principal: &Principal, whose: Option<&Whose>) -> Result<Vec<PluginView>, ServiceError> {
        let tenant = whose.map(|whose| whose.resolve(principal)).transpose()?;
        let is_asked_for = |scope: &PolicyScope| match (scope, &tenant) {
            (PolicyScope::Operator, _) => true,
            (PolicyScope::Tenant(_), None) => false,
            (PolicyScope::Tenant(_), Some(None)) => true,
            (PolicyScope::Tenant(own), Some(Some(tenant))) => own == tenant,
        };
        Ok(self.plugins.table().values().filter(|view| is_asked_for(&view.record.scope)).cloned().collect())
    }
}

/// A component's file: its digest in hex.
fn file_name(digest: PluginDigest) -> String {
    format!("{}.wasm", digest.to_string().trim_start_matches("sha256:"))
}

/// Writes all of it or nothing, for good.
fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
