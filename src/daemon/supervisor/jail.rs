//! The daemon's part of a jail: what must be there before the process, and gone after it. Key type: [`Jail`].
//!
//! The role `ostler-vmm jail` does the rest from within. The cgroup carries the VM's uid as its name, so that a daemon that
//! was killed in between leaves nothing that the next one does not find.

use std::io;
use std::path::Path;

use super::VmCgroup;
use crate::model::{CpuList, JailFacts, VmId};
use crate::sys::cgroup::{CgroupError, Limits, Tree};

/// Weight of one vCPU's share of CPU time (`cpu.weight`), and the most that the kernel takes.
const WEIGHT_PER_VCPU: u32 = 100;
const MAX_WEIGHT: u32 = 10_000;
/// CPUs for the threads beside the vCPUs: devices and control.
const CPUS_FOR_DEVICES: u32 = 1;

/// Why VMs cannot be jailed here.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// Not root.
    #[error(
        "VMs run in jails, which only root can build; run the daemon as root (or, to try things out, with --no-jail)"
    )]
    NotRoot,
    /// No user namespaces.
    #[error("VMs run in jails, for which this kernel lacks user namespaces (CONFIG_USER_NS); boot one that has them")]
    NoUserNamespaces,
    /// No cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// What VMs are jailed with.
#[derive(Debug)]
pub struct Jail {
    tree: Tree,
}

impl Jail {
    /// Checks that jails can be built here, and makes the tree of cgroups at `cgroup` ready.
    pub fn prepare(cgroup: &Path) -> Result<Self, JailError> {
        if !rustix::process::geteuid().is_root() {
            return Err(JailError::NotRoot);
        }
        if !Path::new("/proc/self/ns/user").exists() {
            return Err(JailError::NoUserNamespaces);
        }
        Ok(Self { tree: Tree::prepare(cgroup)? })
    }

    /// Makes the cgroup of a VM and gives its directory.
    pub(super) fn make(
        &self,
        uid: VmId,
        facts: &JailFacts,
        cpus: Option<&CpuList>,
    ) -> Result<std::os::fd::OwnedFd, CgroupError> {
        self.tree.make(&uid.to_string(), &limits(facts), cpus.map(ToString::to_string).as_deref())
    }

    /// Makes the cgroup of the process that runs plugins, beside those of VMs, and gives its directory.
    pub fn make_policy(&self, limits: &Limits) -> Result<std::os::fd::OwnedFd, CgroupError> {
        self.tree.make_policy(limits)
    }

    /// Whether a VM has a cgroup.
    pub(super) fn has(&self, uid: VmId) -> bool {
        self.tree.has(&uid.to_string())
    }

    /// Removes the cgroup of a VM, with whatever still runs in it. Blocks.
    pub(super) fn remove(&self, uid: VmId) -> Result<(), CgroupError> {
        self.tree.remove(&uid.to_string())
    }

    /// Whether the kernel has killed something of a VM's cgroup for want of memory. Blocks shortly.
    pub(super) fn was_out_of_memory(&self, uid: VmId) -> bool {
        self.tree.out_of_memory_kills(&uid.to_string()).is_ok_and(|kills| kills > 0)
    }

    /// Cgroups of VMs. One that goes while it is looked at is left out.
    pub(super) fn cgroups(&self) -> io::Result<Vec<VmCgroup>> {
        let names = self.tree.names()?;
        let of = |name: &String| {
            let vm = name.parse::<VmId>().ok().filter(|vm| vm.to_string() == *name)?;
            let processes = self.tree.processes(name).ok()?;
            Some(VmCgroup { vm, processes, unlimited: self.tree.unlimited(name).ok()? })
        };
        Ok(names.iter().filter_map(of).collect())
    }

    /// VMs that have a cgroup.
    pub(super) fn vms(&self) -> Vec<VmId> {
        self.tree.names().unwrap_or_default().iter().filter_map(|name| name.parse().ok()).collect()
    }
}

fn limits(facts: &JailFacts) -> Limits {
    Limits {
        memory_bytes: facts.resident_bytes(),
        cpus: facts.vcpus.saturating_add(CPUS_FOR_DEVICES),
        cpu_weight: facts.vcpus.saturating_mul(WEIGHT_PER_VCPU).clamp(WEIGHT_PER_VCPU, MAX_WEIGHT),
        tasks: facts.threads(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_leave_room_for_the_vmm_beside_its_guest() {
        let facts = JailFacts {
            uid: 1,
            vcpus: 2,
            memory_bytes: 1 << 30,
            devices: 2,
            disks: 1,
            passed_through: 0,
            kernel_served: 0,
            connections: 0,
            longest_file_bytes: 0,
        };
        let got = limits(&facts);
        assert!(got.memory_bytes > 1 << 30 && got.memory_bytes < (1 << 30) + (128 << 20), "{got:?}");
        assert_eq!((got.cpus, got.cpu_weight), (3, 200));
        assert!(got.tasks >= 2 + 2 + 64);
        assert_eq!(limits(&JailFacts { vcpus: 128, ..facts }).cpu_weight, 10_000);
    }
}
