//! Virtio devices behind PCI (VIRTIO 1.2 §4.1, modern only): balloon, block, console, net, rng, vsock.
//!
//! ```text
//!   vCPU thread ─▶ VirtioFunction (transport: registers, status) ──Start/Stop──▶ Worker thread ─▶ Device
//!                        └─ CommonConfig (pure)                                   └─ Ring ─▶ Chain ─▶ request
//! ```
//! Key types: [`VirtioFunction`], [`Balloon`], [`Block`], [`Console`], [`Net`], [`KernelNet`], [`Rng`], [`Vsock`]. `vmm/machine` constructs them and drives
//! them through `vmm/ports.rs`. A device comes before or while the VM runs, and may leave: its thread, ring and timers go to the next
//! one ([`Workers`], [`Stock`]). Those exist before system calls are restricted; a device's own later are
//! epoll_pwait, read, write, readv, writev, getrandom, madvise, io_uring_enter, timerfd_settime, lseek, ioctls of taps and of vhost-net, and futex;
//! where there are sockets, accept4, epoll_ctl, shutdown and setsockopt instead of those of rings, taps and entropy.
//!
//! Whatever a driver writes, the worst outcome is `DEVICE_NEEDS_RESET`, counted by [`VirtioFunction::faults`].

mod balloon;
mod block;
mod bucket;
mod chain;
mod common;
mod console;
mod device;
#[cfg(test)]
mod hostile;
mod limiter;
mod meter;
mod net;
mod queue;
mod rng;
mod signals;
mod stock;
#[cfg(test)]
mod testing;
mod transport;
mod vsock;
mod worker;
mod workers;

pub use balloon::Balloon;
pub use block::Block;
pub use console::{Console, Keyboard};
pub use device::{Active, Device, Fault, Identity, Next, Wake};
pub use net::{KernelNet, Net, TapControl};
pub use queue::{Ring, RingFault};
pub use rng::Rng;
pub use signals::Signals;
pub use stock::Stock;
pub use transport::VirtioFunction;
pub use vsock::Vsock;
pub use workers::Workers;
