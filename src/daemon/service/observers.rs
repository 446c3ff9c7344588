//! Has observers told what happened, apart from everything else. Key types: [`Observers`], [`Trouble`].
//!
//! One task, one plugin and tenant at a time. A batch is read where the plugin's position is, told, and recorded together
//! with its new position and what the plugin wrote, in one transaction: who dies in between finds it untold, so that each
//! event is told at least once, and counts once in what is remembered.
//!
//! ```text
//!   events behind the position ─▶ told ──heard──▶ record, position, writes
//!                                   │ 5 failures: its events one by one; one that fails alone: recorded, and left out
//!                                   └──failed──▶ after a pause, the same again
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::Principal;
use super::plugins::{PluginView, Plugins};
use crate::daemon::crash::{self, Point};
use crate::daemon::policy::{Bound, PolicyHost};
use crate::daemon::store::{EventSpan, Store, StoreError, Told, Untold};
use crate::model::{
    JournalEntry, KvPlace, MAX_BATCH_EVENTS, PluginDigest, PluginMode, PolicyFault, PolicyScope, TenantId,
};

/// Failures at one batch, after which its events come one by one; at one event, after which it is left out.
const MAX_FAILURES: u32 = 5;
/// Pause after the first failure, doubled with each further one. Once its breaker is open that tells how long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Pause after what was not the plugin's doing, and was the store's.
const PAUSE: Duration = Duration::from_secs(1);
const STORE_PAUSE: Duration = Duration::from_secs(10);

/// Tells observers.
pub(super) struct Observers {
    store: Store,
    policy: PolicyHost,
    plugins: Arc<Plugins>,
    /// Rank: leaf. Guards what is not on record; held for a look.
    troubles: Mutex<HashMap<KvPlace, Trouble>>,
    /// Rank: above the tenants' turns. Held while one batch is told and recorded.
    turn: tokio::sync::Mutex<()>,
}

/// A version that is bound: its content, and when it was loaded.
type Edition = (PluginDigest, SystemTime);

/// How an observer fails at a tenant's events. Another version begins anew.
#[derive(Debug, Clone)]
struct Trouble {
    edition: Edition,
    /// In a row, at this batch.
    failures: u32,
    /// Events before this one come alone.
    alone_until: u64,
    /// Not told before, if so.
    pause_until: Option<Instant>,
    /// The last one.
    last: Option<ObserverFailure>,
}

/// A failure of an observer.
#[derive(Debug, Clone)]
pub struct ObserverFailure {
    /// What.
    pub fault: PolicyFault,
    /// When.
    pub time: SystemTime,
}

/// Where an observer is among a tenant's events.
#[derive(Debug, Clone)]
pub struct ObserverStatus {
    /// Whose events.
    pub tenant: TenantId,
    /// Sequence of the next event that it is told.
    pub next: u64,
    /// So many events are not told yet.
    pub waiting: u64,
    /// How it failed last, since it was loaded or the daemon started.
    pub failure: Option<ObserverFailure>,
}

/// What is done about a batch that was not heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// It is told again, later.
    Again,
    /// Its only event is left out.
    LeaveOut,
}

impl Trouble {
    fn none(edition: Edition) -> Self {
        Self { edition, failures: 0, alone_until: 0, pause_until: None, last: None }
    }

    /// At most so many events are told at once.
    fn most(&self, next: u64) -> usize {
        if next < self.alone_until { 1 } else { MAX_BATCH_EVENTS }
    }

    /// After a batch was heard.
    fn heard(&mut self) {
        self.failures = 0;
        self.pause_until = None;
    }

    /// After a batch, with these first and last events, was not.
    fn failed(&mut self, fault: &PolicyFault, (first, last): (u64, u64), now: Instant) -> Next {
        self.last = Some(ObserverFailure { fault: fault.clone(), time: SystemTime::now() });
        match fault {
            PolicyFault::BreakerOpen { retry_s } => {
                self.pause_until = Some(now + Duration::from_secs(*retry_s));
                return Next::Again;
            }
            PolicyFault::Unavailable(_) => {
                self.pause_until = Some(now + PAUSE);
                return Next::Again;
            }
            // One that was asked when the host was lost may have done it.
            PolicyFault::HostLost
            | PolicyFault::Trap(_)
            | PolicyFault::Deadline(_)
            | PolicyFault::Budget { .. }
            | PolicyFault::Memory { .. }
            | PolicyFault::Refused(_)
            | PolicyFault::BadAnswer(_) => {}
        }
        self.failures += 1;
        self.pause_until = Some(now + FIRST_PAUSE * 2_u32.saturating_pow(self.failures.min(MAX_FAILURES) - 1));
        if self.failures < MAX_FAILURES {
            return Next::Again;
        }
        if first == last {
            self.failures = 0;
            return Next::LeaveOut;
        }
        // Each of them has failed so often, with the others: alone it fails once more.
        self.failures = MAX_FAILURES - 1;
        self.alone_until = last + 1;
        Next::Again
    }
}

