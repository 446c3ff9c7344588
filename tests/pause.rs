//! A paused VM stands still, and goes on as if nothing had happened. Boots guests (feature `lab`).

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use crate::support::console::Console;
use crate::support::guest::{boot, disk, linux, linux_with, nic};
use crate::support::holdings::holdings;
use crate::support::wait::until;
use crate::support::{Host, facts};
use ostler::api::v1;
use ostler::api::v1::attach_device_request::Device;
use ostler::api::v1::virtual_machine::State;
use tonic::Code;

/// The next number that the guest counts.
fn count(console: &mut Console) -> u64 {
    let printed = console.expect("ostler-guest: count ");
    let number = printed.rsplit("ostler-guest: count ").next().unwrap();
    number.trim().parse().unwrap_or_else(|_| panic!("no number in {number:?}"))
}

fn pass(time: Duration) {
    let end = Instant::now() + time;
    until("time", time * 2, || (Instant::now() >= end).then_some(()));
}

/// Sends so many frames to the guest with this address (in a /30), which nobody has to be asked for: by broadcast.
fn knock(guest: &str, frames: usize) {
    let address: Ipv4Addr = guest.split('/').next().unwrap().parse().unwrap();
    let all = Ipv4Addr::from_bits(address.to_bits() | 3);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_broadcast(true).unwrap();
    for _ in 0..frames {
        socket.send_to(b"knock", (all, 9)).unwrap();
    }
}

/// CPU time that each thread of a process has used, in clock ticks.
fn ticks(pid: u32) -> Vec<(String, u64)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut ticks: Vec<_> = tasks
        .map(|task| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            let (name, fields) = stat.rsplit_once(") ").unwrap();
            let fields: Vec<_> = fields.split(' ').collect();
            // Fields 14 and 15 of proc_pid_stat(5).
            let used = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
            (name.split_once('(').unwrap().1.to_owned(), used)
        })
        .collect();
    ticks.sort();
    ticks
}

#[test]
fn a_paused_vm_stands_still_and_its_watchdog_sleeps_with_it() {
    let mut host = Host::with_guests();
    let acme = host.tenant("acme");
    let spec = v1::VirtualMachineSpec { vcpus: 2, nics: vec![nic("eth0")], ..linux_with("ostler.count") };
    let (mut console, _) = boot(&host, &acme, "web", spec);
    // A soft lockup is what takes longer than twice this, in seconds.
    console.type_line("echo 1 > /proc/sys/kernel/watchdog_thresh; echo thresh-$((1+1))");
    console.expect("thresh-2");
    count(&mut console);

    let paused = acme.pause("web").unwrap();
    assert_eq!(paused.state(), State::Paused);
    assert_eq!(acme.pause("web").unwrap().state(), State::Paused, "once more is no error");
    let before = ticks(paused.vmm_pid);
    knock(&paused.nics[0].guest_address, 1000);
    pass(Duration::from_secs(8));
    assert_eq!(ticks(paused.vmm_pid), before, "something moved");
    let refused = facts(&acme.start("web").unwrap_err());
    assert_eq!((refused.code, refused.metadata["state"].as_str()), (Code::FailedPrecondition, "PAUSED"));
    assert_eq!(facts(&acme.nmi("web").unwrap_err()).code, Code::FailedPrecondition);
    assert_eq!(host.tenant("globex").pause("tenants/acme/vms/web").unwrap_err().code(), Code::NotFound);
    // A guest that stands still cannot be asked for a device, nor find one.
    let held = holdings(paused.vmm_pid);
    let attached = acme.attach("web", Device::Nic(nic("eth1"))).unwrap_err();
    let detached = acme.detach("web", "eth0", Some(1_000), false).unwrap_err();
    for refused in [attached, detached] {
        let refused = facts(&refused);
        assert_eq!((refused.code, refused.reason.as_str()), (Code::FailedPrecondition, "WRONG_STATE"), "{refused:?}");
        assert_eq!(refused.metadata["state"], "PAUSED");
    }
    assert_eq!(holdings(paused.vmm_pid), held);

    // A daemon that comes anew finds it so.
    host.kill_daemon();
    host.start_daemon();
    let acme = host.tenant("acme");
    let found = acme.get("web").unwrap();
    assert_eq!((found.state(), found.vmm_pid), (State::Paused, paused.vmm_pid));

    let mut console = host.console(&acme, "web");
    assert_eq!(acme.resume("web").unwrap().state(), State::Running);
    assert_eq!(acme.resume("web").unwrap().state(), State::Running, "once more is no error");
    let first = count(&mut console);
    let mut last = first;
    while last < first + 20 {
        last = count(&mut console);
    }
    let printed = console.run("dmesg | grep -c -e 'soft lockup' -e 'rcu.*stall'");
    assert!(printed.contains("\n0\r"), "{printed}");
    acme.attach("web", Device::Nic(nic("eth1"))).unwrap();
    assert_eq!(acme.stop("web", Some(60_000)).unwrap().state(), State::Stopped);
}

