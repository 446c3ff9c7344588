//! Ostler's vmm, launched without a daemon.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ostler::model::{DeviceKind, DeviceLaunch, FIRST_WORDS, MacAddr, PciSlot, RateLimits, ServedBy};
use ostler::sys::{image, sealed, tap, vhost_net};

use super::{Cache, Contender, Disk, Guest, MEMORY_MIB, Nic, OSTLER, Ready, Server, VCPUS};
use crate::vmm::Plan;

/// The binary under test.
pub struct Ostler {
    binary: PathBuf,
    /// Sealed copies of kernels and initial RAM disks, by path. As in the daemon they outlive each VM: whoever closes the
    /// last descriptor of one frees its pages, which takes as long as a quarter of everything before the first instruction.
    images: Mutex<HashMap<PathBuf, OwnedFd>>,
}

impl Ostler {
    /// The vmm beside `OSTLER_BIN`.
    pub fn from_env() -> Result<Self, String> {
        let binary = std::env::var("OSTLER_BIN").map_err(|_| "set OSTLER_BIN (see `cargo xtask bench`)")?;
        Ok(Self { binary: PathBuf::from(binary).with_file_name("ostler-vmm"), images: Mutex::default() })
    }

    /// A sealed copy of an image, made once.
    fn prepared(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        match images.entry(path.to_owned()) {
            Entry::Occupied(known) => known.get().try_clone(),
            Entry::Vacant(free) => free.insert(sealed::copy(image::NAME, &File::open(path)?)?).try_clone(),
        }
    }
}

impl Contender for Ostler {
    fn name(&self) -> &'static str {
        OSTLER
    }

    fn has_disk(&self, _: Cache) -> bool {
        true
    }

    fn has_nic(&self, _: Server) -> bool {
        true
    }

    fn makes_taps(&self) -> bool {
        true
    }

    fn ready<'a>(&'a self, guest: &'a Guest, dir: &'a Path) -> io::Result<Ready<'a>> {
        let mut kinds = vec![(DeviceKind::Rng, vec![])];
        for disk in &guest.disks {
            kinds.push(block(disk)?);
        }
        for nic in &guest.nics {
            kinds.push(net(nic)?);
        }
        let devices = kinds.into_iter().zip(1..).map(|((kind, descriptors), number)| {
            let id = format!("device{number}").parse().map_err(io::Error::other)?;
            let slot = PciSlot::new(number).ok_or_else(|| io::Error::other("more devices than slots"))?;
            Ok((DeviceLaunch { id, slot, kind }, descriptors))
        });
        let plan = Plan {
            binary: &self.binary,
            kernel: self.prepared(&guest.kernel)?,
            initrd: guest.initrd.as_ref().map(|initrd| self.prepared(initrd)).transpose()?,
            vcpus: VCPUS,
            memory_mib: MEMORY_MIB,
            cmdline: format!("{FIRST_WORDS} {}", super::peers::cmdline(guest, "poweroff")),
            devices: devices.collect::<io::Result<_>>()?,
            patience: None,
        };
        Ok(Ready::Ostler(Box::new(plan), dir))
    }
}

fn block(disk: &Disk) -> io::Result<(DeviceKind, Vec<OwnedFd>)> {
    let flags = match disk.cache {
        Cache::Used => 0,
        Cache::Bypassed => libc::O_DIRECT,
    };
    let image = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&disk.path)?;
    Ok((DeviceKind::Block { is_read_only: false, queues: 1, limits: RateLimits::default() }, vec![image.into()]))
}

fn net(nic: &Nic) -> io::Result<(DeviceKind, Vec<OwnedFd>)> {
    let mut descriptors: Vec<OwnedFd> = tap::open(&nic.tap, nic.host, 30, 1)?.into_iter().map(Into::into).collect();
    let served_by = match nic.server {
        Server::Process => ServedBy::Vmm,
        Server::Kernel => {
            descriptors.push(vhost_net::open()?.into());
            ServedBy::Kernel
        }
    };
    let kind = DeviceKind::Net { mac: MacAddr(nic.mac), limits: RateLimits::default(), queues: 1, served_by };
    Ok((kind, descriptors))
}
