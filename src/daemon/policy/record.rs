//! What a decision leaves behind, made before anybody may act on it. Key type: [`Unrecorded`].

use std::time::Duration;

use serde::Serialize;

use crate::model::{Answer, ChainLink, DecisionEntry, DecisionId, Json, Opinion, Said, TenantId};

use super::hook::Question;
use super::kv::Remembered;
use super::plugin::Bound;
use super::shadow::Shadows;
use super::view::Trail;

/// A decision that was made and is not on record yet. To see it, record it: nobody acts on what could be forgotten.
#[derive(Debug)]
#[must_use = "a decision that is not recorded was not made"]
pub struct Unrecorded<D> {
    pub(super) tenant: TenantId,
    pub(super) entry: DecisionEntry,
    pub(super) remembered: Remembered,
    pub(super) decision: D,
    pub(super) shadows: Option<Shadows>,
}

impl<D> Unrecorded<D> {
    /// Has `write` put the entry on record for good, and in the same step what plugins remember of it; gives the decision
    /// only then, with the shadows, if there are any, who are yet to be asked.
    pub async fn record<E, F>(
        self,
        write: impl FnOnce(TenantId, DecisionEntry, Remembered) -> F,
    ) -> Result<(DecisionId, D, Option<Shadows>), E>
    where
        F: Future<Output = Result<DecisionId, E>>,
    {
        let id = write(self.tenant, self.entry, self.remembered).await?;
        Ok((id, self.decision, self.shadows))
    }

    /// What will be decided, for those who need to know early; nobody may act on it before it is on record.
    pub fn foreseen(&self) -> &D {
        &self.decision
    }

    /// For a dry run only: what would have been decided, if nobody acts on it. No shadow is asked, and
    /// nothing remembered.
    pub fn dry_run(self) -> D {
        self.decision
    }

    /// What will be recorded.
    pub fn entry(&self) -> &DecisionEntry {
        &self.entry
    }
}

/// The entry of a decision: what `chain` was asked, which is `spelled` already, has `seen` and said, and the `outcome`.
pub(super) fn entry<Q: Question>(
    (question, spelled): (&Q, Json),
    chain: &[Bound],
    opinions: &[Opinion<Q::Verdict>],
    trails: &[Trail],
    outcome: &Q::Outcome,
    took: Duration,
) -> DecisionEntry {
    DecisionEntry {
        hook: Q::HOOK.to_owned(),
        subject: question.subject(),
        question: spelled,
        chain: chain.iter().map(link).collect(),
        answers: opinions.iter().zip(trails).map(|(opinion, trail)| answer(opinion, trail.clone())).collect(),
        outcome: json(outcome),
        took_ns: to_ns(took),
    }
}

pub(super) fn link(bound: &Bound) -> ChainLink {
    ChainLink {
        plugin: bound.name.clone(),
        scope: bound.scope.clone(),
        digest: bound.plugin.digest(),
        settings: bound.plugin.settings().clone(),
        weight: bound.weight,
    }
}

pub(super) fn answer<V: Serialize>(opinion: &Opinion<V>, Trail { kv, inventory, backtrace }: Trail) -> Answer {
    let said = match &opinion.verdict {
        Ok(verdict) => Said::Verdict(json(verdict)),
        Err(fault) => Said::Fault(fault.clone()),
    };
    Answer { said, fuel: opinion.fuel, took_ns: to_ns(opinion.took), kv, inventory, backtrace }
}

/// A value of `model` as JSON. Those types are plain: names as keys, integers, texts.
pub(super) fn json(value: &impl Serialize) -> Json {
    Json::of(value).unwrap_or_else(|error| unreachable!("a type of the model is no JSON: {error}"))
}

fn to_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
