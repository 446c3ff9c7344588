//! Devices that come to a running guest and leave it, through the API: the guest sees them without being told to look.
//! Boots guests (feature `lab`).

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use crate::support::console::Console;
use crate::support::guest::{appears, boot, bootable, disk, linux, linux_with, nic, vanishes};
use crate::support::holdings::{Holdings, holdings};
use crate::support::host::taps;
use crate::support::tally::{load_tally, until_tallied};
use crate::support::wait::{SOON, until};
use crate::support::{Caller, Host, facts};
use ostler::api::v1;
use ostler::api::v1::attach_device_request::Device;
use ostler::api::v1::device_status::State as DeviceState;
use ostler::api::v1::virtual_machine::State;
use ostler::api::v1::virtual_machine_stats::KvmUse;
use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};
use tonic::Code;

/// Longest that a guest may take to let a device go: emulated, and busy.
const PATIENCE_MS: u64 = 60_000;
/// Times that a device comes and goes in one guest.
const CYCLES: usize = 100;
const IMAGE_LEN: u64 = 16 << 20;

fn data() -> Device {
    Device::Disk(disk("data", "data.img", false))
}

fn eth(id: &str) -> Device {
    Device::Nic(nic(id))
}

fn make_image(host: &Host, tenant: &str, name: &str) -> PathBuf {
    let path = host.volume(tenant, name);
    fs::File::create(&path).unwrap().set_len(IMAGE_LEN).unwrap();
    path
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn is_unlocked(path: &PathBuf) -> bool {
    rustix::fs::flock(fs::File::open(path).unwrap(), FlockOperation::NonBlockingLockExclusive).is_ok()
}

fn states(vm: &v1::VirtualMachine) -> Vec<(&str, DeviceState)> {
    vm.devices.iter().map(|device| (device.id.as_str(), device.state())).collect()
}

/// Attaches `data`, writes to it, checks the host's copy, and has the guest let it go.
fn round_of_a_disk(host: &Host, acme: &Caller, console: &mut Console) {
    let image = make_image(host, "acme", "data.img");
    let vm = acme.attach("web", data()).unwrap();
    assert!(states(&vm).contains(&("data", DeviceState::Attached)), "{vm:?}");
    appears(console, "/dev/vdb");
    assert!(console.run("cat /sys/block/vdb/serial").contains("data"));
    console.run("dd if=/dev/urandom of=/tmp/written bs=64k count=16; dd if=/tmp/written of=/dev/vdb bs=64k conv=fsync");
    let printed = console
        .run("sha256sum /tmp/written; echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vdb bs=64k count=16 | sha256sum");
    let digest = sha256(&fs::read(&image).unwrap()[..1 << 20]);
    assert_eq!(printed.matches(&digest).count(), 2, "the host has {digest}: {printed}");
    assert!(!is_unlocked(&image));
    let vm = acme.detach("web", "data", Some(PATIENCE_MS), false).unwrap();
    assert!(!states(&vm).iter().any(|(id, _)| *id == "data"), "{vm:?}");
    vanishes(console, "/dev/vdb");
    assert!(is_unlocked(&image), "nobody has the image any more");
}

/// What a vmm has, and what KVM has for it.
type Held = (Holdings, KvmUse);

/// That it is as it was, at a moment when the guest has no vector masked.
fn assert_left(held: &impl Fn() -> Held, before: &Held, what: &str) {
    until(&format!("everything as before {what}"), SOON, || (held() == *before).then_some(()));
}

#[test]
fn a_disk_and_a_nic_come_and_go_and_leave_nothing() {
    let taps_before = taps();
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let spec =
        v1::VirtualMachineSpec { disks: vec![disk("root", "hello.img", true)], nics: vec![nic("eth0")], ..linux() };
    let (mut console, _) = boot(&host, &acme, "web", spec);
    let pid = acme.get("web").unwrap().vmm_pid;
    let held = || (holdings(pid), acme.stats("web").unwrap().kvm_use.unwrap());
    let before = held();
    round_of_a_disk(&host, &acme, &mut console);
    assert_left(&held, &before, "a disk");

    let vm = acme.attach("web", eth("eth1")).unwrap();
    let status = vm.nics.iter().find(|nic| nic.id == "eth1").unwrap().clone();
    appears(&mut console, "/sys/class/net/eth1");
    assert!(console.run("cat /sys/class/net/eth1/address").contains(&status.mac));
    let gateway = status.host_address.split('/').next().unwrap();
    console.run(&format!("ip addr add {} dev eth1; ip link set eth1 up", status.guest_address));
    let pinged = console.run(&format!("ping -c 3 -W 5 {gateway}"));
    assert!(pinged.contains(" 0% packet loss"), "{pinged}");
    assert!(taps().contains(&status.tap));
    let vm = acme.detach("web", "eth1", Some(PATIENCE_MS), false).unwrap();
    assert_eq!(vm.nics.len(), 1);
    vanishes(&mut console, "/sys/class/net/eth1");
    until("the tap's end", SOON, || (!taps().contains(&status.tap)).then_some(()));
    assert_left(&held, &before, "a NIC");
    // Its address is free: the next one has the same.
    let vm = acme.attach("web", eth("eth2")).unwrap();
    assert_eq!(vm.nics[1].guest_address, status.guest_address);

    // A reset begins with the devices as they are, each in its place.
    let slots = |vm: &v1::VirtualMachine| vm.devices.iter().map(|d| (d.id.clone(), d.slot)).collect::<Vec<_>>();
    acme.attach("web", data()).unwrap();
    appears(&mut console, "/dev/vdb");
    let known = slots(&acme.get("web").unwrap());
    console.type_line("reboot -f");
    until("another vmm", SOON, || acme.get("web").ok().filter(|vm| vm.vmm_pid != pid && vm.vmm_pid != 0));
    let mut console = host.console(&acme, "web");
    console.expect_ready();
    console.run("[ -b /dev/vdb ] && [ -e /sys/class/net/eth1 ]");
    assert_eq!(slots(&acme.get("web").unwrap()), known);
    // Cold now, and they can go all the same; the first one too.
    for id in ["data", "eth2", "root"] {
        acme.detach("web", id, Some(PATIENCE_MS), false).unwrap();
    }
    vanishes(&mut console, "/dev/vda");
    assert_eq!(acme.stop("web", Some(60_000)).unwrap().state(), State::Stopped);
    until("the taps' end", SOON, || taps().iter().all(|tap| taps_before.contains(tap)).then_some(()));
}

#[test]
fn an_older_kernel_sees_them_too() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let spec =
        v1::VirtualMachineSpec { disks: vec![disk("root", "hello.img", true)], ..bootable("linux-6.1", "vmlinux") };
    let (mut console, _) = boot(&host, &acme, "web", spec);
    round_of_a_disk(&host, &acme, &mut console);
}

