//! Names of a plugin's versions: what keeps them, what is bound by them, and who may give them. Needs no guest.

use std::collections::BTreeMap;
use std::process::Output;

use crate::support::assets::{plugin, rebuilt};
use crate::support::client::wait;
use crate::support::{Caller, Host, facts, small};
use ostler::api::v1;
use ostler::api::v1::load_plugin_request::Header;
use ostler::api::v1::plugin::Mode;
use tonic::{Code, Status};

const ADMISSION: &str = "operator/plugins/admission";
const OWN: &str = "tenants/acme/plugins/own";

fn sized(vcpus: u32) -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec { vcpus, ..small() }
}

/// A header that sets the admission plugin's limit.
fn limit(name: &str, max_vcpus: u32, alias: &str) -> Header {
    let settings = [("max-vcpus".to_owned(), max_vcpus.to_string())].into();
    Header { name: name.to_owned(), settings, alias: alias.to_owned(), ..Default::default() }
}

fn listed(caller: &Caller, name: &str) -> v1::Plugin {
    caller.plugins("").unwrap().into_iter().find(|plugin| plugin.name == name).unwrap()
}

/// The version that has a name.
fn named(plugin: &v1::Plugin, alias: &str) -> v1::PluginVersion {
    let found = plugin.aliases.iter().find(|found| found.name == alias);
    found.unwrap_or_else(|| panic!("{alias}: {:?}", plugin.aliases)).version.clone().unwrap()
}

/// Limit of a version.
fn limit_of(settings: &BTreeMap<String, String>) -> &str {
    settings.get("max-vcpus").map(String::as_str).unwrap_or_default()
}

/// Code and reason of an error.
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let facts = facts(&answer.unwrap_err());
    (facts.code, facts.reason)
}

fn remove(caller: &Caller, name: &str, alias: &str) -> Result<v1::Plugin, Status> {
    let request = v1::DeletePluginAliasRequest { name: name.into(), alias: alias.into(), ..Default::default() };
    wait(caller.plugins.clone().delete_plugin_alias(request)).map(tonic::Response::into_inner)
}

/// Digest and limit that the newest decision about `vm` was made with.
fn decided_by(caller: &Caller, vm: &str) -> (String, String) {
    let request = v1::ListDecisionsRequest { subject: format!("vms/{vm}"), ..Default::default() };
    let link = caller.decisions(request).unwrap()[0].links[0].clone();
    (link.digest, limit_of(&link.settings).to_owned())
}

#[test]
fn a_version_is_kept_under_a_name_and_bound_when_the_alias_that_is_followed_is_moved_to_it() {
    let mut host = Host::without_policy();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    let first = operator.load_as(limit(ADMISSION, 1, ""), &plugin("admission")).unwrap();
    let kept = operator.load_as(limit(ADMISSION, 2, "next"), &rebuilt("admission")).unwrap();
    assert_eq!((&kept.digest, kept.previous.len(), &*kept.follows), (&first.digest, 0, ""));
    assert_ne!(kept.etag, first.etag);
    let next = named(&kept, "next");
    assert_eq!((limit_of(&next.settings), next.digest != first.digest), ("2", true));
    assert_eq!(facts(&acme.register("big", sized(2)).unwrap_err()).metadata["code"], "limit.vcpus");
    assert_eq!(decided_by(&acme, "big"), (first.digest.clone(), "1".into()));

    // Naming what is bound, and following that, changes no decision; moving the name does, from the next one on.
    operator.alias(ADMISSION, "stable", "").unwrap();
    let followed = operator.follow(ADMISSION, "stable").unwrap();
    assert_eq!((&followed.digest, &*followed.follows), (&first.digest, "stable"));
    let moved = operator.alias(ADMISSION, "stable", "next").unwrap();
    assert_eq!((&moved.digest, limit_of(&moved.settings), &*moved.follows), (&next.digest, "2", "stable"));
    assert_eq!(moved.previous[0].digest, first.digest);
    acme.register("big", sized(2)).unwrap();
    assert_eq!(decided_by(&acme, "big"), (next.digest.clone(), "2".into()));

    host.kill_daemon();
    host.start_daemon();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    let found = listed(&operator, ADMISSION);
    assert_eq!((&found.aliases, &found.follows, &found.etag), (&moved.aliases, &moved.follows, &moved.etag));
    acme.register("again", sized(2)).unwrap();
    // The alias that is followed goes with what is bound otherwise: back, and to something new.
    let back = operator.roll_back(ADMISSION, "").unwrap();
    assert_eq!((&back.digest, &named(&back, "stable").digest), (&first.digest, &first.digest));
    assert_eq!(named(&back, "next").digest, next.digest);
    let loaded = operator.load_as(limit(ADMISSION, 3, ""), &plugin("admission")).unwrap();
    assert_eq!((limit_of(&named(&loaded, "stable").settings), &*loaded.follows), ("3", "stable"));
    let loaded = operator.load_as(limit(ADMISSION, 4, "stable"), &plugin("admission")).unwrap();
    assert_eq!((limit_of(&loaded.settings), limit_of(&named(&loaded, "stable").settings)), ("4", "4"));
    acme.register("four", sized(4)).unwrap();
    // Another alias is followed: the first one stays where it is. None: nothing moves any more.
    let other = operator.follow(ADMISSION, "next").unwrap();
    assert_eq!((&other.digest, limit_of(&named(&other, "stable").settings)), (&next.digest, "4"));
    operator.follow(ADMISSION, "").unwrap();
    let still = operator.alias(ADMISSION, "next", "stable").unwrap();
    assert_eq!((&still.digest, limit_of(&still.settings), &*still.follows), (&next.digest, "2", ""));
}

