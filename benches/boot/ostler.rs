//! Ostler's vmm, launched as the daemon does it: a control socket, a sealed configuration, every descriptor.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Instant;

use ostler::model::{DeviceKind, DeviceLaunch, InstanceId, Launch, PciSlot, VmId};
use ostler::sys::packet::{Connection, Listener};
use ostler::sys::process::{End, Process};
use ostler::sys::{sealed, spawn};
use ostler::wire::{Role, ToVmm, console_ring, encode_launch};
use rustix::event::{PollFd, PollFlags};

use super::{CMDLINE, Contender, Images, MEMORY_MIB, Sample, USERSPACE, VCPUS, memory};

/// The binary under test.
pub struct Ostler {
    binary: PathBuf,
}

impl Ostler {
    /// From `OSTLER_BIN`.
    pub fn from_env() -> Result<Self, String> {
        let binary = std::env::var("OSTLER_BIN").map_err(|_| "set OSTLER_BIN (see `cargo xtask bench`)")?;
        Ok(Self { binary: binary.into() })
    }
}

impl Contender for Ostler {
    fn name(&self) -> &'static str {
        "ostler"
    }

    fn boot(&self, images: &Images) -> Result<Sample, String> {
        let dir = std::env::temp_dir().join(format!("ostler-bench-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
        let sample = boot(&self.binary, images, &dir).map_err(|error| error.to_string());
        let _ = std::fs::remove_dir_all(&dir);
        sample
    }
}

fn boot(binary: &std::path::Path, images: &Images, dir: &std::path::Path) -> std::io::Result<Sample> {
    let started = Instant::now();
    let listener = Listener::bind(&dir.join("control.sock"))?;
    let console = UnixListener::bind(dir.join("console.sock"))?;
    let log = File::create(dir.join("vmm.log"))?;
    let vmm = spawn::detached(binary, "ostler-bench", &["vmm".as_ref()], listener.as_fd(), log)?;
    let link = Connection::connect(&dir.join("control.sock"))?;
    send_launch(&link, images, dir, console)?;

    let mut output = Output { console: UnixStream::connect(dir.join("console.sock"))?, vmm: &vmm };
    wait_for(&mut output, USERSPACE).map_err(|error| {
        let log = std::fs::read_to_string(dir.join("vmm.log")).unwrap_or_default();
        std::io::Error::other(format!("{error}\n{log}"))
    })?;
    let userspace_ns = started.elapsed().as_nanos() as u64;
    let memory = memory::usage(vmm.identity().pid, MEMORY_MIB << 10).map_err(std::io::Error::other)?;
    rustix::event::poll(&mut [PollFd::new(&vmm, PollFlags::IN)], None)?;
    let power_off_ns = started.elapsed().as_nanos() as u64;
    let end = vmm.try_reap()?;
    if end != Some(End::Exited(0)) {
        let log = std::fs::read_to_string(dir.join("vmm.log")).unwrap_or_default();
        return Err(std::io::Error::other(format!("vmm ended with {end:?}\n{log}")));
    }
    Ok(Sample { userspace_ns, power_off_ns, memory })
}

fn send_launch(
    link: &Connection,
    images: &Images,
    dir: &std::path::Path,
    console: UnixListener,
) -> std::io::Result<()> {
    let rng = DeviceLaunch {
        id: "rng".parse().map_err(std::io::Error::other)?,
        slot: PciSlot::new(1).ok_or_else(|| std::io::Error::other("slot"))?,
        kind: DeviceKind::Rng,
    };
    let launch = Launch {
        vm: VmId::new(),
        instance: InstanceId::new(),
        vcpus: VCPUS,
        memory_bytes: MEMORY_MIB << 20,
        cmdline: CMDLINE.into(),
        has_initrd: true,
        devices: vec![rng],
    };
    let ring = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(dir.join("console.ring"))?;
    ring.set_len(console_ring::FILE_LEN as u64)?;
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    let parts: Vec<(Role, OwnedFd)> = vec![
        (Role::Config, sealed::seal("launch", &encode_launch(&launch))?),
        (Role::Kvm, kvm.into()),
        (Role::Kernel, File::open(&images.vmlinux)?.into()),
        (Role::Initrd, File::open(&images.initrd)?.into()),
        (Role::ConsoleListener, console.into()),
        (Role::ConsoleRing, ring.into()),
        (Role::ExitRecord, File::create(dir.join("exit"))?.into()),
    ];
    let (roles, descriptors): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    link.send(&ToVmm::Launch { roles }.encode(), &borrowed)
}

/// A vmm's console, which ends with the vmm even if that never accepted it.
struct Output<'a> {
    console: UnixStream,
    vmm: &'a Process,
}

impl Read for Output<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let mut polled = [PollFd::new(&self.console, PollFlags::IN), PollFd::new(self.vmm, PollFlags::IN)];
        rustix::event::poll(&mut polled, None)?;
        if polled[0].revents().is_empty() { Ok(0) } else { self.console.read(bytes) }
    }
}

/// Reads until `text` was seen.
pub fn wait_for(source: &mut impl Read, text: &str) -> std::io::Result<()> {
    let mut seen = Vec::new();
    let mut bytes = [0; 4096];
    while !seen.windows(text.len()).any(|window| window == text.as_bytes()) {
        let count = source.read(&mut bytes)?;
        if count == 0 {
            let tail = String::from_utf8_lossy(&seen).into_owned();
            return Err(std::io::Error::other(format!("console ended before {text:?}:\n{tail}")));
        }
        seen.extend(bytes.iter().take(count));
    }
    Ok(())
}
