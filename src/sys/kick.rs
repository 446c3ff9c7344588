//! Interrupts a thread of this process in whatever system call it waits (tgkill(2)). Key types: [`ThreadId`].
//!
//! `vmm/machine` brings vCPU threads out of `KVM_RUN` with it. The handler does nothing: that a signal came at all is
//! what ends the call with `EINTR`.

#![allow(unsafe_code, reason = "one system call that rustix lacks")]

use std::io;

use vmm_sys_util::signal::register_signal_handler;

/// The signal. A standard one: the kernel keeps one pending at most, and always takes it.
pub const SIGNAL: i32 = libc::SIGUSR1;

/// A thread of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadId {
    process: i32,
    thread: i32,
}

impl ThreadId {
    /// The calling thread.
    pub fn current() -> Self {
        let process = rustix::process::getpid().as_raw_nonzero().get();
        Self { process, thread: rustix::thread::gettid().as_raw_nonzero().get() }
    }

    /// Ends the system call that it waits in, or its next one if it is about to begin it *and* a signal that is pending
    /// ends that; a thread that is gone is fine.
    pub fn kick(self) -> io::Result<()> {
        // SAFETY: takes three numbers and no pointer.
        let answer = unsafe { libc::syscall(libc::SYS_tgkill, self.process, self.thread, SIGNAL) };
        let error = io::Error::last_os_error();
        if answer == 0 || error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
    }
}

/// Makes the signal harmless in this process. Before the first [`ThreadId::kick`].
pub fn prepare() -> io::Result<()> {
    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGNAL, ignore).map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_thread_that_waits_in_the_kernel_is_woken() {
        prepare().unwrap();
        let (sender, ids) = channel();
        let waiter = std::thread::spawn(move || {
            sender.send(ThreadId::current()).unwrap();
            // Not restarted after a signal, unlike reads.
            rustix::event::poll(&mut [], None)
        });
        let id = ids.recv().unwrap();
        while !waiter.is_finished() {
            id.kick().unwrap();
            std::thread::yield_now();
        }
        assert_eq!(waiter.join().unwrap(), Err(rustix::io::Errno::INTR));
        assert!(id.kick().is_ok(), "a thread that is gone");
    }
}