#[test]
fn many_cycles_under_load_leave_the_vmm_as_it_was() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    make_image(&host, "acme", "data.img");
    let (mut console, _) = boot(&host, &acme, "web", linux());
    let pid = acme.get("web").unwrap().vmm_pid;
    let held = || (holdings(pid), acme.stats("web").unwrap().kvm_use.unwrap());
    let before = held();
    assert!(before.1.memory_slots > 0 && before.1.irqfds > 0 && before.1.ioeventfds > 0, "{before:?}");
    // Reads for as long as there is a disk, and sends for as long as there is a NIC.
    console.run("(while :; do dd if=/dev/vda of=/dev/null bs=64k; usleep 5000; done) 2>/dev/null & true");
    for cycle in 0..CYCLES {
        acme.attach("web", data()).unwrap_or_else(|error| panic!("disk, cycle {cycle}: {error:?}"));
        appears(&mut console, "/dev/vda");
        acme.detach("web", "data", Some(PATIENCE_MS), false)
            .unwrap_or_else(|error| panic!("disk, cycle {cycle}: {error:?}"));
    }
    vanishes(&mut console, "/dev/vda");
    assert_left(&held, &before, "many disks");
    for cycle in 0..CYCLES {
        let vm = acme.attach("web", eth("net")).unwrap_or_else(|error| panic!("NIC, cycle {cycle}: {error:?}"));
        appears(&mut console, "/sys/class/net/eth0");
        let (guest, gateway) = (&vm.nics[0].guest_address, vm.nics[0].host_address.split('/').next().unwrap());
        console.run(&format!(
            "ip addr add {guest} dev eth0; ip link set eth0 up; (ping -q -A -w 2 {gateway} >/dev/null 2>&1) & true"
        ));
        acme.detach("web", "net", Some(PATIENCE_MS), false)
            .unwrap_or_else(|error| panic!("NIC, cycle {cycle}: {error:?}"));
    }
    assert_left(&held, &before, "many NICs");
    assert!(console.run("dmesg | grep -c -i -e 'call trace' -e 'BUG:'").contains("\n0"));
}

