//! What the host has to give: memory, vCPUs, addresses, network cards. Key types: [`HostFacts`], [`AddressPool`],
//! [`Devices`].
//!
//! `service` asks it before a VM is registered, and before one is given a device; nothing here knows about VMs.

mod addresses;
mod devices;
mod facts;

pub use addresses::{AddressPool, Lease, Network, NetworkError, PoolExhausted};
#[cfg(test)]
pub use devices::samples as device_samples;
pub use devices::{Devices, PhysicalFunction, VFIO_DRIVER, VirtualFunction};
pub use facts::HostFacts;
