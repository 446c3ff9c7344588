//! Devices of the host in a guest, beside virtio devices of the same guest, in one run: packets and round trips through a
//! virtual function and through virtio-net, reads from an NVMe namespace behind a virtual function and from a virtio disk on
//! the same controller; and what each step takes of such a device's coming and going.
//!
//! Runs where Linux guests boot and such devices are (see `cargo xtask bench --only devices`), as root. All kinds take turns,
//! so that only their ratios count. What the host does not have is named. Of NVMe it takes the lab's controller, or the one
//! whose serial number `NVME_SERIAL` is: its secondary controllers are made, its first namespace and a free one overwritten.
//!
//! ```text
//!   guest ── virtual function ── the card's own switch ── its interface ─┐
//!         ── virtio-net ── vmm, or vhost ── tap ─────────────────────────┴─ this program
//!         ── NVMe virtual function ── namespace 2 ─┐
//!         ── virtio-blk ── vmm, O_DIRECT ── host's driver ── namespace 1 ──┴─ one controller
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "the tests' harness fails by panicking")]

mod disk;
mod exchange;
mod guest;
mod net;
#[allow(dead_code, reason = "another program uses the rest")]
#[path = "../io/pattern.rs"]
mod pattern;
mod report;
mod steps;
mod storage;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ostler::api::v1;
use ostler::api::v1::attach_device_request::Device;
use tonic::Status;

use net::{Address, Link};
use report::{Compared, Report};
use steps::Coming;
use support::card::{Card, cards};
use support::console::Console;
use support::drives::{self, Drives};
use support::guest::{appears, bootable};
use support::{Caller, Host, TENANTS, assets};

/// Rounds in which all kinds take turns, how often a call is made at most, and after how long no other round begins.
const ROUNDS: usize = 3;
const ATTEMPTS: u32 = 5;
const LIMIT: Duration = Duration::from_secs(90);
const TENANT: &str = TENANTS[0];
const MAC: &str = "02:aa:00:00:00:07";
const NAMESPACE_BYTES: u64 = 16 << 20;
/// The kinds.
const VF: &str = "vf";
const NVME: &str = "nvme";
const TAP: &str = "virtio-net";
const VHOST: &str = "virtio-net,vhost";
const BLOCK: &str = "virtio-blk";
/// Figures that the guest tells, with their names and units here.
const OF_NICS: [(&str, &str, &str); 4] = [
    ("round_trip_p50", "net_round_trip_p50", "µs"),
    ("round_trip_p99", "net_round_trip_p99", "µs"),
    ("to_host", "net_packets_to_host", "packets/s"),
    ("from_host", "net_packets_from_host", "packets/s"),
];
const OF_DISKS: [(&str, &str, &str); 5] = [
    ("read_p50", "disk_read_4k_p50", "µs"),
    ("read_p99", "disk_read_4k_p99", "µs"),
    ("depth_1", "disk_read_4k_depth_1", "reads/s"),
    ("depth_32", "disk_read_4k_depth_32", "reads/s"),
    ("sequence", "disk_read_in_sequence", "MiB/s"),
];

fn main() -> Result<(), String> {
    let words: Vec<String> = std::env::args().collect();
    if words.get(1).is_some_and(|word| word == guest::WORD) {
        return guest::run(&words[2..]).map_err(|error| error.to_string());
    }
    // What one lacks of these, is missed below.
    let _ = Command::new("modprobe").args(["-a", "igb", "nvme", "vfio-pci", "vhost_net"]).status();
    let mut report = Report::default();
    exchange::serve().map_err(|error| error.to_string())?;
    let card = Path::new("/sys/bus/pci").exists().then(cards).filter(|cards| !cards.is_empty());
    let card = card.and_then(|_| Card::with_vfs(1));
    if card.is_none() {
        report.missing.push("a virtual function beside virtio-net: this host has no SR-IOV network card".to_owned());
    }
    let serial = std::env::var("NVME_SERIAL").unwrap_or_else(|_| drives::LAB.to_owned());
    let drives = Path::new("/sys/class/nvme").exists().then(|| Drives::with(&serial)).flatten();
    if drives.is_none() {
        let text = format!(
            "an NVMe namespace beside virtio-blk: no controller of serial number {serial}; NVME_SERIAL names one"
        );
        report.missing.push(text);
    }
    Bench { host: host(), card: card.as_ref(), drives: drives.as_ref() }.run(&mut report);
    report.publish()
}

