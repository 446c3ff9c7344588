//! The kernel's server of virtio-net queues (linux/vhost.h, vhost-net). Key functions: [`open`], called by
//! `daemon/supervisor`; [`set_backend`], called by the vmm's NICs.
//!
//! Everything else is asked of a server through the crate `vhost`, whose own type for this one opens the device by path:
//! a vmm opens nothing.
#![allow(unsafe_code, reason = "a network ioctl that the crate has for servers of its own only")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use vhost::vhost_kern::vhost_binding::{VHOST_NET_SET_BACKEND, vhost_vring_file};

const PATH: &str = "/dev/vhost-net";

/// Whether the host has it, as far as can be told without opening it.
pub fn is_there() -> bool {
    Path::new(PATH).exists()
}

/// What to tell whoever wants it in vain.
pub fn absence(cause: &str) -> String {
    format!("cannot open {PATH}: {cause}; have the host load it with `modprobe vhost_net`, or leave vhost out")
}

/// A new server: for one pair of queues, of whoever first says that it is the owner.
pub fn open() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(PATH)
}

/// Has `server` move frames between its queue (0 receives, 1 transmits), whose ring it knows, and a queue of a tap; or
/// nowhere: then nothing of the queue is in flight any more when this returns.
pub fn set_backend(server: BorrowedFd<'_>, queue: u32, tap: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let file = vhost_vring_file { index: queue, fd: tap.map_or(-1, |tap| tap.as_raw_fd()) };
    // SAFETY: VHOST_NET_SET_BACKEND reads one `vhost_vring_file`, which `file` is, alive for the call.
    let result = unsafe { libc::ioctl(server.as_raw_fd(), VHOST_NET_SET_BACKEND() as _, &raw const file) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_it_is_told_what_to_load() {
        let told = absence("No such device");
        assert!(told.contains(PATH) && told.contains("modprobe vhost_net"), "{told}");
    }
}
