//! Plugins that remember: the plugin `rate`, and hostile ones.

use std::collections::BTreeSet;

use super::*;
use crate::model::{
    DecisionEntry, DecisionId, Grant, KvChange, KvPlace, KvStore, KvUse, KvValue, KvWrites, Said, ShadowAnswer,
};

/// A shelf that takes over what is recorded, as the store does.
#[derive(Debug, Default)]
struct Table(Mutex<HashMap<KvPlace, Arc<KvStore>>>);

impl KvShelf for Table {
    fn read(&self, place: &KvPlace) -> Arc<KvStore> {
        self.0.lock().unwrap().get(place).cloned().unwrap_or_default()
    }
}

impl Table {
    fn apply(&self, changes: &[KvChange]) {
        let mut table = self.0.lock().unwrap();
        changes.iter().for_each(|change| Arc::make_mut(table.entry(change.place.clone()).or_default()).apply(change));
    }

    fn count(&self, plugin: &str, tenant: &str) -> Option<String> {
        let (scope, plugin, tenant) = (PolicyScope::Operator, plugin.to_owned(), tenant.parse().unwrap());
        let store = self.read(&KvPlace { scope, plugin, tenant });
        store.entries.get("count").map(|value| String::from_utf8(value.0.clone()).unwrap())
    }
}

struct Bench {
    table: Arc<Table>,
    host: PolicyHost,
    open: LoadedPlugin,
    rate: LoadedPlugin,
}

impl Bench {
    /// With a rate of so many in a window that does not end meanwhile.
    async fn new(max_requests: &str) -> Self {
        let table = Arc::<Table>::default();
        let shelf = Some(Arc::clone(&table) as Arc<dyn KvShelf>);
        let host = PolicyHost::start(PolicyConfig { shelf, ..config() }).unwrap();
        let open = admission(&host, []).await;
        let rate = rate(&host, max_requests).await;
        Self { table, host, open, rate }
    }

    fn chain(&self) -> Arc<[Bound]> {
        [bound("open", &self.open), bound("rate", &self.rate)].into()
    }

    /// Decides and records.
    async fn decide(&self, chain: Arc<[Bound]>, request: AdmitRequest) -> (String, DecisionEntry, Vec<ShadowAnswer>) {
        let unrecorded = self.host.admit(chain, request).await;
        let entry = unrecorded.entry().clone();
        let table = Arc::clone(&self.table);
        let write = |tenant, _, Remembered { changes, turn }| async move {
            // Others come between, if anything lets them.
            tokio::task::yield_now().await;
            table.apply(&changes);
            drop(turn);
            Ok::<_, ()>(DecisionId { tenant, sequence: 0 })
        };
        let (_, decision, shadows) = unrecorded.record(write).await.unwrap();
        let said = match shadows {
            Some(shadows) => shadows.ask().await,
            None => Vec::new(),
        };
        (code(&decision).to_owned(), entry, said)
    }
}

async fn rate(host: &PolicyHost, max_requests: &str) -> LoadedPlugin {
    let settings = settings([("max-requests", max_requests), ("window-s", "31536000")]);
    host.load_granted(&PolicyScope::Operator, component("rate"), settings, [Grant::Kv].into()).await.unwrap()
}

async fn granted(host: &PolicyHost, name: &str) -> Result<LoadedPlugin, LoadError> {
    host.load_granted(
        &PolicyScope::Operator,
        component(&format!("hostile/{name}")),
        BTreeMap::new(),
        [Grant::Kv].into(),
    )
    .await
}

fn of(tenant: &str) -> AdmitRequest {
    AdmitRequest { tenant: tenant.parse().unwrap(), ..request() }
}

fn kv(entry: &DecisionEntry, at: usize) -> &KvUse {
    entry.answers[at].kv.as_ref().unwrap()
}

#[tokio::test]
async fn what_is_not_granted_is_refused_and_nothing_is_remembered_outside_of_decisions() {
    let host = host();
    let refused = host.load(component("rate"), BTreeMap::new()).await.unwrap_err();
    assert!(matches!(refused, LoadError::NotGranted(Grant::Kv)), "{refused}");
    assert!(refused.to_string().contains("--grant kv"), "{refused}");
    let early = granted(&host, "kv-early").await.unwrap_err();
    assert!(matches!(early, LoadError::Faulted { fault: PolicyFault::Trap(_), .. }), "{early}");
    // Who imports nothing of it needs no grant, wants none, and has nothing of it on record.
    let open = host
        .load_granted(&PolicyScope::Operator, component("admission"), BTreeMap::new(), BTreeSet::new())
        .await
        .unwrap();
    assert!(open.wants().is_empty());
    let entry = host.admit(chain([&open]), request()).await.entry().clone();
    assert_eq!(entry.answers[0].kv, None);
}

