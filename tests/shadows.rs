//! Plugins that are asked beside a chain: on record, and of no consequence until they are promoted. Needs no guest.

use std::process::Output;

use crate::support::assets::plugin;
use crate::support::client::wait;
use crate::support::wait::{SOON, until};
use crate::support::{Caller, Host, facts, small};
use ostler::api::v1;
use ostler::api::v1::plugin::Mode;
use tonic::{Code, Status};

const ADMISSION: &str = "operator/plugins/admission";
const NEXT: &str = "operator/plugins/next";

fn sized(vcpus: u32) -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec { vcpus, ..small() }
}

/// Loads as a shadow.
fn shadow(caller: &Caller, name: &str, bytes: &[u8], settings: &[(&str, &str)]) -> Result<v1::Plugin, Status> {
    use v1::load_plugin_request::{Header, Part};
    let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let header = Header { name: name.to_owned(), settings, mode: Mode::Shadow.into(), ..Default::default() };
    let chunks = bytes.chunks(64 << 10).map(|chunk| Part::Chunk(chunk.to_vec()));
    caller.load_parts(std::iter::once(Part::Header(header)).chain(chunks).collect())
}

fn mode(name: &str, mode: Mode) -> v1::SetPluginModeRequest {
    v1::SetPluginModeRequest { name: name.to_owned(), mode: mode.into(), ..Default::default() }
}

fn set_mode(caller: &Caller, request: v1::SetPluginModeRequest) -> Result<v1::Plugin, Status> {
    wait(caller.plugins.clone().set_plugin_mode(request)).map(tonic::Response::into_inner)
}

/// The newest decision, once its `count` shadows are on record: nobody waits for them.
fn newest(caller: &Caller, count: usize) -> v1::DecisionRecord {
    until("shadows are on record", SOON, || {
        let newest = caller.decisions(v1::ListDecisionsRequest::default()).unwrap().into_iter().next()?;
        (newest.shadows.len() == count).then_some(newest)
    })
}

fn differing(caller: &Caller) -> Vec<String> {
    let request = v1::ListDecisionsRequest { shadow_differs: true, page_size: 1, ..Default::default() };
    caller.decisions(request).unwrap().into_iter().map(|record| record.subject).collect()
}

fn said(record: &v1::DecisionRecord) -> Vec<(&str, &str, bool)> {
    let shadows = record.shadows.iter().filter_map(|shadow| Some((shadow.link.as_ref()?, shadow.differs)));
    shadows.map(|(link, differs)| (link.plugin.as_str(), link.verdict.as_str(), differs)).collect()
}

fn denied_with(caller: &Caller, vm: &str, spec: v1::VirtualMachineSpec) -> String {
    let facts = facts(&caller.register(vm, spec).unwrap_err());
    assert_eq!((facts.code, facts.reason.as_str()), (Code::PermissionDenied, "POLICY_DENIED"), "{facts:?}");
    facts.metadata.get("code").cloned().unwrap_or_default()
}

#[test]
fn a_shadow_that_would_deny_denies_nothing_and_is_found() {
    let host = Host::without_policy();
    let (operator, acme, globex) = (host.operator(), host.tenant("acme"), host.tenant("globex"));
    operator.load(ADMISSION, &plugin("admission"), &[]).unwrap();
    let loaded = shadow(&operator, NEXT, &plugin("admission"), &[("max-vcpus", "1")]).unwrap();
    assert_eq!(loaded.mode(), Mode::Shadow);
    shadow(&acme, "tenants/acme/plugins/own", &plugin("admission"), &[("max-memory-mib", "1")]).unwrap();

    // The operator's for everybody, a tenant's for itself.
    let vm = globex.register("web", sized(2)).unwrap();
    let record = newest(&globex, 1);
    assert_eq!(said(&record), [("next", "deny", true)]);
    assert!(record.allowed && record.links.len() == 1 && record.links[0].plugin == "admission", "{record:?}");
    let admission = vm.admission.unwrap();
    assert_eq!((admission.opinions.len(), &admission.record), (1, &record.name));
    let link = record.shadows[0].link.as_ref().unwrap();
    assert!(link.asked && link.fuel > 0 && link.took.is_some() && link.detail.contains("limit.vcpus"), "{link:?}");
    assert_eq!((&link.digest, &link.settings["max-vcpus"]), (&loaded.digest, &"1".to_owned()));
    let instead: serde_json::Value = serde_json::from_str(&record.shadows[0].outcome).unwrap();
    assert_eq!((&instead["deny"]["code"], &instead["deny"]["plugin"]), (&"limit.vcpus".into(), &"next".into()));
    acme.register("web", sized(2)).unwrap();
    assert_eq!(said(&newest(&acme, 2)), [("next", "deny", true), ("own", "deny", true)]);

    // What it would not have changed is not listed.
    globex.register("small", sized(1)).unwrap();
    let record = newest(&globex, 1);
    assert_eq!((said(&record), record.shadows[0].outcome.as_str()), (vec![("next", "allow", false)], ""));
    assert_eq!((differing(&globex), differing(&acme)), (vec!["vms/web".to_owned()], vec!["vms/web".to_owned()]));
    assert_eq!(differing(&operator).len(), 2);
    let explained = globex.explain(&record.name).unwrap();
    assert_eq!((explained.plugins, explained.shadows), (vec!["admission".to_owned()], vec!["next".to_owned()]));
    assert_eq!(explained.rows[0].shadow_cells.len(), 1);
}

