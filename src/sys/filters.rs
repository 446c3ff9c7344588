//! System calls that a thread of another process may make, by its own filters, which the kernel gives back
//! (`PTRACE_SECCOMP_GET_FILTER`, ptrace(2)). Key type: [`Calls`]. Key function: [`read`].
//!
//! A filter is a program (linux/Documentation/userspace-api/seccomp_filter.rst), so it is asked: with each number of a call,
//! and with arguments of which nothing is known. Where both answers can come, it hangs on the arguments. The thread stands still
//! for as long as it takes to copy the programs, some microseconds.
#![allow(unsafe_code, reason = "ptrace(2)")]

use std::collections::BTreeSet;
use std::io;
use std::ptr;
use std::time::{Duration, Instant};

use libc::{c_long, c_uint, c_void, pid_t, sock_filter};
use syscalls::Sysno;

/// linux/ptrace.h.
const PTRACE_SECCOMP_GET_FILTER: c_uint = 0x420c;
/// linux/audit.h: x86-64, little-endian.
const ARCH: u32 = 0xc000_003e;
/// Numbers of calls that are tried: behind the last one that Linux has today.
const NUMBERS: u32 = 512;
/// Filters of one thread that are read, at most.
const MAX_FILTERS: usize = 32;
/// Longest program that the kernel takes (BPF_MAXINSNS, linux/bpf_common.h).
const MAX_LEN: usize = 4096;
/// Longest that all threads together may take to stand still: one that the kernel has put to sleep for a disk does not at once.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of a siginfo_t: its signal, an error and its code first (asm-generic/siginfo.h).
const SIGINFO_LEN: usize = 128;
const STEP: Duration = Duration::from_micros(200);

/// What a thread may call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Calls {
    /// With any arguments, by number.
    pub any: Vec<u32>,
    /// With some.
    pub some: Vec<u32>,
}

/// The name of a system call of x86-64, or its number.
pub fn name(number: u32) -> String {
    Sysno::new(number as usize).map_or_else(|| number.to_string(), |call| call.name().to_owned())
}

/// What these threads of a process may call, in the same order. Needs `CAP_SYS_ADMIN` and `CAP_SYS_PTRACE`, no filter of one's
/// own, and a kernel with `CONFIG_CHECKPOINT_RESTORE`; who traces one of them already keeps it. Blocks for at most a second,
/// however many they are.
pub fn read(threads: &[u32]) -> io::Result<Vec<io::Result<Calls>>> {
    let threads = threads.to_vec();
    // The tracer is a thread, and with its end the traced ones go on, even those that did not stand still yet.
    let tracer = std::thread::Builder::new().name("filters".into()).spawn(move || {
        let ends_at = Instant::now() + PATIENCE;
        threads.into_iter().map(|thread| Seized::new(thread)?.filters(ends_at)).collect::<Vec<_>>()
    })?;
    let filters = tracer.join().map_err(|_| io::Error::other("the tracer panicked"))?;
    Ok(filters.into_iter().map(|filters| calls(&filters?)).collect())
}

/// A thread that is traced, and stands still soon.
struct Seized(pid_t);

impl Seized {
    fn new(thread: u32) -> io::Result<Self> {
        let thread = pid_t::try_from(thread).map_err(|_| io::ErrorKind::InvalidInput)?;
        request(libc::PTRACE_SEIZE, thread, 0, ptr::null_mut())?;
        let seized = Self(thread);
        request(libc::PTRACE_INTERRUPT, thread, 0, ptr::null_mut())?;
        Ok(seized)
    }

    fn filters(&self, ends_at: Instant) -> io::Result<Vec<Vec<sock_filter>>> {
        let mut filters = Vec::new();
        while filters.len() < MAX_FILTERS {
            match self.filter(filters.len()) {
                Ok(filter) => filters.push(filter),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(filters),
                // It runs still. Nobody waits for it by wait(2), where another thread of ours could take its word away.
                Err(error)
                    if error.raw_os_error() == Some(libc::ESRCH) && !self.is_over() && Instant::now() < ends_at =>
                {
                    std::thread::sleep(STEP);
                }
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "more filters than any thread of ours has"))
    }

    /// The filter of this number, the last one that was added first; ENOENT behind the first one.
    fn filter(&self, number: usize) -> io::Result<Vec<sock_filter>> {
        let mut filter = vec![sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; MAX_LEN];
        let len = request(PTRACE_SECCOMP_GET_FILTER, self.0, number, filter.as_mut_ptr().cast())?;
        filter.truncate(usize::try_from(len).map_err(|_| io::ErrorKind::InvalidData)?);
        Ok(filter)
    }

    /// Whether the thread has ended: it is not let go of before its tracer ends, either.
    fn is_over(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
    }

    /// The signal that it was about to take when it stood still; 0 if it stands still because of [`new`](Self::new).
    fn signal(&self) -> usize {
        let mut info = [0_i32; SIGINFO_LEN / 4];
        let known = request(libc::PTRACE_GETSIGINFO, self.0, 0, info.as_mut_ptr().cast());
        let [signal, _, code, ..] = info;
        if known.is_err() || code >> 8 == libc::PTRACE_EVENT_STOP { 0 } else { usize::try_from(signal).unwrap_or(0) }
    }
}

impl Drop for Seized {
    fn drop(&mut self) {
        // Gone meanwhile, or not standing still: the end of this thread lets it go.
        let _ = request(libc::PTRACE_DETACH, self.0, 0, ptr::without_provenance_mut(self.signal()));
    }
}

