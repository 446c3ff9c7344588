//! A question that one plugin is asked apart from decisions: by its author, or once more by a replay. Key types:
//! [`Rehearsal`], [`NotAsked`].
//!
//! The sandbox, the limits and the checks are those of decisions. Nothing follows from the answer, and no breaker counts it.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::model::{
    DecisionEntry, Grant, InventoryView, KvStore, KvView, PluginMode, PluginWeight, PolicyFault, PolicyScope,
};
use crate::wire::policy::{Note, Spoken};

use super::hook::{self, AtHook, Question};
use super::plugin::{Bound, Compiled, LoadedPlugin, Settings};
use super::prepare::HOOKS;
use super::view::{self, Trail, View};
use super::{PolicyHost, executor, notes, record};

/// What came of a question to one plugin.
#[derive(Debug, Clone)]
pub struct Rehearsal {
    /// The decision as it would be recorded if the plugin stood alone in its chain.
    pub decision: DecisionEntry,
    /// Lines that the plugin left for the log.
    pub notes: Vec<Note>,
    /// Further lines that were not kept.
    pub dropped: u64,
}

/// Why a plugin was not asked. Each text is for the question's author.
#[derive(Debug, thiserror::Error)]
pub enum NotAsked {
    /// There is no such hook.
    #[error("there is no hook {0:?}; the hooks are {hooks}", hooks = HOOKS.map(|(hook, _)| hook).join(", "))]
    UnknownHook(String),
    /// It is no question of its hook.
    #[error("this is no question of the hook {hook}: {reason}; one that was recorded shows its form")]
    NoQuestion {
        /// The hook.
        hook: String,
        /// The first thing that is wrong.
        reason: String,
    },
    /// The plugin lacks the hook.
    #[error("the plugin does not serve the hook {hook}; it serves {served}")]
    NotServed {
        /// The hook.
        hook: String,
        /// Those that it has.
        served: String,
    },
}

impl PolicyHost {
    /// Asks `plugin` alone, as if bound in `scope` under its own name, with this in its store and as its tenant's inventory
    /// (`None`: nothing). Blocks for as long as the plugin takes, which the limits bound.
    pub fn rehearse(
        &self,
        plugin: &LoadedPlugin,
        scope: &PolicyScope,
        hook: &str,
        question: &Value,
        kv: Option<&KvView>,
        inventory: Option<&InventoryView>,
    ) -> Result<Rehearsal, NotAsked> {
        let asked = hook::at_hook(hook, Rehearse { host: self, plugin, scope, question, view: View { kv, inventory } });
        asked.ok_or_else(|| NotAsked::UnknownHook(hook.to_owned()))?
    }
}

struct Rehearse<'a> {
    host: &'a PolicyHost,
    plugin: &'a LoadedPlugin,
    scope: &'a PolicyScope,
    question: &'a Value,
    view: View<'a>,
}

impl AtHook for Rehearse<'_> {
    type Out = Result<Rehearsal, NotAsked>;

    fn at<Q: Question>(self) -> Self::Out {
        let Self { host, plugin, scope, question, view } = self;
        let hook = Q::HOOK.to_owned();
        let (compiled, settings) = match plugin.code() {
            Ok(code) if plugin.serves(Q::HOOK) => code,
            _ => return Err(NotAsked::NotServed { hook, served: plugin.hooks().join(", ") }),
        };
        let question =
            Q::deserialize(question).map_err(|error| NotAsked::NoQuestion { hook, reason: error.to_string() })?;
        let (empty, none) = (KvStore::default().view(0), InventoryView::default());
        let wants = |grant| plugin.wants().contains(&grant);
        let kv = wants(Grant::Kv).then(|| view.kv.unwrap_or(&empty));
        let inventory = wants(Grant::Inventory).then(|| view.inventory.unwrap_or(&none));
        let view = View { kv, inventory };
        let heard = hear(host, (compiled, settings, scope), view, &question);
        let Heard { verdict, fuel, took, trail, notes, dropped } = heard;
        let (name, plugin) = (plugin.name().to_owned(), plugin.clone());
        let (mode, weight) = (PluginMode::Enforced, PluginWeight::default());
        let bound = Bound { name, scope: scope.clone(), plugin, mode, weight };
        let opinions = [executor::opinion(&bound, verdict, fuel, took)];
        let outcome = question.combine(&opinions);
        let asked = (&question, record::json(&question));
        Ok(Rehearsal { decision: record::entry(asked, &[bound], &opinions, &[trail], &outcome, took), notes, dropped })
    }
}

/// A plugin's answer, checked, with what it cost and left behind.
pub(super) struct Heard<V> {
    pub verdict: Result<V, PolicyFault>,
    pub fuel: u64,
    pub took: Duration,
    pub trail: Trail,
    pub notes: Vec<Note>,
    pub dropped: u64,
}

/// Asks a plugin, which is bound so, beside decisions; `view`: what it may see.
pub(super) fn hear<Q: Question>(
    host: &PolicyHost,
    (compiled, settings, scope): (&Compiled, &Settings, &PolicyScope),
    view: View<'_>,
    question: &Q,
) -> Heard<Q::Verdict> {
    let started = Instant::now();
    let spoken = host.0.keeper.in_background(|session| session.rehearse(compiled, settings, view, question));
    let took = started.elapsed();
    match spoken {
        Ok(Spoken { said, fuel, notes, dropped, kv, inventory, backtrace }) => {
            let (notes, dropped) = notes::bounded(notes, dropped);
            let said = hook::checked(question, said, scope);
            let (verdict, trail) = view::heard(view, said, (kv, inventory, backtrace));
            Heard { verdict, fuel, took, trail, notes, dropped }
        }
        Err(fault) => {
            Heard { verdict: Err(fault), fuel: 0, took, trail: Trail::default(), notes: Vec::new(), dropped: 0 }
        }
    }
}