#[test]
fn a_shadow_that_would_allow_lifts_no_denial() {
    let host = Host::without_policy();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    operator.load(ADMISSION, &plugin("admission"), &[("max-vcpus", "1")]).unwrap();
    shadow(&operator, NEXT, &plugin("admission"), &[]).unwrap();
    shadow(&operator, "operator/plugins/a", &plugin("admission"), &[]).unwrap();
    assert_eq!(denied_with(&acme, "web", sized(2)), "limit.vcpus");
    let record = newest(&acme, 2);
    assert_eq!((record.allowed, record.plugin.as_str()), (false, "admission"));
    assert_eq!(said(&record), [("a", "allow", false), ("next", "allow", false)]);
    assert_eq!(acme.get("web").unwrap_err().code(), Code::NotFound);
}

#[test]
fn whatever_a_shadow_does_wrong_is_on_record_and_nothing_else() {
    let host = Host::without_policy();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    operator.load(ADMISSION, &plugin("admission"), &[]).unwrap();
    acme.register("alone", small()).unwrap();
    let alone = newest(&acme, 0).links;
    let shadows = [
        ("trap", &["policy.trap"][..]),
        ("loop", &["policy.budget", "policy.deadline"]),
        ("memory", &["policy.memory"]),
        ("log-flood", &["policy.trap"]),
        ("forge", &["policy.bad-answer"]),
        ("undecided", &["policy.refused"]),
    ];
    for (name, _) in shadows {
        shadow(&operator, &format!("operator/plugins/{name}"), &plugin(&format!("hostile/{name}")), &[]).unwrap();
    }
    let mut first = None;
    // Beyond what opens breakers.
    for at in 0..8 {
        acme.register(&format!("vm-{at}"), small()).unwrap();
        let record = newest(&acme, shadows.len());
        assert_eq!(record.links[0].verdict, alone[0].verdict);
        assert!(record.allowed && record.links.len() == 1, "{record:?}");
        first.get_or_insert(record);
    }
    let first = first.unwrap();
    for (name, codes) in shadows {
        let (_, code, differs) = said(&first).into_iter().find(|(plugin, ..)| *plugin == name).unwrap();
        assert!(codes.contains(&code) && differs, "{name}: {code}, {differs}");
    }
    // Where each failed; whose answer was no use had returned.
    let told = first.shadows.iter().filter_map(|shadow| shadow.link.as_ref());
    let mut failed: Vec<_> = told.filter(|link| !link.backtrace.is_empty()).map(|link| link.plugin.as_str()).collect();
    failed.sort_unstable();
    assert_eq!(failed, ["log-flood", "loop", "memory", "trap"], "{first:?}");
    // They are left alone, the one that decides is not.
    let listed = operator.plugins("").unwrap();
    let open = |name: &str| listed.iter().find(|plugin| plugin.name == name).unwrap().breakers.len();
    assert_eq!((open("operator/plugins/trap"), open(ADMISSION)), (1, 0));
    let last = newest(&acme, shadows.len());
    assert!(said(&last).contains(&("trap", "policy.breaker-open", true)), "{last:?}");
    // Promoted it begins anew, and its fault denies.
    set_mode(&operator, mode("operator/plugins/trap", Mode::Enforced)).unwrap();
    assert_eq!(denied_with(&acme, "next", small()), "policy.trap");
}

