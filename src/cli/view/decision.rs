//! Decisions on record as JSON and as text. Key types: [`RecordView`], [`ExplanationView`].

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::plugin::weighed;
use super::{moment, nanos};
use crate::api::v1;
use crate::api::v1::decision_record::enforcement::State;
use crate::cli::print;

/// A decision.
#[derive(Debug, Serialize)]
pub(crate) struct RecordView {
    name: String,
    hook: String,
    subject: String,
    time: Option<String>,
    allowed: bool,
    code: String,
    message: String,
    plugin: String,
    took_ns: u64,
    enforcement: EnforcementView,
    links: Vec<LinkView>,
    question: serde_json::Value,
    outcome: serde_json::Value,
    hash: String,
    shadows: Vec<ShadowView>,
}

/// A shadow's answer; `outcome`: what there would have been instead, if it differs.
#[derive(Debug, Serialize)]
struct ShadowView {
    link: LinkView,
    differs: bool,
    outcome: serde_json::Value,
}

#[derive(Debug, Serialize)]
struct EnforcementView {
    state: String,
    detail: String,
    code: String,
}

#[derive(Debug, Serialize)]
struct LinkView {
    plugin: String,
    scope: String,
    digest: String,
    settings: BTreeMap<String, String>,
    asked: bool,
    verdict: String,
    detail: String,
    fuel: u64,
    took_ns: u64,
    /// What it remembered, and what it wrote; null if it remembers nothing.
    kv_read: serde_json::Value,
    kv_wrote: serde_json::Value,
    /// What it looked at of what the tenant has; null if it sees nothing of it.
    inventory: serde_json::Value,
    /// Where it failed, the innermost function first; empty if it did not.
    backtrace: Vec<String>,
    /// How many times its scores counted.
    weight: u32,
}

/// A decision as a table.
#[derive(Debug, Serialize)]
pub(crate) struct ExplanationView {
    decision: RecordView,
    plugins: Vec<String>,
    rows: Vec<RowView>,
    shadows: Vec<String>,
}

#[derive(Debug, Serialize)]
struct RowView {
    candidate: String,
    cells: Vec<CellView>,
    total_score: i64,
    rank: u32,
    shadow_cells: Vec<CellView>,
}

#[derive(Debug, Serialize)]
struct CellView {
    mark: String,
    score: i64,
    code: String,
    message: String,
}

/// What became of a chain.
#[derive(Debug, Serialize)]
pub(crate) struct ChainView {
    pub(crate) tenant: String,
    pub(crate) records: u64,
    pub(crate) sequence: u64,
    pub(crate) hash: String,
    pub(crate) fault: String,
    pub(crate) message: String,
    pub(crate) bad_sequence: Option<u64>,
}

impl From<v1::DecisionRecord> for RecordView {
    fn from(record: v1::DecisionRecord) -> Self {
        let enforcement = record.enforcement.unwrap_or_default();
        Self {
            time: record.time.and_then(moment),
            took_ns: nanos(record.took),
            enforcement: EnforcementView {
                state: enforcement.state().as_str_name().to_owned(),
                detail: enforcement.detail,
                code: enforcement.code,
            },
            links: record.links.into_iter().map(LinkView::from).collect(),
            question: json(&record.question),
            outcome: json(&record.outcome),
            name: record.name,
            hook: record.hook,
            subject: record.subject,
            allowed: record.allowed,
            code: record.code,
            message: record.message,
            plugin: record.plugin,
            hash: record.hash,
            shadows: record.shadows.into_iter().map(ShadowView::from).collect(),
        }
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_default()
}

impl From<v1::DecisionShadow> for ShadowView {
    fn from(shadow: v1::DecisionShadow) -> Self {
        let v1::DecisionShadow { link, differs, outcome } = shadow;
        Self { link: link.unwrap_or_default().into(), differs, outcome: json(&outcome) }
    }
}

impl From<v1::DecisionLink> for LinkView {
    fn from(link: v1::DecisionLink) -> Self {
        Self {
            plugin: link.plugin,
            scope: link.scope,
            digest: link.digest,
            settings: link.settings.into_iter().collect(),
            asked: link.asked,
            verdict: link.verdict,
            detail: link.detail,
            fuel: link.fuel,
            took_ns: nanos(link.took),
            kv_read: json(&link.kv_read),
            kv_wrote: json(&link.kv_wrote),
            inventory: json(&link.inventory),
            backtrace: link.backtrace,
            weight: link.weight,
        }
    }
}

impl From<v1::DecisionExplanation> for ExplanationView {
    fn from(explanation: v1::DecisionExplanation) -> Self {
        let cell = |cell: v1::decision_explanation::Cell| CellView {
            mark: cell.mark().as_str_name().to_owned(),
            score: cell.score,
            code: cell.code,
            message: cell.message,
        };
        let row = |row: v1::decision_explanation::Row| RowView {
            candidate: row.candidate,
            cells: row.cells.into_iter().map(cell).collect(),
            total_score: row.total_score,
            rank: row.rank,
            shadow_cells: row.shadow_cells.into_iter().map(cell).collect(),
        };
        Self {
            decision: explanation.decision.unwrap_or_default().into(),
            plugins: explanation.plugins,
            rows: explanation.rows.into_iter().map(row).collect(),
            shadows: explanation.shadows,
        }
    }
}

impl From<v1::verify_decisions_response::Chain> for ChainView {
    fn from(chain: v1::verify_decisions_response::Chain) -> Self {
        let v1::verify_decisions_response::Chain { tenant, records, sequence, hash, fault, message, bad_sequence } =
            chain;
        Self { tenant, records, sequence, hash, fault, message, bad_sequence }
    }
}

impl RecordView {
    fn outcome_text(&self) -> String {
        if self.allowed { "allowed".to_owned() } else { format!("denied: {}", self.code) }
    }

