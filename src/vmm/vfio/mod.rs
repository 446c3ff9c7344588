//! PCI functions of the host, passed through to the guest by VFIO. Key types: [`VfioFunction`], [`AttachError`], [`Window`].
//!
//! ```text
//!   configuration   emulated from what the device said once │ bus mastering reaches the device, nothing else does
//!   BAR pages       the guest's own, without an exit        │ but those of the MSI-X table: trapped, forwarded
//!   interrupts      device ─▶ eventfd ─▶ irqfd ─▶ guest     │ masks stay here (`pci/msix`)
//!   DMA             all guest memory, at the guest's addresses, pinned
//! ```
//! `config` and `bars` are pure; `function` joins them with the device. Both descriptors come with the launch: nothing is
//! opened here. A device's DMA ends when its bus mastering does ([`Effect::Reset`](super::ports::Effect)), and for good
//! when the process ends: the kernel resets the function when the last descriptor is closed.

mod bars;
mod config;
mod function;

pub use function::{AttachError, VfioFunction, Window};