#[test]
fn a_version_is_kept_as_long_as_it_has_a_name_and_its_component_no_longer() {
    let mut host = Host::without_policy();
    let operator = host.operator();
    let first = operator.load_as(limit(ADMISSION, 1, ""), &rebuilt("admission")).unwrap();
    operator.alias(ADMISSION, "golden", &first.digest).unwrap();
    for at in 0..20 {
        operator.load_as(limit(ADMISSION, 2 + at, ""), &plugin("admission")).unwrap();
    }
    let late = listed(&operator, ADMISSION);
    assert_eq!(late.previous.len(), 8);
    assert!(late.previous.iter().all(|version| version.digest != first.digest));
    let components = |host: &Host| std::fs::read_dir(host.data().join("plugins")).unwrap().count();
    assert_eq!(components(&host), 2);
    host.kill_daemon();
    host.start_daemon();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    assert_eq!(components(&host), 2, "a start sweeps, too");
    // By its name, and by its digest; what is bound already is bound.
    for version in ["golden", "golden", first.digest.as_str()] {
        let back = operator.roll_back(ADMISSION, version).unwrap();
        assert_eq!((&back.digest, limit_of(&back.settings)), (&first.digest, "1"), "{version}");
        assert_eq!(facts(&acme.register("big", sized(2)).unwrap_err()).metadata["code"], "limit.vcpus");
        operator.load_as(limit(ADMISSION, 9, ""), &plugin("admission")).unwrap();
    }
    for at in 0..8 {
        operator.load_as(limit(ADMISSION, 30 + at, ""), &plugin("admission")).unwrap();
    }
    assert_eq!(components(&host), 2);
    remove(&operator, ADMISSION, "golden").unwrap();
    assert_eq!(components(&host), 1);
    assert_eq!(refused(operator.roll_back(ADMISSION, &first.digest)), (Code::NotFound, "VERSION_NOT_FOUND".into()));
    assert_eq!(refused(operator.roll_back(ADMISSION, "golden")), (Code::NotFound, "ALIAS_NOT_FOUND".into()));
    // With the plugin all of it goes.
    operator.load_as(limit(ADMISSION, 1, "golden"), &rebuilt("admission")).unwrap();
    operator.unload(ADMISSION, true).unwrap();
    assert_eq!(components(&host), 0);
}

