//! VMs outlive the daemon; a VM whose vmm dies leaves nothing. Boots guests (feature `lab`).

mod load;

use crate::support::Host;
use crate::support::console::Console;
use crate::support::guest::{boot, disk, linux, linux_with, nic};
use crate::support::host::taps;
use crate::support::wait::{SOON, until};
use ostler::api::v1;
use ostler::api::v1::virtual_machine::State;

/// The next number that the guest counts.
fn count(console: &mut Console) -> u64 {
    let printed = console.expect("ostler-guest: count ");
    let number = printed.rsplit("ostler-guest: count ").next().unwrap();
    number.trim().parse().unwrap_or_else(|_| panic!("no number in {number:?}"))
}

fn counting() -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec {
        disks: vec![disk("root", "hello.img", true)],
        nics: vec![nic("eth0")],
        ..linux_with("ostler.count")
    }
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_killed_daemon_leaves_its_vms_running_and_the_next_one_finds_them() {
    let before = taps();
    let mut host = Host::with_guests();
    let (mut console, _) = boot(&host, &host.tenant("acme"), "web", counting());
    host.tenant("globex").register("idle", linux()).unwrap();
    let first = host.tenant("acme").get("web").unwrap();
    let counted = count(&mut console);
    host.kill_daemon();
    assert_eq!(host.vmm_processes(), [first.vmm_pid]);
    host.start_daemon();

    let acme = host.tenant("acme");
    let second = acme.get("web").unwrap();
    assert_eq!(second.state(), State::Running);
    assert_eq!((&second.uid, second.vmm_pid, &second.nics), (&first.uid, first.vmm_pid, &first.nics));
    assert_eq!(second.admission, first.admission);
    assert_eq!(host.tenant("globex").get("idle").unwrap().state(), State::Registered);
    // The guest went on counting meanwhile, from where it was: it did not boot again.
    let mut console = host.console(&acme, "web");
    let mut now = count(&mut console);
    while now <= counted {
        now = count(&mut console);
    }
    assert!(console.number("uptime", "cut -d. -f1 /proc/uptime") > 0);

    assert_eq!(acme.stop("web", Some(120_000)).unwrap().state(), State::Stopped);
    until("the vmm's end", SOON, || host.vmm_processes().is_empty().then_some(()));
    until("the taps' end", SOON, || taps().iter().all(|tap| before.contains(tap)).then_some(()));
    assert!(host.run_entries().is_empty(), "{:?}", host.run_entries());
    // And a new run of it is like any other.
    acme.start("web").unwrap();
    host.console(&acme, "web").expect_ready();
}

#[test]
fn a_daemon_that_is_asked_to_end_leaves_its_vms_running() {
    let mut host = Host::with_guests();
    let (_console, _) = boot(&host, &host.tenant("acme"), "web", counting());
    let first = host.tenant("acme").get("web").unwrap();
    assert!(host.stop_daemon().success());
    assert_eq!(host.vmm_processes(), [first.vmm_pid]);
    host.start_daemon();
    let second = host.tenant("acme").get("web").unwrap();
    assert_eq!((second.state(), second.vmm_pid), (State::Running, first.vmm_pid));
    host.tenant("acme").destroy("web", true).unwrap();
    until("the vmm's end", SOON, || host.vmm_processes().is_empty().then_some(()));
}

#[test]
fn a_killed_vmm_makes_the_vm_failed_and_leaves_nothing_on_the_host() {
    let before = taps();
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let (_console, _) = boot(&host, &acme, "web", counting());
    let mut watch = acme.watch("").unwrap();
    let vm = acme.get("web").unwrap();
    assert!(!taps().is_empty());
    kill(vm.vmm_pid);
    assert_eq!(watch.states_until(&vm.name, State::Failed), ["RUNNING", "FAILED"]);
    let failed = acme.get("web").unwrap();
    assert!(failed.failure.contains("vanished") && failed.failure.contains("signal 9"), "{failed:?}");
    assert_eq!((failed.vmm_pid, failed.nics[0].tap.as_str()), (0, ""));
    until("the process' end", SOON, || host.vmm_processes().is_empty().then_some(()));
    until("the tap's end", SOON, || taps().iter().all(|tap| before.contains(tap)).then_some(()));
    until("empty run directories", SOON, || host.run_entries().is_empty().then_some(()));
    acme.start("web").unwrap();
    host.console(&acme, "web").expect_ready();
}

#[test]
fn a_vmm_that_dies_while_no_daemon_runs_is_noticed_by_the_next_one() {
    let before = taps();
    let mut host = Host::with_guests();
    let (_console, _) = boot(&host, &host.tenant("acme"), "web", counting());
    let pid = host.tenant("acme").get("web").unwrap().vmm_pid;
    host.kill_daemon();
    kill(pid);
    until("the process' end", SOON, || host.vmm_processes().is_empty().then_some(()));
    host.start_daemon();
    let failed = host.tenant("acme").get("web").unwrap();
    assert_eq!((failed.state(), failed.vmm_pid), (State::Failed, 0));
    assert!(failed.failure.contains("vanished"), "{failed:?}");
    assert!(host.run_entries().is_empty(), "{:?}", host.run_entries());
    assert!(taps().iter().all(|tap| before.contains(tap)), "{:?}", taps());
}

#[test]
fn a_guest_that_powers_off_while_no_daemon_runs_is_stopped() {
    let mut host = Host::with_guests();
    let (mut console, _) = boot(&host, &host.tenant("acme"), "web", linux());
    // Long enough for the daemon to be killed first, and it does not matter if not.
    console.type_line("(sleep 2; poweroff -f) &");
    console.expect("poweroff -f");
    host.kill_daemon();
    until("the vmm's end", SOON * 2, || host.vmm_processes().is_empty().then_some(()));
    host.start_daemon();
    let stopped = host.tenant("acme").get("web").unwrap();
    assert_eq!((stopped.state(), stopped.failure.as_str()), (State::Stopped, ""));
}
