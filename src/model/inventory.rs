//! What a plugin sees of a tenant's VMs and limits: one moment of them. Key types: [`InventoryView`], [`InventoryVm`].
//!
//! ```text
//!   store, quotas ──whole──▶ InventoryView ──question──▶ plugin ──▶ names that it looked at
//!                              └──narrowed to them──▶ on record: enough to answer the same again
//! ```
//!
//! The limits are part of the contract in `wit/inventory.wit`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{VmName, VmState};

/// VMs of one view: it goes with each question, and may stand in each record.
pub const MAX_INVENTORY_VMS: usize = 1024;
/// VMs in one answer.
pub const MAX_INVENTORY_PAGE: usize = 128;
/// Calls of the interface in one call of the plugin.
pub const MAX_INVENTORY_CALLS: u32 = 256;

/// What of a tenant's inventory a plugin may read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InventoryView {
    /// Number of the node's last change of a VM that is in it, as a watch tells it; 0 in what was made up.
    pub revision: u64,
    /// What the tenant has and may have.
    pub usage: InventoryUsage,
    /// What each of these was at the decision's start; null: not there.
    pub vms: BTreeMap<VmName, Option<InventoryVm>>,
    /// How many others there were.
    pub rest: usize,
}

/// A VM as a plugin sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InventoryVm {
    /// Where it is in its life.
    pub state: VmStage,
    /// Its vCPUs.
    pub vcpus: u32,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// The NUMA node that it is on, if that is known.
    #[serde(default)]
    pub numa_node: Option<u32>,
    /// Number of disks.
    #[serde(default)]
    pub disks: u32,
    /// Number of NICs.
    #[serde(default)]
    pub nics: u32,
    /// Those among them that are virtual functions.
    #[serde(default)]
    pub vfs: u32,
    /// Number of NVMe devices.
    #[serde(default)]
    pub nvmes: u32,
}

/// A [`VmState`] without its causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "as in VmState")]
pub enum VmStage {
    Registered,
    Starting,
    Running,
    Paused,
    Stopping,
    Stopped,
    Failed,
    Destroying,
}

/// What a tenant has and may have, of each resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InventoryUsage {
    /// Registered VMs.
    pub vms: InventoryAmount,
    /// Their vCPUs.
    pub vcpus: InventoryAmount,
    /// Their memory in MiB.
    pub memory_mib: InventoryAmount,
    /// Their disks.
    pub disks: InventoryAmount,
    /// Their devices of the host.
    pub devices: InventoryAmount,
}

/// So much of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InventoryAmount {
    /// In use.
    pub used: u64,
    /// The most that is allowed; `None`: no limit.
    pub limit: Option<u64>,
}

impl InventoryView {
    /// All of it, or, of a tenant that has too many VMs, what needs none of them.
    pub fn new(revision: u64, usage: InventoryUsage, vms: BTreeMap<VmName, Option<InventoryVm>>) -> Self {
        match vms.len() {
            0..=MAX_INVENTORY_VMS => Self { revision, usage, vms, rest: 0 },
            rest => Self { revision, usage, vms: BTreeMap::new(), rest },
        }
    }

    /// Only VMs of these names; others are only counted.
    pub fn narrowed(&self, names: &BTreeSet<VmName>) -> Self {
        let vms: BTreeMap<_, _> =
            names.iter().map(|name| (name.clone(), self.vms.get(name).copied().flatten())).collect();
        let is_left_out = |(name, vm): &(&VmName, &Option<InventoryVm>)| vm.is_some() && !names.contains(*name);
        let rest = self.rest + self.vms.iter().filter(is_left_out).count();
        Self { revision: self.revision, usage: self.usage, vms, rest }
    }

    /// VMs that are there and known, by name.
    pub fn known(&self) -> impl Iterator<Item = (&VmName, &InventoryVm)> {
        self.vms.iter().filter_map(|(name, vm)| Some((name, vm.as_ref()?)))
    }
}

