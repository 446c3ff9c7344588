//! How long a vmm takes to its first instruction, in a jail and without one, in turn and in real time: namespaces, root,
//! rights and the second exec are the difference. No guest is booted, so it runs anywhere, as root (see `cargo xtask bench
//! --only jail`). The cgroup, which the daemon makes before, is not in it.
//!
//! ```text
//!   OSTLER_BIN     the daemon, its vmm beside it          OSTLER_OUT     where jail.json is written
//! ```

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use ostler::model::{InstanceId, JailFacts, Launch, VmId};
use ostler::sys::counter_page::now_ns;
use ostler::sys::packet::{Connection, Listener};
use ostler::sys::sealed;
use ostler::sys::spawn::{Isolation, isolated};
use ostler::wire::counters::{self, Phase};
use ostler::wire::{Role, ToVmm, console_ring, encode_launch};
use rustix::event::{PollFd, PollFlags};

/// Starts that count, of each kind; as many as a tenth go first.
const STARTS: usize = 300;
/// Above the users that a daemon gives, which nobody else has.
const USER: u32 = 0x4fff_0002;
const MEMORY_BYTES: u64 = 128 << 20;

fn main() -> Result<(), String> {
    let binary = std::env::var_os("OSTLER_BIN").ok_or("set OSTLER_BIN (see `cargo xtask bench`)")?;
    let vmm = PathBuf::from(binary).with_file_name("ostler-vmm");
    let figures = measure(&vmm).map_err(|error| error.to_string())?;
    publish(&figures).map_err(|error| error.to_string())
}

/// Sorted times in nanoseconds: in a jail, without.
fn measure(vmm: &Path) -> io::Result<[Vec<u64>; 2]> {
    let dir = std::env::temp_dir().join(format!("ostler-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let mut took = [Vec::new(), Vec::new()];
    for number in 0..STARTS + STARTS / 10 {
        for (took, is_jailed) in took.iter_mut().zip([true, false]) {
            let one = start(vmm, &dir, is_jailed)?;
            if number >= STARTS / 10 {
                took.push(one);
            }
        }
    }
    std::fs::remove_dir_all(&dir)?;
    took.iter_mut().for_each(|took| took.sort_unstable());
    Ok(took)
}

/// From before the clone to the vmm's first instructions. It ends at once: what it is given for /dev/kvm is none.
fn start(vmm: &Path, dir: &Path, is_jailed: bool) -> io::Result<u64> {
    let [socket, console] = ["control.sock", "console.sock"].map(|name| dir.join(name));
    let listener = Listener::bind(&socket)?;
    let log = File::create(dir.join("log"))?;
    let facts = JailFacts {
        uid: USER,
        vcpus: 1,
        memory_bytes: MEMORY_BYTES,
        devices: 0,
        disks: 0,
        passed_through: 0,
        kernel_served: 0,
        connections: 0,
        longest_file_bytes: 0,
    };
    let facts = facts.to_args();
    let jail = std::iter::once("jail").chain(facts.iter().map(String::as_str));
    let args: Vec<&OsStr> = if is_jailed { jail.map(OsStr::new).collect() } else { vec!["vmm".as_ref()] };
    let isolation = Isolation { cgroup: None, has_own_pids: is_jailed };
    let counted = file(counters::FILE_LEN)?;
    let begin = now_ns();
    let process = isolated(vmm, "ostler-jail-bench", &args, listener.as_fd(), log, isolation)?;
    let link = Connection::connect(&socket)?;
    send(&link, &console, counted.try_clone()?)?;
    rustix::event::poll(&mut [PollFd::new(&process, PollFlags::IN)], None)?;
    process.try_reap()?;
    [socket, console].iter().try_for_each(std::fs::remove_file)?;
    let mut started = [0; 8];
    counted.read_exact_at(&mut started, Phase::Started.at() as u64)?;
    match u64::from_le_bytes(started) {
        0 => Err(io::Error::other(std::fs::read_to_string(dir.join("log"))?)),
        started => Ok(started.saturating_sub(begin)),
    }
}

fn send(link: &Connection, console: &Path, counted: File) -> io::Result<()> {
    let launch = Launch {
        vm: VmId::new(),
        instance: InstanceId::new(),
        vcpus: 1,
        memory_bytes: MEMORY_BYTES,
        cmdline: String::new(),
        has_initrd: false,
        devices: vec![],
        request: String::new(),
        memory: Default::default(),
        cpus: Default::default(),
    };
    let none = || File::open("/dev/null").map(OwnedFd::from);
    let parts: Vec<(Role, OwnedFd)> = vec![
        (Role::Config, sealed::seal("launch", &encode_launch(&launch))?),
        (Role::Kvm, none()?),
        (Role::Kernel, none()?),
        (Role::ConsoleListener, UnixListener::bind(console)?.into()),
        (Role::ConsoleRing, file(console_ring::FILE_LEN)?.into()),
        (Role::ExitRecord, file(0)?.into()),
        (Role::Counters, counted.into()),
    ];
    let (roles, descriptors): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    link.send(&ToVmm::Launch { roles }.encode(), &borrowed)
}

fn file(len: usize) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create("bench", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.set_len(len as u64)?;
    Ok(file)
}

fn publish([jailed, bare]: &[Vec<u64>; 2]) -> io::Result<()> {
    let at = |took: &[u64], percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or(0) / 1000;
    let mut figures = Vec::new();
    for (name, took) in [("in a jail", jailed), ("without one", bare)] {
        let [p10, p50, p99] = [10, 50, 99].map(|percent| at(took, percent));
        println!(
            "first instruction {name:<12} {:>4} starts  p10 {p10:>5} µs  p50 {p50:>5} µs  p99 {p99:>5} µs",
            took.len()
        );
        figures.push(
            serde_json::json!({ "name": name, "starts": took.len(), "p10_us": p10, "p50_us": p50, "p99_us": p99 }),
        );
    }
    let out = std::env::var_os("OSTLER_OUT").map_or_else(|| PathBuf::from("."), PathBuf::from);
    std::fs::write(out.join("jail.json"), serde_json::to_vec_pretty(&figures)?)
}
