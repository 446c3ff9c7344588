//! NICs on taps under a stock driver, served by the vmm or by the host's kernel: what was negotiated is in use, data arrives
//! whole in both directions, queues, limits. Boots guests (feature `lab`).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::console::Console;
use crate::support::guest::{appears, boot, linux, nic, vanishes};
use crate::support::holdings::holdings;
use crate::support::wait::{BOOT, SOON, until};
use crate::support::{Caller, Host, facts};
use ostler::api::v1;
use ostler::api::v1::attach_device_request::Device;
use ostler::api::v1::virtual_machine::State;
use sha2::{Digest, Sha256};
use tonic::Code;

const MIB: usize = 1 << 20;
/// A VM that an operator registers for its tenant.
const WEB: &str = "tenants/acme/vms/web";
/// Times that a NIC which the kernel serves comes and goes in one guest.
const CYCLES: usize = 10;
/// Longest frame on a tap of data that its sender has segmented: MTU 1500 and the Ethernet header. Counts of which the
/// average is above it have longer frames among them, however fast or slow anybody was.
const LONGEST_FRAME: u64 = 1500 + 14;
/// Bursts of which one must have such frames.
const BURSTS: usize = 10;
/// Longest that a guest may take to let a device go: emulated, and busy.
const PATIENCE_MS: u64 = 60_000;
const SERVER: &str = "/dev/vhost-net";

