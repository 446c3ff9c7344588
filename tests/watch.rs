//! Watches that break and go on. Needs no guest.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::support::client::{spawn, wait};
use crate::support::{Caller, Host, facts, small};
use ostler::api::v1;
use ostler::api::v1::virtual_machine::State;
use tonic::Code;

/// Registers and destroys VMs, several at a time: three changes for each of `count`.
fn churn(caller: &Caller, count: usize) {
    let workers: Vec<_> = (0..8)
        .map(|worker| {
            let (done, is_done) = std::sync::mpsc::channel();
            let caller = caller.clone();
            spawn(async move {
                for at in (worker..count).step_by(8) {
                    let name = caller.name(&format!("churn-{at}"));
                    let vm = v1::VirtualMachine { name: name.clone(), spec: Some(small()), ..Default::default() };
                    let register =
                        v1::RegisterVirtualMachineRequest { virtual_machine: Some(vm), ..Default::default() };
                    caller.vms.clone().register_virtual_machine(register).await.unwrap();
                    let destroy = v1::DestroyVirtualMachineRequest { name, ..Default::default() };
                    caller.vms.clone().destroy_virtual_machine(destroy).await.unwrap();
                }
                done.send(()).unwrap();
            });
            is_done
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.recv().unwrap());
}

#[test]
fn a_watch_that_is_resumed_misses_nothing_and_repeats_nothing() {
    let mut host = Host::start();
    let operator = host.operator();
    let mut watch = operator.watch("").unwrap();
    let first = watch.next_message();
    assert!(first.bookmark && first.virtual_machine.is_none() && !first.resume_token.is_empty(), "{first:?}");
    churn(&host.tenant("acme"), 40);
    let (mut token, mut seen) = (first.resume_token, Vec::new());
    // Broken after 1, 2, … changes, by this side and by a daemon that is killed.
    for len in 1..=9 {
        let mut watch = host.operator().resume_watch("", &token).unwrap();
        for _ in 0..len {
            let change = watch.next();
            assert!(!change.initial);
            seen.push((change.revision, change.virtual_machine.unwrap().state()));
            token = change.resume_token;
        }
        if len == 5 {
            host.kill_daemon();
            host.start_daemon();
        }
    }
    let mut watch = host.operator().resume_watch("", &token).unwrap();
    while seen.len() < 120 {
        let change = watch.next();
        seen.push((change.revision, change.virtual_machine.unwrap().state()));
    }
    let caught_up = watch.next_message();
    assert!(caught_up.bookmark, "{caught_up:?}");
    let revisions: Vec<_> = seen.iter().map(|(revision, _)| *revision).collect();
    assert_eq!(revisions, (first.revision + 1..=first.revision + 120).collect::<Vec<_>>());
    for wanted in [State::Registered, State::Destroying, State::Destroyed] {
        assert_eq!(seen.iter().filter(|(_, state)| *state == wanted).count(), 40, "{wanted:?}");
    }
    // It goes on behind what was missed.
    host.tenant("acme").register("late", small()).unwrap();
    assert_eq!(watch.next().revision, first.revision + 121);
}

#[test]
fn a_snapshot_is_marked_complete_and_has_no_token_before() {
    let host = Host::start();
    let acme = host.tenant("acme");
    for vm in ["a", "b"] {
        acme.register(vm, small()).unwrap();
    }
    let mut watch = acme.watch("").unwrap();
    for _ in 0..2 {
        let initial = watch.next_message();
        assert!(initial.initial && !initial.bookmark && initial.resume_token.is_empty(), "{initial:?}");
    }
    let complete = watch.next_message();
    assert!(complete.bookmark && !complete.initial && !complete.resume_token.is_empty(), "{complete:?}");
}

#[test]
fn a_token_shows_nobody_more_than_a_watch_would() {
    let host = Host::start();
    let (acme, globex, operator) = (host.tenant("acme"), host.tenant("globex"), host.operator());
    let start = operator.watch("").unwrap().next_message().resume_token;
    acme.register("hidden", small()).unwrap();
    globex.register("own", small()).unwrap();
    let mut theirs = globex.resume_watch("", &start).unwrap();
    assert_eq!(theirs.next().virtual_machine.unwrap().name, "tenants/globex/vms/own");
    assert_eq!(facts(&globex.resume_watch("tenants/acme", &start).err().unwrap()).reason, "NOT_ALLOWED");

    for malformed in ["x", "!!", "AAAA", &"A".repeat(100 << 10)] {
        let refused = facts(&globex.resume_watch("", malformed).err().unwrap());
        assert_eq!((refused.code, refused.metadata["field"].as_str()), (Code::InvalidArgument, "resume_token"));
        assert!(refused.message.len() < 300);
    }
    // Of another node, or of what never came to the disk: well formed, and unknown.
    let end = globex.watch("").unwrap();
    drop(end);
    for foreign in ["AAAAAAAAAAMAAAAAAAAAAw", "_____________________w"] {
        let refused = facts(&globex.resume_watch("", foreign).err().unwrap());
        assert_eq!((refused.code, refused.reason.as_str()), (Code::OutOfRange, "WATCH_COMPACTED"), "{refused:?}");
        assert!(refused.message.contains("watch anew"), "{refused:?}");
    }
}

#[test]
fn a_reader_that_sleeps_is_cut_off_and_told_while_others_are_served() {
    let host = Host::start();
    let (acme, operator) = (host.tenant("acme"), host.operator());
    let mut sleeper = operator.watch("").unwrap();
    let start = sleeper.next_message().resume_token;
    churn(&acme, 734);
    // The others were served meanwhile, by the very calls above; now the sleeper wakes.
    let mut last = start.clone();
    let end = loop {
        match wait(sleeper.0.message()) {
            Ok(Some(message)) => last = message.resume_token,
            Ok(None) => panic!("ended without a word"),
            Err(status) => break status,
        }
    };
    let lagged = facts(&end);
    assert_eq!((lagged.code, lagged.reason.as_str()), (Code::Aborted, "WATCH_LAGGED"), "{lagged:?}");
    assert!(lagged.message.contains("resume"), "{lagged:?}");
    // It had read a little: from there the rest is still known. From the start it is not.
    let mut resumed = operator.resume_watch("", &last).unwrap();
    let mut count = 0;
    while !resumed.next_message().bookmark {
        count += 1;
    }
    assert!(count > 1000, "{count} changes");
    let compacted = facts(&operator.resume_watch("", &start).err().unwrap());
    assert_eq!((compacted.code, compacted.reason.as_str()), (Code::OutOfRange, "WATCH_COMPACTED"), "{compacted:?}");
    assert!(compacted.metadata["oldest"].parse::<u64>().unwrap() > 100);
}

#[test]
fn the_command_line_goes_on_where_it_was() {
    let host = Host::start();
    let acme = host.tenant("acme");
    acme.register("a", small()).unwrap();
    // The first lines of a watch that goes on: each one's VM and token.
    let watch = |count: usize, arguments: &[&str]| -> (Vec<String>, Vec<String>) {
        let mut command = host.command("tenant-acme");
        command.args(["vm", "watch", "-o", "json"]).args(arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(count);
        let seen = lines.map(|line| {
            let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
            let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
            (text(&line["virtual_machine"]["name"]).replace("tenants/acme/vms/", ""), text(&line["resume_token"]))
        });
        let seen = seen.unzip();
        child.kill().unwrap();
        child.wait().unwrap();
        seen
    };
    let mut stream = acme.watch("").unwrap();
    let token = loop {
        let message = stream.next_message();
        if message.bookmark {
            break message.resume_token;
        }
    };
    acme.register("b", small()).unwrap();
    acme.register("last", small()).unwrap();
    let (vms, tokens) = watch(2, &["--resume", &token]);
    assert_eq!(vms, ["b", "last"]);
    assert_eq!(watch(1, &["--resume", &tokens[0]]).0, ["last"]);
    let mut all = watch(3, &[]).0;
    all.sort();
    assert_eq!(all, ["a", "b", "last"]);
    // Behind the last one there is nothing until its time is over.
    let mut command = host.command("tenant-acme");
    let output = command.args(["vm", "watch", "--timeout", "1s", "--resume", &tokens[1]]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(7), &b""[..]));
}
