//! From facts to steps; pure. Key types: [`Step`], [`HostFacts`]. Key function: [`plan`].
//!
//! ```text
//!   root: namespaces → empty root → host name → limits → own user → user namespace
//!   own user: bounding set → capabilities → no new privileges → vmm
//! ```
//! The order is part of the plan: what needs root comes before the identity, the bounding set after the user namespace,
//! which fills it again, and nothing but the exec comes after the rights are gone.

use std::fmt;
use std::io;

use rustix::process::Resource;

use crate::model::JailFacts;

/// The host name within a jail.
pub const HOSTNAME: &str = "jail";

/// One change of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Own mount, network, IPC, UTS and cgroup namespaces.
    LeaveHost,
    /// An empty, read-only root.
    EmptyRoot,
    /// A host name that tells nothing.
    Hostname,
    /// A resource limit, soft and hard.
    Limit(Limit, u64),
    /// User and group of the VM's own, no supplementary groups.
    Identity(u32),
    /// A user namespace that knows this user and group only.
    OwnUsers(u32),
    /// No capability up to this number in the bounding set.
    DropBoundingSet(u32),
    /// No capability in any other set.
    DropCapabilities,
    /// `no_new_privs`.
    GainNoPrivileges,
    /// The vmm takes over.
    Execute,
}

/// A resource that is limited (getrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Open descriptors.
    Descriptors,
    /// Bytes of any file.
    FileBytes,
    /// Bytes of a core dump.
    CoreBytes,
    /// Bytes of locked memory.
    LockedBytes,
    /// Threads of the user.
    Threads,
    /// Bytes in POSIX message queues.
    MessageQueueBytes,
}

impl Limit {
    /// As the kernel names it.
    pub fn resource(self) -> Resource {
        match self {
            Self::Descriptors => Resource::Nofile,
            Self::FileBytes => Resource::Fsize,
            Self::CoreBytes => Resource::Core,
            Self::LockedBytes => Resource::Memlock,
            Self::Threads => Resource::Nproc,
            Self::MessageQueueBytes => Resource::Msgqueue,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeaveHost => f.write_str("leave the host's namespaces"),
            Self::EmptyRoot => f.write_str("make an empty root"),
            Self::Hostname => f.write_str("set the host name"),
            Self::Limit(limit, value) => write!(f, "limit {limit:?} to {value}"),
            Self::Identity(id) => write!(f, "become user {id}"),
            Self::OwnUsers(_) => f.write_str("enter a user namespace"),
            Self::DropBoundingSet(_) => f.write_str("empty the bounding set"),
            Self::DropCapabilities => f.write_str("drop capabilities"),
            Self::GainNoPrivileges => f.write_str("set no_new_privs"),
            Self::Execute => f.write_str("execute the vmm"),
        }
    }
}

/// What the plan depends on of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostFacts {
    /// Number of the last capability that the kernel knows (`/proc/sys/kernel/cap_last_cap`).
    pub last_capability: u32,
    /// Whether this process is root.
    pub is_root: bool,
    /// Whether the kernel has user namespaces.
    pub has_user_namespaces: bool,
}

impl HostFacts {
    /// Reads them.
    pub fn read() -> io::Result<Self> {
        let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")?;
        Ok(Self {
            last_capability: last.trim().parse().map_err(io::Error::other)?,
            is_root: rustix::process::geteuid().is_root(),
            has_user_namespaces: std::path::Path::new("/proc/self/ns/user").exists(),
        })
    }
}

/// No jail can be built here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Not root.
    #[error("a jail is built by root; run the daemon as root")]
    NotRoot,
    /// The kernel lacks something.
    #[error("this kernel has no user namespaces (CONFIG_USER_NS); boot one that has")]
    NoUserNamespaces,
}

