//! Names of a plugin's versions: given, taken away, followed; and versions that are kept under one before they decide
//! anything. Key types: [`AliasPlace`], [`VersionName`].
//!
//! ```text
//!   load --alias next ──▶ kept ──alias set stable next──▶ kept under both
//!                                   └─ the plugin follows stable: bound, in one step, as by a load
//! ```
//!
//! A name is looked up when a call is made, under the turn that a load takes: what it names cannot change meanwhile.

use super::plugins::{PluginUpload, PluginView, require_chain, signer_ids, successor};
use super::{Node, Principal, ServiceError, Terms};
use crate::daemon::store::{PluginRecord, PluginVersion, plugin_etag};
use crate::model::{PluginAlias, PluginId, PolicyScope, VersionName};

/// A name of one of a plugin's versions.
#[derive(Debug, Clone)]
pub struct AliasPlace {
    /// Whose chain.
    pub scope: PolicyScope,
    /// The plugin.
    pub name: PluginId,
    /// The name.
    pub alias: PluginAlias,
}

/// The version of `record` that was bound before, or has a name, and is meant.
pub(super) fn earlier(record: &PluginRecord, name: &VersionName) -> Result<PluginVersion, ServiceError> {
    let named = record.aliases.iter().map(|(_, version)| version);
    find(record, record.previous.iter().chain(named), name)
}

/// The version of `record` that is meant, of all that there are.
pub(super) fn kept(record: &PluginRecord, name: &VersionName) -> Result<PluginVersion, ServiceError> {
    let (bound, tried) = (record.version(), record.active_canary().map(|canary| &canary.version));
    let named = record.aliases.iter().map(|(_, version)| version);
    find(record, std::iter::once(&bound).chain(&record.previous).chain(tried).chain(named), name)
}

fn find<'a>(
    record: &PluginRecord,
    mut versions: impl Iterator<Item = &'a PluginVersion>,
    name: &VersionName,
) -> Result<PluginVersion, ServiceError> {
    match name {
        VersionName::Alias(alias) => Ok(record.aliases.get(alias)?.clone()),
        VersionName::Digest(digest) => {
            versions.find(|version| version.digest == *digest).cloned().ok_or(ServiceError::NoSuchVersion)
        }
    }
}

impl Node {
    /// `version` in the place of `bound`, ready to decide there: signed as is required now, its settings checked anew, with
    /// room for its machine code.
    pub(super) async fn rebound(&self, bound: PluginView, version: PluginVersion) -> Result<PluginView, ServiceError> {
        if version == bound.record.version() && bound.plugin.broken_cause().is_none() {
            return Ok(bound);
        }
        bound.require_no_canary()?;
        let PluginRecord { scope, name, mode, .. } = bound.record.clone();
        self.require_still_signed(&scope, &version)?;
        let plugin = self.plugins.ready(&scope, &version).await?;
        let record = successor(Some(&bound), scope, name, version, mode);
        let view = PluginView { record, plugin, canary: None };
        self.require_memory(&view)?;
        Ok(view)
    }

    /// Has an alias name a version: the one that is bound, or that of `version`. If the plugin follows the alias, that
    /// version is bound with it.
    pub async fn set_plugin_alias(
        &self,
        principal: &Principal,
        place: AliasPlace,
        version: Option<VersionName>,
        terms: &Terms<PluginView>,
    ) -> Result<PluginView, ServiceError> {
        let AliasPlace { scope, name, alias } = place;
        require_chain(principal, &scope)?;
        let _turn = self.plugins.turn().await;
        let bound = self.plugins.view(&scope, &name)?;
        terms.require_etag(&format!("plugin {name}"), || Some(plugin_etag(&bound.record)))?;
        let version = version.map_or_else(|| Ok(bound.record.version()), |version| kept(&bound.record, &version))?;
        let digest = version.digest;
        let is_followed = bound.record.aliases.followed() == Some(&alias);
        let view = if is_followed {
            self.rebound(bound, version).await?
        } else {
            let mut view = bound;
            view.record.aliases.name(alias.clone(), version)?;
            view
        };
        if terms.validate_only {
            return Ok(view);
        }
        self.rebind(&view, terms).await?;
        tracing::info!(plugin = %name, %alias, %digest, is_bound = is_followed, ?scope, %principal, "plugin's alias set");
        Ok(view)
    }

