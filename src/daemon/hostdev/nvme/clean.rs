//! A namespace without anybody's data. Key function: [`clean_namespace`].
//!
//! Sanitize is not used: it erases every namespace of the subsystem, whoever has them (NVM Express Base 2.0, §8.21).
//! Neither is deletion, which frees a namespace's blocks and promises nothing about them. A Format NVM with erasure is
//! taken where it touches this namespace only, then zeroes; in the end only what is read back counts.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FallocateFlags;

use super::super::HostdevError;
use super::{open, refused, set_attached};
use crate::daemon::crash::{self, Point};
use crate::daemon::operation::{Step, Underway};
use crate::sys::nvme::{Admin, block};

/// Looks at a block device that is about to appear, and the time between them.
const LOOKS: u32 = 200;
const STEP: Duration = Duration::from_millis(50);
/// Bytes that are read back at once.
const CHUNK_LEN: usize = 1 << 20;
/// Bytes that are overwritten between two looks at whether it was called off: a multiple of every block.
const OVERWRITTEN_LEN: u64 = 1 << 30;
/// Alignment of a buffer that the device writes to: no namespace that is taken has a larger block.
const ALIGNMENT: usize = 64 << 10;

/// Erases a namespace that nobody uses, reads all of it back, and leaves it attached to nothing. `device` is its primary
/// controller. Blocks for as long as it takes to read the namespace; can be repeated. `operation` is told how far it is, and
/// may be called off: then it ends between two pieces, and the namespace stays attached to the primary controller.
pub fn clean_namespace(device: &str, nsid: u32, operation: &Underway) -> Result<(), HostdevError> {
    let admin = open(device)?;
    let primary = admin.identify_controller().map_err(refused(device))?;
    set_attached(&admin, device, nsid, Some(primary.id))?;
    crash::reach(Point::NamespaceTaken);
    erase(&admin, device, nsid, operation)?;
    // What is shown to be clean is given back, whatever was asked for meanwhile.
    operation.seal();
    crash::reach(Point::NamespaceErased);
    set_attached(&admin, device, nsid, None)?;
    crash::reach(Point::NamespaceLeft);
    Ok(())
}

/// Erases every namespace that is attached to a controller which is nobody's, and leaves them attached.
pub fn clean_controller(device: &str, operation: &Underway) -> Result<(), HostdevError> {
    let admin = open(device)?;
    for (nsid, _) in block::of_controller(device) {
        erase(&admin, device, nsid, operation)?;
    }
    operation.seal();
    Ok(())
}

/// Erases a namespace that is attached to the host.
fn erase(admin: &Admin, device: &str, nsid: u32, operation: &Underway) -> Result<(), HostdevError> {
    let supports = admin.identify_controller().map_err(refused(device))?.supports;
    let disk =
        Disk { path: wait_for_disk(device, nsid)?, device: device.to_owned(), nsid, operation: operation.clone() };
    // Nobody has to be woken: it is looked at between two pieces.
    operation.open(&Arc::default());
    // Whoever mounts it or builds on it has it exclusively.
    drop(disk.open()?);
    if let Ok(Some(namespace)) = admin.identify_namespace(nsid)
        && supports.format
        && !supports.formats_all
    {
        operation.tell(Step::new("formatting the namespace, one command that may take long"));
        if let Err(error) = admin.format(nsid, &namespace) {
            tracing::warn!(device, nsid, %error, "the namespace is not formatted: it is overwritten with zeroes");
        }
    }
    let file = disk.open()?;
    if disk.is_zero(&file)? {
        return Ok(());
    }
    disk.overwrite(&file)?;
    if disk.is_zero(&file)? { Ok(()) } else { Err(HostdevError::NvmeNotZero { device: device.to_owned(), nsid }) }
}

/// A namespace's block device.
struct Disk {
    path: String,
    device: String,
    nsid: u32,
    /// Is told how far it is, and may be called off.
    operation: Underway,
}

impl Disk {
    fn failed(&self, what: &'static str, source: io::Error) -> HostdevError {
        HostdevError::NvmeDisk { what, device: self.device.clone(), nsid: self.nsid, source }
    }

