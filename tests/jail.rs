//! What a VM's process has and can do: the jail as the kernel shows it. Boots guests (feature `lab`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use ostler::api::v1;
use support::Host;
use support::guest::{boot, disk, linux, nic};
use support::wait::{SOON, until};

fn spec() -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec { disks: vec![disk("root", "hello.img", true)], nics: vec![nic("eth0")], ..linux() }
}

#[test]
fn a_guest_boots_in_a_jail_and_nothing_is_left_of_it() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let (mut console, _) = boot(&host, &acme, "web", spec());
    console.run("echo it runs");
    let vm = acme.get("web").unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.vmm_pid)).unwrap();
    eprintln!("{status}");
    assert_eq!(host.cgroups().len(), 1);
    acme.destroy("web", true).unwrap();
    until("the cgroup's end", SOON, || host.cgroups().is_empty().then_some(()));
}
