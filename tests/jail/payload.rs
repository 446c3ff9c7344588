//! A hostile program in a real jail, with the real filters: what it tries, and what comes of it.
//!
//! ```text
//!   the test ── clone3: pid namespace, cgroup ──▶ this program as the jail ── execveat ──▶ this program as the vmm
//!      └───────── packet: thread kind, attempt, /dev/kvm ──────────────────────────────────▶ filter, then the call
//! ```
//! libtest picks the part to play by name, from the arguments with which the process is started. Its cgroup lets it have
//! one task, so libtest cannot make a thread for the test and runs it on the first one, as a jail must.
#![allow(unsafe_code, reason = "arbitrary system calls are the point")]

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use ostler::model::JailFacts;
use ostler::sys::cgroup::{Limits, Tree};
use ostler::sys::inherit;
use ostler::sys::kernel_log::forbidden_call;
use ostler::sys::packet::{Connection, Listener, Received};
use ostler::sys::process::{End, Process};
use ostler::sys::spawn::{Isolation, isolated};
use ostler::vmm::confine::Kind;
use rustix::event::{PollFd, PollFlags};

const USER: u32 = 0x4fff_0001;
/// In arguments: the descriptor of /dev/kvm, and the process id of the test.
const KVM: usize = usize::MAX;
const TEST: usize = usize::MAX - 1;

/// A system call; pointers are to strings that end with NUL.
struct Attempt {
    what: &'static str,
    call: libc::c_long,
    args: [usize; 5],
    /// What the jail alone, without a filter, answers; `None` where it lets the call pass, or would end the process.
    jail_says: Option<&'static [i32]>,
}

const fn attempt(what: &'static str, call: libc::c_long, args: [usize; 5]) -> Attempt {
    Attempt { what, call, args, jail_says: None }
}

impl Attempt {
    const fn refused(self, jail_says: &'static [i32]) -> Self {
        Self { jail_says: Some(jail_says), ..self }
    }
}

/// All that a hostile vmm would like to do.
fn attempts() -> Vec<Attempt> {
    let path = |path: &'static std::ffi::CStr| path.as_ptr() as usize;
    let at = libc::AT_FDCWD as usize;
    let [passwd, kvm, daemon, file] =
        [path(c"/etc/passwd"), path(c"/dev/kvm"), path(c"/proc/1/root/etc/shadow"), path(c"/file")];
    let (anonymous, exec) = ((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize, libc::PROT_EXEC as usize | 3);
    // linux/kvm.h: KVM_CREATE_VM, KVM_SET_USER_MEMORY_REGION, KVM_SET_REGS.
    let (create_vm, set_memory, set_regs) = (0xae01, 0x4020_ae46, 0x4090_ae82);
    let gone = &[libc::ENOENT];
    let denied = &[libc::EPERM, libc::EACCES];
    vec![
        attempt("open a file of the host", libc::SYS_open, [passwd, 0, 0, 0, 0]).refused(gone),
        attempt("open a device", libc::SYS_openat, [at, kvm, 2, 0, 0]).refused(gone),
        attempt("open the daemon's root", libc::SYS_openat, [at, daemon, 0, 0, 0]).refused(gone),
        attempt("create a file", libc::SYS_openat, [at, file, libc::O_CREAT as usize | 1, 0o600, 0])
            .refused(&[libc::EROFS]),
        attempt("make a device node", libc::SYS_mknod, [file, libc::S_IFCHR as usize | 0o600, 10 << 8 | 232, 0, 0])
            .refused(&[libc::EROFS]),
        attempt("create a Unix socket", libc::SYS_socket, [libc::AF_UNIX as usize, 1, 0, 0, 0]),
        attempt("create an Internet socket", libc::SYS_socket, [libc::AF_INET as usize, 1, 0, 0, 0]),
        attempt("connect", libc::SYS_connect, [3, 0, 0, 0, 0]),
        attempt("fork", libc::SYS_fork, [0; 5]).refused(&[libc::EAGAIN]),
        attempt("clone a thread", libc::SYS_clone, [libc::CLONE_VM as usize | libc::CLONE_VFORK as usize, 0, 0, 0, 0])
            .refused(&[libc::EAGAIN]),
        attempt("clone3", libc::SYS_clone3, [0, 0, 0, 0, 0]).refused(&[libc::EINVAL, libc::EFAULT]),
        attempt("execute a program", libc::SYS_execve, [path(c"/bin/sh"), 0, 0, 0, 0]).refused(gone),
        attempt("trace the test", libc::SYS_ptrace, [libc::PTRACE_ATTACH as usize, TEST, 0, 0, 0])
            .refused(&[libc::ESRCH, libc::EPERM]),
        attempt("read the test's memory", libc::SYS_process_vm_readv, [TEST, 0, 0, 0, 0]),
        attempt("signal the test", libc::SYS_kill, [TEST, libc::SIGTERM as usize, 0, 0, 0]).refused(&[libc::ESRCH]),
        attempt("signal a thread", libc::SYS_tgkill, [TEST, TEST, libc::SIGTERM as usize, 0, 0])
            .refused(&[libc::ESRCH]),
        attempt("mount", libc::SYS_mount, [path(c"x"), path(c"/"), path(c"tmpfs"), 0, 0]).refused(denied),
        attempt("unmount", libc::SYS_umount2, [path(c"/"), libc::MNT_DETACH as usize, 0, 0, 0])
            .refused(&[libc::EPERM, libc::EINVAL]),
        attempt("pivot the root", libc::SYS_pivot_root, [path(c"/"), path(c"/"), 0, 0, 0]).refused(denied),
        attempt("change the root", libc::SYS_chroot, [path(c"/"), 0, 0, 0, 0]).refused(denied),
        attempt("leave its network", libc::SYS_unshare, [libc::CLONE_NEWNET as usize, 0, 0, 0, 0]).refused(denied),
        attempt("become root", libc::SYS_setuid, [0; 5]).refused(&[libc::EPERM, libc::EINVAL]),
        attempt("name the host", libc::SYS_sethostname, [path(c"x"), 1, 0, 0, 0]).refused(denied),
        attempt("load a module", libc::SYS_init_module, [0, 0, path(c""), 0, 0]).refused(denied),
        attempt("load a BPF program", libc::SYS_bpf, [5, 0, 0, 0, 0]),
        attempt("make a ring", libc::SYS_io_uring_setup, [8, 0, 0, 0, 0]).refused(&[libc::EFAULT]),
        attempt("make a memfd", libc::SYS_memfd_create, [path(c"x"), 0, 0, 0, 0]),
        attempt("change its flags", libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 1, 0, 0, 0]),
        attempt("map executable memory", libc::SYS_mmap, [0, 4096, exec, anonymous, KVM]),
        attempt("make memory executable", libc::SYS_mprotect, [0, 4096, exec, 0, 0]),
        attempt("make another VM", libc::SYS_ioctl, [KVM, create_vm, 0, 0, 0]),
        attempt("change guest memory", libc::SYS_ioctl, [KVM, set_memory, 0, 0, 0]),
        attempt("set registers", libc::SYS_ioctl, [KVM, set_regs, 0, 0, 0]),
        attempt("type into a terminal", libc::SYS_ioctl, [1, libc::TIOCSTI as usize, 0, 0, 0]),
    ]
}

