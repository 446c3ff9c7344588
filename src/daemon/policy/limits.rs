//! Every limit of the policy host. Key type: [`Limits`], what an operator may tune; the constants are part of the
//! contract in `wit/` and not tunable.

use std::num::NonZeroUsize;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Longest message of a denial, line of a log, or text of an error, in bytes.
pub(super) const MAX_MESSAGE_BYTES: usize = 512;
/// Longest stable code of a denial, in bytes.
pub(super) const MAX_CODE_BYTES: usize = 64;
/// Log lines that one call may keep.
pub(super) const MAX_LOG_LINES: usize = 16;
/// Functions that a failed call's backtrace names, the innermost ones.
pub(super) const MAX_FRAMES: NonZeroUsize = NonZeroUsize::new(8).unwrap();
/// Longest text of one of them, in bytes.
pub(super) const MAX_FRAME_BYTES: usize = 160;
/// Imports that one call may call: their work is the host's, which fuel does not count.
pub(super) const MAX_HOST_CALLS: u32 = 1024;
/// Patches in one answer.
pub(super) const MAX_PATCHES: usize = 8;
/// Reasons that the rejections of one ranking may name.
pub(super) const MAX_REASONS: usize = 16;
/// Settings of a VF in one answer.
pub(super) const MAX_VF_SETTINGS: usize = 8;
/// Longest version text in a manifest, in bytes.
pub(super) const MAX_VERSION_BYTES: usize = 64;
/// Longest summary in a manifest, in bytes.
pub(super) const MAX_SUMMARY_BYTES: usize = 256;
/// Settings of one plugin.
pub(super) const MAX_SETTINGS: usize = 64;
/// Keys and values of one plugin's settings together, in bytes: they stand in the record of each decision.
pub(super) const MAX_SETTINGS_BYTES: usize = 16 << 10;
/// Longest key of a setting, in bytes.
pub(super) const MAX_SETTING_KEY_BYTES: usize = 64;
/// Longest value of a setting, in bytes.
pub(super) const MAX_SETTING_VALUE_BYTES: usize = 4096;

/// What plugins may use. The default has room for an engine of JavaScript or an interpreter of Python in the component;
/// plugins compiled from Rust or C need a hundredth of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Linear memory of an instance, in bytes, a multiple of 64 KiB. Default 16 MiB: Python begins
    /// with 12.
    pub memory_bytes: usize,
    /// Most processor time of one call, give or take 10 ms. Default 50 ms.
    pub deadline: Duration,
    /// Most work in one call, in units of about one WebAssembly instruction. Unlike the deadline it does not depend on
    /// the machine, so that the same plugin fails at the same place everywhere. Default 20,000,000 (a few milliseconds).
    pub fuel: u64,
    /// Bytes that a plugin may hand to the host in one answer or one call of an import. Default 256 KiB.
    pub host_call_bytes: usize,
    /// Size of a component, in bytes. Default 24 MiB: one in Python has 18.
    pub component_bytes: usize,
    /// Components compiled at the same time; further loads wait. Default 1.
    pub compilers: usize,
    /// Address space of a process that compiles, in bytes; what is there before it begins is some 450 MiB of it. Default
    /// 2 GiB: a component in Python takes 0.9.
    pub compiler_bytes: u64,
    /// Processor time of one, in seconds. Default 60: a component with an engine of JavaScript takes some sixteen.
    pub compiler_seconds: u64,
    /// Decisions of one tenant that may wait for the executor; one more is denied at once. Default 64.
    pub queue_depth: usize,
    /// Decisions of all tenants that may wait. Default 1024.
    pub queue_whole: usize,
    /// Longest that a decision may take, waiting included. Default 2 s.
    pub patience: Duration,
    /// Longest that a load waits for its turn. Default 90 s: a compiler's longest, where it has a processor of its own.
    pub load_patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 16 << 20,
            deadline: Duration::from_millis(50),
            fuel: 20_000_000,
            host_call_bytes: 256 << 10,
            component_bytes: 24 << 20,
            compilers: 1,
            compiler_bytes: 2 << 30,
            compiler_seconds: 60,
            queue_depth: 64,
            queue_whole: 1024,
            patience: Duration::from_secs(2),
            load_patience: Duration::from_secs(90),
        }
    }
}

#[cfg(test)]
impl Limits {
    /// The default for tests of what plugins do: fuel and memory end them as ever, and time does not: a machine that is busy
    /// with other tests takes longer to answer than anybody waits for it, and emulated ones longer than a plugin has.
    pub fn unhurried() -> Self {
        let long = Duration::from_secs(60);
        Self { deadline: long, patience: long, ..Self::default() }
    }
}
