//! What a process has and may do, read back from the kernel (proc(5)). Key type: [`Confinement`]. Key function: [`read`].
//!
//! Called by `daemon/supervisor` for a VM's process; nothing here comes from what the daemon asked for.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::filters::{self, Calls};

/// Namespaces that a process can have of its own.
const NAMESPACES: [&str; 7] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];
/// What is shown of a cgroup, where it is there.
const CGROUP_FILES: [&str; 9] = [
    "memory.max",
    "memory.swap.max",
    "memory.current",
    "cpu.max",
    "cpu.weight",
    "pids.max",
    "pids.current",
    "io.max",
    "cgroup.controllers",
];
/// Most entries of a root directory that are shown: an empty one has none.
const MAX_ROOT_ENTRIES: usize = 32;

/// A process as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confinement {
    /// Its id.
    pub pid: u32,
    /// Its id in its own pid namespace.
    pub own_pid: u32,
    /// Real, effective, saved and file system user id.
    pub uids: Vec<u32>,
    /// The same of the group.
    pub gids: Vec<u32>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding and ambient capabilities, bit by number (capabilities(7)).
    pub capabilities: [u64; 5],
    /// `no_new_privs`.
    pub gains_no_privileges: bool,
    /// Whether it may be dumped and traced by its own user.
    pub is_dumpable: bool,
    /// Bytes of environment.
    pub environment_bytes: u64,
    /// Its threads.
    pub threads: Vec<Thread>,
    /// Its namespaces.
    pub namespaces: Vec<Namespace>,
    /// Its resource limits.
    pub limits: Vec<Limit>,
    /// Names in its root directory.
    pub root: Vec<String>,
    /// Everything that is mounted for it: where, what, and how.
    pub mounts: Vec<Mount>,
    /// Open descriptors.
    pub descriptors: Vec<Descriptor>,
    /// Its cgroup, from the top of the hierarchy.
    pub cgroup: PathBuf,
    /// The cgroup's files.
    pub cgroup_files: Vec<(String, String)>,
}

/// A thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thread {
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// 0: any system call; 1: strict; 2: filtered.
    pub seccomp_mode: u32,
    /// Filters that each call passes through.
    pub filters: u32,
    /// What these let it call.
    pub calls: ThreadCalls,
}

/// What a thread may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ThreadCalls {
    /// Nothing: it is the kernel's own worker.
    None,
    /// Anything.
    Unfiltered,
    /// What its filters let pass.
    Filtered(Calls),
    /// Its filters could not be read: why.
    Unread(String),
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// `user`, `mnt`, …
    pub kind: &'static str,
    /// Its inode, unique on the host.
    pub id: u64,
    /// Whether it is another one than ours.
    pub is_own: bool,
}

/// A resource limit, in the kernel's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// `Max open files`, …
    pub name: String,
    /// A number, or `unlimited`.
    pub soft: String,
    /// The same.
    pub hard: String,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub path: String,
    /// File system type.
    pub kind: String,
    /// Options of the mount.
    pub options: String,
}

/// An open descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number.
    pub number: u32,
    /// What it refers to (`/dev/kvm`, `anon_inode:[io_uring]`, `socket:[123]`).
    pub target: String,
}

/// Reads everything about `pid`. Needs root for another user's process, whose threads with filters stand still for a moment.
pub fn read(pid: u32) -> io::Result<Confinement> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let text = |name: &str| fs::read_to_string(dir.join(name));
    let status = text("status")?;
    let cgroup = parse_cgroup(&text("cgroup")?).ok_or_else(|| unexpected("cgroup"))?;
    let uids = numbers(&status, "Uid");
    let mut root: Vec<String> = Vec::new();
    for entry in fs::read_dir(dir.join("root"))?.take(MAX_ROOT_ENTRIES) {
        root.push(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(Confinement {
        pid,
        own_pid: numbers(&status, "NSpid").last().copied().ok_or_else(|| unexpected("status"))?,
        // The files of a process that may not be dumped are root's, its directory is not (proc(5)).
        is_dumpable: fs::metadata(dir.join("status"))?.uid() == uids.get(1).copied().unwrap_or_default(),
        uids,
        gids: numbers(&status, "Gid"),
        groups: numbers(&status, "Groups"),
        capabilities: ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|key| hexadecimal(&status, key)),
        gains_no_privileges: numbers(&status, "NoNewPrivs") == [1],
        environment_bytes: fs::read(dir.join("environ"))?.len() as u64,
        threads: threads(&dir)?,
        namespaces: namespaces(&dir)?,
        limits: parse_limits(&text("limits")?),
        root,
        mounts: parse_mounts(&text("mountinfo")?),
        descriptors: descriptors(&dir)?,
        cgroup_files: cgroup_files(&cgroup),
        cgroup,
    })
}