    /// Takes an alias away. Its version goes, unless it is bound or was among the last ones that were.
    pub async fn delete_plugin_alias(
        &self,
        principal: &Principal,
        place: AliasPlace,
        terms: &Terms<PluginView>,
    ) -> Result<PluginView, ServiceError> {
        let AliasPlace { scope, name, alias } = place;
        require_chain(principal, &scope)?;
        let _turn = self.plugins.turn().await;
        let mut view = self.plugins.view(&scope, &name)?;
        terms.require_etag(&format!("plugin {name}"), || Some(plugin_etag(&view.record)))?;
        view.record.aliases.remove(&alias)?;
        if terms.validate_only {
            return Ok(view);
        }
        self.rebind(&view, terms).await?;
        tracing::info!(plugin = %name, %alias, ?scope, %principal, "plugin's alias removed");
        Ok(view)
    }

    /// Binds the version that an alias names, and from then on whatever it comes to name; or, with `None`, has the version
    /// stay that is bound.
    pub async fn follow_plugin_alias(
        &self,
        principal: &Principal,
        scope: PolicyScope,
        name: PluginId,
        alias: Option<PluginAlias>,
        terms: &Terms<PluginView>,
    ) -> Result<PluginView, ServiceError> {
        require_chain(principal, &scope)?;
        let _turn = self.plugins.turn().await;
        let mut bound = self.plugins.view(&scope, &name)?;
        terms.require_etag(&format!("plugin {name}"), || Some(plugin_etag(&bound.record)))?;
        // The alias that was followed stays with the version that it names.
        bound.record.aliases.follow(None)?;
        let mut view = match &alias {
            None => bound,
            Some(alias) => {
                let version = bound.record.aliases.get(alias)?.clone();
                self.rebound(bound, version).await?
            }
        };
        view.record.aliases.follow(alias.clone())?;
        if terms.validate_only {
            return Ok(view);
        }
        self.rebind(&view, terms).await?;
        let digest = view.record.digest;
        tracing::info!(plugin = %name, ?alias, %digest, ?scope, %principal, "plugin follows another alias");
        Ok(view)
    }

    /// Compiles a component and keeps it as a version of the plugin that is bound there, under an alias. It decides
    /// nothing, unless the plugin follows that alias.
    pub async fn load_alias(
        &self,
        principal: &Principal,
        place: AliasPlace,
        upload: PluginUpload,
        terms: &Terms<PluginView>,
    ) -> Result<PluginView, ServiceError> {
        let AliasPlace { scope, name, alias } = place;
        let (plugin, version) = self.compiled(principal, &scope, &upload).await?;
        let _turn = self.plugins.turn().await;
        let bound = self.plugins.view(&scope, &name).ok();
        let etag = || bound.as_ref().map(|view| plugin_etag(&view.record));
        terms.require_etag(&format!("plugin {name}"), etag)?;
        let bound = bound.ok_or(ServiceError::NothingBound)?;
        let (digest, signers) = (version.digest, signer_ids(&version.signatures));
        let is_followed = bound.record.aliases.followed() == Some(&alias);
        let view = if is_followed {
            bound.require_no_canary()?;
            let record = successor(Some(&bound), scope.clone(), name.clone(), version, bound.record.mode);
            PluginView { record, plugin, canary: None }
        } else {
            let mut view = bound;
            view.record.aliases.name(alias.clone(), version)?;
            view
        };
        self.require_memory(&view)?;
        if terms.validate_only {
            return Ok(view);
        }
        self.keep(digest, upload.component).await?;
        self.rebind(&view, terms).await?;
        tracing::info!(plugin = %name, %alias, %digest, is_bound = is_followed, ?scope, ?signers, %principal, "plugin loaded under an alias");
        Ok(view)
    }
}
