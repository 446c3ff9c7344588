//! Processes that are told apart for certain: pidfd plus start time. Key types: [`Process`], [`Identity`].
//!
//! A process id alone is reused by the kernel; the pair of id and start time (proc_pid_stat(5), field 22) is not within
//! one boot. `daemon/supervisor` watches its vmm processes with it, whether it started or re-adopted them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use super::proc_text::bytes;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions};

/// A process for as long as this boot lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its id.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
}

/// What a thread of a process does (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy)]
pub struct Thread {
    /// Whether it runs, waits for a CPU or for a disk: it does not if it was stopped, or waits for something else (field 3).
    pub is_at_work: bool,
    /// Processor time that it has had, to some 10 ms (fields 14 and 15).
    pub cpu_time: Duration,
}

/// A handle that never comes to mean another process.
#[derive(Debug)]
pub struct Process {
    pidfd: OwnedFd,
    identity: Identity,
}

/// How a process ended, as far as its parent can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It chose this exit status.
    Exited(i32),
    /// A signal of this number ended it.
    Signal(i32),
    /// It was no child of ours: nobody tells.
    Unknown,
}

impl Process {
    /// A handle for `pid`, which the caller knows to be alive or not yet reaped (its own child).
    pub fn open(pid: u32) -> io::Result<Self> {
        let pidfd = rustix::process::pidfd_open(to_pid(pid)?, PidfdFlags::empty())?;
        // The pidfd is held: the id cannot be reused between these two lines without the pidfd being dead.
        Ok(Self { pidfd, identity: Identity { pid, start_time: start_time(pid)? } })
    }

    /// A handle from the pidfd that a child was made with (clone(2), `CLONE_PIDFD`).
    pub(super) fn from_child(pidfd: OwnedFd, pid: u32) -> io::Result<Self> {
        Ok(Self { pidfd, identity: Identity { pid, start_time: start_time(pid)? } })
    }

    /// A handle for exactly the process of `identity`, or `None` when that one is gone.
    pub fn find(identity: Identity) -> io::Result<Option<Self>> {
        let pidfd = match rustix::process::pidfd_open(to_pid(identity.pid)?, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match start_time(identity.pid) {
            Ok(start_time) if start_time == identity.start_time => Ok(Some(Self { pidfd, identity })),
            _ => Ok(None),
        }
    }

    /// Who it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Kills it (`SIGKILL`); one that has ended already is fine.
    pub fn kill(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets it write files of up to `bytes` (`RLIMIT_FSIZE`); what it may already stays.
    pub fn allow_file_len(&self, bytes: u64) -> io::Result<()> {
        let pid = self.identity.pid;
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
        if file_len_limit(&limits).is_none_or(|limit| limit >= bytes) {
            return Ok(());
        }
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        rustix::process::prlimit(Some(to_pid(pid)?), Resource::Fsize, limit)?;
        Ok(())
    }

    /// Lets it lock just so many bytes of memory (`RLIMIT_MEMLOCK`). What it has locked stays so.
    pub fn limit_locked(&self, bytes: u64) -> io::Result<()> {
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        rustix::process::prlimit(Some(to_pid(self.identity.pid)?), Resource::Memlock, limit)?;
        Ok(())
    }

    /// Processor time of all its threads, to some 10 ms (fields 14 and 15).
    pub fn cpu_time(&self) -> io::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.identity.pid))?;
        parse_cpu_time(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected /proc/pid/stat"))
    }

    /// What its thread of this name (proc_pid_comm(5)) does. `None`: it has none, or they cannot be read.
    pub fn thread(&self, name: &str) -> Option<Thread> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.identity.pid)).ok()?;
        // One that ends meanwhile is left out.
        let mut stats = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
        let stat = stats.find(|stat| stat_name(stat) == Some(name))?;
        let is_at_work = matches!(stat_field(&stat, 3)?, "R" | "D");
        Some(Thread { is_at_work, cpu_time: parse_cpu_time(&stat)? })
    }

    /// Bytes of memory that it has touched, huge pages included; what it shares with others counts whole. Cheap: nothing
    /// is walked (`VmRSS` and `HugetlbPages` of proc_pid_status(5)).
    pub fn resident_bytes(&self) -> io::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.identity.pid))?;
        parse_resident(&status).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected /proc/pid/status"))
    }

    /// Reaps it if it has ended and is a child of ours; does not wait. `None`: still running.
    pub fn try_reap(&self) -> io::Result<Option<End>> {
        match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
        {
            Ok(None) => Ok(None),
            Ok(Some(status)) => Ok(Some(match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => End::Exited(code),
                (None, Some(signal)) => End::Signal(signal),
                (None, None) => End::Unknown,
            })),
            Err(rustix::io::Errno::CHILD) => Ok(Some(End::Unknown)),
            Err(error) => Err(error.into()),
        }
    }
}

