//! What lies behind the devices: images on a file system like a host's, taps, and an initial RAM disk with this program.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::beside::{Cache, Contender, Disk, Guest, Nic, Server};
use super::pattern::{Buffer, DISK_LEN, PAGE, is_noise, is_stamped, stamps_at_the_end};
use super::stream;

/// Devices of the guest: what is told apart, and its name in figures.
const DISKS: [(Cache, &str); 2] = [(Cache::Used, "cached"), (Cache::Bypassed, "direct")];
const NICS: [(Server, &str); 2] = [(Server::Process, "tap"), (Server::Kernel, "vhost")];

/// A directory with a file system of its own, on a loop device: the lab's own lies in memory, which takes requests
/// otherwise than a disk.
pub struct FileSystem {
    directory: PathBuf,
}

impl FileSystem {
    /// Beside the bench's other files.
    pub fn mount(dir: &Path) -> io::Result<Self> {
        let (image, directory) = (dir.join("disk.img"), dir.join("disk"));
        File::create(&image)?.set_len(3 * DISK_LEN + (32 << 20))?;
        run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-O", "^has_journal"]).arg(&image))?;
        std::fs::create_dir_all(&directory)?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&directory))?;
        Ok(Self { directory })
    }

    /// An image of which every block is allocated.
    fn image(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.directory.join(name);
        let mut file = File::create(&path)?;
        for _ in 0..DISK_LEN >> 20 {
            file.write_all(&[0; 1 << 20])?;
        }
        file.sync_all()?;
        Ok(path)
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.directory).status();
    }
}

/// The guest with all devices that a contender offers.
pub fn guest(plain: &Guest, initrd: &Path, contender: &dyn Contender, disks: &FileSystem) -> io::Result<Guest> {
    let mut words = Vec::new();
    let mut guest = Guest {
        kernel: plain.kernel.clone(),
        initrd: Some(initrd.to_owned()),
        words: String::new(),
        disks: vec![],
        nics: vec![],
    };
    for (cache, name) in DISKS.into_iter().filter(|(cache, _)| contender.has_disk(*cache)) {
        guest.disks.push(Disk { path: disks.image(name)?, cache });
        words.push(format!("io.disk={name}"));
    }
    for ((server, name), number) in NICS.into_iter().filter(|(server, _)| contender.has_nic(*server)).zip(0..) {
        let host = stream::host(number);
        guest.nics.push(Nic { tap: format!("bench{number}"), mac: [2, 0, 0, 0, 0, number], host, server });
        words.push(format!("ip={}:::255.255.255.252::eth{number} io.nic={name}", stream::guest(number)));
    }
    words.push("ostler.run=io".to_owned());
    guest.words = words.join(" ");
    Ok(guest)
}

/// Whether an image has what its guest wrote last.
pub fn verify(disk: &Disk) -> io::Result<()> {
    let bytes = std::fs::read(&disk.path)?;
    let is_whole = bytes.len() as u64 == DISK_LEN && is_noise(&bytes, &Buffer::new(PAGE));
    if is_whole && is_stamped(&bytes, stamps_at_the_end().into_iter()) {
        return Ok(());
    }
    Err(io::Error::other(format!("{}: not what the guest wrote", disk.path.display())))
}

/// Taps that were made for a contender that makes none, until they are dropped.
pub struct Taps(Vec<String>);

impl Taps {
    /// As Ostler makes its own, but for that they stay.
    pub fn make(nics: &[Nic]) -> io::Result<Self> {
        let mut taps = Self(Vec::new());
        for nic in nics {
            let (name, address) = (nic.tap.as_str(), format!("{}/30", nic.host));
            run(Command::new("ip").args(["tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr"]))?;
            taps.0.push(name.to_owned());
            // Absent without IPv6.
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
            run(Command::new("ip").args(["addr", "add", &address, "dev", name]))?;
            run(Command::new("ip").args(["link", "set", name, "up"]))?;
        }
        Ok(taps)
    }
}

impl Drop for Taps {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Command::new("ip").args(["link", "del", name]).status();
        }
    }
}

/// The guests' initial RAM disk with this program in it: archives may follow each other.
pub fn initrd(plain: &Guest, dir: &Path) -> io::Result<PathBuf> {
    std::fs::create_dir_all(dir.join("bin"))?;
    std::fs::copy(std::env::current_exe()?, dir.join("bin").join(super::IN_GUEST))?;
    let mut cpio = Command::new("cpio");
    cpio.args(["-o", "-H", "newc"]).current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = cpio.spawn()?;
    if let Some(mut names) = child.stdin.take() {
        writeln!(names, "bin/{}", super::IN_GUEST)?;
    }
    let archive = child.wait_with_output()?;
    if !archive.status.success() {
        return Err(io::Error::other("cpio failed"));
    }
    let path = dir.join("initrd");
    std::fs::write(
        &path,
        [plain.initrd.as_ref().map(std::fs::read).transpose()?.unwrap_or_default(), archive.stdout].concat(),
    )?;
    Ok(path)
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))))
}
