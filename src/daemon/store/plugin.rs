//! Plugins that are loaded, and how they are in the file. Key types: [`PluginRecord`], [`PluginVersion`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::alias::Aliases;
use super::format::{FORMAT, Unusable, from_json, from_ms, parse_digest, scope_of, tenant_of, text, to_json, to_ms};
use crate::model::{
    CanaryCause, CanaryShare, Grant, PluginAlias, PluginDigest, PluginId, PluginMode, PluginSignature, PluginWeight,
    PolicyScope, TenantId, VmName, canary_lot,
};

/// A plugin that is loaded at each start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginRecord {
    /// Whose chain it is in.
    pub scope: PolicyScope,
    /// Its name in that chain.
    pub name: PluginId,
    /// Its content, which lies beside the store under this name.
    pub digest: PluginDigest,
    /// What it was configured with.
    pub settings: BTreeMap<String, String>,
    /// Who signed it: checked when it was loaded.
    pub signatures: Vec<PluginSignature>,
    /// What it may have beyond what every plugin has.
    pub grants: BTreeSet<Grant>,
    /// What its answers count for; this stays when another version is bound.
    pub mode: PluginMode,
    /// How many times its scores count beside those of others; this stays, too.
    pub weight: PluginWeight,
    /// When it was loaded by the client.
    pub loaded: SystemTime,
    /// What was bound here before, newest first; a few, for going back.
    pub previous: Vec<PluginVersion>,
    /// A version that is tried beside it, or was and is not any more.
    pub canary: Option<CanaryRecord>,
    /// Names of its versions.
    pub aliases: Aliases,
}

/// A version of a plugin that is, or was, asked for a share of the VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanaryRecord {
    /// The version.
    pub version: PluginVersion,
    /// For how many VMs.
    pub share: CanaryShare,
    /// Where the trial is.
    pub state: CanaryState,
}

impl CanaryRecord {
    /// Whether it decides about this VM, as a version of `plugin`.
    pub fn has(&self, plugin: &PluginRecord, tenant: &TenantId, vm: &VmName) -> bool {
        self.share.has(canary_lot(&plugin.scope, &plugin.name, self.version.digest, tenant, vm))
    }
}

/// Where the trial of a version is. One that was promoted or dropped has no record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CanaryState {
    /// It decides for its share.
    Active,
    /// It decides nothing any more.
    RolledBack {
        /// Why.
        cause: CanaryCause,
        /// For people.
        message: String,
        /// When.
        time: SystemTime,
    },
}

/// A version of a plugin: what it is and how it is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginVersion {
    /// Its content.
    pub digest: PluginDigest,
    /// What it was configured with.
    pub settings: BTreeMap<String, String>,
    /// Who signed it: checked when it was loaded.
    pub signatures: Vec<PluginSignature>,
    /// What it may have beyond what every plugin has.
    pub grants: BTreeSet<Grant>,
    /// When it was loaded by the client.
    pub loaded: SystemTime,
}

impl PluginVersion {
    /// Whether it is the same version: content and settings. Who signed it and what it is granted may have changed.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.digest, &self.settings) == (other.digest, &other.settings)
    }
}

impl PluginRecord {
    /// The version that is bound.
    pub fn version(&self) -> PluginVersion {
        let Self { digest, settings, signatures, grants, loaded, .. } = self;
        let (settings, signatures, grants) = (settings.clone(), signatures.clone(), grants.clone());
        PluginVersion { digest: *digest, settings, signatures, grants, loaded: *loaded }
    }

    /// The canary that decides for its share, if there is one.
    pub fn active_canary(&self) -> Option<&CanaryRecord> {
        self.canary.as_ref().filter(|canary| canary.state == CanaryState::Active)
    }
}

