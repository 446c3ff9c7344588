//! Plugins that observe: told what happened to their tenants' VMs and to nobody else's, each event once as far as they
//! remember, across restarts; and what they do wrong is nobody's business. Needs no guest.

use std::collections::BTreeMap;
use std::process::Output;

use crate::support::assets::plugin;
use crate::support::guest::{disk, nic};
use crate::support::tally::{load_tally, observer, tallied, until_tallied};
use crate::support::wait::{SOON, until};
use crate::support::{Caller, Host, small};
use ostler::api::v1;
use ostler::api::v1::attach_device_request::Device;
use ostler::api::v1::list_decisions_request::Outcome;

const TALLY: &str = "operator/plugins/tally";
const OWN: &str = "tenants/acme/plugins/tally";

fn counts(entries: &[(&str, u64)]) -> BTreeMap<String, u64> {
    entries.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect()
}

/// What observers were told, newest first.
fn told(caller: &Caller, outcome: Outcome) -> Vec<v1::DecisionRecord> {
    let request = v1::ListDecisionsRequest { hook: "observe".into(), outcome: outcome.into(), ..Default::default() };
    caller.decisions(request).unwrap()
}

fn ostler(host: &Host, identity: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = host.command(identity).args(arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
}

#[test]
fn each_event_counts_once_across_restarts_and_only_ones_own() {
    let mut host = Host::start();
    // What happened before it was there is told, too: as much as is kept.
    host.tenant("acme").register("early", small()).unwrap();
    let loaded = load_tally(&host.operator(), TALLY);
    assert_eq!((loaded.hooks, loaded.observers), (vec!["observe".to_owned()], vec![]));
    load_tally(&host.tenant("acme"), OWN);
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    acme.register("web", small()).unwrap();
    acme.attach("web", Device::Nic(nic("eth0"))).unwrap();
    acme.detach("web", "eth0", None, false).unwrap();
    globex.register("web", small()).unwrap();
    acme.destroy("early", false).unwrap();
    // Policy allows it, and the host has no such image.
    acme.register("none", v1::VirtualMachineSpec { disks: vec![disk("root", "none.img", false)], ..small() })
        .unwrap_err();
    let so_far = counts(&[("attached", 1), ("destroyed", 1), ("detached", 1), ("overruled", 1), ("registered", 2)]);
    until("the enforcement is written, and told", SOON, || {
        (until_tallied(&host.operator(), TALLY, "acme") == so_far).then_some(())
    });
    assert_eq!(until_tallied(&host.operator(), OWN, "acme"), so_far);
    assert_eq!(until_tallied(&host.operator(), TALLY, "globex"), counts(&[("registered", 1)]));
    // Of the operator's each tenant sees where it is with the tenant's own events.
    let shown = acme.plugins("").unwrap().into_iter().find(|plugin| plugin.name == TALLY).unwrap();
    assert_eq!(shown.observers.len(), 1, "{shown:?}");
    let own = shown.observers[0].clone();
    assert_eq!((own.tenant.as_str(), own.next_sequence, own.waiting, own.code.as_str()), ("tenants/acme", 6, 0, ""));

    host.kill_daemon();
    host.start_daemon();
    let acme = host.tenant("acme");
    assert_eq!(tallied(&host.operator(), TALLY, "acme"), so_far);
    acme.destroy("web", false).unwrap();
    let later = BTreeMap::from_iter(so_far.into_iter().chain(counts(&[("destroyed", 2)])));
    assert_eq!(until_tallied(&host.operator(), TALLY, "acme"), later);
    assert_eq!(until_tallied(&acme, OWN, "acme"), later);
    assert_eq!(host.operator().check_host().unwrap(), []);
}

#[test]
fn what_was_told_is_on_record_apart_from_decisions_and_is_told_the_same_again() {
    let host = Host::start();
    load_tally(&host.operator(), TALLY);
    let acme = host.tenant("acme");
    acme.register("web", small()).unwrap();
    assert_eq!(until_tallied(&host.operator(), TALLY, "acme"), counts(&[("registered", 1)]));
    let record = told(&acme, Outcome::Unspecified).remove(0);
    assert!(record.allowed && record.subject == "events/0" && record.links.len() == 1, "{record:?}");
    let question: serde_json::Value = serde_json::from_str(&record.question).unwrap();
    assert_eq!(question["events"][0]["what"]["vm_registered"], "web");
    assert_eq!((record.links[0].plugin.as_str(), record.links[0].verdict.as_str()), ("tally", "heard"));
    let wrote: serde_json::Value = serde_json::from_str(&record.links[0].kv_wrote).unwrap();
    assert_eq!(wrote, serde_json::json!({"registered": "1"}));
    // Nothing was decided, and nothing is to be done.
    let decisions = acme.decisions(v1::ListDecisionsRequest::default()).unwrap();
    assert!(decisions.len() == 1 && decisions[0].hook == "admit", "{decisions:?}");
    assert_eq!(record.enforcement.as_ref().unwrap().state().as_str_name(), "ENFORCED");
    assert_eq!(told(&host.tenant("globex"), Outcome::Unspecified), []);
    assert!(acme.verify("").unwrap().iter().all(|chain| chain.fault.is_empty()));

    let number = record.name.rsplit('/').next().unwrap();
    let run = |arguments: &[&str]| ostler(&host, "operator-admin", arguments);
    let (code, text) = run(&["plugin", "replay", "--name", "tally", "--operator"]);
    assert!(code == Some(0) && text.contains("0 of 1 change"), "{text}");
    let (code, text) = run(&["decision", "explain", &format!("acme/{number}")]);
    assert!(code == Some(0) && text.contains("events/0") && text.contains("tally"), "{text}");
    let (code, text) = run(&["plugin", "fixture", &format!("acme/{number}")]);
    assert!(code == Some(0) && text.contains("\"heard\""), "{text}");
    let (_, text) = run(&["plugin", "list"]);
    assert!(text.contains("observe") && text.contains("counts what happens"), "{text}");
}

#[test]
fn an_observer_that_traps_delays_no_decision_and_loses_only_what_it_fails_at() {
    let host = Host::start();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    operator.load(TALLY, &plugin("hostile/observe-trap"), &[]).unwrap();
    acme.register("one", small()).unwrap();
    until("it fails", SOON, || observer(&operator, TALLY, "acme").filter(|told| told.code == "policy.trap"));
    acme.register("two", small()).unwrap();
    let left_out = until("an event is left out", SOON, || told(&acme, Outcome::Denied).into_iter().next());
    assert_eq!((left_out.subject.as_str(), left_out.code.as_str()), ("events/0", "policy.trap"));
    assert_eq!(left_out.plugin, "tally");
    let (_, text) = ostler(&host, "operator-admin", &["plugin", "list"]);
    assert!(text.contains("BEHIND: 1 events of acme (policy.trap)"), "{text}");
    assert!(text.contains("KEEPS FAILING: observe for acme"), "{text}");
    acme.register("three", small()).unwrap();
    // Another version is told at once, and of what this one was not.
    load_tally(&operator, TALLY);
    assert_eq!(until_tallied(&operator, TALLY, "acme"), counts(&[("registered", 2)]));
    assert_eq!(observer(&operator, TALLY, "acme").unwrap().code, "", "of the other version");
}

#[test]
fn a_shadow_is_told_nothing_and_who_comes_anew_begins_anew() {
    let host = Host::start();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    load_tally(&operator, TALLY);
    acme.register("one", small()).unwrap();
    until_tallied(&operator, TALLY, "acme");
    let (code, text) = ostler(&host, "operator-admin", &["plugin", "demote", "tally"]);
    assert_eq!(code, Some(0), "nothing is denied without it: {text}");
    acme.register("two", small()).unwrap();
    assert_eq!(tallied(&operator, TALLY, "acme"), counts(&[("registered", 1)]));
    assert_eq!(observer(&operator, TALLY, "acme"), None);
    // It goes on where it was.
    assert_eq!(ostler(&host, "operator-admin", &["plugin", "promote", "tally"]).0, Some(0));
    assert_eq!(until_tallied(&operator, TALLY, "acme"), counts(&[("registered", 2)]));
    // What it knew and where it was go together, and come together.
    let (code, text) = ostler(&host, "operator-admin", &["plugin", "unload", "tally"]);
    assert_eq!(code, Some(0), "{text}");
    load_tally(&operator, TALLY);
    assert_eq!(until_tallied(&operator, TALLY, "acme"), counts(&[("registered", 2)]));
    // Forgetting moves no position.
    assert_eq!(ostler(&host, "operator-admin", &["plugin", "kv", "clear", "tally", "--about", "acme"]).0, Some(0));
    acme.register("three", small()).unwrap();
    assert_eq!(until_tallied(&operator, TALLY, "acme"), counts(&[("registered", 1)]));
}
