//! How one run of a VM ended. Key type: [`VmExit`]. Written by the vmm, read by the daemon.

use std::fmt;

/// The end of a vmm process, as it says it itself (or as the daemon infers it when it could not).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmExit {
    /// The guest entered ACPI S5.
    PowerOff,
    /// The guest asked for a reset (ACPI reset register).
    Reset,
    /// A vCPU triple-faulted (`KVM_EXIT_SHUTDOWN`).
    TripleFault,
    /// The guest's kernel panicked, and said so (pvpanic).
    Panicked,
    /// The daemon told the vmm to end at once.
    Killed,
    /// The launch was refused: a bad kernel, a missing descriptor, a device that could not be built.
    LaunchFailed(String),
    /// The host or the vmm is at fault.
    HostError(String),
    /// The process vanished without a word: killed from outside, or crashed.
    Vanished(String),
}

/// Exit status of a process that failed to become a vmm: its jail could not be built.
pub const JAIL_FAILED: u8 = 22;

impl VmExit {
    /// The vmm's process exit status for this end. `Vanished` has none: the process did not choose it.
    pub fn code(&self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Reset => 10,
            Self::TripleFault => 11,
            Self::Killed => 12,
            Self::Panicked => 13,
            Self::LaunchFailed(_) => 20,
            Self::HostError(_) | Self::Vanished(_) => 21,
        }
    }
}

impl fmt::Display for VmExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("guest powered off"),
            Self::Reset => f.write_str("guest asked for a reset"),
            Self::TripleFault => f.write_str("guest triple-faulted"),
            Self::Panicked => f.write_str("guest kernel panicked"),
            Self::Killed => f.write_str("ended by force"),
            Self::LaunchFailed(cause) => write!(f, "launch failed: {cause}"),
            Self::HostError(cause) => write!(f, "host error: {cause}"),
            Self::Vanished(cause) => write!(f, "vmm process vanished: {cause}"),
        }
    }
}
