//! Watches VMs: the snapshot, then every change in order. Key type: [`Watch`].

use std::sync::Arc;
use std::vec::IntoIter;

use tokio::sync::broadcast::{self, error::RecvError};

use super::{Node, Principal, ServiceError, Whose};
use crate::daemon::record::VmRecord;
use crate::daemon::store::Change;
use crate::model::TenantId;

/// One message of a watch.
#[derive(Debug, Clone)]
pub struct WatchItem {
    /// The VM as of `revision`.
    pub vm: Arc<VmRecord>,
    /// Grows with every change on this node.
    pub revision: u64,
    /// Part of the snapshot.
    pub is_initial: bool,
    /// It was destroyed.
    pub is_gone: bool,
}

/// A watch under way.
#[derive(Debug)]
pub struct Watch {
    tenant: Option<TenantId>,
    initial: IntoIter<Arc<VmRecord>>,
    revision: u64,
    changes: broadcast::Receiver<Change>,
}

impl Node {
    /// Begins a watch of what `principal` may see of `whose`.
    pub fn watch_vms(&self, principal: &Principal, whose: &Whose) -> Result<Watch, ServiceError> {
        let tenant = whose.resolve(principal)?;
        let (snapshot, changes) = self.store.watch();
        let is_asked_for = |vm: &&Arc<VmRecord>| tenant.as_ref().is_none_or(|tenant| vm.tenant == *tenant);
        let mut initial: Vec<_> = snapshot.vms.values().filter(is_asked_for).cloned().collect();
        initial.sort_by(|a, b| (&a.tenant, &a.name).cmp(&(&b.tenant, &b.name)));
        Ok(Watch { tenant, initial: initial.into_iter(), revision: snapshot.revision, changes })
    }
}

impl Watch {
    /// The next message, as long as the reader keeps up and the daemon lives. Safe to cancel.
    pub async fn next(&mut self) -> Result<WatchItem, ServiceError> {
        if let Some(vm) = self.initial.next() {
            return Ok(WatchItem { vm, revision: self.revision, is_initial: true, is_gone: false });
        }
        loop {
            match self.changes.recv().await {
                Ok(Change { revision, vm, is_gone }) => {
                    if self.tenant.as_ref().is_none_or(|tenant| vm.tenant == *tenant) {
                        return Ok(WatchItem { vm, revision, is_initial: false, is_gone });
                    }
                }
                Err(RecvError::Lagged(_)) => return Err(ServiceError::Lagged),
                Err(RecvError::Closed) => return Err(ServiceError::Ending),
            }
        }
    }
}
