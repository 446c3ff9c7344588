//! Where memory comes from on a host with several nodes (numa(7)). Key function: [`bind`].

#![allow(unsafe_code, reason = "one system call that rustix lacks")]

use std::io;

/// Longest node mask that is used, in words of 64 nodes.
const WORDS: usize = 16;
/// Nodes are numbered below this.
pub const MAX_NODES: u32 = 64 * WORDS as u32;

/// Has all memory that this thread, and every thread that it makes later, first touches come from `node` alone
/// (set_mempolicy(2), `MPOL_BIND`). An error says that the host has no such node, or none with memory.
pub fn bind(node: u32) -> io::Result<()> {
    let mut mask = [0u64; WORDS];
    let word = mask.get_mut(node as usize / 64).ok_or(io::ErrorKind::InvalidInput)?;
    *word = 1 << (node % 64);
    // The kernel takes one bit less than it is told.
    let bits = u64::from(MAX_NODES) + 1;
    // SAFETY: the mask has that many bits, less the one that is not looked at, and is only read.
    let answer = unsafe { libc::syscall(libc::SYS_set_mempolicy, libc::MPOL_BIND, mask.as_ptr(), bits) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_absent_is_refused() {
        // In a thread of its own, which the policy ends with.
        let told = std::thread::spawn(|| (bind(0), bind(MAX_NODES - 1), bind(MAX_NODES))).join().unwrap();
        assert!(told.1.is_err() && told.2.is_err(), "{told:?}");
        if std::path::Path::new("/sys/devices/system/node/node0").exists() {
            assert!(told.0.is_ok(), "{told:?}");
        }
    }
}
