//! What a tenant has and may have, for plugins that see it. Key type: [`Holdings`].
//!
//! Worked out from the store's snapshot each time that somebody wants it: exact, of one moment, and nobody else pays.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::daemon::policy::InventorySource;
use crate::daemon::record::VmRecord;
use crate::daemon::store::Store;
use crate::daemon::tenants::{Tenants, Use};
use crate::model::{InventoryAmount, InventoryUsage, InventoryView, InventoryVm, TenantId, VmStage};

/// The store and the quotas.
#[derive(Debug)]
pub(super) struct Holdings {
    pub(super) store: Store,
    pub(super) tenants: watch::Receiver<Arc<Tenants>>,
}

impl InventorySource for Holdings {
    fn of(&self, tenant: &TenantId) -> InventoryView {
        let quota = self.tenants.borrow().quota(tenant);
        let snapshot = self.store.snapshot();
        let (mut vms, mut used) = (BTreeMap::new(), Use::default());
        for vm in snapshot.vms.values().filter(|vm| vm.tenant == *tenant) {
            used = used.plus(Use::of_vm(&vm.spec));
            vms.insert(vm.name.clone(), Some(seen(vm)));
        }
        let amount = |used, limit| InventoryAmount { used, limit };
        let usage = InventoryUsage {
            vms: amount(used.vms, quota.vms),
            vcpus: amount(used.vcpus, quota.vcpus),
            memory_mib: amount(used.memory_mib, quota.memory_mib),
            disks: amount(used.disks, quota.disks),
            devices: amount(used.devices, quota.devices),
        };
        InventoryView::new(snapshot.revision, usage, vms)
    }
}

fn seen(vm: &VmRecord) -> InventoryVm {
    let (spec, nics) = (&vm.spec, vm.spec.nics());
    // Bounded by the number of PCI slots.
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    InventoryVm {
        state: VmStage::from(&vm.state),
        vcpus: spec.vcpus(),
        memory_mib: spec.memory_mib(),
        numa_node: vm.placement.as_ref().map(|placement| placement.node).or(spec.memory().numa_node),
        disks: count(spec.disks().len()),
        nics: count(nics.len()),
        vfs: count(nics.iter().filter(|nic| nic.vf_wish().is_some()).count()),
        nvmes: count(spec.nvmes().len()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::daemon::record::samples;
    use crate::model::{MAX_INVENTORY_VMS, VmName, VmState};

    async fn holdings(dir: &std::path::Path, text: &str) -> Holdings {
        let (store, _) = Store::open(&dir.join("store.redb")).unwrap();
        let (_, tenants) = watch::channel(Arc::new(Tenants::parse(text).unwrap()));
        Holdings { store, tenants }
    }

    #[tokio::test]
    async fn a_tenant_has_its_own_vms_and_nothing_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let holdings = holdings(dir.path(), "[defaults]\nvms = 9\n[tenants.acme]\nvms = 3\nmemory-mib = 1024").await;
        let (acme, globex): (TenantId, TenantId) = ("acme".parse().unwrap(), "globex".parse().unwrap());
        assert_eq!((holdings.of(&acme).revision, holdings.of(&acme).vms.len()), (0, 0));
        let web = samples::running("acme", "web");
        let rebooting = VmRecord { state: VmState::Rebooting, ..samples::running("acme", "db") };
        for vm in [web.clone(), samples::running("globex", "web"), rebooting] {
            holdings.store.insert_vm(vm).await.unwrap();
        }
        let view = holdings.of(&acme);
        let vm = InventoryVm {
            state: VmStage::Running,
            vcpus: 2,
            memory_mib: 256,
            numa_node: None,
            disks: 1,
            nics: 1,
            vfs: 0,
            nvmes: 0,
        };
        let name = |name: &str| name.parse::<VmName>().unwrap();
        let rebooting = InventoryVm { state: VmStage::Stopping, ..vm };
        assert_eq!((view.revision, view.rest), (3, 0));
        assert_eq!(view.vms, [(name("db"), Some(rebooting)), (name("web"), Some(vm))].into());
        let amount = |used, limit| InventoryAmount { used, limit };
        assert_eq!((view.usage.vms, view.usage.vcpus), (amount(2, Some(3)), amount(4, None)));
        assert_eq!((view.usage.memory_mib, view.usage.disks), (amount(512, Some(1024)), amount(2, None)));
        let other = holdings.of(&globex);
        assert_eq!((other.vms.len(), other.usage.vms), (1, amount(1, Some(9))));
        holdings.store.remove_vm(web).await.unwrap();
        assert_eq!((holdings.of(&acme).revision, holdings.of(&acme).vms.len()), (4, 1));
        // What was read before is as it was.
        assert_eq!(view.vms.len(), 2);
    }

    #[tokio::test]
    async fn a_thousand_vms_are_seen_whole_and_one_too_many_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let holdings = holdings(dir.path(), "").await;
        let acme = "acme".parse().unwrap();
        let insert = |at: usize| {
            let store = holdings.store.clone();
            tokio::spawn(async move { store.insert_vm(samples::running("acme", &format!("vm-{at}"))).await })
        };
        // At once: many share a write to the disk.
        for inserted in (0..MAX_INVENTORY_VMS).map(insert).collect::<Vec<_>>() {
            inserted.await.unwrap().unwrap();
        }
        let begun = Instant::now();
        let whole = holdings.of(&acme);
        println!("{MAX_INVENTORY_VMS} VMs: {:?}", begun.elapsed());
        assert_eq!((whole.vms.len(), whole.rest), (MAX_INVENTORY_VMS, 0));
        insert(MAX_INVENTORY_VMS).await.unwrap().unwrap();
        let more = holdings.of(&acme);
        assert_eq!((more.vms.len(), more.rest, more.usage.vms.used), (0, 1025, 1025));
    }
}