/// Readable once the process has ended.
impl AsRawFd for Process {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Living processes whose `argv[0]` is `name` and that run as this user or as `uid`: how a leftover is found of which no
/// id was recorded. `name` must be one that nothing else uses.
pub fn find_by_arg0(name: &str, uid: u32) -> io::Result<Vec<Process>> {
    let uids = [rustix::process::geteuid().as_raw(), uid];
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let is_named = |pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|cmdline| cmdline.split(|&byte| byte == 0).next() == Some(name.as_bytes()))
        };
        if !is_named(pid) {
            continue;
        }
        let is_own = uids.contains(&std::os::unix::fs::MetadataExt::uid(&entry.metadata()?));
        // Opened first, looked at again afterwards: the id may have changed hands in between.
        if let Ok(process) = Process::open(pid)
            && is_own
            && is_named(pid)
        {
            found.push(process);
        }
    }
    Ok(found)
}

/// A living process, as /proc shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Which.
    pub identity: Identity,
    /// Its `argv[0]`, which it may have chosen itself.
    pub name: String,
    /// Its user.
    pub user: u32,
    /// It was stopped by a signal, and does nothing.
    pub is_stopped: bool,
    /// What its standard output is open on; empty if that cannot be read.
    pub output: PathBuf,
}

/// Living processes whose `argv[0]` begins with `prefix`. One that ends while it is looked at is left out.
pub fn find_by_prefix(prefix: &str) -> io::Result<Vec<Shown>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        found.extend(shown(pid, prefix));
    }
    Ok(found)
}

fn shown(pid: u32, prefix: &str) -> Option<Shown> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let cmdline = std::fs::read(dir.join("cmdline")).ok()?;
    let name = std::str::from_utf8(cmdline.split(|&byte| byte == 0).next()?).ok()?;
    let name = name.starts_with(prefix).then(|| name.to_owned())?;
    let began = start_time(pid).ok()?;
    let status = std::fs::read_to_string(dir.join("status")).ok()?;
    let of = |key: &str| status.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next();
    let process = Shown {
        identity: Identity { pid, start_time: began },
        name,
        user: of("Uid:")?.parse().ok()?,
        is_stopped: of("State:")? == "T",
        output: std::fs::read_link(dir.join("fd/1")).unwrap_or_default(),
    };
    // The id may have changed hands in between, also before its start was read: then its name is another one.
    let is_same = std::fs::read(dir.join("cmdline")).ok()? == cmdline && start_time(pid).ok()? == began;
    is_same.then_some(process)
}

/// The soft limit in the words of proc_pid_limits(5); `None`: unlimited.
fn file_len_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max file size"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn to_pid(pid: u32) -> io::Result<Pid> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a process id"))
}

fn start_time(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected /proc/pid/stat"))
}

fn parse_resident(status: &str) -> Option<u64> {
    // A kernel without huge pages has no line about them.
    Some(bytes(status, "VmRSS")?.saturating_add(bytes(status, "HugetlbPages").unwrap_or(0)))
}

fn parse_start_time(stat: &str) -> Option<u64> {
    stat_field(stat, 22)?.parse().ok()
}

/// The second field, without its parentheses: it may hold anything, parentheses too.
fn stat_name(stat: &str) -> Option<&str> {
    Some(stat.split_once(" (")?.1.rsplit_once(") ")?.0)
}

