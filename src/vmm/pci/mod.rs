//! PCI as software: configuration space, capabilities, BARs, MSI-X, the root bus. Pure register logic, no KVM.
//!
//! Key types: [`PciBus`], [`ConfigSpace`], [`Capabilities`], [`Bars`], [`Msix`]. `vmm/machine` owns the bus and routes
//! ECAM exits to it; functions (`vmm/virtio`, passed-through devices) are built from the other parts and know nothing
//! of the bus.

mod bar;
mod caps;
mod config;
mod msix;
mod root;

pub use bar::{BarError, BarKind, Bars};
pub use caps::{Capabilities, NoRoom};
pub use config::{CONFIG_LEN, ConfigSpace, Identity};
pub use msix::{Msix, MsixLayout};
pub use root::{PciBus, SharedFunction, SlotTaken};
