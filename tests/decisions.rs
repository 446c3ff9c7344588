//! Every decision is on record before anything is done about it, and records cannot be changed unseen. Needs no guest.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::assets::plugin;
use crate::support::{Caller, Host, facts, small};
use ostler::api::v1;
use ostler::api::v1::decision_record::enforcement::State;
use tonic::Code;

fn all(caller: &Caller) -> Vec<v1::DecisionRecord> {
    caller.decisions(v1::ListDecisionsRequest { page_size: 3, ..Default::default() }).unwrap()
}

fn sized(vcpus: u32) -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec { vcpus, ..small() }
}

/// A host whose operator allows two vCPUs.
fn limited() -> Host {
    let host = Host::without_policy();
    host.operator().load("operator/plugins/admission", &plugin("admission"), &[("max-vcpus", "2")]).unwrap();
    host
}

fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn what_was_allowed_denied_and_overruled_is_on_record() {
    let host = limited();
    let acme = host.tenant("acme");
    let vm = acme.register("web", sized(2)).unwrap();
    let denied = facts(&acme.register("big", sized(4)).unwrap_err());
    // Policy allows it; the core finds no such kernel.
    let mut spec = sized(1);
    spec.boot.as_mut().unwrap().kernel = "missing".into();
    assert_eq!(acme.register("odd", spec).unwrap_err().code(), Code::InvalidArgument);

    let records = acme.settled_decisions();
    assert_eq!(all(&acme), records, "in pages");
    let said: Vec<_> = records.iter().map(|r| (r.subject.as_str(), r.allowed, r.code.as_str())).collect();
    assert_eq!(said, [("vms/odd", true, ""), ("vms/big", false, "limit.vcpus"), ("vms/web", true, "")]);
    let then: Vec<_> = records.iter().map(|r| r.enforcement.clone().unwrap()).collect();
    assert_eq!((then[0].state(), then[0].code.as_str()), (State::Overruled, "core.bad-field"));
    assert_eq!(then[1].state(), State::Enforced);
    assert_eq!((then[2].state(), &then[2].detail), (State::Enforced, &vm.uid));

    // The VM and the denial name their records.
    let admission = vm.admission.unwrap();
    assert_eq!(admission.record, records[2].name);
    assert_eq!(denied.metadata.get("decision"), Some(&records[1].name));
    let record = acme.decision(&admission.record).unwrap();
    assert_eq!(record, records[2]);
    let question: serde_json::Value = serde_json::from_str(&record.question).unwrap();
    assert_eq!((&question["vm"], &question["vcpus"]), (&"web".into(), &2.into()));
    let link = &record.links[0];
    assert_eq!((link.plugin.as_str(), link.verdict.as_str(), link.scope.as_str()), ("admission", "allow", "operator"));
    assert_eq!(link.settings.get("max-vcpus").map(String::as_str), Some("2"));
    assert!(link.fuel > 0 && link.fuel == admission.opinions[0].fuel, "{link:?}");
    // The same question costs the same.
    let explained = acme.explain(&records[1].name).unwrap();
    assert_eq!((explained.rows.len(), explained.plugins), (1, vec!["admission".to_owned()]));
    assert_eq!(explained.rows[0].cells[0].code, "limit.vcpus");
}

#[test]
fn lists_filter_and_page() {
    let host = limited();
    let acme = host.tenant("acme");
    for at in 0..9 {
        let _ = acme.register(&format!("vm-{at}"), sized(if at % 3 == 0 { 4 } else { 1 }));
    }
    assert_eq!(all(&acme).len(), 9);
    let list = |request| acme.decisions(request).unwrap().len();
    use v1::list_decisions_request::Outcome;
    let outcome =
        |outcome: Outcome| v1::ListDecisionsRequest { outcome: outcome.into(), page_size: 2, ..Default::default() };
    assert_eq!((list(outcome(Outcome::Denied)), list(outcome(Outcome::Allowed))), (3, 6));
    assert_eq!(list(v1::ListDecisionsRequest { subject: "vms/vm-3".into(), ..Default::default() }), 1);
    assert_eq!(list(v1::ListDecisionsRequest { hook: "select-vf".into(), ..Default::default() }), 0);
    let since = all(&acme)[3].time;
    assert_eq!(list(v1::ListDecisionsRequest { since, ..Default::default() }), 4);
    for bad in [
        v1::ListDecisionsRequest { page_size: 100_000, ..Default::default() },
        v1::ListDecisionsRequest { page_token: "x".into(), ..Default::default() },
    ] {
        assert_eq!(acme.decisions(bad).unwrap_err().code(), Code::InvalidArgument);
    }
}