#[test]
fn a_guest_that_does_not_let_go_keeps_the_device_until_force() {
    let mut host = Host::with_guests();
    let acme = host.tenant("acme");
    let spec = v1::VirtualMachineSpec {
        disks: vec![disk("root", "hello.img", true)],
        // A guest without a driver for its slots.
        ..linux_with("acpiphp.disable=1")
    };
    let (mut console, _) = boot(&host, &acme, "web", spec);
    let refused = facts(&acme.detach("web", "root", Some(1_000), false).unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::DeadlineExceeded, "GUEST_UNPLUG_REFUSED"));
    assert!(refused.message.contains("root") && refused.message.contains("by force"), "{refused:?}");
    assert_eq!(states(&acme.get("web").unwrap()), [("root", DeviceState::Detaching)]);
    // It still works, and what is under way outlives the daemon.
    console.run("dd if=/dev/vda of=/dev/null bs=64k count=1");
    host.kill_daemon();
    host.start_daemon();
    let acme = host.tenant("acme");
    assert_eq!(states(&acme.get("web").unwrap()), [("root", DeviceState::Detaching)]);
    let vm = acme.detach("web", "root", None, true).unwrap();
    assert!(vm.devices.is_empty() && vm.spec.unwrap().disks.is_empty());
    let mut console = host.console(&acme, "web");
    console.run("echo still here");
    assert_eq!(acme.get("web").unwrap().state(), State::Running);
}

#[test]
fn devices_outlive_the_daemon_and_can_be_taken_from_a_busy_guest() {
    let mut host = Host::with_guests();
    let acme = host.tenant("acme");
    let image = make_image(&host, "acme", "data.img");
    let (mut console, _) = boot(&host, &acme, "web", linux());
    let pid = acme.get("web").unwrap().vmm_pid;
    let before = holdings(pid);
    acme.attach("web", data()).unwrap();
    appears(&mut console, "/dev/vda");
    console.run("(while :; do dd if=/dev/vda of=/dev/null bs=64k; usleep 5000; done) 2>/dev/null & true");
    host.kill_daemon();
    host.start_daemon();
    let acme = host.tenant("acme");
    let vm = acme.get("web").unwrap();
    assert_eq!((vm.vmm_pid, states(&vm)), (pid, vec![("data", DeviceState::Attached)]));
    acme.detach("web", "data", None, true).unwrap();
    assert!(is_unlocked(&image));
    let mut console = host.console(&acme, "web");
    console.run("echo still here");
    // The daemon's link is another one; everything else is as it was.
    let after = holdings(pid);
    assert_eq!((after.threads, after.rings, after.watched), (before.threads, before.rings, before.watched));
    assert_eq!(after.descriptors.len(), before.descriptors.len());
    // The slot is of use to the next device.
    acme.attach("web", data()).unwrap();
    acme.detach("web", "data", None, true).unwrap();
}

