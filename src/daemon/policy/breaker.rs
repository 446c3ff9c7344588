//! Leaves a plugin alone that keeps failing. Key types: [`Breakers`], [`Breaker`], [`BreakerState`].
//!
//! ```text
//!   CLOSED ──5 failures in a row──▶ OPEN (denies at once) ──after a while──▶ HALF-OPEN ──the next answer──▶ CLOSED
//!      ▲                              ▲ twice as long, up to 5 min  └─────────── the next failure ┘
//! ```
//!
//! A breaker belongs to a plugin's version, the hook, *and the tenant that asks*: a request made to fail opens it for who
//! made it, not for others. An open one fails closed, and saves the time that the failure takes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::model::{PolicyFault, PolicyScope, TenantId};

use super::plugin::VersionKey;

/// Failures in a row that open a breaker.
const MAX_FAILURES: u32 = 5;
/// How long it stays open at first …
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// … and at most, doubled with each further failure.
const MAX_PAUSE: Duration = Duration::from_secs(300);
/// Breakers that are remembered. Only failing plugins have one; beyond, those that failed longest ago are forgotten.
const MAX_BREAKERS: usize = 4096;

/// Which breaker.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) plugin: String,
    pub(super) scope: PolicyScope,
    pub(super) version: VersionKey,
    pub(super) hook: &'static str,
    pub(super) tenant: TenantId,
}

/// Where a breaker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// It is asked.
    Closed,
    /// It is not asked, for so long yet.
    Open(Duration),
    /// The next request tries it.
    HalfOpen,
}

/// One plugin's failures in a row. Pure.
#[derive(Debug, Clone, Copy)]
struct Breaker {
    failures: u32,
    pause: Duration,
    last_failure: Instant,
}

impl Breaker {
    fn state(&self, now: Instant) -> BreakerState {
        if self.failures < MAX_FAILURES {
            return BreakerState::Closed;
        }
        match (self.last_failure + self.pause).checked_duration_since(now).filter(|left| !left.is_zero()) {
            Some(left) => BreakerState::Open(left),
            None => BreakerState::HalfOpen,
        }
    }

    /// After one more failure.
    fn failed(before: Option<Self>, now: Instant) -> Self {
        let Some(before) = before else { return Self { failures: 1, pause: FIRST_PAUSE, last_failure: now } };
        let is_again = before.failures >= MAX_FAILURES;
        let pause = if is_again { (before.pause * 2).min(MAX_PAUSE) } else { before.pause };
        Self { failures: before.failures.saturating_add(1), pause, last_failure: now }
    }
}

/// All plugins that fail.
#[derive(Debug, Default)]
pub(super) struct Breakers {
    /// Rank: leaf. Guards the table; held for one look.
    table: Mutex<HashMap<Key, Breaker>>,
}

impl Breakers {
    /// Why the plugin is not asked now, if so.
    pub(super) fn check(&self, key: &Key, now: Instant) -> Result<(), PolicyFault> {
        match self.table().get(key).map(|breaker| breaker.state(now)) {
            None | Some(BreakerState::Closed | BreakerState::HalfOpen) => Ok(()),
            Some(BreakerState::Open(left)) => Err(PolicyFault::BreakerOpen { retry_s: left.as_secs() + 1 }),
        }
    }

    /// Remembers how a call ended.
    pub(super) fn note<V>(&self, key: Key, verdict: &Result<V, PolicyFault>, now: Instant) {
        let mut table = self.table();
        match verdict {
            Ok(_) => drop(table.remove(&key)),
            Err(fault) if is_failure(fault) => {
                let before = table.get(&key).copied();
                let after = Breaker::failed(before, now);
                if after.failures == MAX_FAILURES {
                    let Key { plugin, hook, tenant, .. } = &key;
                    tracing::warn!(plugin, hook, %tenant, cause = fault.code(), "plugin keeps failing: its breaker opens");
                }
                if before.is_none() && table.len() >= MAX_BREAKERS {
                    let oldest =
                        table.iter().min_by_key(|(_, breaker)| breaker.last_failure).map(|(key, _)| key.clone());
                    oldest.map(|oldest| table.remove(&oldest));
                }
                table.insert(key, after);
            }
            // Not the plugin's fault, or its answer.
            Err(_) => {}
        }
    }

