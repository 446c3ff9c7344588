//! What the host has to give: memory, vCPUs, addresses. Key types: [`HostFacts`], [`AddressPool`].
//!
//! `service` asks it before a VM is registered; nothing here knows about VMs.

mod addresses;
mod facts;

pub use addresses::{AddressPool, Lease, Network, NetworkError, PoolExhausted};
pub use facts::HostFacts;
