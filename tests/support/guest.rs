//! VMs that boot: specs from the lab's images, and the way from nothing to a shell.

use ostler::api::v1;

use super::console::Console;
use super::{Caller, Host};

/// What a kernel says beyond warnings crosses a serial line, byte by byte: most of an emulated boot.
const QUIET: &str = "quiet";

/// A kernel of the lab with its initial RAM disk: `linux-6.12`, `vmlinux`.
pub fn bootable(kernel: &str, file: &str) -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec {
        vcpus: 1,
        memory_mib: 256,
        boot: Some(v1::BootSpec {
            kernel: format!("{kernel}/{file}"),
            initrd: format!("{kernel}/initrd"),
            cmdline: QUIET.to_owned(),
        }),
        disks: vec![],
        nics: vec![],
        ..Default::default()
    }
}

/// What most tests boot.
pub fn linux() -> v1::VirtualMachineSpec {
    bootable("linux-6.12", "vmlinux")
}

/// The same with further words on the kernel's command line.
pub fn linux_with(words: &str) -> v1::VirtualMachineSpec {
    let mut spec = linux();
    add_words(&mut spec, words);
    spec
}

/// Adds words to a kernel's command line.
pub fn add_words(spec: &mut v1::VirtualMachineSpec, words: &str) {
    spec.boot.as_mut().unwrap().cmdline += &format!(" {words}");
}

pub fn disk(id: &str, volume: &str, read_only: bool) -> v1::DiskSpec {
    v1::DiskSpec { id: id.to_owned(), volume: volume.to_owned(), read_only, ..Default::default() }
}

pub fn nic(id: &str) -> v1::NicSpec {
    v1::NicSpec { id: id.to_owned(), ..Default::default() }
}

/// Registers, starts, and waits for the guest's shell; gives what the guest printed on the way.
pub fn boot(host: &Host, caller: &Caller, vm: &str, spec: v1::VirtualMachineSpec) -> (Console, String) {
    caller.register(vm, spec).unwrap();
    let running = caller.start(vm).unwrap();
    assert_eq!(running.state(), v1::virtual_machine::State::Running, "{running:?}");
    let mut console = host.console(caller, vm);
    let printed = console.expect_ready();
    (console, printed)
}

/// Waits until the guest has a file.
pub fn appears(console: &mut Console, path: &str) {
    console.run(&format!("until [ -e {path} ]; do usleep 20000; done"));
}

/// Waits until the guest does not have a file any more.
pub fn vanishes(console: &mut Console, path: &str) {
    console.run(&format!("while [ -e {path} ]; do usleep 20000; done"));
}
