//! The console's other side, whether a serial line or a virtio device: a ring that keeps the past in a file, and the connections that read and type.
//!
//! Key types: [`Ring`] (shared with the threads that write it), [`Writer`], [`Server`] (control thread).

mod ring;
mod server;

pub use ring::{Readers, Ring, Writer};
pub use server::{Server, Token};
