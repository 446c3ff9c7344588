//! What the tenant has that is decided about: `wit/inventory.wit`, with every limit. To be granted when the plugin is loaded.
//!
//! A test says what there is: [`testing::has`](crate::testing::has).

#[cfg(not(target_arch = "wasm32"))]
pub(crate) mod import {
    //! An inventory for tests, one for each thread. Pages are as long as the host's.

    use std::cell::RefCell;

    use super::{Account, Amount, Machine};

    thread_local! {
        static MACHINES: RefCell<(Vec<Machine>, Option<Account>)> = RefCell::default();
    }

    /// The tenant has these from now on, and as much of each resource as they come to; what it may have is set with `limits`.
    pub fn has(machines: &[Machine], limits: Option<Account>) {
        let mut machines = machines.to_vec();
        machines.sort_by(|a, b| a.name.cmp(&b.name));
        MACHINES.set((machines, limits));
    }

    pub(crate) fn usage() -> Account {
        MACHINES.with_borrow(|(machines, limits)| {
            let sum = |of: fn(&Machine) -> u64, limit: fn(&Account) -> Amount| Amount {
                used: machines.iter().map(of).sum(),
                limit: limits.as_ref().and_then(|limits| limit(limits).limit),
            };
            Account {
                vms: sum(|_| 1, |limits| limits.vms),
                vcpus: sum(|vm| vm.vcpus.into(), |limits| limits.vcpus),
                memory_mib: sum(|vm| vm.memory_mib, |limits| limits.memory_mib),
                disks: sum(|vm| vm.disks.into(), |limits| limits.disks),
                devices: sum(|vm| u64::from(vm.vfs) + u64::from(vm.nvmes), |limits| limits.devices),
            }
        })
    }

    pub(crate) fn vm(name: &str) -> Option<Machine> {
        MACHINES.with_borrow(|(machines, _)| machines.iter().find(|vm| vm.name == name).cloned())
    }

    pub(crate) fn vms(first: u32, most: u32) -> Vec<Machine> {
        let number = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        MACHINES.with_borrow(|(machines, _)| {
            machines.iter().skip(number(first)).take(number(most).min(128)).cloned().collect()
        })
    }
}

#[cfg(target_arch = "wasm32")]
use crate::host::inventory::ostler::policy::inventory as import;

pub use crate::host::inventory::ostler::policy::inventory::{Account, Amount, Machine, State};

/// What the tenant has and may have.
pub fn usage() -> Account {
    import::usage()
}

/// The VM of this name, if the tenant has it.
pub fn vm(name: &str) -> Option<Machine> {
    import::vm(name)
}

/// All VMs of the tenant, by name. Puts all of them on record; where there are more than 1,024 the call ends here.
pub fn all() -> Vec<Machine> {
    let mut all = Vec::new();
    loop {
        let page = import::vms(u32::try_from(all.len()).unwrap_or(u32::MAX), u32::MAX);
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

impl State {
    /// Whether it has, gets or is about to lose a process: whether it holds memory and CPUs of the host.
    pub fn is_on(self) -> bool {
        match self {
            Self::Starting | Self::Running | Self::Paused | Self::Stopping | Self::Destroying => true,
            Self::Registered | Self::Stopped | Self::Failed => false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use crate::testing::{self, machine};

    use super::*;

    #[test]
    fn a_plugin_sees_what_a_test_says_and_all_pages_of_it() {
        let mut machines: Vec<_> = (0..300).map(|at| machine(&format!("vm-{at:03}"), State::Running)).collect();
        machines.reverse();
        let limit = |limit| Amount { used: 0, limit };
        let limits = Account {
            vms: limit(Some(400)),
            vcpus: limit(None),
            memory_mib: limit(None),
            disks: limit(None),
            devices: limit(None),
        };
        testing::has(&machines, Some(limits));
        let all = all();
        assert_eq!((all.len(), all[0].name.as_str(), all[299].name.as_str()), (300, "vm-000", "vm-299"));
        assert_eq!((usage().vms, usage().vcpus.used), (Amount { used: 300, limit: Some(400) }, 300));
        assert_eq!(vm("vm-007").map(|vm| vm.state), Some(State::Running));
        assert_eq!(vm("other"), None);
        assert!(State::Paused.is_on() && !State::Failed.is_on());
    }
}