    /// Breakers of the plugin that are not closed: hook, who asked, where it is.
    pub(super) fn of(
        &self,
        scope: &PolicyScope,
        plugin: &str,
        version: VersionKey,
    ) -> Vec<(&'static str, TenantId, BreakerState)> {
        let now = Instant::now();
        let table = self.table();
        let own = table.iter().filter(|(key, _)| key.plugin == plugin && key.scope == *scope && key.version == version);
        let states = own.map(|(key, breaker)| (key.hook, key.tenant.clone(), breaker.state(now)));
        let mut states: Vec<_> = states.filter(|(.., state)| *state != BreakerState::Closed).collect();
        states.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        states
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Breaker>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the plugin itself failed, in a way that costs.
fn is_failure(fault: &PolicyFault) -> bool {
    match fault {
        PolicyFault::Trap(_)
        | PolicyFault::Deadline(_)
        | PolicyFault::Budget { .. }
        | PolicyFault::Memory { .. }
        | PolicyFault::BadAnswer(_)
        // It was asked when the host was lost: that may be its doing.
        | PolicyFault::HostLost => true,
        PolicyFault::Refused(_) | PolicyFault::Unavailable(_) | PolicyFault::BreakerOpen { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PluginDigest;

    fn version(content: u8) -> VersionKey {
        VersionKey::new(PluginDigest([content; 32]), &[("a".to_owned(), "b".to_owned())].into())
    }

    fn key(tenant: &str) -> Key {
        let (plugin, scope, version) = ("p".into(), PolicyScope::Operator, version(1));
        Key { plugin, scope, version, hook: "admit", tenant: tenant.parse().unwrap() }
    }

    fn trap() -> Result<(), PolicyFault> {
        Err(PolicyFault::Trap("x".into()))
    }

    #[test]
    fn opens_after_failures_in_a_row_and_tries_again_after_a_while() {
        let (breakers, start) = (Breakers::default(), Instant::now());
        for _ in 0..MAX_FAILURES - 1 {
            breakers.note(key("a"), &trap(), start);
        }
        breakers.note(key("a"), &Ok(()), start);
        for _ in 0..MAX_FAILURES {
            assert!(breakers.check(&key("a"), start).is_ok(), "an answer in between begins anew");
            breakers.note(key("a"), &trap(), start);
        }
        let refused = breakers.check(&key("a"), start).unwrap_err();
        assert_eq!(refused.code(), "policy.breaker-open");
        assert!(breakers.check(&key("b"), start).is_ok(), "who asks otherwise is not concerned");
        let later = start + FIRST_PAUSE;
        assert!(breakers.check(&key("a"), later).is_ok());
        // It fails again: twice as long. It answers: closed at once.
        breakers.note(key("a"), &trap(), later);
        assert!(breakers.check(&key("a"), later + FIRST_PAUSE).is_err());
        assert!(breakers.check(&key("a"), later + FIRST_PAUSE * 2).is_ok());
        breakers.note(key("a"), &Ok(()), later + FIRST_PAUSE * 2);
        assert!(breakers.table().is_empty());
    }

    #[test]
    fn pauses_are_bounded_and_so_is_the_table() {
        let (breakers, mut now) = (Breakers::default(), Instant::now());
        for _ in 0..40 {
            breakers.note(key("a"), &trap(), now);
            now += MAX_PAUSE;
        }
        assert_eq!(breakers.table()[&key("a")].pause, MAX_PAUSE);
        for at in 0..MAX_BREAKERS + 10 {
            now += Duration::from_millis(1);
            breakers.note(key(&format!("t{at}")), &trap(), now);
        }
        assert_eq!(breakers.table().len(), MAX_BREAKERS);
        assert!(breakers.table().contains_key(&key(&format!("t{}", MAX_BREAKERS + 9))));
    }

    #[test]
    fn what_is_no_failure_of_the_plugin_opens_nothing() {
        let (breakers, now) = (Breakers::default(), Instant::now());
        for fault in [PolicyFault::Refused("x".into()), PolicyFault::Unavailable("x".into())] {
            for _ in 0..20 {
                breakers.note::<()>(key("a"), &Err(fault.clone()), now);
            }
        }
        assert!(breakers.of(&PolicyScope::Operator, "p", version(1)).is_empty());
        (0..5).for_each(|_| breakers.note(key("a"), &trap(), now));
        let states = breakers.of(&PolicyScope::Operator, "p", version(1));
        assert!(matches!(states[..], [("admit", _, BreakerState::Open(_))]), "{states:?}");
        assert!(breakers.of(&PolicyScope::Operator, "p", version(2)).is_empty(), "another version begins anew");
    }
}
