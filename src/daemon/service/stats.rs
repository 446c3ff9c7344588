//! What a VM has done and what it takes. Key functions: [`Node::stats`], [`Node::usages`], [`Node::memory_use`],
//! [`Node::all_stats`].
//!
//! Counters are read from the file that the vmm counts in: it takes no part in it, and need not live.

use std::sync::Arc;
use std::time::Duration;

use super::access::require_operator;
use super::{Node, Principal, ServiceError};
use crate::daemon::record::VmRecord;
use crate::model::{TenantId, VmName};
pub use crate::sys::host_use::HostUse;
pub use crate::sys::memory_use::MemoryUse;
use crate::sys::process::Process;
use crate::sys::{host_use, memory_use};
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

/// What a VM with a process takes, as cheaply as it can be told.
#[derive(Debug, Clone)]
pub struct VmUsage {
    /// The VM.
    pub vm: Arc<VmRecord>,
    /// Its process' own.
    pub cpu_time: Duration,
    /// What its process has touched.
    pub memory_bytes: u64,
    /// What went through its disks.
    pub disks: Traffic,
    /// What went through its NICs.
    pub nics: Traffic,
}

/// What went through devices of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests or frames.
    pub operations: u64,
    /// Their bytes in both directions.
    pub bytes: u64,
}

impl Node {
    /// What these VMs take now; those without a process are left out. Blocks no other call.
    pub async fn usages(&self, vms: Vec<Arc<VmRecord>>) -> Vec<VmUsage> {
        let with_files = vms.into_iter().map(|vm| (self.supervisor.paths(vm.uid).counters(), vm)).collect::<Vec<_>>();
        let read = tokio::task::spawn_blocking(move || {
            let usage = |(file, vm): (std::path::PathBuf, Arc<VmRecord>)| {
                let process = Process::find(vm.run.as_ref()?.process?).ok()??;
                let (cpu_time, memory_bytes) = (process.cpu_time().ok()?, process.resident_bytes().ok()?);
                let counters = counters::decode(&std::fs::read(file).unwrap_or_default()).unwrap_or_default();
                let of = |ids: &[&str]| traffic(&counters, ids);
                let disks = of(&vm.spec.disks().iter().map(|disk| disk.id.as_str()).collect::<Vec<_>>());
                let nics = of(&vm.spec.nics().iter().map(|nic| nic.id.as_str()).collect::<Vec<_>>());
                Some(VmUsage { vm, cpu_time, memory_bytes, disks, nics })
            };
            with_files.into_iter().filter_map(usage).collect()
        });
        read.await.unwrap_or_default()
    }

    /// What the whole host takes now.
    pub async fn host_use(&self, principal: &Principal) -> Result<HostUse, ServiceError> {
        require_operator(principal)?;
        let read = tokio::task::spawn_blocking(host_use::read).await;
        let read = read.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        read.map_err(|source| ServiceError::Host { what: "its files about CPUs and memory in /proc", source })
    }

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

/// What went through the devices of these ids.
fn traffic(counters: &Counters, ids: &[&str]) -> Traffic {
    let devices = counters.devices.iter().filter(|device| ids.contains(&device.name.as_str()));
    devices.flat_map(|device| &device.queues).fold(Traffic::default(), |sum, queue| Traffic {
        // The numbers are the vmm's, which a guest may have taken over.
        operations: sum.operations.saturating_add(queue.operations),
        bytes: sum.bytes.saturating_add(queue.bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::counters::{DeviceCounters, QueueCounters};

    #[test]
    fn traffic_is_that_of_all_queues_of_the_devices_that_were_asked_about() {
        let queue = |operations, bytes| QueueCounters { operations, bytes, ..Default::default() };
        let device = |name: &str, queues| DeviceCounters { name: name.to_owned(), faults: 0, queues };
        let devices = vec![
            device("root", vec![queue(1, 10), queue(2, 20)]),
            device("net0", vec![queue(4, 40)]),
            device("data", vec![queue(u64::MAX, 7)]),
        ];
        let counters = Counters { devices, ..Default::default() };
        assert_eq!(traffic(&counters, &["root", "absent"]), Traffic { operations: 3, bytes: 30 });
        assert_eq!(traffic(&counters, &["root", "data"]), Traffic { operations: u64::MAX, bytes: 37 });
    }
}
