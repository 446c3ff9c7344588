//! virtio-blk on a raw image (VIRTIO 1.2 §5.2). Key type: [`Block`].
//!
//! ```text
//!   Rings ─▶ Chain ─▶ request::parse (pure) ─▶ Engine (io_uring, bounded in flight) ─▶ status byte ─▶ Ring
//! ```
//! One thread serves all queues: it takes what several vCPUs have queued in one io_uring_enter(2).

mod device;
mod engine;
mod image;
mod request;
#[cfg(test)]
mod tests;

pub use device::Block;
pub(super) use engine::DEPTH;
