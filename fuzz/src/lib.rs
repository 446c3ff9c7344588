//! What the targets share: a guest whose rings are made of a fuzzer's bytes. Key type: [`Guest`].
//!
//! A device lives as long as the fuzzer. Each input is one life of its driver: memory and rings are laid out, the device
//! is told `DRIVER_OK`, works on everything that is offered, and is reset. The reset is what every input must lead back to.

mod bytes;
mod guest;

pub use bytes::Bytes;
pub use guest::{Guest, PAGE, memory};
