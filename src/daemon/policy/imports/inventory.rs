//! The import `inventory`: what the tenant has. Key type: [`Sight`].
//!
//! It comes with the question, and what was looked at goes back with the answer: no call leaves this process.

use std::collections::BTreeSet;

use crate::model::{
    InventoryAmount, InventoryUsage, InventoryView, InventoryVm, MAX_INVENTORY_CALLS, MAX_INVENTORY_PAGE, VmName,
    VmStage,
};
use crate::wire::policy::InventorySpoken;

use super::Call;
use super::bindings::ostler::policy::inventory::{Account, Amount, Host, Machine, State};

/// An inventory during one call.
#[derive(Debug)]
pub(in super::super) struct Sight {
    view: InventoryView,
    looked: BTreeSet<VmName>,
    is_listed: bool,
    calls: u32,
}

/// Why a call of the interface ends the plugin's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in super::super) enum NoSight {
    /// There is none: it does not decide, or was not granted one.
    #[error("inventory is there while a decision is made only, and if it is granted")]
    None,
    /// It has called too often.
    #[error("more than {MAX_INVENTORY_CALLS} calls of inventory")]
    TooManyCalls,
    /// There are VMs that are not shown: too many of them, or the decision's record says no more.
    #[error("{0} VMs of the tenant are not shown, and it asked for what may be among them")]
    NotShown(usize),
}

impl Sight {
    pub(in super::super) fn new(view: InventoryView) -> Self {
        Self { view, looked: BTreeSet::new(), is_listed: false, calls: 0 }
    }

    /// What was looked at.
    pub(in super::super) fn into_spoken(self) -> InventorySpoken {
        InventorySpoken { looked: self.looked.into_iter().collect(), is_listed: self.is_listed }
    }

    fn vm(&mut self, name: &str) -> Result<Option<InventoryVm>, NoSight> {
        // No VM ever has such a name.
        let Ok(name) = name.parse::<VmName>() else { return Ok(None) };
        let vm = match self.view.vms.get(&name) {
            Some(vm) => *vm,
            None if self.view.rest > 0 => return Err(NoSight::NotShown(self.view.rest)),
            None => None,
        };
        self.looked.insert(name);
        Ok(vm)
    }

    fn page(&mut self, first: u32, most: u32) -> Result<Vec<Machine>, NoSight> {
        if self.view.rest > 0 {
            return Err(NoSight::NotShown(self.view.rest));
        }
        self.is_listed = true;
        let number = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let page = self.view.known().skip(number(first)).take(number(most).min(MAX_INVENTORY_PAGE));
        Ok(page.map(|(name, vm)| machine(name.as_str(), *vm)).collect())
    }
}

impl Call {
    /// The inventory, for one call more.
    fn sight(&mut self) -> wasmtime::Result<&mut Sight> {
        self.count()?;
        let sight = self.sight.as_mut().ok_or(NoSight::None)?;
        sight.calls += 1;
        if sight.calls > MAX_INVENTORY_CALLS { Err(NoSight::TooManyCalls.into()) } else { Ok(sight) }
    }
}

impl Host for Call {
    fn usage(&mut self) -> wasmtime::Result<Account> {
        let InventoryUsage { vms, vcpus, memory_mib, disks, devices } = self.sight()?.view.usage;
        let amount = |InventoryAmount { used, limit }| Amount { used, limit };
        Ok(Account {
            vms: amount(vms),
            vcpus: amount(vcpus),
            memory_mib: amount(memory_mib),
            disks: amount(disks),
            devices: amount(devices),
        })
    }

    fn vm(&mut self, name: String) -> wasmtime::Result<Option<Machine>> {
        Ok(self.sight()?.vm(&name)?.map(|vm| machine(&name, vm)))
    }

    fn vms(&mut self, first: u32, most: u32) -> wasmtime::Result<Vec<Machine>> {
        Ok(self.sight()?.page(first, most)?)
    }
}

fn machine(name: &str, vm: InventoryVm) -> Machine {
    let InventoryVm { state, vcpus, memory_mib, numa_node, disks, nics, vfs, nvmes } = vm;
    let state = match state {
        VmStage::Registered => State::Registered,
        VmStage::Starting => State::Starting,
        VmStage::Running => State::Running,
        VmStage::Paused => State::Paused,
        VmStage::Stopping => State::Stopping,
        VmStage::Stopped => State::Stopped,
        VmStage::Failed => State::Failed,
        VmStage::Destroying => State::Destroying,
    };
    Machine { name: name.to_owned(), state, vcpus, memory_mib, numa_node, disks, nics, vfs, nvmes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(count: usize) -> Sight {
        let (state, memory_mib) = (VmStage::Stopped, 64);
        let vm = InventoryVm { state, vcpus: 1, memory_mib, numa_node: None, disks: 0, nics: 0, vfs: 0, nvmes: 0 };
        let vms = (0..count).map(|at| (format!("vm-{at:04}").parse().unwrap(), Some(vm))).collect();
        Sight::new(InventoryView::new(3, InventoryUsage::default(), vms))
    }

    fn names(page: &[Machine]) -> (usize, Option<&str>) {
        (page.len(), page.first().map(|machine| machine.name.as_str()))
    }

    #[test]
    fn pages_come_to_all_of_them_and_none_is_longer_than_allowed() {
        let mut sight = sight(300);
        assert_eq!(names(&sight.page(0, 2).unwrap()), (2, Some("vm-0000")));
        assert_eq!(names(&sight.page(2, u32::MAX).unwrap()), (MAX_INVENTORY_PAGE, Some("vm-0002")));
        assert_eq!(names(&sight.page(256, 128).unwrap()), (44, Some("vm-0256")));
        assert_eq!(names(&sight.page(300, 1).unwrap()), (0, None));
        assert_eq!(names(&sight.page(u32::MAX, u32::MAX).unwrap()), (0, None));
        assert_eq!(sight.into_spoken(), InventorySpoken { looked: vec![], is_listed: true });
    }

    #[test]
    fn what_is_not_shown_is_not_made_up() {
        let mut few = sight(3);
        assert!(few.vm("vm-0001").unwrap().is_some());
        assert_eq!((few.vm("other").unwrap(), few.vm("NO NAME").unwrap()), (None, None));
        let known = few.view.narrowed(&few.looked);
        assert_eq!((known.vms.len(), known.rest), (2, 2));
        let spoken = few.into_spoken();
        assert_eq!((spoken.looked.len(), spoken.is_listed), (2, false));
        let mut again = Sight::new(known);
        assert!(again.vm("vm-0001").unwrap().is_some());
        assert_eq!((again.vm("other"), again.vm("NO NAME")), (Ok(None), Ok(None)));
        assert_eq!(again.vm("vm-0002"), Err(NoSight::NotShown(2)));
        assert!(matches!(again.page(0, 1), Err(NoSight::NotShown(2))));
        // Of a tenant with too many nothing is told by name.
        let mut many = sight(1025);
        assert_eq!(many.vm("vm-0000"), Err(NoSight::NotShown(1025)));
    }
}
