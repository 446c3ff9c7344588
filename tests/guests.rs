//! What is tested with guests, which need the lab or a KVM that can boot Linux (feature `lab`).
//!
//! One program for all. `cargo xtask test` runs each module in a lab of its own, in the order that `Cargo.toml` gives.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

mod bad_boot;
mod balloon;
mod block_io;
mod crash_devices;
mod crash_runs;
mod create_vm;
mod doctor_guests;
mod ends;
mod hostile_guest;
mod hotplug;
mod hvc;
mod jail;
mod lifecycle;
mod memory;
mod net_io;
mod no_iommu;
mod nvme;
mod operations_guests;
mod pause;
mod placement_guests;
mod python_guests;
mod restart;
mod sequences;
mod stats;
mod vf_attach;
mod vfio;
mod vsock;
