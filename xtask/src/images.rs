//! Guest images: kernels in both forms, initial RAM disks, an example disk, and broken files for the tests.
//!
//! ```text
//! target/lab/images/linux-6.12/{vmlinux,bzImage,initrd}   linux-6.1/{vmlinux,bzImage,initrd}
//!                   linux-6.12-full/{vmlinux,bzImage,initrd}    with drivers of physical devices: igbvf, nvme
//!                   hostile/vmlinux               a guest that breaks every rule (assets/hostile.rs)
//!                   hello.img                             ext4, 8 MiB, one file: hello.txt
//!                   fio.img                               a program, fio, to a whole sector
//!                   broken/{empty,text,truncated-vmlinux,aarch64-vmlinux,truncated-bzImage}
//! ```

use crate::packages::{self, Kernel, Packages};
use crate::progress::{output_of, step};
use crate::workspace::{Workspace, remove, unfinished, write_whole};
use crate::{fio, initrd, kernel};
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the example disk's only file says.
pub(crate) const HELLO: &str = "hello from the block device";
const HOSTILE: &str = include_str!("../assets/hostile.rs");
const HELLO_SIZE: &str = "8M";
const SECTOR: usize = 512;
/// The lab host's own kernel as a guest: the others are for virtual devices only.
const FULL: &str = "linux-6.12-full";

/// Makes what is missing or out of date and returns the directory of the images.
pub(crate) fn make(workspace: &Workspace) -> Result<PathBuf> {
    let packages = packages::ready(workspace)?;
    let _lock = workspace.lock()?;
    let directory = workspace.lab("images");
    let stamp = directory.join("stamp");
    let key = key(&packages)?;
    if fs::read_to_string(&stamp).is_ok_and(|made| made == key) {
        return Ok(directory);
    }
    step("making guest images", || {
        let vsock_peer = initrd::vsock_peer(workspace)?;
        for guest in &packages.guests {
            boot_files(&packages, guest, &vsock_peer, &[], &directory.join(&guest.name))?;
        }
        boot_files(&packages, &packages.host, &vsock_peer, &initrd::PHYSICAL, &directory.join(FULL))?;
        disk(&packages, &directory.join("hello.img"), HELLO_SIZE, |content| {
            Ok(fs::write(content.join("hello.txt"), format!("{HELLO}\n"))?)
        })?;
        if let Some(sources) = &packages.fio {
            let mut fio = fs::read(fio::build(workspace, sources)?)?;
            fio.resize(fio.len().next_multiple_of(SECTOR), 0);
            write_changed(&directory.join("fio.img"), &fio)?;
        }
        write_changed(&directory.join("hostile/vmlinux"), &hostile(workspace)?)?;
        broken(&directory)
    })?;
    write_whole(&stamp, key.as_bytes())?;
    Ok(directory)
}

/// Changes when the packages or this program do.
fn key(packages: &Packages) -> Result<String> {
    let program = fs::metadata(std::env::current_exe()?)?;
    let kernels = packages.guests.iter().chain([&packages.host]);
    let releases: Vec<&str> = kernels.map(|kernel| kernel.release.as_str()).collect();
    Ok(format!("{}\n{}.{}\n", releases.join("\n"), program.mtime(), program.mtime_nsec()))
}

fn boot_files(
    packages: &Packages,
    guest: &Kernel,
    vsock_peer: &[u8],
    drivers: &[&str],
    directory: &Path,
) -> Result<()> {
    let image = fs::read(guest.image()).with_context(|| format!("cannot read {}", guest.image().display()))?;
    let vmlinux = kernel::vmlinux(&image).with_context(|| guest.image().display().to_string())?;
    write_changed(&directory.join("bzImage"), &image)?;
    write_changed(&directory.join("vmlinux"), &vmlinux)?;
    write_changed(&directory.join("initrd"), &initrd::guest(packages, guest, vsock_peer, drivers)?)
}

/// A disk of that size with what `fill` puts into a directory.
fn disk(packages: &Packages, path: &Path, size: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let content = unfinished(&path.with_extension("content"));
    fs::create_dir_all(&content)?;
    let image = unfinished(path);
    remove(&image)?;
    let outcome = fill(&content).and_then(|()| ext4(packages, &content, &image, size));
    remove(&content)?;
    outcome?;
    Ok(fs::rename(image, path)?)
}

/// Makes an ext4 image (no journal: it is read-only or short-lived) with the content of a directory.
pub(crate) fn ext4(packages: &Packages, content: &Path, image: &Path, size: &str) -> Result<()> {
    let mut mke2fs = packages.tool("mke2fs")?;
    mke2fs.args([
        "-q",
        "-t",
        "ext4",
        "-O",
        "^has_journal,^metadata_csum",
        "-b",
        "4096",
        "-m",
        "0",
        "-E",
        "root_owner=0:0",
        "-d",
    ]);
    output_of(mke2fs.arg(content).arg(image).arg(size).env("MKE2FS_CONFIG", packages.tree().join("etc/mke2fs.conf")))?;
    Ok(())
}

/// Builds the guest that breaks every rule, a kernel of its own, by the compiler alone.
fn hostile(workspace: &Workspace) -> Result<Vec<u8>> {
    let source = workspace.lab("hostile.rs");
    write_whole(&source, HOSTILE.as_bytes())?;
    let program = unfinished(&workspace.lab("hostile"));
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition=2024", "-Copt-level=s", "-Cpanic=abort", "-Cstrip=symbols", "-Crelocation-model=static"]);
    let linked = "-nostartfiles -nostdlib -static -no-pie -Wl,-e,begin,--image-base=0x200000,--build-id=none";
    rustc.arg(format!("-Clink-args={linked}")).args(["--target=x86_64-unknown-linux-gnu", "-o"]);
    output_of(rustc.arg(&program).arg(&source))?;
    fs::read(&program).with_context(|| format!("cannot read {}", program.display()))
}

/// Files that a hypervisor must refuse, each with its own reason.
fn broken(images: &Path) -> Result<()> {
    let whole = fs::read(images.join("linux-6.12/vmlinux"))?;
    let image = fs::read(images.join("linux-6.12/bzImage"))?;
    let directory = images.join("broken");
    write_changed(&directory.join("empty"), b"")?;
    write_changed(&directory.join("text"), b"This is a text file, and no kernel.\n")?;
    write_changed(&directory.join("truncated-vmlinux"), &whole[..whole.len() / 3])?;
    write_changed(&directory.join("truncated-bzImage"), &image[..image.len() / 3])?;
    let mut foreign = whole;
    foreign.truncate(1 << 20);
    // e_machine = EM_AARCH64 (ELF header, offset 18).
    foreign[18..20].copy_from_slice(&183_u16.to_le_bytes());
    write_changed(&directory.join("aarch64-vmlinux"), &foreign)
}

/// Leaves a file alone whose content would stay the same, so that what depends on it is not made again.
fn write_changed(path: &Path, content: &[u8]) -> Result<()> {
    let is_same = fs::read(path).is_ok_and(|old| Sha256::digest(&old) == Sha256::digest(content));
    if is_same { Ok(()) } else { write_whole(path, content) }
}
