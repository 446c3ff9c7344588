//! What records say against what the host shows; pure. Key function: [`compare`].
//!
//! ```text
//!   VM (by its record, before and after, and its task)     what the host may show of it
//!   not known                                              nothing
//!   off, and nothing under way                             its directory of consoles, leases of its data
//!   runs, and nothing under way                            everything of its record, each once
//!   anything else                                          whatever it does: it is not judged
//! ```

mod devices;
mod records;
mod traces;

use std::collections::{BTreeMap, BTreeSet};

use super::finding::{Finding, FindingKind, Remedy};
use super::look::{Look, TaskFact};
use crate::daemon::record::VmRecord;
use crate::daemon::supervisor::Standing;
use crate::model::VmId;
use crate::sys::process::Identity;

/// Everything that is wrong, as one look has shown it.
pub(super) fn compare(look: &Look) -> Vec<Finding> {
    let vms = Vms::of(look);
    let mut found = traces::compare(look, &vms);
    found.extend(devices::compare(look, &vms));
    found.extend(records::compare(look, &vms));
    found
}

/// VMs by what can be said of them.
struct Vms<'a> {
    known: BTreeSet<VmId>,
    /// Those with nothing under way.
    steady: BTreeMap<VmId, (&'a VmRecord, Standing)>,
    /// Processes that some record or task has.
    processes: BTreeSet<(u32, u64)>,
}

impl<'a> Vms<'a> {
    fn of(look: &'a Look) -> Self {
        let steady = look.tasks.iter().filter_map(|(uid, task)| {
            let TaskFact::Stands(standing) = task else { return None };
            let vm = look.before.vms.get(uid)?;
            let is_steady = standing.is_settled && look.after.vms.get(uid) == Some(vm);
            is_steady.then_some((*uid, (vm.as_ref(), *standing)))
        });
        let records = look.before.vms.values().chain(look.after.vms.values());
        let recorded = records.filter_map(|vm| vm.run.as_ref()?.process);
        let watched = look.tasks.values().filter_map(|task| match task {
            TaskFact::Stands(standing) => standing.process,
            TaskFact::Busy | TaskFact::Lost => None,
        });
        Self {
            known: look.before.vms.keys().chain(look.after.vms.keys()).copied().collect(),
            steady: steady.collect(),
            processes: recorded.chain(watched).map(key).collect(),
        }
    }

    fn is_known(&self, uid: VmId) -> bool {
        self.known.contains(&uid)
    }

    fn has_process(&self, identity: Identity) -> bool {
        self.processes.contains(&key(identity))
    }

    /// The VM, if it is off and nothing is under way.
    fn off(&self, uid: VmId) -> Option<&'a VmRecord> {
        self.steady.get(&uid).map(|(vm, _)| *vm).filter(|vm| !vm.state.has_process())
    }

    /// The VM, if it runs and nothing is under way.
    fn running(&self, uid: VmId) -> Option<(&'a VmRecord, Standing)> {
        self.steady.get(&uid).copied().filter(|(vm, _)| vm.state.has_process())
    }

    /// All of those.
    fn all_running(&self) -> impl Iterator<Item = (&'a VmRecord, Standing)> {
        self.steady.values().copied().filter(|(vm, _)| vm.state.has_process())
    }
}

fn key(identity: Identity) -> (u32, u64) {
    (identity.pid, identity.start_time)
}

/// A VM as findings name it.
fn named(vm: &VmRecord) -> String {
    format!("VM {}/{}", vm.tenant, vm.name)
}

#[cfg(test)]
mod tests;
