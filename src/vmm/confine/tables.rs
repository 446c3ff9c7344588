//! Which system calls each kind of thread may make once the machine is built, and why. Data only: a line per call.
//!
//! To allow another call or ioctl, add its line here and to `docs/jail.md`, which a test compares. What is in none of
//! these tables ends the process.

use vhost::vhost_kern::vhost_binding as vhost;

use super::{Args, Row};

/// `PROT_EXEC` (mmap(2)).
const EXECUTABLE: u64 = libc::PROT_EXEC as u64;

/// ioctl request with an argument that the kernel reads (asm-generic/ioctl.h, `_IOW`).
const fn iow(kind: u8, number: u8, len: usize) -> u64 {
    1 << 30 | (len as u64) << 16 | (kind as u64) << 8 | number as u64
}

/// ioctls of KVM (linux/kvm.h, `KVMIO`).
const KVM: u8 = 0xae;
/// `KVM_RUN`: `_IO(KVMIO, 0x80)`.
pub(super) const KVM_RUN: u64 = (KVM as u64) << 8 | 0x80;
const KVM_SET_USER_MEMORY_REGION: u64 = iow(KVM, 0x46, size_of::<kvm_bindings::kvm_userspace_memory_region>());
const KVM_SET_GSI_ROUTING: u64 = iow(KVM, 0x6a, size_of::<kvm_bindings::kvm_irq_routing>());
const KVM_IRQFD: u64 = iow(KVM, 0x76, size_of::<kvm_bindings::kvm_irqfd>());
/// `_IO(KVMIO, 0x9a)` and `_IO(KVMIO, 0xad)`.
const KVM_NMI: u64 = (KVM as u64) << 8 | 0x9a;
const KVM_KVMCLOCK_CTRL: u64 = (KVM as u64) << 8 | 0xad;
const KVM_IOEVENTFD: u64 = iow(KVM, 0x79, size_of::<kvm_bindings::kvm_ioeventfd>());
/// `FIONBIO` (asm-generic/ioctls.h).
const FIONBIO: u64 = 0x5421;
/// `BLKSSZGET` (linux/fs.h): `_IO(0x12, 104)`.
const BLKSSZGET: u64 = 0x1268;

/// ioctls of VFIO (linux/vfio.h): `_IO(VFIO_TYPE, VFIO_BASE + number)`.
const fn vfio(number: u8) -> u64 {
    ((b';' as u64) << 8) + 100 + number as u64
}

/// ioctls of taps (linux/if_tun.h).
const TUNSETOFFLOAD: u64 = iow(b'T', 208, size_of::<libc::c_uint>());
const TUNSETQUEUE: u64 = iow(b'T', 217, size_of::<libc::c_int>());

/// ioctls of vhost-net (linux/vhost.h, `VHOST_VIRTIO`).
const VHOST: u8 = 0xaf;
/// `_IOR(VHOST_VIRTIO, 0x00, __u64)` and `_IO(VHOST_VIRTIO, 0x01)`.
const VHOST_GET_FEATURES: u64 = 2 << 30 | 8 << 16 | (VHOST as u64) << 8;
const VHOST_SET_OWNER: u64 = (VHOST as u64) << 8 | 0x01;
const VHOST_SET_FEATURES: u64 = iow(VHOST, 0x00, size_of::<u64>());
const VHOST_SET_MEM_TABLE: u64 = iow(VHOST, 0x03, size_of::<vhost::vhost_memory>());
const VHOST_SET_VRING_NUM: u64 = iow(VHOST, 0x10, size_of::<vhost::vhost_vring_state>());
const VHOST_SET_VRING_ADDR: u64 = iow(VHOST, 0x11, size_of::<vhost::vhost_vring_addr>());
const VHOST_SET_VRING_BASE: u64 = iow(VHOST, 0x12, size_of::<vhost::vhost_vring_state>());
const VHOST_SET_VRING_KICK: u64 = iow(VHOST, 0x20, size_of::<vhost::vhost_vring_file>());
const VHOST_SET_VRING_CALL: u64 = iow(VHOST, 0x21, size_of::<vhost::vhost_vring_file>());
const VHOST_SET_VRING_ERR: u64 = iow(VHOST, 0x22, size_of::<vhost::vhost_vring_file>());
const VHOST_NET_SET_BACKEND: u64 = iow(VHOST, 0x30, size_of::<vhost::vhost_vring_file>());

