//! The command line as its users see it: output, errors with hints, exit codes. Needs no guest.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::support::certs::{Authority, Wish};
use crate::support::wait::SOON;
use crate::support::{Host, assets};

/// Exit code, stdout, stderr.
fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn ostler(arguments: &[&str]) -> (i32, String, String) {
    run(Command::new(assets::binary()).env_clear().args(arguments))
}

const REGISTER: [&str; 5] = ["vm", "register", "web", "--kernel", assets::PLACEHOLDER];

#[test]
fn help_documents_commands_and_exit_codes() {
    let (code, help, _) = ostler(&["--help"]);
    assert_eq!(code, 0);
    for word in ["serve", "certs", "vm", "plugin", "Exit codes", "denied by policy", "OSTLER_ENDPOINT"] {
        assert!(help.contains(word), "{word} is not in:\n{help}");
    }
    for arguments in [&["exit-codes"][..], &["help", "exit-codes"]] {
        let (code, codes, _) = ostler(arguments);
        assert!(code == 0 && codes.contains("8      what was waited for cannot happen any more"), "{codes}");
    }
    let (code, script, _) = ostler(&["completions", "bash"]);
    assert!(code == 0 && script.contains("_ostler"), "{script}");
    assert_eq!(ostler(&["vm", "register", "web"]).0, 2);
    assert_eq!(ostler(&[]).0, 2);
}

#[test]
fn certs_init_makes_what_is_missing_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("certs");
    let dir = dir.to_str().unwrap();
    let (code, table, _) = ostler(&["certs", "init", "--dir", dir, "--tenant", "acme"]);
    assert_eq!(code, 0);
    assert!(table.contains("spiffe://ostler.local/tenant/acme"), "{table}");
    let (code, json, _) = ostler(&["certs", "init", "--dir", dir, "--tenant", "acme", "-o", "json"]);
    assert_eq!(code, 0);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let rows = report["certificates"].as_array().unwrap();
    assert!(rows.len() == 4 && rows.iter().all(|row| row["action"] == "kept"), "{json}");
    let (code, _, error) = ostler(&["certs", "init", "--dir", dir, "--tenant", "A/B"]);
    assert!(code == 2 && error.contains("--tenant") && error.contains("A/B"), "{error}");
}

#[test]
fn a_missing_identity_or_daemon_is_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().to_str().unwrap();
    let identity = format!("{dir}/tenant-acme");
    let list = ["vm", "list", "--endpoint", "https://127.0.0.1:1", "--identity", &identity];
    let (code, _, error) = ostler(&list);
    assert!(code == 2 && error.contains("tenant-acme.pem") && error.contains("hint: make one with"), "{error}");
    ostler(&["certs", "init", "--dir", dir, "--tenant", "acme"]);
    let (code, _, error) = ostler(&list);
    assert!(code == 3 && error.contains("https://127.0.0.1:1: nothing listens"), "{error}");
    assert!(error.contains("hint: start it with ostler serve"), "{error}");
}

#[test]
fn a_daemon_of_another_ca_is_refused_with_the_way_out() {
    let host = Host::without_policy();
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().to_str().unwrap();
    ostler(&["certs", "init", "--dir", dir, "--tenant", "acme"]);
    let stranger = format!("{dir}/tenant-acme");
    let (code, _, error) = run(host.command(&stranger).args(["vm", "list"]));
    assert!(code == 3 && error.contains("hint: name the daemon's CA with --ca"), "{error}");
    // Trusting the daemon does not make the daemon trust the client.
    let ca = host.certs().join("ca.pem");
    let (code, _, error) = run(host.command(&stranger).args(["vm", "list", "--ca"]).arg(ca));
    assert!(code == 3 && error.contains("refuses this identity") && error.contains("hint: "), "{error}");
    // Nor does it trust one that has expired.
    let wish = Wish { valid_days: -30..-1, ..Wish::for_uris(&["spiffe://ostler.local/tenant/acme"]) };
    Authority::of(&host.certs()).issue_files(&wish, &host.certs().join("expired"));
    let (code, _, error) = run(host.command("expired").args(["vm", "list"]));
    assert!(code == 3 && error.contains("has expired") && error.contains("hint: "), "{error}");
}

