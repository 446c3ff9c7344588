//! What observers are told, and how far each has been: a ring of events for each tenant. Key types: [`Rings`], [`Untold`].
//!
//! ```text
//!   events            (tenant, sequence) → event, the last 4,096 of a tenant
//!   plugin_positions  plugin and tenant → sequence of the next event that it is to be told
//! ```
//!
//! An event is written in the transaction of the change that it speaks of, and a position in that of the record of its
//! batch: no event is there without its change, and none is told twice to what a plugin remembers. Nobody pays a
//! transaction for them. Where rings and positions end is in memory, too.

use std::collections::BTreeMap;
use std::sync::RwLockReadGuard;
use std::time::{SystemTime, UNIX_EPOCH};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::format::{FORMAT, Unusable, from_json, scope_of, tenant_of, text, to_json};
use super::plugin::place_key;
use super::tables::PLUGINS;
use super::{Store, StoreError};
use crate::model::{Happening, KvPlace, MAX_BATCH_BYTES, MAX_EVENTS, ObserveRequest, ObservedEvent, TenantId};

pub(super) const EVENTS: TableDefinition<(&str, u64), &[u8]> = TableDefinition::new("events");
/// By [`KvPlace`] as text.
pub(super) const POSITIONS: TableDefinition<&str, &[u8]> = TableDefinition::new("plugin_positions");

/// A tenant's events that are there: from the first one up to the next one, which is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventSpan {
    /// Sequence of the oldest.
    pub first: u64,
    /// Sequence of the next one to come.
    pub next: u64,
}

/// Where rings and positions are.
#[derive(Debug, Default)]
pub(super) struct Rings {
    pub(super) spans: BTreeMap<TenantId, EventSpan>,
    /// By their rows' keys.
    pub(super) positions: BTreeMap<String, u64>,
}

/// A batch that an observer has yet to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untold {
    /// Its position, if it has one.
    pub from: Option<u64>,
    /// The events.
    pub batch: ObserveRequest,
}

/// That an observer was told, to be written with the record of that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Which observer, and whose events.
    pub place: KvPlace,
    /// Its position before; if that is another one meanwhile, nothing is written.
    pub from: Option<u64>,
    /// Its position now.
    pub to: u64,
}

#[derive(Serialize, Deserialize)]
struct StoredEvent {
    format: u32,
    moment_s: u64,
    what: Happening,
}

#[derive(Serialize, Deserialize)]
struct StoredPosition {
    format: u32,
    /// Whose plugin; none: the operator's.
    owner: Option<String>,
    plugin: String,
    tenant: String,
    next: u64,
}

fn encode_event(moment_s: u64, what: &Happening) -> Vec<u8> {
    to_json(&StoredEvent { format: FORMAT, moment_s, what: what.clone() })
}

pub(super) fn decode_event(sequence: u64, bytes: &[u8]) -> Result<ObservedEvent, Unusable> {
    let StoredEvent { moment_s, what, .. } = from_json(bytes)?;
    Ok(ObservedEvent { sequence, moment_s, what })
}

fn encode_position(place: &KvPlace, next: u64) -> Vec<u8> {
    let (owner, plugin, tenant) = (tenant_of(&place.scope), place.plugin.clone(), place.tenant.to_string());
    to_json(&StoredPosition { format: FORMAT, owner, plugin, tenant, next })
}

pub(super) fn decode_position(bytes: &[u8]) -> Result<(KvPlace, u64), Unusable> {
    let StoredPosition { owner, plugin, tenant, next, .. } = from_json(bytes)?;
    Ok((KvPlace { scope: scope_of(owner)?, plugin, tenant: tenant.parse().map_err(text)? }, next))
}

impl Rings {
    /// Reads where they are.
    pub(super) fn read(database: &Database) -> Result<Self, StoreError> {
        let transaction = database.begin_read().map_err(StoreError::io)?;
        let events = transaction.open_table(EVENTS).map_err(StoreError::io)?;
        let (mut rings, mut after) = (Self::default(), String::new());
        loop {
            let mut rows = events.range((after.as_str(), 0)..).map_err(StoreError::io)?;
            let Some(row) = rows.next() else { break };
            let (tenant, first) = place_of(row)?;
            let own = events.range((tenant.as_str(), 0)..=(tenant.as_str(), u64::MAX)).map_err(StoreError::io)?;
            let last = own.last().map(place_of).transpose()?.map_or(first, |(_, last)| last);
            let unusable = |error| StoreError::Record { table: "events", key: tenant.clone(), reason: text(error) };
            let id = tenant.parse::<TenantId>().map_err(unusable)?;
            rings.spans.insert(id, EventSpan { first, next: last + 1 });
            // The next name that there can be.
            after = tenant + "\0";
        }
        let positions = transaction.open_table(POSITIONS).map_err(StoreError::io)?;
        for row in positions.iter().map_err(StoreError::io)? {
            let (key, value) = row.map_err(StoreError::io)?;
            let unusable =
                |reason| StoreError::Record { table: "plugin_positions", key: key.value().to_owned(), reason };
            rings.positions.insert(key.value().to_owned(), decode_position(value.value()).map_err(unusable)?.1);
        }
        Ok(rings)
    }

    /// Keys of the positions of the plugin of this row.
    fn of_plugin(&self, plugin_key: &str) -> Vec<String> {
        let begins = format!("{plugin_key}:");
        let own = self.positions.range(begins.clone()..).map(|(key, _)| key);
        own.take_while(|key| key.starts_with(&begins)).cloned().collect()
    }

