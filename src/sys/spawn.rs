//! Starts a process that outlives its parent and inherits exactly one descriptor. Called by `daemon/supervisor`.
#![allow(unsafe_code, reason = "the few calls between fork and exec")]

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::process::Process;

/// The number under which the child finds its descriptor.
pub const INHERITED_FD: i32 = 3;

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
    reserve_inherited_fd()?;
    let mut command = Command::new(program);
    command.arg0(arg0).args(args).env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let fd = inherited.as_raw_fd();
    // SAFETY: the closure runs between fork and exec in a process that had many threads: it calls only
    // async-signal-safe functions (setsid, dup2, fcntl, close_range are plain system calls) and allocates nothing. `fd` is
    // open, since `inherited` is borrowed until after the spawn.
    unsafe {
        command.pre_exec(move || {
            if libc::setsid() < 0 || libc::dup2(fd, INHERITED_FD) < 0 {
                return Err(io::Error::last_os_error());
            }
            // `dup2` to the same number does nothing: the descriptor would still be close-on-exec.
            if libc::fcntl(INHERITED_FD, libc::F_SETFD, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            // Descriptors that some library opened without O_CLOEXEC. Rust's own pipe for the result of exec is
            // close-on-exec already, so it stays usable until then.
            let first = (INHERITED_FD + 1).unsigned_abs();
            if libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let child = command.spawn()?;
    // Not reaped before this line, so the id is still the child's. The handle reaps it later.
    Process::open(child.id())
}

/// Makes sure that descriptor 3 is never free in this process: otherwise the standard library's pipe between fork and
/// exec might get that number, and `dup2` would close it.
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
    use std::io::{Read, Seek};
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
        let mut poll = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut poll, None).unwrap();
        let mut text = String::new();
        log.rewind().unwrap();
        log.read_to_string(&mut text).unwrap();
        // `ls` itself opens the directory as the next free number, 4.
        assert!(text.starts_with("0 1 2 3 4 "), "{text}");
        let words: Vec<_> = text.split_whitespace().skip(5).collect();
        assert_eq!(words, [process.identity().pid.to_string(), process.identity().pid.to_string()], "{text}");
    }

    #[test]
    fn child_is_found_by_its_name() {
        let log = tempfile::tempfile().unwrap();
        let name = format!("ostler-test-{}", std::process::id());
        let found = || super::super::process::find_by_arg0(&name).unwrap();
        assert!(found().is_empty());
        let child =
            detached(Path::new("/bin/sleep"), &name, &[OsStr::new("60")], log.as_fd(), log.try_clone().unwrap());
        let child = child.unwrap();
        let identities: Vec<_> = found().iter().map(Process::identity).collect();
        child.kill().unwrap();
        assert_eq!(identities, [child.identity()]);
    }
}
