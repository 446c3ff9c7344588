//! Devices of the host that are given to VMs: settings, drivers, resets, descriptors. Key types: [`VfPlace`],
//! [`HostdevError`]; key functions: [`prepare`], [`open`], [`release`].
//!
//! `service` calls it with what is leased already, in threads where it may block; nothing here knows of VMs, leases or
//! policy. Each step is verified by reading it back; each can be repeated after a crash at any point.
//!
//! ```text
//!   open:    container and device from vfio-pci, for a vmm that may open nothing
//!   prepare: PF up, carrier ─▶ settings through the PF ─▶ unbind, vfio-pci ─▶ reset ─▶ settings verified again
//!   release:                   settings through the PF ◀─ unbind           ◀─ reset
//! ```

mod bind;
mod reset;
mod sriov;
mod vfio;

use std::io;

use crate::model::Bdf;
pub use sriov::{VfPlace, prepare, release};
pub use vfio::{OpenError, Opened, open};

/// Why a device could not be prepared or cleaned. The text goes to clients and into the quarantine's reason.
#[derive(Debug, thiserror::Error)]
pub enum HostdevError {
    /// The card has no peer.
    #[error("network card {interface} has no carrier after {seconds} s; connect it, or take it out of service")]
    NoCarrier {
        /// The card's network interface.
        interface: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The card's link could not be asked or switched on.
    #[error("cannot reach network card {interface}: {source}")]
    Link {
        /// The card's network interface.
        interface: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// The card's driver refuses a setting.
    #[error("network card {interface} refuses {setting} for virtual function {vf}: {source}")]
    Setting {
        /// The card's network interface.
        interface: String,
        /// The virtual function.
        vf: Bdf,
        /// What was asked.
        setting: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// The card's driver took a setting and shows another.
    #[error("network card {interface} shows other settings of virtual function {vf} than it was given: {settings}")]
    NotTaken {
        /// The card's network interface.
        interface: String,
        /// The virtual function.
        vf: Bdf,
        /// What it should show.
        settings: String,
    },
    /// The module is not loaded.
    #[error("driver vfio-pci is not there; load the module vfio-pci")]
    NoVfioDriver,
    /// sysfs refuses.
    #[error("cannot {what} of {device}: {source}")]
    Sysfs {
        /// What was tried.
        what: &'static str,
        /// The device.
        device: Bdf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The kernel took the request, and another driver has it or none.
    #[error("device {device} did not come to driver vfio-pci; the kernel's log says why")]
    NotBound {
        /// The device.
        device: Bdf,
    },
    /// There is no way to reset it.
    #[error("device {device} cannot be reset: the kernel knows no method")]
    NoReset {
        /// The device.
        device: Bdf,
    },
}
