//! Devices of the host that are given to VMs: settings, drivers, resets, descriptors. Key types: [`VfPlace`],
//! [`HostdevError`]; key functions: [`prepare`], [`open`], [`release`]. NVMe has a folder of its own: [`nvme`].
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
pub mod nvme;
mod reset;
mod sriov;
mod unused;
mod vfio;

use std::io;

use crate::model::Bdf;
use crate::sys::nvme::CommandError;
pub use sriov::{VfPlace, prepare, release};
pub use unused::unbind_unused;
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
    /// Somebody has it open.
    #[error("device {device} is in use: a program has its IOMMU group open")]
    InUse {
        /// The device.
        device: Bdf,
    },
    /// There is no way to reset it.
    #[error("device {device} cannot be reset: the kernel knows no method")]
    NoReset {
        /// The device.
        device: Bdf,
    },
    /// The admin queue of a controller cannot be reached.
    #[error("cannot open NVMe controller {device}: {source}; the daemon needs CAP_SYS_ADMIN and /dev/{device}")]
    NvmeOpen {
        /// The kernel's name of the controller. So in the next ones.
        device: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// A controller refuses a command.
    #[error("controller {device}: {source}")]
    Nvme {
        /// The controller.
        device: String,
        /// The command, and the controller's answer.
        source: CommandError,
    },
    /// A controller took an attachment or a detachment, and shows something else.
    #[error("controller {device} shows namespace {nsid} attached to other controllers than it was told")]
    NvmeAttachment {
        /// The controller.
        device: String,
        /// The namespace. So in the next ones.
        nsid: u32,
    },
    /// The host's driver made no disk of a namespace.
    #[error("the host does not show namespace {nsid} of {device} as a disk; the kernel's log says why")]
    NvmeNoDisk {
        /// The controller.
        device: String,
        /// The namespace.
        nsid: u32,
    },
    /// A namespace's disk does not do what it should.
    #[error("cannot {what} namespace {nsid} of {device} on the host: {source}{}", in_use(source))]
    NvmeDisk {
        /// What was tried.
        what: &'static str,
        /// The controller.
        device: String,
        /// The namespace.
        nsid: u32,
        /// What the kernel says.
        source: io::Error,
    },
    /// Erased and overwritten, a namespace still has data.
    #[error("namespace {nsid} of {device} still holds data after it was formatted and overwritten; replace it")]
    NvmeNotZero {
        /// The controller.
        device: String,
        /// The namespace.
        nsid: u32,
    },
    /// Whoever wanted it erased has called that off.
    #[error("namespace {nsid} of {device} is not erased, which was called off: it may hold data")]
    NvmeCalledOff {
        /// The controller.
        device: String,
        /// The namespace.
        nsid: u32,
    },
    /// A controller is not what it was told to be.
    #[error("controller {device} took every command, and does not show the secondary controllers that it should")]
    NvmeNotProvisioned {
        /// The controller.
        device: String,
    },
    /// The host's driver does not bring a controller up.
    #[error("controller {controller} did not come back to the host's nvme driver; the kernel's log says why")]
    NvmeNotBack {
        /// The controller.
        controller: Bdf,
    },
}

/// What to do when somebody else has a disk.
fn in_use(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ResourceBusy => "; the host uses it: unmount it, or let go of what is built on it",
        _ => "",
    }
}
