//! A question and the answer that is expected, as a file; and `ostler plugin fixture`, which makes one of a recorded
//! decision. Key type: [`Fixture`].
//!
//! Everything in it is written as in a decision's record (`ostler decision export`): `question` as there, `settings` and
//! `scope` as in a link of its `chain`, `expect` as `said` in one of its `answers`, `kv` and `writes` as `read` and `wrote` in
//! the `kv` of that, `inventory` as there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::load;
use crate::api::v1;
use crate::cli::args::PluginFixtureArgs;
use crate::cli::client::{Client, patiently, within};
use crate::cli::failure::{Exit, Failure};
use crate::cli::show;
use crate::cli::view::json;
use crate::model::{
    DecisionEntry, DecisionId, InventoryView, JournalEntry, JournalRecord, KvUse, KvView, KvWrites, PolicyScope, Said,
};

/// Longest fixture, in bytes: many times the longest question.
const MAX_LEN: u64 = 4 << 20;
/// A chain may have a quarter of a million records.
const LONG: Duration = Duration::from_secs(3600);

/// A question to a plugin, and what it is expected to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fixture {
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) note: String,
    /// The hook: `admit`.
    pub(super) hook: String,
    /// Whose plugin it is; this bounds what it may answer.
    #[serde(default = "operator", skip_serializing_if = "is_operator")]
    pub(super) scope: PolicyScope,
    /// The plugin's settings.
    #[serde(default)]
    pub(super) settings: BTreeMap<String, String>,
    /// The question.
    pub(super) question: Value,
    /// What the plugin remembers, if it does; none: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) kv: Option<KvView>,
    /// What the tenant has, if the plugin sees it; none: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) inventory: Option<InventoryView>,
    /// The answer; none yet: `ostler plugin test --update` writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) expect: Option<Said>,
    /// What it is expected to write with it.
    #[serde(default, skip_serializing_if = "KvWrites::is_empty")]
    pub(super) writes: KvWrites,
}

fn operator() -> PolicyScope {
    PolicyScope::Operator
}

fn is_operator(scope: &PolicyScope) -> bool {
    *scope == PolicyScope::Operator
}

impl Fixture {
    /// Reads one. Its question is looked at when it is asked.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let wrong = |why: String| {
            Failure::new(Exit::Usage, format!("{} is no fixture: {why}", path.display()))
                .hint("ostler plugin fixture makes one of a recorded decision")
        };
        let unreadable = |error| {
            let failure = Failure::local(format_args!("cannot read {}", path.display()), &error);
            Failure { exit: Exit::Usage, ..failure }
        };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(MAX_LEN + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_LEN {
            return Err(wrong(format!("it is larger than {} MiB", MAX_LEN >> 20)));
        }
        serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))
    }

    /// The same with these settings in the place of its own.
    pub(super) fn with(mut self, settings: Vec<(String, String)>) -> Result<Self, Failure> {
        self.settings.extend(load::settings(settings)?);
        Ok(self)
    }

    /// Writes it, all or nothing.
    pub(super) fn write(&self, path: &Path) -> Result<(), Failure> {
        let unwritable = |error| Failure::local(format_args!("cannot write {}", path.display()), &error);
        let partial = path.with_added_extension("partial");
        std::fs::write(&partial, json(self, false)?).map_err(unwritable)?;
        std::fs::rename(&partial, path).map_err(unwritable)
    }

    /// What `name` was asked in a decision, and answered (of two of one name, the operator's, who comes first); without a
    /// name, the only one that was asked.
    fn of(entry: DecisionEntry, id: &DecisionId, name: Option<&str>) -> Result<Self, Failure> {
        let DecisionEntry { hook, question, chain, answers, .. } = entry;
        let asked: Vec<String> = chain.iter().take(answers.len()).map(|link| link.plugin.clone()).collect();
        let mut answered =
            chain.into_iter().zip(answers).filter(|(link, _)| name.is_none_or(|name| link.plugin == name));
        let Some((link, answer)) = answered.next() else {
            let what = name.map_or_else(|| "no plugin".to_owned(), |name| format!("no plugin {name}"));
            let failure = Failure::new(Exit::NotFound, format!("{what} was asked in decision {id}"));
            return Err(failure.hint(format!("asked were: {}", asked.join(", "))));
        };
        if name.is_none() && answered.next().is_some() {
            let failure = Failure::new(Exit::Usage, format!("{} plugins were asked in decision {id}", asked.len()));
            return Err(failure.hint(format!("name one with --name: {}", asked.join(", "))));
        }
        let note = format!("decision {id}, plugin {} {}", link.plugin, link.digest);
        let (scope, settings, expect) = (link.scope, link.settings, Some(answer.said));
        let question = question.to_value();
        let (kv, writes) = answer.kv.map(|KvUse { read, wrote }| (read, wrote)).unzip();
        let (inventory, writes) = (answer.inventory, writes.unwrap_or_default());
        Ok(Self { note, hook, scope, settings, question, kv, inventory, expect, writes })
    }
}

