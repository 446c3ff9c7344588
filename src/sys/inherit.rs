//! Descriptors that the parent process left open (execve(2)).

#![allow(unsafe_code, reason = "a descriptor number becomes an owner")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Takes the descriptor `number`, once per process; `None` if it is not open or was taken already.
///
/// `number` must be one that the parent passes by contract, such as 3, and that nothing in this process opened itself:
/// call it first thing in `main`.
pub fn descriptor(number: RawFd) -> Option<OwnedFd> {
    // Pairs with itself: whoever swaps first owns the descriptor.
    static IS_TAKEN: AtomicBool = AtomicBool::new(false);
    // SAFETY: fcntl(F_GETFD) on any number is harmless and tells whether it is open.
    let is_open = unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
    if !is_open || IS_TAKEN.swap(true, Ordering::AcqRel) {
        return None;
    }
    // SAFETY: the number is open, was passed by the parent for this process to own, and is taken only once.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC).ok()?;
    Some(descriptor)
}
