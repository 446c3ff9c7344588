//! Recorded decisions, asked again.

use super::*;
use crate::model::{DecisionEntry, PolicyScope};

/// Decisions about requests that differ, as they would be recorded.
async fn recorded(host: &PolicyHost, plugin: &LoadedPlugin, count: u32) -> Vec<DecisionEntry> {
    let chain = chain([plugin]);
    let mut entries = Vec::new();
    for at in 0..count {
        let request = AdmitRequest { vcpus: 1 + at % 8, memory_mib: u64::from(64 + at), ..request() };
        entries.push(host.admit(Arc::clone(&chain), request).await.entry().clone());
    }
    entries
}

fn replayer(host: &PolicyHost, plugin: &LoadedPlugin, settings: Option<BTreeMap<String, String>>) -> Replayer {
    Replayer::new(host.clone(), plugin.clone(), "p0".into(), PolicyScope::Operator, settings)
}

#[tokio::test]
async fn a_hundred_thousand_decisions_asked_again_are_identical_fuel_included() {
    let host = host();
    let plugin = admission(&host, [("max-vcpus", "4"), ("max-memory-mib", "900")]).await;
    let entries = recorded(&host, &plugin, 1000).await;
    assert!(entries.iter().any(|entry| entry.is_allowed()) && entries.iter().any(|entry| !entry.is_allowed()));
    let mut replayer = replayer(&host, &plugin, None);
    let started = Instant::now();
    let count = 100_000;
    for entry in entries.iter().cycle().take(count) {
        let replayed = replayer.again(entry).unwrap();
        assert_eq!(replayed.change, Change::Same, "{replayed:?}");
        assert_eq!((&replayed.after.said, replayed.after.fuel), (&entry.answers[0].said, entry.answers[0].fuel));
    }
    let took = started.elapsed();
    println!("{count} decisions again in {took:?}: {:.0} per second", count as f64 / took.as_secs_f64());
}

#[tokio::test]
async fn another_version_differs_exactly_where_it_decides_otherwise() {
    let host = host();
    let plugin = admission(&host, [("max-vcpus", "4")]).await;
    let entries = recorded(&host, &plugin, 80).await;
    let changes = |plugin: &LoadedPlugin, settings: Option<BTreeMap<String, String>>| {
        let mut replayer = replayer(&host, plugin, settings);
        let mut counts = BTreeMap::new();
        for entry in &entries {
            *counts.entry(replayer.again(entry).unwrap().change).or_insert(0) += 1;
        }
        counts
    };
    // Of 8 sizes, 4 are allowed by the recorded settings.
    let with = |entries| Some(settings(entries));
    assert_eq!(changes(&plugin, None), BTreeMap::from([(Change::Same, 80)]));
    let strict = changes(&plugin, with([("max-vcpus", "2")]));
    // What was denied is denied still, with another limit in its text.
    assert_eq!(strict, BTreeMap::from([(Change::NowDenies, 20), (Change::Differs, 40), (Change::Same, 20)]));
    let open = changes(&plugin, with([("max-vcpus", "64")]));
    assert_eq!(open, BTreeMap::from([(Change::NowAllows, 40), (Change::Same, 40)]));
    let trap = hostile(&host, "trap").await.unwrap();
    assert_eq!(changes(&trap, None), BTreeMap::from([(Change::NowDenies, 40), (Change::Differs, 40)]));
}

#[tokio::test]
async fn an_answer_that_was_recorded_otherwise_is_not_deterministic() {
    let host = host();
    let plugin = admission(&host, []).await;
    let mut entry = recorded(&host, &plugin, 1).await.remove(0);
    entry.answers[0].fuel += 1;
    assert_eq!(replayer(&host, &plugin, None).again(&entry).unwrap().change, Change::NotDeterministic);
}

#[tokio::test]
async fn what_says_nothing_about_the_plugin_is_left_out() {
    let host = host();
    let plugin = admission(&host, []).await;
    let entry = recorded(&host, &plugin, 1).await.remove(0);
    let mut replayer = replayer(&host, &plugin, None);
    let other = |change: fn(&mut DecisionEntry)| {
        let mut entry = entry.clone();
        change(&mut entry);
        entry
    };
    for entry in [
        other(|entry| entry.chain[0].plugin = "other".into()),
        other(|entry| entry.chain[0].scope = PolicyScope::Tenant("blue".parse().unwrap())),
        other(|entry| entry.answers.clear()),
        other(|entry| entry.hook = "select-vf".into()),
        other(|entry| entry.question = serde_json::json!({"tenant": "blue"}).into()),
        other(|entry| entry.answers[0].said = crate::model::Said::Fault(PolicyFault::Unavailable("full".into()))),
    ] {
        assert_eq!(replayer.again(&entry), None, "{entry:?}");
    }
}
