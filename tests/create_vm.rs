//! A VM from its registration to its shell: kernels, entry formats, sizes and devices. Boots guests (feature `lab`).

use std::io::{Read, Seek, SeekFrom};

use crate::support::Host;
use crate::support::guest::{boot, bootable, disk, linux, nic};
use ostler::api::v1;

/// Boots a kernel without devices and asks it for its release.
fn boots(kernel: &str, file: &str, release: &str) {
    let host = Host::with_guests();
    let (mut console, printed) = boot(&host, &host.tenant("acme"), "web", bootable(kernel, file));
    let uname = console.run("uname -r");
    let line = uname.lines().find(|line| line.starts_with(release)).unwrap_or_else(|| panic!("{release}: {uname}"));
    assert!(printed.contains(&format!("ostler-guest: kernel {}", line.trim())), "{printed}");
}

#[test]
fn boots_linux_6_12_as_vmlinux() {
    boots("linux-6.12", "vmlinux", "6.12.");
}

#[test]
fn boots_linux_6_12_as_bzimage() {
    boots("linux-6.12", "bzImage", "6.12.");
}

#[test]
fn boots_linux_6_1_as_vmlinux() {
    boots("linux-6.1", "vmlinux", "6.1.");
}

#[test]
fn boots_linux_6_1_as_bzimage() {
    boots("linux-6.1", "bzImage", "6.1.");
}

/// Boots with a size, and asks the guest what it got.
fn has_size(vcpus: u32, memory_mib: u64, kernel_file: &str) {
    let host = Host::with_guests();
    let spec = v1::VirtualMachineSpec { vcpus, memory_mib, ..bootable("linux-6.12", kernel_file) };
    let (mut console, _) = boot(&host, &host.tenant("acme"), "web", spec);
    assert_eq!(console.number("cpus", "nproc"), u64::from(vcpus));
    let total_mib = console.number("kib", "sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo") / 1024;
    // The kernel keeps its own image, the page table of pages (1.6 %) and reserved regions to itself.
    let least = memory_mib - memory_mib / 25 - 64;
    assert!((least..=memory_mib).contains(&total_mib), "{total_mib} MiB of {memory_mib}");
}

#[test]
fn boots_with_1_vcpu_and_128_mib() {
    has_size(1, 128, "vmlinux");
}

#[test]
fn boots_with_2_vcpus_and_1_gib() {
    has_size(2, 1024, "bzImage");
}

#[test]
fn boots_with_4_vcpus() {
    has_size(4, 512, "vmlinux");
}

#[test]
fn boots_with_5_gib_above_the_4_gib_hole() {
    has_size(1, 5 << 10, "vmlinux");
    // In a bzImage the memory map comes another way.
    has_size(1, 5 << 10, "bzImage");
}

#[test]
fn every_vcpu_runs() {
    let host = Host::with_guests();
    let spec = v1::VirtualMachineSpec { vcpus: 4, ..linux() };
    let (mut console, _) = boot(&host, &host.tenant("acme"), "web", spec);
    // Each CPU's own timer interrupts grow: it is scheduled, not only listed.
    let busy =
        console.number("busy", "for c in 0 1 2 3; do taskset $((1<<c)) sh -c : 2>/dev/null && echo x; done | wc -l");
    assert_eq!(busy, 4);
}

