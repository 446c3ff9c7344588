//! What the host has to give: memory, vCPUs, addresses, user ids, network cards. Key types: [`HostFacts`],
//! [`AddressPool`], [`UserPool`], [`Devices`].
//!
//! `service` asks it before a VM is registered, and before one is given a device; nothing here knows about VMs.

mod addresses;
mod devices;
mod facts;
mod users;

pub use addresses::{AddressPool, Lease, Network, NetworkError, PoolExhausted};
#[cfg(test)]
pub use devices::samples as device_samples;
pub use devices::{Devices, PhysicalFunction, VFIO_DRIVER, VirtualFunction};
pub use facts::HostFacts;
pub use users::{FIRST_USER, UserLease, UserPool, UsersExhausted};