#[test]
fn shadows_alone_are_an_empty_chain_until_one_is_promoted() {
    let mut host = Host::without_policy();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    let loaded = shadow(&operator, NEXT, &plugin("admission"), &[("max-vcpus", "2")]).unwrap();
    assert_eq!(denied_with(&acme, "web", sized(1)), "policy.no-opinion");
    let record = newest(&acme, 1);
    assert!(record.links.is_empty() && said(&record) == [("next", "allow", true)], "{record:?}");
    // Nobody is left alone without it.
    let tried = v1::UnloadPluginRequest { name: NEXT.into(), validate_only: true, ..Default::default() };
    wait(operator.plugins.clone().unload_plugin(tried)).unwrap();

    assert!(host.stop_daemon().success());
    host.start_daemon();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    assert_eq!(operator.plugins("").unwrap(), std::slice::from_ref(&loaded));
    assert_eq!(denied_with(&acme, "web", sized(1)), "policy.no-opinion");
    assert!(!newest(&acme, 1).allowed);
    assert_eq!(differing(&acme).len(), 2);

    // Only of what was seen, only tried, and then once however often it is asked for.
    let stale = v1::SetPluginModeRequest { etag: "\"0000000000000000\"".into(), ..mode(NEXT, Mode::Enforced) };
    assert_eq!(set_mode(&operator, stale).unwrap_err().code(), Code::Aborted);
    let tried = v1::SetPluginModeRequest { validate_only: true, ..mode(NEXT, Mode::Enforced) };
    assert_eq!(set_mode(&operator, tried).unwrap().mode(), Mode::Enforced);
    assert_eq!(operator.plugins("").unwrap(), std::slice::from_ref(&loaded));
    let request_id = uuid::Uuid::new_v4().to_string();
    let promotion = v1::SetPluginModeRequest { etag: loaded.etag.clone(), request_id, ..mode(NEXT, Mode::Enforced) };
    let promoted = set_mode(&operator, promotion.clone()).unwrap();
    assert_eq!((promoted.mode(), &promoted.digest), (Mode::Enforced, &loaded.digest));
    assert_ne!(promoted.etag, loaded.etag);
    assert_eq!(set_mode(&operator, promotion).unwrap(), promoted);
    acme.register("web", sized(2)).unwrap();
    assert_eq!(denied_with(&acme, "big", sized(3)), "limit.vcpus");
    assert!(newest(&acme, 0).links.iter().all(|link| link.plugin == "next"));

    host.kill_daemon();
    host.start_daemon();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    assert_eq!(operator.plugins("").unwrap(), [promoted]);
    assert_eq!(denied_with(&acme, "big", sized(3)), "limit.vcpus");
    // The last one goes back only by force; another shadow does not stand in for it.
    shadow(&operator, "operator/plugins/other", &plugin("admission"), &[]).unwrap();
    let refused = facts(&set_mode(&operator, mode(NEXT, Mode::Shadow)).unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::FailedPrecondition, "LAST_OF_HOOK"));
    set_mode(&operator, v1::SetPluginModeRequest { force: true, ..mode(NEXT, Mode::Shadow) }).unwrap();
    assert_eq!(denied_with(&acme, "next", sized(1)), "policy.no-opinion");
}

#[test]
fn a_shadow_takes_nobodys_place_and_counts_as_others_do() {
    let host = Host::without_policy();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    operator.load(ADMISSION, &plugin("admission"), &[("max-vcpus", "1")]).unwrap();
    let refused = facts(&shadow(&operator, ADMISSION, &plugin("admission"), &[]).unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::FailedPrecondition, "PLUGIN_ENFORCED"));
    assert_eq!(denied_with(&acme, "web", sized(2)), "limit.vcpus");
    let unknown = v1::SetPluginModeRequest { mode: 9, ..mode(ADMISSION, Mode::Shadow) };
    assert_eq!(set_mode(&operator, unknown).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(set_mode(&acme, mode(ADMISSION, Mode::Shadow)).unwrap_err().code(), Code::PermissionDenied);

    // A new version of a shadow is a shadow if that is said, and so is one that was bound before.
    let own = "tenants/acme/plugins/own";
    shadow(&acme, own, &plugin("hostile/trap"), &[]).unwrap();
    shadow(&acme, own, &plugin("hostile/abstain"), &[]).unwrap();
    assert_eq!(acme.roll_back(own, "").unwrap().mode(), Mode::Shadow);
    acme.register("web", sized(1)).unwrap();
    assert_eq!(said(&newest(&acme, 1)), [("own", "policy.trap", true)]);
    assert_eq!(acme.load(own, &plugin("hostile/trap"), &[]).unwrap().mode(), Mode::Enforced);
    assert_eq!(denied_with(&acme, "next", sized(1)), "policy.trap");

    let names = (1..16).map(|at| format!("operator/plugins/s{at}"));
    names.for_each(|name| drop(shadow(&operator, &name, &plugin("admission"), &[]).unwrap()));
    let refused = facts(&shadow(&operator, NEXT, &plugin("admission"), &[]).unwrap_err());
    assert_eq!(refused.reason, "TOO_MANY_PLUGINS");
    let request = v1::ListPluginsRequest { filter: "mode=SHADOW".into(), page_size: 100, ..Default::default() };
    assert_eq!(wait(operator.plugins.clone().list_plugins(request)).unwrap().into_inner().plugins.len(), 15);
}

