//! How a VM stops, restarts and fails, and what watchers see of it. Boots guests (feature `lab`).

use std::time::{Duration, Instant};

use crate::support::client::{spawn, wait};
use crate::support::guest::{boot, linux, linux_with, nic};
use crate::support::host::taps;
use crate::support::terminal::Terminal;
use crate::support::wait::{BOOT, SOON, until};
use crate::support::{Host, facts};
use ostler::api::v1;
use ostler::api::v1::virtual_machine::State;
use tonic::Code;

/// Waits until the VM is in a state, as a client would see it.
fn reaches(caller: &crate::support::Caller, vm: &str, state: State) -> v1::VirtualMachine {
    until(state.as_str_name(), BOOT, || caller.get(vm).ok().filter(|vm| vm.state() == state))
}

/// Nothing of any VM is left: no process, no run directory, no tap.
fn assert_clean(host: &Host, taps_before: &[String]) {
    until("the vmm's end", SOON, || host.vmm_processes().is_empty().then_some(()));
    until("empty run directories", SOON, || host.run_entries().is_empty().then_some(()));
    until("the taps' end", SOON, || taps().iter().all(|tap| taps_before.contains(tap)).then_some(()));
}

#[test]
fn a_stop_presses_the_power_button_and_a_watcher_sees_every_step() {
    let before = taps();
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let mut watch = acme.watch("").unwrap();
    let spec = v1::VirtualMachineSpec { nics: vec![nic("eth0")], ..linux() };
    let (_console, _) = boot(&host, &acme, "web", spec);
    let running = acme.get("web").unwrap();
    assert!(running.vmm_pid > 0 && !running.nics[0].tap.is_empty(), "{running:?}");
    let begin = Instant::now();
    let grace = Duration::from_secs(120);
    let stopped = acme.stop("web", Some(grace.as_millis() as u64)).unwrap();
    assert!(begin.elapsed() < grace, "it was killed instead");
    assert_eq!((stopped.state(), stopped.vmm_pid, stopped.failure.as_str()), (State::Stopped, 0, ""));
    assert_clean(&host, &before);
    acme.destroy("web", false).unwrap();
    let seen = watch.states_until("tenants/acme/vms/web", State::Destroyed);
    assert_eq!(seen, ["REGISTERED", "STARTING", "RUNNING", "STOPPING", "STOPPED", "DESTROYING", "DESTROYED"]);
    assert_eq!(acme.get("web").unwrap_err().code(), Code::NotFound);
}

#[test]
fn a_guest_that_ignores_the_button_is_killed_at_the_deadline() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let (mut console, _) = boot(&host, &acme, "web", linux());
    // Without its driver the button does nothing.
    console.run("for b in /sys/bus/*/drivers/*button*/*:*; do echo ${b##*/} > ${b%/*}/unbind; done");
    let begin = Instant::now();
    let stopped = acme.stop("web", Some(3_000)).unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(3), "the guest obeyed after all");
    assert_eq!((stopped.state(), stopped.failure.as_str()), (State::Stopped, ""));
    until("the vmm's end", SOON, || host.vmm_processes().is_empty().then_some(()));
}

#[test]
fn a_stop_without_grace_is_immediate_and_the_vm_starts_again() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let (_console, _) = boot(&host, &acme, "web", linux());
    let uid = acme.get("web").unwrap().uid;
    assert_eq!(acme.stop("web", Some(0)).unwrap().state(), State::Stopped);
    assert_eq!(acme.start("web").unwrap().uid, uid);
    host.console(&acme, "web").expect_ready();
    // A second start, and a destroy without force, are refused by name of the state.
    for refused in [acme.start("web").unwrap_err(), acme.destroy("web", false).unwrap_err()] {
        assert_eq!(facts(&refused).code, Code::FailedPrecondition);
        assert!(refused.message().contains("RUNNING"), "{refused:?}");
    }
    assert_eq!(acme.get("web").unwrap().state(), State::Running);
    acme.destroy("web", true).unwrap();
    until("the vmm's end", SOON, || host.vmm_processes().is_empty().then_some(()));
}

#[test]
fn a_guest_that_powers_off_is_stopped_and_its_console_can_still_be_read() {
    let before = taps();
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    acme.register("web", linux_with("ostler.exec=poweroff")).unwrap();
    acme.start("web").unwrap();
    let stopped = reaches(&acme, "web", State::Stopped);
    assert_eq!((stopped.vmm_pid, stopped.failure.as_str()), (0, ""));
    let (printed, end) = host.console(&acme, "web").end();
    assert!(printed.contains("ostler-guest: kernel 6.12"), "{printed}");
    assert_eq!(facts(&end.unwrap_err()).code, Code::FailedPrecondition);
    assert_clean(&host, &before);
}