/// Every thread: memory, locks, the end.
pub(super) const COMMON: &[Row] = &[
    Row::any("read", libc::SYS_read, "eventfds: kicks, wake-ups"),
    Row::any("write", libc::SYS_write, "eventfds, log, exit record"),
    Row::any("close", libc::SYS_close, "connections of consoles and daemons, descriptors that came unasked"),
    Row::any("futex", libc::SYS_futex, "locks, channels, joins"),
    Row::any("brk", libc::SYS_brk, "heap"),
    Row::new("mmap", libc::SYS_mmap, Args::Without(2, EXECUTABLE), "heap; never executable"),
    Row::new("mprotect", libc::SYS_mprotect, Args::Without(2, EXECUTABLE), "heap of a thread grows; never executable"),
    Row::any("munmap", libc::SYS_munmap, "heap, stacks"),
    Row::any("mremap", libc::SYS_mremap, "large buffers grow"),
    Row::any("madvise", libc::SYS_madvise, "heap, stacks and pages that the guest does without are given back"),
    Row::any("clock_gettime", libc::SYS_clock_gettime, "time limits and log lines, where the vDSO cannot"),
    Row::any("sched_yield", libc::SYS_sched_yield, "contended locks and channels"),
    Row::any("rt_sigprocmask", libc::SYS_rt_sigprocmask, "end of a thread"),
    Row::any("sigaltstack", libc::SYS_sigaltstack, "end of a thread"),
    Row::any("restart_syscall", libc::SYS_restart_syscall, "a wait goes on after a stop signal"),
    Row::any("exit", libc::SYS_exit, "end of a thread"),
    Row::any("exit_group", libc::SYS_exit_group, "end of the process"),
];

/// vCPU threads.
pub(super) const VCPU: &[Row] = &[
    Row::new(
        "ioctl",
        libc::SYS_ioctl,
        Args::OneOf(1, &[("KVM_RUN", KVM_RUN), ("KVM_NMI", KVM_NMI), ("KVM_KVMCLOCK_CTRL", KVM_KVMCLOCK_CTRL)]),
        "runs the guest; interrupts it on an operator's wish; tells its clock of a pause",
    ),
    Row::any("rt_sigreturn", libc::SYS_rt_sigreturn, "a kick by the control thread is over"),
    Row::any("pread64", libc::SYS_pread64, "registers of a device of the host that share a page with its MSI-X table"),
    Row::any("pwrite64", libc::SYS_pwrite64, "the same, and the bits of its configuration space that are forwarded"),
];

/// Devices' threads.
pub(super) const IO: &[Row] = &[
    Row::any("epoll_wait", libc::SYS_epoll_wait, "waits for kicks, commands, completions"),
    Row::any(
        "io_uring_enter",
        libc::SYS_io_uring_enter,
        "disk; the ring is restricted to four operations, and to one file if it was made for it",
    ),
    Row::any("clock_nanosleep", libc::SYS_clock_nanosleep, "pause before a submission is tried again"),
    Row::any("readv", libc::SYS_readv, "frames from the tap"),
    Row::any("writev", libc::SYS_writev, "frames to the tap"),
    Row::any("getrandom", libc::SYS_getrandom, "entropy device"),
    Row::any("lseek", libc::SYS_lseek, "the length of an image that has grown"),
    Row::any("timerfd_settime", libc::SYS_timerfd_settime, "what exceeds a rate limit waits"),
    Row::new(
        "ioctl",
        libc::SYS_ioctl,
        Args::OneOf(
            1,
            &[
                ("TUNSETOFFLOAD", TUNSETOFFLOAD),
                ("TUNSETQUEUE", TUNSETQUEUE),
                ("VHOST_SET_OWNER", VHOST_SET_OWNER),
                ("VHOST_SET_FEATURES", VHOST_SET_FEATURES),
                ("VHOST_SET_MEM_TABLE", VHOST_SET_MEM_TABLE),
                ("VHOST_SET_VRING_NUM", VHOST_SET_VRING_NUM),
                ("VHOST_SET_VRING_ADDR", VHOST_SET_VRING_ADDR),
                ("VHOST_SET_VRING_BASE", VHOST_SET_VRING_BASE),
                ("VHOST_SET_VRING_KICK", VHOST_SET_VRING_KICK),
                ("VHOST_SET_VRING_CALL", VHOST_SET_VRING_CALL),
                ("VHOST_SET_VRING_ERR", VHOST_SET_VRING_ERR),
                ("VHOST_NET_SET_BACKEND", VHOST_NET_SET_BACKEND),
            ],
        ),
        "the tap, or the kernel's server of it, learns what the guest's driver negotiated",
    ),
];

