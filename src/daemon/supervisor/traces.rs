//! What the host shows of VMs: processes, cgroups, directories, taps. Key type: [`Traces`]; key function:
//! [`Supervisor::traces`]. And doing away with those of VMs that do not exist.
//!
//! Nothing here knows records: `service::doctor` compares. What is shown is this daemon's own and no other one's on the
//! same host: processes by the log that their output goes to, cgroups and directories by where they lie.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::launch::{ARG0, arg0, remove_dir};
use super::{Shared, Supervisor, VmPaths};
use crate::daemon::record::TAP_PREFIX;
use crate::model::VmId;
use crate::sys::process::{self, Identity, Process};
use crate::sys::tap;

/// How long a process may take to be gone once it was killed: all of a guest's memory is unmapped.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces {
    /// Processes of VMs, or of their jails.
    pub processes: Vec<VmProcess>,
    /// Cgroups of VMs; `None`: VMs have none here.
    pub cgroups: Option<Vec<VmCgroup>>,
    /// Directories of sockets.
    pub run_dirs: Vec<VmDir>,
    /// Directories of consoles and logs.
    pub state_dirs: Vec<VmDir>,
    /// Taps that are named as those of VMs are.
    pub taps: Vec<tap::Shown>,
    /// Of the processes that were asked about, those that do not live any more.
    pub gone: Vec<Identity>,
    /// What could not be looked at, with why.
    pub unseen: Vec<String>,
}

/// A process that carries a VM's name, and writes into that VM's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmProcess {
    /// The VM.
    pub vm: VmId,
    /// The process.
    pub identity: Identity,
    /// Its user on the host.
    pub user: u32,
    /// It was stopped by a signal.
    pub is_stopped: bool,
}

/// A cgroup that carries a VM's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmCgroup {
    /// The VM.
    pub vm: VmId,
    /// Who is in it.
    pub processes: Vec<u32>,
    /// A limit that it has not, by its file.
    pub unlimited: Option<&'static str>,
}

/// A directory that carries a VM's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmDir {
    /// The VM.
    pub vm: VmId,
    /// The socket on which a daemon finds the vmm again is there.
    pub has_control: bool,
    /// Something is mounted in it, which the daemon never does.
    pub has_mount: bool,
}

/// Which of a VM's directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirKind {
    /// Of sockets.
    Run,
    /// Of consoles and logs.
    State,
}

impl Supervisor {
    /// Looks at the host; `recorded` are processes that live as far as is known.
    pub async fn traces(&self, recorded: Vec<Identity>) -> io::Result<Traces> {
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || read(&shared, &recorded)).await.map_err(io::Error::other)
    }

    /// Kills a process that was shown for `vm`, if it still is that, and waits until it is gone.
    pub async fn kill_stray(&self, vm: VmId, identity: Identity) -> io::Result<()> {
        let shared = self.shared.clone();
        let killed = tokio::task::spawn_blocking(move || {
            let is_it = |shown: &VmProcess| shown.vm == vm && shown.identity == identity;
            let Some(process) = Process::find(identity)? else { return Ok(None) };
            if !processes(&shared)?.iter().any(is_it) {
                return Ok(None);
            }
            process.kill().map(|()| Some(process))
        });
        let Some(process) = killed.await.map_err(io::Error::other)?? else { return Ok(()) };
        let watched = super::link::watch(process)?;
        let ended = tokio::time::timeout(GONE_WITHIN, watched.readable()).await;
        let _ = watched.get_ref().try_reap();
        ended
            .map_err(|_elapsed| io::Error::new(io::ErrorKind::TimedOut, "it was killed, and is still there"))?
            .map(drop)
    }

    /// Removes the cgroup of `vm`, which does not exist, with whatever runs in it.
    pub async fn remove_stray_cgroup(&self, vm: VmId) -> io::Result<()> {
        let shared = self.shared.clone();
        let removed = tokio::task::spawn_blocking(move || shared.jail.as_ref().map_or(Ok(()), |jail| jail.remove(vm)));
        removed.await.map_err(io::Error::other)?.map_err(io::Error::other)
    }

    /// Removes a directory of `vm`, which does not exist. One in which something is mounted stays.
    pub async fn remove_stray_dir(&self, vm: VmId, kind: DirKind) -> io::Result<()> {
        let shared = self.shared.clone();
        let removed = tokio::task::spawn_blocking(move || {
            let path = path_of(&shared.paths(vm), kind);
            if has_mount(&mounts()?, &path) {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "something is mounted in it"));
            }
            remove_dir(&path)
        });
        removed.await.map_err(io::Error::other)?
    }

    /// Does away with a tap that no process has open.
    pub async fn remove_stray_tap(&self, name: String) -> io::Result<()> {
        tokio::task::spawn_blocking(move || tap::remove(&name)).await.map_err(io::Error::other)?
    }
}

