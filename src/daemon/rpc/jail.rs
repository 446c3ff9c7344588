//! A jail as the API shows it. Key function: [`encode`].

use crate::api::VmRef;
use crate::api::v1::virtual_machine_jail::{CapabilitySet, CgroupFile, Descriptor, Limit, Mount, Namespace, Thread};
use crate::api::v1::{self};
use crate::daemon::service::{Confinement, VmRecord};
use crate::sys::confinement::{self, ThreadCalls};
use crate::sys::filters;

/// Names of the sets, in the order of `Confinement::capabilities`.
const SETS: [&str; 5] = ["inheritable", "permitted", "effective", "bounding", "ambient"];

/// What was read of `vm`'s process.
pub(super) fn encode(vm: &VmRecord, jail: Confinement) -> v1::VirtualMachineJail {
    let sets = SETS.iter().zip(jail.capabilities);
    v1::VirtualMachineJail {
        name: VmRef { tenant: vm.tenant.clone(), vm: vm.name.clone() }.to_string(),
        pid: jail.pid,
        own_pid: jail.own_pid,
        uids: jail.uids,
        gids: jail.gids,
        groups: jail.groups,
        capability_sets: sets.map(|(name, bits)| CapabilitySet { name: (*name).to_owned(), bits }).collect(),
        no_new_privileges: jail.gains_no_privileges,
        dumpable: jail.is_dumpable,
        environment_bytes: jail.environment_bytes,
        namespaces: jail
            .namespaces
            .into_iter()
            .map(|namespace| Namespace { kind: namespace.kind.to_owned(), id: namespace.id, own: namespace.is_own })
            .collect(),
        threads: jail.threads.into_iter().map(encode_thread).collect(),
        limits: jail
            .limits
            .into_iter()
            .map(|limit| Limit { name: limit.name, soft: limit.soft, hard: limit.hard })
            .collect(),
        root: jail.root,
        mounts: jail
            .mounts
            .into_iter()
            .map(|mount| Mount { path: mount.path, kind: mount.kind, options: mount.options })
            .collect(),
        descriptors: jail
            .descriptors
            .into_iter()
            .map(|descriptor| Descriptor { number: descriptor.number, target: descriptor.target })
            .collect(),
        cgroup: jail.cgroup.to_string_lossy().into_owned(),
        cgroup_files: jail.cgroup_files.into_iter().map(|(name, value)| CgroupFile { name, value }).collect(),
    }
}

fn encode_thread(thread: confinement::Thread) -> Thread {
    let names = |numbers: &[u32]| numbers.iter().map(|number| filters::name(*number)).collect();
    let (calls, calls_with_some_arguments) = match &thread.calls {
        ThreadCalls::Filtered(calls) => (names(&calls.any), names(&calls.some)),
        ThreadCalls::None | ThreadCalls::Unfiltered | ThreadCalls::Unread(_) => (Vec::new(), Vec::new()),
    };
    Thread {
        id: thread.id,
        name: thread.name,
        seccomp_mode: thread.seccomp_mode,
        filters: thread.filters,
        kernel_worker: thread.calls == ThreadCalls::None,
        calls,
        calls_with_some_arguments,
        calls_unread: if let ThreadCalls::Unread(why) = thread.calls { why } else { String::new() },
    }
}