#[tokio::test]
async fn it_counts_from_decision_to_decision_and_refusals_count() {
    let bench = Bench::new("2").await;
    let mut codes = Vec::new();
    for at in 1..=4 {
        let (code, entry, _) = bench.decide(bench.chain(), request()).await;
        codes.push(code);
        let kv = kv(&entry, 1);
        assert_eq!(kv.wrote["count"], Some(at.to_string().as_str().into()), "{kv:?}");
        let before = (at > 1).then(|| KvValue::from((at - 1).to_string().as_str()));
        assert_eq!((&kv.read.known["count"], kv.read.known.len()), (&before, 2), "{kv:?}");
    }
    assert_eq!(codes, ["allowed", "allowed", "rate.requests", "rate.requests"]);
    // Whoever else denies, an answer that counted counts; who was not asked does not.
    let strict = admission(&bench.host, [("max-vcpus", "1")]).await;
    let chain: Arc<[_]> = [bound("rate", &bench.rate), bound("strict", &strict)].into();
    bench.decide(Arc::clone(&chain), of("red")).await;
    assert_eq!(bench.table.count("rate", "red").as_deref(), Some("1"));
    let chain: Arc<[_]> = [bound("strict", &strict), bound("z", &bench.rate)].into();
    bench.decide(chain, of("red")).await;
    assert_eq!(bench.table.count("z", "red"), None);
}

#[tokio::test]
async fn tenants_and_plugins_remember_apart_from_each_other() {
    let bench = Bench::new("100").await;
    let chain: Arc<[_]> = [bound("open", &bench.open), bound("rate", &bench.rate), bound("second", &bench.rate)].into();
    for _ in 0..3 {
        bench.decide(Arc::clone(&chain), of("red")).await;
    }
    bench.decide(bench.chain(), of("green")).await;
    let own = PolicyScope::Tenant("red".parse().unwrap());
    let mine = Bound { scope: own.clone(), ..bound("rate", &bench.rate) };
    bench.decide([bound("open", &bench.open), mine].into(), of("red")).await;
    let counts = [("rate", "red"), ("second", "red"), ("rate", "green"), ("second", "green")];
    let counts = counts.map(|(plugin, tenant)| bench.table.count(plugin, tenant));
    assert_eq!(counts, [Some("3".into()), Some("3".into()), Some("1".into()), None]);
    let mine = bench.table.read(&KvPlace { scope: own, plugin: "rate".into(), tenant: "red".parse().unwrap() });
    assert_eq!(mine.entries["count"], "1".into());
}