#[test]
fn a_paused_vm_is_stopped_rebooted_and_destroyed() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    boot(&host, &acme, "web", linux());
    let first = acme.pause("web").unwrap();
    let grace = Duration::from_secs(120);
    let begin = Instant::now();
    let rebooted = acme.reboot("web", Some(grace.as_millis() as u64)).unwrap();
    assert!(begin.elapsed() < grace, "it was killed instead");
    assert_eq!((rebooted.state(), &rebooted.uid), (State::Running, &first.uid));
    assert_ne!(rebooted.vmm_pid, first.vmm_pid);
    host.console(&acme, "web").expect_ready();
    acme.pause("web").unwrap();
    let begin = Instant::now();
    assert_eq!(acme.stop("web", Some(grace.as_millis() as u64)).unwrap().state(), State::Stopped);
    assert!(begin.elapsed() < grace, "it was killed instead");
    acme.start("web").unwrap();
    acme.pause("web").unwrap();
    assert_eq!(facts(&acme.destroy("web", false).unwrap_err()).code, Code::FailedPrecondition);
    acme.destroy("web", true).unwrap();
    until("the vmm's end", crate::support::wait::SOON, || host.vmm_processes().is_empty().then_some(()));
}

#[test]
fn requests_in_flight_survive_a_pause() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    host.add_volume("acme", "data.img", &vec![0; 16 << 20]);
    let spec =
        v1::VirtualMachineSpec { disks: vec![disk("data", "data.img", false)], nics: vec![nic("eth0")], ..linux() };
    let (mut console, _) = boot(&host, &acme, "web", spec);
    console.run("dd if=/dev/urandom of=/tmp/written bs=64k count=128 2>/dev/null");
    console.type_line(
        "for n in 1 2 3 4 5 6; do dd if=/tmp/written of=/dev/vda bs=64k conv=fsync 2>/dev/null; \
         echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda of=/tmp/read bs=64k count=128 2>/dev/null; \
         [ \"$(md5sum </tmp/written)\" = \"$(md5sum </tmp/read)\" ] && echo round-$n-whole; done; echo rounds-$((1+1))",
    );
    for _ in 0..12 {
        acme.pause("web").unwrap();
        acme.resume("web").unwrap();
        pass(Duration::from_millis(100));
    }
    let printed = console.expect("rounds-2");
    for round in 1..=6 {
        // Once in the echo of the line, without a number; once as output.
        assert!(printed.contains(&format!("round-{round}-whole")), "round {round}: {printed}");
    }
    // The network too, in both directions.
    let gateway = acme.get("web").unwrap().nics[0].host_address.split('/').next().unwrap().to_owned();
    let printed = console.run(&format!("ping -c 3 -W 5 {gateway} | grep transmitted"));
    assert!(printed.contains("3 packets received"), "{printed}");
}
