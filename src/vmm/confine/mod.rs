//! System call filters, one per kind of thread (seccomp(2)). Key type: [`Kind`]. Key function: [`Kind::apply`].
//!
//! Each thread confines itself before it touches what a guest wrote: devices' threads at their start, vCPU threads before
//! the first `KVM_RUN`, the control thread last of all, before it lets the vCPUs go. All threads, rings and epoll
//! instances exist by then. A call that is not in the thread's table, or not with these arguments, ends the process with
//! `SIGSYS` (`SECCOMP_RET_KILL_PROCESS`), which the daemon reports.

mod tables;

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Runs a vCPU.
    Vcpu,
    /// Owns a device.
    Io,
    /// Owns the device through which programs of the host speak with the guest.
    Sockets,
    /// Owns the machine.
    Control,
}

/// One allowed system call.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// As in the manual.
    pub name: &'static str,
    /// Its number on this processor.
    pub number: i64,
    /// Which arguments it may have.
    pub args: Args,
    /// What it is needed for.
    pub why: &'static str,
}

/// Which arguments are allowed.
#[derive(Debug, Clone, Copy)]
pub enum Args {
    /// Any.
    Any,
    /// The argument of this number (from 0) has none of these bits.
    Without(u8, u64),
    /// The argument of this number is one of these (32 bits), each with its name.
    OneOf(u8, &'static [(&'static str, u64)]),
}

impl Row {
    const fn new(name: &'static str, number: i64, args: Args, why: &'static str) -> Self {
        Self { name, number, args, why }
    }

    const fn any(name: &'static str, number: i64, why: &'static str) -> Self {
        Self::new(name, number, Args::Any, why)
    }

    /// Any of these rules lets the call pass; none at all means that it always does.
    fn rules(&self) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        let (argument, comparisons): (u8, Vec<_>) = match self.args {
            Args::Any => return Ok(Vec::new()),
            Args::Without(argument, bits) => (argument, vec![(SeccompCmpOp::MaskedEq(bits), 0)]),
            Args::OneOf(argument, values) => {
                (argument, values.iter().map(|(_, value)| (SeccompCmpOp::Eq, *value)).collect())
            }
        };
        let rule = |(operator, value)| {
            let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
            SeccompRule::new(vec![condition])
        };
        comparisons.into_iter().map(rule).collect()
    }
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Vcpu, Self::Io, Self::Sockets, Self::Control];

    /// The calls that threads of this kind may make.
    pub fn rows(self) -> impl Iterator<Item = &'static Row> {
        let own = match self {
            Self::Vcpu => tables::VCPU,
            Self::Io => tables::IO,
            Self::Sockets => tables::SOCKETS,
            Self::Control => tables::CONTROL,
        };
        tables::COMMON.iter().chain(own)
    }

    /// Confines the calling thread for good.
    pub fn apply(self) -> io::Result<()> {
        seccompiler::apply_filter(self.prepared()?).map_err(io::Error::other)
    }

    /// Makes the filter, so that the thread that [applies](Self::apply) it needs no memory of its own for that: a free
    /// device thread is to cost as little as possible.
    pub fn prepare(self) -> io::Result<()> {
        self.prepared().map(drop)
    }

    /// The filter, made once.
    fn prepared(self) -> io::Result<&'static [seccompiler::sock_filter]> {
        static PROGRAMS: [OnceLock<BpfProgram>; Kind::ALL.len()] = [const { OnceLock::new() }; Kind::ALL.len()];
        let Some(place) = PROGRAMS.get(self as usize) else { unreachable!("a place for each kind") };
        if let Some(program) = place.get() {
            return Ok(program);
        }
        let program = self.program().map_err(io::Error::other)?;
        Ok(place.get_or_init(|| program))
    }

    fn program(self) -> Result<BpfProgram, seccompiler::BackendError> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for row in self.rows() {
            rules.entry(row.number).or_default().extend(row.rules()?);
        }
        let (otherwise, allowed) = (SeccompAction::KillProcess, SeccompAction::Allow);
        SeccompFilter::new(rules, otherwise, allowed, TargetArch::x86_64)?.try_into()
    }
}

/// Confines a device's thread.
pub fn io() -> io::Result<()> {
    Kind::Io.apply()
}

/// Confines the thread of a device that has sockets.
pub fn sockets() -> io::Result<()> {
    Kind::Sockets.apply()
}

/// Confines a vCPU's thread.
pub fn vcpu() -> io::Result<()> {
    Kind::Vcpu.apply()
}

