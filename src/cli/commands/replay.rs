//! `ostler plugin replay`: what another version would have said.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio_stream::iter;

use crate::api::v1::replay_decisions_request::{Header, Part, Settings};
use crate::api::v1::replay_decisions_response::{Difference, Event, Summary};
use crate::api::{PluginName, v1};

use super::super::args::{Output, PluginReplayArgs};
use super::super::client::{Client, patiently, within};
use super::super::failure::{Exit, Failure};
use super::super::view::json;
use super::super::{print, show};
use super::component::read;
use super::plugin::{CHUNK_LEN, plugin_id, scope};

/// A million decisions take some minutes.
const LONG: Duration = Duration::from_secs(3600);

#[derive(Serialize)]
struct DifferenceView {
    decision: String,
    hook: String,
    subject: String,
    change: String,
    verdict_before: String,
    detail_before: String,
    fuel_before: u64,
    verdict_after: String,
    detail_after: String,
    fuel_after: u64,
}

#[derive(Serialize)]
struct SummaryView {
    replayed: u64,
    same: u64,
    now_denies: u64,
    now_allows: u64,
    differs: u64,
    not_deterministic: u64,
    skipped: u64,
    took_ns: u64,
    digest: String,
}

pub(crate) async fn replay(mut client: Client, arguments: PluginReplayArgs) -> Result<(), Failure> {
    let plugin = plugin_id(arguments.name.as_deref(), arguments.file.as_deref())?;
    let scope = scope(&client.caller, arguments.operator, arguments.tenant.as_deref())?;
    let bytes = arguments.file.as_deref().map(read).transpose()?.unwrap_or_default();
    let settings = BTreeMap::from_iter(arguments.settings);
    let since = arguments.since.and_then(|ago| SystemTime::now().checked_sub(ago));
    let header = Part::Header(Header {
        plugin: PluginName { scope, plugin }.to_string(),
        hook: arguments.hook.unwrap_or_default(),
        since: since.map(prost_types::Timestamp::from),
        settings: (!settings.is_empty()).then_some(Settings { settings }),
        limit: arguments.limit,
        version: arguments.to,
    });
    let chunks = bytes.chunks(CHUNK_LEN).map(|chunk| Part::Chunk(chunk.to_vec()));
    let parts = std::iter::once(header).chain(chunks).map(|part| v1::ReplayDecisionsRequest { part: Some(part) });
    let parts: Vec<_> = parts.collect();
    let mut events = patiently("replaying", client.decisions.replay_decisions(within(LONG, iter(parts)))).await?;
    let mut summary = None;
    while let Some(response) = events.message().await? {
        match (response.event, client.output) {
            (Some(Event::Difference(difference)), Output::Table) => show(&line(&difference))?,
            (Some(Event::Difference(difference)), Output::Json) => show(&json(&difference_view(difference), true)?)?,
            (Some(Event::Summary(last)), _) => summary = Some(last),
            (None, _) => {}
        }
    }
    let summary = summary.ok_or_else(|| Failure::new(Exit::Refused, "the replay ended early"))?;
    match client.output {
        Output::Table => show(&text(&summary))?,
        Output::Json => show(&json(&summary_view(&summary), true)?)?,
    }
    if summary.not_deterministic > 0 {
        let message = format!("{} answers of the same plugin were not repeated", summary.not_deterministic);
        return Err(Failure::new(Exit::Refused, message));
    }
    Ok(())
}

/// `acme/42 admit vms/web: allow → deny limit.vcpus: …`
fn line(difference: &Difference) -> String {
    let name = match difference.decision.split('/').collect::<Vec<_>>()[..] {
        ["tenants", tenant, "decisions", number] => format!("{tenant}/{number}"),
        _ => difference.decision.clone(),
    };
    let said = |verdict: &str, detail: &str| {
        if detail.is_empty() { verdict.to_owned() } else { format!("{verdict} ({detail})") }
    };
    let before = said(&difference.verdict_before, &difference.detail_before);
    let after = said(&difference.verdict_after, &difference.detail_after);
    let fuel = if before == after {
        format!(", {} fuel → {}", difference.fuel_before, difference.fuel_after)
    } else {
        String::new()
    };
    print::clean(&format!("{name} {} {}: {before} → {after}{fuel}", difference.hook, difference.subject)) + "\n"
}

/// `37 of 1200 change: 4 now deny, …`
fn text(summary: &Summary) -> String {
    let changed = summary.replayed - summary.same.min(summary.replayed);
    let took = summary.took.and_then(|took| Duration::try_from(took).ok()).unwrap_or_default();
    format!(
        "{changed} of {} change: {} now deny, {} now allow, {} differ otherwise; {} were not asked again; {} in {}\n",
        summary.replayed,
        summary.now_denies,
        summary.now_allows,
        summary.differs,
        summary.skipped,
        print::short_digest(&summary.digest),
        print::duration(took)
    )
}

fn difference_view(difference: Difference) -> DifferenceView {
    DifferenceView {
        change: difference.change().as_str_name().to_owned(),
        decision: difference.decision,
        hook: difference.hook,
        subject: difference.subject,
        verdict_before: difference.verdict_before,
        detail_before: difference.detail_before,
        fuel_before: difference.fuel_before,
        verdict_after: difference.verdict_after,
        detail_after: difference.detail_after,
        fuel_after: difference.fuel_after,
    }
}

fn summary_view(summary: &Summary) -> SummaryView {
    let took = summary.took.and_then(|took| Duration::try_from(took).ok()).unwrap_or_default();
    SummaryView {
        replayed: summary.replayed,
        same: summary.same,
        now_denies: summary.now_denies,
        now_allows: summary.now_allows,
        differs: summary.differs,
        not_deterministic: summary.not_deterministic,
        skipped: summary.skipped,
        took_ns: u64::try_from(took.as_nanos()).unwrap_or(u64::MAX),
        digest: summary.digest.clone(),
    }
}
