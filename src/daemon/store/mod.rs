//! What survives the daemon. Key types: [`Store`], [`Change`], [`PluginRecord`], [`Snapshot`].
//!
//! A redb file, owned by one thread: others send it changes and get an answer once they are on disk. Every change of a
//! VM is published, in the order in which it was written, to those who watch; the same thread keeps the snapshot that
//! a watch (and every read) begins with, so no change can fall between the two.
//!
//! ```text
//!   tasks ──Write (bounded)──▶ store thread ──commit──▶ redb file
//!                                  └── snapshot (replaced whole) + Change{revision} ──▶ readers, watchers
//! ```
//!
//! Records are JSON documents with a format number (`format.rs`): one can be read with any redb tool when something is
//! wrong, and a field can be added without rewriting the rest.

mod alias;
mod check;
mod decision;
mod disk;
mod events;
#[cfg(test)]
mod faults;
mod format;
mod history;
mod journal;
mod kv;
mod lease;
mod nvme;
mod plugin;
mod request;
mod shared;
mod spec;
mod tables;
mod thread;
mod vm;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::daemon::record::{NvmeKey, NvmeLease, NvmeProvision, RequestKey, RequestRecord, VfKey, VfLease, VmRecord};
use crate::model::{Bdf, DecisionId, JournalEntry, KvChange, KvPlace, KvStore, TenantId, VmId};
pub use alias::AliasRefused;
pub use check::{RecordFault, RecordFaultKind};
use disk::{InFile, Place};
pub use events::{EventSpan, Told, Untold};
pub use history::{Compacted, ResumePoint};
use journal::Append;
pub use journal::{Chains, DecisionPage, DecisionQuery, Retention, StoredDecision};
pub use plugin::{CanaryRecord, CanaryState, PluginRecord, PluginVersion};
use shared::Shared;
use thread::Write;

/// Writes that may wait for the disk.
const QUEUE_LEN: usize = 256;
/// Changes that a watcher may lag behind before it is cut off.
const CHANGES_LEN: usize = 1024;

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or created.
    #[error("cannot open the store {path}")]
    Open {
        /// The file.
        path: String,
        /// What redb says.
        source: Box<redb::Error>,
    },
    /// A write or a read failed.
    #[error("store cannot be read or written")]
    Io(#[source] Arc<redb::Error>),
    /// A record is not one, or of a newer daemon.
    #[error("record {key} of table {table} is unusable: {reason}")]
    Record {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// Somebody else changed the lease in between, or it is not what the caller took it for.
    #[error("the record of {0} has changed meanwhile")]
    Stale(String),
    /// The store's thread is gone: the daemon is ending.
    #[error("store is closed")]
    Closed,
}

impl StoreError {
    fn io(error: impl Into<redb::Error>) -> Self {
        Self::Io(Arc::new(error.into()))
    }
}

/// A VM changed, or is gone.
#[derive(Debug, Clone)]
pub struct Change {
    /// Grows by one with each change on this node, across restarts.
    pub revision: u64,
    /// The VM as it is now; its last state if it is gone.
    pub vm: Arc<VmRecord>,
    /// It was destroyed.
    pub is_gone: bool,
    /// Tells it from another change of the same number.
    pub check: u64,
}

impl Change {
    /// The point right after it.
    pub fn point(&self) -> ResumePoint {
        ResumePoint { revision: self.revision, check: self.check }
    }
}

/// A watch from a moment on.
#[derive(Debug)]
pub struct Watched {
    /// All VMs at that moment.
    pub snapshot: Arc<Snapshot>,
    /// The moment.
    pub point: ResumePoint,
    /// Every change after it. A receiver that lags too far behind gets an error, not a gap.
    pub changes: broadcast::Receiver<Change>,
}

/// All VMs and leases at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Of the last change of a VM in it.
    pub revision: u64,
    /// By id.
    pub vms: BTreeMap<VmId, Arc<VmRecord>>,
    /// Of virtual functions that somebody ever had.
    pub leases: BTreeMap<VfKey, Arc<VfLease>>,
    /// Of parts of NVMe controllers that somebody ever had.
    pub nvme_leases: BTreeMap<NvmeKey, Arc<NvmeLease>>,
}