fn unexpected(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected /proc/pid/{what}"))
}

/// The value of `key` in a status file.
fn field<'a>(status: &'a str, key: &str) -> &'a str {
    let value = |line: &'a str| line.strip_prefix(key)?.strip_prefix(':').map(str::trim);
    status.lines().find_map(value).unwrap_or_default()
}

fn numbers(status: &str, key: &str) -> Vec<u32> {
    field(status, key).split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// What cannot be read counts as everything: never shown better than it is.
fn hexadecimal(status: &str, key: &str) -> u64 {
    u64::from_str_radix(field(status, key), 16).unwrap_or(u64::MAX)
}

fn threads(dir: &Path) -> io::Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(dir.join("task"))? {
        let entry = entry?;
        // One that ended meanwhile is none.
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let name = field(&status, "Name").to_owned();
        let is_kernels = fs::read_to_string(entry.path().join("stat")).is_ok_and(|stat| has_kernel_flag(&stat));
        let seccomp_mode = numbers(&status, "Seccomp").first().copied().unwrap_or_default();
        let calls = match seccomp_mode {
            _ if is_kernels => ThreadCalls::None,
            0 => ThreadCalls::Unfiltered,
            // Filled in below.
            _ => ThreadCalls::Filtered(Calls::default()),
        };
        let filters = numbers(&status, "Seccomp_filters").first().copied().unwrap_or_default();
        threads.push(Thread { id, name, seccomp_mode, filters, calls });
    }
    threads.sort_by_key(|thread| thread.id);
    let mut filtered: Vec<_> =
        threads.iter_mut().filter(|thread| matches!(thread.calls, ThreadCalls::Filtered(_))).collect();
    let read = filters::read(&filtered.iter().map(|thread| thread.id).collect::<Vec<_>>())?;
    for (thread, calls) in filtered.iter_mut().zip(read) {
        let unread = |error: io::Error| ThreadCalls::Unread(error.to_string());
        thread.calls = calls.map_or_else(unread, ThreadCalls::Filtered);
    }
    Ok(threads)
}

/// `PF_IO_WORKER`, `PF_USER_WORKER` and `PF_KTHREAD` of linux/sched.h, in field 9 of proc_pid_stat(5).
fn has_kernel_flag(stat: &str) -> bool {
    const WORKERS: u64 = 0x10 | 0x4000 | 0x20_0000;
    let after_name = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    after_name
        .split(' ')
        .nth(9 - 3)
        .and_then(|flags| flags.parse::<u64>().ok())
        .is_some_and(|flags| flags & WORKERS != 0)
}

fn namespaces(dir: &Path) -> io::Result<Vec<Namespace>> {
    let read = |kind: &'static str| {
        let id = |dir: &Path| Ok::<_, io::Error>(fs::metadata(dir.join("ns").join(kind))?.ino());
        let theirs = id(dir)?;
        Ok(Namespace { kind, id: theirs, is_own: theirs != id(Path::new("/proc/self"))? })
    };
    NAMESPACES.into_iter().map(read).collect()
}

