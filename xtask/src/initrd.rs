//! The guests' initial RAM disk: busybox, the drivers of virtual devices, a script as PID 1, and a program that speaks
//! over virtio-vsock, which busybox cannot.
//!
//! It is not compressed: unpacking costs a guest more than reading.

use crate::archive::Archive;
use crate::modules::closure;
use crate::packages::{Kernel, Packages};
use crate::progress::output_of;
use crate::workspace::{Workspace, unfinished, write_whole};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

const INIT: &[u8] = include_bytes!("../assets/guest-init.sh");
const VSOCK_PEER: &str = include_str!("../assets/vsock-peer.rs");
/// Loaded by guests that have such a device only: the others' boots are not to pay for it.
const VSOCK_MODULES: [&str; 1] = ["vmw_vsock_virtio_transport"];
const BALLOON_MODULES: [&str; 1] = ["virtio_balloon"];
const CONSOLE_MODULES: [&str; 1] = ["virtio_console"];
const MODULES: [&str; 10] = [
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "button",
    "evdev",
    "pvpanic-mmio",
    "ext4",
    "squashfs",
];
/// Drivers of physical devices that guests get by pass-through.
pub(crate) const PHYSICAL: [&str; 2] = ["igbvf", "nvme"];
const APPLETS: [&str; 41] = [
    "acpid",
    "cat",
    "cttyhack",
    "date",
    "dd",
    "df",
    "dmesg",
    "echo",
    "free",
    "grep",
    "head",
    "hexdump",
    "ifconfig",
    "insmod",
    "ip",
    "kill",
    "ls",
    "lsmod",
    "md5sum",
    "mkdir",
    "mount",
    "nproc",
    "ping",
    "poweroff",
    "ps",
    "reboot",
    "rm",
    "run-parts",
    "sed",
    "setsid",
    "sh",
    "sha256sum",
    "sleep",
    "stty",
    "sync",
    "tail",
    "top",
    "umount",
    "uname",
    "usleep",
    "wc",
];

/// Builds the program that speaks over virtio-vsock, by the compiler alone: it uses nothing but its standard library.
pub(crate) fn vsock_peer(workspace: &Workspace) -> Result<Vec<u8>> {
    let source = workspace.lab("vsock-peer.rs");
    write_whole(&source, VSOCK_PEER.as_bytes())?;
    let program = unfinished(&workspace.lab("vsock-peer"));
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition=2024", "-Copt-level=s", "-Cpanic=abort", "-Cstrip=symbols", "-Ctarget-feature=+crt-static"]);
    output_of(rustc.args(["--target=x86_64-unknown-linux-gnu", "-o"]).arg(&program).arg(&source))?;
    fs::read(&program).with_context(|| format!("cannot read {}", program.display()))
}

/// Makes the initial RAM disk for a guest kernel, with further drivers.
pub(crate) fn guest(packages: &Packages, kernel: &Kernel, vsock_peer: &[u8], drivers: &[&str]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "mnt", "tmp", "root", "var/run", "var/log", "lib/modules"] {
        archive.directory(directory)?;
    }
    // The kernel opens the console before anything is mounted.
    archive.device("dev/console", 5, 1)?;
    archive.file("init", 0o755, INIT)?;
    let busybox = packages.busybox();
    archive.file(
        "bin/busybox",
        0o755,
        &fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?,
    )?;
    for applet in APPLETS {
        archive.link(&format!("bin/{applet}"), "busybox")?;
    }
    archive.file("bin/vsock-peer", 0o755, vsock_peer)?;
    archive.file("etc/acpi/PWRF/00000080", 0o755, b"#!/bin/sh\nexec poweroff -f\n")?;
    let mut packed = BTreeSet::new();
    let lists = [
        ("modules", [&MODULES, drivers].concat()),
        ("modules.vsock", VSOCK_MODULES.to_vec()),
        ("modules.balloon", BALLOON_MODULES.to_vec()),
        ("modules.console", CONSOLE_MODULES.to_vec()),
    ];
    for (list, names) in lists {
        let mut paths = String::new();
        for module in closure(kernel, &names)? {
            let name = module.path.rsplit('/').next().unwrap_or(&module.path);
            let path = format!("lib/modules/{name}");
            if packed.insert(path.clone()) {
                archive.file(&path, 0o644, &module.content)?;
                paths.push_str(&format!("/{path}\n"));
            }
        }
        archive.file(list, 0o644, paths.as_bytes())?;
    }
    archive.finish()
}
