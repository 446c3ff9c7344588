//! A plugin is replaced while it decides, and beside a tenant whose plugins do what they should not. Needs no guest.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::client::wait;
use crate::support::storm::{Manner, Neighbour, Versions};
use crate::support::wait::{SOON, until};
use crate::support::{Caller, Host};
use ostler::api::v1;
use tokio::task::JoinSet;

/// Clients that ask at once.
const CLIENTS: usize = 4;
const SWAPS: usize = 100;
/// To each of the neighbour's plugins: enough to open its breaker.
const QUESTIONS: usize = 10;
/// Decisions from one swap to the next, at least.
const BETWEEN: usize = 5;

#[test]
fn decisions_go_on_while_a_plugin_is_swapped_and_each_is_one_versions_as_a_whole() {
    all_decide_as_one(|_| {}, Versions::swap);
}

#[test]
fn decisions_go_on_while_the_alias_moves_that_a_plugin_follows() {
    const PLUGIN: &str = "operator/plugins/admission";
    let named = |operator: &Caller| {
        let bound = operator.plugins("operator").unwrap().remove(0);
        operator.alias(PLUGIN, "first", &bound.previous[0].digest).unwrap();
        operator.alias(PLUGIN, "second", &bound.digest).unwrap();
        operator.alias(PLUGIN, "live", "second").unwrap();
        operator.follow(PLUGIN, "live").unwrap();
    };
    all_decide_as_one(named, |_, operator, count| {
        operator.alias(PLUGIN, "live", ["first", "second"][count % 2]).unwrap();
    });
}

/// Swaps two versions, once they are `prepared`, below clients that ask all the while.
fn all_decide_as_one(prepared: impl Fn(&Caller), swap: fn(&Versions, &Caller, usize)) {
    let host = Host::start();
    let (operator, globex) = (host.operator(), host.tenant("globex"));
    let versions = Arc::new(Versions::load(&operator));
    prepared(&operator);
    let neighbour = Neighbour::start(globex, Manner::Hostile, QUESTIONS, Duration::from_millis(1));
    let (is_over, decided) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..CLIENTS).map(|_| host.tenant("acme")).collect();
    let made = wait(async {
        let mut clients = JoinSet::new();
        for caller in callers {
            let (versions, is_over, decided) = (Arc::clone(&versions), Arc::clone(&is_over), Arc::clone(&decided));
            clients.spawn(async move {
                let mut made = [0; 2];
                while !is_over.load(Ordering::Relaxed) {
                    // Who sees a mixture ends the swaps, too: what it saw is then what fails.
                    let version =
                        versions.decide(&caller).await.inspect_err(|_| is_over.store(true, Ordering::Relaxed))?;
                    made[version] += 1;
                    decided.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, String>(made)
            });
        }
        let has_ended = Arc::clone(&is_over);
        let swaps = move || {
            for count in 0..SWAPS {
                let is_due = || decided.load(Ordering::Relaxed) >= BETWEEN * count || has_ended.load(Ordering::Relaxed);
                until("decisions between swaps", SOON, || is_due().then_some(()));
                swap(&versions, &operator, count);
            }
        };
        tokio::task::spawn_blocking(swaps).await.unwrap();
        is_over.store(true, Ordering::Relaxed);
        clients.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()
    });
    let made = made.unwrap().into_iter().fold([0, 0], |[a, b], [c, d]| [a + c, b + d]);
    let came = neighbour.stop();
    println!("{made:?} decisions, {came:?} beside them");
    assert!(made.iter().all(|made| *made >= SWAPS), "{made:?} decisions are too few to tell");
    // On record, too, each is one version's: its content with its settings.
    let acme = host.tenant("acme");
    let mut versions = BTreeSet::new();
    for record in acme.decisions(v1::ListDecisionsRequest::default()).unwrap() {
        let link = &record.links[0];
        versions.insert((link.digest.clone(), link.settings["max-vcpus"].clone()));
    }
    assert_eq!(versions.len(), 2, "{versions:?}");
    // Which limit ends a loop hangs on the machine.
    for codes in [&["policy.budget", "policy.deadline"][..], &["policy.trap"], &["policy.breaker-open"]] {
        assert!(codes.iter().any(|code| came.contains_key(*code)), "{codes:?}: {came:?}");
    }
    assert!(!came.contains_key("allowed"), "{came:?}");
}
