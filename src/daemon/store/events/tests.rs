//! Events are there with what they speak of, a bounded number of each tenant, and positions with records.

use std::path::Path;
use std::sync::RwLock;

use proptest::prelude::*;

use super::*;
use crate::daemon::record::{VmRecord, samples};
use crate::daemon::store::PluginRecord;
use crate::model::{
    DecisionEntry, Enforcement, EnforcementEntry, JournalEntry, PluginDigest, PluginMode, PolicyScope, VmEnd, VmState,
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
        grants: [].into(),
        mode: PluginMode::Enforced,
        weight: Default::default(),
        loaded: UNIX_EPOCH,
        previous: vec![],
        canary: None,
        aliases: Default::default(),
    }
}

fn open(path: &Path) -> Store {
    Store::open(path).unwrap().0
}

fn decision(subject: &str) -> JournalEntry {
    JournalEntry::Decision(Box::new(DecisionEntry {
        hook: "admit".into(),
        subject: subject.into(),
        question: serde_json::json!({}).into(),
        chain: vec![],
        answers: vec![],
        outcome: serde_json::json!({"allow": []}).into(),
        took_ns: 1,
    }))
}

/// What `plugin` has yet to be told about the tenant: sequences, and what happened.
fn untold(store: &Store, place: &KvPlace, most: usize) -> Vec<(u64, Happening)> {
    let untold = store.untold(place, most).unwrap();
    untold.into_iter().flat_map(|untold| untold.batch.events).map(|event| (event.sequence, event.what)).collect()
}

async fn tell(store: &Store, place: &KvPlace, from: Option<u64>, to: u64) -> Result<(), StoreError> {
    let told = Told { place: place.clone(), from, to };
    store.append_told(decision("events/0"), Vec::new(), told, ()).await.map(drop)
}

#[tokio::test]
async fn a_vms_life_is_told_to_its_tenants_observers_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = open(&path);
    let mut news = store.news();
    let vm = |state| VmRecord { state, ..samples::running("acme", "web") };
    let registered = vm(VmState::Registered);
    store.insert_vm(registered.clone()).await.unwrap();
    assert!(news.has_changed().unwrap());
    news.mark_unchanged();
    let state = |state| VmRecord { state, ..registered.clone() };
    store.update_vm(state(VmState::Starting)).await.unwrap();
    assert!(!news.has_changed().unwrap(), "nothing that an observer is told");
    for next in [VmState::Running, VmState::Stopping, VmState::Stopped] {
        store.update_vm(state(next)).await.unwrap();
    }
    store.insert_vm(samples::running("globex", "web")).await.unwrap();
    store.remove_vm(state(VmState::Destroying)).await.unwrap();
    let web = || "web".parse().unwrap();
    let life = [
        Happening::VmRegistered(web()),
        Happening::VmStarted(web()),
        Happening::VmStopped { vm: web(), end: VmEnd::Off },
        Happening::VmDestroyed(web()),
    ];
    let expected: Vec<_> = (0..).zip(life).collect();
    let (acme, globex) = (place("tally", "acme"), place("tally", "globex"));
    assert_eq!(untold(&store, &acme, 64), expected);
    assert_eq!(untold(&store, &acme, 2), expected[..2]);
    assert_eq!(untold(&store, &globex, 64), [(0, Happening::VmRegistered(web()))]);
    assert_eq!(store.untold(&place("tally", "other"), 64).unwrap(), None);
    assert_eq!(store.check().unwrap(), []);
    store.close().await;
    let store = open(&path);
    assert_eq!(untold(&store, &acme, 64), expected);
    assert_eq!(store.event_spans()[&acme.tenant], EventSpan { first: 0, next: 4 });
}

#[tokio::test]
async fn changes_of_one_transaction_are_told_each() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store.redb"));
    let vm = samples::running("acme", "web");
    store.insert_vm(vm.clone()).await.unwrap();
    // Sent before the first is written: most of them share a transaction.
    let states = [VmState::Starting, VmState::Running];
    let turns = (0..20).flat_map(|_| states.clone());
    let writes: Vec<_> = turns
        .map(|state| {
            let (store, vm) = (store.clone(), VmRecord { state, ..vm.clone() });
            tokio::spawn(async move { store.update_vm(vm).await.unwrap() })
        })
        .collect();
    for write in writes {
        write.await.unwrap();
    }
    let told = untold(&store, &place("tally", "acme"), 64);
    let started = told.iter().filter(|(_, what)| matches!(what, Happening::VmStarted(_))).count();
    assert_eq!((told.len(), started), (41, 20), "{told:?}");
}

#[test]
fn a_ring_keeps_the_last_and_others_do_not_press_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::create(dir.path().join("ring.redb")).unwrap();
    let rings = RwLock::new(Rings::default());
    let (acme, globex): (TenantId, TenantId) = ("acme".parse().unwrap(), "globex".parse().unwrap());
    let event = |tenant: &TenantId| (tenant.clone(), Happening::VmStarted("web".parse().unwrap()));
    for (count, tenant) in [(3, &globex), (MAX_EVENTS, &acme), (1, &globex), (10, &acme)] {
        let happened: Vec<_> = (0..count).map(|_| event(tenant)).collect();
        let (transaction, mut changes) = (database.begin_write().unwrap(), Changes::default());
        transaction.open_table(POSITIONS).unwrap();
        changes.put(&transaction, || rings.read().unwrap(), &happened, UNIX_EPOCH).unwrap();
        transaction.commit().unwrap();
        rings.write().unwrap().take(changes);
    }
    let spans = rings.into_inner().unwrap().spans;
    let expected = [(acme, EventSpan { first: 10, next: MAX_EVENTS + 10 }), (globex, EventSpan { first: 0, next: 4 })];
    assert_eq!(spans, expected.into());
    assert_eq!(Rings::read(&database).unwrap().spans, spans, "as the file has it");
}

