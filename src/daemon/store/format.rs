//! Records as JSON documents, and back through the constructors of `model`: a file that somebody edited is refused, not
//! believed.
//!
//! The types here are the file's, apart from `model`'s on purpose: renaming something there must not change what is on
//! disk. A field may be added with `#[serde(default)]`; anything else is a new [`FORMAT`] with a reader for the old.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::model::{PluginDigest, PolicyScope};

/// Number of the format that is written.
pub(super) const FORMAT: u32 = 1;

/// Why a record was refused, for people.
pub(super) type Unusable = String;

/// Reads only the format's number, whatever else the record holds.
#[derive(Deserialize)]
struct Header {
    format: u32,
}

pub(super) fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|error| unreachable!("plain structs with text keys: {error}"))
}

pub(super) fn from_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Unusable> {
    let header: Header = serde_json::from_slice(bytes).map_err(text)?;
    if header.format != FORMAT {
        return Err(format!("it has format {}, this daemon reads format {FORMAT}", header.format));
    }
    serde_json::from_slice(bytes).map_err(text)
}

pub(super) fn text(error: impl std::fmt::Display) -> Unusable {
    error.to_string()
}

pub(super) fn tenant_of(scope: &PolicyScope) -> Option<String> {
    match scope {
        PolicyScope::Operator => None,
        PolicyScope::Tenant(tenant) => Some(tenant.to_string()),
    }
}

pub(super) fn scope_of(tenant: Option<String>) -> Result<PolicyScope, Unusable> {
    tenant.map_or(Ok(PolicyScope::Operator), |tenant| tenant.parse().map(PolicyScope::Tenant).map_err(text))
}

pub(super) fn parse_digest(digest: &str) -> Result<PluginDigest, Unusable> {
    digest.parse().map_err(text)
}

pub(super) fn to_ms(moment: SystemTime) -> u64 {
    let since_epoch = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn from_ms(ms: u64) -> Result<SystemTime, Unusable> {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).ok_or_else(|| format!("{ms} ms is no time"))
}
