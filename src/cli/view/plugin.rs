//! Plugins as JSON and as text. Key types: [`PluginView`], [`SignerView`].

use std::collections::BTreeMap;

use serde::Serialize;

use crate::api::v1;
use crate::model::KvValue;

use super::super::print;
use super::canary::CanaryView;
use super::{moment, nanos};

/// A plugin.
#[derive(Debug, Serialize)]
pub(crate) struct PluginView {
    name: String,
    digest: String,
    hooks: Vec<String>,
    version: String,
    summary: String,
    settings: BTreeMap<String, String>,
    grants: Vec<String>,
    size_bytes: u64,
    load_time: Option<String>,
    failure: String,
    breakers: Vec<BreakerView>,
    observers: Vec<ObserverView>,
    previous: Vec<VersionView>,
    etag: String,
    mode: String,
    canary: Option<CanaryView>,
    signers: Vec<SignerView>,
    unsigned_code: String,
    aliases: Vec<AliasView>,
    follows: String,
    weight: u32,
}

/// A name of a version.
#[derive(Debug, Serialize)]
struct AliasView {
    name: String,
    #[serde(flatten)]
    version: VersionView,
}

#[derive(Debug, Serialize)]
pub(super) struct VersionView {
    pub(super) digest: String,
    pub(super) settings: BTreeMap<String, String>,
    pub(super) grants: Vec<String>,
    load_time: Option<String>,
    pub(super) signers: Vec<SignerView>,
    pub(super) unsigned_code: String,
}

/// Somebody who signed, or had to.
#[derive(Debug, Serialize)]
pub(crate) struct SignerView {
    key: String,
    name: String,
}

#[derive(Debug, Serialize)]
struct BreakerView {
    hook: String,
    tenant: String,
    retry_ns: u64,
}

/// How far it is with a tenant's events.
#[derive(Debug, Serialize)]
struct ObserverView {
    tenant: String,
    next_sequence: u64,
    waiting: u64,
    code: String,
    message: String,
    failure_time: Option<String>,
}

impl From<v1::PluginObserver> for ObserverView {
    fn from(observer: v1::PluginObserver) -> Self {
        let v1::PluginObserver { tenant, next_sequence, waiting, code, message, failure_time } = observer;
        Self { tenant, next_sequence, waiting, code, message, failure_time: failure_time.and_then(moment) }
    }
}

impl ObserverView {
    /// What is yet to be told of whom, and why it may not have been.
    fn text(&self) -> String {
        let Self { tenant, waiting, code, .. } = self;
        let why = if code.is_empty() { String::new() } else { format!(" ({code})") };
        format!("{waiting} events of {}{why}", tenant.trim_start_matches("tenants/"))
    }
}

impl From<v1::Plugin> for PluginView {
    fn from(plugin: v1::Plugin) -> Self {
        Self {
            mode: plugin.mode().as_str_name().to_owned(),
            name: plugin.name,
            digest: plugin.digest,
            hooks: plugin.hooks,
            version: plugin.version,
            summary: plugin.summary,
            settings: plugin.settings.into_iter().collect(),
            grants: plugin.grants,
            size_bytes: plugin.size_bytes,
            load_time: plugin.load_time.and_then(moment),
            failure: plugin.failure,
            breakers: plugin.breakers.into_iter().map(BreakerView::from).collect(),
            observers: plugin.observers.into_iter().map(ObserverView::from).collect(),
            previous: plugin.previous.into_iter().map(VersionView::from).collect(),
            etag: plugin.etag,
            canary: plugin.canary.map(CanaryView::from),
            signers: plugin.signers.into_iter().map(SignerView::from).collect(),
            unsigned_code: plugin.unsigned_code,
            aliases: plugin.aliases.into_iter().filter_map(AliasView::read).collect(),
            follows: plugin.follows,
            weight: plugin.weight,
        }
    }
}

impl AliasView {
    /// One without a version is none.
    fn read(alias: v1::PluginAlias) -> Option<Self> {
        Some(Self { name: alias.name, version: alias.version?.into() })
    }
}

impl From<v1::PluginVersion> for VersionView {
    fn from(version: v1::PluginVersion) -> Self {
        let v1::PluginVersion { digest, settings, load_time, signers, unsigned_code, grants } = version;
        Self {
            digest,
            settings: settings.into_iter().collect(),
            grants,
            load_time: load_time.and_then(moment),
            signers: signers.into_iter().map(SignerView::from).collect(),
            unsigned_code,
        }
    }
}

impl From<v1::PluginSigner> for SignerView {
    fn from(signer: v1::PluginSigner) -> Self {
        let v1::PluginSigner { key, name } = signer;
        Self { key, name }
    }
}

impl SignerView {
    /// What the operator calls each, else its key in short; and whether none of them had to sign, if somebody had to.
    pub(crate) fn cell(signers: &[Self], unsigned_code: &str) -> String {
        let name = |one: &Self| if one.name.is_empty() { print::short_digest(&one.key) } else { one.name.clone() };
        let mut names: Vec<_> = signers.iter().map(name).collect();
        if !unsigned_code.is_empty() {
            names.push(format!("({})", unsigned_code.trim_start_matches("signature.")));
        }
        names.join(" ")
    }
}