/// A node that lends devices.
fn host() -> Host {
    let host = Host::with_guests();
    for plugin in ["sriov-net", "nvme"] {
        host.operator().load(&format!("operator/plugins/{plugin}"), &assets::plugin(plugin), &[]).unwrap();
    }
    host
}

/// What there is to be measured.
struct Bench<'a> {
    host: Host,
    card: Option<&'a Card>,
    drives: Option<&'a Drives>,
}

impl Bench<'_> {
    fn run(mut self, report: &mut Report) {
        storage::pack_program(&self.host, TENANT);
        if let Some(drives) = self.drives
            && let Err(reason) = storage::provide(&self.host, drives, TENANT)
        {
            report.missing.push(format!("an NVMe namespace beside virtio-blk: {reason}"));
            self.drives = None;
        }
        if !Path::new("/dev/vhost-net").exists() {
            report.missing.push("virtio-net by the host's kernel: this host has no /dev/vhost-net".to_owned());
        }
        // vhost is an operator's to give.
        let operator = self.host.operator();
        operator.register("web", self.spec()).unwrap();
        report.changes.push(steps::of_start(&operator, "web"));
        let mut console = self.host.console(&operator, "web");
        console.expect_ready();
        storage::unpack_program(&mut console);
        let vm = operator.get("web").unwrap();
        let _address = self.card.map(|card| Address::on(&card.interface));
        let link = |(kind, id)| Some(Link::new(kind, vm.nics.iter().find(|nic| nic.id == id)?));
        let links: Vec<_> = [(VF, "vf"), (TAP, "tap"), (VHOST, "vhost")].into_iter().filter_map(link).collect();
        let names: Vec<_> = links.iter().map(|link| (link.kind, link.bring_up(&mut console))).collect();
        let nics: Vec<_> = links.iter().map(|link| (link.kind, format!("net {}", link.host))).collect();
        report.compared.extend(compare(&mut console, &nics, &OF_NICS));
        if self.drives.is_some() {
            let disks = [(NVME, "/dev/nvme0n1".to_owned()), (BLOCK, storage::device(&mut console, "data"))];
            for (_, path) in &disks {
                appears(&mut console, path);
                said(&mut console, &format!("fill {path}"));
            }
            let disks = disks.map(|(kind, path)| (kind, format!("disk {path}")));
            report.compared.extend(compare(&mut console, &disks, &OF_DISKS));
        }
        let name = |kind| names.iter().find(|(of, _)| *of == kind).map(|(_, name)| name.as_str());
        for coming in self.coming(&operator, name) {
            report.changes.extend(steps::measure(&operator, &mut console, &coming));
        }
        drop(console);
        operator.destroy("web", true).unwrap();
        if let Some(drives) = self.drives {
            storage::wait_until_free(&operator, &drives.lab);
            operator.provision_nvme(&drives.lab, 0).unwrap();
        }
    }

    /// Two virtio NICs, and all else that there is.
    fn spec(&self) -> v1::VirtualMachineSpec {
        let disk = |id: &str, volume: &str, read_only| v1::DiskSpec {
            id: id.into(),
            volume: volume.into(),
            read_only,
            direct: !read_only,
            ..Default::default()
        };
        let mut spec = bootable("linux-6.12-full", "vmlinux");
        spec.memory_mib = 512;
        spec.disks = vec![disk("tools", storage::TOOLS, true)];
        spec.nics = vec![nic("tap")];
        if Path::new("/dev/vhost-net").exists() {
            spec.nics.push(v1::NicSpec { vhost: true, ..nic("vhost") });
        }
        if self.card.is_some() {
            spec.nics.push(virtual_function());
        }
        if self.drives.is_some() {
            spec.disks.push(disk("data", storage::DATA, false));
            spec.nvme = vec![namespace()];
        }
        spec
    }

    /// The devices that come and go: the guest's interface of a NIC is named by `name`.
    fn coming<'a>(&'a self, operator: &'a Caller, name: impl Fn(&'static str) -> Option<&'a str>) -> Vec<Coming<'a>> {
        let interface = |kind| name(kind).map(|name| format!("/sys/class/net/{name}"));
        let mut all = Vec::new();
        let mut add = |kind, id, device, shows| all.push(Coming { kind, id, device, shows, is_free: None });
        if let Some(shows) = interface(VF) {
            add(VF, "vf", Device::Nic(virtual_function()), shows);
        }
        if let Some(shows) = interface(TAP) {
            add(TAP, "tap", Device::Nic(nic("tap")), shows);
        }
        if let Some(drives) = self.drives {
            let data = self.spec().disks.remove(1);
            add(BLOCK, "data", Device::Disk(data), "/dev/vdb".to_owned());
            let is_free = Box::new(|| storage::wait_until_free(operator, &drives.lab));
            let (device, shows) = (Device::Nvme(namespace()), "/dev/nvme0n1".to_owned());
            all.push(Coming { kind: NVME, id: "nvme", device, shows, is_free: Some(is_free) });
        }
        all
    }
}

