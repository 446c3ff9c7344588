//! virtio-vsock: streams between the guest and programs of the host, which come through a Unix socket (VIRTIO 1.3 §5.10).
//! Key type: [`Vsock`].
//!
//! ```text
//!   program ── "CONNECT 5000\n" ─▶ vsock.sock ── REQUEST ─▶ guest listens on 5000      "OK <its own port>\n", then bytes
//!   program ── "ACCEPT 5000\n" ──▶ vsock.sock, waits ◀── REQUEST ── guest connects     "OK 5000\n", "FROM <port>\n", then bytes
//! ```
//! Parts: `packet` (the wire format), `greeting` (the program's first line; both pure), `credit` (who may send how much,
//! pure), `connection` (one program's socket and what the guest is to be told), `table` (all of them), `device` (rings).
//!
//! A vmm may not connect to anything, so a program that serves the guest connects first and waits: each waiting
//! connection is taken by one of the guest's. Nothing is allocated at the guest's wish but a buffer of [`WINDOW`] bytes for
//! each connection that a program made, and at most [`MAX_VSOCK_CONNECTIONS`](crate::model::MAX_VSOCK_CONNECTIONS) are taken.

mod connection;
mod credit;
mod device;
mod greeting;
mod packet;
mod table;
#[cfg(test)]
mod tests;

pub use device::Vsock;

/// What the guest may send on one connection before its program has taken it, in bytes.
const WINDOW: u32 = 32 << 10;