#[tokio::test]
async fn who_comes_too_late_is_told_how_much_and_who_is_new_has_missed_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store.redb"));
    store.put_plugin(plugin("tally")).await.unwrap();
    let (old, new) = (place("tally", "acme"), place("new", "acme"));
    for at in 0..4 {
        store.insert_vm(samples::running("acme", &format!("vm-{at}"))).await.unwrap();
    }
    tell(&store, &old, None, 1).await.unwrap();
    let transaction = store.shared.database().unwrap().begin_write().unwrap();
    transaction.open_table(EVENTS).unwrap().retain(|(_, sequence), _| sequence > 2).unwrap();
    transaction.commit().unwrap();
    let missed = |place| store.untold(place, 64).unwrap().map(|untold| (untold.batch.missed, untold.batch.span()));
    assert_eq!((missed(&old), missed(&new)), (Some((2, Some((3, 3)))), Some((0, Some((3, 3))))));
}

#[tokio::test]
async fn a_position_moves_with_its_record_only_follows_the_last_and_goes_with_its_plugin() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = open(&path);
    let (tally, other, gone) = (place("tally", "acme"), place("tally-2", "acme"), place("gone", "acme"));
    for name in ["tally", "tally-2"] {
        store.put_plugin(plugin(name)).await.unwrap();
    }
    for at in 0..3 {
        store.insert_vm(samples::running("acme", &format!("vm-{at}"))).await.unwrap();
    }
    tell(&store, &tally, None, 2).await.unwrap();
    tell(&store, &other, None, 1).await.unwrap();
    // Of an answer that comes twice the second is refused, and so is its record.
    assert!(matches!(tell(&store, &tally, None, 2).await, Err(StoreError::Stale(_))));
    assert!(matches!(tell(&store, &tally, Some(1), 2).await, Err(StoreError::Stale(_))));
    assert_eq!(untold(&store, &tally, 64).len(), 1);
    // Of a plugin that is not there nothing is kept.
    tell(&store, &gone, None, 2).await.unwrap();
    assert_eq!(store.position(&gone), None);
    store.close().await;
    let store = open(&path);
    assert_eq!((store.position(&tally), store.position(&other)), (Some(2), Some(1)));
    store.remove_plugin_for(plugin("tally"), None).await.unwrap();
    assert_eq!((store.position(&tally), store.position(&other)), (None, Some(1)));
    store.close().await;
    let store = open(&path);
    assert_eq!((store.position(&tally), store.position(&other)), (None, Some(1)));
    let ends = store.chains().unwrap().verify(&tally.tenant).unwrap().unwrap().unwrap();
    assert_eq!(ends.sequence, 2, "three records, none of what was refused");
}

#[tokio::test]
async fn what_the_core_did_not_do_is_told_with_what_it_is_about() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store.redb"));
    let acme: TenantId = "acme".parse().unwrap();
    let enforcement = |decision, enforcement| JournalEntry::Enforcement(EnforcementEntry { decision, enforcement });
    let overruled = Enforcement::Overruled { code: "core.taken".into(), message: "m".into() };
    store.append(acme.clone(), decision("vms/web")).await.unwrap();
    store.append(acme.clone(), enforcement(0, overruled.clone())).await.unwrap();
    store.append(acme.clone(), enforcement(0, Enforcement::Enforced("id".into()))).await.unwrap();
    store.append(acme.clone(), enforcement(77, overruled)).await.unwrap();
    let (decision, hook, subject, code) = (0, "admit".to_owned(), "vms/web".to_owned(), "core.taken".to_owned());
    let expected = [(0, Happening::DecisionOverruled { decision, hook, subject, code })];
    assert_eq!(untold(&store, &place("tally", "acme"), 64), expected);
}

#[test]
fn rows_round_trip_and_of_another_daemon_are_refused() {
    let what = Happening::VmStopped { vm: "web".parse().unwrap(), end: VmEnd::TripleFault };
    let event = decode_event(7, &encode_event(9, &what)).unwrap();
    assert_eq!(event, ObservedEvent { sequence: 7, moment_s: 9, what });
    let at = KvPlace { scope: PolicyScope::Tenant("acme".parse().unwrap()), ..place("own", "acme") };
    assert_eq!(decode_position(&encode_position(&at, 12)), Ok((at, 12)));
    assert!(decode_event(0, br#"{"format":2,"moment_s":1,"what":{"vm_started":"web"}}"#).is_err());
    assert!(decode_event(0, br#"{"format":1,"moment_s":1,"what":{"vm_cloned":"web"}}"#).is_err());
    assert!(decode_position(b"{}").is_err());
}

proptest! {
    #[test]
    fn foreign_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = (decode_event(0, &bytes), decode_position(&bytes));
    }
}