#[test]
fn what_a_shadow_said_cannot_be_changed_unseen_and_is_said_again() {
    let host = Host::without_policy();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    operator.load(ADMISSION, &plugin("admission"), &[("max-vcpus", "3")]).unwrap();
    shadow(&operator, NEXT, &plugin("admission"), &[("max-vcpus", "1")]).unwrap();
    for at in 0..6 {
        let _ = acme.register(&format!("vm-{at}"), sized(1 + at % 4));
        newest(&acme, 1);
    }
    let run = |identity: &str, arguments: &[&str]| -> (Option<i32>, String) {
        let Output { status, stdout, stderr } = host.command(identity).args(arguments).output().unwrap();
        (status.code(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
    };
    let (code, text) = run("operator-admin", &["decision", "verify"]);
    assert!(code == Some(0) && text.contains("whole"), "{text}");
    // An export has the answers, and shows what was done to them.
    let exported = String::from_utf8(acme.export("").unwrap()).unwrap();
    let line = exported.lines().find(|line| line.contains("{\"shadow\":") && line.contains("limit.vcpus")).unwrap();
    let file = host.data().join("export.jsonl");
    let verify = |text: &str| {
        std::fs::write(&file, text).unwrap();
        run("tenant-acme", &["decision", "verify", "--file", file.to_str().unwrap()])
    };
    assert_eq!(verify(&exported).0, Some(0));
    let (code, text) = verify(&exported.replace(line, &line.replace("limit.vcpus", "limit.nobody")));
    assert!(code == Some(1) && text.contains("altered"), "{text}");
    let without: String = exported.split_inclusive('\n').filter(|other| other.trim_end() != line).collect();
    assert!(verify(&without).1.contains("missing"));

    // Asked again, the chain's plugin and the shadow say the same for the same fuel.
    for name in ["admission", "next"] {
        let (code, text) = run("operator-admin", &["plugin", "replay", "--name", name]);
        assert!(code == Some(0) && text.starts_with("0 of 6 change"), "{name}: {text}");
    }
    let (_, text) = run("operator-admin", &["plugin", "replay", "--name", "next", "--setting", "max-vcpus=2"]);
    assert!(text.contains("2 now allow"), "{text}");
}

#[test]
fn the_command_line_tries_a_plugin_beside_the_chain_and_promotes_it() {
    let host = Host::start();
    let acme = host.tenant("acme");
    let file = host.data().join("limits.wasm");
    std::fs::write(&file, plugin("admission")).unwrap();
    let run = |arguments: &[&str]| -> (Option<i32>, String) {
        let Output { status, stdout, stderr } = host.command("tenant-acme").args(arguments).output().unwrap();
        (status.code(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
    };
    let (code, text) = run(&["plugin", "load", file.to_str().unwrap(), "--shadow", "--setting", "max-vcpus=1"]);
    assert!(code == Some(0) && text.contains("shadow"), "{text}");
    acme.register("web", sized(2)).unwrap();
    let name = newest(&acme, 1).name;
    acme.register("small", sized(1)).unwrap();
    newest(&acme, 1);
    let (_, text) = run(&["plugin", "list"]);
    assert!(text.contains("MODE") && text.contains("enforced") && text.contains("shadow"), "{text}");
    let (_, text) = run(&["decision", "list", "--shadow-differs"]);
    assert!(text.contains("vms/web") && !text.contains("vms/small"), "{text}");
    let (_, text) = run(&["decision", "get", &name]);
    assert!(text.contains("shadows") && text.contains("would have been {\"deny\""), "{text}");
    let (_, text) = run(&["decision", "explain", &name]);
    assert!(text.contains("limits (shadow)"), "{text}");

    let (code, text) = run(&["plugin", "promote", "limits", "--validate-only"]);
    assert!(code == Some(0) && text.contains("nothing was changed"), "{text}");
    acme.register("other", sized(2)).unwrap();
    let (code, text) = run(&["plugin", "promote", "limits"]);
    assert!(code == Some(0) && text.contains("enforced"), "{text}");
    assert_eq!(denied_with(&acme, "next", sized(2)), "limit.vcpus");
    let (code, text) = run(&["plugin", "demote", "limits"]);
    assert!(code == Some(0) && text.contains("shadow"), "{text}");
    acme.register("next", sized(2)).unwrap();
    assert_eq!(run(&["plugin", "demote", "nobody"]).0, Some(4));
}