#[test]
fn a_guest_that_reboots_runs_again() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let name = "tenants/acme/vms/web";
    let (mut console, _) = boot(&host, &acme, "web", linux());
    let first = acme.get("web").unwrap();
    let mut watch = acme.watch("").unwrap();
    console.type_line("reboot -f");
    let mut seen = watch.states_until(name, State::Starting);
    seen.extend(watch.states_until(name, State::Running));
    seen.dedup();
    assert_eq!(seen, ["RUNNING", "STARTING", "RUNNING"]);
    host.console(&acme, "web").expect_ready();
    let second = acme.get("web").unwrap();
    assert_eq!(first.uid, second.uid);
    assert_ne!(first.vmm_pid, second.vmm_pid);
    assert_eq!(host.vmm_processes(), [second.vmm_pid]);
}

#[test]
fn a_power_button_is_the_guest_s_affair_and_a_reboot_is_not() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let (mut console, _) = boot(&host, &acme, "web", linux());
    let first = acme.get("web").unwrap();
    let rebooted = acme.reboot("web", Some(120_000)).unwrap();
    assert_eq!((rebooted.state(), &rebooted.uid), (State::Running, &first.uid));
    assert_ne!(rebooted.vmm_pid, first.vmm_pid);
    drop(console);
    console = host.console(&acme, "web");
    console.expect_ready();
    // A guest that ignores the button is rebooted all the same, by force.
    console.run("for b in /sys/bus/*/drivers/*button*/*:*; do echo ${b##*/} > ${b%/*}/unbind; done");
    assert_eq!(acme.press_power_button("web").unwrap().state(), State::Running);
    assert_eq!(acme.reboot("web", Some(1_000)).unwrap().state(), State::Running);
    host.console(&acme, "web").expect_ready();
    assert_eq!(acme.press_power_button("web").unwrap().state(), State::Running);
    assert_eq!(reaches(&acme, "web", State::Stopped).failure, "");
    for refused in [acme.press_power_button("web").unwrap_err(), acme.reboot("web", None).unwrap_err()] {
        assert_eq!(facts(&refused).code, Code::FailedPrecondition, "{refused:?}");
    }
}

#[test]
fn a_guest_that_triple_faults_is_failed_with_the_cause_and_can_start_again() {
    let before = taps();
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    // Linux reboots by a triple fault (reboot=t).
    acme.register("web", linux_with("reboot=t ostler.exec=reboot")).unwrap();
    let mut watch = acme.watch("").unwrap();
    acme.start("web").unwrap();
    let failed = reaches(&acme, "web", State::Failed);
    assert!(failed.failure.contains("triple-faulted"), "{failed:?}");
    assert_clean(&host, &before);
    let seen = watch.states_until("tenants/acme/vms/web", State::Failed);
    assert_eq!(seen, ["REGISTERED", "STARTING", "RUNNING", "FAILED"]);
    acme.start("web").unwrap();
    reaches(&acme, "web", State::Failed);
    acme.destroy("web", false).unwrap();
}

#[test]
fn a_console_has_many_readers_and_one_guest() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let (mut first, _) = boot(&host, &acme, "web", linux());
    let mut second = host.console(&acme, "web");
    // The second sees the past, then what the first one does.
    second.expect_ready();
    first.run("echo to-$((20+1))-all");
    second.expect("to-21-all");
    drop(first);
    // Not `run`: both consoles number their commands alike, and see each other's.
    second.type_line("echo still-$((40+2))");
    second.expect("still-42");
}