#[test]
fn a_tenant_sees_its_own_chain_only() {
    let host = limited();
    let (acme, globex, operator) = (host.tenant("acme"), host.tenant("globex"), host.operator());
    acme.register("web", sized(1)).unwrap();
    let secret = globex.register("secret", sized(1)).unwrap().admission.unwrap().record;
    assert_eq!(secret, "tenants/globex/decisions/0", "numbers say nothing about others");
    // Word for word the same as one that does not exist.
    let (others, missing) =
        (acme.decision(&secret).unwrap_err(), acme.decision("tenants/globex/decisions/99").unwrap_err());
    let own = acme.decision("tenants/acme/decisions/99").unwrap_err();
    for status in [&others, &missing] {
        assert_eq!((status.code(), status.message(), status.details()), (own.code(), own.message(), own.details()));
    }
    assert_eq!(own.code(), Code::NotFound);
    assert_eq!(acme.explain(&secret).unwrap_err().code(), Code::NotFound);
    for parent in ["tenants/globex", "tenants/-"] {
        let request = v1::ListDecisionsRequest { parent: parent.into(), ..Default::default() };
        assert_eq!(acme.decisions(request).unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(acme.verify(parent).unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(acme.export(parent).unwrap_err().code(), Code::PermissionDenied);
    }
    assert!(!String::from_utf8(acme.export("").unwrap()).unwrap().contains("globex"));
    assert_eq!((acme.verify("").unwrap().len(), operator.verify("").unwrap().len()), (1, 2));
    assert_eq!(all(&operator).len(), 2);
}

#[test]
fn chains_are_whole_after_the_daemon_was_killed_at_any_moment() {
    let mut host = limited();
    for round in 0..4u64 {
        let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
        std::thread::scope(|scope| {
            for (caller, name) in [(&acme, "a"), (&globex, "g"), (&acme, "b")] {
                scope.spawn(move || {
                    for at in 0..200 {
                        let vm = format!("{name}-{round}-{at}");
                        // Ends with the daemon.
                        if matches!(caller.register(&vm, sized(1)), Err(e) if e.code() != Code::PermissionDenied) {
                            return;
                        }
                    }
                });
            }
            // As far as it comes: another number of records each time.
            let enough = 5 + 11 * usize::try_from(round).unwrap();
            crate::support::wait::until("some records", crate::support::wait::SOON, || {
                (host
                    .operator()
                    .decisions(v1::ListDecisionsRequest { page_size: 1000, ..Default::default() })
                    .ok()?
                    .len()
                    > enough)
                    .then_some(())
            });
            host.kill_daemon();
        });
        host.start_daemon();
        let chains = host.operator().verify("").unwrap();
        assert!(chains.iter().all(|chain| chain.fault.is_empty()), "{chains:?}");
        // Nothing is registered that is not on record.
        let records =
            host.operator().decisions(v1::ListDecisionsRequest { page_size: 1000, ..Default::default() }).unwrap();
        for vm in host.operator().list("").unwrap() {
            let record = vm.admission.unwrap().record;
            assert!(records.iter().any(|r| r.name == record && r.allowed), "{} is not on record", vm.name);
        }
    }
}

#[test]
fn an_export_verifies_anywhere_and_an_altered_one_does_not() {
    let host = limited();
    let acme = host.tenant("acme");
    for at in 0..20 {
        let _ = acme.register(&format!("vm-{at}"), sized(1 + at % 4));
    }
    let exported = acme.export("").unwrap();
    let verify = |bytes: &[u8]| {
        let output = run(host.command("tenant-acme").args(["decision", "verify", "--file", "-", "-o", "json"]), bytes);
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), json["chains"][0].clone())
    };
    let (code, chain) = verify(&exported);
    assert_eq!((code, &chain["fault"]), (Some(0), &"".into()), "{chain}");
    let served = &acme.verify("").unwrap()[0];
    assert_eq!((&chain["hash"], &chain["records"]), (&served.hash.clone().into(), &served.records.into()));

    let text = String::from_utf8(exported).unwrap();
    let (code, chain) = verify(text.replacen("limit.vcpus", "limit.memory", 1).as_bytes());
    assert_eq!((code, &chain["fault"]), (Some(1), &"altered".into()), "{chain}");
    assert!(chain["bad_sequence"].is_u64());
    let without_first: String = text.split_inclusive('\n').skip(1).collect();
    assert_eq!(verify(without_first.as_bytes()).1["fault"], "beheaded");
    assert_eq!(verify(&text.as_bytes()[..text.len() - 40]).1["fault"], "malformed");
}

