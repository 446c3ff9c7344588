//! Where a VM runs: the node that policy chooses, from the question to the record. Key function: [`Placer::place`].
//!
//! A start asks once the VM has its devices. What was chosen is remembered here from then on, so that of two starts at once
//! the second sees the first; the VM's record has it once there is a process, and a daemon that dies before leaves nothing.

mod choose;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::super::decisions::{overruled, record, told};
use super::super::plugins::Plugins;
use super::super::turns::Turns;
use super::choose::Leases;
use super::{LeaseState, choose as vf, on_host, read};
use crate::daemon::inventory::Nodes;
use crate::daemon::operation::{Step, Underway};
use crate::daemon::policy::{Bound, PolicyHost};
use crate::daemon::record::VmRecord;
use crate::daemon::store::Store;
use crate::daemon::supervisor::DevicesError;
use crate::model::{
    Enforcement, PlaceCandidate, PlaceDecision, PlaceOutcome, PlaceRequest, Placement, PluginMode, TenantId, VmId,
    denier,
};
use choose::{Near, Placed, Table};

/// How often policy is asked anew because no node that it chose can hold the VM any more.
const MAX_ROUNDS: usize = 3;

/// Gives VMs a node of the host.
pub(super) struct Placer {
    store: Store,
    policy: PolicyHost,
    plugins: Arc<Plugins>,
    nodes: Nodes,
    /// Placements, one at a time per tenant.
    turns: Turns<TenantId>,
    /// Rank: leaf. What was chosen for a run; its record has it later.
    chosen: Mutex<Table>,
}

/// Whom a question passes.
struct Asked {
    chain: Arc<[Bound]>,
    /// Whether any of them is no shadow.
    decides: bool,
}

impl Placer {
    pub(super) fn new(store: Store, policy: PolicyHost, plugins: Arc<Plugins>, nodes: Nodes) -> Self {
        Self { store, policy, plugins, nodes, turns: Turns::default(), chosen: Mutex::default() }
    }

    /// The node for a run of `vm`; `None`: it runs anywhere. Asks, and reads of the host, only where a plugin is loaded that
    /// has a say.
    pub(super) async fn place(&self, vm: &VmRecord, operation: &Underway) -> Result<Option<Placement>, DevicesError> {
        let Some(Asked { chain, decides }) = self.asked(vm) else { return Ok(None) };
        operation.tell(Step::new("asking policy for a place"));
        // A tenant's own starts see each other. Others' are not waited for: their plugins may be slow.
        let _turn = self.turns.take(&vm.tenant).await;
        for round in 1..=MAX_ROUNDS {
            let (request, shown) = match self.offer(vm).await {
                Ok(offered) => offered,
                Err(error) if decides => return Err(error),
                // Shadows alone refuse nothing.
                Err(_) => return Ok(None),
            };
            let candidates = request.candidates.clone();
            let decided = self.policy.place(Arc::clone(&chain), request).await;
            let (id, decision) =
                record(&self.store, &self.plugins, decided).await.map_err(|error| DevicesError(error.to_string()))?;
            tracing::info!(tenant = %vm.tenant, vm = %vm.name, ?decision.outcome, took = ?decision.took, "placement decision");
            let Some(order) = order_of(vm, decision, &candidates)? else {
                told(&self.store, id, Enforcement::Enforced("anywhere".into())).await;
                return Ok(None);
            };
            match self.take(vm, &order, (round < MAX_ROUNDS).then_some(&shown)).await? {
                Some(PlaceCandidate { node, cpus, .. }) => {
                    told(&self.store, id.clone(), Enforcement::Enforced(format!("node {node}"))).await;
                    return Ok(Some(Placement { node, cpus, decision: Some(id) }));
                }
                None => told(&self.store, id, overruled("core.taken", "other VMs came to the node meanwhile")).await,
            }
        }
        Err(DevicesError("other VMs took the memory of every NUMA node that policy chose; try again".into()))
    }

    /// Remembers the first of `order` that can still hold `vm`; `None` if none can, or if other VMs are there by now that
    /// were not `shown` to policy.
    async fn take(
        &self,
        vm: &VmRecord,
        order: &[PlaceCandidate],
        shown: Option<&Table>,
    ) -> Result<Option<PlaceCandidate>, DevicesError> {
        let nodes = self.nodes.clone();
        let nodes = on_host(move || Ok(nodes.read())).await.map_err(DevicesError)?;
        let mut chosen = self.chosen();
        let snapshot = self.store.snapshot();
        let (nodes, table) = choose::now(nodes, snapshot.vms.values().map(AsRef::as_ref), &chosen);
        let first = choose::first_of(order, vm, &nodes);
        let first = first.filter(|first| shown.is_none_or(|shown| !choose::has_news(first.node, shown, &table)));
        if let Some(first) = first {
            chosen.insert(vm.uid, Placed::on(first.node, vm));
        }
        Ok(first.cloned())
    }