/// What was found in the file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Found {
    /// Every VM.
    pub vms: Vec<VmRecord>,
    /// Every plugin.
    pub plugins: Vec<PluginRecord>,
    /// Every lease.
    pub leases: Vec<VfLease>,
    /// Every lease of NVMe.
    pub nvme_leases: Vec<NvmeLease>,
    /// Every controller whose secondaries were being made.
    pub provisions: Vec<NvmeProvision>,
    /// Every remembered request.
    pub requests: Vec<RequestRecord>,
}

/// What changes with everything that is remembered of the VM, and only then: quoted, as RFC 9110 §8.8.3 has it.
pub fn vm_etag(vm: &VmRecord) -> String {
    etag(&vm::encode_vm(vm))
}

/// The same of a plugin.
pub fn plugin_etag(plugin: &PluginRecord) -> String {
    etag(&plugin::encode_plugin(plugin))
}

/// Of a record as it is on disk, so that it is the same after a restart. 64 bits: it tells versions of one resource
/// apart, and guards against nobody.
fn etag(record: &[u8]) -> String {
    let digest = Sha256::digest(record);
    let hex: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}

/// A handle to the store; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    writes: mpsc::Sender<Write>,
    shared: Arc<Shared>,
}

impl Store {
    /// Opens or creates the file at `path` and reads all of it. Blocks; call it before serving.
    pub fn open(path: &Path) -> Result<(Self, Found), StoreError> {
        Self::open_keeping(path, Retention::default())
    }

    /// The same, keeping decision records as `retention` says.
    pub fn open_keeping(path: &Path, retention: Retention) -> Result<(Self, Found), StoreError> {
        Self::open_in(InFile::new(path), path, retention)
    }

    /// The same in any `place`, which `path` names in errors.
    fn open_in(place: impl Place, path: &Path, retention: Retention) -> Result<(Self, Found), StoreError> {
        let (mut disk, found, history, shelf, rings) = tables::open(place, path)?;
        let revision = history.end().revision;
        let journal = tables::open_journal(&mut disk, retention)?;
        let vms = found.vms.iter().map(|vm| (vm.uid, Arc::new(vm.clone()))).collect();
        let leases = found.leases.iter().map(|lease| (lease.key, Arc::new(lease.clone()))).collect();
        let nvme_leases = found.nvme_leases.iter().map(|lease| (lease.key.clone(), Arc::new(lease.clone()))).collect();
        let snapshot = Snapshot { revision, vms, leases, nvme_leases };
        let changes = broadcast::Sender::new(CHANGES_LEN);
        let shared = Arc::new(Shared::new(snapshot, history, (shelf, rings), changes, disk.readers()));
        let (writes, queue) = mpsc::channel(QUEUE_LEN);
        thread::spawn(disk, journal, queue, Arc::clone(&shared))
            .map_err(|error| StoreError::Io(Arc::new(redb::Error::Io(error))))?;
        Ok((Self { writes, shared }, found))
    }

    #[cfg(test)]
    /// Remembers a new VM. On an error it is not remembered, and nobody saw it.
    pub async fn insert_vm(&self, vm: VmRecord) -> Result<(), StoreError> {
        self.write(|done| Write::Vm { vm, is_new: true, done }).await
    }

    /// Remembers a new VM together with the request that it answers: both, or neither.
    pub async fn insert_vm_for(&self, vm: VmRecord, request: Option<RequestRecord>) -> Result<(), StoreError> {
        self.write(|done| thread::together(request, Write::Vm { vm, is_new: true, done })).await
    }

    /// Remembers a plugin together with the request that it answers: both, or neither.
    pub async fn put_plugin_for(&self, plugin: PluginRecord, request: Option<RequestRecord>) -> Result<(), StoreError> {
        self.write(|done| thread::together(request, Write::Plugin { plugin, done })).await
    }

    /// Remembers how far a request got.
    pub async fn put_request(&self, request: RequestRecord) -> Result<(), StoreError> {
        self.write(|done| Write::Request { request, done }).await
    }

    /// Forgets a request.
    pub async fn forget_request(&self, key: RequestKey) -> Result<(), StoreError> {
        self.write(|done| Write::ForgetRequest { key, done }).await
    }

