//! What a VM has done and what it takes. Key functions: [`Node::stats`], [`Node::memory_use`], [`Node::all_stats`].
//!
//! Counters are read from the file that the vmm counts in: it takes no part in it, and need not live.

use std::sync::Arc;

use super::{Node, Principal, ServiceError};
use crate::daemon::record::VmRecord;
use crate::model::{TenantId, VmName};
use crate::sys::memory_use;
pub use crate::sys::memory_use::MemoryUse;
use crate::wire::counters::{self, Counters};

/// A VM with what is known of it.
#[derive(Debug, Clone)]
pub struct VmStats {
    /// The VM.
    pub vm: Arc<VmRecord>,
    /// Of its last run; nothing before the first.
    pub counters: Counters,
    /// While it has a process.
    pub memory: Option<MemoryUse>,
}

impl Node {
    /// What the VM has done in its last run.
    pub async fn stats(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
    ) -> Result<VmStats, ServiceError> {
        let vm = self.get(principal, tenant, name)?;
        Ok(self.stats_of(vm).await)
    }

    /// The same of every VM, at most `most` of them.
    pub async fn all_stats(&self, most: usize) -> Vec<VmStats> {
        let mut vms: Vec<_> = self.store.snapshot().vms.values().cloned().collect();
        vms.sort_by(|a, b| (&a.tenant, &a.name).cmp(&(&b.tenant, &b.name)));
        vms.truncate(most);
        let mut all = Vec::with_capacity(vms.len());
        for vm in vms {
            all.push(self.stats_of(vm).await);
        }
        all
    }

    /// How much memory the VM takes; `None` while it has no process.
    pub async fn memory_use(&self, vm: &VmRecord) -> Option<MemoryUse> {
        let pid = vm.run.as_ref()?.process?.pid;
        let read = tokio::task::spawn_blocking(move || memory_use::read(pid));
        // It may have ended meanwhile.
        read.await.ok()?.ok()
    }

    async fn stats_of(&self, vm: Arc<VmRecord>) -> VmStats {
        let file = tokio::fs::read(self.supervisor.paths(vm.uid).counters()).await.unwrap_or_default();
        let memory = self.memory_use(&vm).await;
        VmStats { vm, counters: counters::decode(&file).unwrap_or_default(), memory }
    }
}
