//! What the processes that read or run a plugin's code take from themselves. Key functions: [`leave`], [`limit`],
//! [`filter`].
//!
//! The compiler and the policy host are processes of one kind: they get everything over sockets, so that nothing of the
//! host is of use to them.

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

use crate::sys::namespaces;

/// Number of the last capability that may exist (capabilities(7): 41 in Linux 6).
const LAST_CAPABILITY: u32 = 40;

/// Calls that every such process may make: memory, locks, time, its sockets and an end.
const BASE: [i64; 24] = [
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_write,
    libc::SYS_sendto,
    libc::SYS_close,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Leaves the host's files, network and users for none, and becomes `user`. For a process with one thread.
pub(super) fn leave(user: u32) -> io::Result<()> {
    namespaces::leave_host()?;
    namespaces::empty_root()?;
    namespaces::drop_bounding_set(LAST_CAPABILITY)?;
    namespaces::become_user(user)?;
    namespaces::drop_capabilities()?;
    namespaces::hide_memory()
}

/// Limits a resource, for good.
pub(super) fn limit(resource: Resource, value: u64) -> io::Result<()> {
    Ok(setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })?)
}

/// Allows the calls of every such process, and `more`; everything else is `refused`.
pub(super) fn filter(more: Vec<(i64, Vec<SeccompRule>)>, refused: SeccompAction) -> io::Result<BpfProgram> {
    let rules = BASE.map(|number| (number, Vec::new())).into_iter().chain(more).collect();
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, TargetArch::x86_64);
    filter.and_then(BpfProgram::try_from).map_err(io::Error::other)
}