    /// Everything, for people.
    pub(crate) fn text(&self) -> String {
        let mut facts = vec![
            ("decision", short(&self.name)),
            ("hook", self.hook.clone()),
            ("about", self.subject.clone()),
            ("time", self.time.clone().unwrap_or_default()),
            ("outcome", self.outcome_text()),
        ];
        if !self.allowed {
            let by = if self.plugin.is_empty() { String::new() } else { format!(" (by {})", self.plugin) };
            facts.push(("because", format!("{}{by}", self.message)));
        }
        facts.push(("then", self.enforcement.text()));
        facts.push(("plugins", super::lines(self.links.iter().map(LinkView::text))));
        if !self.shadows.is_empty() {
            facts.push(("shadows", super::lines(self.shadows.iter().map(ShadowView::text))));
        }
        facts.push(("took", print::duration(Duration::from_nanos(self.took_ns))));
        facts.push(("question", self.question.to_string()));
        facts.push(("hash", self.hash.clone()));
        print::facts(&facts)
    }
}

impl EnforcementView {
    fn text(&self) -> String {
        let what = match State::from_str_name(&self.state) {
            Some(State::Enforced) => "enforced",
            Some(State::Overruled) => "overruled",
            Some(State::Pending) => "not told: under way, or the daemon ended in between",
            Some(State::Unspecified) | None => self.state.as_str(),
        };
        [what, &self.code, &self.detail].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ")
    }
}

impl LinkView {
    fn text(&self) -> String {
        let who = format!("{} {} ({})", self.column(), print::short_digest(&self.digest), self.scope);
        if !self.asked {
            return format!("{who} was not asked");
        }
        let took = print::duration(Duration::from_nanos(self.took_ns));
        let detail = if self.detail.is_empty() { String::new() } else { format!(": {}", self.detail) };
        let kv = if self.kv_read.is_null() {
            String::new()
        } else {
            format!("; read {}, wrote {}", self.kv_read, self.kv_wrote)
        };
        let failed: String = self.backtrace.iter().map(|frame| format!("\n  in {frame}")).collect();
        format!("{who} {}{detail}, {} fuel in {took}{kv}{}{failed}", self.verdict, self.fuel, self.saw())
    }
}

impl LinkView {
    /// Its name, with its weight if it has one: what it said is shown as it said it, and the sum as it was decided by.
    fn column(&self) -> String {
        weighed(self.plugin.clone(), self.weight)
    }

