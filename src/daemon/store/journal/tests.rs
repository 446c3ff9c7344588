//! Chains on disk: appended, trimmed, found again after a crash, altered.

use std::path::Path;

use proptest::prelude::*;
use redb::{Database, ReadableDatabase};

use super::*;
use crate::daemon::store::Store;
use crate::model::{ChainVerifier, FaultKind, Json, Said};

fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

fn decision(subject: &str, is_allowed: bool) -> JournalEntry {
    let outcome = if is_allowed {
        serde_json::json!({"allow": []})
    } else {
        serde_json::json!({"deny": {"code": "c", "message": "m", "plugin": null}})
    };
    JournalEntry::Decision(Box::new(crate::model::DecisionEntry {
        hook: "admit".into(),
        subject: subject.into(),
        question: serde_json::json!({"vm": subject}).into(),
        chain: vec![],
        answers: vec![crate::model::Answer {
            said: Said::Verdict(serde_json::json!("abstain").into()),
            fuel: 7,
            took_ns: 1,
            kv: None,
            inventory: None,
            backtrace: Vec::new(),
        }],
        outcome: outcome.into(),
        took_ns: 1,
    }))
}

fn enforced(decision: u64) -> JournalEntry {
    let enforcement = crate::model::Enforcement::Enforced("vm".into());
    JournalEntry::Enforcement(crate::model::EnforcementEntry { decision, enforcement })
}

/// A shadow's answer to a decision.
fn shadow(decision: u64, instead: Option<serde_json::Value>) -> JournalEntry {
    let link = crate::model::ChainLink {
        plugin: "next".into(),
        scope: crate::model::PolicyScope::Operator,
        digest: crate::model::PluginDigest([5; 32]),
        settings: std::collections::BTreeMap::new(),
        weight: Default::default(),
    };
    let answer = crate::model::Answer {
        said: Said::Verdict(serde_json::json!("abstain").into()),
        fuel: 9,
        took_ns: 1,
        kv: None,
        inventory: None,
        backtrace: Vec::new(),
    };
    let shadows = vec![crate::model::ShadowAnswer { link, answer, instead: instead.map(Json::from) }];
    JournalEntry::Shadow(crate::model::ShadowEntry { decision, shadows })
}

fn keep(records: u64) -> Retention {
    Retention { records, ..Retention::default() }
}

fn open(path: &Path, retention: Retention) -> Store {
    Store::open_keeping(path, retention).unwrap().0
}

async fn verified(store: &Store, name: &str) -> Result<u64, FaultKind> {
    let result = store.chains().unwrap().verify(&tenant(name)).unwrap();
    result.map(|end| end.map_or(0, |end| end.records)).map_err(|fault| fault.kind)
}

/// Changes the file behind the store's back.
fn edit(path: &Path, f: impl FnOnce(&mut redb::Table<'_, (&'static str, u64), &'static [u8]>)) {
    let database = Database::create(path).unwrap();
    let transaction = database.begin_write().unwrap();
    f(&mut transaction.open_table(DECISIONS).unwrap());
    transaction.commit().unwrap();
}

#[tokio::test]
async fn each_tenant_has_a_chain_that_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    for round in 0..3u64 {
        let store = open(&path, Retention::default());
        let first = store.append(tenant("acme"), decision("vms/web", true)).await.unwrap();
        assert_eq!(first.sequence, round * 2, "others' records do not count");
        store.append(tenant("globex"), decision("vms/db", false)).await.unwrap();
        store.append_later(tenant("acme"), enforced(first.sequence)).await;
        store.close().await;
    }
    let store = open(&path, Retention::default());
    assert_eq!((verified(&store, "acme").await, verified(&store, "globex").await), (Ok(6), Ok(3)));
    assert_eq!(verified(&store, "nobody").await, Ok(0));
    let chains = store.chains().unwrap();
    let found = chains.decision(&DecisionId { tenant: tenant("acme"), sequence: 2 }).unwrap().unwrap();
    assert_eq!(found.enforcement, Some(crate::model::Enforcement::Enforced("vm".into())));
    for sequence in [3, 99] {
        assert!(chains.decision(&DecisionId { tenant: tenant("acme"), sequence }).unwrap().is_none(), "{sequence}");
    }
}

#[tokio::test]
async fn a_page_of_large_records_is_short_and_the_next_goes_on_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store.redb"), Retention::default());
    let large = "x".repeat(400 << 10);
    for at in 0..7 {
        store.append(tenant("acme"), decision(&format!("vms/{at}-{large}"), true)).await.unwrap();
    }
    let chains = store.chains().unwrap();
    let (mut query, mut seen) = (DecisionQuery { limit: 100, ..Default::default() }, Vec::new());
    loop {
        let page = chains.page(&query).unwrap();
        seen.push(page.decisions.iter().map(|found| found.id.sequence).collect::<Vec<_>>());
        match page.next_ns {
            Some(next) => query.before_ns = Some(next),
            None => break,
        }
    }
    // Question and subject have it, each.
    assert_eq!(seen, [vec![6, 5], vec![4, 3], vec![2, 1], vec![0]]);
}

