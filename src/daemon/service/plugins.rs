//! Loads and lists policy plugins, and gives each decision its chain. Key types: [`Plugins`], [`PluginView`].
//!
//! Order of a load: signatures, compile (in the policy host), component to disk, record to the store, new table in one step.
//! Decisions under way keep the table that they began with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::access::require_own;
use super::aliases::earlier;
use super::canary::CanaryView;
use super::{CanaryError, Node, ObserverStatus, Principal, ServiceError, Terms, Whose};
use crate::daemon::crash::{self, Point};
use crate::daemon::policy::{Bound, BreakerState, LoadError, LoadedPlugin, PolicyHost};
use crate::daemon::store::{PluginRecord, PluginVersion, Store, plugin_etag};
use crate::daemon::tenants::ChainSigners;
use crate::model::{
    Counts, Grant, PluginDigest, PluginId, PluginMode, PluginSignature, PluginWeight, PolicyScope, SignerId, TenantId,
    VersionName, VmName,
};

/// Versions of a plugin that are kept for going back.
const MAX_PREVIOUS: usize = 8;

/// Ordered as a chain is asked: the operator's, then each tenant's, by name.
type Table = BTreeMap<(PolicyScope, PluginId), PluginView>;

/// A bound plugin.
#[derive(Debug, Clone)]
pub struct PluginView {
    /// As it is remembered.
    pub record: PluginRecord,
    /// As it is asked.
    pub plugin: LoadedPlugin,
    /// The version that is asked for a share of the VMs; there if the record has an active one.
    pub canary: Option<CanaryView>,
}

impl PluginView {
    /// The version that decides about a VM.
    fn asked_for(&self, tenant: &TenantId, vm: &VmName) -> &LoadedPlugin {
        match (&self.canary, self.record.active_canary()) {
            (Some(canary), Some(tried)) if tried.has(&self.record, tenant, vm) => &canary.plugin,
            _ => &self.plugin,
        }
    }

    /// That no version is tried that this one is compared with.
    pub(super) fn require_no_canary(&self) -> Result<(), ServiceError> {
        if self.canary.is_some() { Err(CanaryError::Active.into()) } else { Ok(()) }
    }
}

/// What a plugin is bound as.
#[derive(Debug, Clone)]
pub struct PluginPlace {
    /// Whose chain.
    pub scope: PolicyScope,
    /// Its name there.
    pub name: PluginId,
    /// What its answers count for.
    pub mode: PluginMode,
    /// How many times its scores count; `None`: as before, once at first.
    pub weight: Option<PluginWeight>,
}

/// What a client sends to be bound.
#[derive(Debug, Clone)]
pub struct PluginUpload {
    /// The component.
    pub component: Vec<u8>,
    /// Its content address.
    pub digest: PluginDigest,
    /// Checked by the plugin itself.
    pub settings: BTreeMap<String, String>,
    /// What it may have beyond what every plugin has.
    pub grants: BTreeSet<Grant>,
    /// Of whoever they claim to be.
    pub signatures: Vec<PluginSignature>,
}

