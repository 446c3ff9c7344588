//! `ostler doctor`: what store and host do not agree about, and doing away with it. Needs no guest; what needs taps,
//! cgroups, devices and guests is in `doctor_guests`.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::client::wait;
use crate::support::crash::new_id;
use crate::support::guest::disk;
use crate::support::strays::{Stray, all, found, old_file, sleeper};
use crate::support::{Host, facts, small};
use ostler::api::v1;
use ostler::api::v1::host_finding::{Kind, State};
use ostler::model::VmId;

/// Exit code, stdout, stderr.
fn doctor(host: &Host, identity: &str, arguments: &[&str]) -> (i32, String, String) {
    let output = host.command(identity).arg("doctor").args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Files that were left half written, and a component without a plugin.
fn plant_files(host: &Host) -> Vec<(Kind, String)> {
    let files = ["node.key.partial", "plugins/0a.partial", "plugins/0a.wasm", "compiled/0a.partial"];
    files
        .map(|name| {
            let path = host.data().join(name);
            old_file(&path);
            (Kind::FileStale, format!("file {}", path.display()))
        })
        .into()
}

#[test]
fn what_is_nobody_s_is_named_and_removed_and_nothing_else_is_touched() {
    let host = Host::start();
    let (acme, operator) = (host.tenant("acme"), host.operator());
    let web = acme.register("web", small()).unwrap();
    assert_eq!(found(&operator.check_host().unwrap()), []);

    let mut stray = Stray::plant(&host);
    let mut expected = stray.expected();
    expected.extend(plant_files(&host));
    // Of a VM that exists, of another daemon, of nobody's making, or too young: none of these is to be touched.
    let own = host.data().join("vms").join(&web.uid);
    fs::create_dir(&own).unwrap();
    fs::write(own.join("console.ring"), "its past").unwrap();
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    let mut other = sleeper(&format!("ostler-vm-{}", VmId::new()), elsewhere.path());
    let kept = [host.data().join("vms/notes"), host.run_dir().join("vms/notes"), host.data().join("store.bak")];
    kept.iter().for_each(|path| old_file(path));
    let young = host.data().join("plugins/0b.partial");
    fs::write(&young, "being written").unwrap();
    let link = host.data().join("vms").join(VmId::new().to_string());
    std::os::unix::fs::symlink(&own, &link).unwrap();

    assert_eq!(found(&operator.check_host().unwrap()), all(&expected, State::Repairable));
    let request = v1::RepairHostRequest { validate_only: true, ..Default::default() };
    let validated = wait(operator.host.clone().repair_host(request)).unwrap().into_inner();
    assert_eq!(found(&validated.findings), all(&expected, State::Repairable));
    assert!(stray.lives() && stray.is_there(), "only looked at");

    let id = new_id();
    let repaired = operator.repair_host(&id).unwrap();
    assert_eq!(found(&repaired), all(&expected, State::Repaired));
    assert!(!stray.is_there());
    assert_eq!(found(&operator.check_host().unwrap()), []);
    assert_eq!(fs::read_to_string(own.join("console.ring")).unwrap(), "its past");
    assert!(other.try_wait().unwrap().is_none(), "another daemon's process");
    assert!(kept.iter().all(|path| path.exists()) && young.exists() && link.is_symlink());
    assert_eq!(acme.get("web").unwrap(), web);
    acme.register("next", small()).unwrap();

    // Under the same id the first answer, and nothing is done: what has come since stays.
    let mut second = Stray::plant(&host);
    assert_eq!(operator.repair_host(&id).unwrap(), repaired);
    assert!(second.lives());
    assert_eq!(found(&operator.repair_host("").unwrap()), all(&second.expected(), State::Repaired));
    other.kill().unwrap();
    other.wait().unwrap();

    // Who repaired what is written down.
    let audit = fs::read_to_string(host.data().join("audit.log")).unwrap();
    let lines: Vec<serde_json::Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |resource: &str| {
        lines.iter().filter(|line| line["method"] == "RepairHost" && line["resource"] == resource).count()
    };
    assert_eq!(of("host"), 4, "{audit}");
    for (_, object) in &expected {
        assert_eq!(of(object), 1, "{object}: {audit}");
    }
}

#[test]
fn what_only_a_person_can_repair_stays_and_says_what_to_do() {
    let host = Host::start();
    let (acme, operator) = (host.tenant("acme"), host.operator());
    host.add_volume("acme", "web.img", &[1; 4096]);
    let spec = v1::VirtualMachineSpec { disks: vec![disk("root", "web.img", false)], ..small() };
    acme.register("web", spec).unwrap();
    assert_eq!(found(&operator.check_host().unwrap()), []);
    fs::remove_file(host.volume("acme", "web.img")).unwrap();
    for findings in [operator.check_host().unwrap(), operator.repair_host("").unwrap()] {
        assert_eq!(found(&findings), [(Kind::ImageUnusable, "VM acme/web".to_owned(), State::NeedsOperator)]);
        assert!(findings[0].detail.contains("web.img") && findings[0].remedy.contains("put the file back"));
    }
    let (code, table, error) = doctor(&host, "operator-admin", &["--repair"]);
    assert!(
        code == 10 && table.contains("IMAGE_UNUSABLE") && error.contains("1 findings remain"),
        "{code} {table} {error}"
    );
    host.add_volume("acme", "web.img", &[1; 4096]);
    assert_eq!(found(&operator.check_host().unwrap()), []);
}

#[test]
fn the_command_line_shows_findings_and_ends_with_what_remains() {
    let mut host = Host::without_policy();
    let (code, table, error) = doctor(&host, "operator-admin", &[]);
    assert_eq!((code, table.as_str(), error.as_str()), (0, "all is well: store and host agree\n", ""));
    let stray = Stray::plant(&host);
    let (code, table, error) = doctor(&host, "operator-admin", &[]);
    assert!(
        code == 10 && error.contains("3 findings remain") && error.contains("hint: ostler doctor --repair"),
        "{error}"
    );
    assert!(table.starts_with("KIND ") && table.contains("PROCESS_ORPHANED"), "{table}");
    assert!(table.contains(&format!("process {}", stray.pid())) && table.contains("REPAIRABLE: kill it"), "{table}");
    println!("{table}{error}");
    let (code, json, _) = doctor(&host, "operator-admin", &["--repair", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let findings = report["findings"].as_array().unwrap();
    assert_eq!((code, findings.len(), &report["omitted"]), (0, 3, &0.into()), "{json}");
    assert!(findings.iter().all(|finding| finding["state"] == "REPAIRED"), "{json}");
    let (code, json, _) = doctor(&host, "operator-admin", &["-o", "json"]);
    assert_eq!((code, json.contains("\"findings\": []")), (0, true), "{json}");

    // For operators, by a daemon that answers.
    for arguments in [&[][..], &["--repair"]] {
        let (code, _, error) = doctor(&host, "tenant-acme", arguments);
        assert!(code == 1 && error.contains("NOT_ALLOWED"), "{code} {error}");
    }
    let denied = facts(&host.tenant("acme").repair_host("").unwrap_err());
    assert_eq!(denied.reason, "NOT_ALLOWED");
    host.kill_daemon();
    let (code, _, error) = doctor(&host, "operator-admin", &[]);
    assert!(
        code == 3 && error.contains("nothing listens") && error.contains("hint: start it with ostler serve"),
        "{error}"
    );
    host.start_daemon();
    let help = Command::new(crate::support::assets::binary()).args(["doctor", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("--repair") && help.contains("certainly nobody's"), "{help}");
}

#[test]
fn what_is_under_way_is_no_finding_and_a_repair_harms_nobody() {
    let host = Host::start();
    let (operator, is_over) = (host.operator(), AtomicBool::new(false));
    let rounds: Vec<u32> = std::thread::scope(|scope| {
        let busy = |tenant: &'static str| {
            let (caller, is_over) = (host.tenant(tenant), &is_over);
            host.add_volume(tenant, "web.img", &[1; 4096]);
            let spec = || v1::VirtualMachineSpec { disks: vec![disk("root", "web.img", false)], ..small() };
            move || {
                let mut rounds = 0;
                while !is_over.load(Ordering::Relaxed) {
                    caller.register("web", spec()).unwrap();
                    // Its kernel is none: the launch fails, and leaves nothing.
                    caller.start("web").unwrap_err();
                    caller.destroy("web", true).unwrap();
                    rounds += 1;
                }
                rounds
            }
        };
        let workers = ["acme", "globex"].map(|tenant| scope.spawn(busy(tenant)));
        let answers: Vec<_> = (0..6).map(|_| operator.repair_host("")).collect();
        is_over.store(true, Ordering::Relaxed);
        let findings: Vec<_> = answers.into_iter().map(|answer| found(&answer.unwrap())).collect();
        let rounds = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        assert!(findings.iter().all(Vec::is_empty), "{findings:?}");
        rounds
    });
    println!("{rounds:?} rounds");
    assert!(rounds.iter().all(|rounds| *rounds > 0));
}
