//! Waiting for VMs and following what happens to them, on the command line. Needs no guest.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::support::wait::{SOON, until};
use crate::support::{Host, assets, small};
use ostler::api::v1::virtual_machine::State;
use serde_json::Value;

/// Exit code, stdout, stderr.
fn acme(host: &Host, arguments: &[&str]) -> (i32, String, String) {
    let output = host.command("tenant-acme").args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// A command that goes on, read line by line.
struct Follower {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Follower {
    fn spawn(host: &Host, arguments: &[&str]) -> Self {
        let mut command = host.command("tenant-acme");
        command.args(arguments).args(["-o", "json"]);
        Self::of(command)
    }

    fn of(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next line; a follower that ends gives none.
    fn line(&mut self) -> String {
        self.lines.next().expect("the follower ended").unwrap()
    }

    /// The same as JSON: a daemon that is silent sends bookmarks.
    fn next(&mut self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// The next change: what happened, and its token.
    fn change(&mut self) -> (Value, String) {
        loop {
            let line = self.next();
            if line["virtual_machine"] != "" {
                return (line["events"].clone(), line["resume_token"].as_str().unwrap().to_owned());
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_wait_is_met_in_vain_too_long_or_for_nothing() {
    let host = Host::start();
    let caller = host.tenant("acme");
    let wait = |arguments: &[&str]| acme(&host, &[&["vm", "wait"][..], arguments].concat());
    assert_eq!(wait(&["web", "--for=deleted"]), (0, "acme/web is DESTROYED\n".into(), String::new()));
    let (code, _, error) = wait(&["web", "--for=registered"]);
    assert!(code == 4 && error.contains("acme/web: no such") && error.contains("hint: ostler vm list"), "{error}");

    caller.register("web", small()).unwrap();
    assert_eq!(wait(&["web", "--for=registered"]), (0, "acme/web is REGISTERED\n".into(), String::new()));
    let (code, json, _) = wait(&["web", "--for=device=data:detached", "-o", "json"]);
    let vm: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &vm["name"]), (0, &"tenants/acme/vms/web".into()));
    let (code, _, error) = wait(&["web", "--for=device=data:attached", "--timeout", "200ms"]);
    assert!(code == 7 && error.contains("acme/web: not data ATTACHED within 200.0 ms"), "{error}");
    host.add_volume("acme", "data.img", &[0; 1 << 20]);
    let attach = acme(&host, &["vm", "attach", "web", "--disk", "id=data,volume=data.img"]);
    assert_eq!(attach.0, 0, "{attach:?}");
    assert_eq!(wait(&["web", "--for=device=data:attached"]).0, 0);

    // Its kernel is none: each start fails.
    caller.start("web").unwrap_err();
    let (code, _, error) = wait(&["web", "--for=stopped"]);
    assert!(code == 8 && error.contains("acme/web is FAILED") && error.contains("will not be STOPPED"), "{error}");
    // One that was FAILED before may still come to run: only a start that fails meanwhile ends this one.
    let mut waiting = host.command("tenant-acme");
    let mut waiting = waiting.args(["vm", "wait", "web", "--for=running"]).stderr(Stdio::piped()).spawn().unwrap();
    until("the wait's end", SOON, || {
        caller.start("web").unwrap_err();
        waiting.try_wait().unwrap()
    });
    let output = waiting.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(8) && error.contains("will not be RUNNING"), "{error}");
    // Another's VMs are not for waiting.
    let (code, _, error) = wait(&["globex/web", "--for=deleted"]);
    assert!(code == 1 && error.contains("NOT_ALLOWED"), "{error}");
}

#[test]
fn a_run_that_does_not_begin_leaves_nothing_unless_it_is_told_to() {
    let host = Host::start();
    let caller = host.tenant("acme");
    let run =
        |arguments: &[&str]| acme(&host, &[&["vm", "run", "--kernel", assets::PLACEHOLDER][..], arguments].concat());
    let (code, _, error) = run(&[]);
    assert!(code == 1 && error.contains("START_FAILED"), "{error}");
    assert!(caller.list("").unwrap().is_empty());
    assert_eq!(run(&["kept", "--rm", "never"]).0, 1);
    assert_eq!(caller.get("kept").unwrap().state(), State::Failed);
    let (code, _, error) = run(&["alone", "--detach"]);
    assert!(code == 1 && error.contains("hint: ostler vm console acme/alone"), "{error}");
    assert_eq!(caller.get("alone").unwrap().state(), State::Failed);
    // What is there already is not ours to destroy.
    let (code, _, error) = run(&["kept"]);
    assert!(code == 1 && error.contains("VM_EXISTS"), "{error}");
    assert!(caller.get("kept").is_ok());
    let output = host.command("operator-admin").args(["vm", "run", "--kernel", assets::PLACEHOLDER]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && error.contains("an operator writes TENANT/run-"), "{error}");
}

#[test]
fn events_are_told_in_order_and_go_on_where_they_were() {
    let host = Host::start();
    let caller = host.tenant("acme");
    caller.register("old", small()).unwrap();
    let mut events = Follower::spawn(&host, &["events", "--bookmarks"]);
    let first = events.next();
    assert!(first["events"].as_array().unwrap().is_empty() && first["resume_token"] != "", "{first}");
    caller.register("web", small()).unwrap();
    host.add_volume("acme", "data.img", &[0; 1 << 20]);
    for arguments in [
        &["vm", "attach", "web", "--disk", "id=data,volume=data.img"][..],
        &["vm", "limit", "web", "data", "--iops", "500"],
        &["vm", "detach", "web", "data"],
    ] {
        let done = acme(&host, arguments);
        assert_eq!(done.0, 0, "{done:?}");
    }
    caller.destroy("web", false).unwrap();

    let mut seen = Vec::new();
    let mut tokens = Vec::new();
    while !seen.iter().any(|event: &String| event.contains("DESTROYED")) {
        let (happened, token) = events.change();
        for event in happened.as_array().unwrap() {
            let field = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            seen.push(format!("{} {}{}", field("kind"), field("id"), field("state")));
        }
        tokens.push(token);
    }
    let expected = [
        "state REGISTERED",
        "device dataATTACHED",
        "spec ",
        "device dataDETACHED",
        "state DESTROYING",
        "state DESTROYED",
    ];
    assert_eq!(seen, expected);
    // From the second change on, once more and as text: without what was before, a change is told as its state.
    let mut command = host.command("tenant-acme");
    command.args(["events", "web", "--resume", &tokens[1]]);
    let mut follower = Follower::of(command);
    let told: Vec<_> = (0..4).map(|_| follower.line().split_once("  ").unwrap().1.to_owned()).collect();
    assert_eq!(
        told,
        [
            "acme/web                 REGISTERED",
            "acme/web                 device data DETACHED",
            "acme/web                 DESTROYING",
            "acme/web                 DESTROYED"
        ]
    );
    // Then there is nothing, and the end of its time is no failure.
    let (code, text, error) = acme(&host, &["events", "web", "--resume", tokens.last().unwrap(), "--timeout", "1s"]);
    assert_eq!((code, text.as_str(), error.as_str()), (0, "", ""));
}

#[test]
fn a_daemon_that_starts_anew_ends_neither_events_nor_waits() {
    let mut host = Host::start();
    host.tenant("acme").register("web", small()).unwrap();
    let mut events = Follower::spawn(&host, &["events", "--bookmarks"]);
    events.next();
    host.kill_daemon();
    host.start_daemon();
    host.tenant("acme").destroy("web", false).unwrap();
    for state in ["DESTROYING", "DESTROYED"] {
        let (happened, _) = events.change();
        assert_eq!(happened[0]["state"], state, "{happened}");
    }
}
