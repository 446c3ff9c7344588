//! Messages between daemon and vmm. Encode and decode only: no sockets here (see `sys::packet`).
//!
//! Key types: [`ToVmm`], [`FromVmm`], [`Role`]. `daemon/supervisor` and `vmm/control` speak it.

pub mod console_ring;
pub mod counters;
mod launch;
mod message;
pub mod policy;

pub use launch::{decode_launch, encode_launch};
pub use message::{FromVmm, Role, ToVmm, WireError, decode_ended, encode_ended};

/// Version of this contract; both ends must say the same.
pub const VERSION: u32 = 1;

/// Longest packet, in bytes; a longer one is refused by both ends.
pub const MAX_PACKET_LEN: usize = 64 << 10;

/// Most descriptors in one packet (Linux `SCM_MAX_FD` is 253).
pub const MAX_DESCRIPTORS: usize = 64;

#[allow(missing_docs, clippy::pedantic, reason = "generated")]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/ostler.wire.v1.rs"));
}
