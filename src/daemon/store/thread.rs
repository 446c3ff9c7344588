//! The thread that owns the database: commits in batches, then publishes. Key types: [`Write`], [`Shared`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableHandle, WriteTransaction};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::disk::{Disk, Place, Readers};
use super::history::{self, Compacted, HISTORY_LEN, History, ResumePoint};
use super::journal::{self, Append, Journal, Retention};
use super::kv::{self, KV, Kept, Shelf, decode_kv};
use super::plugin::{decode_plugin, encode_plugin, plugin_key};
use super::vm::{decode_vm, encode_vm};
use super::{Change, Found, PluginRecord, Snapshot, StoreError, Watched, lease, nvme, request};
use crate::daemon::crash::{self, Point};
use crate::daemon::record::{NvmeLease, NvmeProvision, RequestKey, RequestRecord, VfLease, VmRecord};
use crate::model::{Bdf, DecisionId, KvPlace, KvStore};

pub(super) const VMS: TableDefinition<&str, &[u8]> = TableDefinition::new("vms");
pub(super) const PLUGINS: TableDefinition<&str, &[u8]> = TableDefinition::new("plugins");
pub(super) const LEASES: TableDefinition<&str, &[u8]> = TableDefinition::new("vf_leases");
pub(super) const NVME_LEASES: TableDefinition<&str, &[u8]> = TableDefinition::new("nvme_leases");
pub(super) const REQUESTS: TableDefinition<&str, &[u8]> = TableDefinition::new("requests");
pub(super) const PROVISIONS: TableDefinition<&str, &[u8]> = TableDefinition::new("nvme_provisions");
/// By revision: whether the VM is gone, and its record.
pub(super) const HISTORY: TableDefinition<u64, (bool, &[u8])> = TableDefinition::new("history");
const COUNTERS: TableDefinition<&str, u64> = TableDefinition::new("counters");
const REVISION: &str = "revision";

/// Writes that share one flush to disk.
const BATCH_LEN: usize = 64;

type Done = oneshot::Sender<Result<(), StoreError>>;

/// One change, with where its answer goes.
pub(super) enum Write {
    Vm {
        vm: VmRecord,
        is_new: bool,
        done: Done,
    },
    RemoveVm {
        vm: VmRecord,
        done: Done,
    },
    Plugin {
        plugin: PluginRecord,
        done: Done,
    },
    RemovePlugin {
        plugin: PluginRecord,
        done: Done,
    },
    Lease {
        lease: VfLease,
        done: Done,
    },
    /// Has a plugin remember nothing there.
    ClearKv {
        place: KvPlace,
        done: Done,
    },
    /// A record of a decision.
    Append(Append),
    /// Removes records of decisions that are too old.
    Sweep {
        done: Done,
    },
    NvmeLease {
        lease: NvmeLease,
        done: Done,
    },
    Provision {
        provision: NvmeProvision,
        done: Done,
    },
    ForgetProvision {
        controller: Bdf,
        done: Done,
    },
    Request {
        request: RequestRecord,
        done: Done,
    },
    ForgetRequest {
        key: RequestKey,
        done: Done,
    },
    /// In one transaction.
    Together(Vec<Write>),
    /// Ends the thread once everything before it is on disk.
    Close {
        done: Done,
    },
}

/// A write and the request that it answers, in one transaction.
pub(super) fn together(request: Option<RequestRecord>, write: Write) -> Write {
    let Some(request) = request else { return write };
    // The other write's answer is this one's too.
    let (done, _) = oneshot::channel();
    Write::Together(vec![Write::Request { request, done }, write])
}

impl Write {
    /// One by one.
    fn parts(self) -> Vec<Self> {
        match self {
            Self::Together(parts) => parts,
            single => vec![single],
        }
    }
}

/// What readers see.
#[derive(Debug)]
pub(super) struct Shared {
    /// Rank: leaf. Guards what is current and the order of `changes`; held for a swap and a send, or a copy, only.
    current: RwLock<Current>,
    /// Rank: leaf. Guards what plugins remember; held for a look or a swap.
    shelf: RwLock<Shelf>,
    changes: broadcast::Sender<Change>,
    /// The thread's, while it has it open.
    readers: Arc<Readers>,
}

