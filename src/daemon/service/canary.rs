//! A version of a plugin that decides for a share of the VMs first: loading it, what comes of it, its end. Key types:
//! [`CanaryView`], [`CanaryError`].
//!
//! ```text
//!   load --canary ──▶ ACTIVE ──promoted──▶ the bound version
//!                       ├────dropped──────▶ gone
//!                       └─ a decision on record: worse than the bound version? ──▶ ROLLED_BACK, on record first
//! ```
//!
//! Each decision is one version's as a whole: which, its chain says (`Plugins::chain`). Only decisions on record count, so
//! that what is merely tried (`validate_only`) takes nothing back. Counts are kept in memory and begin anew with a daemon.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::plugins::{PluginUpload, PluginView, Plugins, reload, require_chain, signer_ids, successor};
use super::{Node, Principal, ServiceError, Terms};
use crate::daemon::crash::{self, Point};
use crate::daemon::policy::{LoadedPlugin, PolicyHost};
use crate::daemon::store::{CanaryRecord, CanaryState, PluginRecord, PluginVersion, plugin_etag};
use crate::model::{
    Came, CanaryCause, CanaryShare, ChainLink, Counts, DecisionEntry, Edition, PluginId, PluginMode, PolicyFault,
    PolicyScope, Said, TenantId, Trial,
};

/// Why a version is not tried, or its trial not ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CanaryError {
    /// One is tried, and what it is compared with must stay.
    #[error(
        "a canary of this plugin is tried; promote it or drop it first (`ostler plugin promote|demote NAME --canary`)"
    )]
    Active,
    /// None is tried.
    #[error("this plugin has no canary that could be ended so; `ostler plugin list` shows what became of it")]
    None,
    /// There is nothing to stand beside.
    #[error("no plugin of that name decides, so there is nothing to compare a canary with; load it without --canary")]
    NothingBound,
    /// Its part in a decision would be another one.
    #[error(
        "a canary must serve the hooks of the plugin that is bound ({}), and no others: it serves {}; try it as a shadow, or load it without --canary",
        bound.join(", "),
        tried.join(", ")
    )]
    OtherHooks {
        /// Those of the bound version.
        bound: Vec<&'static str>,
        /// Those of the canary.
        tried: Vec<&'static str>,
    },
}

/// How a client ends a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CanaryEnd {
    /// The canary decides for all.
    Promote,
    /// It is forgotten.
    Drop,
}

/// Where a canary is loaded.
#[derive(Debug, Clone)]
pub struct CanaryPlace {
    /// Whose chain.
    pub scope: PolicyScope,
    /// The plugin that it is a version of.
    pub name: PluginId,
    /// For how many VMs it decides.
    pub share: CanaryShare,
}

/// A canary as it is asked. Clones share what is counted.
#[derive(Debug, Clone)]
pub struct CanaryView {
    /// The version.
    pub plugin: LoadedPlugin,
    /// Rank: leaf. Guards what came of decisions; held for a look.
    trial: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    trial: Trial,
    /// It is about to be rolled back: once is enough.
    is_ending: bool,
}

/// What one decision says of a trial.
#[derive(Debug)]
pub(super) struct Observed {
    scope: PolicyScope,
    name: PluginId,
    canary: CanaryView,
    edition: Edition,
    subject: u64,
    came: Came,
    fault: Option<PolicyFault>,
}

impl CanaryView {
    fn new(plugin: LoadedPlugin) -> Self {
        Self { plugin, trial: Arc::default() }
    }

    /// As `canary` of `record` says. One that does not load fails closed until it is rolled back.
    pub(super) async fn restore(dir: &Path, record: &PluginRecord, canary: &CanaryRecord, policy: &PolicyHost) -> Self {
        let loaded = reload(dir, &record.scope, &canary.version, policy).await;
        Self::new(loaded.unwrap_or_else(|error| {
            LoadedPlugin::broken(record.name.as_str(), canary.version.digest, error.to_string())
        }))
    }

    /// Whether it could not be loaded again.
    pub(super) fn is_lost(&self) -> bool {
        self.plugin.broken_cause().is_some()
    }