fn read(shared: &Shared, recorded: &[Identity]) -> Traces {
    let mut unseen = Vec::new();
    let processes = seen(processes(shared), "processes", &mut unseen);
    let mounts = seen(mounts(), "mounts", &mut unseen);
    let dirs = |dir: &Path, kind, unseen: &mut Vec<String>| {
        let found = vms_in(dir).map(|vms| vms.into_iter().map(|vm| vm_dir(shared, vm, kind, &mounts)).collect());
        seen(found, &dir.display().to_string(), unseen)
    };
    Traces {
        processes,
        cgroups: shared.jail.as_ref().map(|jail| seen(jail.cgroups(), "cgroups", &mut unseen)),
        run_dirs: dirs(&shared.run_dir, DirKind::Run, &mut unseen),
        state_dirs: dirs(&shared.state_dir, DirKind::State, &mut unseen),
        taps: seen(tap::list(TAP_PREFIX), "network interfaces", &mut unseen),
        gone: recorded.iter().filter(|process| matches!(Process::find(**process), Ok(None))).copied().collect(),
        unseen,
    }
}

fn seen<T>(found: io::Result<Vec<T>>, what: &str, unseen: &mut Vec<String>) -> Vec<T> {
    found.unwrap_or_else(|error| {
        unseen.push(format!("{what}: {error}"));
        Vec::new()
    })
}

/// Processes that carry a VM's name and whose output is that VM's log. The name alone may be another daemon's on this
/// host, or a lie.
fn processes(shared: &Shared) -> io::Result<Vec<VmProcess>> {
    let mut found = Vec::new();
    let state_dir = shared.state_dir.canonicalize().unwrap_or_else(|_| shared.state_dir.clone());
    for shown in process::find_by_prefix(ARG0)? {
        let Some(vm) = shown.name.strip_prefix(ARG0).and_then(|uid| uid.parse().ok()) else { continue };
        if shown.name == arg0(vm) && shown.output.starts_with(state_dir.join(vm.to_string())) {
            let process::Shown { identity, user, is_stopped, .. } = shown;
            found.push(VmProcess { vm, identity, user, is_stopped });
        }
    }
    Ok(found)
}

/// VMs that a directory has one for. Anything else in it, links too, is not ours.
fn vms_in(dir: &Path) -> io::Result<Vec<VmId>> {
    let mut vms = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let vm = name.to_str().and_then(|name| name.parse::<VmId>().ok().filter(|vm| vm.to_string() == name));
        if entry.file_type()?.is_dir() {
            vms.extend(vm);
        }
    }
    Ok(vms)
}

fn vm_dir(shared: &Shared, vm: VmId, kind: DirKind, mounts: &[PathBuf]) -> VmDir {
    let paths = shared.paths(vm);
    let has_control = kind == DirKind::Run && paths.control().exists();
    VmDir { vm, has_control, has_mount: has_mount(mounts, &path_of(&paths, kind)) }
}

fn path_of(paths: &VmPaths, kind: DirKind) -> PathBuf {
    match kind {
        DirKind::Run => paths.run_dir().to_owned(),
        DirKind::State => paths.state_dir().to_owned(),
    }
}

/// Where something is mounted (proc_pid_mountinfo(5), field 5).
fn mounts() -> io::Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect())
}

fn has_mount(mounts: &[PathBuf], dir: &Path) -> bool {
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    mounts.iter().any(|mount| mount.starts_with(&real))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_that_carry_a_vm_s_name_as_it_is_written_are_ours() {
        let dir = tempfile::tempdir().unwrap();
        let vm = VmId::new();
        for name in [vm.to_string(), VmId::new().to_string().to_lowercase(), "lost+found".into()] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join(VmId::new().to_string()), "a file").unwrap();
        std::os::unix::fs::symlink("/", dir.path().join(VmId::new().to_string())).unwrap();
        assert_eq!(vms_in(dir.path()).unwrap(), [vm]);
        assert!(vms_in(&dir.path().join("absent")).is_err());
    }

    #[test]
    fn a_mount_in_a_directory_is_seen_and_one_beside_it_is_not() {
        let mounts = ["/data/vms/a/deep", "/data/vms/b"].map(PathBuf::from);
        assert!(has_mount(&mounts, Path::new("/data/vms/a")) && has_mount(&mounts, Path::new("/data/vms/b")));
        assert!(!has_mount(&mounts, Path::new("/data/vms/aa")));
    }
}