#[test]
fn the_command_line_drives_a_vm_from_start_to_end() {
    let host = Host::with_guests();
    let run = |arguments: &[&str]| {
        let output = host.command("tenant-acme").args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    let kernel = ["--kernel", "linux-6.12/vmlinux", "--initrd", "linux-6.12/initrd"];
    let registered = run(&[&["vm", "register", "web", "--memory", "256M"][..], &kernel].concat());
    assert!(registered.contains("acme/web is REGISTERED") && registered.contains("admission sha256:"), "{registered}");
    assert_eq!(run(&["vm", "start", "web"]), "acme/web is RUNNING\n");
    let printed = run(&["vm", "console", "web", "--until", "ostler-guest: ready", "--timeout", "150s"]);
    assert!(printed.contains("ostler-guest: kernel 6.12"), "{printed}");
    let watched = run(&["vm", "watch", "web", "--until", "RUNNING", "-o", "json"]);
    assert!(watched.contains("\"state\":\"RUNNING\""), "{watched}");
    assert_eq!(run(&["vm", "pause", "web"]), "acme/web is PAUSED\n");
    assert_eq!(run(&["vm", "watch", "web", "--until", "PAUSED", "-o", "json"]).lines().count(), 1);
    assert_eq!(run(&["vm", "resume", "web"]), "acme/web is RUNNING\n");
    assert_eq!(run(&["vm", "nmi", "web"]), "acme/web: interrupted\n");
    assert_eq!(run(&["vm", "reboot", "web", "--force"]), "acme/web is RUNNING\n");
    assert_eq!(run(&["vm", "power-button", "web"]), "acme/web: pressed\n");
    assert_eq!(run(&["vm", "stop", "web", "--force"]), "acme/web is STOPPED\n");
    assert_eq!(run(&["vm", "destroy", "web"]), "acme/web is DESTROYED\n");
}

const LINUX: [&str; 6] = ["--memory", "256M", "--kernel", "linux-6.12/vmlinux", "--initrd", "linux-6.12/initrd"];

/// `vm run` of a guest that does what its command line says: exit code, what it printed, what was said about it.
fn run_to_its_end(host: &Host, arguments: &[&str]) -> (i32, String, String) {
    let output = host.command("tenant-acme").args(["vm", "run"]).args(LINUX).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_vm_for_the_moment_ends_as_its_guest_does_and_leaves_nothing() {
    let before = taps();
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let (code, printed, error) = run_to_its_end(&host, &["--cmdline", "quiet ostler.exec=poweroff"]);
    assert_eq!((code, error.as_str()), (0, ""), "{printed}");
    assert_eq!(printed.matches("ostler-guest: kernel 6.12").count(), 1, "{printed}");
    let (code, printed, error) = run_to_its_end(&host, &["crash", "--cmdline", "quiet panic=-1 ostler.exec=panic"]);
    assert!(code == 9 && error.contains("acme/crash is FAILED (guest kernel panicked)"), "{error}");
    assert!(printed.contains("Kernel panic - not syncing"), "{printed}");
    let (code, _, error) = run_to_its_end(&host, &["--timeout", "2s", "--grace", "0", "--cmdline", "quiet"]);
    assert!(code == 7 && error.contains("did not end within 2.0 s"), "{error}");
    assert!(acme.list("").unwrap().is_empty());
    assert_clean(&host, &before);

    let (code, name, _) = run_to_its_end(&host, &["--detach", "--cmdline", "quiet"]);
    let name = name.trim().strip_prefix("acme/").unwrap();
    assert_eq!((code, acme.get(name).unwrap().state()), (0, State::Running));
    acme.destroy(name, true).unwrap();
}

#[test]
fn a_vm_for_the_moment_outlives_resets_and_not_its_client() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::Stdio;
    let host = Host::with_guests();
    let mut command = host.command("tenant-acme");
    command
        .args(["vm", "run", "web", "--grace", "0", "--cmdline", "quiet"])
        .args(LINUX)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut client = command.spawn().unwrap();
    let mut printed = BufReader::new(client.stdout.take().unwrap());
    let mut lines = Vec::new();
    let mut until_ready = |lines: &mut Vec<String>| loop {
        let mut line = Vec::new();
        assert_ne!(printed.read_until(b'\n', &mut line).unwrap(), 0, "the console ended: {lines:?}");
        lines.push(String::from_utf8_lossy(&line).into_owned());
        if lines.last().unwrap().contains("ostler-guest: ready") {
            return;
        }
    };
    until_ready(&mut lines);
    client.stdin.as_mut().unwrap().write_all(b"reboot -f\n").unwrap();
    // The second run's console, behind the first one's, of which nothing comes twice.
    until_ready(&mut lines);
    let kernels = lines.iter().filter(|line| line.contains("ostler-guest: kernel")).count();
    assert_eq!(kernels, 2, "{lines:?}");
    let pid = rustix::process::Pid::from_child(&client);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    // Read to its end: a client whose output is closed leaves because of that, if the guest prints before the signal comes.
    std::io::copy(&mut printed, &mut std::io::sink()).unwrap();
    assert_eq!(client.wait().unwrap().code(), Some(143));
    assert!(host.tenant("acme").list("").unwrap().is_empty());
    until("the vmm's end", SOON, || host.vmm_processes().is_empty().then_some(()));
}

#[test]
fn a_terminal_gives_every_key_to_the_guest_but_the_escape_key_and_is_as_before_afterwards() {
    let host = Host::with_guests();
    let mut command = host.command("tenant-acme");
    command.args(["vm", "run", "web", "--grace", "0", "--cmdline", "quiet"]).args(LINUX);
    let lines = "echo before $(stty -g); {}; echo code $?; echo after $(stty -g)";
    let mut terminal = Terminal::run(lines, &command);
    terminal.expect("ostler-guest: ready");
    // Ctrl-C, which ends a client that reads lines; then what only the guest can answer.
    terminal.press(b"\x03\necho answer-$((6*7))\n");
    terminal.expect("answer-42");
    terminal.press(b"\x1d");
    let shown = terminal.end();
    let told = |what: &str| {
        let line = shown.lines().find_map(|line| line.trim().strip_prefix(what));
        line.unwrap_or_else(|| panic!("no {what:?}: {shown}")).to_owned()
    };
    assert_eq!(told("code "), "0", "{shown}");
    assert_eq!(told("before "), told("after "), "{shown}");
    assert!(host.tenant("acme").list("").unwrap().is_empty());
}

#[test]
fn input_that_is_piped_reaches_the_guest_and_its_answer_comes_back() {
    use std::io::Write;
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let (_console, _) = boot(&host, &acme, "web", linux());
    let mut command = host.command("tenant-acme");
    command.args(["vm", "console", "web", "--until", "answer-42", "--timeout", "60s"]);
    let mut piped = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(b"echo answer-$((6*7))\n").unwrap();
    let output = piped.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_start_or_stop_that_is_repeated_acts_once_even_if_the_daemon_died_in_between() {
    let mut host = Host::with_guests();
    let acme = host.tenant("acme");
    acme.register("web", linux()).unwrap();
    let (started, stopped) = (new_id(), new_id());
    let first = start_as(&acme, &started).unwrap();
    assert_eq!(start_as(&acme, &started).unwrap(), first);
    host.kill_daemon();
    host.start_daemon();
    let acme = host.tenant("acme");
    assert_eq!(start_as(&acme, &started).unwrap(), first);
    assert_eq!(host.vmm_processes(), [first.vmm_pid]);

    let stop = |request_id: &str, etag: &str, validate_only| {
        let (request_id, etag) = (request_id.to_owned(), etag.to_owned());
        let grace = Some(prost_types::Duration::default());
        let name = acme.name("web");
        let no_wait = false;
        let request = v1::StopVirtualMachineRequest { name, grace, request_id, etag, validate_only, no_wait };
        wait(acme.vms.clone().stop_virtual_machine(request)).map(tonic::Response::into_inner)
    };
    assert_eq!(facts(&stop("", "\"0123456789abcdef\"", false).unwrap_err()).reason, "ETAG_MISMATCH");
    // Only Get measures what the VM takes.
    let get = || v1::VirtualMachine { memory_use: None, ..acme.get("web").unwrap() };
    let now = get();
    assert_eq!(stop("", &now.etag, true).unwrap(), now);
    assert_eq!((host.vmm_processes(), get()), (vec![first.vmm_pid], now.clone()));
    let ended = stop(&stopped, &now.etag, false).unwrap();
    assert_eq!(ended.state(), State::Stopped);
    assert_eq!(stop(&stopped, &now.etag, false).unwrap(), ended);

    // The daemon dies when the process is there and the answer is not: the repetition waits for that process.
    let again = new_id();
    let (unanswered, id) = (acme.clone(), again.clone());
    spawn(async move {
        let request =
            v1::StartVirtualMachineRequest { name: unanswered.name("web"), request_id: id, ..Default::default() };
        let _ = unanswered.vms.clone().start_virtual_machine(request).await;
    });
    until("the process", SOON, || (!host.vmm_processes().is_empty()).then_some(()));
    host.kill_daemon();
    host.start_daemon();
    let acme = host.tenant("acme");
    let answer = start_as(&acme, &again).unwrap();
    assert_eq!(answer.state(), State::Running);
    assert_eq!(host.vmm_processes(), [answer.vmm_pid]);
    assert_eq!(start_as(&acme, &again).unwrap(), answer);
}

fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn start_as(caller: &crate::support::Caller, request_id: &str) -> Result<v1::VirtualMachine, tonic::Status> {
    let (name, request_id) = (caller.name("web"), request_id.to_owned());
    let request = v1::StartVirtualMachineRequest { name, request_id, ..Default::default() };
    wait(caller.vms.clone().start_virtual_machine(request)).map(tonic::Response::into_inner)
}
