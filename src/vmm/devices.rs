//! Makes devices from what the daemon says of them and hands over, at launch and while the VM runs. Key type: [`Devices`].
//!
//! Threads, rings and timers of devices that come later are made ahead, and go from one device to the next.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use super::console::Writer;
use super::counters::Counting;
use super::machine::Machine;
use super::ports::{Alarm, PciFunction};
use super::virtio::{
    Balloon, Block, Console, KernelNet, Keyboard, Net, Rng, Stock, TapControl, VirtioFunction, Vsock, Workers,
};
use super::{confine, vfio};
use crate::model::{Bdf, DeviceId, DeviceKind, DeviceLaunch, PciSlot, SPARE_DEVICES, ServedBy, TapSpec};
use crate::sys::tap;

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Other descriptors than it needs came with it.
    #[error("device {id} needs {needed} descriptors, {given} came")]
    Descriptors {
        /// Which.
        id: DeviceId,
        /// What it needs.
        needed: usize,
        /// What came.
        given: usize,
    },
    /// What is behind it is of no use, or no thread or ring is left (`StorageFull`).
    #[error("device {id}: {source}")]
    Backend {
        /// Which.
        id: DeviceId,
        /// Why.
        source: io::Error,
    },
    /// A device of the host cannot be passed through.
    #[error("device {id} ({host} of the host): {source}")]
    PassedThrough {
        /// Which.
        id: DeviceId,
        /// Its address on the host.
        host: Bdf,
        /// Why.
        source: vfio::AttachError,
    },
}