    /// Remembers a VM's change. Published even if the disk refuses it: it has happened.
    pub async fn update_vm(&self, vm: VmRecord) -> Result<(), StoreError> {
        self.write(|done| Write::Vm { vm, is_new: false, done }).await
    }

    /// Forgets a VM; `vm` is its last state.
    pub async fn remove_vm(&self, vm: VmRecord) -> Result<(), StoreError> {
        self.write(|done| Write::RemoveVm { vm, done }).await
    }

    #[cfg(test)]
    /// Remembers a plugin, in place of one of the same scope and name.
    pub async fn put_plugin(&self, plugin: PluginRecord) -> Result<(), StoreError> {
        self.write(|done| Write::Plugin { plugin, done }).await
    }

    /// Forgets a plugin, and remembers the request that this answers: both, or neither.
    pub async fn remove_plugin_for(
        &self,
        plugin: PluginRecord,
        request: Option<RequestRecord>,
    ) -> Result<(), StoreError> {
        self.write(|done| thread::together(request, Write::RemovePlugin { plugin, done })).await
    }

    /// Remembers a lease's change, if it follows the last one that the store has ([`VfLease::generation`]): of several
    /// that take the same virtual function at once, one succeeds and the others get [`StoreError::Stale`].
    pub async fn put_lease(&self, lease: VfLease) -> Result<(), StoreError> {
        self.write(|done| Write::Lease { lease, done }).await
    }

    #[cfg(test)]
    /// Puts `entry` at the end of `tenant`'s chain of decision records; gives its place once it is on disk.
    pub async fn append(&self, tenant: TenantId, entry: JournalEntry) -> Result<DecisionId, StoreError> {
        self.append_with(tenant, entry, Vec::new(), ()).await
    }

    /// Puts `entry` at the end of `tenant`'s chain of decision records, and `kv` into what plugins remember: both, or
    /// neither. Gives its place once it is on disk. `held` is let go when others can read what was written, or nothing was,
    /// whether or not the caller still waits.
    pub async fn append_with(
        &self,
        tenant: TenantId,
        entry: JournalEntry,
        kv: Vec<KvChange>,
        held: impl Send + 'static,
    ) -> Result<DecisionId, StoreError> {
        let append = |done| Append { tenant, entry, kv, told: None, held: Box::new(held), done };
        self.append_as(append).await
    }

    /// The same for what an observer was told, with its new position: [`StoreError::Stale`] if that does not follow the
    /// last one any more.
    pub async fn append_told(
        &self,
        entry: JournalEntry,
        kv: Vec<KvChange>,
        told: Told,
        held: impl Send + 'static,
    ) -> Result<DecisionId, StoreError> {
        let tenant = told.place.tenant.clone();
        self.append_as(|done| Append { tenant, entry, kv, told: Some(told), held: Box::new(held), done }).await
    }

    async fn append_as(
        &self,
        append: impl FnOnce(oneshot::Sender<Result<DecisionId, StoreError>>) -> Append,
    ) -> Result<DecisionId, StoreError> {
        let (done, answer) = oneshot::channel();
        self.writes.send(Write::Append(append(done))).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Puts `entry` at the end of `tenant`'s chain with whatever is written next; does not wait for it. What cannot be
    /// written is logged.
    pub async fn append_later(&self, tenant: TenantId, entry: JournalEntry) {
        let (done, _) = oneshot::channel();
        let append = Append { tenant, entry, kv: Vec::new(), told: None, held: Box::new(()), done };
        if self.writes.send(Write::Append(append)).await.is_err() {
            tracing::error!("what followed a decision is not on record: the store is closed");
        }
    }

    /// What is remembered at `place`.
    pub fn kv(&self, place: &KvPlace) -> Arc<KvStore> {
        self.shared.kv(place)
    }

    /// Forgets all that is remembered at `place`, and remembers the request that this answers: both, or neither.
    pub async fn clear_kv_for(&self, place: KvPlace, request: Option<RequestRecord>) -> Result<(), StoreError> {
        self.write(|done| thread::together(request, Write::ClearKv { place, done })).await
    }

    /// Removes decision records that are too old, of tenants that decide nothing any more too.
    pub async fn sweep_decisions(&self) -> Result<(), StoreError> {
        self.write(|done| Write::Sweep { done }).await
    }

    /// All chains of decision records as of now. Reading them blocks.
    pub fn chains(&self) -> Result<Chains, StoreError> {
        Chains::at(&*self.shared.database()?)
    }

    /// As [`put_lease`](Self::put_lease), for NVMe.
    pub async fn put_nvme_lease(&self, lease: NvmeLease) -> Result<(), StoreError> {
        self.write(|done| Write::NvmeLease { lease, done }).await
    }

    /// Remembers that a controller's secondaries are about to be made.
    pub async fn put_provision(&self, provision: NvmeProvision) -> Result<(), StoreError> {
        self.write(|done| Write::Provision { provision, done }).await
    }

    /// Forgets that: they are, or will not be.
    pub async fn forget_provision(&self, controller: Bdf) -> Result<(), StoreError> {
        self.write(|done| Write::ForgetProvision { controller, done }).await
    }

    /// Waits until everything is on disk and the file is closed. Later writes are refused.
    pub async fn close(&self) {
        // Closed already: fine.
        let _ = self.write(|done| Write::Close { done }).await;
    }

    /// All VMs as of now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot()
    }