    /// Takes over what is on disk now.
    pub(super) fn take(&mut self, changes: Changes) {
        self.spans.extend(changes.spans);
        for (key, position) in changes.positions {
            match position {
                Some(position) => drop(self.positions.insert(key, position)),
                None => drop(self.positions.remove(&key)),
            }
        }
    }
}

type Row<'a> =
    Result<(redb::AccessGuard<'a, (&'static str, u64)>, redb::AccessGuard<'a, &'static [u8]>), redb::StorageError>;

fn place_of(row: Row<'_>) -> Result<(String, u64), StoreError> {
    let (key, _) = row.map_err(StoreError::io)?;
    let (tenant, sequence) = key.value();
    Ok((tenant.to_owned(), sequence))
}

/// Changes of one transaction; a position of `None` is removed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    spans: BTreeMap<TenantId, EventSpan>,
    positions: BTreeMap<String, Option<u64>>,
}

impl Changes {
    /// Writes events behind those that there are, and removes what is too many. `rings`: where they are now.
    pub(super) fn put<'a>(
        &mut self,
        transaction: &WriteTransaction,
        rings: impl Fn() -> RwLockReadGuard<'a, Rings>,
        happened: &[(TenantId, Happening)],
        now: SystemTime,
    ) -> Result<(), redb::Error> {
        if happened.is_empty() {
            return Ok(());
        }
        let moment_s = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut table = transaction.open_table(EVENTS)?;
        for (tenant, what) in happened {
            let span = self.spans.get(tenant).copied().or_else(|| rings().spans.get(tenant).copied());
            let EventSpan { mut first, next } = span.unwrap_or_default();
            table.insert((tenant.as_str(), next), encode_event(moment_s, what).as_slice())?;
            if next + 1 - first > MAX_EVENTS {
                table.remove((tenant.as_str(), first))?;
                first += 1;
            }
            self.spans.insert(tenant.clone(), EventSpan { first, next: next + 1 });
        }
        Ok(())
    }

    /// Writes a position, if its plugin is still there.
    pub(super) fn move_to(&mut self, transaction: &WriteTransaction, told: &Told) -> Result<(), redb::Error> {
        let Told { place, to, .. } = told;
        let plugins = transaction.open_table(PLUGINS)?;
        if plugins.get(place_key(&place.scope, &place.plugin).as_str())?.is_none() {
            return Ok(());
        }
        let key = place.to_string();
        transaction.open_table(POSITIONS)?.insert(key.as_str(), encode_position(place, *to).as_slice())?;
        self.positions.insert(key, Some(*to));
        Ok(())
    }

    /// Removes the positions of the plugin of this row.
    pub(super) fn remove_plugin<'a>(
        &mut self,
        transaction: &WriteTransaction,
        rings: impl Fn() -> RwLockReadGuard<'a, Rings>,
        plugin_key: &str,
    ) -> Result<(), redb::Error> {
        let own = rings().of_plugin(plugin_key);
        let mut table = transaction.open_table(POSITIONS)?;
        for key in own {
            table.remove(key.as_str())?;
            self.positions.insert(key, None);
        }
        Ok(())
    }

    /// Whether there are new events.
    pub(super) fn has_events(&self) -> bool {
        !self.spans.is_empty()
    }
}

impl Store {
    /// Whose events there are, and which.
    pub fn event_spans(&self) -> BTreeMap<TenantId, EventSpan> {
        self.shared.rings().spans.clone()
    }

    /// The sequence of the next event that an observer is to be told; none if it was told none yet.
    pub fn position(&self, place: &KvPlace) -> Option<u64> {
        self.shared.rings().positions.get(&place.to_string()).copied()
    }

    /// Told each time that there are new events.
    pub fn news(&self) -> tokio::sync::watch::Receiver<()> {
        self.shared.news()
    }

    /// What an observer has yet to be told, at most so many events; `None` if there is nothing. Blocks.
    ///
    /// Who has no position begins with the oldest event, and has missed none.
    pub fn untold(&self, place: &KvPlace, most: usize) -> Result<Option<Untold>, StoreError> {
        let (from, tenant) = (self.position(place), place.tenant.as_str());
        let database = self.shared.database()?;
        let transaction = database.begin_read().map_err(StoreError::io)?;
        let table = transaction.open_table(EVENTS).map_err(StoreError::io)?;
        let (mut events, mut bytes) = (Vec::new(), 0);
        for row in table.range((tenant, from.unwrap_or(0))..=(tenant, u64::MAX)).map_err(StoreError::io)? {
            let (key, value) = row.map_err(StoreError::io)?;
            let sequence = key.value().1;
            bytes += value.value().len();
            if events.len() >= most || (bytes > MAX_BATCH_BYTES && !events.is_empty()) {
                break;
            }
            let key = || format!("{tenant}/{sequence}");
            let unusable = |reason| StoreError::Record { table: "events", key: key(), reason };
            events.push(decode_event(sequence, value.value()).map_err(unusable)?);
        }
        let Some(first) = events.first().map(|event: &ObservedEvent| event.sequence) else { return Ok(None) };
        let missed = from.map_or(0, |from| first.saturating_sub(from));
        Ok(Some(Untold { from, batch: ObserveRequest { tenant: place.tenant.clone(), missed, events } }))
    }
}

#[cfg(test)]
mod tests;
