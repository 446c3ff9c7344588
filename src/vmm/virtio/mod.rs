//! Virtio devices behind PCI (VIRTIO 1.2 §4.1, modern only): block, net, rng.
//!
//! ```text
//!   vCPU thread ─▶ VirtioFunction (transport: registers, status) ──Start/Stop──▶ Worker thread ─▶ Device
//!                        └─ CommonConfig (pure)                                   └─ Ring ─▶ Chain ─▶ request
//! ```
//! Key types: [`VirtioFunction`], [`Block`], [`Net`], [`Rng`]. `vmm/machine` constructs them and drives them through
//! `vmm/ports.rs`. All threads, rings and descriptors exist once the constructors have returned; later system calls are
//! epoll_pwait, read, write, readv, writev, getrandom, io_uring_enter, timerfd_settime, lseek, two ioctls of taps, and futex.
//!
//! Whatever a driver writes, the worst outcome is `DEVICE_NEEDS_RESET`, counted by [`VirtioFunction::faults`].

mod block;
mod bucket;
mod chain;
mod common;
mod device;
#[cfg(test)]
mod hostile;
mod limiter;
mod meter;
mod net;
mod queue;
mod rng;
mod signals;
#[cfg(test)]
mod testing;
mod transport;
mod worker;

pub use block::Block;
pub use device::{Active, Device, Fault, Identity, Next, Wake};
pub use net::{Net, TapControl};
pub use queue::{Ring, RingFault};
pub use rng::Rng;
pub use signals::Signals;
pub use transport::VirtioFunction;
