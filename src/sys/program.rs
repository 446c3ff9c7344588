//! A program that stays what it is, whatever becomes of its file's name. Key type: [`Program`].
//!
//! A daemon starts others for months; meanwhile an update replaces their files. What it opened when it started is what it
//! runs until it ends, as `/proc/self/exe` is of itself. Used by `daemon/config` for the program that runs VMs.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};

/// An executable file, open.
#[derive(Debug)]
pub struct Program {
    /// Under which children find it; they have a copy of the descriptor until they execute it.
    path: PathBuf,
    _file: OwnedFd,
}

impl Program {
    /// Opens the program (not a script: its interpreter could not open it again).
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
        }
        rustix::fs::accessat(CWD, path, rustix::fs::Access::EXEC_OK, AtFlags::empty())?;
        Ok(Self { path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(), _file: file })
    }

    /// Where it can be executed by this process and its children.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::End;
    use crate::sys::spawn::detached;
    use rustix::event::{PollFd, PollFlags};
    use std::os::fd::AsFd;

    #[test]
    fn a_program_can_be_run_after_its_file_was_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("true");
        std::fs::copy("/bin/true", &path).unwrap();
        let program = Program::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::copy("/bin/false", &path).unwrap();
        let log = tempfile::tempfile().unwrap();
        let child = detached(program.path(), "x", &[], log.as_fd(), log.try_clone().unwrap()).unwrap();
        rustix::event::poll(&mut [PollFd::new(&child, PollFlags::IN)], None).unwrap();
        assert_eq!(child.try_reap().unwrap(), Some(End::Exited(0)));
    }

    #[test]
    fn what_cannot_be_executed_is_no_program() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let kind = |path: &Path| Program::open(path).unwrap_err().kind();
        assert_eq!(kind(&file), io::ErrorKind::PermissionDenied);
        assert_eq!(kind(dir.path()), io::ErrorKind::InvalidInput);
        assert_eq!(kind(&dir.path().join("absent")), io::ErrorKind::NotFound);
    }
}
