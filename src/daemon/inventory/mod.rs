//! What the host has to give: memory, vCPUs, addresses, user ids, network cards, NVMe controllers. Key types:
//! [`HostFacts`], [`AddressPool`], [`UserPool`], [`Devices`], [`NvmeControllers`].
//!
//! `service` asks it before a VM is registered, and before one is given a device; nothing here knows about VMs.

mod addresses;
mod devices;
mod facts;
mod nodes;
mod nvme;
mod users;

pub use addresses::{AddressPool, Lease, Network, NetworkError, PoolExhausted};
#[cfg(test)]
pub use devices::GroupMember;
#[cfg(test)]
pub use devices::samples as device_samples;
pub use devices::{Devices, PhysicalFunction, VFIO_DRIVER, VirtualFunction};
pub use facts::{HostFacts, check_nic};
#[cfg(test)]
pub use nodes::samples as node_samples;
pub use nodes::{Node, Nodes};
#[cfg(test)]
pub use nvme::samples as nvme_samples;
pub use nvme::{Namespace, NvmeController, NvmeControllers, NvmeFacts, Secondary};
pub use users::{FIRST_USER, USERS, UserLease, UserPool, UsersExhausted};
