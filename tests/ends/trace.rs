//! Makes another process do a system call, as an attacker who controls it would: by ptrace(2).
#![allow(unsafe_code, reason = "ptrace")]

/// Has the first thread of `pid`, which waits in a system call, begin the call of this number instead, without arguments
/// that mean anything. `None` if it does not wait just now; else it has been let go.
pub fn force_call(pid: u32, number: libc::c_long) -> Option<()> {
    let pid = i32::try_from(pid).unwrap();
    let mut status = 0;
    // SAFETY: plain calls with a process id; the registers are a structure of the size that the kernel fills and reads.
    unsafe {
        let null = std::ptr::null_mut::<libc::c_void>();
        assert_eq!(libc::ptrace(libc::PTRACE_ATTACH, pid, null, null), 0, "{}", std::io::Error::last_os_error());
        assert_eq!(libc::waitpid(pid, &raw mut status, libc::__WALL), pid);
        let mut registers: libc::user_regs_struct = std::mem::zeroed();
        assert_eq!(libc::ptrace(libc::PTRACE_GETREGS, pid, null, &raw mut registers), 0);
        // Not in a system call: what stands before its next instruction is anything.
        if registers.orig_rax == u64::MAX {
            assert_eq!(libc::ptrace(libc::PTRACE_DETACH, pid, null, null), 0);
            return None;
        }
        // Behind its `syscall` instruction, two bytes long. The call that was interrupted is not to begin again.
        registers.rip -= 2;
        registers.rax = number as u64;
        registers.orig_rax = u64::MAX;
        assert_eq!(libc::ptrace(libc::PTRACE_SETREGS, pid, null, &raw mut registers), 0);
        assert_eq!(libc::ptrace(libc::PTRACE_DETACH, pid, null, null), 0);
    }
    Some(())
}