/// The thread of a device that has sockets.
pub(super) const SOCKETS: &[Row] = &[
    Row::any("epoll_wait", libc::SYS_epoll_wait, "waits for kicks, commands, programs"),
    Row::any("epoll_ctl", libc::SYS_epoll_ctl, "programs of the host come"),
    Row::any("accept4", libc::SYS_accept4, "the same, at the VM's socket, which the daemon bound"),
    Row::any("readv", libc::SYS_readv, "bytes of a program for the guest"),
    Row::any("writev", libc::SYS_writev, "bytes of the guest for a program"),
    Row::any("shutdown", libc::SYS_shutdown, "the guest has no more for a program, or wants no more"),
    Row::new(
        "setsockopt",
        libc::SYS_setsockopt,
        Args::OneOf(2, &[("SO_SNDBUF", libc::SO_SNDBUF as u64)]),
        "bounds what the kernel holds of a guest's bytes",
    ),
];

/// The control thread.
pub(super) const CONTROL: &[Row] = &[
    Row::any("epoll_wait", libc::SYS_epoll_wait, "waits for everything below"),
    Row::any("epoll_ctl", libc::SYS_epoll_ctl, "connections come and go"),
    Row::any("accept4", libc::SYS_accept4, "a restarted daemon, a console; both sockets were bound by the daemon"),
    Row::any("recvmsg", libc::SYS_recvmsg, "the daemon's packets"),
    Row::any("sendmsg", libc::SYS_sendmsg, "packets to the daemon"),
    Row::any("recvfrom", libc::SYS_recvfrom, "console input"),
    Row::any("sendto", libc::SYS_sendto, "console output; no socket here is without a peer"),
    Row::any("getrandom", libc::SYS_getrandom, "keys of hash tables"),
    Row::any("eventfd2", libc::SYS_eventfd2, "queues and vectors of a device that comes while the VM runs"),
    Row::any("lseek", libc::SYS_lseek, "length of its image, which came open from the daemon"),
    Row::new(
        "statx",
        libc::SYS_statx,
        Args::OneOf(2, &[("AT_EMPTY_PATH", libc::AT_EMPTY_PATH as u64)]),
        "what its image is, and what direct I/O on it needs",
    ),
    Row::new(
        "fcntl",
        libc::SYS_fcntl,
        Args::OneOf(1, &[("F_GETFL", libc::F_GETFL as u64), ("F_DUPFD_CLOEXEC", libc::F_DUPFD_CLOEXEC as u64)]),
        "how its image or tap was opened; the ring holds the image too",
    ),
    Row::new(
        "tgkill",
        libc::SYS_tgkill,
        Args::OneOf(2, &[("SIGUSR1", libc::SIGUSR1 as u64)]),
        "brings vCPUs out of the guest; in its pid namespace a VM sees no process but its own",
    ),
    Row::new(
        "ioctl",
        libc::SYS_ioctl,
        Args::OneOf(
            1,
            &[
                ("KVM_IRQFD", KVM_IRQFD),
                ("KVM_IOEVENTFD", KVM_IOEVENTFD),
                ("KVM_SET_GSI_ROUTING", KVM_SET_GSI_ROUTING),
                ("FIONBIO", FIONBIO),
                ("BLKSSZGET", BLKSSZGET),
                ("TUNSETOFFLOAD", TUNSETOFFLOAD),
                ("VHOST_GET_FEATURES", VHOST_GET_FEATURES),
                ("KVM_SET_USER_MEMORY_REGION", KVM_SET_USER_MEMORY_REGION),
                ("VFIO_GET_API_VERSION", vfio(0)),
                ("VFIO_DEVICE_GET_INFO", vfio(7)),
                ("VFIO_DEVICE_GET_REGION_INFO", vfio(8)),
                ("VFIO_DEVICE_GET_IRQ_INFO", vfio(9)),
                ("VFIO_DEVICE_SET_IRQS", vfio(10)),
                ("VFIO_IOMMU_MAP_DMA", vfio(13)),
            ],
        ),
        "interrupts and doorbells as the guest programs its devices; a console's connection does not block; what the image \
         or tap of a device that comes later can do; a device of the host comes, and its BARs move",
    ),
    Row::any("pread64", libc::SYS_pread64, "configuration space of a device of the host that comes or goes"),
    Row::any("pwrite64", libc::SYS_pwrite64, "the same: its bus mastering ends"),
];
