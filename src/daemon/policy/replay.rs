//! Asks a plugin again what was asked before, off the request path. Key type: [`Replayer`].
//!
//! The same sandbox and limits as for decisions, on a lane and a thread of its own: nothing waits for it. What a plugin answers
//! depends on its content, its settings, the question, what it remembers, what it sees of the tenant's inventory, and on
//! nothing else; all of it is on record, so the same content must answer the same, write the same, and for the same fuel.
//! Nothing that it writes is kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{
    Answer, ChainLink, DecisionEntry, Json, KvUse, KvWrites, PluginDigest, PolicyFault, PolicyScope, Said, ShadowAnswer,
};

use super::PolicyHost;
use super::hook::{self, AtHook, Question};
use super::plugin::{LoadedPlugin, Settings};
use super::record::json;
use super::view::{Trail, View};
use super::{notes, rehearsal};

/// Puts one plugin into the place that a binding had in recorded decisions.
pub struct Replayer {
    host: PolicyHost,
    plugin: LoadedPlugin,
    /// Asked instead about what it decided itself.
    canary: Option<LoadedPlugin>,
    name: String,
    scope: PolicyScope,
    /// For all decisions; `None`: those that each decision was made with.
    settings: Option<Settings>,
    /// The last recorded settings, so that they are not copied for each decision.
    recorded: Settings,
}

/// What came of asking again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// What was recorded.
    pub before: Answer,
    /// What is said now; it took no time that would count.
    pub after: Answer,
    /// How the two compare.
    pub change: Change,
}

/// How a new answer compares to the recorded one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Change {
    /// Equal, and what it writes too; with the same content and settings, also the fuel.
    Same,
    /// It denies or fails now.
    NowDenies,
    /// It denied or failed, and does not now.
    NowAllows,
    /// It differs in another way: patches, scores, reasons, what it writes.
    Differs,
    /// The same content and settings gave another answer, or needed other fuel. That must not be.
    NotDeterministic,
}

impl Replayer {
    /// `plugin` in the place of the binding `name` in `scope`, with `settings`, or else with those of each decision.
    pub fn new(
        host: PolicyHost,
        plugin: LoadedPlugin,
        name: String,
        scope: PolicyScope,
        settings: Option<BTreeMap<String, String>>,
    ) -> Self {
        let settings = settings.map(Arc::new);
        Self { host, plugin, canary: None, name, scope, settings, recorded: Arc::default() }
    }

    /// The same, but what `canary` decided it is asked itself.
    pub fn beside(self, canary: Option<LoadedPlugin>) -> Self {
        Self { canary, ..self }
    }

    /// Its content.
    pub fn digest(&self) -> PluginDigest {
        self.plugin.digest()
    }

    /// Asks again. `None` if the decision says nothing about it: the binding was not asked, this plugin lacks the hook, it
    /// would read what is not on record, or the clock or the host had the last word, then or now. Takes as long as the
    /// plugin does: of processor time, at most about the limits' deadline.
    pub fn again(&mut self, entry: &DecisionEntry) -> Option<Replayed> {
        let place = entry.chain.iter().position(|link| self.is_it(link))?;
        self.repeat(entry, entry.chain.get(place)?, entry.answers.get(place)?)
    }

    /// The same of a decision at which the binding was among the `shadows`.
    pub fn again_as_shadow(&mut self, entry: &DecisionEntry, shadows: &[ShadowAnswer]) -> Option<Replayed> {
        let ShadowAnswer { link, answer, .. } = shadows.iter().find(|shadow| self.is_it(&shadow.link))?;
        self.repeat(entry, link, answer)
    }

    fn is_it(&self, link: &ChainLink) -> bool {
        link.plugin == self.name && link.scope == self.scope
    }

    /// Asks in the place of `link`, which said `before`.
    fn repeat(&mut self, entry: &DecisionEntry, link: &ChainLink, before: &Answer) -> Option<Replayed> {
        let is_its = |canary: &&LoadedPlugin| canary.digest() == link.digest && self.digest() != link.digest;
        let plugin = self.canary.as_ref().filter(is_its).unwrap_or(&self.plugin);
        if !plugin.serves(&entry.hook) || is_of_the_moment(&before.said) {
            return None;
        }
        if self.settings.is_none() && *self.recorded != link.settings {
            self.recorded = Arc::new(link.settings.clone());
        }
        let settings = self.settings.as_ref().unwrap_or(&self.recorded);
        let of_record = View { kv: before.kv.as_ref().map(|kv| &kv.read), inventory: before.inventory.as_ref() };
        if !of_record.is_enough(plugin.wants()) {
            return None;
        }
        let view = of_record.only(plugin.wants());
        // `None` also if this host does not know the hook, or not this form of its question.
        let question = &entry.question;
        let after = hook::at_hook(&entry.hook, Again { replayer: self, plugin, question, settings, view })??;
        if is_of_the_moment(&after.said) {
            return None;
        }
        let is_same_plugin = link.digest == plugin.digest() && **settings == link.settings;
        let change = compare(before, &after, is_same_plugin);
        Some(Replayed { before: before.clone(), after, change })
    }
}

