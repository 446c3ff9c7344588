//! What plugins may see beside their question, each by what it wants and was granted, and what they made of it. Key types:
//! [`Views`], [`View`], [`Trail`].

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::model::{Grant, InventoryView, KvUse, KvView, MAX_INVENTORY_CALLS, PolicyFault, TenantId};
use crate::wire::policy::{InventorySpoken, KvSpoken};

use super::kv;
use super::notes;
use super::plugin::Bound;

/// Where it is known what tenants have.
pub trait InventorySource: fmt::Debug + Send + Sync {
    /// What `tenant` has at this moment, and nothing of anybody else. Does not block.
    fn of(&self, tenant: &TenantId) -> InventoryView;
}

/// What everybody in a chain may see.
#[derive(Debug, Clone, Default)]
pub(super) struct Views {
    /// Stores, by place in the chain; empty if nobody remembers.
    pub(super) kv: kv::Stores,
    /// The tenant's inventory, if anybody sees it.
    pub(super) inventory: Option<Arc<InventoryView>>,
}

/// What one plugin may see.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct View<'a> {
    pub(super) kv: Option<&'a KvView>,
    pub(super) inventory: Option<&'a InventoryView>,
}

/// What a plugin's call left, beside its answer, for the record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Trail {
    /// What it did with what it remembers.
    pub(super) kv: Option<KvUse>,
    /// What it looked at.
    pub(super) inventory: Option<InventoryView>,
    /// Where it failed, if it did.
    pub(super) backtrace: Vec<String>,
}

/// Whether it sees what the tenant has.
pub(super) fn sees(bound: &Bound) -> bool {
    bound.plugin.wants().contains(&Grant::Inventory)
}

impl Views {
    /// What `bound`, at its place in the chain, may see.
    pub(super) fn of(&self, place: usize, bound: &Bound) -> View<'_> {
        let kv = self.kv.get(place).and_then(Option::as_ref);
        View { kv, inventory: self.inventory.as_deref().filter(|_| sees(bound)) }
    }
}

impl View<'_> {
    /// Whether there is all that a plugin with these wants may see.
    pub(super) fn is_enough(&self, wants: &[Grant]) -> bool {
        wants.iter().all(|grant| match grant {
            Grant::Kv => self.kv.is_some(),
            Grant::Inventory => self.inventory.is_some(),
        })
    }

    /// Only what a plugin with these wants may see.
    pub(super) fn only(self, wants: &[Grant]) -> Self {
        Self {
            kv: self.kv.filter(|_| wants.contains(&Grant::Kv)),
            inventory: self.inventory.filter(|_| wants.contains(&Grant::Inventory)),
        }
    }
}

/// An answer with what its plugin did with `view`, both checked: what breaks a limit is no answer.
pub(super) fn heard<V>(
    view: View<'_>,
    said: Result<V, PolicyFault>,
    (kv, inventory, backtrace): (Option<KvSpoken>, Option<InventorySpoken>, Vec<String>),
) -> (Result<V, PolicyFault>, Trail) {
    let backtrace = if said.is_err() { notes::frames(backtrace) } else { Vec::new() };
    let (said, inventory) = looked(view.inventory, said, inventory);
    let (said, kv) = kv::heard(view.kv, said, kv);
    (said, Trail { kv, inventory, backtrace })
}

/// The part of an inventory that was looked at.
fn looked<V>(
    view: Option<&InventoryView>,
    said: Result<V, PolicyFault>,
    spoken: Option<InventorySpoken>,
) -> (Result<V, PolicyFault>, Option<InventoryView>) {
    let bad = |why: &str| Err(PolicyFault::BadAnswer(why.to_owned()));
    match (view, spoken) {
        (None, None) => (said, None),
        (None, Some(_)) => (bad("it looked at what it was not given"), None),
        (Some(view), spoken) => {
            let InventorySpoken { looked, is_listed } = spoken.unwrap_or_default();
            if looked.len() > usize::try_from(MAX_INVENTORY_CALLS).unwrap_or(usize::MAX) {
                return (bad("it looked more often than it may"), Some(view.narrowed(&BTreeSet::new())));
            }
            let mut names: BTreeSet<_> = looked.into_iter().collect();
            if is_listed {
                names.extend(view.vms.keys().cloned());
            }
            (said, Some(view.narrowed(&names)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InventoryUsage, InventoryVm, VmStage};

    fn view() -> InventoryView {
        let (state, memory_mib) = (VmStage::Running, 64);
        let vm = InventoryVm { state, vcpus: 1, memory_mib, numa_node: None, disks: 0, nics: 0, vfs: 0, nvmes: 0 };
        let vms = ["a", "b", "c"].map(|name| (name.parse().unwrap(), Some(vm)));
        InventoryView::new(5, InventoryUsage::default(), vms.into())
    }

    fn spoken(names: &[&str], is_listed: bool) -> Option<InventorySpoken> {
        Some(InventorySpoken { looked: names.iter().map(|name| name.parse().unwrap()).collect(), is_listed })
    }

    #[test]
    fn the_record_has_what_was_looked_at_and_no_more() {
        let view = view();
        let seen = |spoken| looked(Some(&view), Ok(()), spoken);
        let (said, some) = seen(spoken(&["a", "x"], false));
        let some = some.unwrap();
        assert_eq!((said, some.revision, some.vms.len(), some.rest), (Ok(()), 5, 2, 2));
        assert!(some.vms[&"a".parse().unwrap()].is_some() && some.vms[&"x".parse().unwrap()].is_none());
        let whole = seen(spoken(&["x"], true)).1.unwrap();
        assert_eq!((whole.vms.len(), whole.rest), (4, 0));
        let nothing = seen(None).1.unwrap();
        assert_eq!((nothing.vms.len(), nothing.rest), (0, 3));
        // What failed is answered from the same again.
        let trap = || Err::<(), _>(PolicyFault::Trap("t".into()));
        let (said, some) = looked(Some(&view), trap(), spoken(&["a"], false));
        assert_eq!((said, some.unwrap().vms.len()), (trap(), 1));
    }

    #[test]
    fn what_a_lying_host_claims_is_no_answer() {
        let (said, seen) = looked(None, Ok(()), spoken(&["a"], false));
        assert!(matches!(said, Err(PolicyFault::BadAnswer(_))) && seen.is_none());
        let (said, seen) = looked(Some(&view()), Ok(()), spoken(&["a"; 300], true));
        assert!(matches!(said, Err(PolicyFault::BadAnswer(_))) && seen.unwrap().vms.is_empty());
        assert_eq!(looked(None, Ok(()), None), (Ok(()), None));
    }
}
