//! What the host has to give: memory, vCPUs, addresses, user ids, network cards, NVMe controllers. Key types:
//! [`HostFacts`], [`AddressPool`], [`UserPool`], [`Devices`], [`NvmeControllers`].
//!
//! `service` asks it before a VM is registered, and before one is given a device; nothing here knows about VMs.

mod addresses;
mod config_space;
mod devices;
mod facts;
mod nodes;
mod nvme;
mod users;

pub use addresses::{AddressPool, Lease, Network, NetworkError, PoolExhausted};
pub use config_space::Acs;
#[cfg(test)]
pub use devices::samples as device_samples;
pub use devices::{Bridge, Devices, GroupMember, PhysicalFunction, VFIO_DRIVER, VirtualFunction};
pub use facts::{HostFacts, check_nic};
#[cfg(test)]
pub use nodes::samples as node_samples;
pub use nodes::{Node, Nodes};
#[cfg(test)]
pub use nvme::samples as nvme_samples;
pub use nvme::{Namespace, NvmeController, NvmeControllers, NvmeFacts, Secondary};
pub use users::{FIRST_USER, USERS, UserLease, UserPool, UsersExhausted};