/// A recorded question, to be asked again.
struct Again<'a> {
    replayer: &'a Replayer,
    plugin: &'a LoadedPlugin,
    question: &'a Json,
    settings: &'a Settings,
    view: View<'a>,
}

impl AtHook for Again<'_> {
    type Out = Option<Answer>;

    fn at<Q: Question>(self) -> Self::Out {
        let Replayer { host, name, scope, .. } = self.replayer;
        let question = self.question.read::<Q>().ok()?;
        let (compiled, _) = self.plugin.code().ok()?;
        let heard = rehearsal::hear(host, (compiled, self.settings, scope), self.view, &question);
        notes::write(name, heard.notes, heard.dropped);
        let said = heard.verdict.map_or_else(Said::Fault, |verdict| Said::Verdict(json(&verdict)));
        let Trail { kv, inventory, backtrace } = heard.trail;
        Some(Answer { said, fuel: heard.fuel, took_ns: 0, kv, inventory, backtrace })
    }
}

/// Whether an answer hung on the moment, not on the question.
fn is_of_the_moment(said: &Said) -> bool {
    let Said::Fault(fault) = said else { return false };
    fault.is_nodes() || matches!(fault, PolicyFault::Deadline(_) | PolicyFault::BreakerOpen { .. })
}

fn compare(before: &Answer, after: &Answer, is_same_plugin: bool) -> Change {
    let is_equal = before.said == after.said && wrote(before) == wrote(after);
    if is_same_plugin {
        let has_seen_the_same = before.kv == after.kv && before.inventory == after.inventory;
        let is_identical = is_equal && before.fuel == after.fuel && has_seen_the_same;
        return if is_identical { Change::Same } else { Change::NotDeterministic };
    }
    match (is_equal, is_denial(&before.said), is_denial(&after.said)) {
        (true, ..) => Change::Same,
        (false, false, true) => Change::NowDenies,
        (false, true, false) => Change::NowAllows,
        (false, ..) => Change::Differs,
    }
}

/// What it wrote, if anything.
fn wrote(answer: &Answer) -> Option<&KvWrites> {
    answer.kv.as_ref().map(|KvUse { wrote, .. }| wrote).filter(|wrote| !wrote.is_empty())
}

fn is_denial(said: &Said) -> bool {
    match said {
        Said::Verdict(verdict) => verdict.is_variant("deny"),
        Said::Fault(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::InventoryView;
    use serde_json::json;

    #[test]
    fn compares_what_is_said_and_written_and_for_the_same_plugin_what_it_cost() {
        let (allow, deny) = (json!({"allow": []}), json!({"deny": {"code": "c", "message": "m"}}));
        let kv = |wrote: &str| Some(KvUse { wrote: [("k".into(), Some(wrote.into()))].into(), ..KvUse::default() });
        let answer = |said: &serde_json::Value, fuel| Answer {
            said: Said::Verdict(said.clone().into()),
            fuel,
            took_ns: 1,
            kv: None,
            inventory: None,
            backtrace: Vec::new(),
        };
        let before = answer(&allow, 10);
        assert_eq!(compare(&before, &answer(&allow, 11), false), Change::Same);
        assert_eq!(compare(&before, &answer(&allow, 10), true), Change::Same);
        assert_eq!(compare(&before, &answer(&allow, 11), true), Change::NotDeterministic);
        assert_eq!(compare(&before, &answer(&deny, 10), true), Change::NotDeterministic);
        assert_eq!(compare(&before, &answer(&deny, 10), false), Change::NowDenies);
        let fault = Answer { said: Said::Fault(PolicyFault::Budget { fuel: 1 }), ..answer(&allow, 1) };
        assert_eq!(compare(&before, &fault, false), Change::NowDenies);
        assert_eq!(compare(&answer(&deny, 10), &answer(&json!("abstain"), 10), false), Change::NowAllows);
        assert_eq!(compare(&before, &answer(&json!({"allow": [{"cap_vcpus": 1}]}), 10), false), Change::Differs);
        let (one, two) = (Answer { kv: kv("1"), ..before.clone() }, Answer { kv: kv("2"), ..before.clone() });
        assert_eq!(
            (compare(&one, &two, false), compare(&one, &two, true)),
            (Change::Differs, Change::NotDeterministic)
        );
        assert_eq!((compare(&one, &before, false), compare(&one, &one, true)), (Change::Differs, Change::Same));
        let saw =
            |rest| Answer { inventory: Some(InventoryView { rest, ..InventoryView::default() }), ..before.clone() };
        assert_eq!(
            (compare(&saw(1), &saw(2), false), compare(&saw(1), &saw(2), true)),
            (Change::Same, Change::NotDeterministic)
        );
    }
}
