//! Control groups, version 2 (cgroups(7), linux/Documentation/admin-guide/cgroup-v2.rst). Key types: [`Tree`],
//! [`Limits`], [`CgroupError`].
//!
//! ```text
//!   /sys/fs/cgroup/…/ostler/vms/<name>/     a group per VM: made before its process, removed after its end
//!                           policy/         the group of the process that runs plugins
//! ```
//! `daemon/supervisor` is the only user; everything below the tree's directory is its own.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

/// Controllers without which no VM is limited.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
/// Controllers that are used where they are.
const WELCOME: [&str; 2] = ["io", "cpuset"];
/// File system type of cgroup v2 (statfs(2)).
const MAGIC: i64 = 0x6367_7270;
/// A period of CPU time, in microseconds (`cpu.max`).
const PERIOD_US: u64 = 100_000;
/// Files of limits that no VM is without.
const LIMITED: [&str; 3] = ["memory.max", "cpu.max", "pids.max"];
/// How long a group may take to become empty once its processes were killed, and how often it is looked at.
const EMPTY_WITHIN: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(5);

/// Why groups cannot be made here.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup v2 there.
    #[error(
        "{path} does not lie in a cgroup v2 file system, which limits VMs; boot with systemd.unified_cgroup_hierarchy=1 \
         or mount one (mount -t cgroup2 none /sys/fs/cgroup), or name another place with --cgroup"
    )]
    NotVersion2 {
        /// The place.
        path: PathBuf,
    },
    /// A controller is missing.
    #[error(
        "cgroup v2 lacks the controller {controller} at {path}; a v1 hierarchy may hold it, or the group above may not pass it on"
    )]
    NoController {
        /// Its name.
        controller: &'static str,
        /// Where it is missing.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot use the cgroup {path}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What a group may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory; swap is not used.
    pub memory_bytes: u64,
    /// CPU time as a number of whole CPUs.
    pub cpus: u32,
    /// Share of CPU time when there is too little for all, 1 to 10,000; 100 is usual.
    pub cpu_weight: u32,
    /// Processes and threads.
    pub tasks: u64,
}

/// The directory below which every VM has its group.
#[derive(Debug, Clone)]
pub struct Tree {
    vms: PathBuf,
    policy: PathBuf,
}

impl Tree {
    /// Makes `path` and its controllers ready. `path` must be absolute and lie in a cgroup v2 file system; no process may
    /// be in it or in the groups above it, except the topmost.
    pub fn prepare(path: &Path) -> Result<Self, CgroupError> {
        let vms = path.join("vms");
        let above: Vec<&Path> =
            vms.ancestors().skip(1).take_while(|path| is_version_2(path) || !path.exists()).collect();
        let Some(top) = above.iter().rev().find(|path| path.exists()) else {
            return Err(CgroupError::NotVersion2 { path: path.to_owned() });
        };
        for group in above.iter().rev().filter(|group| group.starts_with(top)) {
            make(group)?;
            pass_on(group)?;
        }
        make(&vms)?;
        pass_on(&vms)?;
        Ok(Self { vms, policy: path.join("policy") })
    }

    /// The group of the VM `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.vms.join(name)
    }

    /// Makes the group `name` and gives its directory, for `sys::spawn`. One that a run before left is used again.
    /// `cpus`: CPUs that it may use, as the kernel writes lists of them; `None`: all.
    pub fn make(&self, name: &str, limits: &Limits, cpus: Option<&str>) -> Result<OwnedFd, CgroupError> {
        limited(self.path(name), limits, cpus)
    }

    /// Makes the group of the process that runs plugins, and gives its directory. It is not removed: the next daemon
    /// uses it again.
    pub fn make_policy(&self, limits: &Limits) -> Result<OwnedFd, CgroupError> {
        limited(self.policy.clone(), limits, None)
    }

    /// How many processes of the group `name` the kernel has killed for want of memory since it was made.
    pub fn out_of_memory_kills(&self, name: &str) -> io::Result<u64> {
        Ok(parse_kills(&fs::read_to_string(self.path(name).join("memory.events"))?))
    }

    /// Ids of the processes in the group `name`.
    pub fn processes(&self, name: &str) -> io::Result<Vec<u32>> {
        let text = fs::read_to_string(self.path(name).join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
    }

    /// The first of the group's limits that is none.
    pub fn unlimited(&self, name: &str) -> io::Result<Option<&'static str>> {
        for file in LIMITED {
            let value = fs::read_to_string(self.path(name).join(file))?;
            if value.split_whitespace().next() == Some("max") {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    /// Whether there is a group `name`.
    pub fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// Kills whatever runs in the group `name`, waits until it is empty and removes it; an absent one is fine. Blocks.
    pub fn remove(&self, name: &str) -> Result<(), CgroupError> {
        if !self.has(name) {
            return Ok(());
        }
        let path = self.path(name);
        write(&path.join("cgroup.kill"), "1")?;
        let end = Instant::now() + EMPTY_WITHIN;
        loop {
            match fs::remove_dir(&path) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < end => {
                    std::thread::sleep(STEP);
                }
                Err(source) => return Err(CgroupError::Io { path, source }),
            }
        }
    }

    /// Names of all groups that are there.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.vms)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                names.extend(entry.file_name().into_string());
            }
        }
        Ok(names)
    }
}