    /// What came of decisions: with it, and with the bound version.
    pub(super) fn counts(&self) -> (Counts, Counts) {
        let running = self.running();
        (running.trial.counts(Edition::Canary), running.trial.counts(Edition::Stable))
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.trial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plugins {
    /// What a decision of `tenant` that is about to be recorded says of the trials under way.
    pub(super) fn observe(&self, tenant: &TenantId, entry: &DecisionEntry) -> Vec<Observed> {
        let table = self.table();
        // Who was not asked has no answer here.
        let asked = entry.chain.iter().zip(&entry.answers);
        let observed = asked.filter_map(|(link, answer)| {
            let place = (link.scope.clone(), link.plugin.parse().ok()?);
            let view = table.get(&place)?;
            let canary = view.canary.clone()?;
            let edition = edition(&view.record, link)?;
            let (came, fault) = came(entry, &answer.said)?;
            let (scope, name) = place;
            Some(Observed { scope, name, canary, edition, subject: subject(tenant, entry), came, fault })
        });
        observed.collect()
    }

    /// Counts what decisions on record have shown, and rolls back what has become worse. Nobody waits for that.
    pub(super) fn count_in(self: &Arc<Self>, observed: Vec<Observed>) {
        for observed in observed {
            if let Some((cause, message)) = self.judge(&observed) {
                let plugins = Arc::clone(self);
                tokio::spawn(async move {
                    let Observed { scope, name, canary, .. } = observed;
                    plugins.take_back(&scope, &name, &canary, cause, message).await;
                });
            }
        }
    }

    /// Why the canary is to be rolled back after this decision, and for the first time.
    fn judge(&self, observed: &Observed) -> Option<(CanaryCause, String)> {
        let Observed { scope, name, canary, edition, subject, came, fault } = observed;
        // Looked up before the lock: both are leaves.
        let is_open = *edition == Edition::Canary && *came == Came::Failed && {
            !self.policy.breakers(scope, name.as_str(), &canary.plugin, PluginMode::Enforced).is_empty()
        };
        let mut running = canary.running();
        running.trial.note(*edition, *subject, *came);
        let cause = if is_open { Some(CanaryCause::BreakerOpen) } else { running.trial.verdict() };
        let cause = cause.filter(|_| !running.is_ending)?;
        running.is_ending = true;
        let (with, without) = (running.trial.counts(Edition::Canary), running.trial.counts(Edition::Stable));
        Some((cause, message(cause, with, without, fault.as_ref())))
    }

    /// Rolls a canary back that could not be loaded again.
    pub(super) async fn take_back_lost(&self, record: &PluginRecord, canary: &CanaryView) {
        let message = canary.plugin.broken_cause().unwrap_or_default().to_owned();
        self.take_back(&record.scope, &record.name, canary, CanaryCause::Lost, message).await;
    }

    /// Rolls `canary` back, if it is still that one which is tried: on record, and then in the table.
    async fn take_back(
        &self,
        scope: &PolicyScope,
        name: &PluginId,
        canary: &CanaryView,
        cause: CanaryCause,
        message: String,
    ) {
        let _turn = self.turn().await;
        let Ok(view) = self.view(scope, name) else { return };
        let is_it = view.canary.as_ref().is_some_and(|now| Arc::ptr_eq(&now.trial, &canary.trial));
        let Some(tried) = view.record.canary.clone().filter(|_| is_it) else { return };
        let digest = tried.version.digest;
        let state = CanaryState::RolledBack { cause, message: message.clone(), time: SystemTime::now() };
        let record = PluginRecord { canary: Some(CanaryRecord { state, ..tried }), ..view.record };
        if let Err(error) = self.store.put_plugin_for(record.clone(), None).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(plugin = %name, %digest, ?scope, error, "canary is not rolled back: the next decision tries again");
            canary.running().is_ending = false;
            return;
        }
        crash::reach(Point::CanaryRolledBack);
        self.bind(PluginView { record, plugin: view.plugin, canary: None });
        self.sweep();
        tracing::warn!(plugin = %name, %digest, ?scope, code = cause.code(), message, "canary rolled back");
    }
}

/// Which version a link of a chain is; `None` if it is neither (any more).
fn edition(record: &PluginRecord, link: &ChainLink) -> Option<Edition> {
    let is = |version: &PluginVersion| version.digest == link.digest && version.settings == link.settings;
    match record.active_canary() {
        Some(canary) if is(&canary.version) => Some(Edition::Canary),
        Some(_) if record.digest == link.digest && record.settings == link.settings => Some(Edition::Stable),
        _ => None,
    }
}

/// What came of the decision, as far as it says something of a version that said `said`: nothing if that was not asked.
fn came(entry: &DecisionEntry, said: &Said) -> Option<(Came, Option<PolicyFault>)> {
    match said {
        Said::Fault(PolicyFault::Unavailable(_) | PolicyFault::BreakerOpen { .. }) => None,
        Said::Fault(fault) => Some((Came::Failed, Some(fault.clone()))),
        Said::Verdict(_) if entry.is_allowed() => Some((Came::Allowed, None)),
        Said::Verdict(_) => Some((Came::Denied, None)),
    }
}

/// The VM, at the hook: `vms/web` of `vms/web/nics/eth0`.
fn subject(tenant: &TenantId, entry: &DecisionEntry) -> u64 {
    let vm: Vec<_> = entry.subject.split('/').take(2).collect();
    let mut hasher = DefaultHasher::new();
    (tenant, &entry.hook, vm).hash(&mut hasher);
    hasher.finish()
}

fn message(cause: CanaryCause, with: Counts, without: Counts, fault: Option<&PolicyFault>) -> String {
    let compared = |what: &str, hits: u64, stable_hits: u64| {
        let (asked, stable_asked) = (with.asked, without.asked);
        format!("{hits} of {asked} {what} with the canary, {stable_hits} of {stable_asked} with the bound version")
    };
    match cause {
        CanaryCause::Denials => compared("VMs were denied", with.denied, without.denied),
        CanaryCause::Failures => compared("answers failed", with.failed, without.failed),
        CanaryCause::BreakerOpen | CanaryCause::Lost => {
            let fault = fault.map(|fault| format!(": {fault} ({})", fault.code())).unwrap_or_default();
            format!("it failed again and again{fault}")
        }
    }
}

impl Node {
    /// Compiles a component and has it decide, as a version of the plugin that is bound there, for a share of the VMs. It
    /// takes the place of a canary that is tried already.
    pub async fn load_canary(
        &self,
        principal: &Principal,
        place: CanaryPlace,
        upload: PluginUpload,
        terms: &Terms<PluginView>,
    ) -> Result<PluginView, ServiceError> {
        let CanaryPlace { scope, name, share } = place;
        let (plugin, version) = self.compiled(principal, &scope, &upload).await?;
        let _turn = self.plugins.turn().await;
        let bound = self.plugins.view(&scope, &name).ok();
        let etag = || bound.as_ref().map(|view| plugin_etag(&view.record));
        terms.require_etag(&format!("plugin {name}"), etag)?;
        let decides = |view: &PluginView| view.record.mode == PluginMode::Enforced;
        let bound = bound.filter(decides).ok_or(CanaryError::NothingBound)?;
        if bound.plugin.hooks() != plugin.hooks() {
            let (bound, tried) = (bound.plugin.hooks().to_vec(), plugin.hooks().to_vec());
            return Err(CanaryError::OtherHooks { bound, tried }.into());
        }
        if bound.canary.is_none() {
            self.require_room(&scope)?;
        }
        let (digest, signers) = (version.digest, signer_ids(&version.signatures));
        let canary = Some(CanaryRecord { version, share, state: CanaryState::Active });
        let record = PluginRecord { canary, ..bound.record };
        let view = PluginView { record, plugin: bound.plugin, canary: Some(CanaryView::new(plugin)) };
        self.require_memory(&view)?;
        if terms.validate_only {
            return Ok(view);
        }
        self.keep(digest, upload.component).await?;
        self.rebind(&view, terms).await?;
        let percent = share.percent();
        tracing::info!(plugin = %view.record.name, %digest, percent, ?scope, ?signers, %principal, "canary loaded");
        Ok(view)
    }

