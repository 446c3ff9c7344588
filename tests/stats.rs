//! What a VM has done, over the API, the command line and for a scraper. Boots guests (feature `lab`).

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::console::Console;
use crate::support::guest::{boot, disk, linux, nic};
use crate::support::wait::{SOON, until};
use crate::support::{Caller, Host};
use ostler::api::v1;
use ostler::api::v1::virtual_machine_stats::{Device, Queue};
use tonic::Code;

fn device<'a>(stats: &'a v1::VirtualMachineStats, id: &str) -> &'a Device {
    stats.devices.iter().find(|device| device.id == id).unwrap_or_else(|| panic!("no {id}: {stats:?}"))
}

fn whole(queue: &Queue) -> u64 {
    queue.latency_buckets.iter().sum()
}

/// Has the guest write 4 MiB, and sees in the cheap numbers what that took.
fn writes(host: &Host, acme: &Caller, console: &mut Console) {
    let [before] = acme.usages("").unwrap().try_into().expect("one VM has a process");
    console.run("dd if=/dev/zero of=/dev/vda bs=64k count=64 conv=fsync 2>/dev/null");
    let [after] = acme.usages("tenants/acme").unwrap().try_into().expect("one VM has a process");
    assert_eq!((after.name.as_str(), after.vmm_pid), ("tenants/acme/vms/web", acme.get("web").unwrap().vmm_pid));
    let cpu = |usage: &v1::VirtualMachineUsage| usage.cpu_time.map(|time| (time.seconds, time.nanos));
    assert!(cpu(&after) > cpu(&before), "{before:?} {after:?}");
    assert!(after.disk_bytes - before.disk_bytes >= 4 << 20 && after.disk_operations > before.disk_operations);
    assert!(after.nic_frames >= before.nic_frames && after.memory_bytes > 32 << 20, "{after:?}");
    assert_eq!(host.operator().usages("tenants/-").unwrap().len(), 1);
    assert!(host.tenant("globex").usages("").unwrap().is_empty());
    let top = host.command("tenant-acme").args(["top", "--interval", "500ms"]).output().unwrap();
    let top = String::from_utf8_lossy(&top.stdout).into_owned();
    println!("{top}");
    assert!(top.contains("acme/web  RUNNING  2"), "{top}");
}

#[test]
fn what_a_guest_does_is_counted_and_kept_after_its_end() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    host.add_volume("acme", "data.img", &vec![0; 8 << 20]);
    let spec = v1::VirtualMachineSpec {
        vcpus: 2,
        disks: vec![disk("data", "data.img", false)],
        nics: vec![nic("eth0")],
        ..linux()
    };
    let (mut console, _) = boot(&host, &acme, "web", spec);
    let before = acme.stats("web").unwrap();
    let phases: Vec<_> = before.boot_phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(phases, ["spawned", "started", "received", "built", "running", "console"]);
    let at: Vec<_> = before.boot_phases.iter().map(|phase| phase.at.unwrap()).collect();
    assert!(at.windows(2).all(|pair| (pair[0].seconds, pair[0].nanos) <= (pair[1].seconds, pair[1].nanos)), "{at:?}");
    assert_eq!(before.vcpus.len(), 2);
    assert!(before.vcpus[0].exits.iter().any(|exit| exit.reason == "port_write" && exit.count > 100), "{before:?}");

    writes(&host, &acme, &mut console);
    let after = acme.stats("web").unwrap();
    let [old, new] = [&before, &after].map(|stats| device(stats, "data").queues[0].clone());
    let written = new.bytes - old.bytes;
    // Data, and 17 bytes for each request's head and status; the kernel may read a block or two besides.
    assert!((4 << 20..(4 << 20) + (1 << 20)).contains(&written), "{written}");
    assert!(new.operations > old.operations && new.errors == 0, "{new:?}");
    assert_eq!(whole(&new), new.operations, "every operation has a latency");
    assert_eq!(device(&after, "eth0").queues.len(), 2);
    assert_eq!(device(&after, "data").faults, 0);

    // A read beyond the end of an image that was made shorter behind the guest's back is an error of the disk.
    std::fs::OpenOptions::new().write(true).open(host.volume("acme", "data.img")).unwrap().set_len(1 << 20).unwrap();
    console.run("echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda of=/dev/null bs=64k skip=64 count=1");
    let failed = acme.stats("web").unwrap();
    assert!(device(&failed, "data").queues[0].errors > 0, "{failed:?}");

    let vm = acme.get("web").unwrap();
    let memory = vm.memory_use.unwrap();
    println!("overhead {} kB, guest {} kB", memory.overhead_bytes >> 10, memory.guest_bytes >> 10);
    assert!(memory.guest_bytes > 32 << 20 && memory.guest_bytes <= 257 << 20, "{memory:?}");
    assert!(memory.overhead_bytes > 100 << 10 && memory.overhead_bytes < 32 << 20, "{memory:?}");
    assert_eq!(host.tenant("globex").stats("tenants/acme/vms/web").unwrap_err().code(), Code::NotFound);

    let shown = host.command("tenant-acme").args(["vm", "stats", "web"]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    println!("{shown}");
    assert!(shown.contains("DEVICE") && shown.contains("port_write") && shown.contains("console"), "{shown}");
    let json = host.command("tenant-acme").args(["vm", "stats", "web", "-o", "json"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["devices"].as_array().unwrap().len(), 3);

    acme.stop("web", Some(0)).unwrap();
    let kept = acme.stats("web").unwrap();
    assert_eq!(device(&kept, "data").queues[0], device(&failed, "data").queues[0]);
    assert!(kept.memory_use.is_none());
    assert!(acme.usages("").unwrap().is_empty(), "it has no process");
}

/// What a scraper gets for a path.
fn scrape(port: u16, path: &str) -> String {
    let mut stream = until("metrics", SOON, || TcpStream::connect(("127.0.0.1", port)).ok());
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_scraper_sees_the_same_numbers() {
    let port = 9464;
    let mut host = Host::with_guests();
    host.kill_daemon();
    host.options = vec!["--metrics".into(), format!("127.0.0.1:{port}")];
    host.start_daemon();
    let acme = host.tenant("acme");
    boot(&host, &acme, "web", v1::VirtualMachineSpec { nics: vec![nic("eth0")], ..linux() });
    let text = scrape(port, "/metrics");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("version=0.0.4"), "{text}");
    let labels = "tenant=\"acme\",vm=\"web\"";
    for line in [
        format!("ostler_vm_exits_total{{{labels},vcpu=\"0\",reason=\"port_write\"}} "),
        format!("ostler_vm_queue_operations_total{{{labels},device=\"eth0\",queue=\"1\"}} "),
        format!("ostler_vm_queue_latency_seconds_bucket{{{labels},device=\"rng\",queue=\"0\",le=\"+Inf\"}} "),
        format!("ostler_vm_boot_seconds{{{labels},phase=\"console\"}} "),
        format!("ostler_vm_memory_overhead_bytes{{{labels}}} "),
    ] {
        assert!(text.lines().any(|had| had.starts_with(&line)), "{line}\n{text}");
    }
    assert!(scrape(port, "/else").starts_with("HTTP/1.1 404 "));
    // One that says nothing holds nobody up.
    let _silent: Vec<_> = (0..3).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    assert!(scrape(port, "/metrics").contains("ostler_vm_info"));
}