/// Not a test of its own: the process that [`Prisoner::start`] makes builds its jail here.
#[test]
fn plays_the_jail_when_started_as_one() {
    let facts: Vec<String> = std::env::args().filter(|word| word.contains('=')).collect();
    if !facts.is_empty() {
        let _failed = ostler::jail::run(facts.into_iter());
        std::process::exit(22);
    }
}

/// Not a test of its own: what the jail above becomes. Its first argument is `vmm`, which is this test's filter.
#[test]
fn plays_the_vmm_when_jailed() {
    if std::process::id() != 1 {
        return;
    }
    let listener = inherit::descriptor(3).map(Listener::from_fd).unwrap();
    let link = listener.accept().unwrap();
    let Received::Packet(order, descriptors) = link.receive(256).unwrap() else { panic!("no order") };
    let order = String::from_utf8(order).unwrap();
    let words: Vec<_> = order.split(' ').collect();
    let [kind, number, test] = words.as_slice() else { panic!("{order}") };
    let (kvm, test) = (descriptors[0].as_raw_fd() as usize, test.parse::<usize>().unwrap());
    let attempts = attempts();
    let perform = |attempt: &Attempt| {
        let args = attempt.args.map(|arg| match arg {
            KVM => kvm,
            TEST => test,
            plain => plain,
        });
        let [a, b, c, d, e] = args;
        // SAFETY: whatever these calls do, they do it to this process, which is made for it and ends right after.
        let result = unsafe { libc::syscall(attempt.call, a, b, c, d, e, 0usize) };
        if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or_default() } else { 0 }
    };
    let kind = match *kind {
        "vcpu" => Kind::Vcpu,
        "io" => Kind::Io,
        "sockets" => Kind::Sockets,
        "control" => Kind::Control,
        _ => {
            let attempts = attempts.iter().filter(|attempt| attempt.jail_says.is_some());
            let answers: Vec<_> = attempts.map(|attempt| perform(attempt).to_string()).collect();
            link.send(answers.join(" ").as_bytes(), &[]).unwrap();
            std::process::exit(0);
        }
    };
    kind.apply().unwrap();
    match number.parse::<usize>().ok().and_then(|number| attempts.get(number)) {
        // It came through: that is what must not be.
        Some(attempt) => std::process::exit(100 + perform(attempt).min(100)),
        // Only what is allowed.
        None => std::process::exit(0),
    }
}

