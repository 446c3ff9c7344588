//! Devices of the host that are given to VMs. Key function: [`open`].
//!
//! `vfio` opens what the vmm may not open itself. Nothing here knows of VMs, leases or policy.

mod vfio;

pub use vfio::{OpenError, Opened, open};
