//! Decisions on record: written before anything is done about them, read, verified, exported. Key functions:
//! [`record`], [`told`].
//!
//! Tenants see their own; another's and one that does not exist look the same.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::plugins::Plugins;
use super::{Node, Principal, ServiceError, Whose};
use crate::daemon::policy::{Remembered, Shadows, Unrecorded};
use crate::daemon::store::{Chains, DecisionPage, DecisionQuery, Store, StoreError, StoredDecision};
use crate::model::{
    ChainEnd, ChainFault, DecisionId, Enforcement, EnforcementEntry, JournalEntry, ShadowEntry, TenantId,
};

/// How often decisions that are too old are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
/// Pieces that wait for the client of an export to read.
const EXPORT_QUEUE_LEN: usize = 4;
/// Bytes of lines that are read from one moment's store; then the transaction is let go, so that a slow reader does not
/// hold old pages of the file.
const EXPORT_PIECE_LEN: usize = 1 << 20;

/// Puts a decision on record, with what plugins remember of it, and only then gives it. What cannot be recorded was not
/// decided. Its shadows are asked
/// meanwhile, and nobody waits for them.
pub(super) async fn record<D>(
    store: &Store,
    plugins: &Arc<Plugins>,
    unrecorded: Unrecorded<D>,
) -> Result<(DecisionId, D), StoreError> {
    let mut observed = Vec::new();
    let append = |tenant, entry, Remembered { changes, turn }| {
        observed = plugins.observe(&tenant, &entry);
        store.append_with(tenant, JournalEntry::Decision(Box::new(entry)), changes, turn)
    };
    let (id, decision, shadows) = unrecorded.record(append).await?;
    plugins.count_in(observed);
    if let Some(shadows) = shadows {
        // As many as the policy host's queue has room for wait; the others are answered at once.
        tokio::spawn(ask_shadows(store.clone(), id.clone(), shadows));
    }
    Ok((id, decision))
}

/// Has shadows asked about a decision on record, and puts on record what they said.
async fn ask_shadows(store: Store, decision: DecisionId, shadows: Shadows) {
    let DecisionId { tenant, sequence } = decision;
    let entry = ShadowEntry { decision: sequence, shadows: shadows.ask().await };
    store.append_later(tenant, JournalEntry::Shadow(entry)).await;
}

/// Puts on record what was done about a decision that allowed; a denial is done by saying so. Not waited for: it goes
/// to disk with the next change.
pub(super) async fn told(store: &Store, decision: DecisionId, enforcement: Enforcement) {
    let DecisionId { tenant, sequence } = decision;
    let entry = EnforcementEntry { decision: sequence, enforcement };
    store.append_later(tenant, JournalEntry::Enforcement(entry)).await;
}

/// What was decided was not done, for this reason.
pub(super) fn overruled(code: &str, message: &str) -> Enforcement {
    Enforcement::Overruled { code: code.to_owned(), message: message.to_owned() }
}

/// Removes what is too old, now and each hour, until the store is closed.
pub(super) async fn sweep_hourly(store: Store) {
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        ticks.tick().await;
        match store.sweep_decisions().await {
            Ok(()) => {}
            Err(StoreError::Closed) => return,
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "old decisions are not removed"),
        }
    }
}

/// What became of one tenant's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Whose.
    pub tenant: TenantId,
    /// Where it ends, or the first record that is wrong.
    pub result: Result<ChainEnd, ChainFault>,
}

/// A part of an export.
#[derive(Debug)]
pub enum Exported {
    /// Records, one to a line, each with its line feed.
    Lines(Vec<u8>),
    /// The export cannot go on.
    Failed(ServiceError),
}

impl Node {
    /// One decision.
    pub async fn decision(&self, principal: &Principal, id: DecisionId) -> Result<StoredDecision, ServiceError> {
        if !principal.may_see(&id.tenant) {
            return Err(ServiceError::NoSuchDecision);
        }
        self.read_chains(move |chains| chains.decision(&id)).await?.ok_or(ServiceError::NoSuchDecision)
    }

    /// Decisions, newest first.
    pub async fn decisions(
        &self,
        principal: &Principal,
        whose: &Whose,
        query: DecisionQuery,
    ) -> Result<DecisionPage, ServiceError> {
        let query = DecisionQuery { tenant: whose.resolve(principal)?, ..query };
        self.read_chains(move |chains| chains.page(&query)).await
    }

    /// Walks the chains, and says of each where it ends or what is wrong first.
    pub async fn verify_decisions(&self, principal: &Principal, whose: &Whose) -> Result<Vec<Verified>, ServiceError> {
        let tenant = whose.resolve(principal)?;
        self.read_chains(move |chains| {
            let mut verified = Vec::new();
            for tenant in chains_of(chains, tenant)? {
                match chains.verify(&tenant)? {
                    Ok(None) => {}
                    Ok(Some(end)) => verified.push(Verified { tenant, result: Ok(end) }),
                    Err(fault) => verified.push(Verified { tenant, result: Err(fault) }),
                }
            }
            Ok(verified)
        })
        .await
    }

    /// Whole chains as lines that verify anywhere, tenant by tenant. The receiver ends with the export.
    pub async fn export_decisions(
        &self,
        principal: &Principal,
        whose: &Whose,
    ) -> Result<mpsc::Receiver<Exported>, ServiceError> {
        let tenant = whose.resolve(principal)?;
        let tenants = self.read_chains(move |chains| chains_of(chains, tenant)).await?;
        let (sender, receiver) = mpsc::channel(EXPORT_QUEUE_LEN);
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || {
            for tenant in tenants {
                if let Err(error) = export(&store, &tenant, &sender) {
                    // Nobody reads any more: fine.
                    let _ = sender.blocking_send(Exported::Failed(error.into()));
                    return;
                }
            }
        });
        Ok(receiver)
    }

    async fn read_chains<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Chains) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ServiceError> {
        let store = self.store.clone();
        match tokio::task::spawn_blocking(move || read(&store.chains()?)).await {
            Ok(result) => Ok(result?),
            Err(_ended) => Err(ServiceError::Ending),
        }
    }
}

fn chains_of(chains: &Chains, tenant: Option<TenantId>) -> Result<Vec<TenantId>, StoreError> {
    tenant.map_or_else(|| chains.tenants(), |tenant| Ok(vec![tenant]))
}

/// Sends one chain. In pieces, each of its own moment: what retention removes meanwhile was sent already, and what is
/// appended meanwhile follows.
fn export(store: &Store, tenant: &TenantId, sender: &mpsc::Sender<Exported>) -> Result<(), StoreError> {
    let mut next = 0;
    loop {
        let mut piece = Vec::with_capacity(EXPORT_PIECE_LEN);
        store.chains()?.lines(tenant, next, |sequence, line| {
            piece.extend_from_slice(line);
            piece.push(b'\n');
            next = sequence + 1;
            piece.len() < EXPORT_PIECE_LEN
        })?;
        if piece.is_empty() || sender.blocking_send(Exported::Lines(piece)).is_err() {
            return Ok(());
        }
    }
}
