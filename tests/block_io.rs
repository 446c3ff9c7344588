//! Disks under a stock driver: what is written is read back and lies on the host, in every mode; holes, zeroes, queues,
//! growth and limits while the guest runs. Boots guests (feature `lab`).

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::Host;
use crate::support::console::Console;
use crate::support::guest::{appears, boot, linux};
use crate::support::wait::{SOON, until};
use crate::support::{Caller, assets, facts, fio};
use ostler::api::v1;
use sha2::{Digest, Sha256};
use tonic::Code;

const MIB: u64 = 1 << 20;

/// A file system like a host's (the lab's own is in memory) in the place of a tenant's volumes.
struct Volumes {
    directory: PathBuf,
    image: tempfile::NamedTempFile,
}

impl Volumes {
    fn ext4(host: &Host, tenant: &str) -> Self {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(256 * MIB).unwrap();
        run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-O", "^has_journal"]).arg(image.path()));
        let directory = host.volume(tenant, "");
        run(Command::new("mount").args(["-o", "loop"]).arg(image.path()).arg(&directory));
        Self { directory, image }
    }

    /// A new image, full of `byte`, and open for a look from the host's side.
    fn add(&self, name: &str, len: u64, byte: u8) -> File {
        let path = self.directory.join(name);
        std::fs::write(&path, vec![byte; len as usize]).unwrap();
        let file = File::options().read(true).write(true).open(path).unwrap();
        file.sync_all().unwrap();
        file
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        // Lazily: a failed test leaves a VM that holds an image.
        let _ = Command::new("umount").arg("-l").arg(&self.directory).status();
        let _ = self.image.as_file().set_len(0);
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn disk(volume: &str) -> v1::DiskSpec {
    v1::DiskSpec { id: "data".into(), volume: volume.into(), ..Default::default() }
}

fn with_disks(disks: Vec<v1::DiskSpec>) -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec { disks, ..linux() }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The guest fills 4 MiB from 1 MiB on with noise, reads it back past its cache, and the host sees the same bytes.
fn moves_data(console: &mut Console, file: &File, device: &str) {
    console.run("dd if=/dev/urandom of=/tmp/noise bs=64k count=64 2>/dev/null");
    let copy = "dd if=/tmp/noise bs=64k seek=16 conv=notrunc,fsync 2>/dev/null";
    console.run(&format!("{copy} of={device}; echo 3 > /proc/sys/vm/drop_caches"));
    let mut bytes = vec![0; 4 << 20];
    file.read_exact_at(&mut bytes, MIB).unwrap();
    let hash = sha256(&bytes);
    let written = console.run("sha256sum < /tmp/noise");
    assert!(written.contains(&hash), "the host sees {hash}, the guest wrote {written}");
    let read = console.run(&format!("dd if={device} bs=64k skip=16 count=64 2>/dev/null | sha256sum"));
    assert!(read.contains(&hash), "the guest reads {read}, the host {hash}");
    // Past the guest's cache, in sectors and in large pieces.
    for (unit, count) in [(512, 64), (1 << 20, 2)] {
        let parts = (MIB / unit, count);
        let command = format!(
            "dd if=/tmp/noise of={device} bs={unit} seek={0} count={1} conv=notrunc oflag=direct 2>/dev/null; \
             dd if={device} bs={unit} skip={0} count={1} iflag=direct 2>/dev/null | sha256sum",
            parts.0, parts.1
        );
        let read = console.run(&command);
        let hash = sha256(&bytes[..(unit * count) as usize]);
        assert!(read.contains(&hash), "direct, {unit} bytes: {read}, expected {hash}");
    }
}

#[test]
fn data_is_the_same_in_guest_and_host_in_every_mode() {
    let host = Host::with_guests();
    let volumes = Volumes::ext4(&host, "acme");
    let modes = [("cached", false, 1), ("direct", true, 1), ("queues", false, 2), ("both", true, 4)];
    let files: Vec<_> = modes.iter().map(|(name, ..)| volumes.add(&format!("{name}.img"), 8 * MIB, 7)).collect();
    let disks = modes.iter().map(|&(name, direct, queues)| v1::DiskSpec {
        id: name.into(),
        direct,
        queues,
        ..disk(&format!("{name}.img"))
    });
    let spec = v1::VirtualMachineSpec { vcpus: 2, ..with_disks(disks.collect()) };
    let acme = host.tenant("acme");
    let (mut console, _) = boot(&host, &acme, "web", spec);
    for (index, ((name, _, queues), file)) in modes.iter().zip(&files).enumerate() {
        let device = ["vda", "vdb", "vdc", "vdd"][index];
        assert!(console.run(&format!("cat /sys/block/{device}/serial")).contains(name));
        // A guest uses at most one queue per vCPU.
        let used = console.number("queues", &format!("ls /sys/block/{device}/mq | wc -l"));
        assert_eq!(used, u64::from(*queues).min(2), "{name}");
        moves_data(&mut console, file, &format!("/dev/{device}"));
        let mut edge = [0; 512];
        file.read_exact_at(&mut edge, MIB - 512).unwrap();
        assert_eq!(edge, [7; 512], "{name}: written before its place");
        file.read_exact_at(&mut edge, 5 * MIB).unwrap();
        assert_eq!(edge, [7; 512], "{name}: written behind its place");
    }
    // Each queue has an interrupt of its own, and each vCPU its queue.
    let interrupts = "grep -c 'virtio3-req' /proc/interrupts";
    assert_eq!(console.number("vectors", interrupts), 2, "{}", console.run("cat /proc/interrupts"));
    for cpu in [1, 2] {
        console.run(&format!("taskset {cpu} dd if=/dev/vdc of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null"));
    }
    let idle = "grep 'virtio3-req' /proc/interrupts | grep -c ': *0  *0 '";
    assert_eq!(console.number("idle", idle), 0, "{}", console.run("cat /proc/interrupts"));
    let told = acme.get("web").unwrap().spec.unwrap().disks.remove(3);
    assert!(told.direct && told.queues == 4, "{told:?}");
}

#[test]
fn fio_reads_what_it_wrote_in_every_mode_and_finds_what_changed_since() {
    const NAME: &str = "fio_reads_what_it_wrote_in_every_mode_and_finds_what_changed_since";
    let host = Host::with_guests();
    let volumes = Volumes::ext4(&host, "acme");
    let Some(with_fio) = fio::disk(&host, "acme") else {
        return assets::skip(NAME, "fio, built from Debian's sources");
    };
    let file = volumes.add("cached.img", 4 * MIB, 7);
    for name in ["direct", "queues", "limited", "fixed", "late"] {
        volumes.add(&format!("{name}.img"), 4 * MIB, 7);
    }
    let of = |name: &str| v1::DiskSpec { id: name.into(), ..disk(&format!("{name}.img")) };
    let disks = vec![
        of("cached"),
        v1::DiskSpec { direct: true, ..of("direct") },
        v1::DiskSpec { queues: 2, direct: true, ..of("queues") },
        v1::DiskSpec { limits: Some(rates(4 * MIB, 400)), ..of("limited") },
        v1::DiskSpec { read_only: true, ..of("fixed") },
        with_fio,
    ];
    let acme = host.tenant("acme");
    let (mut console, _) = boot(&host, &acme, "web", v1::VirtualMachineSpec { vcpus: 2, ..with_disks(disks) });
    for device in ["vda", "vdb", "vdc", "vdd"] {
        fio::verifies(&mut console, &format!("/dev/{device}"), 0).unwrap_or_else(|said| panic!("{device}: {said}"));
    }
    let refused = fio::verifies(&mut console, "/dev/vde", 0).unwrap_err();
    // EACCES, EPERM, EROFS: kernels differ.
    let reasons = ["ermission denied", "not permitted", "ead-only file system"];
    assert!(reasons.iter().any(|reason| refused.contains(reason)), "{refused}");
    acme.attach("web", v1::attach_device_request::Device::Disk(of("late"))).unwrap();
    appears(&mut console, "/dev/vdg");
    fio::verifies(&mut console, "/dev/vdg", 0).unwrap();
    // Where there was nothing.
    host.operator().resize_disk("tenants/acme/vms/web", "cached", 8 * MIB).unwrap();
    has_sectors(&mut console, 8 * MIB / 512);
    fio::verifies(&mut console, "/dev/vda", 4).unwrap();
    fio::reads_whole(&mut console, "/dev/vda", 0).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, MIB + 2000).unwrap();
    file.write_all_at(&[!byte[0]], MIB + 2000).unwrap();
    let found = fio::reads_whole(&mut console, "/dev/vda", 0).unwrap_err();
    assert!(found.contains("verify"), "{found}");
}

#[test]
fn what_a_guest_discards_is_free_on_the_host_and_reads_as_zeros() {
    let host = Host::with_guests();
    let volumes = Volumes::ext4(&host, "acme");
    let files = [volumes.add("cached.img", 8 * MIB, 7), volumes.add("direct.img", 8 * MIB, 7)];
    let direct = v1::DiskSpec { id: "direct".into(), direct: true, ..disk("direct.img") };
    let read_only = v1::DiskSpec { id: "fixed".into(), read_only: true, ..disk("fixed.img") };
    let fixed = volumes.add("fixed.img", MIB, 7);
    let spec = with_disks(vec![disk("cached.img"), direct, read_only]);
    let (mut console, _) = boot(&host, &host.tenant("acme"), "web", spec);
    for (device, file) in ["vda", "vdb"].into_iter().zip(&files) {
        let before = file.metadata().unwrap().blocks();
        assert!(before >= 8 * MIB / 512, "{before} blocks: not all of the image is there to begin with");
        let done = console.run(&format!("blkdiscard -o 1048576 -l 4194304 /dev/{device} && echo discarded"));
        assert!(done.contains("\ndiscarded"), "{done}");
        let after = file.metadata().unwrap().blocks();
        assert!(after + 4 * MIB / 512 <= before, "{device}: {before} blocks before, {after} after");
        let mut bytes = vec![1; 8 * MIB as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let (start, end) = (MIB as usize, 5 * MIB as usize);
        assert!(bytes[start..end].iter().all(|&byte| byte == 0));
        assert!(bytes[..start].iter().chain(&bytes[end..]).all(|&byte| byte == 7));
        assert_eq!(file.metadata().unwrap().len(), 8 * MIB, "the image kept its length");
        let sum = sha256(&vec![0; 4 << 20]);
        let read = console.run(&format!("dd if=/dev/{device} bs=64k skip=16 count=64 2>/dev/null | sha256sum"));
        assert!(read.contains(&sum), "{read}");
        // Zeroing is on offer too, and done by the host without data from the guest.
        assert!(console.number("zeroes", &format!("cat /sys/block/{device}/queue/write_zeroes_max_bytes")) >= MIB);
    }
    // ext4 zeroes tables of inodes by write zeroes once it is mounted, and what it writes is there later.
    let made = console.run("mke2fs -q /dev/vda; mount -t ext4 /dev/vda /mnt && cp /init /mnt/init && umount /mnt; echo 3 > /proc/sys/vm/drop_caches; mount -t ext4 /dev/vda /mnt && sha256sum < /mnt/init; sha256sum < /init");
    let sums: Vec<_> = made.lines().filter_map(|line| line.trim().strip_suffix("  -")).collect();
    assert!(sums.len() == 2 && sums[0] == sums[1], "{made}");
    let refused = console.run("blkdiscard -o 0 -l 4096 /dev/vdc || echo refused");
    assert!(refused.contains("\nrefused"), "{refused}");
    assert_eq!(fixed.metadata().unwrap().blocks(), MIB / 512);
}

#[test]
fn images_that_make_no_disk_are_refused_by_name() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    for (len, word) in [(0, "empty"), (1000, "1000 bytes"), (513, "513 bytes")] {
        host.add_volume("acme", "odd.img", &vec![0; len]);
        let refused = acme.register("web", with_disks(vec![disk("odd.img")])).unwrap_err();
        let facts = crate::support::facts(&refused);
        assert!(facts.metadata["field"].contains("spec.disks[0].volume"), "{facts:?}");
        assert!(facts.message.contains(word), "{facts:?}");
    }
    // One that became so after it was registered.
    host.add_volume("acme", "odd.img", &[0; 4096]);
    acme.register("web", with_disks(vec![disk("odd.img")])).unwrap();
    File::options().write(true).open(host.volume("acme", "odd.img")).unwrap().set_len(1000).unwrap();
    let refused = acme.start("web").unwrap_err();
    assert!(refused.message().contains("1000 bytes"), "{refused:?}");
    // A file system without direct I/O says so before anything runs.
    let plain: &Path = &host.volume("acme", "plain");
    std::fs::create_dir(plain).unwrap();
    run(Command::new("mount").args(["-t", "ramfs", "none"]).arg(plain));
    std::fs::write(plain.join("x.img"), [0; 4096]).unwrap();
    let direct = v1::DiskSpec { direct: true, ..disk("plain/x.img") };
    let refused = acme.register("fast", with_disks(vec![direct]));
    run(Command::new("umount").arg("-l").arg(plain));
    let refused = refused.unwrap_err();
    assert!(refused.message().contains("direct I/O"), "{refused:?}");
}

/// Waits until the guest sees this many sectors.
fn has_sectors(console: &mut Console, sectors: u64) {
    until("the guest's new size", SOON, || {
        (console.number("size", "cat /sys/block/vda/size") == sectors).then_some(())
    });
}

#[test]
fn a_disk_grows_under_its_guest_and_never_shrinks() {
    let host = Host::with_guests();
    let volumes = Volumes::ext4(&host, "acme");
    let file = volumes.add("data.img", 4 * MIB, 7);
    let (acme, operator) = (host.tenant("acme"), host.operator());
    let (mut console, _) = boot(&host, &acme, "web", with_disks(vec![disk("data.img")]));
    assert_eq!(console.number("size", "cat /sys/block/vda/size"), 4 * MIB / 512);

    // Longer than the limit on files with which the process was started, which is 64 MiB.
    let grown = 300 * MIB;
    let refused = acme.resize_disk("web", "data", grown).unwrap_err();
    assert_eq!(facts(&refused).reason, "NOT_ALLOWED", "a tenant does not take the host's space");
    assert_eq!(operator.resize_disk("web", "data", grown).unwrap(), grown);
    has_sectors(&mut console, grown / 512);
    console.run("printf at-the-new-end | dd of=/dev/vda bs=512 seek=614399 conv=sync,fsync,notrunc");
    let mut bytes = [0; 14];
    file.read_exact_at(&mut bytes, grown - 512).unwrap();
    assert_eq!(&bytes, b"at-the-new-end");
    let jail = acme.inspect_jail("web").unwrap();
    let limit = jail.limits.iter().find(|limit| limit.name == "Max file size").unwrap();
    assert_eq!(limit.hard.parse::<u64>().unwrap(), grown);

    for (size, word) in [(4 * MIB, "only grows"), (grown + 1, "whole sectors")] {
        let facts = facts(&operator.resize_disk("web", "data", size).unwrap_err());
        assert_eq!((facts.code, facts.metadata["field"].as_str()), (Code::InvalidArgument, "size_bytes"), "{facts:?}");
        assert!(facts.message.contains(word), "{facts:?}");
    }
    let missing = facts(&acme.resize_disk("web", "gone", 0).unwrap_err());
    assert_eq!(missing.metadata["field"], "disk");
    assert_eq!(
        host.tenant("globex").resize_disk("tenants/acme/vms/web", "data", 0).unwrap_err().code(),
        Code::NotFound
    );

    // Grown on the host by somebody else: the tenant has its guest told.
    file.set_len(grown + MIB).unwrap();
    assert_eq!(acme.resize_disk("web", "data", 0).unwrap(), grown + MIB);
    has_sectors(&mut console, (grown + MIB) / 512);
    // Shortened behind everybody's back: said, and the guest is not told.
    file.set_len(grown).unwrap();
    let shorter = facts(&acme.resize_disk("web", "data", 0).unwrap_err());
    assert_eq!(shorter.reason, "CHANGE_FAILED", "{shorter:?}");
    assert_eq!(console.number("size", "cat /sys/block/vda/size"), (grown + MIB) / 512);
    acme.stop("web", Some(0)).unwrap();
    assert_eq!(operator.resize_disk("web", "data", grown + 2 * MIB).unwrap(), grown + 2 * MIB, "while it is off");
    acme.start("web").unwrap();
    let mut console = host.console(&acme, "web");
    console.expect_ready();
    has_sectors(&mut console, (grown + 2 * MIB) / 512);
}

fn rates(bytes_per_second: u64, operations_per_second: u64) -> v1::RateLimits {
    v1::RateLimits { bytes_per_second, operations_per_second, ..Default::default() }
}

/// Requests that the guest's disk has had, as its driver counts them.
fn requests(console: &mut Console) -> u64 {
    console.number("requests", "cut -c1-9 /sys/block/vda/stat")
}

/// The guest does `command` with empty caches: how long it takes, and in how many requests.
fn reading(console: &mut Console, command: &str, result: &str) -> (Duration, u64) {
    console.run("echo 3 > /proc/sys/vm/drop_caches");
    let before = requests(console);
    let start = Instant::now();
    let read = console.run(command);
    let took = start.elapsed();
    assert!(read.contains(&format!("\n{result}")), "{read}");
    let requests = requests(console) - before;
    println!("{command}: {took:?}, {requests} requests");
    (took, requests)
}

fn limits_of(caller: &Caller) -> Option<v1::RateLimits> {
    caller.get("web").unwrap().spec.unwrap().disks[0].limits
}

#[test]
fn limits_hold_change_while_the_guest_runs_and_stay() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    host.add_volume("acme", "data.img", &vec![7; 4 << 20]);
    let limited = v1::DiskSpec { limits: Some(rates(MIB, 0)), ..disk("data.img") };
    let (mut console, _) = boot(&host, &acme, "web", with_disks(vec![limited]));
    // 2 MiB at 1 MiB/s, of which a tenth is saved up.
    let stream = "dd if=/dev/vda bs=64k count=32 2>/dev/null | wc -c";
    let (took, _) = reading(&mut console, stream, "2097152");
    assert!(took >= Duration::from_millis(1850), "{took:?}");
    // 20 requests per second, of which two are saved up; too far apart to be read together.
    acme.limit("web", "data", rates(0, 20)).unwrap();
    let apart = "for i in 0 1 2 3 4 5 6 7 8 9; do for j in 0 1 2; do \
                 dd if=/dev/vda bs=512 count=1 skip=$((i*800+j*256)) 2>/dev/null; done; done | wc -c";
    let (took, requests) = reading(&mut console, apart, "15360");
    assert!(requests >= 30 && took >= Duration::from_millis((requests - 2) * 50), "{requests} requests in {took:?}");
    let shown = limits_of(&acme).unwrap();
    assert_eq!((shown.operations_per_second, shown.operations_burst, shown.bytes_per_second), (20, 2, 0));
    // What waits for a minute goes at once when the limit is gone.
    console.run("echo 3 > /proc/sys/vm/drop_caches");
    acme.limit("web", "data", rates(10_000, 0)).unwrap();
    console.type_line("dd if=/dev/vda bs=64k count=10 iflag=direct 2>/dev/null | wc -c");
    assert_eq!(acme.limit("web", "data", rates(0, 0)).unwrap().spec.unwrap().disks[0].limits, None);
    console.expect_within("655360", SOON);
    // And what is set stays for the next run.
    acme.limit("web", "data", rates(MIB, 0)).unwrap();
    acme.stop("web", Some(0)).unwrap();
    acme.start("web").unwrap();
    let mut console = host.console(&acme, "web");
    console.expect_ready();
    let (took, _) = reading(&mut console, stream, "2097152");
    assert!(took >= Duration::from_millis(1850), "{took:?}");
    for (device, limits, field) in [("gone", rates(1, 1), "device"), ("data", rates(u64::MAX, 0), "limits")] {
        let facts = facts(&acme.limit("web", device, limits).unwrap_err());
        assert!(facts.metadata["field"].starts_with(field), "{facts:?}");
    }
}
