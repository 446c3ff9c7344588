//! The journal of VM tasks: store, addresses and handles move together. Key types: [`Ledger`], [`Handles`].

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::daemon::inventory::{AddressPool, UserPool};
use crate::daemon::record::VmRecord;
use crate::daemon::store::{Store, StoreError};
use crate::daemon::supervisor::{BoxFuture, Journal, JournalError, VmHandle};
use crate::model::VmId;

/// The task of each VM. A handle: clones share the table.
#[derive(Debug, Clone, Default)]
pub(super) struct Handles {
    /// Rank: leaf. Guards the table; held for a lookup only.
    table: Arc<RwLock<HashMap<VmId, VmHandle>>>,
}

impl Handles {
    pub(super) fn get(&self, uid: VmId) -> Option<VmHandle> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).get(&uid).cloned()
    }

    pub(super) fn insert(&self, handle: VmHandle) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).insert(handle.uid(), handle);
    }

    pub(super) fn remove(&self, uid: VmId) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).remove(&uid);
    }
}

/// What VM tasks write to.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) store: Store,
    pub(super) addresses: AddressPool,
    pub(super) users: UserPool,
    pub(super) handles: Handles,
}

impl Journal for Ledger {
    fn update(&self, vm: VmRecord) -> BoxFuture<'_, Result<(), JournalError>> {
        Box::pin(async move {
            let before = self.store.snapshot().vms.get(&vm.uid).cloned();
            let kept: Vec<_> = vm.nics.iter().map(|nic| nic.subnet).collect();
            self.store.update_vm(vm).await.map_err(reason)?;
            // Only now: none must be given away while a record on disk still holds it.
            let before = before.iter().flat_map(|vm| &vm.nics).map(|nic| nic.subnet);
            before.filter(|subnet| !kept.contains(subnet)).for_each(|subnet| self.addresses.release(subnet));
            Ok(())
        })
    }

    fn remove(&self, vm: VmRecord) -> BoxFuture<'_, Result<(), JournalError>> {
        Box::pin(async move {
            let subnets: Vec<_> = vm.nics.iter().map(|nic| nic.subnet).collect();
            let (uid, user) = (vm.uid, vm.user);
            self.store.remove_vm(vm).await.map_err(reason)?;
            // Only now: neither must be given away while a record on disk still holds it.
            subnets.into_iter().for_each(|subnet| self.addresses.release(subnet));
            self.users.release(user);
            self.handles.remove(uid);
            Ok(())
        })
    }
}

fn reason(error: StoreError) -> JournalError {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    JournalError(text)
}