fn with_nic(nic: v1::NicSpec) -> v1::VirtualMachineSpec {
    let nics = vec![v1::NicSpec { id: "eth0".into(), ..nic }];
    v1::VirtualMachineSpec { vcpus: 2, nics, ..linux() }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn address(text: &str) -> &str {
    text.split('/').next().unwrap()
}

/// What the guest's shell sends from `command` to the host, and how long that took.
fn sent(console: &mut Console, nic: &v1::NicStatus, command: &str) -> (Vec<u8>, Duration) {
    let host = address(&nic.host_address);
    let listener = TcpListener::bind((host, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let start = Instant::now();
    console.type_line(&format!("{command} | nc {host} {port}; echo sent-$((40+2))"));
    let (mut stream, _) = listener.accept().unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let took = start.elapsed();
    drop(stream);
    console.expect_within("sent-42", BOOT);
    (bytes, took)
}

/// The same, and whether the guest left it to the host to make frames of it. The host takes nothing until the guest has to
/// wait, and then a part: what has gathered in the guest comes at once. One that never waits sends each frame as soon as it is
/// full, whatever it could do.
fn sent_in_bursts(console: &mut Console, nic: &v1::NicStatus, command: &str) -> (Vec<u8>, bool) {
    let host = address(&nic.host_address);
    let listener = TcpListener::bind((host, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    console.type_line(&format!("{command} | nc {host} {port}; echo sent-$((40+2))"));
    let (mut stream, _) = listener.accept().unwrap();
    let mut bytes = Vec::new();
    let is_segmented_by_host = (0..BURSTS).any(|_| {
        let before = when_still(nic, "rx");
        let mut part = vec![0; 48 << 10];
        stream.read_exact(&mut part).unwrap();
        bytes.extend(part);
        has_longer_frames(before, when_still(nic, "rx"))
    });
    stream.read_to_end(&mut bytes).unwrap();
    drop(stream);
    console.expect_within("sent-42", BOOT);
    (bytes, is_segmented_by_host)
}

/// Whether there were frames between the two counts that are longer than what nobody segments: then their average is.
fn has_longer_frames((bytes, frames): (u64, u64), (bytes_after, frames_after): (u64, u64)) -> bool {
    let (bytes, frames) = (bytes_after - bytes, frames_after - frames);
    println!("{bytes} bytes in {frames} frames");
    bytes > frames * LONGEST_FRAME
}

/// Bytes and frames that the guest has sent (`rx`) or was sent (`tx`), once there were no more for a while.
fn when_still(nic: &v1::NicStatus, way: &str) -> (u64, u64) {
    let now = || (counted(nic, &format!("{way}_bytes")), counted(nic, &format!("{way}_packets")));
    let (mut seen, mut since) = (now(), Instant::now());
    until("the tap's rest", SOON, || {
        let found = now();
        if found != seen {
            (seen, since) = (found, Instant::now());
        }
        (since.elapsed() >= Duration::from_millis(300)).then_some(seen)
    })
}

/// A number of the tap's as the host counts it.
fn counted(nic: &v1::NicStatus, what: &str) -> u64 {
    let path = format!("/sys/class/net/{}/statistics/{what}", nic.tap);
    std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

#[test]
fn offloads_and_queues_are_in_use_and_data_arrives_whole() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let (mut console, printed) = boot(&host, &acme, "web", with_nic(v1::NicSpec { queues: 2, ..Default::default() }));
    assert!(printed.contains(" ok"), "{printed}");
    let nic = acme.get("web").unwrap().nics.remove(0);
    use_offloads_and_queues(&mut console, &nic);
}

/// Sees that a NIC of two pairs of queues has and uses all that there is, and moves data both ways.
fn use_offloads_and_queues(console: &mut Console, nic: &v1::NicStatus) {
    let features = console.run("cat /sys/class/net/eth0/device/features");
    let is_bits = |line: &str| line.len() == 64 && line.bytes().all(|byte| matches!(byte, b'0' | b'1'));
    let bits: Vec<u8> = features.lines().map(str::trim).find(|line| is_bits(line)).unwrap().bytes().collect();
    // Checksums, segmentation of TCP and UDP in both directions, merged buffers, control queue, several queues.
    for bit in [0, 1, 7, 8, 11, 12, 15, 17, 22, 54, 55, 56] {
        assert_eq!(bits[bit], b'1', "feature {bit} of {features}");
    }
    // What nobody implements here: ECN, UDP fragmentation, RSS.
    for bit in [9, 10, 13, 14, 60] {
        assert_eq!(bits[bit], b'0', "feature {bit} of {features}");
    }
    assert_eq!(console.number("queues", "ls -d /sys/class/net/eth0/queues/rx-* | wc -l"), 2);
    assert_eq!(console.number("vectors", "grep -c 'virtio1-input' /proc/interrupts"), 2);
    // What makes a frame a long one.
    let mtu = std::fs::read_to_string(format!("/sys/class/net/{}/mtu", nic.tap)).unwrap();
    assert_eq!((console.number("mtu", "cat /sys/class/net/eth0/mtu"), mtu.trim()), (1500, "1500"));

    // Guest to host.
    console.run("dd if=/dev/urandom of=/tmp/noise bs=64k count=64 2>/dev/null");
    let (bytes, is_segmented_by_host) = sent_in_bursts(console, nic, "cat /tmp/noise");
    let hash = sha256(&bytes);
    assert!(console.run("sha256sum < /tmp/noise").contains(&hash), "{} bytes came", bytes.len());
    assert!(is_segmented_by_host, "the guest segments itself");

    // Host to guest.
    let before = when_still(nic, "tx");
    console.type_line("nc -l -p 9000 > /tmp/came; echo came-$((40+2))");
    let guest = address(&nic.guest_address).to_owned();
    let mut stream = until("the guest's listener", SOON, || TcpStream::connect((guest.as_str(), 9000)).ok());
    stream.write_all(&bytes).unwrap();
    drop(stream);
    console.expect_within("came-42", BOOT);
    let came = console.run("sha256sum < /tmp/came");
    assert!(came.contains(&hash), "{came}");
    assert!(has_longer_frames(before, when_still(nic, "tx")), "the host segments for the guest");

    // Flows of either vCPU come by either queue.
    for cpu in [1, 2] {
        let (bytes, _) = sent(console, nic, &format!("head -c 65536 /tmp/noise | taskset {cpu} cat"));
        assert_eq!(bytes.len(), 65536);
    }
    // A driver that goes and comes back finds one that knows nothing of the one before.
    let again = "echo virtio1 > /sys/bus/virtio/drivers/virtio_net/unbind; echo virtio1 > /sys/bus/virtio/drivers/virtio_net/bind";
    console.run(again);
    console.run(&format!("ip addr add {}/30 dev eth0; ip link set eth0 up", address(&nic.guest_address)));
    pings(console, nic);
}

fn pings(console: &mut Console, nic: &v1::NicStatus) {
    let ping = console.run(&format!("ping -c 1 -W 5 {} | grep -c '1 packets received'", address(&nic.host_address)));
    assert!(ping.contains("\n1"), "{ping}");
}

/// Pauses and resumes the VM while its guest sends, and looks at what came.
fn pause_while_it_sends(operator: &Caller, console: &mut Console, nic: &v1::NicStatus) {
    let listener = TcpListener::bind((address(&nic.host_address), 0)).unwrap();
    let (host, port) = (address(&nic.host_address), listener.local_addr().unwrap().port());
    console.type_line(&format!(
        "for n in 1 2 3 4; do cat /tmp/noise; done | nc {host} {port}; echo sent-$((40+2)); \
         for n in 1 2 3 4; do cat /tmp/noise; done | sha256sum"
    ));
    let (mut stream, _) = listener.accept().unwrap();
    let mut bytes = vec![0; MIB];
    stream.read_exact(&mut bytes).unwrap();
    for _ in 0..4 {
        assert_eq!(operator.pause(WEB).unwrap().state(), State::Paused);
        let before = counted(nic, "rx_packets");
        let end = Instant::now() + Duration::from_millis(300);
        until("a while", SOON, || (Instant::now() >= end).then_some(()));
        assert_eq!(counted(nic, "rx_packets"), before, "a paused guest sends");
        operator.resume(WEB).unwrap();
    }
    stream.read_to_end(&mut bytes).unwrap();
    drop(stream);
    console.expect_within("sent-42", BOOT);
    let printed = console.run("true");
    assert!(printed.contains(&sha256(&bytes)), "{} bytes came: {printed}", bytes.len());
}

#[test]
fn the_kernel_serves_a_nic_just_as_well() {
    let mut host = Host::with_guests();
    let (acme, operator) = (host.tenant("acme"), host.operator());
    let served = |id: &str, queues| v1::NicSpec { id: id.to_owned(), queues, vhost: true, ..Default::default() };
    let refused = facts(&acme.register("web", with_nic(served("eth0", 2))).unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::PermissionDenied, "NOT_ALLOWED"));
    let (mut console, printed) = boot(&host, &operator, WEB, with_nic(served("eth0", 2)));
    assert!(printed.contains(" ok"), "{printed}");
    let vm = acme.get("web").unwrap();
    let first = vm.nics[0].clone();
    use_offloads_and_queues(&mut console, &first);

    // Two threads of the kernel's, confined as the one that made them; nothing of the queues is counted.
    let jail = operator.inspect_jail(WEB).unwrap();
    let own = |thread: &&v1::virtual_machine_jail::Thread| thread.name.starts_with("vhost-");
    let workers: Vec<_> = jail.threads.iter().filter(own).collect();
    assert!(workers.len() == 2 && workers.iter().all(|worker| worker.kernel_worker), "{:?}", jail.threads);
    assert!(jail.threads.iter().all(|thread| thread.seccomp_mode == 2), "{:?}", jail.threads);
    assert_eq!(jail.descriptors.iter().filter(|held| held.target == SERVER).count(), 2, "{:?}", jail.descriptors);
    let stats = operator.stats(WEB).unwrap();
    let counted = stats.devices.iter().find(|device| device.id == "eth0").unwrap();
    assert!(counted.queues.is_empty() && counted.faults == 0, "{counted:?}");
    let limited = facts(&operator.limit(WEB, "eth0", v1::RateLimits::default()).unwrap_err());
    assert_eq!((limited.code, limited.reason.as_str()), (Code::FailedPrecondition, "CHANGE_FAILED"));

    pause_while_it_sends(&operator, &mut console, &first);

    // A second one comes and goes, and leaves nothing of the kernel's behind.
    let denied = facts(&acme.attach("web", Device::Nic(served("fast", 1))).unwrap_err());
    assert_eq!((denied.code, denied.reason.as_str()), (Code::PermissionDenied, "NOT_ALLOWED"));
    let before = holdings(vm.vmm_pid);
    for cycle in 0..CYCLES {
        let attached = operator.attach(WEB, Device::Nic(served("fast", 2))).unwrap();
        let fast = attached.nics.iter().find(|nic| nic.id == "fast").unwrap();
        appears(&mut console, "/sys/class/net/eth1");
        console.run(&format!("ip addr add {} dev eth1; ip link set eth1 up", fast.guest_address));
        if cycle == 0 {
            pings(&mut console, fast);
        }
        operator.detach(WEB, "fast", Some(PATIENCE_MS), false).unwrap();
        vanishes(&mut console, "/sys/class/net/eth1");
    }
    // A thread that the kernel has ended may be seen for a moment more.
    until("the kernel's threads' end", SOON, || (holdings(vm.vmm_pid).threads == before.threads).then_some(()));
    assert_eq!(holdings(vm.vmm_pid), before, "after {CYCLES} NICs");

    // Its VM boots anew, under a daemon that has come anew.
    host.kill_daemon();
    host.start_daemon();
    let operator = host.operator();
    let mut console = host.console(&operator, WEB);
    console.type_line("reboot -f");
    until("another vmm", SOON, || operator.get(WEB).ok().filter(|now| ![0, vm.vmm_pid].contains(&now.vmm_pid)));
    let mut console = host.console(&operator, WEB);
    console.expect_ready();
    pings(&mut console, &first);
    assert_eq!(operator.stop(WEB, Some(60_000)).unwrap().state(), State::Stopped);
    a_host_without_it_says_so(&operator);
}

/// The VM that is stopped needs what the host has not any more.
fn a_host_without_it_says_so(operator: &Caller) {
    std::fs::rename(SERVER, "/dev/hidden").unwrap();
    let request = v1::StartVirtualMachineRequest { name: WEB.into(), validate_only: true, ..Default::default() };
    let tried = crate::support::client::wait(operator.vms.clone().start_virtual_machine(request));
    let started = operator.start(WEB);
    let plain = operator.attach(WEB, Device::Nic(nic("plain")));
    std::fs::rename("/dev/hidden", SERVER).unwrap();
    for refused in [tried.unwrap_err(), started.unwrap_err()] {
        let refused = facts(&refused);
        assert_eq!((refused.code, refused.reason.as_str()), (Code::FailedPrecondition, "START_FAILED"));
        assert!(refused.message.contains("modprobe vhost_net"), "{refused:?}");
    }
    plain.unwrap();
    operator.start(WEB).unwrap();
}

#[test]
fn one_queue_and_a_limit_hold_in_each_direction() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let limits = v1::RateLimits { bytes_per_second: MIB as u64, ..Default::default() };
    let nic = v1::NicSpec { limits: Some(limits), ..Default::default() };
    let (mut console, _) = boot(&host, &acme, "web", with_nic(nic));
    let nic = acme.get("web").unwrap().nics.remove(0);
    assert_eq!(console.number("queues", "ls -d /sys/class/net/eth0/queues/rx-* | wc -l"), 1);
    let noise = "head -c 2097152 /dev/zero";
    // 2 MiB at 1 MiB/s, of which a tenth is saved up.
    let (bytes, took) = sent(&mut console, &nic, noise);
    assert_eq!(bytes.len(), 2 * MIB);
    assert!(took >= Duration::from_millis(1850), "{took:?}");
    console.type_line("nc -l -p 9000 | wc -c");
    let guest = address(&nic.guest_address).to_owned();
    let mut stream = until("the guest's listener", SOON, || TcpStream::connect((guest.as_str(), 9000)).ok());
    let start = Instant::now();
    stream.write_all(&vec![7; 2 * MIB]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    console.expect_within("2097152", BOOT);
    assert!(start.elapsed() >= Duration::from_millis(1850), "{:?}", start.elapsed());
    // Frames, changed while it runs: ten pings at 4 per second, of which one is saved up.
    let frames = v1::RateLimits { operations_per_second: 4, operations_burst: 1, ..Default::default() };
    acme.limit("web", "eth0", frames).unwrap();
    let start = Instant::now();
    let ping = console.run(&format!("ping -c 10 -A -W 10 {} | grep transmitted", address(&nic.host_address)));
    assert!(ping.contains("10 packets received"), "{ping}");
    assert!(start.elapsed() >= Duration::from_millis(2200), "{:?}", start.elapsed());
    let shown = acme.limit("web", "eth0", v1::RateLimits::default()).unwrap();
    assert_eq!(shown.spec.unwrap().nics[0].limits, None);
    let (bytes, _) = sent(&mut console, &nic, noise);
    assert_eq!(bytes.len(), 2 * MIB);
}
