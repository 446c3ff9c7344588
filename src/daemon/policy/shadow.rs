//! Plugins that are asked what a chain was asked, and decide nothing. Key type: [`Shadows`].
//!
//! They are asked once the decision is on record, by a thread of their own, through the policy host's second lane and under
//! breakers of their own; what they said becomes a record of its own that names the decision. So nobody who waits for a
//! decision waits for a shadow, and nothing that a shadow does (loop, trap, eat memory, fail again and again) is seen
//! by a chain. Rejected: asking them before the decision's record is written. That is one record less, but each
//! decision would take as long as its slowest shadow may, and a record must be there before anybody acts on it.
//!
//! A shadow reads what is remembered under its own name, and nothing that it writes is kept. Of the tenant's inventory it sees
//! what the decision saw.
//!
//! What a daemon that dies in between has not recorded is lost: nothing hangs on it.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::model::{DecisionEntry, InventoryView, Json, Opinion, PolicyFault, ShadowAnswer};

use super::executor::{self, Voice};
use super::hook::{Question, Standing};
use super::plugin::Bound;
use super::view::{Trail, Views};
use super::{PolicyHost, record};

/// Shadows that have yet to be asked about a decision that was made. To drop it is to ask nobody.
pub struct Shadows(Box<dyn FnOnce() -> Asking + Send>);

type Asking = std::pin::Pin<Box<dyn Future<Output = Vec<ShadowAnswer>> + Send>>;

impl Shadows {
    /// Those who are to be asked the same as the chain, whose `opinions` came to `decided`; `None` if there are none.
    pub(super) fn new<Q: Question>(
        host: &PolicyHost,
        question: Arc<Q>,
        shadows: Vec<Standing>,
        inventory: Option<Arc<InventoryView>>,
        opinions: &[Opinion<Q::Verdict>],
        decided: &DecisionEntry,
    ) -> Option<Self> {
        if shadows.is_empty() {
            return None;
        }
        let (host, opinions, outcome) = (host.clone(), opinions.to_vec(), decided.outcome.clone());
        Some(Self(Box::new(move || Box::pin(ask(host, question, shadows, inventory, opinions, outcome)))))
    }

    /// Asks all of them, within the limits' patience (and a second of grace) together; who was not asked in time has a fault
    /// that says so.
    pub async fn ask(self) -> Vec<ShadowAnswer> {
        (self.0)().await
    }
}

async fn ask<Q: Question>(
    host: PolicyHost,
    question: Arc<Q>,
    shadows: Vec<Standing>,
    inventory: Option<Arc<InventoryView>>,
    opinions: Vec<Opinion<Q::Verdict>>,
    outcome: Json,
) -> Vec<ShadowAnswer> {
    let started = Instant::now();
    let (places, bound): (Vec<usize>, Vec<Bound>) = shadows.into_iter().unzip();
    let bound: Arc<[Bound]> = bound.into();
    let views = Views { kv: host.0.memories.stores(&bound, question.tenant()), inventory };
    let said = match host.voices(&host.0.shadow_queue, &bound, views, &question, started).await {
        Ok(said) => said,
        Err(cause) => {
            let nobody = |bound| executor::opinion(bound, Err(cause.clone()), 0, started.elapsed());
            bound.iter().map(|bound| Voice { opinion: nobody(bound), trail: Trail::default() }).collect()
        }
    };
    let shadows = bound.iter().zip(places).zip(said);
    let answers = shadows.map(|((bound, place), Voice { opinion, trail })| ShadowAnswer {
        link: record::link(bound),
        answer: record::answer(&opinion, trail),
        instead: instead(&*question, &opinions, &outcome, place, opinion),
    });
    answers.collect()
}

/// The outcome that there would have been with this one shadow enforced behind `place` of the others: `None` if it is
/// `outcome`, or a denial like that. Of one that was not asked nobody knows.
fn instead<Q: Question>(
    question: &Q,
    opinions: &[Opinion<Q::Verdict>],
    outcome: &Json,
    place: usize,
    said: Opinion<Q::Verdict>,
) -> Option<Json> {
    if said.verdict.as_ref().is_err_and(PolicyFault::is_nodes) {
        return None;
    }
    // Where the chain ended earlier, the answer that ended it stands before this one still.
    let mut with = opinions.to_vec();
    with.insert(place.min(opinions.len()), said);
    let other = record::json(&question.combine(&with));
    let is_denial = |outcome: &Json| outcome.is_variant("deny");
    let is_same = other == *outcome || (is_denial(&other) && is_denial(outcome));
    (!is_same).then_some(other)
}

impl fmt::Debug for Shadows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shadows")
    }
}