impl From<&VmState> for VmStage {
    fn from(state: &VmState) -> Self {
        match state {
            VmState::Registered => Self::Registered,
            VmState::Starting => Self::Starting,
            VmState::Running => Self::Running,
            VmState::Paused => Self::Paused,
            VmState::Stopping | VmState::Rebooting => Self::Stopping,
            VmState::Stopped => Self::Stopped,
            VmState::Failed(_) => Self::Failed,
            VmState::Destroying => Self::Destroying,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vm(vcpus: u32) -> InventoryVm {
        let (state, memory_mib) = (VmStage::Running, 256);
        InventoryVm { state, vcpus, memory_mib, numa_node: Some(1), disks: 1, nics: 2, vfs: 1, nvmes: 0 }
    }

    #[test]
    fn a_tenant_with_too_many_vms_shows_how_many_and_none_of_them() {
        let many = |count: usize| {
            let vms = (0..count).map(|at| (format!("vm-{at}").parse().unwrap(), Some(vm(1)))).collect();
            InventoryView::new(7, InventoryUsage::default(), vms)
        };
        let (most, more) = (many(MAX_INVENTORY_VMS), many(MAX_INVENTORY_VMS + 1));
        assert_eq!((most.vms.len(), most.rest), (MAX_INVENTORY_VMS, 0));
        assert_eq!((more.vms.len(), more.rest), (0, MAX_INVENTORY_VMS + 1));
        // With each question, beside settings and the largest of questions: a lane has 1 MiB.
        let longest = (0..MAX_INVENTORY_VMS).map(|at| (format!("{at:063}").parse().unwrap(), Some(vm(u32::MAX))));
        let longest = InventoryView::new(u64::MAX, InventoryUsage::default(), longest.collect());
        let bytes = postcard::to_allocvec(&longest).unwrap();
        assert!(bytes.len() < 128 << 10, "{}", bytes.len());
    }

    #[test]
    fn what_is_made_up_may_leave_out_what_is_nothing() {
        let text = r#"{"vms": {"web": {"state": "stopped", "vcpus": 1, "memory_mib": 64}, "db": null}}"#;
        let view: InventoryView = serde_json::from_str(text).unwrap();
        assert_eq!(
            view.known().map(|(name, vm)| (name.as_str(), vm.state)).collect::<Vec<_>>(),
            [("web", VmStage::Stopped)]
        );
        for wrong in [
            r#"{"vm": {}}"#,
            r#"{"vms": {"Web": null}}"#,
            r#"{"vms": {"web": {"state": "off", "vcpus": 1, "memory_mib": 64}}}"#,
            r#"{"usage": {"vms": {"most": 1}}}"#,
        ] {
            assert!(serde_json::from_str::<InventoryView>(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_narrowed_view_says_the_same_of_what_it_has_and_counts_the_others(
            there in proptest::collection::btree_map("[a-f]", 1u32..9, 0..6),
            names in proptest::collection::btree_set("[a-h]", 0..8),
        ) {
            let vms = there.into_iter().map(|(name, vcpus)| (name.parse().unwrap(), Some(vm(vcpus)))).collect();
            let whole = InventoryView::new(3, InventoryUsage::default(), vms);
            let names: BTreeSet<VmName> = names.iter().map(|name| name.parse().unwrap()).collect();
            let narrowed = whole.narrowed(&names);
            for name in &names {
                prop_assert_eq!(narrowed.vms[name], whole.vms.get(name).copied().flatten());
            }
            prop_assert_eq!(narrowed.known().count() + narrowed.rest, whole.known().count());
            prop_assert_eq!(&narrowed.narrowed(&names), &narrowed);
            let json = serde_json::to_string(&narrowed).unwrap();
            prop_assert_eq!(&serde_json::from_str::<InventoryView>(&json).unwrap(), &narrowed);
            let bytes = postcard::to_allocvec(&narrowed).unwrap();
            prop_assert_eq!(&postcard::from_bytes::<InventoryView>(&bytes).unwrap(), &narrowed);
        }
    }
}
