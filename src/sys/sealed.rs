//! Bytes in a memfd that nobody can change any more (memfd_create(2), `F_ADD_SEALS`).

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags};

const ALL: SealFlags = SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// A sealed memfd that holds `bytes`; `name` shows up in `/proc/<pid>/fd`.
pub fn seal(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    filled(name, |file| file.write_all(bytes))
}

/// A sealed memfd that holds what `source` has from where it stands.
pub fn copy(name: &str, mut source: &File) -> io::Result<OwnedFd> {
    filled(name, |file| io::copy(&mut source, file).map(drop))
}

fn filled(name: &str, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    fill(&mut file)?;
    file.rewind()?;
    let fd = OwnedFd::from(file);
    rustix::fs::fcntl_add_seals(&fd, ALL)?;
    Ok(fd)
}

/// Reads a sealed memfd of at most `max_len` bytes; one without all four seals is refused.
pub fn read(fd: OwnedFd, max_len: usize) -> io::Result<Vec<u8>> {
    let bad = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    match rustix::fs::fcntl_get_seals(&fd) {
        Ok(seals) if seals.contains(ALL) => {}
        _ => return bad("configuration is not sealed"),
    }
    let mut file = File::from(fd);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(max_len as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max_len { bad("configuration is too long") } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_was_sealed_and_refuses_writes() {
        let fd = seal("test", b"abc").unwrap();
        assert!(rustix::io::write(&fd, b"x").is_err());
        assert_eq!(read(fd, 3).unwrap(), b"abc");
    }

    #[test]
    fn refuses_what_is_not_sealed_or_too_long() {
        let plain = rustix::fs::memfd_create("plain", MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(read(plain, 10).is_err());
        assert!(read(tempfile::tempfile().unwrap().into(), 10).is_err());
        assert!(read(seal("test", b"abcd").unwrap(), 3).is_err());
    }
}
