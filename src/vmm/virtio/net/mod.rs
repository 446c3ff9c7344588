//! virtio-net on a tap (VIRTIO 1.3 §5.1): offloads, merged receive buffers, several queue pairs. Key types: [`Net`], and
//! [`KernelNet`], whose frames the host's kernel moves.
//!
//! ```text
//!   tap queue n ──readv──▶ [header][frame ─▶ receive chains of pair n]
//!   transmit chain of pair n ─▶ [header, checked][frame] ──writev──▶ tap queue n
//!   control chain ─▶ control::parse (pure) ─▶ tap queues attached and detached
//! ```
//! Headers pass between guest and host only as far as offloads were negotiated; what a guest wrote into one is copied and
//! checked first ([`offload`]). Taps are watched edge-triggered: an empty receive ring or a full tap costs nothing until a
//! buffer, a frame or room appears. One thread serves all pairs. All this is [`Net`]'s; in [`KernelNet`] the kernel does it.

mod control;
mod device;
mod front;
mod kernel;
mod offload;
mod pair;
#[cfg(test)]
mod tests;

pub use device::{Net, TapControl};
pub use kernel::KernelNet;