#[test]
fn what_is_no_name_no_version_or_not_the_callers_is_refused_and_changes_nothing() {
    let host = Host::without_policy();
    let (operator, acme, globex) = (host.operator(), host.tenant("acme"), host.tenant("globex"));
    let nothing = acme.load_as(limit(OWN, 1, "next"), &plugin("admission"));
    assert_eq!(refused(nothing), (Code::NotFound, "PLUGIN_NOT_FOUND".into()));
    operator.load_as(limit(ADMISSION, 4, ""), &plugin("admission")).unwrap();
    acme.load_as(limit(OWN, 2, ""), &plugin("admission")).unwrap();
    acme.alias(OWN, "stable", "").unwrap();
    acme.follow(OWN, "stable").unwrap();
    let before = listed(&acme, OWN);
    let field = || (Code::InvalidArgument, "BAD_FIELD".to_owned());
    let unknown = format!("sha256:{}", "0".repeat(64));
    for bad in ["", "Stable", "a b", "sha256", "8f0c8f0c8f0c", &before.digest, &"x".repeat(64)] {
        assert_eq!(refused(acme.alias(OWN, bad, "")), field(), "{bad}");
    }
    assert_eq!(refused(acme.alias(OWN, "next", "sha256:12")), field());
    assert_eq!(refused(acme.alias(OWN, "next", &unknown)), (Code::NotFound, "VERSION_NOT_FOUND".into()));
    assert_eq!(refused(acme.alias(OWN, "next", "gone")), (Code::NotFound, "ALIAS_NOT_FOUND".into()));
    assert_eq!(refused(acme.follow(OWN, "gone")), (Code::NotFound, "ALIAS_NOT_FOUND".into()));
    assert_eq!(refused(remove(&acme, OWN, "gone")), (Code::NotFound, "ALIAS_NOT_FOUND".into()));
    assert_eq!(refused(remove(&acme, OWN, "stable")), (Code::FailedPrecondition, "ALIAS_FOLLOWED".into()));
    for (mode, canary_percent) in [(Mode::Shadow, 0), (Mode::Enforced, 10)] {
        let header = Header { mode: mode.into(), canary_percent, ..limit(OWN, 1, "next") };
        assert_eq!(refused(acme.load_as(header, &plugin("admission"))), field());
    }
    let stale =
        v1::SetPluginAliasRequest { name: OWN.into(), alias: "x".into(), etag: "0".into(), ..Default::default() };
    assert_eq!(refused(wait(acme.plugins.clone().set_plugin_alias(stale))).0, Code::Aborted);
    let bad = Header { settings: [("max-vcpus".into(), "many".into())].into(), ..limit(OWN, 1, "next") };
    assert_eq!(refused(acme.load_as(bad, &plugin("admission"))), (Code::InvalidArgument, "PLUGIN_REFUSED".into()));
    // What is only tried leaves no trace.
    let tried =
        v1::SetPluginAliasRequest { name: OWN.into(), alias: "x".into(), validate_only: true, ..Default::default() };
    wait(acme.plugins.clone().set_plugin_alias(tried)).unwrap();
    acme.load_as(Header { validate_only: true, ..limit(OWN, 1, "stable") }, &plugin("admission")).unwrap();
    // The operator's, and another tenant's.
    for (caller, name) in [(&acme, ADMISSION), (&globex, OWN)] {
        for answer in [caller.alias(name, "x", ""), remove(caller, name, "stable"), caller.follow(name, "")] {
            assert_eq!(refused(answer), (Code::PermissionDenied, "NOT_ALLOWED".into()), "{name}");
        }
    }
    assert_eq!(listed(&acme, OWN), before);
    assert_eq!(listed(&operator, ADMISSION).aliases, []);
    // An operator may, in a tenant's chain, as with every change of it.
    operator.alias(OWN, "operators", "").unwrap();
    for at in 0..14 {
        acme.alias(OWN, &format!("a{at}"), "stable").unwrap();
    }
    assert_eq!(refused(acme.alias(OWN, "more", "")), (Code::ResourceExhausted, "TOO_MANY_ALIASES".into()));
    let more = acme.load_as(limit(OWN, 1, "more"), &plugin("admission"));
    assert_eq!(refused(more), (Code::ResourceExhausted, "TOO_MANY_ALIASES".into()));
    acme.alias(OWN, "a3", "operators").unwrap();
}

#[test]
fn an_alias_keeps_a_canary_and_moves_nothing_while_that_is_tried() {
    let host = Host::without_policy();
    let operator = host.operator();
    let bound = operator.load_as(limit(ADMISSION, 1, ""), &plugin("admission")).unwrap();
    operator.alias(ADMISSION, "stable", "").unwrap();
    operator.follow(ADMISSION, "stable").unwrap();
    let header = Header { canary_percent: 10, ..limit(ADMISSION, 2, "") };
    let tried = operator.load_as(header, &rebuilt("admission")).unwrap().canary.unwrap().version.unwrap();
    operator.alias(ADMISSION, "next", &tried.digest).unwrap();
    assert_eq!(listed(&operator, ADMISSION).canary.unwrap().version.unwrap(), tried);
    let active = (Code::FailedPrecondition, "CANARY_ACTIVE".to_owned());
    assert_eq!(refused(operator.alias(ADMISSION, "stable", "next")), active);
    assert_eq!(refused(operator.follow(ADMISSION, "next")), active);
    assert_eq!(refused(operator.load_as(limit(ADMISSION, 3, "stable"), &plugin("admission"))), active);
    let end = v1::end_plugin_canary_request::End::Drop.into();
    let request = v1::EndPluginCanaryRequest { name: ADMISSION.into(), end, ..Default::default() };
    wait(operator.plugins.clone().end_plugin_canary(request)).unwrap();
    let moved = operator.alias(ADMISSION, "stable", "next").unwrap();
    assert_eq!((&moved.digest, &moved.previous[0].digest), (&tried.digest, &bound.digest));
}