    /// All VMs as of now, and every change from here on. A receiver that lags too far behind gets an error, not a gap.
    pub fn watch(&self) -> (Arc<Snapshot>, broadcast::Receiver<Change>) {
        self.shared.watch()
    }

    /// The same with the point that `watch` begins at.
    pub fn watch_from_now(&self) -> Watched {
        self.shared.watch_from_now()
    }

    /// What has changed since `point`, and the watch that goes on behind that.
    pub fn resume(&self, point: ResumePoint) -> Result<(Vec<Change>, Watched), Compacted> {
        self.shared.resume(point)
    }

    async fn write(
        &self,
        write: impl FnOnce(oneshot::Sender<Result<(), StoreError>>) -> Write,
    ) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        self.writes.send(write(done)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::daemon::record::samples;
    use crate::model::{PluginDigest, PluginMode, PolicyScope, VmState};

    #[tokio::test]
    async fn finds_again_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let (kept, gone) = (samples::running("acme", "web"), samples::running("acme", "old"));
        let plugin = PluginRecord {
            scope: PolicyScope::Tenant("acme".parse().unwrap()),
            name: "limits".parse().unwrap(),
            digest: PluginDigest([7; 32]),
            settings: BTreeMap::from([("max-vms".into(), "3".into())]),
            signatures: vec![],
            grants: BTreeSet::new(),
            mode: PluginMode::Enforced,
            weight: Default::default(),
            loaded: std::time::UNIX_EPOCH,
            previous: vec![PluginVersion {
                digest: PluginDigest([6; 32]),
                settings: BTreeMap::new(),
                signatures: vec![],
                grants: BTreeSet::new(),
                loaded: std::time::UNIX_EPOCH,
            }],
            canary: None,
            aliases: Default::default(),
        };
        let unloaded = PluginRecord { name: "old".parse().unwrap(), ..plugin.clone() };
        let shadow = PluginRecord { name: "next".parse().unwrap(), mode: PluginMode::Shadow, ..plugin.clone() };
        {
            let (store, found) = Store::open(&path).unwrap();
            assert!(found.vms.is_empty() && found.plugins.is_empty());
            store.insert_vm(kept.clone()).await.unwrap();
            store.insert_vm(gone.clone()).await.unwrap();
            store.remove_vm(gone).await.unwrap();
            store.put_plugin(plugin.clone()).await.unwrap();
            store.put_plugin(unloaded.clone()).await.unwrap();
            store.put_plugin(shadow.clone()).await.unwrap();
            store.remove_plugin_for(unloaded, None).await.unwrap();
            assert_eq!(store.snapshot().revision, 3);
            store.close().await;
            assert!(matches!(store.put_plugin(plugin.clone()).await, Err(StoreError::Closed)));
        }
        let (store, found) = Store::open(&path).unwrap();
        assert_eq!(found.vms, [kept]);
        assert_eq!(found.plugins, [plugin, shadow]);
        assert_eq!(store.snapshot().revision, 3, "revisions go on across restarts");
    }

