//! virtio-blk on a raw image (VIRTIO 1.2 §5.2). Key type: [`Block`].
//!
//! ```text
//!   Ring ─▶ Chain ─▶ request::parse (pure) ─▶ Engine (io_uring, bounded in flight) ─▶ status byte ─▶ Ring
//! ```

mod device;
mod engine;
mod request;
#[cfg(test)]
mod tests;

pub use device::Block;
