//! Memory that guests do without goes back to the host: by a target that changes while the guest runs, and by reports of
//! what is free; a guest that needs it gets it back. Boots guests (feature `lab`).

use crate::support::console::Console;
use crate::support::guest::{bootable, disk, linux, nic};
use crate::support::wait::{BOOT, SOON, until};
use crate::support::{Caller, Host, facts};
use ostler::api::v1;
use ostler::api::v1::memory_spec::Hugepages;
use ostler::api::v1::virtual_machine_stats::Balloon;
use tonic::Code;

const MIB: u64 = 1 << 20;
/// Memory of the guests here, in MiB.
const ALL: u64 = 256;

fn keeping(keep_mib: u64, spec: v1::VirtualMachineSpec) -> v1::VirtualMachineSpec {
    let balloon = Some(v1::BalloonSpec { keep_mib });
    v1::VirtualMachineSpec { memory: Some(v1::MemorySpec { balloon, ..Default::default() }), ..spec }
}

fn boot(host: &Host, caller: &Caller, spec: v1::VirtualMachineSpec) -> Console {
    let (console, _) = crate::support::guest::boot(host, caller, "web", spec);
    console
}

fn balloon(caller: &Caller) -> Balloon {
    caller.stats("web").unwrap().balloon.expect("a balloon")
}

/// What the host has given the guest, in MiB.
fn taken(caller: &Caller) -> u64 {
    caller.stats("web").unwrap().memory_use.expect("a process").guest_bytes / MIB
}