#[test]
fn a_guest_reads_its_disk_reaches_its_host_and_has_entropy() {
    let host = Host::with_guests();
    let spec =
        v1::VirtualMachineSpec { disks: vec![disk("root", "hello.img", true)], nics: vec![nic("eth0")], ..linux() };
    let (mut console, printed) = boot(&host, &host.tenant("acme"), "web", spec);
    assert!(printed.contains("ostler-guest: disk "), "{printed}");
    assert!(!printed.contains("ostler-guest: disk \r"), "the file is empty: {printed}");
    let status = host.tenant("acme").get("web").unwrap().nics.remove(0);
    let gateway = status.host_address.split('/').next().unwrap();
    assert!(printed.contains(&format!("ostler-guest: ping {gateway} ok")), "{printed}");
    let address = console.run("ip addr show dev eth0");
    assert!(address.contains(status.guest_address.split('/').next().unwrap()), "{address}");
    assert!(address.to_lowercase().contains(&status.mac), "{address}");
    // Of 64 random bytes hardly one is zero.
    assert!(console.number("random", "head -c 64 /dev/hwrng | tr -d '\\000' | wc -c") > 48);
    // Nothing was calibrated: the machine says how fast its clocks are (KVM's CPUID leaves).
    for line in ["kvm-clock: Using msrs", "Calibrating delay loop (skipped)"] {
        assert!(console.number("told", &format!("dmesg | grep -c -F '{line}'")) > 0, "{line}");
    }
    let refused = console.run("dd if=/dev/zero of=/dev/vda bs=512 count=1 conv=fsync || echo write-refused");
    assert!(refused.contains("\nwrite-refused"), "a read-only disk took a write: {refused}");
}

#[test]
fn what_a_guest_writes_is_on_the_hosts_disk() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    host.add_volume("acme", "scratch.img", &vec![0; 4 << 20]);
    let spec = v1::VirtualMachineSpec { disks: vec![disk("scratch", "scratch.img", false)], ..linux() };
    let (mut console, _) = boot(&host, &acme, "web", spec);
    assert_eq!(console.number("sectors", "cat /sys/block/vda/size"), (4 << 20) / 512);
    let written = console.run("printf written-by-the-guest | dd of=/dev/vda bs=512 seek=7 conv=sync,fsync");
    assert!(written.contains("end-"), "{written}");
    assert!(console.run("dd if=/dev/vda bs=512 skip=7 count=1 | head -c 20").contains("written-by-the-guest"));
    acme.stop("web", None).unwrap();

    let mut file = std::fs::File::open(host.volume("acme", "scratch.img")).unwrap();
    file.seek(SeekFrom::Start(7 * 512)).unwrap();
    let mut bytes = [0; 20];
    file.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"written-by-the-guest");
    assert_eq!(file.metadata().unwrap().len(), 4 << 20, "the image kept its size");
}

#[test]
fn disks_keep_their_order_and_their_names() {
    let host = Host::with_guests();
    host.add_volume("acme", "one.img", &vec![0; 1 << 20]);
    host.add_volume("acme", "two.img", &vec![0; 2 << 20]);
    let disks = vec![disk("first", "one.img", false), disk("second", "two.img", true)];
    let spec = v1::VirtualMachineSpec { disks, ..linux() };
    let (mut console, _) = boot(&host, &host.tenant("acme"), "web", spec);
    assert_eq!(console.number("a", "cat /sys/block/vda/size"), 2048);
    assert_eq!(console.number("b", "cat /sys/block/vdb/size"), 4096);
    assert_eq!(console.number("ro", "cat /sys/block/vdb/ro"), 1);
    let serials = console.run("cat /sys/block/vda/serial; echo; cat /sys/block/vdb/serial; echo");
    assert!(serials.contains("first") && serials.contains("second"), "{serials}");
}

#[test]
fn vms_of_two_tenants_run_side_by_side() {
    let host = Host::with_guests();
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    let spec = || v1::VirtualMachineSpec { nics: vec![nic("eth0")], ..linux() };
    let (mut ours, _) = boot(&host, &acme, "web", spec());
    let (mut theirs, _) = boot(&host, &globex, "web", spec());
    ours.run("echo acme > /tmp/who");
    theirs.run("echo globex > /tmp/who");
    assert!(ours.run("cat /tmp/who").contains("acme\r"));
    assert!(theirs.run("cat /tmp/who").contains("globex\r"));
    let address = |caller: &crate::support::Caller| caller.get("web").unwrap().nics.remove(0).guest_address;
    assert_ne!(address(&acme), address(&globex));
    assert_eq!(host.vmm_processes().len(), 2);
}
