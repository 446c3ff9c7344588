//! What plugins remember goes to disk with decisions, and goes with plugins.

use std::path::Path;

use super::*;
use crate::daemon::store::{PluginRecord, Store};
use crate::model::{
    Enforcement, EnforcementEntry, Grant, JournalEntry, KvWrites, PluginDigest, PluginMode, PolicyScope,
};

fn place(plugin: &str, tenant: &str) -> KvPlace {
    KvPlace { scope: PolicyScope::Operator, plugin: plugin.into(), tenant: tenant.parse().unwrap() }
}

fn plugin(name: &str) -> PluginRecord {
    PluginRecord {
        scope: PolicyScope::Operator,
        name: name.parse().unwrap(),
        digest: PluginDigest([7; 32]),
        settings: BTreeMap::new(),
        signatures: vec![],
        grants: [Grant::Kv].into(),
        mode: PluginMode::Enforced,
        weight: Default::default(),
        loaded: std::time::UNIX_EPOCH,
        previous: vec![],
        canary: None,
        aliases: Default::default(),
    }
}

fn writes(entries: &[(&str, Option<&str>)]) -> KvWrites {
    entries.iter().map(|(key, value)| ((*key).into(), value.map(KvValue::from))).collect()
}

async fn decide(store: &Store, place: &KvPlace, entries: &[(&str, Option<&str>)]) {
    // Any record will do.
    let enforcement = Enforcement::Enforced("vm".into());
    let entry = JournalEntry::Enforcement(EnforcementEntry { decision: 0, enforcement });
    let change = KvChange { place: place.clone(), moment_s: 5, wrote: writes(entries) };
    store.append_with(place.tenant.clone(), entry, vec![change], ()).await.unwrap();
}

fn open(path: &Path) -> Store {
    Store::open(path).unwrap().0
}

#[tokio::test]
async fn what_a_decision_wrote_is_there_after_a_restart_and_nobody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = open(&path);
    let (acme, globex, other) = (place("rate", "acme"), place("rate", "globex"), place("rate-2", "acme"));
    for name in ["rate", "rate-2"] {
        store.put_plugin(plugin(name)).await.unwrap();
    }
    decide(&store, &acme, &[("a", Some("1")), ("b", Some("2"))]).await;
    decide(&store, &acme, &[("a", None), ("c", Some("3"))]).await;
    decide(&store, &globex, &[("a", Some("other"))]).await;
    let kept: BTreeMap<_, _> = [("b".to_owned(), KvValue::from("2")), ("c".to_owned(), "3".into())].into();
    assert_eq!((&store.kv(&acme).entries, store.kv(&acme).moment_s), (&kept, 5));
    assert_eq!(store.kv(&other).entries.len(), 0);
    assert_eq!(store.check().unwrap(), []);
    store.close().await;

    let store = open(&path);
    assert_eq!(store.kv(&acme).entries, kept);
    assert_eq!(store.kv(&globex).entries["a"], "other".into());
    // Cleared for one tenant; then gone with the plugin, whose name is the beginning of another's.
    decide(&store, &other, &[("x", Some("1"))]).await;
    store.clear_kv_for(acme.clone(), None).await.unwrap();
    assert_eq!((store.kv(&acme).entries.len(), store.kv(&globex).entries.len()), (0, 1));
    store.remove_plugin_for(plugin("rate"), None).await.unwrap();
    assert_eq!((store.kv(&globex).entries.len(), store.kv(&other).entries.len()), (0, 1));
    store.close().await;
    let store = open(&path);
    assert_eq!((store.kv(&globex).entries.len(), store.kv(&other).entries.len()), (0, 1));
}

#[tokio::test]
async fn a_plugin_that_is_gone_remembers_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store.redb"));
    let acme = place("rate", "acme");
    decide(&store, &acme, &[("a", Some("1"))]).await;
    assert_eq!(store.kv(&acme).entries.len(), 0);
    store.put_plugin(plugin("rate")).await.unwrap();
    decide(&store, &acme, &[("a", Some("1"))]).await;
    assert_eq!(store.kv(&acme).entries.len(), 1);
}

#[test]
fn a_row_is_read_as_it_was_written_and_a_wrong_one_refused() {
    let store = KvStore { moment_s: 9, entries: [("k".into(), KvValue(vec![0xff])), ("t".into(), "x".into())].into() };
    let kept = Kept { place: place("rate", "acme"), store: Arc::new(store) };
    let bytes = encode_kv(&kept);
    assert_eq!(decode_kv(&bytes).unwrap(), kept);
    let text = String::from_utf8(bytes).unwrap();
    for (from, to) in [("acme", "A/B"), ("\"format\":1", "\"format\":2"), ("\"ff\"", "\"f\"")] {
        assert!(decode_kv(text.replace(from, to).as_bytes()).is_err(), "{to}");
    }
}
