//! Whether the file says what the daemon knows. Key type: [`RecordFault`]; key function: [`Store::check`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;

use redb::{ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};

use super::events::{EVENTS, POSITIONS, decode_event, decode_position};
use super::kv::{KV, decode_kv};
use super::plugin::decode_plugin;
use super::tables::{HISTORY, LEASES, NVME_LEASES, PLUGINS, PROVISIONS, REQUESTS, VMS};
use super::vm::{decode_vm, encode_vm};
use super::{Store, StoreError, lease, nvme, request};

/// A record that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordFault {
    /// Its table.
    pub table: &'static str,
    /// Its key in that.
    pub key: String,
    /// What is wrong.
    pub what: RecordFaultKind,
}

/// What is wrong with a record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordFaultKind {
    /// It cannot be read, because.
    Unreadable(String),
    /// The file has another one than the daemon, or none.
    Unwritten,
    /// The daemon does not know of it.
    Unknown,
}

impl Store {
    /// Reads the whole file, and compares it with what is known. Blocks. A write that is just being published may be
    /// told of: what is wrong stays so.
    pub fn check(&self) -> Result<Vec<RecordFault>, StoreError> {
        let database = self.shared.database()?;
        let transaction = database.begin_read().map_err(StoreError::io)?;
        let known = self.snapshot();
        let mut faults = Vec::new();
        let vms = read(&transaction, VMS, "vms", decode_vm, &mut faults)?;
        compare("vms", &known.vms, &vms, encode_vm, &mut faults);
        let leases = read(&transaction, LEASES, "vf_leases", lease::decode_lease, &mut faults)?;
        compare("vf_leases", &known.leases, &leases, lease::encode_lease, &mut faults);
        let leases = read(&transaction, NVME_LEASES, "nvme_leases", nvme::decode_lease, &mut faults)?;
        compare("nvme_leases", &known.nvme_leases, &leases, nvme::encode_lease, &mut faults);
        read(&transaction, PLUGINS, "plugins", decode_plugin, &mut faults)?;
        read(&transaction, KV, "plugin_kv", decode_kv, &mut faults)?;
        read(&transaction, POSITIONS, "plugin_positions", decode_position, &mut faults)?;
        read(&transaction, REQUESTS, "requests", request::decode_request, &mut faults)?;
        read(&transaction, PROVISIONS, "nvme_provisions", nvme::decode_provision, &mut faults)?;
        let history = transaction.open_table(HISTORY).map_err(StoreError::io)?;
        for row in history.iter().map_err(StoreError::io)? {
            let (revision, value) = row.map_err(StoreError::io)?;
            if let Err(reason) = decode_vm(value.value().1) {
                faults.push(unreadable("history", revision.value(), reason));
            }
        }
        let events = transaction.open_table(EVENTS).map_err(StoreError::io)?;
        for row in events.iter().map_err(StoreError::io)? {
            let (key, value) = row.map_err(StoreError::io)?;
            let (tenant, sequence) = key.value();
            if let Err(reason) = decode_event(sequence, value.value()) {
                faults.push(unreadable("events", format!("{tenant}/{sequence}"), reason));
            }
        }
        Ok(faults)
    }
}

fn unreadable(table: &'static str, key: impl Display, reason: String) -> RecordFault {
    RecordFault { table, key: key.to_string(), what: RecordFaultKind::Unreadable(reason) }
}

type Table = TableDefinition<'static, &'static str, &'static [u8]>;

/// The records of a table that can be read, by key.
fn read<T>(
    transaction: &ReadTransaction,
    table: Table,
    name: &'static str,
    decode: fn(&[u8]) -> Result<T, String>,
    faults: &mut Vec<RecordFault>,
) -> Result<BTreeMap<String, T>, StoreError> {
    let table = transaction.open_table(table).map_err(StoreError::io)?;
    let mut records = BTreeMap::new();
    for row in table.iter().map_err(StoreError::io)? {
        let (key, value) = row.map_err(StoreError::io)?;
        match decode(value.value()) {
            Ok(record) => drop(records.insert(key.value().to_owned(), record)),
            Err(reason) => faults.push(unreadable(name, key.value(), reason)),
        }
    }
    Ok(records)
}