impl DeviceError {
    /// Whether the vmm has nothing left for another device.
    pub fn is_exhausted(&self) -> bool {
        matches!(self, Self::Backend { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

/// Threads, rings and timers for devices.
pub struct Devices {
    workers: Workers,
    /// For what has sockets: a thread that may do more with them, and less besides. It comes at launch only.
    socket_workers: Workers,
    stock: Stock,
    counting: Counting,
    /// Of the console, until its device is made.
    console: Option<(Keyboard, Writer)>,
}

impl Devices {
    /// None is made yet. What devices do is counted in `counting`; `console` is what a virtio console stands between.
    pub fn new(counting: &Counting, console: Option<(Keyboard, Writer)>) -> io::Result<Self> {
        confine::Kind::Io.prepare()?;
        let (workers, socket_workers) = (Workers::new(confine::io), Workers::new(confine::sockets));
        Ok(Self { workers, socket_workers, stock: Stock::default(), counting: counting.clone(), console })
    }

    /// Makes what [`SPARE_DEVICES`] need that come later, and no more from here on.
    pub fn seal(&self) -> io::Result<()> {
        self.stock.fill(SPARE_DEVICES.into())?;
        self.socket_workers.seal(0)?;
        self.workers.seal(SPARE_DEVICES.into())
    }

    /// A device with its descriptors. Adds what the host may have to tell of it to `alarms`.
    pub fn build(
        &mut self,
        device: &DeviceLaunch,
        descriptors: Vec<OwnedFd>,
        machine: &Machine,
        alarms: &mut Vec<Alarm>,
    ) -> Result<Box<dyn PciFunction>, DeviceError> {
        let DeviceLaunch { id, slot, kind } = device;
        let failed = |source| DeviceError::Backend { id: id.clone(), source };
        let (memory, bar_base) = (machine.memory(), Machine::slot_window(*slot));
        let function = match kind {
            DeviceKind::Block { is_read_only, queues, limits } => {
                let [image] = exactly(id, descriptors)?;
                let image = File::from(image);
                let disk = Block::with_stock(id.clone(), image, *is_read_only, *queues, *limits, &self.stock);
                VirtioFunction::new(disk.map_err(failed)?, memory, bar_base, &self.workers)
            }
            &DeviceKind::Net { mac, limits, queues, served_by } => {
                let (needed, given) = (TapSpec { limits, queues, served_by }.descriptors(), descriptors.len());
                let wrong = || DeviceError::Descriptors { id: id.clone(), needed, given };
                let first = descriptors.first().filter(|_| given == needed).ok_or_else(wrong)?;
                let known = tap::known_offloads(first.as_fd());
                let control = TapControl::KERNEL;
                let id = id.clone();
                match served_by {
                    ServedBy::Vmm => {
                        let nic = Net::with_stock(id, descriptors, mac, known, limits, control, &self.stock);
                        VirtioFunction::new(nic.map_err(failed)?, memory, bar_base, &self.workers)
                    }
                    ServedBy::Kernel => {
                        let nic = KernelNet::new(id, descriptors, mac, known, &memory, control);
                        VirtioFunction::new(nic.map_err(failed)?, memory, bar_base, &self.workers)
                    }
                }
            }
            DeviceKind::Rng => {
                let [] = exactly(id, descriptors)?;
                VirtioFunction::new(Rng::new(id.clone()).map_err(failed)?, memory, bar_base, &self.workers)
            }
            DeviceKind::Vsock { cid } => {
                let [listener] = exactly(id, descriptors)?;
                let vsock = Vsock::new(id.clone(), *cid, UnixListener::from(listener)).map_err(failed)?;
                VirtioFunction::new(vsock, memory, bar_base, &self.socket_workers)
            }
            DeviceKind::Console => {
                let [] = exactly(id, descriptors)?;
                let has_another = || failed(io::Error::other("the machine has its one console already"));
                let (keyboard, output) = self.console.take().ok_or_else(has_another)?;
                VirtioFunction::new(Console::new(id.clone(), keyboard, output), memory, bar_base, &self.workers)
            }
            DeviceKind::Balloon { keep_mib } => {
                let [] = exactly(id, descriptors)?;
                let (reclaim, counters) = (machine.reclaim(), self.counting.balloon());
                let balloon = Balloon::new(id.clone(), &memory, *keep_mib, reclaim, counters, &self.stock);
                VirtioFunction::new(balloon.map_err(failed)?, memory, bar_base, &self.workers)
            }
            DeviceKind::Vfio { host } => {
                let window = vfio::Window { base: bar_base, len: Machine::SLOT_WINDOW_LEN };
                return pass_through(id, *host, exactly(id, descriptors)?, machine, window, alarms);
            }
        };
        let function = function.map_err(failed)?;
        // What the kernel moves nobody here counts: no queue rather than one where nothing ever happens.
        let is_counted = !matches!(kind, DeviceKind::Net { served_by: ServedBy::Kernel, .. });
        let queues = if is_counted { function.queues() } else { 0 };
        function.count_in(self.counting.device(slot.number(), id.as_str(), queues));
        Ok(Box::new(function))
    }

    /// Counts nothing more for what was in this slot.
    pub fn forget(&self, slot: PciSlot) {
        self.counting.forget(slot.number());
    }
}

/// A device of the host, of which the descriptors are container and device.
fn pass_through(
    id: &DeviceId,
    host: Bdf,
    descriptors: [OwnedFd; 2],
    machine: &Machine,
    window: vfio::Window,
    alarms: &mut Vec<Alarm>,
) -> Result<Box<dyn PciFunction>, DeviceError> {
    let made = vfio::VfioFunction::new(id.clone(), host, descriptors, &machine.memory(), &machine.reclaim(), window);
    let (function, own) = made.map_err(|source| DeviceError::PassedThrough { id: id.clone(), host, source })?;
    alarms.extend(own);
    Ok(Box::new(function))
}

fn exactly<const N: usize>(id: &DeviceId, descriptors: Vec<OwnedFd>) -> Result<[OwnedFd; N], DeviceError> {
    let wrong = |given: Vec<_>| DeviceError::Descriptors { id: id.clone(), needed: N, given: given.len() };
    descriptors.try_into().map_err(wrong)
}