/// Columns are separated by two spaces or more; names hold single ones.
fn parse_limits(text: &str) -> Vec<Limit> {
    let columns = |line: &str| {
        let words: Vec<_> =
            line.split("  ").map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect();
        let [name, soft, hard, ..] = words.as_slice() else { return None };
        Some(Limit { name: name.clone(), soft: soft.clone(), hard: hard.clone() })
    };
    text.lines().skip(1).filter_map(columns).collect()
}

/// Lines of mountinfo: id, parent, device, root, path, options, optional fields, `-`, type, source, options.
fn parse_mounts(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut words = before.split(' ').skip(4);
        let (path, options) = (words.next()?.to_owned(), words.next()?.to_owned());
        Some(Mount { path, options, kind: after.split(' ').next()?.to_owned() })
    };
    text.lines().filter_map(mount).collect()
}

fn descriptors(dir: &Path) -> io::Result<Vec<Descriptor>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir.join("fd"))? {
        let entry = entry?;
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that was closed meanwhile is none.
        if let Ok(target) = fs::read_link(entry.path()) {
            found.push(Descriptor { number, target: target.to_string_lossy().into_owned() });
        }
    }
    found.sort_by_key(|descriptor| descriptor.number);
    Ok(found)
}

/// The one line of version 2: `0::/path`.
fn parse_cgroup(text: &str) -> Option<PathBuf> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from)
}

/// Files of the cgroup, as far as they can be read: a hierarchy may be mounted elsewhere, or not at all.
fn cgroup_files(cgroup: &Path) -> Vec<(String, String)> {
    let mounts = parse_mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
    let Some(mount) = mounts.into_iter().find(|mount| mount.kind == "cgroup2") else { return Vec::new() };
    let dir = Path::new(&mount.path).join(cgroup.strip_prefix("/").unwrap_or(cgroup));
    let read = |name: &str| Some((name.to_owned(), fs::read_to_string(dir.join(name)).ok()?.trim().to_owned()));
    CGROUP_FILES.into_iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_this_process_as_it_is() {
        let own = read(std::process::id()).unwrap();
        assert_eq!(own.uids, [rustix::process::geteuid().as_raw(); 4]);
        assert!(own.namespaces.len() == NAMESPACES.len() && own.namespaces.iter().all(|namespace| !namespace.is_own));
        assert!(own.root.iter().any(|name| name == "proc"));
        assert!(own.threads.iter().any(|thread| thread.id == own.pid && thread.calls == ThreadCalls::Unfiltered));
        assert!(own.limits.iter().any(|limit| limit.name == "Max open files"));
        assert!(own.descriptors.iter().any(|descriptor| descriptor.number == 1));
        assert!(own.mounts.iter().any(|mount| mount.path == "/proc" && mount.kind == "proc"));
        assert!(!own.gains_no_privileges && own.environment_bytes > 0);
    }

    #[test]
    fn reads_limits_and_mounts_in_the_kernel_s_words() {
        let limits = parse_limits(
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max locked memory         0                    8388608              bytes     \n\
             Max cpu time              unlimited            unlimited            seconds   \n",
        );
        assert_eq!(
            (limits[0].name.as_str(), limits[0].soft.as_str(), limits[0].hard.as_str()),
            ("Max locked memory", "0", "8388608")
        );
        assert_eq!(limits.len(), 2);
        let mounts = parse_mounts("77 1 0:33 / / ro,nosuid,nodev,noexec - tmpfs jail rw,size=4k\n");
        let expected = Mount { path: "/".into(), kind: "tmpfs".into(), options: "ro,nosuid,nodev,noexec".into() };
        assert_eq!(mounts, [expected]);
    }

    #[test]
    fn a_capability_set_that_cannot_be_read_counts_as_full() {
        assert_eq!(hexadecimal("CapEff:\t00000000000000ff\n", "CapEff"), 0xff);
        assert_eq!(hexadecimal("Name:\tx\n", "CapEff"), u64::MAX);
    }

    proptest! {
        #[test]
        fn never_panics_on_foreign_text(text in "[\\PC\\n ]{0,80}") {
            let _ = (parse_limits(&text), parse_mounts(&text), parse_cgroup(&text), has_kernel_flag(&text));
        }
    }
}