impl From<v1::PluginBreaker> for BreakerView {
    fn from(breaker: v1::PluginBreaker) -> Self {
        Self { hook: breaker.hook, tenant: breaker.tenant, retry_ns: nanos(breaker.retry) }
    }
}

impl PluginView {
    /// Whether a version is the one that is bound.
    fn is_bound(&self, version: &VersionView) -> bool {
        (&self.digest, &self.settings) == (&version.digest, &version.settings)
    }

    /// Names of the bound version.
    fn names(&self) -> String {
        let own = self.aliases.iter().filter(|alias| self.is_bound(&alias.version));
        own.map(|alias| alias.name.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// What is wrong with it, else what it does.
    fn remark(&self) -> String {
        if !self.failure.is_empty() {
            return format!("BROKEN: {}", self.failure);
        }
        let of =
            |breaker: &BreakerView| format!("{} for {}", breaker.hook, breaker.tenant.trim_start_matches("tenants/"));
        let open: Vec<_> = self.breakers.iter().map(of).collect();
        let behind = self.observers.iter().filter(|observer| observer.waiting > 0).map(ObserverView::text);
        let behind: Vec<_> = behind.collect();
        let remarks = [("KEEPS FAILING", open), ("BEHIND", behind)].into_iter().filter(|(_, what)| !what.is_empty());
        let remarks: Vec<_> = remarks.map(|(what, whom)| format!("{what}: {}", whom.join(", "))).collect();
        if remarks.is_empty() { self.summary.clone() } else { remarks.join("; ") }
    }
}

/// Names of a plugin's versions.
#[derive(Debug, Serialize)]
pub(crate) struct AliasesView {
    plugin: String,
    digest: String,
    etag: String,
    follows: String,
    aliases: Vec<AliasView>,
    #[serde(skip)]
    bound: Vec<bool>,
}

impl From<v1::Plugin> for AliasesView {
    fn from(plugin: v1::Plugin) -> Self {
        let plugin = PluginView::from(plugin);
        let bound = plugin.aliases.iter().map(|alias| plugin.is_bound(&alias.version)).collect();
        let PluginView { name, digest, etag, follows, aliases, .. } = plugin;
        Self { plugin: name, digest, etag, follows, aliases, bound }
    }
}

impl AliasesView {
    /// A row for each.
    pub(crate) fn text(&self) -> String {
        let standing = |alias: &AliasView, is_bound: bool| match (alias.name == self.follows, is_bound) {
            (true, _) => "followed",
            (false, true) => "bound",
            (false, false) => "",
        };
        let aliases = self.aliases.iter().zip(&self.bound);
        let rows: Vec<_> = aliases
            .map(|(alias, is_bound)| {
                let AliasView { name, version } = alias;
                [
                    name.clone(),
                    standing(alias, *is_bound).to_owned(),
                    print::short_digest(&version.digest),
                    SignerView::cell(&version.signers, &version.unsigned_code),
                    version.grants.join(" "),
                    settings(&version.settings),
                    version.load_time.clone().unwrap_or_default(),
                ]
            })
            .collect();
        print::table(["ALIAS", "STANDING", "DIGEST", "SIGNERS", "GRANTS", "SETTINGS", "LOADED"], &rows)
    }
}

/// What has a weight of one says nothing of it.
pub(super) fn weighed(text: String, weight: u32) -> String {
    if weight > 1 { format!("{text} ×{weight}") } else { text }
}

/// Settings in a cell.
fn settings(settings: &BTreeMap<String, String>) -> String {
    settings.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

/// What a plugin remembers about a tenant.
#[derive(Debug, Serialize)]
pub(crate) struct KvView {
    plugin: String,
    tenant: String,
    entries: BTreeMap<String, KvValue>,
    write_time: Option<String>,
}

impl From<v1::PluginKv> for KvView {
    fn from(kv: v1::PluginKv) -> Self {
        let v1::PluginKv { name, tenant, entries, write_time } = kv;
        let entries = entries.into_iter().map(|entry| (entry.key, KvValue(entry.value))).collect();
        Self { plugin: name, tenant, entries, write_time: write_time.and_then(moment) }
    }
}

impl KvView {
    /// A row for each key.
    pub(crate) fn text(&self) -> String {
        let rows: Vec<_> = self.entries.iter().map(|(key, value)| [key.clone(), format!("{value:?}")]).collect();
        print::table(["KEY", "VALUE"], &rows)
    }
}

/// A table of plugins.
pub(crate) fn plugin_table(plugins: &[PluginView]) -> String {
    let rows: Vec<_> = plugins
        .iter()
        .flat_map(|plugin| {
            let bound = [
                plugin.name.clone(),
                plugin.version.clone(),
                plugin.hooks.join(","),
                weighed(plugin.mode.to_lowercase(), plugin.weight),
                print::short_digest(&plugin.digest),
                plugin.names(),
                SignerView::cell(&plugin.signers, &plugin.unsigned_code),
                plugin.grants.join(" "),
                settings(&plugin.settings),
                plugin.remark(),
            ];
            std::iter::once(bound).chain(plugin.canary.as_ref().map(CanaryView::row))
        })
        .collect();
    print::table(
        ["NAME", "VERSION", "HOOKS", "MODE", "DIGEST", "ALIASES", "SIGNERS", "GRANTS", "SETTINGS", "SUMMARY"],
        &rows,
    )
}