impl Observers {
    pub(super) fn new(store: Store, policy: PolicyHost, plugins: Arc<Plugins>) -> Self {
        Self { store, policy, plugins, troubles: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// Tells what there is to tell until the store is closed.
    pub(super) async fn run(self: Arc<Self>) {
        let mut news = self.store.news();
        loop {
            news.mark_unchanged();
            let again = match self.round().await {
                Ok(again) => again,
                Err(_closed) => return,
            };
            let pause = async {
                match again {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return },
                () = self.plugins.changed.notified() => {}
                () = pause => {}
            }
        }
    }

    /// While it is held, nobody is told anything.
    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Where the plugin is among the events of each tenant that `principal` may see.
    pub(super) fn status(&self, principal: &Principal, view: &PluginView) -> Vec<ObserverStatus> {
        if !is_told(view) {
            return Vec::new();
        }
        let spans = self.store.event_spans().into_iter();
        let own = spans.filter(|(tenant, _)| principal.may_see(tenant) && is_its(view, tenant));
        own.map(|(tenant, span)| {
            let place = place(view, &tenant);
            let next = self.next(&place, span);
            let trouble = self.troubles().get(&place).filter(|trouble| trouble.edition == edition(view)).cloned();
            let failure = trouble.and_then(|trouble| trouble.last);
            ObserverStatus { tenant, next, waiting: span.next.saturating_sub(next), failure }
        })
        .collect()
    }

    fn next(&self, place: &KvPlace, span: EventSpan) -> u64 {
        self.store.position(place).unwrap_or(span.first).max(span.first)
    }

    /// Tells everybody who has something to hear one batch; when to look again, if somebody has more to hear. The error is
    /// that the store is closed.
    async fn round(&self) -> Result<Option<Instant>, StoreError> {
        let table = self.plugins.table();
        let observers: Vec<_> = table.values().filter(|view| is_told(view)).collect();
        self.troubles().retain(|place, _| observers.iter().any(|view| *place == self::place(view, &place.tenant)));
        if observers.is_empty() {
            return Ok(None);
        }
        let spans = self.store.event_spans();
        let mut again: Option<Instant> = None;
        for view in observers {
            for (tenant, span) in spans.iter().filter(|(tenant, _)| is_its(view, tenant)) {
                let place = place(view, tenant);
                if self.next(&place, *span) >= span.next {
                    continue;
                }
                let trouble = self.trouble(&place, view);
                let at = match trouble.pause_until.filter(|until| *until > Instant::now()) {
                    Some(until) => until,
                    None => self.tell(view, &place, trouble).await?,
                };
                again = Some(again.map_or(at, |again| again.min(at)));
            }
        }
        Ok(again)
    }

    /// Tells one batch; when there may be more to tell.
    async fn tell(&self, view: &PluginView, place: &KvPlace, mut trouble: Trouble) -> Result<Instant, StoreError> {
        let told = self.tell_one(view, place, &mut trouble).await;
        match told {
            Ok(()) => {}
            Err(StoreError::Closed) => return Err(StoreError::Closed),
            // It was unloaded, or loaded anew, meanwhile.
            Err(StoreError::Stale(_)) => return Ok(Instant::now()),
            Err(error) => {
                tracing::error!(plugin = place.plugin, tenant = %place.tenant, error = &error as &dyn std::error::Error, "an observer is told nothing");
                trouble.pause_until = Some(Instant::now() + STORE_PAUSE);
            }
        }
        let at = trouble.pause_until;
        // Who never failed has no entry.
        if trouble.last.is_some() || at.is_some() {
            self.troubles().insert(place.clone(), trouble);
        }
        Ok(at.unwrap_or_else(Instant::now))
    }

    async fn tell_one(&self, view: &PluginView, place: &KvPlace, trouble: &mut Trouble) -> Result<(), StoreError> {
        let _turn = self.turn.lock().await;
        let (store, at) = (self.store.clone(), place.clone());
        let next = self.store.position(place).unwrap_or(0);
        let most = trouble.most(next);
        let read = tokio::task::spawn_blocking(move || store.untold(&at, most)).await;
        let untold = read.unwrap_or(Err(StoreError::Closed))?;
        let Some((Untold { from, batch }, (first, last))) =
            untold.and_then(|it| it.batch.span().map(|span| (it, span)))
        else {
            // Not to be: the ring has some.
            trouble.pause_until = Some(Instant::now() + STORE_PAUSE);
            return Ok(());
        };
        let (name, scope) = (place.plugin.clone(), place.scope.clone());
        let (mode, weight) = (view.record.mode, view.record.weight);
        let observer = Bound { name, scope, plugin: view.plugin.clone(), mode, weight };
        let telling = self.policy.observe(observer, batch).await;
        crash::reach(Point::ObserverHeard);
        match &telling.fault {
            None => trouble.heard(),
            Some(fault) => {
                if trouble.failed(fault, (first, last), Instant::now()) == Next::Again {
                    return Ok(());
                }
                let (plugin, tenant) = (&place.plugin, &place.tenant);
                tracing::warn!(plugin, %tenant, event = first, cause = fault.code(), "an observer fails at an event, which is left out");
            }
        }
        let told = Told { place: place.clone(), from, to: last + 1 };
        let entry = JournalEntry::Decision(Box::new(telling.entry));
        self.store.append_told(entry, telling.changes, told, telling.turn).await.map(drop)
    }

    /// What is known of its failures; of another version nothing.
    fn trouble(&self, place: &KvPlace, view: &PluginView) -> Trouble {
        let known = self.troubles().get(place).filter(|trouble| trouble.edition == edition(view)).cloned();
        known.unwrap_or_else(|| Trouble::none(edition(view)))
    }

    fn troubles(&self) -> std::sync::MutexGuard<'_, HashMap<KvPlace, Trouble>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it is told anything: a shadow is not, since nothing of what it remembers would be kept.
fn is_told(view: &PluginView) -> bool {
    view.record.mode == PluginMode::Enforced && view.plugin.observes()
}

/// Whether events of `tenant` are its to hear.
fn is_its(view: &PluginView, tenant: &TenantId) -> bool {
    match &view.record.scope {
        PolicyScope::Operator => true,
        PolicyScope::Tenant(own) => own == tenant,
    }
}

fn place(view: &PluginView, tenant: &TenantId) -> KvPlace {
    let (scope, plugin) = (view.record.scope.clone(), view.record.name.to_string());
    KvPlace { scope, plugin, tenant: tenant.clone() }
}

fn edition(view: &PluginView) -> Edition {
    (view.record.digest, view.record.loaded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble() -> Trouble {
        Trouble::none((PluginDigest([1; 32]), SystemTime::UNIX_EPOCH))
    }

    fn trap() -> PolicyFault {
        PolicyFault::Trap("x".into())
    }

    #[test]
    fn a_batch_that_keeps_failing_comes_one_by_one_and_only_what_fails_alone_is_left_out() {
        let (mut trouble, now) = (trouble(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..MAX_FAILURES {
            assert_eq!(trouble.most(10), MAX_BATCH_EVENTS);
            assert_eq!(trouble.failed(&trap(), (10, 19), now), Next::Again);
            pauses.push((trouble.pause_until.unwrap() - now).as_millis());
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600]);
        // The first is good, the second is not: it had its tries.
        assert_eq!(trouble.most(10), 1);
        trouble.heard();
        assert_eq!(trouble.most(11), 1);
        for _ in 1..MAX_FAILURES {
            assert_eq!(trouble.failed(&trap(), (11, 11), now), Next::Again);
        }
        assert_eq!(trouble.failed(&trap(), (11, 11), now), Next::LeaveOut);
        assert_eq!((trouble.most(19), trouble.most(20)), (1, MAX_BATCH_EVENTS));
        assert!(trouble.last.is_some(), "it is shown still");
    }

    #[test]
    fn an_event_that_fails_first_of_all_alone_fails_once_more_and_goes() {
        let (mut trouble, now) = (trouble(), Instant::now());
        (0..MAX_FAILURES).for_each(|_| assert_eq!(trouble.failed(&trap(), (3, 4), now), Next::Again));
        assert_eq!(trouble.failed(&trap(), (3, 3), now), Next::LeaveOut);
    }

    #[test]
    fn what_is_not_the_plugins_doing_costs_no_event() {
        let (mut trouble, now) = (trouble(), Instant::now());
        for _ in 0..100 {
            assert_eq!(trouble.failed(&PolicyFault::Unavailable("x".into()), (0, 0), now), Next::Again);
            assert_eq!(trouble.failed(&PolicyFault::BreakerOpen { retry_s: 7 }, (0, 0), now), Next::Again);
        }
        assert_eq!((trouble.failures, trouble.pause_until), (0, Some(now + Duration::from_secs(7))));
    }
}