#[test]
fn what_cannot_be_attached_or_detached_is_refused_each_with_its_reason() {
    let host = Host::with_guests();
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    for name in ["data.img", "d1.img", "d2.img", "d3.img", "d4.img"] {
        make_image(&host, "acme", name);
    }
    let spec = v1::VirtualMachineSpec { disks: vec![disk("root", "hello.img", true)], ..linux() };
    acme.register("idle", v1::VirtualMachineSpec { disks: vec![disk("mine", "d4.img", false)], ..linux() }).unwrap();
    let (mut console, _) = boot(&host, &acme, "web", spec);
    let pid = acme.get("web").unwrap().vmm_pid;
    let refusal = |error: tonic::Status| {
        let facts = facts(&error);
        (facts.code, facts.reason)
    };
    let attach = |vm: &str, device| refusal(acme.attach(vm, device).unwrap_err());
    let disk_of = |id: &str, volume: &str| Device::Disk(disk(id, volume, false));
    assert_eq!(attach("web", disk_of("root", "data.img")), (Code::AlreadyExists, "DEVICE_EXISTS".into()));
    assert_eq!(attach("web", disk_of("rng", "data.img")), (Code::AlreadyExists, "DEVICE_EXISTS".into()));
    assert_eq!(attach("web", disk_of("data", "absent.img")), (Code::InvalidArgument, "BAD_FIELD".into()));
    assert_eq!(attach("web", disk_of("data", "../x.img")), (Code::InvalidArgument, "BAD_FIELD".into()));
    host.add_volume("acme", "short.img", &[0; 100]);
    assert_eq!(attach("web", disk_of("data", "short.img")), (Code::InvalidArgument, "BAD_FIELD".into()));
    let detach = |vm: &str, id: &str| refusal(acme.detach(vm, id, Some(1_000), false).unwrap_err());
    assert_eq!(detach("web", "nothing"), (Code::NotFound, "NO_SUCH_DEVICE".into()));
    assert_eq!(detach("web", "rng"), (Code::FailedPrecondition, "DEVICE_FIXED".into()));
    // Another tenant's VM is none, whatever is asked of it.
    let foreign = acme.name("web");
    for error in [
        globex.attach(&foreign, disk_of("data", "data.img")).unwrap_err(),
        globex.detach(&foreign, "root", None, true).unwrap_err(),
    ] {
        assert_eq!(facts(&error).code, Code::NotFound);
        assert_eq!(error.message(), globex.get(&foreign).unwrap_err().message());
    }
    // In use by a VM that runs, and for none that does not.
    acme.attach("idle", disk_of("shared", "data.img")).unwrap();
    acme.attach("web", disk_of("data", "data.img")).unwrap();
    appears(&mut console, "/dev/vdb");
    assert_eq!(attach("web", disk_of("again", "data.img")), (Code::FailedPrecondition, "DISK_IN_USE".into()));
    assert!(facts(&acme.start("idle").unwrap_err()).message.contains("in use"));
    acme.detach("idle", "shared", None, false).unwrap();
    acme.detach("idle", "mine", None, false).unwrap();
    assert!(acme.get("idle").unwrap().spec.unwrap().disks.is_empty());
    // As many as were provided for, and no more; what failed leaves nothing.
    for (id, volume) in [("a", "d1.img"), ("b", "d2.img"), ("c", "d3.img")] {
        acme.attach("web", disk_of(id, volume)).unwrap();
    }
    let full = holdings(pid);
    assert_eq!(attach("web", disk_of("e", "d4.img")), (Code::ResourceExhausted, "DEVICES_EXHAUSTED".into()));
    assert_eq!(holdings(pid), full);
    assert!(is_unlocked(&host.volume("acme", "d4.img")));
    let ids: Vec<_> = acme.get("web").unwrap().devices.into_iter().map(|device| device.id).collect();
    assert_eq!(ids, ["root", "data", "a", "b", "c"]);
    acme.detach("web", "a", Some(PATIENCE_MS), false).unwrap();
    acme.attach("web", disk_of("e", "d4.img")).unwrap();
    console.run("echo unharmed");
    assert_eq!(acme.get("web").unwrap().vmm_pid, pid);
}

#[test]
fn an_observer_is_told_of_a_guests_runs_and_of_what_came_to_it() {
    const TALLY: &str = "operator/plugins/tally";
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    load_tally(&host.operator(), TALLY);
    let (mut console, _) = boot(&host, &acme, "web", linux());
    acme.attach("web", eth("eth0")).unwrap();
    appears(&mut console, "/sys/class/net/eth0");
    acme.detach("web", "eth0", Some(PATIENCE_MS), false).unwrap();
    let pid = acme.get("web").unwrap().vmm_pid;
    console.type_line("reboot -f");
    until("another vmm", SOON, || acme.get("web").ok().filter(|vm| vm.vmm_pid != pid && vm.vmm_pid != 0));
    host.console(&acme, "web").expect_ready();
    acme.stop("web", Some(0)).unwrap();
    until("it is off", SOON, || acme.get("web").ok().filter(|vm| vm.state() == State::Stopped));
    acme.destroy("web", false).unwrap();
    // A kernel that is none does not come to run.
    acme.register("bad", bootable("linux-6.12", "initrd")).unwrap();
    let _ = acme.start("bad");
    until("it has failed", SOON, || acme.get("bad").ok().filter(|vm| vm.state() == State::Failed));
    let told = until_tallied(&host.operator(), TALLY, "acme");
    let expected = [
        ("attached", 1),
        ("destroyed", 1),
        ("detached", 1),
        ("failed", 1),
        ("registered", 2),
        ("started", 2),
        // By its reset, by the stop, and before it came to run.
        ("stopped", 3),
    ];
    assert_eq!(told, expected.map(|(kind, count)| (kind.to_owned(), count)).into());
}
