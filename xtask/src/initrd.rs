//! The guests' initial RAM disk: busybox, the drivers of virtual devices, and a script as PID 1.
//!
//! It is not compressed: unpacking costs a guest more than reading.

use crate::archive::Archive;
use crate::modules::closure;
use crate::packages::{Kernel, Packages};
use anyhow::{Context, Result};
use std::fs;

const INIT: &[u8] = include_bytes!("../assets/guest-init.sh");
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

/// Makes the initial RAM disk for a guest kernel, with further drivers.
pub(crate) fn guest(packages: &Packages, kernel: &Kernel, drivers: &[&str]) -> Result<Vec<u8>> {
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
    archive.file("etc/acpi/PWRF/00000080", 0o755, b"#!/bin/sh\nexec poweroff -f\n")?;
    let mut list = String::new();
    for module in closure(kernel, &[&MODULES, drivers].concat())? {
        let name = module.path.rsplit('/').next().unwrap_or(&module.path);
        let path = format!("lib/modules/{name}");
        archive.file(&path, 0o644, &module.content)?;
        list.push_str(&format!("/{path}\n"));
    }
    archive.file("modules", 0o644, list.as_bytes())?;
    archive.finish()
}
