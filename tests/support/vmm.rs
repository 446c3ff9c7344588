//! A vmm without a daemon: launched as the daemon does it, with a control socket, a sealed configuration and every
//! descriptor. Key types: [`Plan`], [`DirectVmm`]. For the start-up bench, and for tests of devices below the API.

#![allow(dead_code, unreachable_pub, reason = "each program uses another part")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ostler::model::{DeviceLaunch, InstanceId, Launch, VmId};
use ostler::sys::packet::{Connection, Listener};
use ostler::sys::process::{End, Process};
use ostler::sys::{sealed, spawn};
use ostler::wire::{Role, ToVmm, console_ring, encode_launch};
use rustix::event::{PollFd, PollFlags, Timespec};

/// What is booted.
pub struct Plan<'a> {
    /// The program.
    pub binary: &'a Path,
    /// Its kernel.
    pub kernel: OwnedFd,
    /// Its initial RAM disk, if it has one.
    pub initrd: Option<OwnedFd>,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The kernel's command line.
    pub cmdline: String,
    /// Devices with their descriptors.
    pub devices: Vec<(DeviceLaunch, Vec<OwnedFd>)>,
    /// Longest silence of the console before a wait for it fails; none waits for ever.
    pub patience: Option<Duration>,
}

/// A vmm process and its console.
pub struct DirectVmm {
    process: Process,
    directory: PathBuf,
    /// Its end tells the vmm nothing: it outlives its daemon.
    _link: Connection,
    console: UnixStream,
    /// What the console has said, up to where it was read.
    seen: Vec<u8>,
    patience: Option<Duration>,
}

impl DirectVmm {
    /// Starts it, with its sockets and files in `directory`.
    pub fn launch(plan: Plan<'_>, directory: &Path) -> io::Result<Self> {
        let listener = Listener::bind(&directory.join("control.sock"))?;
        let console = UnixListener::bind(directory.join("console.sock"))?;
        let log = File::create(directory.join("vmm.log"))?;
        let process = spawn::detached(plan.binary, "ostler-direct", &["vmm".as_ref()], listener.as_fd(), log)?;
        let link = Connection::connect(&directory.join("control.sock"))?;
        let patience = plan.patience;
        send(&link, plan, directory, console)?;
        let console = UnixStream::connect(directory.join("console.sock"))?;
        Ok(Self { process, directory: directory.to_owned(), _link: link, console, seen: Vec::new(), patience })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.identity().pid
    }

    /// Reads the console until `text` was there and its line is over; gives that line.
    pub fn wait_for(&mut self, text: &str) -> io::Result<String> {
        let mut seen = std::mem::take(&mut self.seen);
        let found = wait_for(&mut *self, text, &mut seen);
        self.seen = seen;
        found.map_err(|error| io::Error::other(format!("{error}\n{}", self.log())))
    }

    /// Reads the console until `text` was there.
    pub fn wait_for_word(&mut self, text: &str) -> io::Result<()> {
        let mut seen = std::mem::take(&mut self.seen);
        let found = read_until(&mut *self, &mut seen, |seen| position(seen, text.as_bytes()));
        self.seen = seen;
        found.map(drop).map_err(|error| io::Error::other(format!("{error} before {text:?}\n{}", self.log())))
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) -> io::Result<()> {
        self.console.write_all(format!("{line}\n").as_bytes())
    }

    /// Waits for its end.
    pub fn wait(&self) -> io::Result<Option<End>> {
        rustix::event::poll(&mut [PollFd::new(&self.process, PollFlags::IN)], timeout(self.patience).as_ref())?;
        self.process.try_reap()
    }

    /// Waits for its end, which must be a power-off.
    pub fn expect_power_off(&self) -> io::Result<()> {
        match self.wait()? {
            Some(End::Exited(0)) => Ok(()),
            end => Err(io::Error::other(format!("vmm ended with {end:?}\n{}", self.log()))),
        }
    }

    /// Its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("vmm.log")).unwrap_or_default()
    }
}

impl Drop for DirectVmm {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
    }
}

/// The console, which ends with the vmm even if that never accepted it.
impl Read for DirectVmm {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut polled = [PollFd::new(&self.console, PollFlags::IN), PollFd::new(&self.process, PollFlags::IN)];
        if rustix::event::poll(&mut polled, timeout(self.patience).as_ref())? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the console is silent"));
        }
        if polled[0].revents().is_empty() { Ok(0) } else { self.console.read(bytes) }
    }
}

fn timeout(patience: Option<Duration>) -> Option<Timespec> {
    patience.and_then(|patience| patience.try_into().ok())
}

fn send(link: &Connection, plan: Plan<'_>, directory: &Path, console: UnixListener) -> io::Result<()> {
    let (devices, descriptors): (Vec<_>, Vec<_>) = plan.devices.into_iter().unzip();
    let roles: Vec<_> = devices.iter().map(|device| Role::Device(device.id.clone())).collect();
    let launch = Launch {
        vm: VmId::new(),
        instance: InstanceId::new(),
        vcpus: plan.vcpus,
        memory_bytes: plan.memory_mib << 20,
        cmdline: plan.cmdline,
        has_initrd: plan.initrd.is_some(),
        devices,
        request: String::new(),
        memory: Default::default(),
        cpus: Default::default(),
    };
    let ring =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(directory.join("console.ring"))?;
    ring.set_len(console_ring::FILE_LEN as u64)?;
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    let mut parts: Vec<(Role, OwnedFd)> = vec![
        (Role::Config, sealed::seal("launch", &encode_launch(&launch))?),
        (Role::Kvm, kvm.into()),
        (Role::Kernel, plan.kernel),
        (Role::ConsoleListener, console.into()),
        (Role::ConsoleRing, ring.into()),
        (Role::ExitRecord, File::create(directory.join("exit"))?.into()),
    ];
    parts.extend(plan.initrd.map(|initrd| (Role::Initrd, initrd)));
    for (role, descriptors) in roles.into_iter().zip(descriptors) {
        parts.extend(descriptors.into_iter().map(|descriptor| (role.clone(), descriptor)));
    }
    let (roles, descriptors): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    link.send(&ToVmm::Launch { roles }.encode(), &borrowed)
}

/// Reads until `text` was seen and its line is over, and takes both from `seen`, which holds what was read and not asked
/// for yet. Gives the line.
pub fn wait_for(source: &mut impl Read, text: &str, seen: &mut Vec<u8>) -> io::Result<String> {
    let line = |seen: &[u8]| {
        let at = position(seen, text.as_bytes())?;
        Some(at..at + position(seen.get(at..)?, b"\n")?)
    };
    let line = read_until(source, seen, line)
        .map_err(|error| io::Error::other(format!("{error} before {text:?}:\n{}", String::from_utf8_lossy(seen))))?;
    let end = line.end;
    let text = String::from_utf8_lossy(&seen[line]).trim_end().to_owned();
    seen.drain(..=end);
    Ok(text)
}

/// Reads until something is found in `seen`.
pub fn read_until<T>(source: &mut impl Read, seen: &mut Vec<u8>, find: impl Fn(&[u8]) -> Option<T>) -> io::Result<T> {
    let mut bytes = [0; 4096];
    loop {
        if let Some(found) = find(seen) {
            return Ok(found);
        }
        match source.read(&mut bytes)? {
            0 => return Err(io::Error::other("the console ended")),
            count => seen.extend(bytes.iter().take(count)),
        }
    }
}

/// Where these bytes stand first.
pub fn position(within: &[u8], bytes: &[u8]) -> Option<usize> {
    within.windows(bytes.len()).position(|window| window == bytes)
}
