//! Starts a process that outlives its parent and inherits exactly one descriptor. Called by `daemon/supervisor`.
#![allow(unsafe_code, reason = "clone3(2), and the few calls between it and exec")]

use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags};
use rustix::pipe::PipeFlags;

use super::process::Process;

/// The number under which the child finds its descriptor.
pub const INHERITED_FD: i32 = 3;

/// Flags of clone3(2) above those of clone(2) (linux/sched.h).
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// What a child is set apart by from its first instruction on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Isolation<'a> {
    /// The cgroup it is born into (cgroup v2, a descriptor of its directory); else its parent's.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Whether it is the first process of a pid namespace of its own.
    pub has_own_pids: bool,
}

/// Runs `program` with `args` and `arg0` as its own name.
///
/// The child has a session of its own (no terminal, no signal of ours reaches it), an empty environment, `/` as its
/// directory, `/dev/null` as input, `log` as output and error, `inherited` as descriptor 3, and nothing else.
pub fn detached(
    program: &Path,
    arg0: &str,
    args: &[&OsStr],
    inherited: BorrowedFd<'_>,
    log: File,
) -> io::Result<Process> {
    isolated(program, arg0, args, inherited, log, Isolation::default())
}

/// The same, set apart by `isolation`.
pub fn isolated(
    program: &Path,
    arg0: &str,
    args: &[&OsStr],
    inherited: BorrowedFd<'_>,
    log: File,
    isolation: Isolation<'_>,
) -> io::Result<Process> {
    reserve_inherited_fd()?;
    let null = File::open("/dev/null")?;
    let (broken, report) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let words = std::iter::once(OsStr::new(arg0)).chain(args.iter().copied());
    let words = words.map(|word| CString::new(word.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    let mut argv: Vec<*const c_char> = words.iter().map(|word| word.as_ptr()).collect();
    argv.push(std::ptr::null());
    let program = CString::new(program.as_os_str().as_bytes())?;
    let child = Child {
        program: &program,
        argv: &argv,
        null: null.as_raw_fd(),
        log: log.as_raw_fd(),
        inherited: inherited.as_raw_fd(),
    };
    let (pid, pidfd) = match clone_process(isolation)? {
        Cloned::Child => child.run(report.as_raw_fd()),
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    let process = Process::from_child(pidfd, pid)?;
    drop(report);
    let mut errno = [0; 4];
    match File::from(broken).read_exact(&mut errno) {
        // The pipe was closed by the exec.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(process),
        Err(error) => Err(error),
        Ok(()) => {
            rustix::event::poll(&mut [PollFd::new(&process, PollFlags::IN)], None)?;
            process.try_reap()?;
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
        }
    }
}

/// On which side of the clone we are.
enum Cloned {
    Child,
    Parent { pid: u32, pidfd: OwnedFd },
}

/// clone3(2), as fork(2) does: the child has a copy of everything, and only the calling thread.
fn clone_process(isolation: Isolation<'_>) -> io::Result<Cloned> {
    let mut pidfd: c_int = -1;
    let mut flags = libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    if isolation.has_own_pids {
        flags |= libc::CLONE_NEWPID as u64;
    }
    if isolation.cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    let arguments = libc::clone_args {
        flags,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        // Not negative: it is open.
        cgroup: isolation.cgroup.map_or(0, |cgroup| cgroup.as_raw_fd() as u64),
    };
    // SAFETY: `arguments` is a clone_args of the length that is passed, `pidfd` is where it says and may be written. No
    // memory is shared (no CLONE_VM), so the child works on a copy; it goes straight to `Child::run`.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match u32::try_from(pid) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(0) => Ok(Cloned::Child),
        // SAFETY: the kernel stored a new descriptor there, which nobody else owns.
        Ok(pid) => Ok(Cloned::Parent { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// What the child needs between clone and exec, made before: it may not allocate, since another thread of the parent may
/// have held the allocator's lock.
struct Child<'a> {
    program: &'a CStr,
    argv: &'a [*const c_char],
    null: c_int,
    log: c_int,
    inherited: c_int,
}

impl Child<'_> {
    /// Sets the child up and executes; what fails is written to `report`.
    fn run(&self, report: c_int) -> ! {
        let environment: [*const c_char; 1] = [std::ptr::null()];
        let first_closed = (INHERITED_FD + 1).unsigned_abs();
        // SAFETY: only async-signal-safe functions that are plain system calls, on descriptors that the parent holds
        // open, and on strings and lists that it made before the clone, each ended by null. `sigset_t` is plain data.
        unsafe {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            // Ignored by every Rust program, and inherited through exec.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            let is_set_up = libc::setsid() >= 0
                && libc::chdir(c"/".as_ptr()) >= 0
                && libc::dup2(self.inherited, INHERITED_FD) >= 0
                // `dup2` to the same number does nothing: the descriptor would still be close-on-exec.
                && libc::fcntl(INHERITED_FD, libc::F_SETFD, 0) >= 0
                && libc::dup2(self.null, 0) >= 0
                && libc::dup2(self.log, 1) >= 0
                && libc::dup2(self.log, 2) >= 0
                // Descriptors that some library opened without O_CLOEXEC; `report` has it, and is needed until then.
                && libc::syscall(libc::SYS_close_range, first_closed, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) >= 0;
            if is_set_up {
                libc::execve(self.program.as_ptr(), self.argv.as_ptr(), environment.as_ptr());
            }
            let errno = *libc::__errno_location();
            libc::write(report, (&raw const errno).cast(), size_of::<c_int>());
            libc::_exit(127)
        }
    }
}

/// Makes sure that descriptor 3 is never free in this process: otherwise the pipe or the log might get that number,
/// and `dup2` would close it.
fn reserve_inherited_fd() -> io::Result<()> {
    static RESERVED: OnceLock<Option<OwnedFd>> = OnceLock::new();
    if RESERVED.get().is_none() {
        let null = File::open("/dev/null")?;
        let copy = rustix::io::fcntl_dupfd_cloexec(&null, INHERITED_FD)?;
        // Taken by somebody else, usually the async runtime, which keeps it for good.
        let held = (copy.as_raw_fd() == INHERITED_FD).then_some(copy);
        let _ = RESERVED.set(held);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Seek;
    use std::os::fd::AsFd;

    #[test]
    fn child_has_three_standard_descriptors_and_the_inherited_one() {
        let inherited = tempfile::tempfile().unwrap();
        let mut log = tempfile::tempfile().unwrap();
        // Without close-on-exec, as a careless library would leave it.
        let _leak = rustix::io::dup(&inherited).unwrap();
        let script =
            "ls /proc/self/fd | tr '\\n' ' '; env | grep -v -e ^PWD= -e ^_= -e ^SHLVL=; ps -o sid= -p $$; echo $$";
        let process = detached(
            Path::new("/bin/sh"),
            "sh",
            &[OsStr::new("-c"), OsStr::new(script)],
            inherited.as_fd(),
            log.try_clone().unwrap(),
        )
        .unwrap();
        rustix::event::poll(&mut [PollFd::new(&process, PollFlags::IN)], None).unwrap();
        let mut text = String::new();
        log.rewind().unwrap();
        log.read_to_string(&mut text).unwrap();
        // `ls` itself opens the directory as the next free number, 4.
        assert!(text.starts_with("0 1 2 3 4 "), "{text}");
        let words: Vec<_> = text.split_whitespace().skip(5).collect();
        assert_eq!(words, [process.identity().pid.to_string(), process.identity().pid.to_string()], "{text}");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_and_leaves_no_child() {
        let log = tempfile::tempfile().unwrap();
        let error = detached(Path::new("/nonexistent"), "x", &[], log.as_fd(), log.try_clone().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn an_isolated_child_is_the_first_process_of_its_own_namespace() {
        if !rustix::process::geteuid().is_root() {
            crate::sys::absence::skip("root");
            return;
        }
        let mut log = tempfile::tempfile().unwrap();
        let isolation = Isolation { has_own_pids: true, ..Isolation::default() };
        let child = isolated(
            Path::new("/bin/sh"),
            "sh",
            &[OsStr::new("-c"), OsStr::new("echo $$")],
            log.try_clone().unwrap().as_fd(),
            log.try_clone().unwrap(),
            isolation,
        )
        .unwrap();
        rustix::event::poll(&mut [PollFd::new(&child, PollFlags::IN)], None).unwrap();
        assert_eq!(child.try_reap().unwrap(), Some(super::super::process::End::Exited(0)));
        assert_ne!(child.identity().pid, 1);
        let mut text = String::new();
        log.rewind().unwrap();
        log.read_to_string(&mut text).unwrap();
        assert_eq!(text, "1\n");
    }

    #[test]
    fn child_is_found_by_its_name() {
        let log = tempfile::tempfile().unwrap();
        let name = format!("ostler-test-{}", std::process::id());
        let found = || super::super::process::find_by_arg0(&name, 0).unwrap();
        assert!(found().is_empty());
        let child =
            detached(Path::new("/bin/sleep"), &name, &[OsStr::new("60")], log.as_fd(), log.try_clone().unwrap());
        let child = child.unwrap();
        let identities: Vec<_> = found().iter().map(Process::identity).collect();
        child.kill().unwrap();
        assert_eq!(identities, [child.identity()]);
    }
}