    /// Ends the trial of the canary of `name` in `scope`. One that was rolled back can only be dropped.
    pub async fn end_canary(
        &self,
        principal: &Principal,
        scope: PolicyScope,
        name: PluginId,
        end: CanaryEnd,
        terms: &Terms<PluginView>,
    ) -> Result<PluginView, ServiceError> {
        require_chain(principal, &scope)?;
        let _turn = self.plugins.turn().await;
        let bound = self.plugins.view(&scope, &name)?;
        terms.require_etag(&format!("plugin {name}"), || Some(plugin_etag(&bound.record)))?;
        let tried = bound.record.canary.clone().ok_or(CanaryError::None)?;
        let digest = tried.version.digest;
        if end == CanaryEnd::Promote && bound.canary.is_some() {
            self.require_still_signed(&scope, &tried.version)?;
        }
        let view = match (end, &bound.canary) {
            (CanaryEnd::Promote, None) => return Err(CanaryError::None.into()),
            (CanaryEnd::Promote, Some(canary)) => PluginView {
                record: successor(Some(&bound), scope, name, tried.version, PluginMode::Enforced),
                plugin: canary.plugin.clone(),
                canary: None,
            },
            (CanaryEnd::Drop, _) => {
                PluginView { record: PluginRecord { canary: None, ..bound.record }, plugin: bound.plugin, canary: None }
            }
        };
        if terms.validate_only {
            return Ok(view);
        }
        self.rebind(&view, terms).await?;
        tracing::info!(plugin = %view.record.name, %digest, ?end, scope = ?view.record.scope, %principal, "canary ended");
        Ok(view)
    }
}
