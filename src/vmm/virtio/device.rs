//! What a virtio device is to transport and worker. Key types: [`Device`], [`Identity`], [`Active`], [`Fault`].
//!
//! `transport` reads the [`Identity`] once and hands the device to its `worker`, which owns it from then on and is the
//! only thread that calls it.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::queue::{Ring, RingFault};
use crate::model::DeviceChange;
use crate::vmm::ports::{ChangeError, GuestMemory};

/// What a driver sees of a device; constant for its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The device's name within its VM, for logs and the thread's name.
    pub id: String,
    /// Virtio device type (VIRTIO 1.2 §5).
    pub device_type: u16,
    /// PCI class code: base class, subclass, programming interface.
    pub class: u32,
    /// Device-specific feature bits on offer; the transport adds its own.
    pub features: u64,
    /// Device configuration (VIRTIO 1.2 §2.5), all of it read-only.
    pub config: Vec<u8>,
    /// Largest size of each queue, powers of two.
    pub queue_sizes: Vec<u16>,
}

/// What a running device works with: made at `DRIVER_OK`, dropped at reset.
#[derive(Debug)]
pub struct Active {
    /// By queue number; `None` where the driver enabled no queue.
    pub rings: Vec<Option<Ring>>,
    /// By queue number: what the driver's notifications signal.
    pub kicks: Vec<Arc<EventFd>>,
    /// Guest memory.
    pub memory: GuestMemory,
    /// Features that were negotiated.
    pub features: u64,
}

/// Why a device is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// It has just been started, or asked to go on with [`Next::Again`], or a queue has another vector: everything may
    /// have work.
    Any,
    /// The driver notified this queue.
    Queue(usize),
    /// Its own descriptor of this number ([`Device::backends`]) is ready.
    Backend(usize),
}

/// What a device wants after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// To be called at the next event.
    Wait,
    /// To be called again at once: it stopped at the bound of one call.
    Again,
}

impl Next {
    /// What two parts of a device want together.
    pub(super) fn or(self, other: Self) -> Self {
        if self == Self::Again { self } else { other }
    }
}

/// Why a device cannot go on. Both set `DEVICE_NEEDS_RESET`; only the log differs.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The driver broke the rules of the ring.
    #[error("driver misbehaves")]
    Guest(#[from] RingFault),
    /// The host refused.
    #[error("host refuses")]
    Host(#[from] io::Error),
}

/// A device; lives on its worker thread.
pub trait Device: Send + 'static {
    /// What the driver sees.
    fn identity(&self) -> Identity;
    /// Descriptors to watch for readability and, if they can be, writability (edge-triggered); always the same.
    fn backends(&self) -> Vec<RawFd>;
    /// Whether the device is to be woken for notifications of this queue: not for one that the host's kernel serves.
    fn serves(&self, _queue: usize) -> bool {
        true
    }
    /// Does what there is to do, within a bound, without blocking.
    fn run(&mut self, active: &mut Active, wake: Wake) -> Result<Next, Fault>;
    /// Changes what the host decides; gives the device configuration, if that is another now. [`Device::run`] follows.
    fn change(&mut self, _change: DeviceChange) -> Result<Option<Vec<u8>>, ChangeError> {
        Err(ChangeError::Unsupported)
    }
    /// Brings what is in flight to its end and gives it back to the driver; nothing moves afterwards until the next call
    /// of [`Device::run`]. May wait for the host's I/O.
    fn rest(&mut self, _active: &mut Active) -> Result<(), Fault> {
        Ok(())
    }
    /// Ends all use of the rings and of guest memory; may wait for the host's I/O in flight.
    fn stop(&mut self);
}