#[tokio::test]
async fn what_is_tried_fails_or_is_a_shadow_keeps_nothing() {
    let bench = Bench::new("100").await;
    let dry = bench.host.admit(bench.chain(), request()).await;
    assert_eq!(kv(dry.entry(), 1).wrote["count"], Some("1".into()));
    drop(dry.dry_run());
    assert_eq!(bench.table.count("rate", "blue"), None);

    for (name, expected) in [("kv-trap", "policy.trap"), ("kv-flood", "policy.trap"), ("kv-forge", "policy.bad-answer")]
    {
        let hostile = granted(&bench.host, name).await.unwrap();
        let chain: Arc<[_]> = [bound("rate", &bench.rate), bound(name, &hostile)].into();
        let (code, entry, _) = bench.decide(chain, of("red")).await;
        assert_eq!(code, expected, "{name}");
        let kv = kv(&entry, 1);
        assert_eq!((kv.wrote.len(), &kv.read.known["count"]), (0, &None), "{name}: what it hung on is on record");
        assert_eq!(bench.table.count(name, "red"), None, "{name}");
    }
    // The one before it answered, and is not made to forget by another's failure.
    assert_eq!(bench.table.count("rate", "red").as_deref(), Some("3"));

    let shadow = Bound { mode: PluginMode::Shadow, ..bound("shadow", &bench.rate) };
    let chain: Arc<[_]> = [bound("open", &bench.open), shadow].into();
    for _ in 0..2 {
        let (_, _, said) = bench.decide(Arc::clone(&chain), request()).await;
        let kv = said[0].answer.kv.as_ref().unwrap();
        assert_eq!((&kv.read.known["count"], &kv.wrote["count"]), (&None, &Some("1".into())), "{kv:?}");
    }
    assert_eq!(bench.table.count("shadow", "blue"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_decisions_at_once_none_is_forgotten() {
    let bench = Arc::new(Bench::new("1000").await);
    let all: Vec<_> = (0..60)
        .map(|at| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move {
                let request = of(if at % 3 == 0 { "red" } else { "blue" });
                let (_, entry, _) = bench.decide(bench.chain(), request).await;
                kv(&entry, 1).wrote["count"].clone().unwrap()
            })
        })
        .collect();
    let mut seen = BTreeSet::new();
    for one in all {
        seen.insert(one.await.unwrap());
    }
    let counts = ["blue", "red"].map(|tenant| bench.table.count("rate", tenant));
    assert_eq!(counts, [Some("40".into()), Some("20".into())]);
    assert_eq!(seen.len(), 40, "each number was given once, per tenant: {seen:?}");
}

#[tokio::test]
async fn what_was_remembered_is_answered_from_the_record_bit_by_bit() {
    let bench = Bench::new("300").await;
    let mut entries = Vec::new();
    for at in 0..500 {
        // Denials of others come between.
        let request = AdmitRequest { vcpus: 1 + at % 5, ..request() };
        entries.push(bench.decide(bench.chain(), request).await.1);
    }
    let trap = granted(&bench.host, "kv-trap").await.unwrap();
    entries.push(bench.decide([bound("rate", &trap)].into(), request()).await.1);
    let replayer = |plugin: &LoadedPlugin| {
        Replayer::new(bench.host.clone(), plugin.clone(), "rate".into(), PolicyScope::Operator, None)
    };
    let mut same = replayer(&bench.rate);
    for entry in &entries[..500] {
        let replayed = same.again(entry).unwrap();
        assert_eq!(replayed.change, Change::Same, "{replayed:?}");
        let (before, after) = (&replayed.before, &replayed.after);
        assert_eq!((&after.said, after.fuel, &after.kv), (&before.said, before.fuel, &before.kv));
    }
    assert_eq!(replayer(&trap).again(&entries[500]).unwrap().change, Change::Same);
    // Nothing of that was kept.
    assert_eq!(bench.table.count("rate", "blue").as_deref(), Some("500"));

    // Another memory, or other writes, are seen.
    let change = |change: fn(&mut KvUse)| {
        let mut entry = entries[7].clone();
        change(entry.answers[1].kv.as_mut().unwrap());
        entry
    };
    let altered = [
        change(|kv| kv.read.known = [("count".into(), Some("9".into()))].into()),
        change(|kv| kv.wrote = KvWrites::new()),
        change(|kv| kv.read.moment_s += 31_536_000),
    ];
    for entry in altered {
        let replayed = same.again(&entry);
        assert!(replayed.is_none_or(|replayed| replayed.change == Change::NotDeterministic), "{entry:?}");
    }
    // What a version would look at that is not on record is not made up.
    let mut entry = entries[7].clone();
    let kv = entry.answers[1].kv.as_mut().unwrap();
    kv.read.known.clear();
    kv.read.rest = Some(crate::model::KvRest { keys: 2, bytes: 20 });
    assert_eq!(same.again(&entry), None);
    entry.answers[1].kv = None;
    assert_eq!(same.again(&entry), None);
    assert!(matches!(entry.answers[1].said, Said::Verdict(_)));
}

#[tokio::test]
async fn a_version_that_allows_fewer_differs_where_it_would() {
    let bench = Bench::new("10").await;
    let mut entries = Vec::new();
    for _ in 0..12 {
        entries.push(bench.decide(bench.chain(), request()).await.1);
    }
    let other = rate(&bench.host, "5").await;
    let settings = Some(other.settings().clone());
    let mut replayer = Replayer::new(bench.host.clone(), other, "rate".into(), PolicyScope::Operator, settings);
    let mut counts = BTreeMap::new();
    entries.iter().for_each(|entry| *counts.entry(replayer.again(entry).unwrap().change).or_insert(0) += 1);
    // Each decision is asked again with what was remembered then: 6 to 10 are denied now, 11 and 12 in other words.
    assert_eq!(counts, BTreeMap::from([(Change::Same, 5), (Change::NowDenies, 5), (Change::Differs, 2)]));
}