/// ptrace(2); `data` is null, or room for what the request writes.
fn request(request: c_uint, thread: pid_t, address: usize, data: *mut c_void) -> io::Result<c_long> {
    // SAFETY: of the requests of this file two write memory, at `data`, for which their only callers have made room: that for a
    // filter at most as many instructions as the longest program has, and that for a signal one siginfo_t.
    let done = unsafe { libc::ptrace(request, thread, address, data) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

/// What passes all of these programs.
fn calls(filters: &[Vec<sock_filter>]) -> io::Result<Calls> {
    let mut calls = Calls::default();
    for number in 0..NUMBERS {
        let answers = filters.iter().map(|filter| answers(filter, number)).collect::<io::Result<Vec<_>>>()?;
        if answers.iter().all(|answers| answers.passes) {
            let kind = if answers.iter().any(|answers| answers.fails) { &mut calls.some } else { &mut calls.any };
            kind.push(number);
        }
    }
    Ok(calls)
}

/// What a program can come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Answers {
    passes: bool,
    fails: bool,
}

/// All that `program` can come to for calls of this number. Programs only go forward, so that this ends.
fn answers(program: &[sock_filter], number: u32) -> io::Result<Answers> {
    let unknown = || io::Error::new(io::ErrorKind::InvalidData, "a filter that this does not understand");
    let mut answers = Answers::default();
    // Where it may be, with what in its accumulator, if that is known.
    let (mut open, mut seen) = (vec![(0_usize, None::<u32>)], BTreeSet::new());
    while let Some((at, accumulator)) = open.pop() {
        if !seen.insert((at, accumulator)) {
            continue;
        }
        let sock_filter { code, jt, jf, k } = *program.get(at).ok_or_else(unknown)?;
        let behind = |offset: usize| at + 1 + offset;
        let (yes, no) = (behind(jt.into()), behind(jf.into()));
        let mut jump = |holds: fn(u32, u32) -> bool| match accumulator {
            Some(value) => open.push((if holds(value, k) { yes } else { no }, accumulator)),
            None => open.extend([(yes, None), (no, None)]),
        };
        match u32::from(code) {
            code::LOAD => open.push((
                behind(0),
                match k {
                    0 => Some(number),
                    4 => Some(ARCH),
                    _ => None,
                },
            )),
            code::AND => open.push((behind(0), accumulator.map(|value| value & k))),
            code::JUMP => open.push((behind(k as usize), accumulator)),
            code::EQUAL => jump(|value, k| value == k),
            code::GREATER => jump(|value, k| value > k),
            code::NOT_LESS => jump(|value, k| value >= k),
            code::HAS_BITS => jump(|value, k| value & k != 0),
            code::RETURN => match k & libc::SECCOMP_RET_ACTION_FULL {
                libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG => answers.passes = true,
                _ => answers.fails = true,
            },
            _ => return Err(unknown()),
        }
    }
    Ok(answers)
}

/// Instructions that filters of system calls are made of (linux/bpf_common.h).
mod code {
    pub(super) const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    pub(super) const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
    pub(super) const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
    pub(super) const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    pub(super) const GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
    pub(super) const NOT_LESS: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    pub(super) const HAS_BITS: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    pub(super) const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
        TargetArch,
    };

    fn filter(rules: Vec<(i64, Vec<SeccompRule>)>) -> Vec<sock_filter> {
        let rules = rules.into_iter().collect();
        let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64);
        let program = BpfProgram::try_from(filter.unwrap()).unwrap();
        program.iter().map(|one| sock_filter { code: one.code, jt: one.jt, jf: one.jf, k: one.k }).collect()
    }

    fn if_argument(number: u8, operator: SeccompCmpOp, value: u64) -> SeccompRule {
        let condition = SeccompCondition::new(number, SeccompCmpArgLen::Dword, operator, value).unwrap();
        SeccompRule::new(vec![condition]).unwrap()
    }

    #[test]
    fn tells_what_always_passes_from_what_hangs_on_arguments() {
        let ioctl = vec![if_argument(1, SeccompCmpOp::Eq, 7), if_argument(1, SeccompCmpOp::Eq, 9)];
        let mmap = vec![if_argument(2, SeccompCmpOp::MaskedEq(4), 0)];
        let first = filter(vec![(libc::SYS_read, vec![]), (libc::SYS_ioctl, ioctl), (libc::SYS_mmap, mmap)]);
        let found = calls(std::slice::from_ref(&first)).unwrap();
        assert_eq!(found.any.iter().map(|call| name(*call)).collect::<Vec<_>>(), ["read"]);
        assert_eq!(found.some.iter().map(|call| name(*call)).collect::<Vec<_>>(), ["mmap", "ioctl"]);
        // A second one narrows.
        let second = filter(vec![(libc::SYS_ioctl, vec![]), (libc::SYS_write, vec![])]);
        let found = calls(&[first, second]).unwrap();
        assert_eq!((found.any.len(), found.some), (0, vec![libc::SYS_ioctl as u32]));
        // Without any, all.
        assert_eq!(calls(&[]).unwrap().any.len(), NUMBERS as usize);
        assert_eq!(name(100_000), "100000");
    }

    #[test]
    fn a_thread_of_the_own_process_is_nobodys_to_look_at() {
        let [own] = read(&[std::process::id()]).unwrap().try_into().unwrap();
        assert_eq!(own.unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    proptest! {
        #[test]
        fn any_program_has_an_answer_or_none(
            program in proptest::collection::vec((any::<u16>(), any::<u8>(), any::<u8>(), any::<u32>()), 0..40),
            number in 0..NUMBERS,
        ) {
            let program: Vec<_> =
                program.into_iter().map(|(code, jt, jf, k)| sock_filter { code, jt, jf, k }).collect();
            let _ = answers(&program, number);
        }
    }
}
