//! The lab host's disks: what is made once and kept.
//!
//! `root.img` is the unpacked system of `packages` with the kernel modules that a hypervisor host uses, unpacked;
//! `images.img` carries the guest images; `boot.cpio` finds the root disk. All are read-only in the lab.

use crate::archive::Archive;
use crate::images::{self, ext4};
use crate::modules::closure;
use crate::packages::Packages;
use crate::progress::{output_of, step};
use crate::workspace::{Workspace, remove, unfinished, write_whole};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const BOOT: &[u8] = include_bytes!("../../assets/lab-boot.sh");
const INIT: &[u8] = include_bytes!("../../assets/lab-init.sh");
const BOOT_MODULES: [&str; 5] = ["crc32c_generic", "virtio_blk", "ext4", "overlay", "virtio_pci"];
const MODULES: [&str; 32] = [
    "kvm_amd",
    "kvm_intel",
    "tun",
    "tap",
    "vhost_net",
    "vhost_vsock",
    "vsock_loopback",
    "vfio_pci",
    "vfio_iommu_type1",
    "igb",
    "igbvf",
    "nvme",
    "loop",
    "bridge",
    "veth",
    "dummy",
    "macvtap",
    "squashfs",
    "nf_tables",
    "nft_chain_nat",
    "sch_tbf",
    "sch_ingress",
    "cls_u32",
    "act_police",
    "dm_mod",
    "button",
    "evdev",
    "msr",
    "configfs",
    "binfmt_misc",
    "sch_htb",
    "8021q",
];
/// Parts of the packages that no program reads.
const LEFT_OUT: [&str; 10] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/bash-completion",
    "usr/share/qemu/hppa-firmware.img",
    "usr/share/qemu/skiboot.lid",
    "usr/share/qemu/openbios-ppc",
    "usr/lib/udev",
];

/// The disks' files.
pub(super) struct Host {
    pub(super) kernel: PathBuf,
    pub(super) boot: PathBuf,
    pub(super) root: PathBuf,
    pub(super) images: PathBuf,
}

impl Host {
    /// Makes what is missing or out of date.
    pub(super) fn ready(workspace: &Workspace, packages: &Packages) -> Result<Self> {
        let images = images::make(workspace)?;
        let _lock = workspace.lock()?;
        let directory = workspace.lab("host");
        let host = Self {
            kernel: packages.host.image(),
            boot: directory.join("boot.cpio"),
            root: directory.join("root.img"),
            images: directory.join("images.img"),
        };
        let stamp = directory.join("stamp");
        let key = format!("{}{}", packages.host.release, fs::read_to_string(images.join("stamp"))?);
        if fs::read_to_string(&stamp).is_ok_and(|made| made == key) {
            return Ok(host);
        }
        fs::create_dir_all(&directory)?;
        step("making the lab host's disks", || {
            write_whole(&host.boot, &boot(packages)?)?;
            root(packages, &host.root)?;
            disk(packages, &images, &host.images)
        })?;
        write_whole(&stamp, key.as_bytes())?;
        Ok(host)
    }
}

/// Makes a disk that holds the content of a directory, with little room to spare.
pub(super) fn disk(packages: &Packages, content: &Path, image: &Path) -> Result<()> {
    let unfinished = unfinished(image);
    remove(&unfinished)?;
    let kibibytes = size_kib(content)?;
    ext4(packages, content, &unfinished, &format!("{}K", kibibytes + kibibytes / 8 + 4096))?;
    Ok(fs::rename(unfinished, image)?)
}

fn boot(packages: &Packages) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["dev", "layer", "lower", "new", "modules.d"] {
        archive.directory(directory)?;
    }
    archive.device("dev/console", 5, 1)?;
    archive.file("init", 0o755, BOOT)?;
    archive.file("bin/busybox", 0o755, &fs::read(packages.busybox())?)?;
    for applet in ["sh", "mount", "insmod", "mkdir", "switch_root"] {
        archive.link(&format!("bin/{applet}"), "busybox")?;
    }
    let mut list = String::new();
    for (number, module) in closure(&packages.host, &BOOT_MODULES)?.into_iter().enumerate() {
        let path = format!("modules.d/{number}.ko");
        archive.file(&path, 0o644, &module.content)?;
        list.push_str(&format!("/{path}\n"));
    }
    archive.file("modules", 0o644, list.as_bytes())?;
    archive.finish()
}

fn root(packages: &Packages, image: &Path) -> Result<()> {
    let staging = unfinished(&image.with_extension("content"));
    let outcome = stage(packages, &staging).and_then(|()| disk(packages, &staging, image));
    remove(&staging)?;
    outcome
}

fn stage(packages: &Packages, staging: &Path) -> Result<()> {
    link_tree(packages.tree(), staging, Path::new(""))?;
    for directory in ["proc", "sys", "dev", "run", "tmp", "lab", "out", "root", "var/log", "var/lib", "etc"] {
        fs::create_dir_all(staging.join(directory))?;
    }
    fs::write(staging.join("lab-init"), INIT)?;
    fs::set_permissions(staging.join("lab-init"), fs::Permissions::from_mode(0o755))?;
    fs::write(staging.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")?;
    fs::write(staging.join("etc/group"), "root:x:0:\ntty:x:5:\nkvm:x:104:\nnogroup:x:65534:\n")?;
    fs::write(staging.join("etc/hosts"), "127.0.0.1 localhost lab\n::1 localhost\n")?;
    let applets = output_of(std::process::Command::new(packages.busybox()).arg("--list"))?;
    for applet in String::from_utf8_lossy(&applets).lines() {
        let is_real = ["usr/bin", "usr/sbin"].iter().any(|at| staging.join(at).join(applet).symlink_metadata().is_ok());
        if !is_real {
            symlink("busybox", staging.join("usr/bin").join(applet))?;
        }
    }
    let modules = format!("usr/lib/modules/{}", packages.host.release);
    for module in closure(&packages.host, &MODULES)? {
        let path = staging.join(&modules).join(&module.path);
        fs::create_dir_all(path.parent().context("a module lies in a directory")?)?;
        fs::write(path, &module.content)?;
    }
    for table in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        fs::copy(packages.host.modules().join(table), staging.join(&modules).join(table))?;
    }
    output_of(packages.tool("depmod")?.arg("--basedir").arg(staging).arg(&packages.host.release))?;
    Ok(())
}

/// Copies a tree by hard links: the copy costs names, not bytes.
fn link_tree(from: &Path, to: &Path, below: &Path) -> Result<()> {
    if LEFT_OUT.iter().any(|left_out| below == Path::new(left_out)) {
        return Ok(());
    }
    let (source, target) = (from.join(below), to.join(below));
    let metadata = fs::symlink_metadata(&source).with_context(|| format!("cannot read {}", source.display()))?;
    if metadata.is_symlink() {
        symlink(fs::read_link(&source)?, target)?;
    } else if metadata.is_dir() {
        fs::create_dir_all(target)?;
        for entry in fs::read_dir(source)? {
            link_tree(from, to, &below.join(entry?.file_name()))?;
        }
    } else {
        fs::hard_link(&source, &target).with_context(|| format!("cannot link {}", source.display()))?;
    }
    Ok(())
}

fn size_kib(path: &Path) -> Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Ok(metadata.len().div_ceil(4096) * 4 + 1);
    }
    let mut sum = 4;
    for entry in fs::read_dir(path)? {
        sum += size_kib(&entry?.path())?;
    }
    Ok(sum)
}
