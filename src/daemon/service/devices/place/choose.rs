//! Which nodes a VM could run on, before policy is asked and after; pure. Key functions: [`offer`], [`first_of`].

use std::collections::BTreeMap;

use crate::daemon::inventory::Node;
use crate::daemon::record::VmRecord;
use crate::daemon::supervisor::DevicesError;
use crate::model::{CpuList, PageSize, PlaceCandidate, PlaceRequest, TenantId, VmId};

/// What a VM takes of the node that it is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) node: u32,
    pub(super) tenant: TenantId,
    pub(super) vcpus: u32,
    pub(super) memory_mib: u64,
    pub(super) pages: PageSize,
}

impl Placed {
    pub(super) fn on(node: u32, vm: &VmRecord) -> Self {
        let (tenant, spec) = (vm.tenant.clone(), &vm.spec);
        Self { node, tenant, vcpus: spec.vcpus(), memory_mib: spec.memory_mib(), pages: spec.memory().pages }
    }
}

/// VMs that are somewhere, by id.
pub(super) type Table = BTreeMap<VmId, Placed>;

/// How many devices, by node.
pub(super) type Near = BTreeMap<u32, u32>;

/// Whether policy has a say in where `vm` runs: neither its spec nor an earlier decision of this run names a place.
pub(super) fn is_anywhere(vm: &VmRecord) -> bool {
    vm.placement.is_none() && vm.spec.memory().numa_node.is_none() && vm.spec.cpus().host_cpus.is_none()
}

/// What is on the nodes, and what of them is free. `vms`: all; `chosen`: for whom a node was chosen, on record or not yet.
/// What of it is not on record nobody has touched: the host shows it as free, and it is not.
pub(super) fn now<'a>(
    mut nodes: Vec<Node>,
    vms: impl Iterator<Item = &'a VmRecord>,
    chosen: &Table,
) -> (Vec<Node>, Table) {
    let node = |vm: &VmRecord| vm.placement.as_ref().map(|placement| placement.node).or(vm.spec.memory().numa_node);
    let running = vms.filter(|vm| vm.run.is_some());
    let mut table: Table = running.filter_map(|vm| Some((vm.uid, Placed::on(node(vm)?, vm)))).collect();
    for (uid, promised) in chosen {
        if table.insert(*uid, promised.clone()).is_none()
            && let Some(node) = nodes.iter_mut().find(|node| node.number == promised.node)
        {
            node.promise(promised.memory_mib, promised.pages);
        }
    }
    (nodes, table)
}

/// The question for policy about `vm`: the nodes that can hold it.
pub(super) fn offer(
    vm: &VmRecord,
    nodes: &[Node],
    table: &Table,
    own: &Near,
    free_vfs: &Near,
) -> Result<PlaceRequest, DevicesError> {
    let (memory_mib, pages) = (vm.spec.memory_mib(), vm.spec.memory().pages);
    let fit = nodes.iter().filter(|node| node.unfit(memory_mib, pages).is_none());
    let candidates = fit.filter_map(|node| candidate(vm, node, node.cpus.clone()?, table, own, free_vfs));
    let candidates: Vec<_> = candidates.take(PlaceRequest::MAX_CANDIDATES).collect();
    if candidates.is_empty() {
        return Err(none_fits(vm, nodes));
    }
    // Bounded by the number of PCI slots.
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    Ok(PlaceRequest {
        tenant: vm.tenant.clone(),
        vm: vm.name.clone(),
        vcpus: vm.spec.vcpus(),
        memory_mib,
        disks: count(vm.spec.disks().len()),
        nics: count(vm.spec.nics().len()),
        pages,
        devices: count(vm.vfs.len() + vm.nvmes.len()),
        candidates,
    })
}

fn candidate(
    vm: &VmRecord,
    node: &Node,
    cpus: CpuList,
    table: &Table,
    own: &Near,
    free_vfs: &Near,
) -> Option<PlaceCandidate> {
    let there = || table.iter().filter(|(uid, placed)| placed.node == node.number && **uid != vm.uid);
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    let near = |devices: &Near| devices.get(&node.number).copied().unwrap_or(0);
    Some(PlaceCandidate {
        node: node.number,
        cpus,
        memory_mib: node.memory_mib,
        available_mib: node.available_mib,
        two_mib_pages: node.two_mib_pages,
        one_gib_pages: node.one_gib_pages,
        vms: count(there().count()),
        own_vms: count(there().filter(|(_, placed)| placed.tenant == vm.tenant).count()),
        placed_vcpus: there().fold(0, |sum, (_, placed)| sum.saturating_add(placed.vcpus)),
        placed_mib: there().fold(0, |sum, (_, placed)| sum.saturating_add(placed.memory_mib)),
        own_devices: near(own),
        free_vfs: near(free_vfs),
    })
}

/// The first of `order` that can still hold `vm`, on the CPUs that were offered.
pub(super) fn first_of<'a>(order: &'a [PlaceCandidate], vm: &VmRecord, nodes: &[Node]) -> Option<&'a PlaceCandidate> {
    let (memory_mib, pages) = (vm.spec.memory_mib(), vm.spec.memory().pages);
    order.iter().find(|chosen| {
        let is_it = |node: &&Node| node.number == chosen.node && node.cpus.as_ref() == Some(&chosen.cpus);
        nodes.iter().find(is_it).is_some_and(|node| node.unfit(memory_mib, pages).is_none())
    })
}

/// Whether a VM has come to `node` since policy was shown who is where.
pub(super) fn has_news(node: u32, shown: &Table, table: &Table) -> bool {
    table.iter().any(|(uid, placed)| placed.node == node && shown.get(uid).is_none_or(|before| before.node != node))
}

/// Says what each node lacks, not who has it: the text goes to a tenant.
fn none_fits(vm: &VmRecord, nodes: &[Node]) -> DevicesError {
    let (memory_mib, pages) = (vm.spec.memory_mib(), vm.spec.memory().pages);
    let lacks =
        nodes.iter().filter_map(|node| Some(format!("node {} has {}", node.number, node.unfit(memory_mib, pages)?)));
    let lacks = lacks.collect::<Vec<_>>().join(", ");
    let lacks = if lacks.is_empty() { "this host shows none".to_owned() } else { lacks };
    DevicesError(format!(
        "no NUMA node can hold {memory_mib} MiB in pages of {pages} ({NO_NODE}): {lacks}; stop VMs, or have an operator \
         register the VM with the CPUs that it may use, so that it is not placed"
    ))
}

/// No node can hold the VM, whoever decides.
pub(super) const NO_NODE: &str = "core.no-node";

#[cfg(test)]
mod tests;
