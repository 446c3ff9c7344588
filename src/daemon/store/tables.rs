//! The tables of the file, and how all of it is read at a start. Key function: [`open`].

use std::path::Path;
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::disk::{Disk, Place};
use super::events::{EVENTS, POSITIONS, Rings};
use super::history::{self, History};
use super::journal::{self, Journal, Retention};
use super::kv::{KV, Shelf, decode_kv};
use super::plugin::decode_plugin;
use super::vm::decode_vm;
use super::{Change, Found, StoreError, lease, nvme, request};

pub(super) const VMS: TableDefinition<&str, &[u8]> = TableDefinition::new("vms");
pub(super) const PLUGINS: TableDefinition<&str, &[u8]> = TableDefinition::new("plugins");
pub(super) const LEASES: TableDefinition<&str, &[u8]> = TableDefinition::new("vf_leases");
pub(super) const NVME_LEASES: TableDefinition<&str, &[u8]> = TableDefinition::new("nvme_leases");
pub(super) const REQUESTS: TableDefinition<&str, &[u8]> = TableDefinition::new("requests");
pub(super) const PROVISIONS: TableDefinition<&str, &[u8]> = TableDefinition::new("nvme_provisions");
/// By revision: whether the VM is gone, and its record.
pub(super) const HISTORY: TableDefinition<u64, (bool, &[u8])> = TableDefinition::new("history");
pub(super) const COUNTERS: TableDefinition<&str, u64> = TableDefinition::new("counters");
/// The counter of the last change of a VM.
pub(super) const REVISION: &str = "revision";

/// Opens the file, makes its tables, reads everything.
pub(super) fn open(place: impl Place, path: &Path) -> Result<(Disk, Found, History, Shelf, Rings), StoreError> {
    let opening = |source: redb::Error| StoreError::Open { path: path.display().to_string(), source: Box::new(source) };
    let mut disk = Disk::open(place).map_err(opening)?;
    let (database, _) = disk.database().map_err(opening)?;
    make_tables(database).map_err(opening)?;
    let (found, history) = read_all(database)?;
    let (shelf, rings) = (read_shelf(database)?, Rings::read(database)?);
    Ok((disk, found, history, shelf, rings))
}

fn make_tables(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(VMS)?;
    transaction.open_table(PLUGINS)?;
    transaction.open_table(LEASES)?;
    transaction.open_table(NVME_LEASES)?;
    transaction.open_table(REQUESTS)?;
    transaction.open_table(PROVISIONS)?;
    transaction.open_table(HISTORY)?;
    transaction.open_table(COUNTERS)?;
    transaction.open_table(KV)?;
    transaction.open_table(EVENTS)?;
    transaction.open_table(POSITIONS)?;
    journal::make_tables(&transaction)?;
    Ok(transaction.commit()?)
}

/// Reads where the chains of decision records end.
pub(super) fn open_journal(disk: &mut Disk, retention: Retention) -> Result<Journal, StoreError> {
    let (database, _) = disk.database().map_err(StoreError::io)?;
    let transaction = database.begin_read().map_err(StoreError::io)?;
    Journal::open(&transaction, retention)
}

fn read_all(database: &Database) -> Result<(Found, History), StoreError> {
    let io = |error: redb::Error| StoreError::Io(Arc::new(error));
    let transaction = database.begin_read().map_err(|error| io(error.into()))?;
    let vms = read_table(&transaction, VMS, "vms", decode_vm)?;
    let plugins = read_table(&transaction, PLUGINS, "plugins", decode_plugin)?;
    let leases = read_table(&transaction, LEASES, "vf_leases", lease::decode_lease)?;
    let nvme_leases = read_table(&transaction, NVME_LEASES, "nvme_leases", nvme::decode_lease)?;
    let provisions = read_table(&transaction, PROVISIONS, "nvme_provisions", nvme::decode_provision)?;
    let requests = read_table(&transaction, REQUESTS, "requests", request::decode_request)?;
    let counters = transaction.open_table(COUNTERS).map_err(|error| io(error.into()))?;
    let revision = counters.get(REVISION).map_err(|error| io(error.into()))?.map_or(0, |revision| revision.value());
    let history = History::load(read_history(&transaction)?, revision);
    Ok((Found { vms, plugins, leases, nvme_leases, provisions, requests }, history))
}

/// Reads what plugins remember.
pub(super) fn read_shelf(database: &Database) -> Result<Shelf, StoreError> {
    let transaction = database.begin_read().map_err(StoreError::io)?;
    let kept = read_table(&transaction, KV, "plugin_kv", decode_kv)?;
    Ok(kept.into_iter().map(|kept| (kept.place.to_string(), kept)).collect())
}

fn read_history(transaction: &redb::ReadTransaction) -> Result<Vec<Change>, StoreError> {
    let io = |error: redb::Error| StoreError::Io(Arc::new(error));
    let table = transaction.open_table(HISTORY).map_err(|error| io(error.into()))?;
    let mut changes = Vec::new();
    for row in table.iter().map_err(|error| io(error.into()))? {
        let (revision, value) = row.map_err(|error| io(error.into()))?;
        let (revision, (is_gone, record)) = (revision.value(), value.value());
        let check = history::check(revision, is_gone, record);
        match decode_vm(record) {
            Ok(vm) => changes.push(Change { revision, vm: Arc::new(vm), is_gone, check }),
            // Of a daemon of another version: those who were behind it begin anew.
            Err(reason) => tracing::warn!(revision, reason, "a change of the past cannot be read"),
        }
    }
    Ok(changes)
}

fn read_table<T>(
    transaction: &redb::ReadTransaction,
    table: TableDefinition<&str, &[u8]>,
    name: &'static str,
    decode: fn(&[u8]) -> Result<T, String>,
) -> Result<Vec<T>, StoreError> {
    let io = |error: redb::Error| StoreError::Io(Arc::new(error));
    let table = transaction.open_table(table).map_err(|error| io(error.into()))?;
    let mut records = Vec::new();
    for row in table.iter().map_err(|error| io(error.into()))? {
        let (key, value) = row.map_err(|error| io(error.into()))?;
        let record = decode(value.value()).map_err(|reason| StoreError::Record {
            table: name,
            key: key.value().to_owned(),
            reason,
        })?;
        records.push(record);
    }
    Ok(records)
}