/// A process in a jail.
struct Prisoner {
    process: Process,
    link: Connection,
}

impl Prisoner {
    fn start(tree: &Tree, dir: &Path, order: &str) -> Self {
        let socket = dir.join("control.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = Listener::bind(&socket).unwrap();
        let limits = Limits { memory_bytes: 256 << 20, cpus: 1, cpu_weight: 100, tasks: 1 };
        let cgroup = tree.make("payload", &limits, None).unwrap();
        let facts = JailFacts {
            uid: USER,
            vcpus: 1,
            memory_bytes: 64 << 20,
            devices: 0,
            disks: 0,
            passed_through: 0,
            kernel_served: 0,
            connections: 0,
            longest_file_bytes: 0,
        };
        let facts = facts.to_args();
        let part = ["--exact", "jail::payload::plays_the_jail_when_started_as_one", "--nocapture"];
        let args: Vec<&std::ffi::OsStr> =
            part.into_iter().chain(facts.iter().map(String::as_str)).map(AsRef::as_ref).collect();
        let isolation = Isolation { cgroup: Some(cgroup.as_fd()), has_own_pids: true };
        let log = File::create(dir.join("log")).unwrap();
        let program = Path::new("/proc/self/exe");
        let process = isolated(program, "ostler-payload", &args, listener.as_fd(), log, isolation).unwrap();
        let link = Connection::connect(&socket).unwrap();
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").unwrap();
        link.send(format!("{order} {}", std::process::id()).as_bytes(), &[kvm.as_fd()]).unwrap();
        Self { process, link }
    }

    fn end(&self) -> End {
        rustix::event::poll(&mut [PollFd::new(&self.process, PollFlags::IN)], None).unwrap();
        self.process.try_reap().unwrap().unwrap()
    }
}

fn tree(name: &str) -> Tree {
    Tree::prepare(&Path::new("/sys/fs/cgroup").join(name)).unwrap()
}

fn remove(tree: &Tree) {
    tree.remove("payload").unwrap();
    let group = tree.path("payload");
    for above in group.ancestors().skip(1).take(2) {
        std::fs::remove_dir(above).unwrap();
    }
}

#[test]
fn the_jail_alone_refuses_the_host_to_a_hostile_program() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree("ost-payload-jail");
    let prisoner = Prisoner::start(&tree, dir.path(), "none 0");
    let log = || std::fs::read_to_string(dir.path().join("log")).unwrap();
    let Received::Packet(answers, _) = prisoner.link.receive(4096).unwrap() else { panic!("{}", log()) };
    let answers = String::from_utf8(answers).unwrap();
    let attempts = attempts();
    let attempts: Vec<_> = attempts.iter().filter(|attempt| attempt.jail_says.is_some()).collect();
    assert_eq!(answers.split(' ').count(), attempts.len(), "{}", log());
    for (attempt, answer) in attempts.iter().zip(answers.split(' ')) {
        let errno: i32 = answer.parse().unwrap();
        println!("{:<28} {}", attempt.what, std::io::Error::from_raw_os_error(errno));
        assert!(attempt.jail_says.unwrap().contains(&errno), "{}: errno {errno}", attempt.what);
    }
    assert_eq!(prisoner.end(), End::Exited(0));
    remove(&tree);
}

#[test]
fn every_forbidden_call_ends_the_process_in_every_kind_of_thread() {
    let dir = tempfile::tempdir().unwrap();
    let tree = tree("ost-payload-filters");
    let kinds = ["vcpu", "io", "sockets", "control"];
    for kind in kinds {
        let log = || std::fs::read_to_string(dir.path().join("log")).unwrap();
        assert_eq!(Prisoner::start(&tree, dir.path(), &format!("{kind} -")).end(), End::Exited(0), "{kind}: {}", log());
    }
    for (number, attempt) in attempts().iter().enumerate() {
        // Needed there: BARs of a device of the host move.
        let is_allowed = |kind: &str| kind == "control" && attempt.what == "change guest memory";
        for kind in kinds.into_iter().filter(|kind| !is_allowed(kind)) {
            let prisoner = Prisoner::start(&tree, dir.path(), &format!("{kind} {number}"));
            let end = prisoner.end();
            assert_eq!(end, End::Signal(libc::SIGSYS), "{kind}: {}", attempt.what);
            // The kernel's log tells which call it was; it may drop lines, but never names another call.
            let told = forbidden_call(prisoner.process.identity().pid);
            assert!(told.is_none_or(|call| i64::from(call) == attempt.call), "{kind}: {}: {told:?}", attempt.what);
            println!(
                "{kind:<14} {:<28} killed, call {}",
                attempt.what,
                told.map_or("?".into(), |call| call.to_string())
            );
        }
    }
    remove(&tree);
}
