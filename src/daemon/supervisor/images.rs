//! Kernels and initrds that VMs start from. Key type: [`Images`].
//!
//! ```text
//!   an image of the node ──copied once──▶ sealed memfd ──▶ each vmm copies it into its guest's memory (sys/image)
//! ```
//! What a vmm maps must not change or end beneath it, and the operator may replace an image's file at any time: hence the
//! sealed copy. It is found again by what the file system says of the file, and made anew when that has changed. The few
//! that were used last are kept.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::sys::{image, sealed};

/// Longest image that is kept, and all that are kept at once, in bytes. They are the daemon's memory.
const MAX_BYTES: u64 = 512 << 20;
/// How long a file must have been left alone before it is known by its times: they may be as coarse as this.
const SETTLED: Duration = Duration::from_secs(2);

/// What tells a file's content from any other: device, inode, length, and both times in ns.
type Identity = [i128; 5];

/// The images that were used last.
#[derive(Debug, Default)]
pub(crate) struct Images {
    /// Rank: leaf. Oldest use first. Held while an image is copied: who wants the same one waits for it.
    kept: Mutex<Vec<Kept>>,
}

#[derive(Debug)]
struct Kept {
    identity: Identity,
    len: u64,
    copy: OwnedFd,
}

impl Images {
    /// The content of `image`, sealed if it is one that can be kept, else the file itself. Blocks.
    pub(super) fn shared(&self, image: File) -> io::Result<OwnedFd> {
        let before = image.metadata()?;
        let identity = identity(&before);
        if !before.is_file() || before.len() > MAX_BYTES {
            return Ok(image.into());
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept.iter().position(|one| one.identity == identity) {
            let found = kept.remove(at);
            let copy = found.copy.try_clone();
            kept.push(found);
            return copy;
        }
        let copy = sealed::copy(image::NAME, &image)?;
        let after = image.metadata()?;
        if self::identity(&after) != identity {
            // Somebody is writing it: the vmm reads what it finds, and says what is wrong with it.
            return Ok(image.into());
        }
        // A file that has just changed may change again within the same tick of its times.
        if has_settled(&after) {
            let copy = copy.try_clone()?;
            kept.push(Kept { identity, len: after.len(), copy });
            let mut bytes: u64 = kept.iter().map(|one| one.len).sum();
            while bytes > MAX_BYTES {
                bytes -= kept.remove(0).len;
            }
        }
        Ok(copy)
    }
}

fn identity(file: &Metadata) -> Identity {
    let ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
    let times = [ns(file.mtime(), file.mtime_nsec()), ns(file.ctime(), file.ctime_nsec())];
    [file.dev().into(), file.ino().into(), file.len().into(), times[0], times[1]]
}

/// Whether its last change lies back far enough. A clock that was set back says no.
fn has_settled(file: &Metadata) -> bool {
    let changed = u64::try_from(file.ctime()).map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|since| since > SETTLED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::io::{Read, Seek};
    use std::os::unix::fs::FileExt;
    use std::path::{Path, PathBuf};

    /// A file that has not changed for long, as far as its inode's times go: they cannot be set back.
    fn settled(images: &Images, path: &Path) -> OwnedFd {
        let begin = std::time::Instant::now();
        loop {
            let copy = images.shared(File::open(path).unwrap()).unwrap();
            if images.kept.lock().unwrap().iter().any(|one| one.identity == identity(&path.metadata().unwrap())) {
                return copy;
            }
            assert!(begin.elapsed() < SETTLED * 10, "never kept");
            std::thread::yield_now();
        }
    }

    fn content(fd: OwnedFd) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut file = File::from(fd);
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn inode(fd: &OwnedFd) -> u64 {
        rustix::fs::fstat(fd).unwrap().st_ino
    }

    fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinux");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn an_image_is_copied_once_until_its_file_changes() {
        let (_dir, path) = file(b"first");
        let images = Images::default();
        let first = settled(&images, &path);
        let again = images.shared(File::open(&path).unwrap()).unwrap();
        assert_eq!(inode(&again), inode(&images.shared(File::open(&path).unwrap()).unwrap()), "one copy for all");
        assert!(rustix::io::write(&again, b"x").is_err(), "nobody can change it");
        // As long as before.
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"other", 0).unwrap();
        let other = images.shared(File::open(&path).unwrap()).unwrap();
        assert_eq!([content(first), content(again), content(other)], [b"first", b"first", b"other"]);
    }

    #[test]
    fn a_file_that_has_just_changed_is_not_known_by_its_times() {
        let (_dir, path) = file(b"first");
        let images = Images::default();
        assert_eq!(content(images.shared(File::open(&path).unwrap()).unwrap()), b"first");
        assert!(images.kept.lock().unwrap().is_empty());
    }

    #[test]
    fn the_ones_used_last_are_kept_within_the_limit() {
        let (_dir, path) = file(b"image");
        let images = Images::default();
        let copy = settled(&images, &path);
        let mut others = images.kept.lock().unwrap();
        for number in 0..3 {
            let copy = copy.try_clone().unwrap();
            others.push(Kept { identity: [number; 5], len: MAX_BYTES / 2, copy });
        }
        drop(others);
        let (_other_dir, other) = file(b"other");
        settled(&images, &other);
        let kept = images.kept.lock().unwrap();
        assert!(kept.iter().map(|one| one.len).sum::<u64>() <= MAX_BYTES);
        assert_eq!(kept.iter().map(|one| one.identity[0]).collect::<Vec<_>>()[..1], [2], "the oldest went first");
    }

    #[test]
    fn what_is_too_long_or_no_file_is_handed_on_as_it_is() {
        let (_dir, path) = file(b"image");
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        file.set_len(MAX_BYTES + 1).unwrap();
        let before = file.metadata().unwrap().ino();
        assert_eq!(inode(&Images::default().shared(file).unwrap()), before);
    }
}
