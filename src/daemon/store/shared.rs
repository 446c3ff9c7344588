//! What is committed, for those who read and watch. Key types: [`Shared`], [`AnyLease`].

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use redb::Database;
use tokio::sync::{broadcast, watch};

use super::disk::Readers;
use super::events::{self, Rings, Told};
use super::history::{Compacted, History, ResumePoint};
use super::kv::{Kept, Shelf};
use super::{Change, Snapshot, StoreError, Watched};
use crate::daemon::record::{NvmeLease, VfLease};
use crate::model::{KvPlace, KvStore};

/// A lease of either kind.
pub(super) enum AnyLease {
    Vf(Arc<VfLease>),
    Nvme(Arc<NvmeLease>),
}

/// What readers see.
#[derive(Debug)]
pub(super) struct Shared {
    /// Rank: leaf. Guards what is current and the order of `changes`; held for a swap and a send, or a copy, only.
    current: RwLock<Current>,
    /// Rank: leaf. Guards what plugins remember; held for a look or a swap.
    shelf: RwLock<Shelf>,
    /// Rank: leaf. Guards where events and their readers are; held for a look or a swap.
    rings: RwLock<Rings>,
    changes: broadcast::Sender<Change>,
    /// That there are new events.
    news: watch::Sender<()>,
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
        (shelf, rings): (Shelf, Rings),
        changes: broadcast::Sender<Change>,
        readers: Arc<Readers>,
    ) -> Self {
        let current = RwLock::new(Current { snapshot: Arc::new(snapshot), history });
        let (shelf, rings, news) = (RwLock::new(shelf), RwLock::new(rings), watch::Sender::new(()));
        Self { current, shelf, rings, changes, news, readers }
    }

    /// What plugins remember; nothing is committed while it is looked at.
    pub(super) fn shelf(&self) -> RwLockReadGuard<'_, Shelf> {
        self.shelf.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what was read again after the file was opened anew.
    pub(super) fn replace(&self, shelf: Shelf, rings: Rings) {
        *self.shelf.write().unwrap_or_else(PoisonError::into_inner) = shelf;
        *self.rings.write().unwrap_or_else(PoisonError::into_inner) = rings;
    }

    /// Where events and their readers are.
    pub(super) fn rings(&self) -> RwLockReadGuard<'_, Rings> {
        self.rings.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over where they are now.
    pub(super) fn tell(&self, changes: events::Changes) {
        let has_events = changes.has_events();
        self.rings.write().unwrap_or_else(PoisonError::into_inner).take(changes);
        if has_events {
            self.news.send_replace(());
        }
    }

    pub(super) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Whether this follows the last position.
    pub(super) fn is_next(&self, told: &Told) -> bool {
        self.rings().positions.get(&told.place.to_string()).copied() == told.from
    }

    pub(super) fn kv(&self, place: &KvPlace) -> Arc<KvStore> {
        self.shelf().get(&place.to_string()).map(|kept| Arc::clone(&kept.store)).unwrap_or_default()
    }

    /// Takes over what plugins remember now.
    pub(super) fn remember(&self, changed: BTreeMap<String, Option<Kept>>) {
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

    pub(super) fn publish(&self, changes: Vec<Change>, leases: Vec<AnyLease>) {
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
