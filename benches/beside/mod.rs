//! Ostler's vmm and its peers, each given the same guest: what the benches of VMs share. Key types: [`Guest`],
//! [`Contender`], [`Running`].
//!
//! ```text
//!   OSTLER_BIN     the binary under test          QEMU           qemu-system-x86_64 (optional)
//!   OSTLER_ASSETS  images/ as in the tests        FIRECRACKER    firecracker (optional)
//!   OSTLER_OUT     where figures are written      CLOUD_HYPERVISOR  cloud-hypervisor (optional)
//! ```

#![allow(dead_code, reason = "each program uses another part")]

mod ostler;
pub mod peers;
pub mod report;
pub mod stuck;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use crate::vmm;

/// vCPUs and memory of every contender's VM.
pub const VCPUS: u32 = 1;
/// In MiB.
pub const MEMORY_MIB: u64 = 256;
/// What the initrd prints first.
pub const USERSPACE: &str = "ostler-guest: kernel";
/// Ostler's name among contenders.
pub const OSTLER: &str = "ostler";

/// What is booted.
#[derive(Clone)]
pub struct Guest {
    /// An uncompressed kernel.
    pub kernel: PathBuf,
    /// Its initial RAM disk, if it has one.
    pub initrd: Option<PathBuf>,
    /// Words of its own on the kernel's command line, which each contender ends with those that make it power off.
    pub words: String,
    /// In the order in which the guest finds them.
    pub disks: Vec<Disk>,
    /// In that order too.
    pub nics: Vec<Nic>,
}

impl Guest {
    /// Without a device: the lab's kernel, which powers off as soon as it is up.
    pub fn plain(assets: &Path) -> Self {
        let file = |name| assets.join("images/linux-6.12").join(name);
        Self {
            kernel: file("vmlinux"),
            initrd: Some(file("initrd")),
            words: String::new(),
            disks: vec![],
            nics: vec![],
        }
    }
}

/// A raw image.
#[derive(Debug, Clone)]
pub struct Disk {
    pub path: PathBuf,
    pub cache: Cache,
}

/// What the host does with a disk's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Its page cache has them.
    Used,
    /// O_DIRECT.
    Bypassed,
}

/// A tap that is there, with its address, unless the contender makes its own ([`Contender::makes_taps`]).
#[derive(Debug, Clone)]
pub struct Nic {
    pub tap: String,
    pub mac: [u8; 6],
    /// The host's end of the link, which is a /30.
    pub host: std::net::Ipv4Addr,
    pub server: Server,
}

impl Nic {
    fn mac(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// Who moves a NIC's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// The hypervisor's process.
    Process,
    /// The host's kernel: vhost-net.
    Kernel,
}

/// Something that runs a VM.
pub trait Contender {
    /// For people.
    fn name(&self) -> &'static str;

    /// Whether it offers such a disk.
    fn has_disk(&self, cache: Cache) -> bool;

    /// Whether it offers such a NIC.
    fn has_nic(&self, server: Server) -> bool;

    /// It makes its taps itself, and gives them their addresses.
    fn makes_taps(&self) -> bool;

    /// Everything up to its start, with its files in `dir`.
    fn ready<'a>(&'a self, guest: &'a Guest, dir: &'a Path) -> io::Result<Ready<'a>>;
}

/// Ostler first, then the peers that the environment names.
pub fn contenders() -> Result<Vec<Box<dyn Contender>>, String> {
    let mut contenders: Vec<Box<dyn Contender>> = vec![Box::new(ostler::Ostler::from_env()?)];
    contenders.extend(peers::from_env());
    Ok(contenders)
}

/// Where images and the like lie.
pub fn assets() -> Result<PathBuf, String> {
    std::env::var_os("OSTLER_ASSETS")
        .map(PathBuf::from)
        .ok_or_else(|| "set OSTLER_ASSETS (see `cargo xtask bench`)".to_owned())
}

/// Does `work` with a directory of its own, which is gone afterwards.
pub fn in_directory<T>(work: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let dir = std::env::temp_dir().join(format!("ostler-bench-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir)?;
    let outcome = work(&dir);
    let _ = std::fs::remove_dir_all(&dir);
    outcome
}

/// Starts a guest with the contender's files in an empty directory below `dir`, and does `work` with it and the time of its
/// exec.
pub fn started_in<T>(
    dir: &Path,
    contender: &dyn Contender,
    guest: &Guest,
    work: impl FnOnce(Running, Instant) -> io::Result<T>,
) -> io::Result<T> {
    let own = dir.join("own");
    std::fs::create_dir_all(&own)?;
    let ready = contender.ready(guest, &own)?;
    let started = Instant::now();
    let running = ready.start()?;
    let watch = stuck::Watch::begin(running.pid(), stuck::LIMIT)?;
    let outcome = watch.end(work(running, started));
    std::fs::remove_dir_all(&own)?;
    outcome
}

/// A contender that is about to start.
pub enum Ready<'a> {
    /// A launch.
    Ostler(Box<vmm::Plan<'a>>, &'a Path),
    /// A command.
    Peer(Box<Command>),
}

impl Ready<'_> {
    /// Executes it.
    pub fn start(self) -> io::Result<Running> {
        match self {
            Ready::Ostler(plan, dir) => Ok(Running::Ostler(Box::new(vmm::DirectVmm::launch(*plan, dir)?))),
            Ready::Peer(mut command) => {
                // An input that stays open: at its end, a peer may spin on its serial port.
                let mut child =
                    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
                let output = child.stdout.take().ok_or_else(|| io::Error::other("no output"))?;
                Ok(Running::Peer { child, output, seen: Vec::new() })
            }
        }
    }
}

/// A contender that runs. Ends with its value.
pub enum Running {
    /// A vmm.
    Ostler(Box<vmm::DirectVmm>),
    /// A process whose output is the guest's console.
    Peer { child: Child, output: ChildStdout, seen: Vec<u8> },
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        match self {
            Self::Ostler(vmm) => vmm.pid(),
            Self::Peer { child, .. } => child.id(),
        }
    }

    /// Reads the console until `text` was there and its line is over; gives that line from `text` on.
    pub fn wait_for(&mut self, text: &str) -> io::Result<String> {
        match self {
            Self::Ostler(vmm) => vmm.wait_for(text),
            Self::Peer { output, seen, .. } => vmm::wait_for(output, text, seen),
        }
    }

    /// Reads the console until `text` was there.
    pub fn wait_for_word(&mut self, text: &str) -> io::Result<()> {
        match self {
            Self::Ostler(vmm) => vmm.wait_for_word(text),
            Self::Peer { output, seen, .. } => {
                vmm::read_until(output, seen, |seen| vmm::position(seen, text.as_bytes())).map(drop)
            }
        }
    }

    /// Waits for the end of its guest.
    pub fn wait_for_end(&mut self) -> io::Result<()> {
        match self {
            Self::Ostler(vmm) => vmm.expect_power_off(),
            Self::Peer { child, output, .. } => {
                io::copy(output, &mut io::sink())?;
                child.wait().map(drop)
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A vmm ends with its own value.
        if let Self::Peer { child, .. } = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
