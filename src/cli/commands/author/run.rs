//! `ostler plugin run`: one question, and everything that came of it.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::fixture::Fixture;
use super::load::{Workbench, refused};
use crate::cli::args::{Output, PluginRunArgs};
use crate::cli::failure::{Exit, Failure};
use crate::cli::view::json;
use crate::cli::{print, show};
use crate::daemon::policy::{LoadedPlugin, NotAsked, Note, NoteLevel, PolicyHost, Rehearsal};
use crate::model::{Answer, CellMark, DecisionEntry, InventoryView, KvUse, Said};

#[derive(Serialize)]
struct RunView {
    plugin: String,
    version: String,
    digest: String,
    hook: String,
    subject: String,
    verdict: String,
    detail: String,
    said: Said,
    /// What a chain of this plugin alone would come to.
    outcome: Value,
    fuel: u64,
    took_ns: u64,
    /// What it read and wrote of what it remembers, if it does.
    kv: Option<KvUse>,
    /// What it looked at of what the tenant has, if it sees that.
    inventory: Option<InventoryView>,
    /// Where it failed, the innermost function first; empty if it did not.
    backtrace: Vec<String>,
    log: Vec<LineView>,
    log_lines_dropped: u64,
}

#[derive(Serialize)]
struct LineView {
    level: &'static str,
    line: String,
}

/// Asks a plugin the fixture's question.
pub(super) fn ask(
    host: &PolicyHost,
    plugin: &LoadedPlugin,
    fixture: &Fixture,
) -> Result<(Answer, Rehearsal), NotAsked> {
    let Fixture { scope, hook, question, kv, inventory, .. } = fixture;
    let rehearsal = host.rehearse(plugin, scope, hook, question, kv.as_ref(), inventory.as_ref())?;
    let answer = rehearsal.decision.answers.first().cloned();
    let answer = answer.unwrap_or_else(|| unreachable!("the only plugin of a rehearsal was asked"));
    Ok((answer, rehearsal))
}

/// A fixture that does not fit the plugin, or this version.
pub(super) fn not_asked(error: &NotAsked) -> Failure {
    Failure::new(Exit::Usage, error.to_string())
}

pub(super) async fn run(arguments: PluginRunArgs, output: Output) -> Result<(), Failure> {
    let fixture = Fixture::read(&arguments.fixture)?.with(arguments.settings)?;
    let workbench = Workbench::open(&arguments.file)?;
    let plugin = workbench.load(fixture.settings.clone()).await.map_err(|error| refused(&error))?;
    let (answer, rehearsal) = ask(&workbench.host, &plugin, &fixture).map_err(|error| not_asked(&error))?;
    let Rehearsal { decision, notes, dropped } = rehearsal;
    let (verdict, detail) = answer.summary();
    let table = candidates(&decision);
    let failure = match &answer.said {
        Said::Verdict(_) => None,
        Said::Fault(fault) => {
            Some(Failure::new(Exit::Refused, format!("the plugin failed ({}): {fault}", fault.code())))
        }
    };
    let view = RunView {
        plugin: plugin.name().to_owned(),
        version: plugin.version().to_owned(),
        digest: plugin.digest().to_string(),
        hook: decision.hook,
        subject: decision.subject,
        verdict,
        detail,
        said: answer.said,
        outcome: decision.outcome.to_value(),
        fuel: answer.fuel,
        took_ns: answer.took_ns,
        kv: answer.kv,
        inventory: answer.inventory,
        backtrace: answer.backtrace,
        log: notes.into_iter().map(LineView::from).collect(),
        log_lines_dropped: dropped,
    };
    match output {
        Output::Json => show(&json(&view, false)?)?,
        Output::Table => show(&(view.text() + &table))?,
    }
    failure.map_or(Ok(()), Err)
}

impl From<Note> for LineView {
    fn from(note: Note) -> Self {
        let level = match note.level {
            NoteLevel::Debug => "debug",
            NoteLevel::Info => "info",
            NoteLevel::Warn => "warn",
        };
        Self { level, line: note.line }
    }
}

impl RunView {
    fn text(&self) -> String {
        let detail = if self.detail.is_empty() { String::new() } else { format!(": {}", self.detail) };
        let mut facts = vec![
            ("plugin", format!("{} {} {}", self.plugin, self.version, print::short_digest(&self.digest))),
            ("hook", format!("{}, about {}", self.hook, self.subject)),
            ("answer", format!("{}{detail}", self.verdict)),
            ("outcome", self.outcome.to_string()),
            ("fuel", self.fuel.to_string()),
            ("took", print::duration(Duration::from_nanos(self.took_ns))),
        ];
        if !self.backtrace.is_empty() {
            facts.push(("failed in", self.backtrace.join("\n")));
        }
        if let Some(KvUse { read, wrote }) = &self.kv {
            facts.push(("read", serde_json::to_string(&read.known).unwrap_or_default()));
            facts.push(("wrote", serde_json::to_string(wrote).unwrap_or_default()));
        }
        if let Some(inventory) = &self.inventory {
            facts.push(("saw", serde_json::to_string(&inventory.vms).unwrap_or_default()));
        }
        let mut lines: Vec<_> = self.log.iter().map(|line| format!("{}: {}", line.level, line.line)).collect();
        if self.log_lines_dropped > 0 {
            lines.push(format!("{} more were dropped", self.log_lines_dropped));
        }
        if !lines.is_empty() {
            facts.push(("log", lines.join("\n")));
        }
        print::facts(&facts)
    }
}

/// What the plugin said of each candidate, best first; nothing where there are none.
fn candidates(decision: &DecisionEntry) -> String {
    if decision.question.to_value().get("candidates").is_none() {
        return String::new();
    }
    let rows: Vec<_> = decision
        .explain(&[])
        .rows
        .into_iter()
        .map(|row| {
            let rank = row.rank.map_or_else(|| "-".to_owned(), |rank| rank.to_string());
            let said = row.cells.into_iter().next().map(|cell| match cell.mark {
                CellMark::Score(score) => score.to_string(),
                CellMark::Reject => format!("no: {}: {}", cell.code, cell.message),
                CellMark::Allow | CellMark::Deny | CellMark::Abstain | CellMark::Fault => cell.code,
            });
            [rank, row.candidate, said.unwrap_or_default()]
        })
        .collect();
    print::table(["#", "CANDIDATE", "SCORE"], &rows)
}
