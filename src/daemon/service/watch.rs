//! Watches VMs: the snapshot, or what was missed, then every change in order. Key type: [`Watch`].
//!
//! ```text
//!   new:      INITIAL… BOOKMARK CHANGE… BOOKMARK CHANGE…      resumed:  CHANGE… (missed) BOOKMARK CHANGE…
//! ```

use std::sync::Arc;
use std::time::Duration;
use std::vec::IntoIter;

use tokio::sync::broadcast::{self, error::RecvError};

use super::{Node, Principal, ServiceError, Whose};
use crate::daemon::record::VmRecord;
use crate::daemon::store::{Change, ResumePoint};
use crate::model::TenantId;

/// After so long without a message there is a bookmark: the watch lives, and can be resumed from here.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(15);

/// One message of a watch.
#[derive(Debug, Clone)]
pub enum WatchItem {
    /// A VM of the snapshot.
    Initial {
        /// As of `revision`.
        vm: Arc<VmRecord>,
        /// Of the snapshot.
        revision: u64,
    },
    /// A VM that changed.
    Change(Change),
    /// Everything up to here was told.
    Bookmark(ResumePoint),
}

/// A watch under way.
#[derive(Debug)]
pub struct Watch {
    tenant: Option<TenantId>,
    initial: IntoIter<Arc<VmRecord>>,
    missed: IntoIter<Change>,
    /// What was told, or is not to be told.
    told: ResumePoint,
    is_bookmark_due: bool,
    changes: broadcast::Receiver<Change>,
}

impl Node {
    /// Begins a watch of what `principal` may see of `whose`: with a snapshot, or with what has changed since `resumed`.
    pub fn watch_vms(
        &self,
        principal: &Principal,
        whose: &Whose,
        resumed: Option<ResumePoint>,
    ) -> Result<Watch, ServiceError> {
        let tenant = whose.resolve(principal)?;
        let is_asked_for = |vm: &VmRecord| tenant.as_ref().is_none_or(|tenant| vm.tenant == *tenant);
        let (initial, missed, watched) = match resumed {
            None => {
                let watched = self.store.watch_from_now();
                let mut initial: Vec<_> =
                    watched.snapshot.vms.values().filter(|vm| is_asked_for(vm)).cloned().collect();
                initial.sort_by(|a, b| (&a.tenant, &a.name).cmp(&(&b.tenant, &b.name)));
                (initial, vec![], watched)
            }
            Some(point) => {
                let (mut missed, watched) = self.store.resume(point)?;
                missed.retain(|change| is_asked_for(&change.vm));
                (vec![], missed, watched)
            }
        };
        Ok(Watch {
            tenant,
            initial: initial.into_iter(),
            missed: missed.into_iter(),
            told: watched.point,
            is_bookmark_due: true,
            changes: watched.changes,
        })
    }
}

impl Watch {
    /// The next message, as long as the reader keeps up and the daemon lives. Safe to cancel.
    pub async fn next(&mut self) -> Result<WatchItem, ServiceError> {
        if let Some(vm) = self.initial.next() {
            return Ok(WatchItem::Initial { vm, revision: self.told.revision });
        }
        if let Some(change) = self.missed.next() {
            return Ok(WatchItem::Change(change));
        }
        if std::mem::take(&mut self.is_bookmark_due) {
            return Ok(WatchItem::Bookmark(self.told));
        }
        let end = tokio::time::Instant::now() + BOOKMARK_INTERVAL;
        loop {
            match tokio::time::timeout_at(end, self.changes.recv()).await {
                Ok(Ok(change)) => {
                    self.told = change.point();
                    if self.tenant.as_ref().is_none_or(|tenant| change.vm.tenant == *tenant) {
                        return Ok(WatchItem::Change(change));
                    }
                }
                Ok(Err(RecvError::Lagged(_))) => return Err(ServiceError::Lagged),
                Ok(Err(RecvError::Closed)) => return Err(ServiceError::Ending),
                Err(_elapsed) => return Ok(WatchItem::Bookmark(self.told)),
            }
        }
    }
}