/// Makes a group and gives its directory.
fn limited(path: PathBuf, limits: &Limits, cpus: Option<&str>) -> Result<OwnedFd, CgroupError> {
    make(&path)?;
    match write(&path.join("cpuset.cpus"), cpus.unwrap_or("\n")) {
        Err(CgroupError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            if cpus.is_some() {
                return Err(CgroupError::NoController { controller: "cpuset", path });
            }
        }
        written => written?,
    }
    for (file, value) in files(limits) {
        match write(&path.join(file), &value) {
            // A kernel without swap has no such file, and nothing to forbid.
            Err(CgroupError::Io { source, .. })
                if file == "memory.swap.max" && source.kind() == io::ErrorKind::NotFound => {}
            written => written?,
        }
    }
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|source| CgroupError::Io { path, source: source.into() })
}

/// `oom_kill` of memory.events: a line per event, with its number.
fn parse_kills(events: &str) -> u64 {
    let number = |line: &str| line.strip_prefix("oom_kill ")?.trim().parse().ok();
    events.lines().find_map(number).unwrap_or(0)
}

/// What is written into a group's files.
fn files(limits: &Limits) -> [(&'static str, String); 6] {
    [
        ("memory.max", limits.memory_bytes.to_string()),
        ("memory.swap.max", "0".to_owned()),
        ("memory.oom.group", "1".to_owned()),
        ("cpu.max", format!("{} {PERIOD_US}", u64::from(limits.cpus) * PERIOD_US)),
        ("cpu.weight", limits.cpu_weight.to_string()),
        ("pids.max", limits.tasks.to_string()),
    ]
}

fn is_version_2(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == MAGIC)
}

fn make(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(CgroupError::Io { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Lets the groups below `group` have controllers.
fn pass_on(group: &Path) -> Result<(), CgroupError> {
    let control = group.join("cgroup.subtree_control");
    let words = |path: &Path| -> Result<Vec<String>, CgroupError> {
        let text = fs::read_to_string(path).map_err(|source| CgroupError::Io { path: path.to_owned(), source })?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    };
    let there = words(&group.join("cgroup.controllers"))?;
    let passed = words(&control)?;
    let is_in = |words: &[String], name: &str| words.iter().any(|word| word == name);
    for controller in NEEDED {
        if !is_in(&there, controller) {
            return Err(CgroupError::NoController { controller, path: group.to_owned() });
        }
    }
    for controller in NEEDED.into_iter().chain(WELCOME) {
        if is_in(&there, controller) && !is_in(&passed, controller) {
            write(&control, &format!("+{controller}"))?;
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    // Not fs::write, which would truncate: these are no ordinary files.
    let written =
        File::options().write(true).open(path).and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
    written.map_err(|source| CgroupError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_kills_for_want_of_memory_and_nothing_like_it() {
        let events = "low 0\nhigh 0\nmax 812\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(parse_kills(events), 2);
        assert_eq!(parse_kills("oom_group_kill 1\noom_kill x\n"), 0);
    }

    #[test]
    fn refuses_a_place_that_is_no_cgroup_and_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = Tree::prepare(&dir.path().join("ostler")).unwrap_err();
        assert!(matches!(error, CgroupError::NotVersion2 { .. }), "{error}");
        assert!(error.to_string().contains("--cgroup"), "{error}");
        assert!(!dir.path().join("ostler").exists(), "nothing is made there");
    }

    #[test]
    fn writes_limits_in_the_kernel_s_words() {
        let limits = Limits { memory_bytes: 1 << 30, cpus: 3, cpu_weight: 200, tasks: 70 };
        let files: std::collections::BTreeMap<_, _> = files(&limits).into_iter().collect();
        assert_eq!(files["memory.max"], "1073741824");
        assert_eq!(files["memory.swap.max"], "0");
        assert_eq!(files["cpu.max"], "300000 100000");
        assert_eq!((files["cpu.weight"].as_str(), files["pids.max"].as_str()), ("200", "70"));
    }
}