/// Time as a user's and as the kernel's (fields 14 and 15), which count in ticks.
fn parse_cpu_time(stat: &str) -> Option<Duration> {
    let ticks = |field| stat_field(stat, field)?.parse::<u64>().ok();
    let ticks = ticks(14)?.saturating_add(ticks(15)?);
    Some(Duration::from_millis(ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1)))
}

/// A field from the third on.
fn stat_field(stat: &str, number: usize) -> Option<&str> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(number.checked_sub(3)?).map(str::trim_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_is_resident_and_huge() {
        assert_eq!(parse_resident("Name:\tx\nVmRSS:\t     300 kB\nHugetlbPages:\t    4096 kB\n"), Some(4396 << 10));
        assert_eq!(parse_resident("VmRSS:\t     300 kB\n"), Some(300 << 10));
        assert_eq!(parse_resident("Name:\tkthread\n"), None);
        let own = Process::open(std::process::id()).unwrap();
        assert!(own.resident_bytes().unwrap() > 100 << 10);
    }

    #[test]
    fn lets_another_process_write_longer_files_and_takes_nothing_away() {
        let mut child = std::process::Command::new("sh").args(["-c", "ulimit -S -f 8; exec sleep 60"]).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        let limit = || file_len_limit(&std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap());
        while limit().is_none() {
            std::thread::yield_now();
        }
        let before = limit().unwrap();
        process.allow_file_len(1 << 30).unwrap();
        assert_eq!(limit(), Some(1 << 30));
        process.allow_file_len(before).unwrap();
        assert_eq!(limit(), Some(1 << 30));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn reads_the_start_time_behind_a_hostile_name() {
        let stat = "7 (a) 1 2) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        assert_eq!(parse_start_time(stat), Some(4242));
        assert_eq!(stat_name(stat), Some("a) 1 2"));
        assert_eq!(parse_start_time("7 (a"), None);
    }

    #[test]
    fn tells_who_works_from_who_was_stopped_and_how_long_he_worked() {
        let mut child = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        while process.cpu_time().unwrap() < Duration::from_millis(20) {
            std::thread::yield_now();
        }
        let thread = process.thread("sh").unwrap();
        assert!(thread.is_at_work && thread.cpu_time >= Duration::from_millis(20), "{thread:?}");
        assert!(process.thread("s").is_none());
        rustix::process::pidfd_send_signal(&process, Signal::STOP).unwrap();
        while process.thread("sh").unwrap().is_at_work {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn shows_processes_by_the_beginning_of_their_name_and_whether_they_were_stopped() {
        use std::os::unix::process::CommandExt;
        let output = std::fs::File::create("/dev/null").unwrap();
        let mut child =
            std::process::Command::new("sleep").arg0("ostler-shown-1").arg("60").stdout(output).spawn().unwrap();
        let find = || find_by_prefix("ostler-shown-").unwrap();
        while find().is_empty() {
            std::thread::yield_now();
        }
        let process = Process::open(child.id()).unwrap();
        let own = Shown {
            identity: process.identity(),
            name: "ostler-shown-1".into(),
            user: rustix::process::getuid().as_raw(),
            is_stopped: false,
            output: "/dev/null".into(),
        };
        assert_eq!(find(), std::slice::from_ref(&own));
        rustix::process::pidfd_send_signal(&process, Signal::STOP).unwrap();
        while !find()[0].is_stopped {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(find(), []);
    }

    #[test]
    fn knows_its_own_process_again_but_not_one_of_another_start_time() {
        let own = Process::open(std::process::id()).unwrap().identity();
        assert!(Process::find(own).unwrap().is_some());
        assert!(Process::find(Identity { start_time: own.start_time + 1, ..own }).unwrap().is_none());
        assert!(Process::find(Identity { pid: 0x7fff_fff0, start_time: 1 }).unwrap().is_none());
    }

    #[test]
    #[allow(clippy::zombie_processes, reason = "reaped through the handle")]
    fn tells_how_a_child_ended() {
        let child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert_eq!(process.try_reap().unwrap(), None);
        process.kill().unwrap();
        let mut end = None;
        while end.is_none() {
            let mut poll = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut poll, None).unwrap();
            end = process.try_reap().unwrap();
        }
        assert_eq!(end, Some(End::Signal(9)));
        assert!(process.kill().is_ok());
    }
}
