//! virtio-console: one port, in place of a serial line (VIRTIO 1.2 §5.3).
//!
//! ```text
//!   control thread ─▶ Keyboard ──eventfd──▶ worker ─▶ queue 0 (receive) ─▶ guest
//!                                           worker ◀─ queue 1 (transmit) ◀─ guest
//!   readers of the console ◀── output (`Write`: the console's ring)
//! ```
//! The configuration tells the size of the window, if whoever shows the console has said it.
//!
//! Key types: [`Console`], [`Keyboard`]. What is typed waits for the guest in the keyboard, which is bounded; output never
//! waits. Both outlast a reset by the driver: what was typed before is for the next one.

mod device;
mod keyboard;

#[cfg(test)]
mod tests;

pub use device::Console;
pub use keyboard::Keyboard;
