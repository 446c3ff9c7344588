//! A replay's requests and responses. Key functions: [`decode`], [`encode`].

use tonic::{Status, Streaming};

use super::decision::nanos;
use super::plugin::MAX_COMPONENT_LEN;
use super::status;
use crate::api::convert::duration_to_proto;
use crate::api::v1::replay_decisions_request::{Header, Part};
use crate::api::v1::replay_decisions_response::{Change as ShownChange, Difference, Event, Summary};
use crate::api::{PluginName, decision_name, v1};
use crate::daemon::service::{Asked, Change, Replay, ReplayEvent, ReplaySummary};
use crate::model::{AliasError, Answer, SpecError};

/// Decisions that are asked again, unless fewer are asked for; and at most.
const MAX_DECISIONS: u64 = 1_000_000;

/// Reads the whole request.
pub(super) async fn decode(mut parts: Streaming<v1::ReplayDecisionsRequest>) -> Result<Replay, Status> {
    let bad = |field: &str, reason: &str| status::bad_field(&SpecError::new(field, reason));
    let first = parts.message().await?.and_then(|request| request.part);
    let Some(Part::Header(Header { plugin, hook, since, settings, limit, version })) = first else {
        return Err(bad("header", "the first request must carry the header"));
    };
    let name = PluginName::parse(&plugin).map_err(|error| status::bad_field(&error))?;
    let mut component = Vec::new();
    while let Some(request) = parts.message().await? {
        let Some(Part::Chunk(chunk)) = request.part else {
            return Err(bad("chunk", "every request after the first must carry a chunk"));
        };
        if component.len() + chunk.len() > MAX_COMPONENT_LEN {
            return Err(bad("chunk", &format!("component is longer than {MAX_COMPONENT_LEN} bytes")));
        }
        component.extend_from_slice(&chunk);
    }
    let asked = match (component.is_empty(), version.is_empty()) {
        (true, true) => Asked::Bound,
        (true, false) => {
            Asked::Version(version.parse().map_err(|error: AliasError| bad("version", &error.to_string()))?)
        }
        (false, true) => Asked::Component(component),
        (false, false) => return Err(bad("version", "a component comes with the request: leave one of the two out")),
    };
    Ok(Replay {
        scope: name.scope,
        name: name.plugin,
        asked,
        settings: settings.map(|settings| settings.settings.into_iter().collect()),
        hook: Some(hook).filter(|hook| !hook.is_empty()),
        since_ns: since.map_or(0, nanos),
        limit: if limit == 0 { MAX_DECISIONS } else { limit.min(MAX_DECISIONS) },
    })
}

/// An event as the API shows it.
pub(super) fn encode(event: ReplayEvent) -> Result<v1::ReplayDecisionsResponse, Status> {
    let event = match event {
        ReplayEvent::Failed(error) => return Err(status::of(&error)),
        ReplayEvent::Summary(summary) => Event::Summary(encode_summary(&summary)),
        ReplayEvent::Difference { id, entry, replayed } => {
            let ((verdict_before, detail_before), (verdict_after, detail_after)) =
                (told(&replayed.before), told(&replayed.after));
            let change = match replayed.change {
                Change::Same => ShownChange::Unspecified,
                Change::NowDenies => ShownChange::NowDenies,
                Change::NowAllows => ShownChange::NowAllows,
                Change::Differs => ShownChange::Differs,
                Change::NotDeterministic => ShownChange::NotDeterministic,
            };
            Event::Difference(Difference {
                decision: decision_name(&id),
                hook: entry.hook,
                subject: entry.subject,
                change: change.into(),
                verdict_before,
                detail_before,
                fuel_before: replayed.before.fuel,
                verdict_after,
                detail_after,
                fuel_after: replayed.after.fuel,
            })
        }
    };
    Ok(v1::ReplayDecisionsResponse { event: Some(event) })
}

/// What was said, and written.
fn told(answer: &Answer) -> (String, String) {
    let (verdict, detail) = answer.summary();
    let wrote = answer.kv.as_ref().map(|kv| kv.wrote.clone()).unwrap_or_default();
    let wrote = wrote.into_iter().map(|(key, value)| match value {
        Some(value) => format!("{key}={value:?}"),
        None => format!("no {key}"),
    });
    let wrote: Vec<_> = wrote.collect();
    if wrote.is_empty() {
        return (verdict, detail);
    }
    let space = if detail.is_empty() { "" } else { "; " };
    (verdict, format!("{detail}{space}writes {}", wrote.join(", ")))
}

fn encode_summary(summary: &ReplaySummary) -> Summary {
    let count = |change| summary.counts.get(&change).copied().unwrap_or(0);
    Summary {
        replayed: summary.counts.values().sum(),
        same: count(Change::Same),
        now_denies: count(Change::NowDenies),
        now_allows: count(Change::NowAllows),
        differs: count(Change::Differs),
        not_deterministic: count(Change::NotDeterministic),
        skipped: summary.skipped,
        took: Some(duration_to_proto(summary.took)),
        digest: summary.digest.to_string(),
    }
}