    /// Opened past the page cache, and by nobody else who asks so.
    fn open(&self) -> Result<File, HostdevError> {
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL | libc::O_DIRECT).open(&self.path);
        file.map_err(|error| self.failed("open", error))
    }

    fn len(&self, mut file: &File) -> Result<u64, HostdevError> {
        io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(|error| self.failed("measure", error))
    }

    /// Tells what is being done, and how far it is; the error is that it was called off.
    fn advance(&self, doing: &'static str, done: u64, len: u64) -> Result<(), HostdevError> {
        self.operation.tell(Step::of(doing, done, len, "bytes"));
        match self.operation.is_called_off() {
            false => Ok(()),
            true => Err(HostdevError::NvmeCalledOff { device: self.device.clone(), nsid: self.nsid }),
        }
    }

    /// Writes zeroes to all of it.
    fn overwrite(&self, file: &File) -> Result<(), HostdevError> {
        let len = self.len(file)?;
        let mut at = 0;
        while at < len {
            self.advance("overwriting the namespace with zeroes", at, len)?;
            let piece = OVERWRITTEN_LEN.min(len - at);
            // The kernel takes Write Zeroes where the controller has it, and writes zeroes where not (block/blk-lib.c).
            rustix::fs::fallocate(file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, at, piece)
                .map_err(|error| self.failed("overwrite", error.into()))?;
            at += piece;
        }
        file.sync_all().map_err(|error| self.failed("flush", error))
    }

    /// Reads all of it.
    fn is_zero(&self, file: &File) -> Result<bool, HostdevError> {
        let len = self.len(file)?;
        if len == 0 {
            // A format that the host's driver cannot read: nothing can be shown of it.
            return Err(self.failed("read", io::Error::new(io::ErrorKind::InvalidData, "it has no size on the host")));
        }
        let mut memory = vec![0; CHUNK_LEN + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        let Some(buffer) = memory.get_mut(start..start + CHUNK_LEN) else {
            return Err(self.failed("read", io::ErrorKind::OutOfMemory.into()));
        };
        let mut at = 0;
        while at < len {
            self.advance("reading the namespace back", at, len)?;
            let wanted = CHUNK_LEN.min(usize::try_from(len - at).unwrap_or(CHUNK_LEN));
            let read = file.read_at(&mut buffer[..wanted], at).map_err(|error| self.failed("read", error))?;
            if read == 0 {
                return Err(self.failed("read", io::ErrorKind::UnexpectedEof.into()));
            }
            if buffer[..read].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += read as u64;
        }
        self.operation.tell(Step::of("reading the namespace back", at, len, "bytes"));
        Ok(true)
    }
}

/// The kernel looks for namespaces once the controller tells it to, a moment after the attachment.
fn wait_for_disk(device: &str, nsid: u32) -> Result<String, HostdevError> {
    for look in 0..LOOKS {
        if let Some(name) = block::of_namespace(device, nsid) {
            let path = format!("/dev/{name}");
            if Path::new(&path).exists() {
                return Ok(path);
            }
        }
        if look == LOOKS / 4 {
            // It was not told; absent on a kernel that always is.
            let _ = std::fs::write(format!("/sys/class/nvme/{device}/rescan_controller"), "1");
        }
        std::thread::sleep(STEP);
    }
    Err(HostdevError::NvmeNoDisk { device: device.to_owned(), nsid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::operation::{OperationEnd, Operations, Subject, Ticket};

    fn disk(bytes: &[u8], operation: Underway) -> (tempfile::TempDir, Disk) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, bytes).unwrap();
        let disk = Disk { path: path.to_str().unwrap().to_owned(), device: "nvme0".into(), nsid: 2, operation };
        (dir, disk)
    }

    #[test]
    fn one_byte_anywhere_is_not_clean() {
        let len = CHUNK_LEN + 4096;
        for at in [None, Some(0), Some(CHUNK_LEN - 1), Some(CHUNK_LEN), Some(len - 1)] {
            let mut bytes = vec![0; len];
            if let Some(at) = at {
                bytes[at] = 1;
            }
            let (_dir, disk) = disk(&bytes, Underway::unseen());
            let file = File::open(&disk.path).unwrap();
            assert_eq!(disk.is_zero(&file).unwrap(), at.is_none(), "{at:?}");
        }
    }

    #[test]
    fn what_has_no_size_cannot_be_shown_to_be_clean() {
        let (_dir, disk) = disk(&[], Underway::unseen());
        let error = disk.is_zero(&File::open(&disk.path).unwrap()).unwrap_err();
        assert!(error.to_string().contains("no size on the host"), "{error}");
    }

    #[tokio::test]
    async fn an_erasing_tells_how_far_it_is_and_leaves_off_between_two_pieces() {
        let operations = Operations::default();
        let ticket = Ticket::new(Subject::sample());
        let (name, work) = operations.begin(&ticket, None);
        let len = 3 * CHUNK_LEN;
        let (_dir, disk) = disk(&vec![0; len], work.clone());
        let file = File::open(&disk.path).unwrap();
        assert!(disk.is_zero(&file).unwrap());
        let read = operations.get(&name).unwrap().step.unwrap().amount.unwrap();
        assert_eq!((read.done, read.total, read.unit), (len as u64, len as u64, "bytes"));
        work.open(&Arc::default());
        let (cancelled, left) = tokio::join!(operations.cancel(&name), async {
            let left = disk.is_zero(&file).unwrap_err();
            ticket.end(|| OperationEnd::Succeeded);
            left
        });
        assert!(cancelled.unwrap().is_ok());
        assert!(left.to_string().contains("called off: it may hold data"), "{left}");
        let file = OpenOptions::new().read(true).write(true).open(&disk.path).unwrap();
        assert!(matches!(disk.overwrite(&file), Err(HostdevError::NvmeCalledOff { .. })));
    }
}