/// Confines the control thread.
pub fn control() -> io::Result<()> {
    Kind::Control.apply()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn names(kind: Kind) -> Vec<&'static str> {
        kind.rows().map(|row| row.name).collect()
    }

    #[test]
    fn tables_keep_to_their_bounds_and_name_each_call_once() {
        for kind in Kind::ALL {
            let most = match kind {
                Kind::Vcpu => 21,
                Kind::Io | Kind::Sockets => 30,
                Kind::Control => 34,
            };
            let names = names(kind);
            assert!(names.len() <= most, "{kind:?}: {}", names.len());
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{kind:?} names a call twice");
            let numbers: BTreeSet<_> = kind.rows().map(|row| row.number).collect();
            assert_eq!(numbers.len(), names.len(), "{kind:?}");
            assert!(kind.rows().all(|row| !row.why.is_empty()));
        }
    }

    #[test]
    fn nothing_opens_connects_executes_or_makes_threads_and_rings() {
        let forbidden = [
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_unshare,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_rt_tgsigqueueinfo,
            libc::SYS_rt_sigaction,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_register,
            libc::SYS_memfd_create,
            libc::SYS_bpf,
            libc::SYS_prctl,
        ];
        for kind in Kind::ALL {
            assert!(kind.rows().all(|row| !forbidden.contains(&row.number)), "{kind:?}");
        }
    }

    #[test]
    fn only_the_control_thread_kicks_and_with_one_signal() {
        for kind in Kind::ALL {
            let kicks: Vec<_> = kind.rows().filter(|row| row.number == libc::SYS_tgkill).collect();
            assert_eq!(kicks.len(), usize::from(kind == Kind::Control), "{kind:?}");
            for row in kicks {
                let Args::OneOf(2, signals) = row.args else { panic!("{kind:?}: any signal") };
                assert_eq!(signals, [("SIGUSR1", crate::sys::kick::SIGNAL as u64)]);
            }
        }
    }

    #[test]
    fn only_vcpus_run_the_guest_and_every_ioctl_is_named() {
        for kind in Kind::ALL {
            for row in kind.rows().filter(|row| row.number == libc::SYS_ioctl) {
                let Args::OneOf(1, requests) = row.args else { panic!("{kind:?}: an ioctl of any request") };
                let runs = requests.iter().any(|(_, request)| *request == tables::KVM_RUN);
                assert_eq!(runs, kind == Kind::Vcpu);
            }
            let memory: Vec<_> = kind.rows().filter(|row| ["mmap", "mprotect"].contains(&row.name)).collect();
            assert!(memory.len() == 2 && memory.iter().all(|row| matches!(row.args, Args::Without(2, 4))));
        }
    }

    #[test]
    fn request_numbers_are_the_kernel_s() {
        // linux/kvm.h on x86-64, as strace prints them.
        let control: Vec<_> = Kind::Control.rows().filter(|row| row.name == "ioctl").collect();
        let Args::OneOf(_, requests) = control[0].args else { panic!("no requests") };
        let expected =
            [("KVM_IRQFD", 0x4020_ae76), ("KVM_IOEVENTFD", 0x4040_ae79), ("KVM_SET_GSI_ROUTING", 0x4008_ae6a)];
        assert_eq!(requests[..3], expected);
        let number = |name: &str| requests.iter().find(|(request, _)| *request == name).map(|(_, number)| *number);
        assert_eq!(number("KVM_SET_USER_MEMORY_REGION"), Some(0x4020_ae46));
        // linux/vfio.h.
        assert_eq!((number("VFIO_GET_API_VERSION"), number("VFIO_IOMMU_MAP_DMA")), (Some(0x3b64), Some(0x3b71)));
        assert_eq!((number("VFIO_DEVICE_GET_INFO"), number("VFIO_DEVICE_SET_IRQS")), (Some(0x3b6b), Some(0x3b6e)));
        assert_eq!(tables::KVM_RUN, 0xae80);
        // linux/if_tun.h.
        let io: Vec<_> = Kind::Io.rows().filter(|row| row.name == "ioctl").collect();
        let Args::OneOf(_, requests) = io[0].args else { panic!("no requests") };
        assert_eq!(requests[..2], [("TUNSETOFFLOAD", 0x4004_54d0), ("TUNSETQUEUE", 0x4004_54d9)]);
        // linux/vhost.h, as the crate that makes these calls has them.
        use vhost::vhost_kern::vhost_binding as vhost;
        let made = [
            vhost::VHOST_SET_OWNER(),
            vhost::VHOST_SET_FEATURES(),
            vhost::VHOST_SET_MEM_TABLE(),
            vhost::VHOST_SET_VRING_NUM(),
            vhost::VHOST_SET_VRING_ADDR(),
            vhost::VHOST_SET_VRING_BASE(),
            vhost::VHOST_SET_VRING_KICK(),
            vhost::VHOST_SET_VRING_CALL(),
            vhost::VHOST_SET_VRING_ERR(),
            vhost::VHOST_NET_SET_BACKEND(),
        ];
        assert_eq!(requests[2..].iter().map(|(_, number)| *number).collect::<Vec<_>>(), made.map(u64::from));
        assert_eq!(number("VHOST_GET_FEATURES"), Some(vhost::VHOST_GET_FEATURES()));
        let vcpu: Vec<_> = Kind::Vcpu.rows().filter(|row| row.name == "ioctl").collect();
        let Args::OneOf(_, requests) = vcpu[0].args else { panic!("no requests") };
        assert_eq!(requests[1..], [("KVM_NMI", 0xae9a), ("KVM_KVMCLOCK_CTRL", 0xaead)]);
    }

    #[test]
    fn the_documentation_lists_every_call_with_its_reason() {
        let documented = include_str!("../../../docs/jail.md");
        for row in Kind::ALL.into_iter().flat_map(Kind::rows) {
            let line = documented.lines().find(|line| {
                line.starts_with(&format!("| `{}` |", row.name)) && line.ends_with(&format!("| {} |", row.why))
            });
            let line = line.unwrap_or_else(|| panic!("docs/jail.md lacks: {} | {}", row.name, row.why));
            if let Args::OneOf(_, values) = row.args {
                assert!(values.iter().all(|(name, _)| line.contains(&format!("`{name}`"))), "{line}");
            }
        }
        let listed = documented.lines().filter(|line| line.starts_with("| `")).count();
        let own = [tables::COMMON, tables::VCPU, tables::IO, tables::SOCKETS, tables::CONTROL].map(<[Row]>::len);
        assert_eq!(listed, own.iter().sum::<usize>(), "docs/jail.md lists a call that no table has");
    }

    #[test]
    fn filters_fit_the_kernel_s_limit() {
        for kind in Kind::ALL {
            let len = kind.program().unwrap().len();
            assert!(len < 1024, "{kind:?}: {len} instructions, the kernel takes 4096");
        }
    }
}
