//! Kernels that are none, and devices that are taken: the VM fails with the cause, the daemon lives on. Needs a KVM
//! that can boot Linux (feature `lab`).

use std::collections::BTreeSet;

use crate::support::guest::{boot, disk, linux};
use crate::support::wait::{SOON, until};
use crate::support::{Host, facts, small};
use ostler::api::v1;
use ostler::api::v1::virtual_machine::State;
use tonic::Code;

#[test]
fn kernels_that_do_not_boot_fail_each_with_its_own_cause() {
    let mut host = Host::with_guests();
    let pid = host.daemon_pid();
    let acme = host.tenant("acme");
    let broken = crate::support::assets::images().join("broken");
    let mut names: Vec<_> =
        std::fs::read_dir(&broken).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 4, "{} lacks fixtures: {names:?}", broken.display());
    let mut causes = BTreeSet::new();
    for (number, name) in names.iter().enumerate() {
        let vm = format!("vm-{number}");
        let mut spec = linux();
        spec.boot.as_mut().unwrap().kernel = format!("broken/{name}");
        acme.register(&vm, spec).unwrap();
        let refused = facts(&acme.start(&vm).unwrap_err());
        assert!(matches!(refused.code, Code::FailedPrecondition | Code::InvalidArgument), "{name}: {refused:?}");
        let failed = acme.get(&vm).unwrap();
        assert_eq!((failed.state(), failed.vmm_pid), (State::Failed, 0), "{name}: {failed:?}");
        assert!(failed.failure.starts_with("launch failed: "), "{name}: {failed:?}");
        assert!(refused.message.contains(failed.failure.trim_start_matches("launch failed: ")), "{name}: {refused:?}");
        causes.insert(failed.failure);
        acme.destroy(&vm, false).unwrap();
    }
    assert_eq!(causes.len(), names.len(), "{causes:#?}");
    until("the vmms' end", SOON, || host.vmm_processes().is_empty().then_some(()));
    assert!(host.run_entries().is_empty());
    assert_eq!(host.daemon_pid(), pid);
    boot(&host, &acme, "good", linux());
}

#[test]
fn a_kernel_or_initrd_that_is_a_block_device_is_refused() {
    // Its images are its own, where those of the lab can only be read.
    let host = Host::start();
    let acme = host.tenant("acme");
    let name = "device";
    make_block_device(&host.data().join("images").join(name));
    let mut kernel = small();
    kernel.boot.as_mut().unwrap().kernel = name.into();
    let mut initrd = small();
    initrd.boot.as_mut().unwrap().initrd = name.into();
    for (spec, field) in [(kernel, "spec.boot.kernel"), (initrd, "spec.boot.initrd")] {
        let refused = facts(&acme.register("web", spec).unwrap_err());
        assert!(refused.message.contains(field) && refused.message.contains("is a block device"), "{refused:?}");
    }
}

/// A node at `path` for whichever block device this host has, so that it can be opened.
fn make_block_device(path: &std::path::Path) {
    let mut devices = std::fs::read_dir("/sys/class/block").unwrap().map(|entry| entry.unwrap().path());
    let number = std::fs::read_to_string(devices.next().expect("a block device").join("dev")).unwrap();
    let (major, minor) = number.trim().split_once(':').unwrap();
    let made = std::process::Command::new("mknod").arg(path).args(["b", major, minor]).status().unwrap();
    assert!(made.success(), "{made}");
}

#[test]
fn a_disk_that_was_removed_after_registration_fails_the_start() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    host.add_volume("acme", "gone.img", &[0; 4096]);
    let spec = v1::VirtualMachineSpec { disks: vec![disk("root", "gone.img", false)], ..linux() };
    acme.register("web", spec).unwrap();
    std::fs::remove_file(host.volume("acme", "gone.img")).unwrap();
    let refused = acme.start("web").unwrap_err();
    assert!(refused.message().contains("gone.img"), "{refused:?}");
    assert_eq!(acme.get("web").unwrap().vmm_pid, 0);
    host.add_volume("acme", "gone.img", &[0; 4096]);
    acme.start("web").unwrap();
}

#[test]
fn one_disk_is_written_by_one_running_vm_only() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    host.add_volume("acme", "shared.img", &vec![0; 1 << 20]);
    let with = |read_only| v1::VirtualMachineSpec { disks: vec![disk("d", "shared.img", read_only)], ..linux() };
    acme.register("writer", with(false)).unwrap();
    acme.register("second", with(false)).unwrap();
    acme.register("reader", with(true)).unwrap();
    acme.start("writer").unwrap();
    for vm in ["second", "reader"] {
        let refused = acme.start(vm).unwrap_err();
        assert!(refused.message().contains("shared.img"), "{refused:?}");
    }
    acme.stop("writer", Some(0)).unwrap();
    acme.start("second").unwrap();
    acme.stop("second", Some(0)).unwrap();
    // Readers share.
    acme.register("other-reader", with(true)).unwrap();
    acme.start("reader").unwrap();
    acme.start("other-reader").unwrap();
    assert!(acme.start("writer").is_err());
}
