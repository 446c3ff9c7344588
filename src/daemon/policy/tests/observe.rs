//! Plugins that are told what has happened: the plugin `tally`, and one that traps.

use super::*;
use crate::model::{
    Grant, Happening, KvChange, KvValue, ObserveRequest, ObserveVerdict, ObservedEvent, PolicyFault, Said, VmEnd,
};

/// Events from this one on.
fn batch(first: u64, happenings: &[Happening]) -> ObserveRequest {
    let events = (first..).zip(happenings.iter().cloned());
    let events = events.map(|(sequence, what)| ObservedEvent { sequence, moment_s: 5, what });
    ObserveRequest { tenant: "blue".parse().unwrap(), missed: 2, events: events.collect() }
}

fn life() -> [Happening; 3] {
    let vm = || "web".parse().unwrap();
    [
        Happening::VmRegistered(vm()),
        Happening::VmStarted(vm()),
        Happening::VmStopped { vm: vm(), end: VmEnd::TripleFault },
    ]
}

async fn tally(host: &PolicyHost) -> LoadedPlugin {
    host.load_granted(&PolicyScope::Operator, component("tally"), BTreeMap::new(), [Grant::Kv].into()).await.unwrap()
}

#[tokio::test]
async fn an_observer_hears_all_kinds_and_what_it_writes_is_of_its_tenant() {
    let host = host();
    let tally = tally(&host).await;
    assert!(tally.observes() && tally.hooks_to_keep().next().is_none());
    let (vm, device) = ("web".parse().unwrap(), "eth0".parse().unwrap());
    let attached = Happening::DeviceAttached { vm, device };
    let (vm, device) = ("web".parse().unwrap(), "eth0".parse().unwrap());
    let detached = Happening::DeviceDetached { vm, device };
    let (hook, subject, code) = ("admit".to_owned(), "vms/db".to_owned(), "core.taken".to_owned());
    let overruled = Happening::DecisionOverruled { decision: 7, hook, subject, code };
    let destroyed = Happening::VmDestroyed("web".parse().unwrap());
    let all = [&life()[..], &[attached, detached, overruled, destroyed]].concat();
    let telling = host.observe(bound("tally", &tally), batch(9, &all)).await;
    assert_eq!(telling.fault, None);
    let [KvChange { place, wrote, .. }] = &telling.changes[..] else { panic!("{telling:?}") };
    assert_eq!((place.plugin.as_str(), place.tenant.as_str()), ("tally", "blue"));
    let kinds = ["attached", "destroyed", "detached", "failed", "overruled", "registered", "started", "stopped"];
    let one = |kind: &&str| ((*kind).to_owned(), Some(KvValue::from("1")));
    let mut expected: BTreeMap<_, _> = kinds.iter().map(one).collect();
    expected.insert("missed".into(), Some("2".into()));
    assert_eq!(*wrote, expected);
    let entry = &telling.entry;
    assert_eq!((entry.hook.as_str(), entry.subject.as_str(), entry.is_allowed()), ("observe", "events/9-15", true));
    assert_eq!(entry.outcome.to_value(), serde_json::json!({"heard": 7}));
    // Asked again it is the same for the same fuel.
    let scope = PolicyScope::Operator;
    let mut replayer = Replayer::new(host.clone(), tally.clone(), "tally".into(), scope, None);
    assert_eq!(replayer.again(entry).unwrap().change, Change::Same);
    // Nobody has a say by it.
    assert_eq!(code_of(&host, &tally).await, "policy.no-opinion");
}

async fn code_of(host: &PolicyHost, plugin: &LoadedPlugin) -> String {
    code(&host.admit(chain([plugin]), request()).await.dry_run()).to_owned()
}

#[tokio::test]
async fn one_that_fails_has_its_fault_on_record_keeps_nothing_and_is_left_alone_in_the_end() {
    let host = host();
    let (trap, tally) = (hostile(&host, "observe-trap").await.unwrap(), tally(&host).await);
    let mut codes = Vec::new();
    for _ in 0..6 {
        let telling = host.observe(bound("trap", &trap), batch(0, &life())).await;
        assert!(telling.changes.is_empty() && !telling.entry.is_allowed(), "{telling:?}");
        codes.push(telling.fault.unwrap().code());
    }
    assert_eq!(codes, [&["policy.trap"; 5][..], &["policy.breaker-open"]].concat());
    let breakers = host.breakers(&PolicyScope::Operator, "trap", &trap, PluginMode::Enforced);
    assert!(matches!(&breakers[..], [("observe", _, BreakerState::Open(_))]), "{breakers:?}");
    // Others are told meanwhile.
    let telling = host.observe(bound("tally", &tally), batch(0, &life())).await;
    let said = Said::Verdict(record::json(&ObserveVerdict::Heard));
    assert_eq!((telling.fault, &telling.entry.answers[0].said), (None, &said));
    // One that is not there is not told, and has not failed.
    let gone = LoadedPlugin::broken("gone", tally.digest(), "gone");
    let telling = host.observe(bound("gone", &gone), batch(0, &life())).await;
    assert!(matches!(telling.fault, Some(PolicyFault::Unavailable(_))), "{telling:?}");
}