#[derive(Debug)]
struct Current {
    snapshot: Arc<Snapshot>,
    history: History,
}

impl Shared {
    pub(super) fn new(
        snapshot: Snapshot,
        history: History,
        shelf: Shelf,
        changes: broadcast::Sender<Change>,
        readers: Arc<Readers>,
    ) -> Self {
        let current = RwLock::new(Current { snapshot: Arc::new(snapshot), history });
        Self { current, shelf: RwLock::new(shelf), changes, readers }
    }

    pub(super) fn kv(&self, place: &KvPlace) -> Arc<KvStore> {
        let shelf = self.shelf.read().unwrap_or_else(PoisonError::into_inner);
        shelf.get(&place.to_string()).map(|kept| Arc::clone(&kept.store)).unwrap_or_default()
    }

    /// Takes over what plugins remember now.
    fn remember(&self, changed: BTreeMap<String, Option<Kept>>) {
        if changed.is_empty() {
            return;
        }
        let mut shelf = self.shelf.write().unwrap_or_else(PoisonError::into_inner);
        for (key, kept) in changed {
            match kept {
                Some(kept) => drop(shelf.insert(key, kept)),
                None => drop(shelf.remove(&key)),
            }
        }
    }

    /// For reading what is in no snapshot.
    pub(super) fn database(&self) -> Result<Arc<Database>, StoreError> {
        self.readers.database().ok_or(StoreError::Closed)
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).snapshot)
    }

    pub(super) fn watch(&self) -> (Arc<Snapshot>, broadcast::Receiver<Change>) {
        let watched = self.watch_from_now();
        (watched.snapshot, watched.changes)
    }

    pub(super) fn watch_from_now(&self) -> Watched {
        self.watched(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn resume(&self, point: ResumePoint) -> Result<(Vec<Change>, Watched), Compacted> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Ok((current.history.since(point)?, self.watched(&current)))
    }

    /// Under the lock nothing is published: the receiver begins exactly where snapshot and history end.
    fn watched(&self, current: &Current) -> Watched {
        let point = current.history.end();
        Watched { snapshot: Arc::clone(&current.snapshot), point, changes: self.changes.subscribe() }
    }

    fn publish(&self, changes: Vec<Change>, leases: Vec<AnyLease>) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = Snapshot::clone(&current.snapshot);
        for change in changes {
            next.revision = change.revision;
            if change.is_gone {
                next.vms.remove(&change.vm.uid);
            } else {
                next.vms.insert(change.vm.uid, Arc::clone(&change.vm));
            }
            current.history.push(change.clone());
            // Nobody watching is no error.
            let _ = self.changes.send(change);
        }
        for lease in leases {
            match lease {
                AnyLease::Vf(lease) => drop(next.leases.insert(lease.key, lease)),
                AnyLease::Nvme(lease) => drop(next.nvme_leases.insert(lease.key.clone(), lease)),
            }
        }
        current.snapshot = Arc::new(next);
    }
}