    /// Where [`place`](Self::place) would put `vm` now. What policy says is on no record: nobody acts on it.
    pub(super) async fn rehearse(&self, vm: &VmRecord) -> Result<Option<Placement>, DevicesError> {
        let Some(Asked { chain, .. }) = self.asked(vm).filter(|asked| asked.decides) else { return Ok(None) };
        let (request, _) = self.offer(vm).await?;
        let candidates = request.candidates.clone();
        let order = order_of(vm, self.policy.place(chain, request).await.dry_run(), &candidates)?;
        let first = order.and_then(|order| order.into_iter().next());
        Ok(first.map(|PlaceCandidate { node, cpus, .. }| Placement { node, cpus, decision: None }))
    }

    /// The run of `uid` has ended, or did not come to be.
    pub(super) fn release(&self, uid: VmId) {
        self.chosen().remove(&uid);
    }

    /// Whom the question about `vm` passes; `None`: it is not asked. A plugin that could not be loaded again counts: nobody
    /// knows what it would have said.
    fn asked(&self, vm: &VmRecord) -> Option<Asked> {
        if !choose::is_anywhere(vm) {
            return None;
        }
        let chain = self.plugins.chain(&vm.tenant, &vm.name);
        let decides = chain.iter().any(|bound| bound.mode == PluginMode::Enforced && bound.plugin.places());
        let is_shadow = |bound: &Bound| bound.plugin.places() && bound.plugin.broken_cause().is_none();
        (decides || chain.iter().any(is_shadow)).then_some(Asked { chain, decides })
    }

    /// The question about `vm`, and who is where.
    async fn offer(&self, vm: &VmRecord) -> Result<(PlaceRequest, Table), DevicesError> {
        let nodes = self.nodes.clone();
        let functions: Vec<_> =
            vm.vfs.iter().map(|vf| vf.address).chain(vm.nvmes.iter().map(|nvme| nvme.controller)).collect();
        let read_nodes = move || {
            let own = functions.into_iter().filter_map(|function| nodes.near(function));
            Ok((nodes.read(), count(own)))
        };
        let (nodes, own) = on_host(read_nodes).await.map_err(DevicesError)?;
        let free_vfs = free_vfs(&self.store.snapshot().leases).await;
        let snapshot = self.store.snapshot();
        let (nodes, table) = choose::now(nodes, snapshot.vms.values().map(AsRef::as_ref), &self.chosen());
        Ok((choose::offer(vm, &nodes, &table, &own, &free_vfs)?, table))
    }

    fn chosen(&self) -> std::sync::MutexGuard<'_, Table> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In which order policy would have the nodes, `None` if it does not mind; or its denial.
fn order_of(
    vm: &VmRecord,
    decision: PlaceDecision,
    candidates: &[PlaceCandidate],
) -> Result<Option<Vec<PlaceCandidate>>, DevicesError> {
    match decision.outcome {
        PlaceOutcome::Select { order } => {
            Ok(Some(order.into_iter().filter_map(|index| candidates.get(index).cloned()).collect()))
        }
        PlaceOutcome::Anywhere {} => Ok(None),
        PlaceOutcome::Deny { code, message, plugin } => {
            let who = denier(plugin.as_deref());
            Err(DevicesError(format!("{who} gives VM {} no NUMA node: {message} ({code})", vm.name)))
        }
    }
}

/// Virtual functions that nobody has, by the node of their card. What cannot be read is none: it only guides.
async fn free_vfs(leases: &Leases) -> Near {
    let Ok(devices) = read().await else { return Near::new() };
    let is_free = |pf: &_, function: &_| {
        let lease = vf::key_of(pf, function).and_then(|key| leases.get(&key));
        vf::unfit(pf, function).is_none() && lease.is_none_or(|lease| lease.state == LeaseState::Free)
    };
    count(devices.vfs().filter(|(pf, function)| is_free(pf, function)).filter_map(|(pf, _)| pf.numa_node))
}

fn count(nodes: impl Iterator<Item = u32>) -> Near {
    nodes.fold(BTreeMap::new(), |mut near, node| {
        *near.entry(node).or_insert(0) += 1;
        near
    })
}

#[cfg(test)]
mod tests;
