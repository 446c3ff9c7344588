//! What is behind a device on the host: a locked image, a tap. Opened here, at launch and while a VM runs; the vmm holds
//! the last copy of each. Key function: [`open`].

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::Shared;
use crate::daemon::record::{Subnet, VmRecord};
use crate::model::{DeviceId, DeviceSpec, DiskSpec, ServedBy, SpecError, TapSpec};
use crate::sys::process::Process;
use crate::sys::{tap, vhost_net};

/// How long a resource of the run before may linger: the kernel closes descriptors of a ring after its process is gone.
const LINGER: Duration = Duration::from_secs(2);
/// Between two looks at it.
const LINGER_STEP: Duration = Duration::from_millis(20);

/// Why something cannot be had. The text goes to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackingError {
    /// The image cannot be opened.
    #[error(transparent)]
    File(#[from] SpecError),
    /// Another run holds it.
    #[error("disk {disk} ({volume}) is in use by another running VM")]
    DiskInUse {
        /// The disk.
        disk: DeviceId,
        /// Its image.
        volume: String,
    },
    /// The tap.
    #[error("cannot make tap {name}: {cause}; the daemon needs CAP_NET_ADMIN and /dev/net/tun")]
    Tap {
        /// Its name.
        name: String,
        /// Why.
        cause: String,
    },
    /// The kernel's server of it.
    #[error("{}", vhost_net::absence(cause))]
    Vhost {
        /// Why.
        cause: String,
    },
    /// Anything else.
    #[error("cannot prepare {what}: {cause}")]
    Host {
        /// What it was about.
        what: &'static str,
        /// Why.
        cause: String,
    },
}

/// The descriptors of a device for the running `vm`, whose vmm may use it as far as its limits go. Blocks.
pub(super) fn open(shared: &Shared, vm: &VmRecord, device: &DeviceSpec) -> Result<Vec<OwnedFd>, BackingError> {
    match device {
        DeviceSpec::Disk(disk) => {
            let image = shared.files.single_disk(&vm.tenant, disk)?;
            lock(&image, disk)?;
            if !disk.is_read_only
                && let Some(identity) = vm.run.as_ref().and_then(|run| run.process)
                && let Some(process) = Process::find(identity).map_err(host("the VM's process"))?
            {
                let len = image.metadata().map_err(host("disk"))?.len();
                process.allow_file_len(len).map_err(host("the limit of file sizes"))?;
            }
            Ok(vec![image.into()])
        }
        DeviceSpec::Nic(nic) => {
            let lease = vm.nics.iter().find(|lease| lease.id == nic.id);
            let lease = lease.ok_or(BackingError::Host { what: "NIC", cause: "it has no address".to_owned() })?;
            open_nic(lease.subnet, nic.tap().unwrap_or_default())
        }
        DeviceSpec::Nvme(_) => Err(BackingError::Host { what: "device", cause: "it is lent, not opened".to_owned() }),
    }
}

/// Locks the image for as long as any copy of its descriptor is open: the vmm holds the last one.
pub(super) fn lock(image: &File, disk: &DiskSpec) -> Result<(), BackingError> {
    let operation = if disk.is_read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    let locked = retry(|| rustix::fs::flock(image, operation).map_err(io::Error::from), io::ErrorKind::WouldBlock);
    locked.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => BackingError::DiskInUse { disk: disk.id.clone(), volume: disk.volume.to_string() },
        _ => host("lock of a disk")(error),
    })
}

/// The queues of a NIC's tap, with the host's address on it; behind them as many servers, if the kernel is to serve it.
pub(super) fn open_nic(subnet: Subnet, spec: TapSpec) -> Result<Vec<OwnedFd>, BackingError> {
    let servers = match spec.served_by {
        ServedBy::Vmm => Vec::new(),
        ServedBy::Kernel => (0..spec.queues)
            .map(|_| vhost_net::open())
            .collect::<io::Result<_>>()
            .map_err(|error| BackingError::Vhost { cause: error.to_string() })?,
    };
    let name = subnet.tap_name();
    let taps = retry(|| tap::open(&name, subnet.host(), Subnet::PREFIX_LEN, spec.queues), io::ErrorKind::ResourceBusy)
        .map_err(|error| BackingError::Tap { name, cause: error.to_string() })?;
    Ok(taps.into_iter().chain(servers).map(OwnedFd::from).collect())
}

fn retry<T>(mut attempt: impl FnMut() -> io::Result<T>, passing: io::ErrorKind) -> io::Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(error) if error.kind() == passing && start.elapsed() < LINGER => std::thread::sleep(LINGER_STEP),
            other => return other,
        }
    }
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> BackingError {
    move |error| BackingError::Host { what, cause: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ImagePath, RateLimits};
    use std::fs::OpenOptions;

    fn disk(is_read_only: bool) -> DiskSpec {
        DiskSpec {
            id: "root".parse().unwrap(),
            volume: ImagePath::new("v", "x.img").unwrap(),
            is_read_only,
            is_direct: false,
            queues: 1,
            limits: RateLimits::default(),
        }
    }

    #[test]
    fn a_disk_is_written_by_one_run_or_read_by_many() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.img");
        std::fs::write(&path, b"x").unwrap();
        let open = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (first, second, third) = (open(), open(), open());
        lock(&first, &disk(true)).unwrap();
        lock(&second, &disk(true)).unwrap();
        let refused = lock(&third, &disk(false)).unwrap_err();
        assert!(refused.to_string().contains("in use by another running VM"), "{refused}");
        let copy = first.try_clone().unwrap();
        drop((first, second));
        assert!(lock(&third, &disk(false)).is_err(), "a copy holds the lock");
        drop(copy);
        lock(&third, &disk(false)).unwrap();
        assert!(lock(&open(), &disk(true)).is_err());
    }

    #[test]
    fn waits_for_a_resource_that_is_about_to_be_free() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.img");
        std::fs::write(&path, b"x").unwrap();
        let open = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let held = open();
        lock(&held, &disk(false)).unwrap();
        let late = std::thread::spawn(move || {
            std::thread::sleep(LINGER_STEP * 3);
            drop(held);
        });
        lock(&open(), &disk(false)).unwrap();
        late.join().unwrap();
    }
}