/// Those of the file must be `known`, as far as a file has it: its times are coarser.
fn compare<K: ToString, T>(
    table: &'static str,
    known: &BTreeMap<K, Arc<T>>,
    records: &BTreeMap<String, T>,
    encode: fn(&T) -> Vec<u8>,
    faults: &mut Vec<RecordFault>,
) {
    let unreadable: BTreeSet<_> =
        faults.iter().filter(|fault| fault.table == table).map(|fault| fault.key.clone()).collect();
    let known: BTreeMap<_, _> = known.iter().map(|(key, record)| (key.to_string(), record)).collect();
    let is_written = |key: &String, record: &T| records.get(key).map(encode) == Some(encode(record));
    let unwritten = known.iter().filter(|(key, record)| !is_written(key, record) && !unreadable.contains(*key));
    let unwritten = unwritten.map(|(key, _)| (key.clone(), RecordFaultKind::Unwritten));
    let unknown = records.keys().filter(|key| !known.contains_key(*key));
    let unknown = unknown.map(|key| (key.clone(), RecordFaultKind::Unknown));
    faults.extend(unwritten.chain(unknown).map(|(key, what)| RecordFault { table, key, what }));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::daemon::record::samples;
    use crate::model::VmState;

    #[tokio::test]
    async fn what_the_file_lacks_has_too_many_or_cannot_say_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&dir.path().join("store.redb")).unwrap();
        let mut vms = ["kept", "lost", "changed", "garbled"].map(|name| samples::running("acme", name));
        // As a clock gives it, finer than what a file has.
        vms.iter_mut().for_each(|vm| vm.updated += Duration::from_nanos(1_234_567));
        for vm in &vms {
            store.insert_vm(vm.clone()).await.unwrap();
        }
        assert_eq!(store.check().unwrap(), []);

        let [_, lost, changed, garbled] = vms.each_mut();
        let changed_before = changed.clone();
        changed.state = VmState::Stopped;
        let stranger = samples::running("acme", "stranger");
        let transaction = store.shared.database().unwrap().begin_write().unwrap();
        {
            let mut table = transaction.open_table(VMS).unwrap();
            table.remove(lost.uid.to_string().as_str()).unwrap();
            let put = |table: &mut redb::Table<'_, &'static str, &'static [u8]>, uid: String, bytes: &[u8]| {
                table.insert(uid.as_str(), bytes).unwrap();
            };
            put(&mut table, changed.uid.to_string(), &super::super::vm::encode_vm(changed));
            put(&mut table, garbled.uid.to_string(), b"{\"format\":99}");
            put(&mut table, stranger.uid.to_string(), &super::super::vm::encode_vm(&stranger));
        }
        transaction.commit().unwrap();
        let mut found = store.check().unwrap();
        found.sort();
        let format = "it has format 99, this daemon reads format 1".to_owned();
        let mut expected = [
            (lost.uid, RecordFaultKind::Unwritten),
            (changed.uid, RecordFaultKind::Unwritten),
            (garbled.uid, RecordFaultKind::Unreadable(format)),
            (stranger.uid, RecordFaultKind::Unknown),
        ]
        .map(|(uid, what)| RecordFault { table: "vms", key: uid.to_string(), what });
        expected.sort();
        assert_eq!(found, expected);
        // A VM's next write brings it into the file again.
        store.update_vm(lost.clone()).await.unwrap();
        store.update_vm(changed_before).await.unwrap();
        assert_eq!(store.check().unwrap().len(), 2);
        store.close().await;
        assert!(matches!(store.check(), Err(StoreError::Closed)));
    }
}
