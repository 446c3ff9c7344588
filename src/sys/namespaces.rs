//! Namespaces, roots, identities and capabilities of this process: what a jail is built with. Called by `jail/apply`.
//!
//! Every function changes the calling thread or the whole process for good. They are meant for a process that was just
//! executed and has one thread; nothing else of the project calls them.
#![allow(unsafe_code, reason = "unshare(2) and execveat(2)")]

use std::ffi::{CString, c_char};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid, UnshareFlags};

/// A directory that every host has; a mount over it is seen by this process alone.
const MOUNT_POINT: &str = "/proc";
/// The new root: no room, no inode but its own directory.
const ROOT_OPTIONS: &std::ffi::CStr = c"size=4k,nr_inodes=1,mode=0555";
/// What no file below the root may be, if there ever were one.
const HARMLESS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Handles that outlast the loss of the host's files.
#[derive(Debug)]
pub struct Kept {
    /// The running program.
    program: OwnedFd,
    /// `/proc/<this process>`.
    process: OwnedFd,
}

/// Opens the running program and this process' own directory of proc(5).
pub fn keep() -> io::Result<Kept> {
    let open = |path, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
    let process = open("/proc/self", OFlags::PATH | OFlags::DIRECTORY)?;
    Ok(Kept { program: open("/proc/self/exe", OFlags::PATH)?, process })
}

/// Leaves the host's mounts, network, IPC objects, host name and cgroup view for empty ones (unshare(2)).
pub fn leave_host() -> io::Result<()> {
    unshare(
        UnshareFlags::NEWNS
            | UnshareFlags::NEWNET
            | UnshareFlags::NEWIPC
            | UnshareFlags::NEWUTS
            | UnshareFlags::NEWCGROUP,
    )
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: only CLONE_FILES would be dangerous, and it is not among the flags that this file passes.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Makes an empty, read-only directory the root, and lets go of the host's (pivot_root(2)). Needs [`leave_host`] before.
pub fn empty_root() -> io::Result<()> {
    // Nothing that happens here may reach the host's mounts.
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    rustix::mount::mount("jail", MOUNT_POINT, "tmpfs", HARMLESS, Some(ROOT_OPTIONS))?;
    rustix::process::chdir(MOUNT_POINT)?;
    // Both roots at one place: the old one lies over the new one until it is let go (pivot_root(2), notes).
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    let flags = HARMLESS | MountFlags::BIND | MountFlags::RDONLY;
    Ok(rustix::mount::mount_remount("/", flags, c"")?)
}

/// Names this host for those within the UTS namespace.
pub fn set_hostname(name: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(name.as_bytes())?)
}

/// Becomes user and group `id`, without supplementary groups. Keeps what [`own_users`] needs of root, and nothing else.
pub fn become_user(id: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::thread::set_keep_capabilities(true)?;
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    set_capabilities(CapabilitySet::SYS_ADMIN)?;
    rustix::thread::set_keep_capabilities(false)?;
    // Changing the user made /proc/self root's, where [`own_users`] must write.
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?)
}

/// Enters a user namespace that knows no user and no group but `id` (user_namespaces(7)).
pub fn own_users(kept: &Kept, id: u32) -> io::Result<()> {
    unshare(UnshareFlags::NEWUSER)?;
    let write = |file, text: &str| -> io::Result<()> {
        let file = rustix::fs::openat(&kept.process, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        File::from(file).write_all(text.as_bytes())
    };
    let map = format!("{id} {id} 1");
    write("setgroups", "deny")?;
    write("gid_map", &map)?;
    write("uid_map", &map)
}

/// Empties the bounding set up to capability number `last`, so that no program gives any back.
pub fn drop_bounding_set(last: u32) -> io::Result<()> {
    for number in 0..=last {
        let capability = CapabilitySet::from_bits_retain(1u64.checked_shl(number).unwrap_or_default());
        rustix::thread::remove_capability_from_bounding_set(capability)?;
    }
    Ok(())
}

/// Drops every capability.
pub fn drop_capabilities() -> io::Result<()> {
    rustix::thread::clear_ambient_capability_set()?;
    set_capabilities(CapabilitySet::empty())
}

fn set_capabilities(set: CapabilitySet) -> io::Result<()> {
    let sets = CapabilitySets { effective: set, permitted: set, inheritable: CapabilitySet::empty() };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Gives up every way to gain rights by executing something (`PR_SET_NO_NEW_PRIVS`).
pub fn gain_no_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// No core dump, and no tracer but root's (`PR_SET_DUMPABLE`). An exec undoes it.
pub fn hide_memory() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Executes the kept program with these arguments (the first is its name) and no environment. Returns only its failure.
pub fn execute(kept: &Kept, arguments: &[String]) -> io::Error {
    let words: Result<Vec<CString>, _> = arguments.iter().map(|word| CString::new(word.as_bytes())).collect();
    let words = match words {
        Ok(words) => words,
        Err(error) => return error.into(),
    };
    let mut argv: Vec<*const c_char> = words.iter().map(|word| word.as_ptr()).collect();
    argv.push(std::ptr::null());
    let environment: [*const c_char; 1] = [std::ptr::null()];
    // SAFETY: both lists end with null and, with the strings that they point at, live until the call returns, which it
    // does on failure only; the path is empty, so the descriptor itself is what is executed.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            kept.program.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}
