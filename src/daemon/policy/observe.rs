//! Observers: plugins that are told what has happened, beside decisions. Key type: [`Telling`].
//!
//! They are told by the thread that asks shadows, through the policy host's second lane and under breakers of their own: no
//! decision waits for one, but one of the same plugin and tenant where it decides, too, and remembers. What an observer
//! writes is kept with the record that it has heard.

use std::sync::Arc;
use std::time::Instant;

use crate::model::{DecisionEntry, KvChange, ObserveRequest, PolicyFault};

use super::executor::{self, Voice};
use super::hook::Question;
use super::kv::{self, KvTurn};
use super::plugin::{Bound, LoadedPlugin};
use super::view::{Trail, Views, sees};
use super::{PolicyHost, record};

/// What came of telling a batch. Nothing of it is on record yet.
#[derive(Debug)]
pub struct Telling {
    /// As it is to be recorded.
    pub entry: DecisionEntry,
    /// What the observer wrote, to be kept with that.
    pub changes: Vec<KvChange>,
    /// To be held until then.
    pub turn: Option<KvTurn>,
    /// Why it has not heard, if so.
    pub fault: Option<PolicyFault>,
}

impl LoadedPlugin {
    /// Whether it is told what happens. One that could not be loaded again is told later.
    pub fn observes(&self) -> bool {
        self.hooks().contains(&ObserveRequest::HOOK)
    }
}

impl PolicyHost {
    /// Tells `observer` what has happened. Takes as long as its limits let it, and the host's patience if it has to wait.
    pub async fn observe(&self, observer: Bound, batch: ObserveRequest) -> Telling {
        let started = Instant::now();
        let (chain, question) = (Arc::<[Bound]>::from([observer]), Arc::new(batch));
        let tenant = question.tenant();
        // Where it decides, too, its decisions read and write the same store. Otherwise nobody else does.
        let decides = chain.iter().any(|bound| bound.plugin.hooks().len() > 1);
        let turn = if decides { self.0.memories.turn_for(&chain, tenant).await } else { Ok(None) };
        // A host that is just being replaced is not the observer's fault, and says nothing about the batch.
        let none = || PolicyFault::Unavailable("there is no policy host now".into());
        let turn = if self.0.keeper.now().is_none() { Err(none()) } else { turn };
        let (turn, voices) = match turn {
            Ok(turn) => {
                let inventory = chain.iter().any(sees).then(|| self.0.inventory_of(tenant));
                let views = Views { kv: self.0.memories.stores(&chain, tenant), inventory };
                (turn, self.voices(&self.0.shadow_queue, &chain, views, &question, started).await)
            }
            Err(cause) => (None, Err(cause)),
        };
        let voices = voices.unwrap_or_else(|cause| {
            let nobody = |bound| executor::opinion(bound, Err(cause.clone()), 0, started.elapsed());
            chain.iter().map(|bound| Voice { opinion: nobody(bound), trail: Trail::default() }).collect()
        });
        let (opinions, trails): (Vec<_>, Vec<_>) =
            voices.into_iter().map(|Voice { opinion, trail }| (opinion, trail)).unzip();
        let outcome = question.combine(&opinions);
        let entry = record::entry(
            (&*question, record::json(&*question)),
            &chain,
            &opinions,
            &trails,
            &outcome,
            started.elapsed(),
        );
        let changes = kv::changes(&chain, tenant, &opinions, &trails);
        let fault = opinions.into_iter().find_map(|opinion| opinion.verdict.err());
        Telling { entry, changes, turn, fault }
    }
}
