//! What the host has to give: memory, vCPUs, addresses, user ids. Key types: [`HostFacts`], [`AddressPool`],
//! [`UserPool`].
//!
//! `service` asks it before a VM is registered; nothing here knows about VMs.

mod addresses;
mod facts;
mod users;

pub use addresses::{AddressPool, Lease, Network, NetworkError, PoolExhausted};
pub use facts::HostFacts;
pub use users::{FIRST_USER, UserLease, UserPool, UsersExhausted};