    /// How much it looked at of what the tenant has: all of it may be long.
    fn saw(&self) -> String {
        if self.inventory.is_null() {
            return String::new();
        }
        let vms = self.inventory["vms"].as_object().map_or(0, serde_json::Map::len);
        format!(
            "; looked at {vms} VMs, and not at {}, of revision {}",
            self.inventory["rest"], self.inventory["revision"]
        )
    }
}

impl ShadowView {
    fn text(&self) -> String {
        match self.differs {
            true => format!("{}; would have been {}", self.link.text(), self.outcome),
            false => self.link.text(),
        }
    }
}

impl CellView {
    fn text(&self) -> String {
        match self.mark.as_str() {
            "SCORE" => self.score.to_string(),
            "REJECT" => format!("no: {}", self.code),
            mark if self.code.is_empty() => mark.to_lowercase(),
            mark => format!("{}: {}", mark.to_lowercase(), self.code),
        }
    }
}

impl ExplanationView {
    /// Candidates below plugins; plugins below each other where there are no candidates.
    pub(crate) fn text(&self) -> String {
        let head = format!(
            "{} {} {} {}; {}\n",
            short(&self.decision.name),
            self.decision.hook,
            self.decision.subject,
            self.decision.outcome_text(),
            self.decision.enforcement.text()
        );
        let has_candidates = self.decision.question.get("candidates").is_some();
        if !has_candidates {
            let links = self.decision.links.iter().map(|link| (link, ""));
            let shadows = self.decision.shadows.iter();
            let rows: Vec<_> = links
                .chain(shadows.map(|shadow| (&shadow.link, " (shadow)")))
                .map(|(link, mark)| {
                    let verdict = if link.asked { link.verdict.clone() } else { "not asked".to_owned() };
                    let plugin = format!("{}{mark}", link.column());
                    [plugin, link.scope.clone(), verdict, link.detail.clone(), link.fuel.to_string()]
                })
                .collect();
            return head + &print::table(["PLUGIN", "SCOPE", "VERDICT", "DETAIL", "FUEL"], &rows);
        }
        let header = ["#", "CANDIDATE", "SCORE"].into_iter().map(str::to_owned);
        let own = self.decision.links.iter().take(self.plugins.len()).map(LinkView::column);
        let shadows = self.decision.shadows.iter().map(|shadow| format!("{} (shadow)", shadow.link.column()));
        let mut rows = vec![header.chain(own).chain(shadows).collect::<Vec<_>>()];
        let mut reasons = BTreeMap::new();
        for row in &self.rows {
            let rank = if row.rank == 0 { "-".to_owned() } else { row.rank.to_string() };
            let cells = row.cells.iter().chain(&row.shadow_cells).map(CellView::text);
            rows.push([rank, row.candidate.clone(), row.total_score.to_string()].into_iter().chain(cells).collect());
            reasons.extend(
                row.cells
                    .iter()
                    .chain(&row.shadow_cells)
                    .filter(|cell| !cell.code.is_empty())
                    .map(|cell| (&cell.code, &cell.message)),
            );
        }
        let reasons: String =
            reasons.into_iter().map(|(code, message)| print::clean(&format!("{code}: {message}")) + "\n").collect();
        head + &print::columns(&rows) + &reasons
    }
}

/// A table of decisions.
pub(crate) fn decision_table(records: &[RecordView]) -> String {
    let rows: Vec<_> = records
        .iter()
        .map(|record| {
            [
                short(&record.name),
                record.time.clone().unwrap_or_default(),
                record.hook.clone(),
                record.subject.clone(),
                record.outcome_text(),
                record.plugin.clone(),
                record.enforcement.text(),
            ]
        })
        .collect();
    print::table(["DECISION", "TIME", "HOOK", "ABOUT", "OUTCOME", "BY", "THEN"], &rows)
}

/// A table of chains.
pub(crate) fn chain_table(chains: &[ChainView]) -> String {
    let rows: Vec<_> = chains
        .iter()
        .map(|chain| {
            let state = if chain.fault.is_empty() { "whole".to_owned() } else { chain.fault.clone() };
            let detail = if chain.fault.is_empty() {
                format!("ends at {} {}", chain.sequence, chain.hash)
            } else {
                chain.message.clone()
            };
            [chain.tenant.trim_start_matches("tenants/").to_owned(), chain.records.to_string(), state, detail]
        })
        .collect();
    print::table(["TENANT", "RECORDS", "STATE", "DETAIL"], &rows)
}

/// `tenants/acme/decisions/42` as people write it.
fn short(name: &str) -> String {
    match name.split('/').collect::<Vec<_>>()[..] {
        ["tenants", tenant, "decisions", number] => format!("{tenant}/{number}"),
        _ => name.to_owned(),
    }
}