/// The steps for a VM of `facts` on `host`, in order.
pub fn plan(facts: &JailFacts, host: HostFacts) -> Result<Vec<Step>, PlanError> {
    if !host.is_root {
        return Err(PlanError::NotRoot);
    }
    if !host.has_user_namespaces {
        return Err(PlanError::NoUserNamespaces);
    }
    Ok(vec![
        Step::LeaveHost,
        Step::EmptyRoot,
        Step::Hostname,
        Step::Limit(Limit::Descriptors, facts.descriptors()),
        Step::Limit(Limit::FileBytes, facts.file_bytes()),
        Step::Limit(Limit::CoreBytes, 0),
        Step::Limit(Limit::LockedBytes, facts.locked_bytes()),
        Step::Limit(Limit::Threads, facts.threads()),
        Step::Limit(Limit::MessageQueueBytes, 0),
        Step::Identity(facts.uid),
        Step::OwnUsers(facts.uid),
        Step::DropBoundingSet(host.last_capability),
        Step::DropCapabilities,
        Step::GainNoPrivileges,
        Step::Execute,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostFacts = HostFacts { last_capability: 40, is_root: true, has_user_namespaces: true };

    fn facts() -> JailFacts {
        JailFacts {
            uid: 0x4f00_0007,
            vcpus: 2,
            memory_bytes: 256 << 20,
            devices: 3,
            disks: 1,
            passed_through: 0,
            kernel_served: 0,
            connections: 0,
            longest_file_bytes: 1 << 30,
        }
    }

    fn at(steps: &[Step], is_it: impl Fn(&Step) -> bool) -> usize {
        steps.iter().position(is_it).expect("a step of the plan")
    }

    #[test]
    fn what_needs_root_comes_before_the_identity_and_nothing_follows_the_loss_of_rights() {
        let steps = plan(&facts(), HOST).unwrap();
        let identity = at(&steps, |step| matches!(step, Step::Identity(0x4f00_0007)));
        let users = at(&steps, |step| matches!(step, Step::OwnUsers(0x4f00_0007)));
        let root = at(&steps, |step| *step == Step::EmptyRoot);
        let last_limit = steps.iter().rposition(|step| matches!(step, Step::Limit(..))).unwrap();
        assert!(at(&steps, |step| *step == Step::LeaveHost) < root && root < identity);
        assert!(last_limit < identity && identity + 1 == users);
        let tail = [Step::DropBoundingSet(40), Step::DropCapabilities, Step::GainNoPrivileges, Step::Execute];
        assert_eq!(steps[users + 1..], tail, "the user namespace fills the bounding set: it is emptied after");
    }

    #[test]
    fn limits_follow_the_vm() {
        let limit = |facts: &JailFacts, wanted: Limit| {
            plan(facts, HOST)
                .unwrap()
                .into_iter()
                .find_map(|step| match step {
                    Step::Limit(limit, value) if limit == wanted => Some(value),
                    _ => None,
                })
                .unwrap()
        };
        assert_eq!(limit(&facts(), Limit::CoreBytes), 0);
        assert_eq!(limit(&facts(), Limit::LockedBytes), 0);
        assert_eq!(limit(&facts(), Limit::FileBytes), 1 << 30);
        let with_device = JailFacts { passed_through: 1, ..facts() };
        assert!(limit(&with_device, Limit::LockedBytes) >= 256 << 20);
        let larger = JailFacts { devices: 20, ..facts() };
        assert!(limit(&larger, Limit::Descriptors) > limit(&facts(), Limit::Descriptors));
        assert!(limit(&larger, Limit::Threads) > limit(&facts(), Limit::Threads));
    }

    #[test]
    fn says_what_the_host_lacks() {
        let error = plan(&facts(), HostFacts { is_root: false, ..HOST }).unwrap_err();
        assert!(error.to_string().contains("as root"));
        let error = plan(&facts(), HostFacts { has_user_namespaces: false, ..HOST }).unwrap_err();
        assert!(error.to_string().contains("CONFIG_USER_NS"));
    }
}