#[test]
fn the_command_line_tells_the_story_of_a_decision() {
    let host = limited();
    let acme = host.tenant("acme");
    acme.register("web", sized(1)).unwrap();
    let denied = facts(&acme.register("big", sized(4)).unwrap_err()).metadata["decision"].clone();
    let number = denied.rsplit('/').next().unwrap();
    let run = |identity: &str, arguments: &[&str]| {
        let output = run(host.command(identity).args(arguments), b"");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, table, _) = run("tenant-acme", &["decision", "list", "--denied"]);
    assert!(code == Some(0) && table.contains("vms/big") && table.contains("denied: limit.vcpus"), "{table}");
    assert!(!table.contains("vms/web"), "{table}");
    for name in [number, &format!("acme/{number}"), &denied] {
        let (code, text, error) = run("tenant-acme", &["decision", "get", name]);
        assert!(code == Some(0) && text.contains("admission sha256:") && text.contains(" fuel in "), "{text}{error}");
    }
    let (code, text, _) = run("operator-admin", &["decision", "explain", &denied]);
    assert!(code == Some(0) && text.contains("PLUGIN") && text.contains("deny"), "{text}");
    let (code, _, error) = run("operator-admin", &["decision", "get", number]);
    assert!(code == Some(2) && error.contains(&format!("TENANT/{number}")), "{error}");
    assert_eq!(run("tenant-globex", &["decision", "get", &denied]).0, Some(4));
    let (code, text, _) = run("operator-admin", &["decision", "verify"]);
    assert!(code == Some(0) && text.contains("whole"), "{text}");
    let (code, lines, _) = run("tenant-acme", &["decision", "export"]);
    assert!(code == Some(0) && lines.lines().count() == 3, "{lines}");
}

#[test]
fn a_replay_says_what_another_version_would_have_said() {
    let host = limited();
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    for at in 0..12 {
        let _ = acme.register(&format!("vm-{at}"), sized(1 + at % 4));
    }
    let _ = globex.register("db", sized(2));
    let before = all(&host.operator()).len();
    let file = host.data().join("admission.wasm");
    std::fs::write(&file, plugin("admission")).unwrap();
    let trap = host.data().join("trap.wasm");
    std::fs::write(&trap, plugin("hostile/trap")).unwrap();
    let replay = |identity: &str, arguments: &[&str]| {
        let output = run(host.command(identity).args(["plugin", "replay"]).args(arguments), b"");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    // The same content, and the one that is loaded: nothing changes, fuel included.
    for arguments in [&[file.to_str().unwrap()][..], &["--name", "admission"]] {
        let (code, text, error) = replay("operator-admin", arguments);
        assert!(code == Some(0) && text.starts_with("0 of 13 change"), "{text}{error}");
    }
    let (code, text, error) = replay("operator-admin", &["--name", "admission", "--setting", "max-vcpus=1"]);
    assert!(code == Some(0) && text.contains("4 now deny, 0 now allow"), "{text}{error}");
    assert!(
        text.contains("acme/") && text.contains("globex/0 admit vms/db: allow → deny (limit.vcpus"),
        "{text}{error}"
    );
    let (_, text, error) = replay("operator-admin", &[trap.to_str().unwrap(), "--name", "admission", "--limit", "5"]);
    assert!(text.contains(" of 5 change") && text.contains("policy.trap"), "{text}{error}");
    let (_, text, error) = replay("operator-admin", &["--name", "admission", "--hook", "select-vf"]);
    assert!(text.starts_with("0 of 0 change"), "{text}{error}");
    // A tenant replays in its own chain only; nothing was decided or recorded by all this.
    assert_eq!(replay("tenant-acme", &["--name", "admission", "--operator"]).0, Some(1));
    assert_eq!(replay("tenant-acme", &["--name", "admission"]).0, Some(4));
    let (code, text, error) = replay("tenant-acme", &[file.to_str().unwrap()]);
    assert!(code == Some(0) && text.starts_with("0 of 0 change"), "{text}{error}");
    assert_eq!(all(&host.operator()).len(), before);
}

/// No bound on time: figures for whoever looks.
#[test]
fn what_a_registration_takes_is_printed() {
    let host = limited();
    let acme = host.tenant("acme");
    let mut took: Vec<Duration> = (0..200)
        .map(|at| {
            let started = Instant::now();
            let name = format!("vm-{at}");
            acme.register(&name, sized(1)).unwrap();
            let took = started.elapsed();
            acme.destroy(&name, false).unwrap();
            took
        })
        .collect();
    took.sort();
    println!("register: p50 {:?}, p99 {:?}", took[100], took[197]);
}