#[test]
fn a_vm_is_registered_shown_and_destroyed() {
    let host = Host::start();
    let acme = |arguments: &[&str]| run(host.command("tenant-acme").args(arguments));
    let (code, text, error) = acme(&[&REGISTER[..], &["--memory", "1G", "--vcpus", "2"]].concat());
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(text.starts_with("acme/web is REGISTERED\nadmitted by: admission sha256:"), "{text}");
    let (_, table, _) = acme(&["vm", "list"]);
    let cells: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(cells, ["acme/web", "REGISTERED", "2", "1GiB"]);
    let (_, json, _) = acme(&["vm", "get", "web", "-o", "json"]);
    let vm: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&vm["name"], &vm["spec"]["memory_mib"]), (&"tenants/acme/vms/web".into(), &1024.into()));
    assert_eq!(vm["admission"]["opinions"][0]["plugin"], "admission");
    // The operator writes whose it is.
    let operator = |arguments: &[&str]| run(host.command("operator-admin").args(arguments));
    let (code, _, error) = operator(&["vm", "get", "web"]);
    assert!(code == 2 && error.contains("hint: an operator writes TENANT/web"), "{error}");
    assert_eq!(operator(&["vm", "get", "acme/web"]).0, 0);
    let (code, watched, _) = operator(&["vm", "watch", "acme/web", "--until", "REGISTERED", "-o", "json"]);
    assert_eq!((code, watched.lines().count()), (0, 1), "{watched}");

    assert_eq!(acme(&["vm", "destroy", "web"]), (0, "acme/web is DESTROYED\n".to_owned(), String::new()));
    let (code, _, error) = acme(&["vm", "get", "web"]);
    assert!(code == 4 && error.contains("acme/web: ") && error.contains("hint: ostler vm list"), "{error}");
}

#[test]
fn refusals_have_their_exit_codes_and_hints() {
    let host = Host::without_policy();
    let acme = |arguments: &[&str]| run(host.command("tenant-acme").args(arguments));
    let (code, _, error) = acme(&REGISTER);
    assert!(code == 5 && error.contains("hint: load an admission plugin"), "{error}");

    let plugin = tempfile::Builder::new().prefix("admission").suffix(".wasm").tempfile().unwrap();
    std::fs::write(plugin.path(), assets::plugin("admission")).unwrap();
    let load = |identity: &str, settings: &[&str]| {
        let mut command = host.command(identity);
        command.args(["plugin", "load", "--operator", "--name", "admission"]).arg(plugin.path());
        run(command.args(settings))
    };
    assert_eq!(load("tenant-acme", &[]).0, 1);
    let (code, _, error) = load("operator-admin", &["--setting", "max-cpus=2"]);
    assert!(code == 2 && error.contains("max-cpus"), "{error}");
    let (code, table, error) = load("operator-admin", &["--setting", "max-vcpus=2"]);
    assert!(
        code == 0 && table.contains("operator/plugins/admission") && table.contains("max-vcpus=2"),
        "{table}{error}"
    );
    assert!(acme(&["plugin", "list"]).1.contains("operator/plugins/admission"));

    let (code, _, error) = acme(&[&REGISTER[..], &["--vcpus", "4"]].concat());
    assert!(code == 5 && error.contains("limit.vcpus") && error.contains("plugin: admission"), "{error}");
    assert!(error.contains("digest: sha256:"), "{error}");
    assert_eq!(acme(&REGISTER).0, 0);
    assert_eq!(acme(&REGISTER).0, 1);
    let (code, _, error) = acme(&["vm", "stop", "web"]);
    assert!(code == 6 && error.contains("REGISTERED") && error.contains("hint: "), "{error}");
    let (code, _, error) = acme(&["vm", "watch", "web", "--until", "RUNNING", "--timeout", "200ms"]);
    assert!(code == 7 && error.contains("200.0 ms"), "{error}");
    let (code, _, error) = acme(&["vm", "console", "web"]);
    assert!(code == 6 && error.contains("hint: start it with ostler vm start acme/web"), "{error}");
    let (code, _, error) = acme(&["plugin", "load", "/nonexistent/plugin.wasm"]);
    assert!(code == 2 && error.contains("/nonexistent/plugin.wasm"), "{error}");
}

