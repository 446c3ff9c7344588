//! What another version of a plugin would have said: recorded decisions, asked again. Key types: [`Replay`],
//! [`ReplayEvent`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::access::require_own;
use super::aliases::kept;
use super::{Node, Principal, ServiceError, Whose};
use crate::daemon::policy::{Change, LoadedPlugin, Replayed, Replayer};
use crate::daemon::store::{PluginVersion, Store, StoreError};
use crate::model::{
    DecisionEntry, DecisionId, Grant, JournalEntry, JournalRecord, PluginDigest, PluginId, PolicyScope, TenantId,
    VersionName,
};

type Settings = BTreeMap<String, String>;

/// Differences that are told one by one; further ones are only counted.
const MAX_TOLD: u64 = 1000;
/// Events that wait for the client to read.
const QUEUE_LEN: usize = 64;
/// Lines that are read from one moment's store.
const PIECE_LINES: usize = 1024;

/// What is to be asked again.
#[derive(Debug)]
pub struct Replay {
    /// The binding whose place the plugin takes.
    pub scope: PolicyScope,
    /// Its name.
    pub name: PluginId,
    /// What is asked.
    pub asked: Asked,
    /// Settings for all decisions; `None`: those of the version that is named, else those that each was made with.
    pub settings: Option<Settings>,
    /// Only decisions of this hook.
    pub hook: Option<String>,
    /// Only decisions that are not older, in nanoseconds since 1970.
    pub since_ns: u64,
    /// At most so many, oldest first.
    pub limit: u64,
}

/// Which plugin is asked again.
#[derive(Debug)]
pub enum Asked {
    /// What is bound, and its canary about what that decided.
    Bound,
    /// Another version of what is bound.
    Version(VersionName),
    /// A component that the client sends.
    Component(Vec<u8>),
}

/// What a replay tells.
#[derive(Debug)]
pub enum ReplayEvent {
    /// An answer that is not the recorded one.
    Difference {
        /// Of which decision.
        id: DecisionId,
        /// What was decided.
        entry: Box<DecisionEntry>,
        /// The answers.
        replayed: Box<Replayed>,
    },
    /// The end.
    Summary(ReplaySummary),
    /// It cannot go on.
    Failed(ServiceError),
}

/// How many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplaySummary {
    /// Content that was asked.
    pub digest: PluginDigest,
    /// By comparison.
    pub counts: BTreeMap<Change, u64>,
    /// Looked at, and nothing to ask: another hook, the binding not in the chain, or not asked.
    pub skipped: u64,
    /// All of it.
    pub took: Duration,
}