/// Opens the file, makes its tables, reads everything.
pub(super) fn open(place: impl Place, path: &Path) -> Result<(Disk, Found, History, Shelf), StoreError> {
    let opening = |source: redb::Error| StoreError::Open { path: path.display().to_string(), source: Box::new(source) };
    let mut disk = Disk::open(place).map_err(opening)?;
    let (database, _) = disk.database().map_err(opening)?;
    make_tables(database).map_err(opening)?;
    let (found, history) = read_all(database)?;
    let shelf = read_shelf(database)?;
    Ok((disk, found, history, shelf))
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

fn read_shelf(database: &Database) -> Result<Shelf, StoreError> {
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

/// Starts the thread; it ends when every sender is gone.
pub(super) fn spawn(
    disk: Disk,
    journal: Journal,
    queue: mpsc::Receiver<Write>,
    shared: Arc<Shared>,
) -> std::io::Result<()> {
    std::thread::Builder::new().name("store".into()).spawn(move || run(disk, journal, queue, &shared)).map(drop)
}

fn run(mut disk: Disk, mut journal: Journal, mut queue: mpsc::Receiver<Write>, shared: &Shared) {
    // VMs of which the file may say something else than what is known, since a write failed.
    let mut unwritten = BTreeSet::new();
    let mut batch = Vec::with_capacity(BATCH_LEN);
    let mut closing = None;
    while closing.is_none() && queue.blocking_recv_many(&mut batch, BATCH_LEN) > 0 {
        let snapshot = shared.snapshot();
        let mut revision = snapshot.revision;
        let mut planned = Vec::with_capacity(batch.len());
        let mut appends = Vec::new();
        let mut generations = HashMap::new();
        for write in batch.drain(..).flat_map(Write::parts) {
            match write {
                Write::Close { done } => closing = Some(done),
                Write::Append(append) => appends.push(append),
                Write::Sweep { done } => {
                    let swept = sweep(&mut disk, &mut journal, shared).inspect_err(|error| disk.failed(error));
                    let _ = done.send(swept.map_err(StoreError::io));
                }
                Write::Lease { lease, done }
                    if !follows(&mut generations, lease.key.to_string(), lease.generation, || {
                        snapshot.leases.get(&lease.key).map_or(0, |last| last.generation)
                    }) =>
                {
                    let _ = done.send(Err(StoreError::Stale(lease.key.to_string())));
                }
                Write::NvmeLease { lease, done }
                    if !follows(&mut generations, lease.key.to_string(), lease.generation, || {
                        snapshot.nvme_leases.get(&lease.key).map_or(0, |last| last.generation)
                    }) =>
                {
                    let _ = done.send(Err(StoreError::Stale(lease.key.to_string())));
                }
                write => planned.extend(plan(write, &mut revision)),
            }
        }
        let known = unwritten.iter().map(|uid| (*uid, snapshot.vms.get(uid)));
        let known = known.map(|(uid, vm)| (uid.to_string(), vm.map(|vm| encode_vm(vm)))).collect::<Vec<_>>();
        let batch = Batch { known: &known, planned: &planned, revision, appends: &appends };
        let committed = commit(&mut disk, &mut journal, shared, &batch);
        match &committed {
            Ok(_) if planned.is_empty() && appends.is_empty() => {}
            Ok(_) => unwritten.clear(),
            Err(error) => {
                tracing::error!(error = error as &dyn std::error::Error, "store refuses a write");
                disk.failed(error);
                unwritten.extend(planned.iter().filter_map(|write| Some(write.change.as_ref()?.vm.uid)));
            }
        }
        answer(planned, appends, committed.map_err(Arc::new), shared);
    }
    drop(disk);
    if let Some(done) = closing {
        let _ = done.send(Ok(()));
    }
}

/// Publishes what happened, then tells those who wait. Nobody waiting any more is fine.
fn answer(
    planned: Vec<Planned>,
    appends: Vec<Append>,
    committed: Result<Vec<DecisionId>, Arc<redb::Error>>,
    shared: &Shared,
) {
    let is_ok = committed.is_ok();
    let mut answers = Vec::with_capacity(planned.len());
    let mut changes = Vec::with_capacity(planned.len());
    let mut leases = Vec::new();
    for write in planned {
        // A lease is an intent: one that is not on disk is none, and nothing was done about it yet.
        leases.extend(write.lease.filter(|_| is_ok));
        // A new VM that is not on disk does not exist; a change that is not on disk has happened all the same.
        changes.extend(write.change.filter(|_| is_ok || !write.is_new));
        answers.push(write.done);
    }
    shared.publish(changes, leases);
    match committed {
        Ok(ids) => {
            answers.into_iter().for_each(|done| drop(done.send(Ok(()))));
            appends.into_iter().zip(ids).for_each(|(append, id)| drop(append.done.send(Ok(id))));
        }
        Err(error) => {
            let failed = || StoreError::Io(Arc::clone(&error));
            answers.into_iter().for_each(|done| drop(done.send(Err(failed()))));
            appends.into_iter().for_each(|append| drop(append.done.send(Err(failed()))));
        }
    }
}

fn sweep(disk: &mut Disk, journal: &mut Journal, shared: &Shared) -> Result<(), redb::Error> {
    let transaction = reopened(disk, journal, shared)?.begin_write()?;
    let advance = journal.sweep(&transaction, SystemTime::now())?;
    transaction.commit()?;
    journal.advance(advance);
    Ok(())
}

/// Whether a lease's change is the next one after the last, those before it in this batch included. Keys of different
/// tables never are the same text.
fn follows(batch: &mut HashMap<String, u64>, key: String, generation: u64, last: impl FnOnce() -> u64) -> bool {
    let last = batch.entry(key).or_insert_with(last);
    let is_next = generation == *last + 1;
    if is_next {
        *last = generation;
    }
    is_next
}

/// A lease of either kind.
enum AnyLease {
    Vf(Arc<VfLease>),
    Nvme(Arc<NvmeLease>),
}

/// A write, down to its row.
struct Planned {
    table: TableDefinition<'static, &'static str, &'static [u8]>,
    key: String,
    /// `None` removes the row.
    value: Option<Vec<u8>>,
    change: Option<Change>,
    lease: Option<AnyLease>,
    is_new: bool,
    done: Done,
}

/// The write's row and change; `None` for what has none.
fn plan(write: Write, revision: &mut u64) -> Option<Planned> {
    let mut change = |vm: VmRecord, is_gone| {
        *revision += 1;
        let check = history::check(*revision, is_gone, &encode_vm(&vm));
        Some(Change { revision: *revision, vm: Arc::new(vm), is_gone, check })
    };
    Some(match write {
        Write::Vm { vm, is_new, done } => {
            let (key, value) = (vm.uid.to_string(), Some(encode_vm(&vm)));
            Planned { table: VMS, key, value, change: change(vm, false), lease: None, is_new, done }
        }
        Write::RemoveVm { vm, done } => {
            let key = vm.uid.to_string();
            Planned { table: VMS, key, value: None, change: change(vm, true), lease: None, is_new: false, done }
        }
        Write::Plugin { plugin, done } => {
            let (key, value) = (plugin_key(&plugin), Some(encode_plugin(&plugin)));
            Planned { table: PLUGINS, key, value, change: None, lease: None, is_new: false, done }
        }
        Write::RemovePlugin { plugin, done } => {
            let key = plugin_key(&plugin);
            Planned { table: PLUGINS, key, value: None, change: None, lease: None, is_new: false, done }
        }
        Write::ClearKv { place, done } => {
            let key = place.to_string();
            Planned { table: KV, key, value: None, change: None, lease: None, is_new: false, done }
        }
        Write::Lease { lease, done } => {
            let (key, value) = (lease.key.to_string(), Some(lease::encode_lease(&lease)));
            Planned {
                table: LEASES,
                key,
                value,
                change: None,
                lease: Some(AnyLease::Vf(Arc::new(lease))),
                is_new: false,
                done,
            }
        }
        Write::NvmeLease { lease, done } => {
            let (key, value) = (lease.key.to_string(), Some(nvme::encode_lease(&lease)));
            let lease = Some(AnyLease::Nvme(Arc::new(lease)));
            Planned { table: NVME_LEASES, key, value, change: None, lease, is_new: false, done }
        }
        Write::Provision { provision, done } => {
            let (key, value) = (provision.controller.to_string(), Some(nvme::encode_provision(&provision)));
            Planned { table: PROVISIONS, key, value, change: None, lease: None, is_new: false, done }
        }
        Write::ForgetProvision { controller, done } => {
            let key = controller.to_string();
            Planned { table: PROVISIONS, key, value: None, change: None, lease: None, is_new: false, done }
        }
        Write::Request { request, done } => {
            let (key, value) = (request::request_key(&request.key), Some(request::encode_request(&request)));
            Planned { table: REQUESTS, key, value, change: None, lease: None, is_new: false, done }
        }
        Write::ForgetRequest { key, done } => {
            let key = request::request_key(&key);
            Planned { table: REQUESTS, key, value: None, change: None, lease: None, is_new: false, done }
        }
        // Not rows of their own, or taken apart before.
        Write::Append(_) | Write::Sweep { .. } | Write::Together(_) | Write::Close { .. } => return None,
    })
}

/// The database, opened anew if it had to be closed: then the chains end where the file says, and plugins remember what it
/// says.
fn reopened<'a>(disk: &'a mut Disk, journal: &mut Journal, shared: &Shared) -> Result<&'a Database, redb::Error> {
    let (database, is_reopened) = disk.database()?;
    if is_reopened {
        let unusable = |error: StoreError| redb::Error::Corrupted(error.to_string());
        journal.reload(&database.begin_read()?).map_err(unusable)?;
        *shared.shelf.write().unwrap_or_else(PoisonError::into_inner) = read_shelf(database).map_err(unusable)?;
    }
    Ok(database)
}