/// A bound plugin and where it is left alone.
#[derive(Debug, Clone)]
pub struct PluginStatus {
    /// The plugin.
    pub view: PluginView,
    /// Breakers that are not closed, those that the caller may see: hook, who asked, where it is.
    pub breakers: Vec<(&'static str, TenantId, BreakerState)>,
    /// Where it is among events, if it observes; of those that the caller may see.
    pub observers: Vec<ObserverStatus>,
    /// What came of decisions with the canary and with the stable version, if there is an active one. Counted over tenants.
    pub counts: Option<(Counts, Counts)>,
    /// Whether the caller may see what is over tenants.
    pub is_owners: bool,
    /// Whose signatures its chain requires.
    pub signers: ChainSigners,
}

/// All bound plugins.
pub(super) struct Plugins {
    dir: PathBuf,
    pub(super) store: Store,
    pub(super) policy: PolicyHost,
    /// Rank: leaf. Guards the pointer; held for a swap only.
    table: RwLock<Arc<Table>>,
    /// Told when the table changes, for the one who waits for that.
    pub(super) changed: tokio::sync::Notify,
    /// One load at a time: store and table change in the same order.
    turn: tokio::sync::Mutex<()>,
}

impl Plugins {
    /// Loads again what `records` of the `store` say. One that does not load stands in its chain and denies; a canary that
    /// does not is rolled back.
    pub(super) async fn restore(dir: &Path, records: Vec<PluginRecord>, store: Store, policy: PolicyHost) -> Self {
        let mut table = Table::new();
        let mut lost = Vec::new();
        for record in records {
            let plugin = match reload(dir, &record.scope, &record.version(), &policy).await {
                Ok(plugin) => plugin,
                Err(error) => {
                    let cause = error.to_string();
                    tracing::error!(plugin = %record.name, digest = %record.digest, mode = ?record.mode, cause, "plugin does not load; where it is enforced its chain denies");
                    LoadedPlugin::broken(record.name.as_str(), record.digest, cause)
                }
            };
            let canary = match record.active_canary() {
                Some(canary) => Some(CanaryView::restore(dir, &record, canary, &policy).await),
                None => None,
            };
            lost.extend(canary.clone().filter(CanaryView::is_lost).map(|canary| (record.clone(), canary)));
            table.insert((record.scope.clone(), record.name.clone()), PluginView { record, plugin, canary });
        }
        let (dir, table) = (dir.to_owned(), RwLock::new(Arc::new(table)));
        let (changed, turn) = (tokio::sync::Notify::new(), tokio::sync::Mutex::default());
        let plugins = Self { dir, store, policy, table, changed, turn };
        for (record, canary) in lost {
            plugins.take_back_lost(&record, &canary).await;
        }
        plugins.sweep();
        plugins
    }