#[test]
fn a_shadow_stays_one_when_its_alias_moves_and_decides_nothing() {
    let host = Host::start();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    let shadow = "operator/plugins/limits";
    let header = Header { mode: Mode::Shadow.into(), ..limit(shadow, 4, "") };
    operator.load_as(header, &plugin("admission")).unwrap();
    operator.alias(shadow, "stable", "").unwrap();
    operator.follow(shadow, "stable").unwrap();
    let moved = operator.load_as(limit(shadow, 1, "stable"), &plugin("admission")).unwrap();
    assert_eq!((moved.mode(), limit_of(&moved.settings)), (Mode::Shadow, "1"));
    acme.register("web", sized(2)).unwrap();
}

#[test]
fn the_command_line_names_versions_and_asks_them_before_they_decide() {
    let host = Host::without_policy();
    let file = host.data().join("admission.wasm");
    std::fs::write(&file, plugin("admission")).unwrap();
    let run = |arguments: &[&str]| -> (Option<i32>, String) {
        let Output { status, stdout, stderr } = host.command("operator-admin").args(arguments).output().unwrap();
        (status.code(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
    };
    let run_alias =
        |verb: &str, arguments: &[&str]| run(&[&["plugin", "alias", verb, "admission"], arguments].concat());
    let path = file.to_str().unwrap();
    let load =
        |limit: &str, more: &[&str]| run(&[&["plugin", "load", path, "--operator", "--setting", limit], more].concat());
    assert_eq!(load("max-vcpus=4", &[]).0, Some(0));
    host.tenant("acme").register("web", sized(3)).unwrap();
    assert_eq!(run_alias("set", &["stable"]).0, Some(0));
    let (code, text) = run_alias("follow", &["stable"]);
    assert!(code == Some(0) && text.contains("followed"), "{text}");
    let (code, text) = load("max-vcpus=2", &["--alias", "next"]);
    assert!(code == Some(0) && text.contains("max-vcpus=4"), "{text}");
    let (code, text) = run_alias("list", &[]);
    assert!(code == Some(0) && text.contains("next") && text.contains("max-vcpus=2"), "{text}");
    let (_, text) = run(&["plugin", "list"]);
    assert!(text.contains("ALIASES") && text.contains("stable") && !text.contains("next"), "{text}");
    // What would come of it: of decisions on record, and of the call itself.
    let replay = ["plugin", "replay", "--name", "admission", "--operator"];
    let (code, text) = run(&[&replay[..], &["--to", "next"]].concat());
    assert!(code == Some(0) && text.contains("1 of 1 change: 1 now deny"), "{text}");
    let (code, text) = run(&[&replay[..], &["--to", "stable"]].concat());
    assert!(code == Some(0) && text.contains("0 of 1 change"), "{text}");
    let (code, text) = run(&[&replay[..], &["--to", "next", "--setting", "max-vcpus=3"]].concat());
    assert!(code == Some(0) && text.contains("0 of 1 change"), "{text}");
    let (code, text) = run(&[&replay[..], &["--to", "gone"]].concat());
    assert!(code == Some(4) && text.contains("ostler plugin alias list"), "{code:?} {text}");
    let (code, text) = run_alias("set", &["stable", "next", "--validate-only"]);
    assert!(code == Some(0) && text.contains("nothing was changed"), "{text}");
    let (code, text) = run_alias("set", &["stable", "next", "--output", "json"]);
    let set: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{code:?} {error}: {text}"));
    assert_eq!((&set["follows"], &set["aliases"][1]["name"]), (&"stable".into(), &"stable".into()));
    assert_eq!(set["aliases"][1]["settings"]["max-vcpus"], "2");
    assert_eq!(facts(&host.tenant("acme").register("big", sized(3)).unwrap_err()).metadata["code"], "limit.vcpus");
    let (code, text) = run(&["plugin", "rollback", "admission"]);
    assert!(code == Some(0) && text.contains("max-vcpus=4"), "{text}");
    let (code, text) = run(&["plugin", "rollback", "admission", "--to", "next"]);
    assert!(code == Some(0) && text.contains("max-vcpus=2"), "{text}");
    let (code, text) = run_alias("remove", &["stable"]);
    assert!(code == Some(6) && text.contains("ALIAS_FOLLOWED"), "{code:?} {text}");
    assert_eq!(run_alias("follow", &["--none"]).0, Some(0));
    let (code, text) = run_alias("remove", &["stable"]);
    assert!(code == Some(0) && !text.contains("stable"), "{text}");
    assert_eq!(run_alias("set", &["sha256"]).0, Some(2));
    assert_eq!(run(&["plugin", "alias", "list", "none"]).0, Some(4));
}