/// What is written at once.
struct Batch<'a> {
    /// VMs as they are known, where an earlier write failed.
    known: &'a [(String, Option<Vec<u8>>)],
    planned: &'a [Planned],
    revision: u64,
    appends: &'a [Append],
}

/// Writes a row; without a value removes it.
fn put(
    transaction: &WriteTransaction,
    table: TableDefinition<&'static str, &'static [u8]>,
    key: &str,
    value: Option<&[u8]>,
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(table)?;
    match value {
        Some(value) => drop(table.insert(key, value)?),
        None => drop(table.remove(key)?),
    }
    Ok(())
}

/// Writes rows, records and what plugins remember of them in one transaction; gives the places of the records.
fn commit(
    disk: &mut Disk,
    journal: &mut Journal,
    shared: &Shared,
    batch: &Batch<'_>,
) -> Result<Vec<DecisionId>, redb::Error> {
    let Batch { known, planned, revision, appends } = *batch;
    if planned.is_empty() && appends.is_empty() {
        return Ok(Vec::new());
    }
    let transaction = reopened(disk, journal, shared)?.begin_write()?;
    for (key, value) in known {
        put(&transaction, VMS, key, value.as_deref())?;
    }
    for write in planned {
        put(&transaction, write.table, &write.key, write.value.as_deref())?;
        if let Some(Change { revision, vm, is_gone, .. }) = &write.change {
            let mut history = transaction.open_table(HISTORY)?;
            history.insert(revision, (*is_gone, encode_vm(vm).as_slice()))?;
            history.remove(revision.saturating_sub(HISTORY_LEN))?;
        }
    }
    transaction.open_table(COUNTERS)?.insert(REVISION, revision)?;
    let remembered = remember(&transaction, shared, batch)?;
    if appends.is_empty() {
        transaction.commit()?;
        shared.remember(remembered);
        return Ok(Vec::new());
    }
    let (ids, advance) = journal.append(&transaction, appends, SystemTime::now())?;
    if !remembered.is_empty() {
        crash::reach(Point::KvWritten);
    }
    transaction.commit()?;
    journal.advance(advance);
    shared.remember(remembered);
    Ok(ids)
}

/// Writes what plugins remember after this batch, and gives what has changed.
fn remember(
    transaction: &WriteTransaction,
    shared: &Shared,
    batch: &Batch<'_>,
) -> Result<BTreeMap<String, Option<Kept>>, redb::Error> {
    // Nobody else writes: the lock is not held while the file is.
    let mut changes = kv::Changes::default();
    for write in batch.planned.iter().filter(|write| write.value.is_none()) {
        if write.table.name() == PLUGINS.name() {
            let shelf = shared.shelf.read().unwrap_or_else(PoisonError::into_inner);
            changes.remove_plugin(&shelf, &write.key);
        } else if write.table.name() == KV.name() {
            changes.remove(&write.key);
        }
    }
    for change in batch.appends.iter().flat_map(|append| &append.kv) {
        changes.apply(transaction, shared.kv(&change.place), change)?;
    }
    changes.write(transaction)
}