    #[tokio::test]
    async fn a_watch_begins_with_all_and_misses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&dir.path().join("store.redb")).unwrap();
        let mut vm = samples::running("acme", "web");
        store.insert_vm(vm.clone()).await.unwrap();
        let (snapshot, mut changes) = store.watch();
        assert_eq!(snapshot.vms.len(), 1);
        vm.state = VmState::Stopped;
        store.update_vm(vm.clone()).await.unwrap();
        store.remove_vm(vm).await.unwrap();
        let first = changes.recv().await.unwrap();
        assert_eq!((first.revision, first.vm.state.clone(), first.is_gone), (2, VmState::Stopped, false));
        let second = changes.recv().await.unwrap();
        assert_eq!((second.revision, second.is_gone), (3, true));
        assert!(store.snapshot().vms.is_empty());
    }

    #[tokio::test]
    async fn of_many_that_claim_one_virtual_function_at_once_one_gets_it() {
        use crate::daemon::record::{LeaseEvent, lease_samples as samples};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let (store, _) = Store::open(&path).unwrap();
        let unheld = samples::unheld(0);
        let claims = (0..20).map(|_| unheld.after(LeaseEvent::Claim(samples::holder("acme"))).unwrap());
        let writes: Vec<_> = claims
            .map(|claim| {
                let store = store.clone();
                tokio::spawn(async move { store.put_lease(claim.clone()).await.map(|()| claim) })
            })
            .collect();
        let mut winners = Vec::new();
        for write in writes {
            match write.await.unwrap() {
                Ok(claim) => winners.push(claim),
                Err(error) => {
                    assert!(matches!(error, StoreError::Stale(ref key) if *key == unheld.key.to_string()), "{error}")
                }
            }
        }
        assert_eq!(winners.len(), 1);
        assert_eq!(*store.snapshot().leases[&unheld.key], winners[0]);
        // What is late is refused, in whatever way it differs.
        let releasing = winners[0].after(LeaseEvent::Release).unwrap();
        store.put_lease(releasing.clone()).await.unwrap();
        assert!(matches!(store.put_lease(releasing.clone()).await, Err(StoreError::Stale(_))));
        store.close().await;
        let (_, found) = Store::open(&path).unwrap();
        assert_eq!(found.leases, [releasing]);
    }

    #[tokio::test]
    async fn a_watch_is_resumed_across_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let mut vm = samples::running("acme", "web");
        let (store, _) = Store::open(&path).unwrap();
        let start = store.watch_from_now().point;
        store.insert_vm(vm.clone()).await.unwrap();
        let seen = store.watch_from_now().point;
        vm.state = VmState::Stopped;
        store.update_vm(vm.clone()).await.unwrap();
        store.close().await;

        let (store, _) = Store::open(&path).unwrap();
        store.remove_vm(vm.clone()).await.unwrap();
        let (missed, now) = store.resume(seen).unwrap();
        let shown: Vec<_> = missed.iter().map(|c| (c.revision, c.vm.state.clone(), c.is_gone)).collect();
        assert_eq!(shown, [(2, VmState::Stopped, false), (3, VmState::Stopped, true)]);
        assert!(now.snapshot.vms.is_empty() && now.point.revision == 3);
        assert_eq!(store.resume(start).unwrap().0.len(), 3);
        assert!(store.resume(ResumePoint { revision: 4, check: 1 }).is_err());
        assert!(store.resume(ResumePoint { check: seen.check ^ 1, ..seen }).is_err());
    }

    #[tokio::test]
    async fn a_watcher_that_sleeps_is_told_that_it_missed_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&dir.path().join("store.redb")).unwrap();
        let vm = samples::running("acme", "web");
        store.insert_vm(vm.clone()).await.unwrap();
        let (_, mut changes) = store.watch();
        let writes: Vec<_> = (0..=CHANGES_LEN)
            .map(|_| {
                tokio::spawn({
                    let (store, vm) = (store.clone(), vm.clone());
                    async move { store.update_vm(vm).await.unwrap() }
                })
            })
            .collect();
        for write in writes {
            write.await.unwrap();
        }
        assert!(matches!(changes.recv().await, Err(broadcast::error::RecvError::Lagged(_))));
    }
}
