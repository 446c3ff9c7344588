//! What plugins remember, as it is in the file and in memory. Key types: [`Shelf`], [`Changes`].
//!
//! All of it is in memory too: a decision reads it without waiting for the disk, and there is little of it (16 KiB for a
//! plugin and a tenant at most). A store is one row, written with the record of the decision that changed it. A row without
//! a plugin of that name is never written: what was unloaded meanwhile remembers nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::format::{FORMAT, Unusable, from_json, scope_of, tenant_of, text, to_json};
use super::plugin::place_key;
use super::tables::PLUGINS;
use crate::model::{KvChange, KvPlace, KvStore, KvValue};

/// By [`KvPlace`] as text.
pub(super) const KV: TableDefinition<&str, &[u8]> = TableDefinition::new("plugin_kv");

/// Every store, by its row's key.
pub(super) type Shelf = BTreeMap<String, Kept>;

/// A store and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) place: KvPlace,
    pub(super) store: Arc<KvStore>,
}

#[derive(Serialize, Deserialize)]
struct StoredKv {
    format: u32,
    /// Whose plugin; none: the operator's.
    owner: Option<String>,
    plugin: String,
    tenant: String,
    moment_s: u64,
    entries: BTreeMap<String, KvValue>,
}

pub(super) fn encode_kv(kept: &Kept) -> Vec<u8> {
    let Kept { place, store } = kept;
    to_json(&StoredKv {
        format: FORMAT,
        owner: tenant_of(&place.scope),
        plugin: place.plugin.clone(),
        tenant: place.tenant.to_string(),
        moment_s: store.moment_s,
        entries: store.entries.clone(),
    })
}

pub(super) fn decode_kv(bytes: &[u8]) -> Result<Kept, Unusable> {
    let StoredKv { owner, plugin, tenant, moment_s, entries, .. } = from_json(bytes)?;
    let place = KvPlace { scope: scope_of(owner)?, plugin, tenant: tenant.parse().map_err(text)? };
    let store = KvStore { moment_s, entries };
    store.view(0).check(&BTreeMap::new()).map_err(text)?;
    Ok(Kept { place, store: Arc::new(store) })
}

/// Changes of one transaction, by row; `None`: removed.
#[derive(Default)]
pub(super) struct Changes(BTreeMap<String, Option<Kept>>);

impl Changes {
    /// Removes the store of this row.
    pub(super) fn remove(&mut self, key: &str) {
        self.0.insert(key.to_owned(), None);
    }

    /// Removes all that the plugin of this row has on the shelf.
    pub(super) fn remove_plugin(&mut self, shelf: &Shelf, plugin_key: &str) {
        let begins = format!("{plugin_key}:");
        let own = shelf.range(begins.clone()..).map(|(key, _)| key).take_while(|key| key.starts_with(&begins));
        own.for_each(|key| self.remove(key));
    }

    /// What a decision wrote into what was there `before` the transaction, if its plugin is still there.
    pub(super) fn apply(
        &mut self,
        transaction: &WriteTransaction,
        before: Arc<KvStore>,
        change: &KvChange,
    ) -> Result<(), redb::Error> {
        let plugins = transaction.open_table(PLUGINS)?;
        if plugins.get(place_key(&change.place.scope, &change.place.plugin).as_str())?.is_none() {
            return Ok(());
        }
        let key = change.place.to_string();
        let mut store = match self.0.remove(&key) {
            Some(changed) => changed.map(|kept| kept.store).unwrap_or_default(),
            None => before,
        };
        Arc::make_mut(&mut store).apply(change);
        self.0.insert(key, Some(Kept { place: change.place.clone(), store }));
        Ok(())
    }

    /// Writes all rows; gives what has changed, to be taken over once it is on disk.
    pub(super) fn write(self, transaction: &WriteTransaction) -> Result<BTreeMap<String, Option<Kept>>, redb::Error> {
        if !self.0.is_empty() {
            let mut table = transaction.open_table(KV)?;
            for (key, kept) in &self.0 {
                match kept {
                    Some(kept) => drop(table.insert(key.as_str(), encode_kv(kept).as_slice())?),
                    None => drop(table.remove(key.as_str())?),
                }
            }
        }
        Ok(self.0)
    }
}

#[cfg(test)]
mod tests;