    /// Whom decisions about `tenant`'s VM `vm` pass: the operator's plugins, then its own, each by name. Of one with a
    /// canary, the version that this VM is given.
    pub(super) fn chain(&self, tenant: &TenantId, vm: &VmName) -> Arc<[Bound]> {
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
                plugin: view.asked_for(tenant, vm).clone(),
                mode: view.record.mode,
                weight: view.record.weight,
            })
            .collect()
    }

    /// What is bound as `name` in `scope`.
    pub(super) fn view(&self, scope: &PolicyScope, name: &PluginId) -> Result<PluginView, ServiceError> {
        self.table().get(&(scope.clone(), name.clone())).cloned().ok_or(ServiceError::NoSuchPlugin)
    }

    /// The first hook at which nobody of the operator's chain would decide any more without `name`.
    fn left_alone(&self, name: &PluginId) -> Option<&'static str> {
        let table = self.table();
        let decides = |scope: &PolicyScope, view: &PluginView| {
            *scope == PolicyScope::Operator && view.record.mode == PluginMode::Enforced
        };
        let operators = table.iter().filter(|((scope, _), view)| decides(scope, view));
        let (own, others): (Vec<_>, Vec<_>) = operators.partition(|((_, other), _)| other == name);
        let mut hooks = own.iter().flat_map(|(_, view)| view.plugin.hooks_to_keep());
        let is_served = |hook: &str| others.iter().any(|(_, view)| view.plugin.hooks().contains(&hook));
        hooks.find(|hook| !is_served(hook))
    }

    fn unbind(&self, record: &PluginRecord) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = Table::clone(&table);
        next.remove(&(record.scope.clone(), record.name.clone()));
        *table = Arc::new(next);
    }

    /// Names of the components' files that a plugin, or another version of one, has.
    pub(super) fn kept_files(&self) -> Vec<String> {
        self.digests().into_iter().map(file_name).collect()
    }

    /// Of what is bound or tried, of what was and is kept, and of what has a name.
    fn digests(&self) -> Vec<PluginDigest> {
        let table = self.table();
        let bound = table.values().map(|view| view.record.digest);
        let previous = table.values().flat_map(|view| view.record.previous.iter().map(|version| version.digest));
        let tried = table.values().filter_map(|view| Some(view.record.active_canary()?.version.digest));
        let named = table.values().flat_map(|view| view.record.aliases.iter().map(|(_, version)| version.digest));
        bound.chain(tried).chain(previous).chain(named).collect()
    }

    /// Waits until no plugin is being loaded; none is as long as the guard lives.
    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
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

    /// A version that is kept, ready to be asked.
    pub(super) async fn ready(
        &self,
        owner: &PolicyScope,
        version: &PluginVersion,
    ) -> Result<LoadedPlugin, ServiceError> {
        reload(&self.dir, owner, version, &self.policy).await.map_err(|error| match error {
            ReloadError::Load(source @ LoadError::Unavailable(_)) => {
                ServiceError::Plugin { scope: owner.clone(), source }
            }
            lost => ServiceError::VersionLost { cause: lost.to_string() },
        })
    }

    pub(super) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn bind(&self, view: PluginView) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = Table::clone(&table);
        next.insert((view.record.scope.clone(), view.record.name.clone()), view);
        *table = Arc::new(next);
        self.changed.notify_one();
    }

    /// Removes components that no plugin has any more, as its version, one before, or one that has a name.
    pub(super) fn sweep(&self) {
        self.policy.keep_compiled(&self.digests());
        let kept = self.kept_files();
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            if !kept.iter().any(|name| entry.file_name() == name.as_str()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// `version` in the place of `replaced`, which it can be taken back to, with its weight, and with the alias that is followed.
/// It has no canary.
pub(super) fn successor(
    replaced: Option<&PluginView>,
    scope: PolicyScope,
    name: PluginId,
    version: PluginVersion,
    mode: PluginMode,
) -> PluginRecord {
    let mut previous = Vec::new();
    if let Some(PluginView { record, .. }) = replaced {
        previous.push(record.version());
        previous.extend(record.previous.iter().cloned());
        previous.retain(|old| !old.is_same(&version));
        previous.truncate(MAX_PREVIOUS);
    }
    let mut aliases = replaced.map(|view| view.record.aliases.clone()).unwrap_or_default();
    aliases.bound(&version);
    let PluginVersion { digest, settings, signatures, grants, loaded } = version;
    let weight = replaced.map(|view| view.record.weight).unwrap_or_default();
    let canary = None;
    PluginRecord { scope, name, digest, settings, signatures, grants, mode, weight, loaded, previous, canary, aliases }
}

/// Why a version that is kept cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    /// Its file.
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// What is in it.
    #[error("{} is not what was loaded", .0.display())]
    Altered(PathBuf),
    #[error(transparent)]
    Load(#[from] LoadError),
}

pub(super) async fn reload(
    dir: &Path,
    owner: &PolicyScope,
    version: &PluginVersion,
    host: &PolicyHost,
) -> Result<LoadedPlugin, ReloadError> {
    let path = dir.join(file_name(version.digest));
    let bytes = match tokio::fs::read(&path).await {
        Ok(bytes) => bytes,
        Err(source) => return Err(ReloadError::Unreadable { path, source }),
    };
    if PluginDigest(Sha256::digest(&bytes).into()) != version.digest {
        return Err(ReloadError::Altered(path));
    }
    Ok(host.load_again(owner, bytes, version.settings.clone(), version.grants.clone()).await?)
}

impl Node {
    /// A version that `principal` may load into the chain of `scope`: signed as that requires, not larger than its owner may
    /// have it, and ready to be asked.
    pub(super) async fn compiled(
        &self,
        principal: &Principal,
        scope: &PolicyScope,
        upload: &PluginUpload,
    ) -> Result<(LoadedPlugin, PluginVersion), ServiceError> {
        require_chain(principal, scope)?;
        let PluginUpload { component, digest, settings, grants, signatures } = upload;
        let signatures = self.require_signed(scope, *digest, signatures.clone())?;
        self.require_size(scope, component.len())?;
        let loaded = self.policy.load_granted(scope, component.clone(), settings.clone(), grants.clone()).await;
        let plugin = loaded.map_err(|source| ServiceError::Plugin { scope: scope.clone(), source })?;
        let (digest, loaded) = (plugin.digest(), SystemTime::now());
        let (settings, grants) = (settings.clone(), grants.clone());
        Ok((plugin, PluginVersion { digest, settings, signatures, grants, loaded }))
    }

    /// Compiles a component and binds it where `place` says, instead of what was bound there.
    pub async fn load_plugin(
        &self,
        principal: &Principal,
        place: PluginPlace,
        upload: PluginUpload,
        terms: &Terms<PluginView>,
    ) -> Result<PluginView, ServiceError> {
        let PluginPlace { scope, name, mode, weight } = place;
        let (plugin, version) = self.compiled(principal, &scope, &upload).await?;
        let _turn = self.plugins.turn.lock().await;
        let replaced = self.plugins.view(&scope, &name).ok();
        let etag = || replaced.as_ref().map(|view| plugin_etag(&view.record));
        terms.require_etag(&format!("plugin {name}"), etag)?;
        // Who would try a version beside the one that decides must not lose that by a name.
        let is_enforced = |view: &PluginView| view.record.mode == PluginMode::Enforced;
        if mode == PluginMode::Shadow && replaced.as_ref().is_some_and(is_enforced) {
            return Err(ServiceError::PluginEnforced);
        }
        if replaced.is_none() {
            self.require_room(&scope)?;
        }
        let digest = version.digest;
        let mut record = successor(replaced.as_ref(), scope, name, version, mode);
        record.weight = weight.unwrap_or(record.weight);
        let view = PluginView { record, plugin, canary: None };
        self.require_memory(&view)?;
        if terms.validate_only {
            return Ok(view);
        }
        self.keep(digest, upload.component).await?;
        self.rebind(&view, terms).await?;
        let PluginRecord { scope, name, signatures, .. } = &view.record;
        let signers = signer_ids(signatures);
        tracing::info!(plugin = %name, %digest, ?mode, ?scope, ?signers, %principal, "plugin loaded");
        Ok(view)
    }

    /// Puts a component on disk, to be bound.
    pub(super) async fn keep(&self, digest: PluginDigest, component: Vec<u8>) -> Result<(), ServiceError> {
        let path = self.plugins.dir.join(file_name(digest));
        let written = tokio::task::spawn_blocking(move || write_durably(&path, &component)).await;
        written
            .unwrap_or_else(|ended| Err(io::Error::other(ended)))
            .map_err(|source| ServiceError::Host { what: "the component", source })?;
        crash::reach(Point::PluginWritten);
        Ok(())
    }

    /// Records a plugin with the answer to whoever asked for that, and then has decisions pass through it. The caller has
    /// the turn.
    pub(super) async fn rebind(&self, view: &PluginView, terms: &Terms<PluginView>) -> Result<(), ServiceError> {
        let request = terms.success(view);
        self.store.put_plugin_for(view.record.clone(), request.clone()).await?;
        crash::reach(Point::PluginRecorded);
        self.requests.written(request).await;
        self.plugins.bind(view.clone());
        self.plugins.sweep();
        Ok(())
    }

    /// Binds a version again that was bound as `name` in `scope` before, or has an alias: the last one, or `version`. What
    /// is bound now takes its place among the earlier ones.
    pub async fn roll_back_plugin(
        &self,
        principal: &Principal,
        scope: PolicyScope,
        name: PluginId,
        version: Option<VersionName>,
        terms: &Terms<PluginView>,
    ) -> Result<PluginView, ServiceError> {
        require_chain(principal, &scope)?;
        let _turn = self.plugins.turn.lock().await;
        let replaced = self.plugins.view(&scope, &name)?;
        terms.require_etag(&format!("plugin {name}"), || Some(plugin_etag(&replaced.record)))?;
        replaced.require_no_canary()?;
        let last = || replaced.record.previous.first().cloned().ok_or(ServiceError::NoSuchVersion);
        let version = version.map_or_else(last, |version| earlier(&replaced.record, &version))?;
        let view = self.rebound(replaced, version).await?;
        if terms.validate_only {
            return Ok(view);
        }
        self.rebind(&view, terms).await?;
        let PluginRecord { scope, name, digest, .. } = &view.record;
        tracing::info!(plugin = %name, %digest, ?scope, %principal, "plugin rolled back");
        Ok(view)
    }

    /// Has a plugin's answers count, or not any more, from the next decision on. The last of the operator's at a hook
    /// becomes a shadow only by force: without one everything is denied there.
    pub async fn set_plugin_mode(
        &self,
        principal: &Principal,
        place: PluginPlace,
        is_forced: bool,
        terms: &Terms<PluginView>,
    ) -> Result<PluginView, ServiceError> {
        let PluginPlace { scope, name, mode, .. } = place;
        require_chain(principal, &scope)?;
        let _turn = self.plugins.turn.lock().await;
        let bound = self.plugins.view(&scope, &name)?;
        terms.require_etag(&format!("plugin {name}"), || Some(plugin_etag(&bound.record)))?;
        bound.require_no_canary()?;
        match mode {
            PluginMode::Enforced => self.require_still_signed(&scope, &bound.record.version())?,
            PluginMode::Shadow if !is_forced => self.require_others(&scope, &name)?,
            PluginMode::Shadow => {}
        }
        let view = PluginView { record: PluginRecord { mode, ..bound.record }, ..bound };
        if terms.validate_only {
            return Ok(view);
        }
        self.rebind(&view, terms).await?;
        tracing::info!(plugin = %view.record.name, digest = %view.record.digest, ?mode, ?scope, %principal, "plugin's mode set");
        Ok(view)
    }

    /// That at no hook everything is denied once `name` decides nothing any more.
    fn require_others(&self, scope: &PolicyScope, name: &PluginId) -> Result<(), ServiceError> {
        let left_alone = (*scope == PolicyScope::Operator).then(|| self.plugins.left_alone(name)).flatten();
        left_alone.map_or(Ok(()), |hook| Err(ServiceError::LastOfHook { hook }))
    }

    /// Takes a plugin out of its chain, with its earlier versions. The last of the operator's at a hook goes only by
    /// force: without one everything is denied there.
    pub async fn unload_plugin(
        &self,
        principal: &Principal,
        scope: PolicyScope,
        name: PluginId,
        is_forced: bool,
        terms: &Terms<()>,
    ) -> Result<(), ServiceError> {
        require_chain(principal, &scope)?;
        let _turn = self.plugins.turn.lock().await;
        let PluginView { record, .. } = self.plugins.view(&scope, &name)?;
        terms.require_etag(&format!("plugin {name}"), || Some(plugin_etag(&record)))?;
        if !is_forced {
            self.require_others(&scope, &name)?;
        }
        if terms.validate_only {
            return Ok(());
        }
        let request = terms.success(&());
        self.store.remove_plugin_for(record.clone(), request.clone()).await?;
        crash::reach(Point::PluginUnloaded);
        self.requests.written(request).await;
        tracing::info!(plugin = %record.name, digest = %record.digest, scope = ?record.scope, %principal, "plugin unloaded");
        self.plugins.unbind(&record);
        self.plugins.sweep();
        Ok(())
    }

    /// Plugins of the chains that `principal` may see, in the order asked. `None` lists the operator's alone.
    pub fn list_plugins(
        &self,
        principal: &Principal,
        whose: Option<&Whose>,
    ) -> Result<Vec<PluginStatus>, ServiceError> {
        let tenant = whose.map(|whose| whose.resolve(principal)).transpose()?;
        let is_asked_for = |scope: &PolicyScope| match (scope, &tenant) {
            (PolicyScope::Operator, _) => true,
            (PolicyScope::Tenant(_), None) => false,
            (PolicyScope::Tenant(_), Some(None)) => true,
            (PolicyScope::Tenant(own), Some(Some(tenant))) => own == tenant,
        };
        let table = self.plugins.table();
        let views = table.values().filter(|view| is_asked_for(&view.record.scope));
        Ok(views.map(|view| self.status(principal, view)).collect())
    }

    fn status(&self, principal: &Principal, view: &PluginView) -> PluginStatus {
        let PluginRecord { scope, name, mode, .. } = &view.record;
        let mut breakers = self.policy.breakers(scope, name.as_str(), &view.plugin, *mode);
        // What others' requests do to the operator's plugin is theirs to know.
        breakers.retain(|(_, tenant, _)| principal.may_see(tenant));
        let is_owners = matches!((scope, principal), (PolicyScope::Tenant(_), _) | (_, Principal::Operator(_)));
        let counts = view.canary.as_ref().filter(|_| is_owners).map(CanaryView::counts);
        let observers = self.observers.status(principal, view);
        PluginStatus { view: view.clone(), breakers, observers, counts, is_owners, signers: self.chain_signers(scope) }
    }
}

/// Whose keys these are of, for the log.
pub(super) fn signer_ids(signatures: &[PluginSignature]) -> Vec<SignerId> {
    signatures.iter().map(|signature| signature.key.id()).collect()
}

/// Whether the caller may change the chain.
pub(super) fn require_chain(principal: &Principal, scope: &PolicyScope) -> Result<(), ServiceError> {
    match (scope, principal) {
        (PolicyScope::Operator, Principal::Operator(_)) => Ok(()),
        (PolicyScope::Operator, Principal::Tenant(_) | Principal::Viewer(_)) => {
            Err(ServiceError::NotAllowed { needs: "an operator changes the operator's plugins" })
        }
        (PolicyScope::Tenant(tenant), principal) => require_own(principal, tenant),
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