#[test]
fn a_virtual_function_is_asked_for_shown_and_missed() {
    let host = Host::start();
    let acme = |arguments: &[&str]| run(host.command("tenant-acme").args(arguments));
    let operator = |arguments: &[&str]| run(host.command("operator-admin").args(arguments));
    let nic = ["--nic", "id=net0,sriov,mac=02:00:00:00:00:01,vlan=100"];
    let (code, _, error) = acme(&[&REGISTER[..], &nic].concat());
    assert_eq!((code, error.as_str()), (0, ""));
    let (_, json, _) = acme(&["vm", "get", "web", "-o", "json"]);
    let vm: serde_json::Value = serde_json::from_str(&json).unwrap();
    let wish = &vm["spec"]["nics"][0]["sriov"];
    assert_eq!((&wish["mac"], &wish["vlan"]), (&"02:00:00:00:00:01".into(), &100.into()));
    assert_eq!((&vm["nics"][0]["tap"], &vm["nics"][0]["guest_address"]), (&"".into(), &"".into()));
    let (_, text, _) = acme(&["vm", "get", "web"]);
    assert!(text.contains("net0: SR-IOV, 02:00:00:00:00:01, VLAN 100"), "{text}");
    for bad in ["id=net0,sriov,mac=ff:ff:ff:ff:ff:ff", "id=net0,sriov,mac=x"] {
        let (code, _, error) =
            acme(&[&["vm", "register", "bad", "--kernel", assets::PLACEHOLDER, "--nic"], &[bad][..]].concat());
        assert!(code == 2 && error.contains("spec.nics[0].sriov.mac"), "{error}");
    }

    let (code, json, _) = operator(&["host", "devices", "-o", "json"]);
    let devices: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(code == 0 && devices["physical_functions"].is_array(), "{json}");
    let (code, _, error) = acme(&["host", "devices"]);
    assert!(code == 1 && error.contains("an operator may see") && error.contains("NOT_ALLOWED"), "{error}");
    let (code, _, error) = operator(&["host", "release", "0000:ff:1f.7"]);
    assert!(code == 4 && error.contains("hint: ostler host devices"), "{error}");
    assert_eq!(operator(&["host", "release", "eth0"]).0, 2);
    // This host has no card to give from, or no plugin that would: the VM says which, and can be started again.
    let (code, _, error) = acme(&["vm", "start", "web"]);
    assert!(code == 1 && (error.contains("SR-IOV virtual function") || error.contains("select-vf")), "{error}");
    let (_, text, _) = acme(&["vm", "get", "web"]);
    assert!(text.contains("FAILED (launch failed: "), "{text}");
}

#[test]
fn top_prints_tables_or_json_and_ends() {
    let host = Host::without_policy();
    let top = ["top", "--interval", "100ms"];
    let (code, table, error) = run(host.command("operator-admin").args(top));
    assert!(code == 0 && table.starts_with("host: ") && table.contains("% busy; "), "{table}{error}");
    assert!(table.contains("\nTENANT") && table.contains("\nVM "), "{table}");
    let (code, lines, error) = run(host.command("tenant-acme").args(top).args(["-n", "2", "-o", "json"]));
    assert_eq!(code, 0, "{error}");
    let looks: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(looks.len(), 2);
    assert!(looks.iter().all(|look| look["host"].is_null()), "the host is not for tenants: {lines}");
    for (wrong, says) in [(["--interval", "1ms"], "100.0 ms at least"), (["--count", "0"], "0 is not in 1..")] {
        let (code, _, error) = run(host.command("tenant-acme").arg("top").args(wrong));
        assert!(code == 2 && error.contains(says), "{error}");
    }
    let (code, _, error) = run(host.command("tenant-acme").args(["top", "--tenant", "globex"]));
    assert!(code == 1 && error.contains("NOT_ALLOWED"), "{code} {error}");
}

#[test]
fn top_is_a_page_of_its_own_on_a_terminal_until_a_key_ends_it() {
    let host = Host::without_policy();
    let top = host.command("operator-admin");
    // script(1) runs it on a terminal and passes on what that shows.
    let mut terminal = Command::new("script");
    terminal.envs(top.get_envs().filter_map(|(key, value)| Some((key, value?))));
    terminal.args(["-qefc", &format!("{} top --interval 100ms", top.get_program().display()), "/dev/null"]);
    let mut shown = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("bsdutils has script(1)");
    let (mut keys, mut page) = (shown.stdin.take().unwrap(), shown.stdout.take().unwrap());
    let mut seen = String::new();
    let mut until_shown = |words: &str| {
        let (mut bytes, end) = ([0; 4096], Instant::now() + SOON);
        while !seen.contains(words) {
            assert!(Instant::now() < end, "{words:?} is not in {seen:?}");
            let len = page.read(&mut bytes).unwrap();
            assert!(len > 0, "{words:?} is not in {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&bytes[..len]));
        }
        std::mem::take(&mut seen)
    };
    let first = until_shown("by cpu");
    assert!(first.contains("\x1b[?1049h"), "{first:?}");
    until_shown("% busy; ");
    keys.write_all(b"m").unwrap();
    until_shown("by memory");
    keys.write_all(b"q").unwrap();
    until_shown("\x1b[?1049l");
    assert_eq!(shown.wait().unwrap().code(), Some(0));
}
