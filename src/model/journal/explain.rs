//! A decision as a table: who said what, of which candidate. Key type: [`Explanation`].
//!
//! Works on what every hook's types have in common as JSON: `candidates` in a question, `rank` with `marks` and `reasons`
//! in a verdict, `select` with `order` in an outcome. A hook without them is one row.

use serde_json::Value;

use super::super::PolicyFault;
use super::super::canonical::canonical;
use super::{Answer, DecisionEntry, Said, ShadowAnswer};

/// Who said what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Columns: the plugins that were asked, in their order.
    pub plugins: Vec<String>,
    /// Further columns: the shadows, in their order.
    pub shadows: Vec<String>,
    /// One for each candidate, best first and what nobody may have last; or one for the subject as a whole.
    pub rows: Vec<Row>,
}

/// What was said of one candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The candidate; the subject where there are none.
    pub candidate: String,
    /// One for each plugin.
    pub cells: Vec<Cell>,
    /// One for each shadow.
    pub shadow_cells: Vec<Cell>,
    /// Scores added up, each times its plugin's weight.
    pub total: i64,
    /// Place in the order of choice, from 1; `None`: not to be had.
    pub rank: Option<usize>,
}

/// What one plugin said of one candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// In which way.
    pub mark: Mark,
    /// A code, a text for people; may be empty.
    pub code: String,
    /// For people; may be empty.
    pub message: String,
}

/// In which way a plugin spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// It scored the candidate.
    Score(i64),
    /// It would not have it.
    Reject,
    /// It allowed the whole.
    Allow,
    /// It denied the whole.
    Deny,
    /// It had no opinion.
    Abstain,
    /// It failed.
    Fault,
}

impl Answer {
    /// The answer in a word (`allow`, `deny`, `rank`, `abstain`, or a fault's code) and a text for people.
    pub fn summary(&self) -> (String, String) {
        let said = read(&self.said);
        let cell = whole(&said);
        let word = match (cell.mark, &said) {
            (Mark::Fault, _) => cell.code,
            (Mark::Deny, _) => return ("deny".into(), format!("{}: {}", cell.code, cell.message)),
            (_, Ok(verdict)) => tag(verdict).0.to_owned(),
            (_, Err(fault)) => fault.code().to_owned(),
        };
        (word, cell.message)
    }
}

impl DecisionEntry {
    /// The table, with what `shadows` said to it.
    pub fn explain(&self, shadows: &[ShadowAnswer]) -> Explanation {
        let names = shadows.iter().map(|shadow| shadow.link.plugin.clone()).collect();
        let plugins = self.chain.iter().take(self.answers.len()).map(|link| link.plugin.clone()).collect();
        let (question, outcome) = (self.question.to_value(), self.outcome.to_value());
        let answers: Vec<_> = self.answers.iter().map(|answer| read(&answer.said)).collect();
        let others: Vec<_> = shadows.iter().map(|shadow| read(&shadow.answer.said)).collect();
        let Some(candidates) = question.get("candidates").and_then(Value::as_array) else {
            let cells = answers.iter().map(whole).collect();
            let shadow_cells = others.iter().map(whole).collect();
            let rank = self.is_allowed().then_some(1);
            let row = Row { candidate: self.subject.clone(), cells, shadow_cells, total: 0, rank };
            return Explanation { plugins, shadows: names, rows: vec![row] };
        };
        let order: Vec<_> = outcome
            .pointer("/select/order")
            .and_then(Value::as_array)
            .map(|order| order.iter().filter_map(Value::as_u64).collect())
            .unwrap_or_default();
        let mut rows: Vec<_> = candidates
            .iter()
            .enumerate()
            .map(|(at, candidate)| {
                let cells: Vec<_> = answers.iter().map(|said| cell(said, at)).collect();
                let scores = self.chain.iter().zip(&cells).map(|(link, cell)| match cell.mark {
                    Mark::Score(score) => score.saturating_mul(link.weight.get().into()),
                    _ => 0,
                });
                let total = scores.fold(0, i64::saturating_add);
                let rank = order.iter().position(|chosen| usize::try_from(*chosen) == Ok(at)).map(|place| place + 1);
                let shadow_cells = others.iter().map(|said| cell(said, at)).collect();
                Row { candidate: label(candidate, at), total, cells, shadow_cells, rank }
            })
            .collect();
        rows.sort_by_key(|row| row.rank.unwrap_or(usize::MAX));
        Explanation { plugins, shadows: names, rows }
    }
}

/// What of a candidate names it.
fn label(candidate: &Value, at: usize) -> String {
    let name = ["address", "name", "id"].into_iter().find_map(|key| candidate.get(key)?.as_str());
    let node = || candidate.get("node").and_then(Value::as_u64).map(|node| format!("node {node}"));
    name.map(str::to_owned).or_else(node).unwrap_or_else(|| format!("#{at}"))
}

/// The name of an enum's variant as serde writes it, and its content.
fn tag(value: &Value) -> (&str, &Value) {
    match value {
        Value::String(tag) => (tag, &Value::Null),
        Value::Object(fields) if fields.len() == 1 => {
            fields.iter().next().map_or(("", &Value::Null), |(tag, content)| (tag.as_str(), content))
        }
        _ => ("", &Value::Null),
    }
}

fn text(value: Option<&Value>) -> String {
    value.and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// A verdict, read once for all candidates.
type Read<'a> = Result<Value, &'a PolicyFault>;

fn read(said: &Said) -> Read<'_> {
    match said {
        Said::Verdict(verdict) => Ok(verdict.to_value()),
        Said::Fault(fault) => Err(fault),
    }
}

/// What a plugin said of the whole.
fn whole(said: &Read<'_>) -> Cell {
    let verdict = match said {
        Err(fault) => return Cell { mark: Mark::Fault, code: fault.code().to_owned(), message: fault.to_string() },
        Ok(verdict) => verdict,
    };
    match tag(verdict) {
        ("deny", why) => Cell { mark: Mark::Deny, code: text(why.get("code")), message: text(why.get("message")) },
        ("abstain", _) => Cell { mark: Mark::Abstain, code: String::new(), message: String::new() },
        ("rank", ranking) => {
            let marks = ranking.get("marks").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let scored = marks.iter().filter(|mark| tag(mark).0 == "score").count();
            let message = format!("{scored} scored, {} rejected", marks.len() - scored);
            Cell { mark: Mark::Allow, code: String::new(), message }
        }
        (_, content) => {
            let is_empty = content.is_null() || content.as_array().is_some_and(Vec::is_empty);
            let message = if is_empty { Vec::new() } else { canonical(content).unwrap_or_default() };
            Cell { mark: Mark::Allow, code: String::new(), message: String::from_utf8(message).unwrap_or_default() }
        }
    }
}

/// What a plugin said of candidate `at`.
fn cell(said: &Read<'_>, at: usize) -> Cell {
    let ranking = match said {
        Ok(verdict) if tag(verdict).0 == "rank" => tag(verdict).1,
        _ => return whole(said),
    };
    let mark = ranking.get("marks").and_then(|marks| marks.get(at)).map_or(("", &Value::Null), tag);
    match mark {
        ("score", score) => {
            Cell { mark: Mark::Score(score.as_i64().unwrap_or(0)), code: String::new(), message: String::new() }
        }
        (_, reason) => {
            let reason = reason.as_u64().and_then(|reason| usize::try_from(reason).ok());
            let reason = reason.and_then(|reason| ranking.get("reasons")?.get(reason));
            let part = |at: usize| text(reason.and_then(|reason| reason.get(at)));
            Cell { mark: Mark::Reject, code: part(0), message: part(1) }
        }
    }
}
