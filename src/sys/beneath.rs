//! Opens files below a directory that no path can leave (openat2(2)). Called by `daemon/supervisor` and `daemon/service`.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

/// What the opened file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// Opens `path` below `dir`: no `..` above it, no symbolic link anywhere, no magic link.
///
/// Only regular files and block devices are opened; anything else is `InvalidInput`. Never blocks on a FIFO.
pub fn open(dir: &Path, path: &str, access: Access) -> io::Result<File> {
    let base = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mode = match access {
        Access::Read => OFlags::RDONLY,
        Access::ReadWrite => OFlags::RDWR,
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // NONBLOCK: a FIFO without a writer must not hold us; it means nothing for files and block devices.
    let flags = mode | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let fd = rustix::fs::openat2(base, path, flags, Mode::empty(), resolve)?;
    match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
        FileType::RegularFile | FileType::BlockDevice => {}
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a regular file nor a block device")),
    }
    rustix::fs::fcntl_setfl(&fd, rustix::fs::fcntl_getfl(&fd)? - OFlags::NONBLOCK)?;
    Ok(File::from(fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_files_below_the_directory_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("sub/image"), b"x").unwrap();
        std::fs::write(dir.path().join("secret"), b"x").unwrap();
        std::os::unix::fs::symlink("image", root.join("sub/link")).unwrap();
        std::os::unix::fs::symlink(dir.path(), root.join("out")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();

        assert!(open(&root, "sub/image", Access::ReadWrite).is_ok());
        for path in ["../secret", "sub/../../secret", "sub/link", "out/secret", "fifo", "sub", "/etc/passwd"] {
            assert!(open(&root, path, Access::Read).is_err(), "{path}");
        }
        assert_eq!(open(&root, "gone", Access::Read).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
