//! Has signals that end a process end it with a code of its own. Key functions: [`end_with_codes`], [`of_signal`].
//!
//! The first process of a pid namespace is spared every signal that it has no handler for (pid_namespaces(7)), its own
//! included: abort(3) there ends in an illegal access, and a limit on processor time in nothing until the hard one kills.

#![allow(unsafe_code, reason = "_exit(2)")]

use std::io;

use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::register_signal_handler;

/// As shells have it.
const SIGNALED: i32 = 128;

/// The code with which a process ends that one of these signals ends after [`end_with_codes`].
pub const fn of_signal(signal: i32) -> i32 {
    SIGNALED + signal
}

/// Ends this process at once, with [`of_signal`] as its code, when one of `signals` comes.
pub fn end_with_codes(signals: &[i32]) -> io::Result<()> {
    extern "C" fn end(signal: c_int, _: *mut siginfo_t, _: *mut c_void) {
        // SAFETY: takes a number and does not return; it runs nothing else of this process, and may be called in a handler.
        unsafe { libc::_exit(of_signal(signal)) }
    }
    for signal in signals {
        register_signal_handler(*signal, end).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    }
    Ok(())
}
