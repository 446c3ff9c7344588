//! Plugins that are loaded, as they are in the file. Key functions: [`encode_plugin`], [`decode_plugin`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::format::{FORMAT, Unusable, from_json, from_ms, parse_digest, scope_of, tenant_of, text, to_json, to_ms};
use super::{PluginRecord, PluginVersion};
use crate::model::PolicyScope;

#[derive(Serialize, Deserialize)]
struct StoredPlugin {
    format: u32,
    tenant: Option<String>,
    name: String,
    digest: String,
    settings: BTreeMap<String, String>,
    loaded_ms: u64,
    #[serde(default)]
    previous: Vec<StoredVersion>,
}

#[derive(Serialize, Deserialize)]
struct StoredVersion {
    digest: String,
    settings: BTreeMap<String, String>,
    loaded_ms: u64,
}

pub(super) fn plugin_key(plugin: &PluginRecord) -> String {
    match &plugin.scope {
        PolicyScope::Operator => format!("operator/{}", plugin.name),
        PolicyScope::Tenant(tenant) => format!("tenant/{tenant}/{}", plugin.name),
    }
}

pub(super) fn encode_plugin(plugin: &PluginRecord) -> Vec<u8> {
    to_json(&StoredPlugin {
        format: FORMAT,
        tenant: tenant_of(&plugin.scope),
        name: plugin.name.to_string(),
        digest: plugin.digest.to_string(),
        settings: plugin.settings.clone(),
        loaded_ms: to_ms(plugin.loaded),
        previous: plugin.previous.iter().map(store_version).collect(),
    })
}

fn store_version(version: &PluginVersion) -> StoredVersion {
    let PluginVersion { digest, settings, loaded } = version;
    StoredVersion { digest: digest.to_string(), settings: settings.clone(), loaded_ms: to_ms(*loaded) }
}

fn load_version(version: StoredVersion) -> Result<PluginVersion, Unusable> {
    let StoredVersion { digest, settings, loaded_ms } = version;
    Ok(PluginVersion { digest: parse_digest(&digest)?, settings, loaded: from_ms(loaded_ms)? })
}

pub(super) fn decode_plugin(bytes: &[u8]) -> Result<PluginRecord, Unusable> {
    let plugin: StoredPlugin = from_json(bytes)?;
    Ok(PluginRecord {
        scope: scope_of(plugin.tenant)?,
        name: plugin.name.parse().map_err(text)?,
        digest: parse_digest(&plugin.digest)?,
        settings: plugin.settings,
        loaded: from_ms(plugin.loaded_ms)?,
        previous: plugin.previous.into_iter().map(load_version).collect::<Result<_, _>>()?,
    })
}
