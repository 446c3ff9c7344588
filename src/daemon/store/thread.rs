//! The thread that owns the database: commits in batches, then publishes. Key type: [`Write`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use redb::{Database, ReadableDatabase, TableDefinition, TableHandle, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use super::disk::Disk;
use super::events::{self, Rings};
use super::history::{self, HISTORY_LEN};
use super::journal::{self, Append, Journal};
use super::kv::{self, KV, Kept};
use super::plugin::{encode_plugin, plugin_key};
use super::shared::{AnyLease, Shared};
use super::tables::{COUNTERS, HISTORY, LEASES, NVME_LEASES, PLUGINS, PROVISIONS, REQUESTS, REVISION, VMS, read_shelf};
use super::vm::encode_vm;
use super::{Change, PluginRecord, Snapshot, StoreError, lease, nvme, request};
use crate::daemon::crash::{self, Point};
use crate::daemon::record::{NvmeLease, NvmeProvision, RequestKey, RequestRecord, VfLease, VmRecord, happenings};
use crate::model::{Bdf, DecisionId, Enforcement, Happening, JournalEntry, KvPlace, TenantId, VmId};

/// Writes that share one flush to disk.
const BATCH_LEN: usize = 64;
/// Events of changes that could not be written which wait for the next write.
const MAX_UNTOLD: usize = 1024;

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
    // What happened to them.
    let mut untold = Vec::new();
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
                Write::Append(Append { told: Some(told), done, .. }) if !shared.is_next(&told) => {
                    let _ = done.send(Err(StoreError::Stale(told.place.to_string())));
                }
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
        let happened = [untold.clone(), happened(&planned, &snapshot, |_| true)].concat();
        let batch = Batch { known: &known, planned: &planned, revision, appends: &appends, happened: &happened };
        let committed = commit(&mut disk, &mut journal, shared, &batch);
        match &committed {
            Ok(_) if planned.is_empty() && appends.is_empty() => {}
            Ok(_) => {
                unwritten.clear();
                untold.clear();
            }
            Err(error) => {
                tracing::error!(error = error as &dyn std::error::Error, "store refuses a write");
                disk.failed(error);
                unwritten.extend(planned.iter().filter_map(|write| Some(write.change.as_ref()?.vm.uid)));
                untold.extend(self::happened(&planned, &snapshot, |write| !write.is_new));
                untold.truncate(MAX_UNTOLD);
            }
        }
        answer(planned, appends, committed.map_err(Arc::new), shared);
    }
    drop(disk);
    if let Some(done) = closing {
        let _ = done.send(Ok(()));
    }
}

/// What observers are told of those `planned` that count.
fn happened(planned: &[Planned], snapshot: &Snapshot, counts: impl Fn(&Planned) -> bool) -> Vec<(TenantId, Happening)> {
    let mut latest: HashMap<VmId, &VmRecord> = HashMap::new();
    let mut happened = Vec::new();
    let counted = planned.iter().filter(|write| counts(write));
    for Change { vm, is_gone, .. } in counted.filter_map(|write| write.change.as_ref()) {
        let before = latest.insert(vm.uid, vm).or_else(|| snapshot.vms.get(&vm.uid).map(|vm| &**vm));
        let now = happenings(before, (!is_gone).then_some(&**vm));
        happened.extend(now.into_iter().map(|what| (vm.tenant.clone(), what)));
    }
    happened
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
        let shelf = read_shelf(database).map_err(unusable)?;
        shared.replace(shelf, Rings::read(database).map_err(unusable)?);
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
    /// What the rows' changes are to observers.
    happened: &'a [(TenantId, Happening)],
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
    let Batch { known, planned, revision, appends, .. } = *batch;
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
    let now = SystemTime::now();
    let appended = match appends {
        [] => None,
        appends => Some(journal.append(&transaction, appends, now)?),
    };
    let told = tell(&transaction, shared, batch, now)?;
    if appended.is_some() && !remembered.is_empty() {
        crash::reach(Point::KvWritten);
    }
    if told.has_events() {
        crash::reach(Point::EventsWritten);
    }
    transaction.commit()?;
    shared.remember(remembered);
    shared.tell(told);
    let Some((ids, advance)) = appended else { return Ok(Vec::new()) };
    journal.advance(advance);
    Ok(ids)
}

/// Writes what observers are to be told of this batch, and how far each of them is after it.
fn tell(
    transaction: &WriteTransaction,
    shared: &Shared,
    batch: &Batch<'_>,
    now: SystemTime,
) -> Result<events::Changes, redb::Error> {
    // Nobody else writes: no lock is held while the file is.
    let (mut changes, rings) = (events::Changes::default(), || shared.rings());
    let mut happened = batch.happened.to_vec();
    for Append { tenant, entry, told, .. } in batch.appends {
        if let Some(told) = told {
            changes.move_to(transaction, told)?;
        }
        let JournalEntry::Enforcement(told) = entry else { continue };
        let Enforcement::Overruled { code, .. } = &told.enforcement else { continue };
        if let Some((hook, subject)) = journal::about(transaction, tenant, told.decision)? {
            let (decision, code) = (told.decision, code.clone());
            happened.push((tenant.clone(), Happening::DecisionOverruled { decision, hook, subject, code }));
        }
    }
    changes.put(transaction, rings, &happened, now)?;
    for write in batch.planned.iter().filter(|write| write.value.is_none()) {
        if write.table.name() == PLUGINS.name() {
            changes.remove_plugin(transaction, rings, &write.key)?;
        }
    }
    Ok(changes)
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
            changes.remove_plugin(&shared.shelf(), &write.key);
        } else if write.table.name() == KV.name() {
            changes.remove(&write.key);
        }
    }
    for change in batch.appends.iter().flat_map(|append| &append.kv) {
        changes.apply(transaction, shared.kv(&change.place), change)?;
    }
    changes.write(transaction)
}