fn nic(id: &str) -> v1::NicSpec {
    support::guest::nic(id)
}

fn virtual_function() -> v1::NicSpec {
    v1::NicSpec { sriov: Some(v1::SriovNic { mac: MAC.into(), vlan: 0 }), ..nic("vf") }
}

fn namespace() -> v1::NvmeSpec {
    let kind = v1::nvme_spec::Kind::Namespace(v1::NvmeNamespace { min_bytes: NAMESPACE_BYTES });
    v1::NvmeSpec { id: "nvme".into(), kind: Some(kind) }
}

/// What policy denies for that was not answered in time.
const TOO_LATE: [&str; 2] = ["policy.host-lost", "policy.deadline"];

/// Makes a call, and makes it anew where policy was too late on an emulated processor, which denies.
fn again<T>(call: impl Fn() -> Result<T, Status>) -> T {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        match call() {
            Err(late) if left > 0 && TOO_LATE.iter().any(|code| late.message().contains(code)) => {
                eprintln!("again: {}", late.message());
            }
            answer => return answer.unwrap(),
        }
    }
}

/// What the program in the guest says: figures with their values.
fn said(console: &mut Console, words: &str) -> Vec<(String, f64)> {
    let printed = console.run(&format!("{} {} {words}", storage::PROGRAM, guest::WORD));
    assert!(printed.trim_end().ends_with("-0"), "{words}: {printed}");
    let figure = |line: &str| {
        let (figure, value) = line.trim().strip_prefix(guest::SAYS)?.split_once(' ')?;
        Some((figure.to_owned(), value.parse().ok()?))
    };
    printed.lines().filter_map(figure).collect()
}

/// Has each kind do in turn what its words in the guest are.
fn compare(
    console: &mut Console,
    kinds: &[(&'static str, String)],
    figures: &[(&str, &str, &'static str)],
) -> Vec<Compared> {
    let values = || kinds.iter().map(|(kind, _)| (*kind, Vec::new())).collect();
    let mut compared: Vec<_> =
        figures.iter().map(|(_, name, unit)| Compared { name: (*name).to_owned(), unit, values: values() }).collect();
    let begun = Instant::now();
    for round in 1..=ROUNDS {
        if begun.elapsed() > LIMIT {
            eprintln!("rounds from {round} on are left out: they take too long here");
            break;
        }
        for (at, (kind, words)) in kinds.iter().enumerate() {
            let told = said(console, words);
            let shown: Vec<_> = told.iter().map(|(figure, value)| format!("{figure} {value:.0}")).collect();
            eprintln!("round {round} {kind:<17} {}", shown.join(", "));
            for (compared, (figure, ..)) in compared.iter_mut().zip(figures) {
                let (_, value) = told.iter().find(|(told, _)| told == figure).expect("the guest says all of it");
                compared.values[at].1.push(*value);
            }
        }
    }
    compared
}