/// A line of the guest's /proc/meminfo, in MiB.
fn meminfo(console: &mut Console, key: &str) -> u64 {
    console.number("mem", &format!("sed -n 's/^{key}: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) / 1024
}

/// Waits until the guest has so much memory available as `is_it` says, and gives it in MiB. Pages that the guest is just
/// reporting as free are missing from its own count until the host has answered.
fn available(console: &mut Console, what: &str, is_it: impl Fn(u64) -> bool) -> u64 {
    until(what, SOON, || Some(meminfo(console, "MemAvailable")).filter(|mib| is_it(*mib)))
}

/// Waits until the guest has given up so many MiB.
fn holds(caller: &Caller, mib: u64) {
    until(&format!("a balloon of {mib} MiB"), BOOT, || (balloon(caller).held_bytes == mib * MIB).then_some(()));
}

/// Waits until the host has not given the guest more than so many MiB.
fn takes_at_most(caller: &Caller, mib: u64) {
    until(&format!("a guest that takes at most {mib} MiB"), SOON * 2, || (taken(caller) <= mib).then_some(()));
}

fn faults(caller: &Caller) -> u64 {
    let stats = caller.stats("web").unwrap();
    stats.devices.iter().find(|device| device.id == "balloon").unwrap().faults
}

#[test]
fn a_guest_gives_up_what_it_is_to_and_takes_it_back_across_restarts() {
    let mut host = Host::with_guests();
    let acme = host.tenant("acme");
    host.add_volume("acme", "data.img", &vec![1; 100 * MIB as usize]);
    let spec = v1::VirtualMachineSpec { disks: vec![disk("data", "data.img", true)], ..linux() };
    let mut console = boot(&host, &acme, keeping(0, spec));
    assert_eq!((balloon(&acme).target_bytes, balloon(&acme).held_bytes), (0, 0));

    // A cache is not free: only the balloon makes the guest give it up. It lasts while the disk is open.
    console.run("exec 9</dev/vda; cat /dev/vda >/dev/null");
    let before = taken(&acme);
    assert!(before > 150, "{before}");
    let idle = available(&mut console, "an idle guest", |mib| mib > 150);
    let told = acme.keep("web", 128).unwrap();
    assert_eq!(told.spec.unwrap().memory.unwrap().balloon.unwrap().keep_mib, 128);
    holds(&acme, ALL - 128);
    takes_at_most(&acme, 136);
    let after = taken(&acme);
    let left = available(&mut console, "what is left of it", |left| idle.abs_diff(left + ALL - 128) < 24);
    println!("kept 128 of 256 MiB: the host gave {before} MiB, then {after}; the guest had {idle} MiB, then {left}");

    // The daemon comes and goes; the guest keeps what it was told to.
    host.kill_daemon();
    host.start_daemon();
    let acme = host.tenant("acme");
    assert_eq!(acme.get("web").unwrap().spec.unwrap().memory.unwrap().balloon.unwrap().keep_mib, 128);
    let mut console = host.console(&acme, "web");
    // Behind what it has printed before.
    console.type_line("echo again-$((6*7))");
    console.expect("again-42");
    holds(&acme, ALL - 128);

    // All is the guest's again.
    acme.keep("web", 0).unwrap();
    holds(&acme, 0);
    available(&mut console, "all of it", |mib| mib.abs_diff(idle) < 24);
    console.run("cat /dev/vda >/dev/null");
    let again = taken(&acme);
    println!("kept all of 256 MiB: the host gives {again} MiB");
    assert!(again > 150, "{again}");
    assert_eq!(faults(&acme), 0);

    // What it is to keep is on record: so it is for the next run.
    acme.keep("web", 144).unwrap();
    acme.reboot("web", Some(0)).unwrap();
    assert_eq!(balloon(&acme).target_bytes, (ALL - 144) * MIB);
    holds(&acme, ALL - 144);
    refuses_what_is_not_to_be(&host, &acme);
}

fn refuses_what_is_not_to_be(host: &Host, acme: &Caller) {
    for keep in [63, ALL + 1, u64::MAX] {
        let refused = facts(&acme.keep("web", keep).unwrap_err());
        assert_eq!((refused.code, refused.metadata["field"].as_str()), (Code::InvalidArgument, "keep_mib"));
    }
    assert_eq!(acme.get("web").unwrap().spec.unwrap().memory.unwrap().balloon.unwrap().keep_mib, 144);
    acme.register("plain", linux()).unwrap();
    let without = facts(&acme.keep("plain", 128).unwrap_err());
    assert_eq!((without.code, without.reason.as_str()), (Code::FailedPrecondition, "CHANGE_FAILED"));
    assert_eq!(host.tenant("globex").keep("tenants/acme/vms/web", 128).unwrap_err().code(), Code::NotFound);
    let fixed = facts(&acme.detach("web", "balloon", None, true).unwrap_err());
    assert!(fixed.message.contains("cannot be detached"), "{fixed:?}");
    let mut huge = keeping(0, linux());
    huge.memory.as_mut().unwrap().hugepages = Hugepages::Size2m.into();
    let refused = facts(&host.operator().register("tenants/acme/vms/huge", huge).unwrap_err());
    assert_eq!(refused.metadata["field"], "spec.memory.balloon");
    let mut named = keeping(0, linux());
    named.nics = vec![nic("balloon")];
    assert_eq!(facts(&acme.register("named", named).unwrap_err()).metadata["field"], "spec.memory.balloon");
}

/// Fills memory with a file and frees it: the host has it back without being asked for it.
fn reports_what_is_free(kernel: &str) {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let mut console = boot(&host, &acme, keeping(0, bootable(kernel, "vmlinux")));
    console.run("dd if=/dev/zero of=/tmp/fill bs=1M count=80 2>/dev/null");
    let before = taken(&acme);
    assert!(before > 80, "{before}");
    console.run("rm /tmp/fill");
    takes_at_most(&acme, before - 60);
    // Counted when a batch has been given back, not while it is.
    let counted = || Some(balloon(&acme)).filter(|stats| stats.reported_bytes > 60 * MIB);
    let stats = until("what is reported", SOON, counted);
    println!("{kernel}: the host gave {before} MiB, then {}; {stats:?}", taken(&acme));
    assert_eq!((stats.held_bytes, stats.kept_bytes, faults(&acme)), (0, 0, 0));

    // What the guest says of itself, at most a few seconds old.
    let said = |name: &str| stats.statistics.iter().find(|one| one.name == name).unwrap().value / MIB;
    assert_eq!(said("total_bytes"), meminfo(&mut console, "MemTotal"));
    until("fresh statistics", SOON, || {
        let free = balloon(&acme).statistics.into_iter().find(|one| one.name == "free_bytes")?.value / MIB;
        let known = meminfo(&mut console, "MemFree");
        (free.abs_diff(known) < 16).then_some(())
    });
    let age = balloon(&acme).statistics_age.unwrap();
    assert!(age.seconds < 30, "{age:?}");
    let printed = host.command("tenant-acme").args(["vm", "stats", "web"]).output().unwrap();
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(printed.contains("reported as free") && printed.contains("available_bytes"), "{printed}");
    // The memory is the guest's as ever.
    let sum = "dd if=/dev/zero of=/tmp/fill bs=1M count=80 2>/dev/null; wc -c </tmp/fill";
    assert!(console.run(sum).contains("83886080"));
}

#[test]
fn what_a_guest_reports_as_free_is_the_host_s_again() {
    // Linux 6.12 numbers the queue that reports as the specification does, 6.1 counts it.
    reports_what_is_free("linux-6.12");
    reports_what_is_free("linux-6.1");
}

#[test]
fn a_guest_that_needs_what_it_gave_up_gets_it_instead_of_killing() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let mut console = boot(&host, &acme, keeping(112, linux()));
    holds(&acme, ALL - 112);
    let available = meminfo(&mut console, "MemAvailable");
    assert!(available < 70, "{available}");
    let written = console.run("dd if=/dev/zero of=/tmp/fill bs=1M count=80 2>/dev/null; wc -c </tmp/fill");
    assert!(written.contains("83886080"), "{written}");
    let held = balloon(&acme).held_bytes / MIB;
    println!("{available} MiB were available, 80 MiB written; of {} MiB given up {held} are left", ALL - 112);
    assert!(held < ALL - 112 - 10, "{held}");
    let log = console.run("dmesg | grep -c 'Killed process'");
    assert!(log.contains("\n0"), "{log}");
    assert_eq!(faults(&acme), 0);
}