impl Node {
    /// Asks a plugin again what its place in the chain was asked before. One replay at a time on a node; it ends when
    /// nobody reads any more.
    pub async fn replay(
        &self,
        principal: &Principal,
        replay: Replay,
    ) -> Result<mpsc::Receiver<ReplayEvent>, ServiceError> {
        // It reads, but it has plugins run, one's own among them.
        if !principal.may_change() {
            return Err(ServiceError::RoleDenied);
        }
        let whose = match &replay.scope {
            PolicyScope::Operator if matches!(principal, Principal::Operator(_)) => Whose::All,
            PolicyScope::Operator => {
                return Err(ServiceError::NotAllowed { needs: "an operator replays the operator's plugins" });
            }
            PolicyScope::Tenant(tenant) => {
                require_own(principal, tenant)?;
                Whose::Tenant(tenant.clone())
            }
        };
        // What may wait for others' loads is done before others wait for this.
        let (plugin, canary, settings) = self.replayed_plugin(&replay).await?;
        let Ok(turn) = self.replays.clone().try_acquire_owned() else { return Err(ServiceError::ReplayUnderWay) };
        let tenant = whose.resolve(principal)?;
        let name = replay.name.to_string();
        let replayer = Replayer::new(self.policy.clone(), plugin, name, replay.scope.clone(), settings).beside(canary);
        let (events, receiver) = mpsc::channel(QUEUE_LEN);
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let mut run = Run { replay, replayer, events, summary: BTreeMap::new(), skipped: 0, told: 0 };
            let started = Instant::now();
            let end = match run.all(&store, tenant) {
                Ok(()) => ReplayEvent::Summary(ReplaySummary {
                    digest: run.replayer.digest(),
                    counts: run.summary,
                    skipped: run.skipped,
                    took: started.elapsed(),
                }),
                Err(error) => ReplayEvent::Failed(error.into()),
            };
            // Nobody reads any more: fine.
            let _ = run.events.blocking_send(end);
        });
        Ok(receiver)
    }

    /// With the canary of what is bound, if that is asked, and with the settings for all decisions, if they have some.
    async fn replayed_plugin(
        &self,
        replay: &Replay,
    ) -> Result<(LoadedPlugin, Option<LoadedPlugin>, Option<Settings>), ServiceError> {
        let settings = replay.settings.clone();
        match &replay.asked {
            Asked::Component(component) => {
                let (owner, component) = (&replay.scope, component.clone());
                let loaded = match &settings {
                    Some(settings) => {
                        self.policy.load_granted(owner, component, settings.clone(), Grant::ALL.into()).await
                    }
                    None => self.policy.load_without_settings(owner, component).await,
                };
                let refused = |source| ServiceError::Plugin { scope: replay.scope.clone(), source };
                Ok((loaded.map_err(refused)?, None, settings))
            }
            Asked::Version(version) => {
                let view = self.plugins.view(&replay.scope, &replay.name)?;
                let version = kept(&view.record, version)?;
                let settings = settings.unwrap_or_else(|| version.settings.clone());
                let version = PluginVersion { settings: settings.clone(), ..version };
                Ok((self.plugins.ready(&replay.scope, &version).await?, None, Some(settings)))
            }
            Asked::Bound => {
                let view = self.plugins.view(&replay.scope, &replay.name)?;
                Ok((view.plugin, view.canary.map(|canary| canary.plugin), settings))
            }
        }
    }
}

/// A replay under way, on a thread of its own.
struct Run {
    replay: Replay,
    replayer: Replayer,
    events: mpsc::Sender<ReplayEvent>,
    summary: BTreeMap<Change, u64>,
    skipped: u64,
    told: u64,
}

impl Run {
    fn all(&mut self, store: &Store, tenant: Option<TenantId>) -> Result<(), StoreError> {
        let tenants = tenant.map_or_else(|| store.chains()?.tenants(), |tenant| Ok(vec![tenant]))?;
        for tenant in tenants {
            let mut next = 0;
            // In pieces, so that no old pages of the file are held while plugins run.
            loop {
                let mut piece = Vec::with_capacity(PIECE_LINES);
                store.chains()?.lines(&tenant, next, |sequence, line| {
                    next = sequence + 1;
                    piece.push(line.to_vec());
                    piece.len() < PIECE_LINES
                })?;
                if piece.is_empty() {
                    break;
                }
                for line in piece {
                    if self.events.is_closed() || self.summary.values().sum::<u64>() >= self.replay.limit {
                        return Ok(());
                    }
                    self.one(store, &line)?;
                }
            }
        }
        Ok(())
    }

    fn one(&mut self, store: &Store, line: &[u8]) -> Result<(), StoreError> {
        let Ok((_, record)) = JournalRecord::from_line(line) else { return Ok(()) };
        let JournalRecord { tenant, sequence, time_ns, entry: JournalEntry::Decision(entry), .. } = record else {
            return Ok(());
        };
        let is_wanted =
            time_ns >= self.replay.since_ns && self.replay.hook.as_ref().is_none_or(|hook| *hook == entry.hook);
        let id = DecisionId { tenant, sequence };
        let mut replayed = is_wanted.then(|| self.replayer.again(&entry)).flatten();
        if is_wanted && replayed.is_none() {
            // It may have stood beside the chain.
            let shadows = store.chains()?.decision(&id)?.map(|decision| decision.shadows).unwrap_or_default();
            replayed = self.replayer.again_as_shadow(&entry, &shadows);
        }
        let Some(replayed) = replayed else {
            self.skipped += 1;
            return Ok(());
        };
        *self.summary.entry(replayed.change).or_default() += 1;
        if replayed.change != Change::Same && self.told < MAX_TOLD {
            self.told += 1;
            // Nobody reads any more: seen at the next record.
            let _ = self.events.blocking_send(ReplayEvent::Difference { id, entry, replayed: Box::new(replayed) });
        }
        Ok(())
    }
}