/// Makes a fixture of a decision that the daemon has on record.
pub(super) async fn from_daemon(mut client: Client, arguments: &PluginFixtureArgs) -> Result<(), Failure> {
    let id = client.caller.decision(&arguments.decision)?;
    let parent = format!("tenants/{}", id.tenant);
    let call = client.decisions.export_decisions(within(LONG, v1::ExportDecisionsRequest { parent }));
    let mut pieces = patiently("exporting", call).await?;
    let mut rest = Vec::new();
    while let Some(piece) = pieces.message().await? {
        rest.extend(piece.lines);
        let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { continue };
        for line in rest[..end].split(|byte| *byte == b'\n') {
            if let Some(entry) = decision(line, &id)? {
                return show(&json(&Fixture::of(entry, &id, arguments.name.as_deref())?, false)?);
            }
        }
        rest.drain(..=end);
    }
    Err(not_there(&id))
}

/// Makes a fixture of a decision in an export.
pub(super) fn from_file(file: &Path, arguments: &PluginFixtureArgs) -> Result<(), Failure> {
    let id = exported(&arguments.decision)?;
    let unreadable = |error| Failure::local(format_args!("cannot read {}", file.display()), &error);
    let reader = BufReader::new(File::open(file).map_err(unreadable)?);
    for line in reader.split(b'\n') {
        if let Some(entry) = decision(&line.map_err(unreadable)?, &id)? {
            return show(&json(&Fixture::of(entry, &id, arguments.name.as_deref())?, false)?);
        }
    }
    Err(not_there(&id))
}

/// `acme/42`, or in full: an export may hold several tenants' chains, and nobody calls here.
fn exported(name: &str) -> Result<DecisionId, Failure> {
    let short = name.strip_prefix("tenants/").map(|name| name.replacen("/decisions/", "/", 1));
    let short = short.as_deref().unwrap_or(name);
    let id = short.split_once('/').and_then(|(tenant, sequence)| {
        Some(DecisionId { tenant: tenant.parse().ok()?, sequence: sequence.parse().ok()? })
    });
    id.ok_or_else(|| Failure::new(Exit::Usage, format!("{name:?} is no decision of an export: write TENANT/NUMBER")))
}

/// The decision on this line, if it is the one.
fn decision(line: &[u8], id: &DecisionId) -> Result<Option<DecisionEntry>, Failure> {
    // An empty line is what stands behind the last one.
    if line.is_empty() {
        return Ok(None);
    }
    let (_, record) = JournalRecord::from_line(line)
        .map_err(|error| Failure::new(Exit::Refused, format!("this is no export of decisions: {error}")))?;
    if record.tenant != id.tenant || record.sequence != id.sequence {
        return Ok(None);
    }
    match record.entry {
        JournalEntry::Decision(entry) => Ok(Some(*entry)),
        JournalEntry::Enforcement(_) | JournalEntry::Shadow(_) | JournalEntry::Checkpoint(_) => {
            Err(Failure::new(Exit::NotFound, format!("record {id} is no decision")))
        }
    }
}

fn not_there(id: &DecisionId) -> Failure {
    Failure::new(Exit::NotFound, format!("decision {id} is not there")).hint("ostler decision list shows what is")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(answers: usize) -> DecisionEntry {
        let link = |plugin: &str, scope: Value| {
            let digest = format!("sha256:{}", "0".repeat(64));
            json!({"plugin": plugin, "scope": scope, "digest": digest, "settings": {"max-vcpus": "2"}})
        };
        let answer = json!({"said": {"verdict": {"allow": []}}, "fuel": 7, "took_ns": 1});
        serde_json::from_value(json!({
            "hook": "admit", "subject": "vms/web", "question": {"tenant": "acme"},
            "chain": [link("limits", json!("operator")), link("own", json!({"tenant": "acme"}))],
            "answers": vec![answer; answers], "outcome": {"allow": []}, "took_ns": 1,
        }))
        .unwrap()
    }

    #[test]
    fn a_fixture_is_a_part_of_a_record_in_its_own_words() {
        let id = exported("acme/7").unwrap();
        let fixture = Fixture::of(entry(1), &id, None).unwrap();
        let text = serde_json::to_value(&fixture).unwrap();
        assert_eq!(
            (&text["expect"], &text["settings"]["max-vcpus"]),
            (&json!({"verdict": {"allow": []}}), &json!("2"))
        );
        assert!(text.get("scope").is_none() && fixture.note.starts_with("decision acme/7, plugin limits sha256:00"));
        assert_eq!(serde_json::from_value::<Fixture>(text).unwrap(), fixture);
        let own = Fixture::of(entry(2), &id, Some("own")).unwrap();
        assert_eq!(own.scope, PolicyScope::Tenant("acme".parse().unwrap()));
    }

    #[test]
    fn which_of_several_plugins_is_meant_must_be_said() {
        let id = exported("tenants/acme/decisions/7").unwrap();
        assert_eq!(id, exported("acme/7").unwrap());
        let failure = Fixture::of(entry(2), &id, None).unwrap_err();
        assert!(failure.exit == Exit::Usage && failure.hint.unwrap().contains("limits, own"));
        assert_eq!(Fixture::of(entry(1), &id, Some("own")).unwrap_err().exit, Exit::NotFound);
        assert!(exported("7").is_err() && exported("acme/x").is_err());
    }

    #[test]
    fn a_key_that_nobody_knows_is_refused() {
        let read = |value: Value| serde_json::from_value::<Fixture>(value);
        assert!(read(json!({"hook": "admit", "question": {}})).is_ok());
        assert!(read(json!({"hook": "admit", "question": {}, "expects": {}})).is_err());
    }
}
