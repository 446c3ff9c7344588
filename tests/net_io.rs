//! NICs on taps under a stock driver: what was negotiated is in use, data arrives whole in both directions, queues, limits.
//! Boots guests (feature `lab`).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::Host;
use crate::support::console::Console;
use crate::support::guest::{boot, linux};
use crate::support::wait::{SOON, until};
use ostler::api::v1;
use sha2::{Digest, Sha256};

const MIB: usize = 1 << 20;

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
    console.expect_within("sent-42", SOON);
    (bytes, took)
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

    // Guest to host.
    console.run("dd if=/dev/urandom of=/tmp/noise bs=64k count=64 2>/dev/null");
    let before = (counted(&nic, "rx_bytes"), counted(&nic, "rx_packets"));
    let (bytes, _) = sent(&mut console, &nic, "cat /tmp/noise");
    let hash = sha256(&bytes);
    assert!(console.run("sha256sum < /tmp/noise").contains(&hash), "{} bytes came", bytes.len());
    let average = (counted(&nic, "rx_bytes") - before.0) / (counted(&nic, "rx_packets") - before.1);
    assert!(average > 3000, "{average} bytes per frame: the guest segments itself");

    // Host to guest.
    let before = (counted(&nic, "tx_bytes"), counted(&nic, "tx_packets"));
    console.type_line("nc -l -p 9000 > /tmp/came; echo came-$((40+2))");
    let guest = address(&nic.guest_address).to_owned();
    let mut stream = until("the guest's listener", SOON, || TcpStream::connect((guest.as_str(), 9000)).ok());
    stream.write_all(&bytes).unwrap();
    drop(stream);
    console.expect_within("came-42", SOON);
    let came = console.run("sha256sum < /tmp/came");
    assert!(came.contains(&hash), "{came}");
    let average = (counted(&nic, "tx_bytes") - before.0) / (counted(&nic, "tx_packets") - before.1);
    assert!(average > 3000, "{average} bytes per frame: the host segments for the guest");

    // Flows of either vCPU come by either queue.
    for cpu in [1, 2] {
        let (bytes, _) = sent(&mut console, &nic, &format!("head -c 65536 /tmp/noise | taskset {cpu} cat"));
        assert_eq!(bytes.len(), 65536);
    }
    // A driver that goes and comes back finds one that knows nothing of the one before.
    let again = "echo virtio1 > /sys/bus/virtio/drivers/virtio_net/unbind; echo virtio1 > /sys/bus/virtio/drivers/virtio_net/bind";
    console.run(again);
    console.run(&format!("ip addr add {}/30 dev eth0; ip link set eth0 up", address(&nic.guest_address)));
    let ping = console.run(&format!("ping -c 1 -W 5 {} | grep -c '1 packets received'", address(&nic.host_address)));
    assert!(ping.contains("\n1"), "{ping}");
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
    console.expect_within("2097152", SOON);
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