#[tokio::test]
async fn pages_are_newest_first_and_filter() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store.redb"), Retention::default());
    for at in 0..10u64 {
        let (name, subject) = if at % 2 == 0 { ("acme", "vms/web") } else { ("globex", "vms/web-2/nics/eth0") };
        store.append(tenant(name), decision(subject, at < 6)).await.unwrap();
    }
    let chains = store.chains().unwrap();
    let pages = |query: DecisionQuery| {
        let (mut seen, mut query) = (Vec::new(), query);
        loop {
            let page = chains.page(&query).unwrap();
            assert!(page.decisions.len() <= query.limit);
            seen.extend(page.decisions.into_iter().map(|found| found.id.to_string()));
            match page.next_ns {
                Some(next) => query.before_ns = Some(next),
                None => return seen,
            }
        }
    };
    let all = pages(DecisionQuery { limit: 3, ..Default::default() });
    let expected: Vec<_> = (0..10).rev().map(|at| format!("{}/{}", ["acme", "globex"][at % 2], at / 2)).collect();
    assert_eq!(all, expected);
    let acme = DecisionQuery { tenant: Some(tenant("acme")), limit: 2, ..Default::default() };
    assert_eq!(pages(acme.clone()), ["acme/4", "acme/3", "acme/2", "acme/1", "acme/0"]);
    assert_eq!(pages(DecisionQuery { is_allowed: Some(false), ..acme.clone() }), ["acme/4", "acme/3"]);
    let since_ns = chains.decision(&DecisionId { tenant: tenant("acme"), sequence: 3 }).unwrap().map(|d| d.time_ns);
    assert_eq!(pages(DecisionQuery { since_ns, ..acme.clone() }), ["acme/4", "acme/3"]);
    assert!(pages(DecisionQuery { hook: Some("select-vf".into()), ..acme }).is_empty());
    let about = |subject: &str| pages(DecisionQuery { subject: Some(subject.into()), limit: 9, ..Default::default() });
    assert_eq!(about("vms/web-2").len(), 5);
    assert_eq!(about("vms/web").len(), 5, "vms/web-2 is not below vms/web");
    assert_eq!(about("vms/we").len(), 0);
}

#[tokio::test]
async fn what_shadows_said_is_found_with_its_decision_and_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = open(&path, keep(16));
    let differs = serde_json::json!({"deny": {"code": "c", "message": "m", "plugin": "next"}});
    let first = store.append(tenant("acme"), decision("vms/a", true)).await.unwrap();
    let second = store.append(tenant("acme"), decision("vms/b", true)).await.unwrap();
    store.append_later(tenant("acme"), shadow(second.sequence, None)).await;
    store.append_later(tenant("acme"), shadow(first.sequence, Some(differs.clone()))).await;
    store.append(tenant("acme"), decision("vms/c", true)).await.unwrap();
    store.close().await;
    let store = open(&path, keep(16));
    let found = store.chains().unwrap().decision(&first).unwrap().unwrap();
    assert_eq!((found.shadows.len(), &found.shadows[0].instead), (1, &Some(differs.into())));
    assert!(found.has_differing_shadow() && found.enforcement.is_none());
    let query = DecisionQuery { has_differing_shadow: true, limit: 9, ..Default::default() };
    let page = store.chains().unwrap().page(&query).unwrap();
    assert_eq!(page.decisions.into_iter().map(|found| found.id).collect::<Vec<_>>(), [first]);
    for at in 0..40 {
        store.append(tenant("acme"), decision(&format!("vms/v{at}"), true)).await.unwrap();
    }
    assert!(verified(&store, "acme").await.is_ok());
    assert!(store.chains().unwrap().page(&query).unwrap().decisions.is_empty());
    store.close().await;
    let transaction = Database::create(&path).unwrap().begin_read().unwrap();
    assert_eq!(redb::ReadableTableMetadata::len(&transaction.open_table(SHADOWS).unwrap()).unwrap(), 0);
}