#[derive(Serialize, Deserialize)]
struct StoredPlugin {
    format: u32,
    tenant: Option<String>,
    name: String,
    digest: String,
    settings: BTreeMap<String, String>,
    /// Left out if it is not: an etag is of these bytes, and those of older plugins stay.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    shadow: bool,
    /// Left out if it is one, as `shadow`.
    #[serde(default, skip_serializing_if = "PluginWeight::is_one")]
    weight: PluginWeight,
    /// A line each, as in a signature's file. Left out if there is none, as `shadow`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    signatures: Vec<String>,
    /// Left out if there is none, as `shadow`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    grants: Vec<String>,
    loaded_ms: u64,
    #[serde(default)]
    previous: Vec<StoredVersion>,
    /// Left out if there is none, as `shadow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    canary: Option<StoredCanary>,
    /// Left out if there is none, as `shadow`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    aliases: BTreeMap<String, StoredVersion>,
    /// Left out if there is none, as `shadow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    follows: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct StoredCanary {
    version: StoredVersion,
    percent: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rolled_back: Option<StoredRollBack>,
}

#[derive(Serialize, Deserialize)]
struct StoredRollBack {
    code: String,
    message: String,
    at_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct StoredVersion {
    digest: String,
    settings: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    signatures: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    grants: Vec<String>,
    loaded_ms: u64,
}

pub(super) fn plugin_key(plugin: &PluginRecord) -> String {
    place_key(&plugin.scope, plugin.name.as_str())
}

/// Of what is bound as `name` in `scope`.
pub(super) fn place_key(scope: &PolicyScope, name: &str) -> String {
    match scope {
        PolicyScope::Operator => format!("operator/{name}"),
        PolicyScope::Tenant(tenant) => format!("tenant/{tenant}/{name}"),
    }
}

pub(super) fn encode_plugin(plugin: &PluginRecord) -> Vec<u8> {
    to_json(&StoredPlugin {
        format: FORMAT,
        tenant: tenant_of(&plugin.scope),
        name: plugin.name.to_string(),
        digest: plugin.digest.to_string(),
        settings: plugin.settings.clone(),
        shadow: plugin.mode == PluginMode::Shadow,
        weight: plugin.weight,
        signatures: store_signatures(&plugin.signatures),
        grants: store_grants(&plugin.grants),
        loaded_ms: to_ms(plugin.loaded),
        previous: plugin.previous.iter().map(store_version).collect(),
        canary: plugin.canary.as_ref().map(store_canary),
        aliases: plugin.aliases.iter().map(|(alias, version)| (alias.to_string(), store_version(version))).collect(),
        follows: plugin.aliases.followed().map(ToString::to_string),
    })
}

fn store_canary(canary: &CanaryRecord) -> StoredCanary {
    let rolled_back = match &canary.state {
        CanaryState::Active => None,
        CanaryState::RolledBack { cause, message, time } => {
            Some(StoredRollBack { code: cause.code().to_owned(), message: message.clone(), at_ms: to_ms(*time) })
        }
    };
    StoredCanary { version: store_version(&canary.version), percent: canary.share.percent(), rolled_back }
}

fn load_canary(canary: StoredCanary) -> Result<CanaryRecord, Unusable> {
    let StoredCanary { version, percent, rolled_back } = canary;
    let state = match rolled_back {
        None => CanaryState::Active,
        Some(StoredRollBack { code, message, at_ms }) => {
            let cause = CanaryCause::ALL.into_iter().find(|cause| cause.code() == code);
            let cause = cause.ok_or_else(|| format!("{code:?} is no reason to roll a canary back"))?;
            CanaryState::RolledBack { cause, message, time: from_ms(at_ms)? }
        }
    };
    Ok(CanaryRecord { version: load_version(version)?, share: CanaryShare::new(percent).map_err(text)?, state })
}

fn store_version(version: &PluginVersion) -> StoredVersion {
    let PluginVersion { digest, settings, signatures, grants, loaded } = version;
    StoredVersion {
        digest: digest.to_string(),
        settings: settings.clone(),
        signatures: store_signatures(signatures),
        grants: store_grants(grants),
        loaded_ms: to_ms(*loaded),
    }
}

fn load_version(version: StoredVersion) -> Result<PluginVersion, Unusable> {
    let StoredVersion { digest, settings, signatures, grants, loaded_ms } = version;
    let (signatures, grants) = (load_signatures(signatures)?, load_grants(grants)?);
    Ok(PluginVersion { digest: parse_digest(&digest)?, settings, signatures, grants, loaded: from_ms(loaded_ms)? })
}

fn store_grants(grants: &BTreeSet<Grant>) -> Vec<String> {
    grants.iter().map(ToString::to_string).collect()
}

fn load_grants(grants: Vec<String>) -> Result<BTreeSet<Grant>, Unusable> {
    grants.iter().map(|grant| grant.parse().map_err(text)).collect()
}

fn store_signatures(signatures: &[PluginSignature]) -> Vec<String> {
    signatures.iter().map(ToString::to_string).collect()
}

fn load_signatures(lines: Vec<String>) -> Result<Vec<PluginSignature>, Unusable> {
    lines.iter().map(|line| line.parse().map_err(text)).collect()
}

fn load_aliases(named: BTreeMap<String, StoredVersion>, follows: Option<String>) -> Result<Aliases, Unusable> {
    let alias = |name: &String| name.parse::<PluginAlias>().map_err(text);
    let named = named.into_iter().map(|(name, version)| Ok((alias(&name)?, load_version(version)?)));
    Aliases::restored(named.collect::<Result<_, Unusable>>()?, follows.as_ref().map(alias).transpose()?).map_err(text)
}

pub(super) fn decode_plugin(bytes: &[u8]) -> Result<PluginRecord, Unusable> {
    let plugin: StoredPlugin = from_json(bytes)?;
    Ok(PluginRecord {
        scope: scope_of(plugin.tenant)?,
        name: plugin.name.parse().map_err(text)?,
        digest: parse_digest(&plugin.digest)?,
        settings: plugin.settings,
        signatures: load_signatures(plugin.signatures)?,
        grants: load_grants(plugin.grants)?,
        mode: if plugin.shadow { PluginMode::Shadow } else { PluginMode::Enforced },
        weight: plugin.weight,
        loaded: from_ms(plugin.loaded_ms)?,
        previous: plugin.previous.into_iter().map(load_version).collect::<Result<_, _>>()?,
        canary: plugin.canary.map(load_canary).transpose()?,
        aliases: load_aliases(plugin.aliases, plugin.follows)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SignerKey;

    /// As a daemon wrote it that knew no shadows.
    const OLD: &str = r#"{"format":1,"tenant":null,"name":"limits","digest":"sha256:0707070707070707070707070707070707070707070707070707070707070707","settings":{},"loaded_ms":5,"previous":[]}"#;

    #[test]
    fn a_record_from_before_there_were_shadows_is_enforced_and_keeps_its_bytes() {
        let plugin = decode_plugin(OLD.as_bytes()).unwrap();
        assert_eq!(plugin.mode, PluginMode::Enforced);
        assert_eq!(String::from_utf8(encode_plugin(&plugin)).unwrap(), OLD);
        let shadow = PluginRecord { mode: PluginMode::Shadow, ..plugin.clone() };
        let bytes = encode_plugin(&shadow);
        assert_eq!(decode_plugin(&bytes).unwrap(), shadow);
        assert_ne!(bytes, encode_plugin(&plugin), "its etag is another");
    }

    #[test]
    fn a_weight_is_found_again_and_costs_no_byte_where_there_is_none() {
        let plugin = decode_plugin(OLD.as_bytes()).unwrap();
        assert!(plugin.weight.is_one());
        let heavy = PluginRecord { weight: PluginWeight::new(100).unwrap(), ..plugin.clone() };
        let bytes = encode_plugin(&heavy);
        assert_eq!(decode_plugin(&bytes).unwrap(), heavy);
        assert_ne!(bytes, encode_plugin(&plugin), "its etag is another");
        let wrong = String::from_utf8(bytes).unwrap().replace("\"weight\":100", "\"weight\":101");
        assert!(decode_plugin(wrong.as_bytes()).is_err());
    }

    #[test]
    fn signatures_of_each_version_are_found_again_as_they_were() {
        let plugin = decode_plugin(OLD.as_bytes()).unwrap();
        assert_eq!(plugin.signatures, []);
        let signature = |byte: u8| {
            let key = SignerKey::from_raw(&[byte; 32]).unwrap();
            PluginSignature::new(key, &[byte; 64]).unwrap()
        };
        let version = |byte: u8| PluginVersion { signatures: vec![signature(byte)], ..plugin.version() };
        let (share, state) = (CanaryShare::new(10).unwrap(), CanaryState::Active);
        let signed = PluginRecord {
            signatures: vec![signature(1), signature(2)],
            previous: vec![version(3)],
            canary: Some(CanaryRecord { version: version(4), share, state }),
            ..plugin.clone()
        };
        let bytes = encode_plugin(&signed);
        assert_eq!(decode_plugin(&bytes).unwrap(), signed);
        assert_eq!(signed.version().signatures, signed.signatures);
        let text = String::from_utf8(bytes).unwrap();
        assert!(decode_plugin(text.replace("ostler-plugin-signature-1", "signature").as_bytes()).is_err());
    }

    #[test]
    fn aliases_and_what_is_followed_are_found_again_and_cost_no_byte_where_there_are_none() {
        let plugin = decode_plugin(OLD.as_bytes()).unwrap();
        assert_eq!(plugin.aliases, Aliases::default());
        let named = |name: &str| {
            let mut record = plugin.clone();
            let version = PluginVersion { digest: PluginDigest([9; 32]), ..plugin.version() };
            record.aliases.name(name.parse().unwrap(), version).unwrap();
            record
        };
        let mut followed = named("next");
        followed.aliases.name("stable".parse().unwrap(), plugin.version()).unwrap();
        followed.aliases.follow(Some("stable".parse().unwrap())).unwrap();
        for record in [&named("next"), &followed] {
            assert_eq!(decode_plugin(&encode_plugin(record)).unwrap(), *record);
        }
        let etags = [&plugin, &named("next"), &named("other"), &followed].map(encode_plugin);
        assert!((1..4).all(|at| !etags[..at].contains(&etags[at])), "each has an etag of its own");
        let text = String::from_utf8(encode_plugin(&named("next"))).unwrap();
        let wrong = text.replace("\"next\"", "\"sha256\"");
        assert!(decode_plugin(wrong.as_bytes()).unwrap_err().contains("looks like a digest"));
        let text = String::from_utf8(encode_plugin(&followed)).unwrap();
        let wrong = text.replace("\"follows\":\"stable\"", "\"follows\":\"gone\"");
        assert!(decode_plugin(wrong.as_bytes()).unwrap_err().contains("no alias gone"));
    }

    #[test]
    fn what_is_granted_is_of_a_version_and_a_grant_that_nobody_knows_is_refused() {
        let plugin = decode_plugin(OLD.as_bytes()).unwrap();
        assert!(plugin.grants.is_empty());
        let granted = PluginRecord { grants: [Grant::Kv].into(), ..plugin.clone() };
        let both = PluginRecord { previous: vec![granted.version()], ..plugin };
        for record in [&granted, &both] {
            assert_eq!(decode_plugin(&encode_plugin(record)).unwrap(), *record);
        }
        let text = String::from_utf8(encode_plugin(&granted)).unwrap();
        assert!(decode_plugin(text.replace("\"kv\"", "\"clock\"").as_bytes()).unwrap_err().contains("clock"));
    }

    #[test]
    fn a_canary_and_why_it_was_rolled_back_are_found_again() {
        let plugin = decode_plugin(OLD.as_bytes()).unwrap();
        assert_eq!(plugin.canary, None);
        let (version, share) = (plugin.version(), CanaryShare::new(10).unwrap());
        let with = |state| {
            let canary = Some(CanaryRecord { version: version.clone(), share, state });
            PluginRecord { canary, ..plugin.clone() }
        };
        let rolled_back = CanaryCause::ALL.map(|cause| CanaryState::RolledBack {
            cause,
            message: "12 of 20".into(),
            time: from_ms(77).unwrap(),
        });
        for state in std::iter::once(CanaryState::Active).chain(rolled_back) {
            let record = with(state);
            assert_eq!(decode_plugin(&encode_plugin(&record)).unwrap(), record);
            assert_eq!(record.active_canary().is_some(), record == with(CanaryState::Active));
        }
        let text = String::from_utf8(encode_plugin(&with(CanaryState::Active))).unwrap();
        assert!(decode_plugin(text.replace("\"percent\":10", "\"percent\":100").as_bytes()).is_err());
    }
}
