//! Where a VM's files are. Key type: [`VmPaths`].
//!
//! ```text
//!   <run>/vms/<uid>/   control.sock  console.sock  vsock.sock   while it has a process
//!   <data>/vms/<uid>/  console.ring  exit-<instance>  vmm.log   until it is destroyed
//! ```

use std::path::{Path, PathBuf};

use crate::model::{InstanceId, VmId};

/// Longest path of a socket, in bytes (`sun_path` of unix(7), without the final NUL).
const MAX_SOCKET_PATH_LEN: usize = 107;

/// Longest run directory below which every socket still has a legal path, in bytes.
pub const MAX_RUN_DIR_LEN: usize = MAX_SOCKET_PATH_LEN - "/vms/".len() - ULID_LEN - "/control.sock".len();

/// Characters of an id (ULID specification: 26 digits of base 32).
const ULID_LEN: usize = 26;

/// The paths of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmPaths {
    run: PathBuf,
    state: PathBuf,
}

impl VmPaths {
    pub(super) fn new(run_dir: &Path, state_dir: &Path, uid: VmId) -> Self {
        let uid = uid.to_string();
        Self { run: run_dir.join(&uid), state: state_dir.join(&uid) }
    }

    /// The directory of sockets.
    pub fn run_dir(&self) -> &Path {
        &self.run
    }

    /// The directory of what outlives the process.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// Where the vmm listens for a daemon.
    pub fn control(&self) -> PathBuf {
        self.run.join("control.sock")
    }

    /// Where the vmm serves its console.
    pub fn console(&self) -> PathBuf {
        self.run.join("console.sock")
    }

    /// Where the vmm serves programs that speak with the guest, if the VM has a socket device.
    pub fn vsock(&self) -> PathBuf {
        self.run.join("vsock.sock")
    }

    /// The console's past (`wire::console_ring`).
    pub fn console_ring(&self) -> PathBuf {
        self.state.join("console.ring")
    }

    /// What the VM has done in its last run (`wire::counters`).
    pub fn counters(&self) -> PathBuf {
        self.state.join("counters")
    }

    /// How the run `instance` ended (`wire::decode_ended`).
    pub fn exit_record(&self, instance: InstanceId) -> PathBuf {
        self.state.join(format!("exit-{instance}"))
    }

    /// What the vmm of the last run logged.
    pub fn log(&self) -> PathBuf {
        self.state.join("vmm.log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn socket_paths_fit_below_the_longest_run_directory() {
        let run = format!("/{}", "r".repeat(MAX_RUN_DIR_LEN - 1));
        let paths = VmPaths::new(&Path::new(&run).join("vms"), Path::new("/data/vms"), VmId::new());
        assert_eq!(paths.control().as_os_str().as_bytes().len(), MAX_SOCKET_PATH_LEN);
        assert!(paths.console().as_os_str().len() <= MAX_SOCKET_PATH_LEN);
    }
}