#[tokio::test]
async fn retention_keeps_the_newest_and_the_chain_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = open(&path, keep(32));
    store.append(tenant("quiet"), decision("vms/old", true)).await.unwrap();
    for at in 0..200 {
        store.append(tenant("acme"), decision(&format!("vms/v{at}"), true)).await.unwrap();
        let records = verified(&store, "acme").await.unwrap();
        assert!(records <= 35, "{records} records");
    }
    assert_eq!(verified(&store, "quiet").await, Ok(1), "a flood pushes out nobody else's");
    let page = store.chains().unwrap().page(&DecisionQuery { limit: 100, ..Default::default() }).unwrap();
    assert_eq!(page.decisions[0].entry.subject, "vms/v199");
    assert!(page.decisions.len() > 15, "{} decisions", page.decisions.len());
    // What was removed, and what points at it, is gone from every table.
    store.close().await;
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_read().unwrap();
    let rows = redb::ReadableTableMetadata::len(&transaction.open_table(TIMES).unwrap()).unwrap();
    assert_eq!(rows, page.decisions.len() as u64);
}

#[tokio::test]
async fn large_records_are_kept_by_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store.redb"), Retention { bytes: 4 << 20, ..Retention::default() });
    // Question and subject have it, each: somewhat more than 512 KiB.
    let large = "x".repeat(256 << 10);
    for at in 0..32 {
        store.append(tenant("acme"), decision(&format!("vms/{at}-{large}"), true)).await.unwrap();
        // Eight decisions fit, and behind each may stand the checkpoint of what went for it.
        assert!(verified(&store, "acme").await.unwrap() <= 2 * 8);
    }
    let found = store.chains().unwrap().decision(&DecisionId { tenant: tenant("acme"), sequence: 0 }).unwrap();
    assert!(found.is_none());
    assert!(verified(&store, "acme").await.unwrap() > 4);
}

#[tokio::test]
async fn what_is_too_old_goes_even_from_a_chain_that_is_idle() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = open(&path, Retention { age: Duration::ZERO, ..Retention::default() });
    for _ in 0..3 {
        store.append(tenant("acme"), decision("vms/web", true)).await.unwrap();
    }
    store.sweep_decisions().await.unwrap();
    let page = store.chains().unwrap().page(&DecisionQuery { limit: 9, ..Default::default() }).unwrap();
    assert!(page.decisions.is_empty());
    assert_eq!(verified(&store, "acme").await, Ok(1), "the checkpoint is left");
    store.append(tenant("acme"), decision("vms/web", true)).await.unwrap();
    assert!(verified(&store, "acme").await.is_ok());
}

#[tokio::test]
async fn what_is_done_to_the_file_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let begin = |entries: usize| {
        let path = path.clone();
        async move {
            let _ = std::fs::remove_file(&path);
            let store = open(&path, Retention::default());
            for _ in 0..entries {
                store.append(tenant("acme"), decision("vms/web", true)).await.unwrap();
            }
            store.append(tenant("acme"), shadow(0, None)).await.unwrap();
            store.close().await;
        }
    };
    type Edit = fn(&mut redb::Table<'_, (&'static str, u64), &'static [u8]>);
    let edits: [(Edit, FaultKind); 5] = [
        (|table| drop(table.remove(("acme", 0)).unwrap()), FaultKind::Beheaded),
        (|table| drop(table.remove(("acme", 2)).unwrap()), FaultKind::Gap),
        (|table| drop(table.remove(("acme", 5)).unwrap()), FaultKind::Truncated),
        (
            |table| {
                let line = table.get(("acme", 5)).unwrap().unwrap().value().to_owned();
                let line = String::from_utf8(line).unwrap().replace("\"instead\":null", "\"instead\":true");
                table.insert(("acme", 5), line.as_bytes()).unwrap();
            },
            FaultKind::Altered,
        ),
        (
            |table| {
                let line = table.get(("acme", 1)).unwrap().unwrap().value().to_owned();
                let line = String::from_utf8(line).unwrap().replace("vms/web", "vms/wee");
                table.insert(("acme", 1), line.as_bytes()).unwrap();
            },
            FaultKind::Altered,
        ),
    ];
    for (change, expected) in edits {
        begin(5).await;
        edit(&path, change);
        assert_eq!(verified(&open(&path, Retention::default()), "acme").await, Err(expected));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn whatever_is_appended_and_trimmed_verifies_and_exports(
        records in 1u64..24, entries in proptest::collection::vec((0u8..3, 0u8..4), 1..80),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let store = open(&dir.path().join("store.redb"), keep(records));
            for (who, what) in entries {
                let name = ["a", "b", "c"][usize::from(who)];
                let entry = match what {
                    0 => enforced(0),
                    3 => shadow(0, None),
                    _ => decision("vms/x", what == 1),
                };
                store.append(tenant(name), entry).await.unwrap();
            }
            let chains = store.chains().unwrap();
            let mut verifier = ChainVerifier::default();
            for name in chains.tenants().unwrap() {
                assert!(chains.verify(&name).unwrap().is_ok());
                chains.lines(&name, 0, |_, line| { verifier.line(line).unwrap(); true }).unwrap();
            }
            verifier.finish().unwrap();
        });
    }
}
