//! Lines for the operator, written to the daemon's log beside the decision. At most 16 in one call, of 512 bytes each.

#[cfg(target_arch = "wasm32")]
use crate::host::base::ostler::policy::log::{Level, emit};

/// Details.
pub fn debug(line: &str) {
    #[cfg(target_arch = "wasm32")]
    emit(Level::Debug, line);
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("debug: {line}");
}

/// What is usual.
pub fn info(line: &str) {
    #[cfg(target_arch = "wasm32")]
    emit(Level::Info, line);
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("info: {line}");
}

/// What somebody should look at.
pub fn warn(line: &str) {
    #[cfg(target_arch = "wasm32")]
    emit(Level::Warn, line);
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("warn: {line}");
}
