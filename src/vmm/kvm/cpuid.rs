//! What CPUID tells the guest: the host's view as KVM supports it, with the VM's own topology.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::model::Topology;

/// CPUID leaf 1, ECX bit 24: the local APIC has a TSC-deadline timer, which spares its calibration (Intel SDM 3A §11.5.4.1).
const TSC_DEADLINE: u32 = 1 << 24;
/// CPUID leaf 1, ECX bit 31: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;

/// The entries that this host's KVM supports.
pub(super) struct Supported(CpuId);

impl Supported {
    pub(super) fn new(mut cpuid: CpuId, has_tsc_deadline: bool) -> Self {
        for entry in cpuid.as_mut_slice() {
            if entry.function == 1 {
                entry.ecx |= HYPERVISOR | if has_tsc_deadline { TSC_DEADLINE } else { 0 };
            }
        }
        Self(cpuid)
    }

    /// The entries of vCPU `index`.
    pub(super) fn for_vcpu(&self, index: u32, topology: Topology) -> CpuId {
        let mut cpuid = self.0.clone();
        for leaf in [0xb, 0x1f] {
            complete(&mut cpuid, leaf);
        }
        for entry in cpuid.as_mut_slice() {
            set_topology(entry, topology.apic_id(index), topology);
        }
        cpuid
    }
}

/// Gives an extended topology leaf the levels that are told: KVM lists only the first, and a guest believes the leaf
/// only if the second is there.
fn complete(cpuid: &mut CpuId, leaf: u32) {
    let first = cpuid.as_slice().iter().find(|entry| entry.function == leaf && entry.index == 0).copied();
    let Some(first) = first else { return };
    for index in 1..=2 {
        let is_there = cpuid.as_slice().iter().any(|entry| entry.function == leaf && entry.index == index);
        if !is_there {
            // Fails only when there is no room for another of 256 entries: the leaf is as it was then.
            let _ = cpuid.push(kvm_cpuid_entry2 { index, ..first });
        }
    }
}

fn set_topology(entry: &mut kvm_cpuid_entry2, id: u32, topology: Topology) {
    let threads = topology.threads();
    let package = topology.cores() * threads;
    let (thread_bits, package_bits) = (topology.thread_bits(), topology.package_bits());
    match entry.function {
        // EBX: initial APIC id, addressable ids per socket; EDX bit 28: that count is valid.
        1 => {
            entry.ebx = (entry.ebx & 0x0000_ffff) | id << 24 | package.min(255) << 16;
            entry.edx = if package > 1 { entry.edx | 1 << 28 } else { entry.edx & !(1 << 28) };
        }
        // Intel: each cache with how many ids share it, and core ids per socket (both less one). Levels 1 and 2 are a
        // core's own, the others the socket's.
        4 if entry.eax & 0x1f != 0 => {
            let sharing = if entry.eax >> 5 & 7 <= 2 { 1 << thread_bits } else { 1 << package_bits };
            let cores = 1 << (package_bits - thread_bits);
            entry.eax = (entry.eax & 0x3fff) | (sharing - 1) << 14 | (cores - 1) << 26;
        }
        // Extended topology, Intel's and AMD's: level 0 threads, level 1 cores.
        0xb | 0x1f => {
            let (shift, number, kind) = match entry.index {
                0 => (thread_bits, threads, 1),
                1 => (package_bits, package, 2),
                _ => (0, 0, 0),
            };
            entry.flags |= KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
            entry.eax = shift;
            entry.ebx = number;
            entry.ecx = entry.index | kind << 8;
            entry.edx = id;
        }
        // AMD (bit 22: it has the leaves below): ECX bit 1: more than one thread per socket.
        0x8000_0001 if entry.ecx & 1 << 22 != 0 => entry.ecx = if package > 1 { entry.ecx | 2 } else { entry.ecx & !2 },
        // AMD: number of threads in the socket less one, size of their id field.
        0x8000_0008 => entry.ecx = (entry.ecx & !0xf0ff) | package_bits << 12 | (package - 1),
        // AMD: as Intel's leaf 4, without the count of cores.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let sharing = if entry.eax >> 5 & 7 <= 2 { threads } else { package };
            entry.eax = (entry.eax & !0x03ff_c000) | (sharing - 1) << 14;
        }
        // AMD: APIC id; core id in the socket, threads per core less one; node id, one node per socket.
        0x8000_001e => {
            entry.eax = id;
            entry.ebx = (id & ((1 << package_bits) - 1)) >> thread_bits | (threads - 1) << 8;
            entry.ecx = id >> package_bits;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, ..Default::default() }
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id_in_one_socket() {
        let supported =
            CpuId::from_entries(&[entry(1, 0), entry(0xb, 0), entry(0xb, 1), entry(0x8000_001e, 0)]).unwrap();
        let cpuid = Supported::new(supported, true).for_vcpu(2, Topology::flat(4));
        let entries = cpuid.as_slice();
        assert_eq!(entries[0].ebx >> 24, 2);
        assert_eq!(entries[0].ebx >> 16 & 0xff, 4);
        assert_ne!(entries[0].ecx & TSC_DEADLINE, 0);
        assert_eq!((entries[1].eax, entries[1].ebx, entries[1].ecx, entries[1].edx), (0, 1, 0x100, 2));
        assert_eq!((entries[2].eax, entries[2].ebx, entries[2].ecx, entries[2].edx), (2, 4, 0x201, 2));
        assert_eq!(entries[3].eax, 2);
    }

    #[test]
    fn sockets_cores_and_threads_are_told_in_every_leaf() {
        // KVM lists the first level of leaf 0xb only.
        let cache =
            |function, level: u32| kvm_cpuid_entry2 { eax: 1 | level << 5 | 63 << 26, ..entry(function, level) };
        let listed = [
            entry(1, 0),
            cache(4, 1),
            cache(4, 3),
            entry(0xb, 0),
            entry(0x8000_0008, 0),
            cache(0x8000_001d, 3),
            entry(0x8000_001e, 0),
        ];
        let topology = Topology::new(2, 3, 2, 12).unwrap();
        let cpuid = Supported::new(CpuId::from_entries(&listed).unwrap(), false).for_vcpu(9, topology);
        let get = |function, index| {
            *cpuid.as_slice().iter().find(|entry| (entry.function, entry.index) == (function, index)).unwrap()
        };
        // vCPU 9: socket 1, core 1, thread 1.
        let id = 0b1011;
        assert_eq!((get(1, 0).ebx >> 24, get(1, 0).ebx >> 16 & 0xff, get(1, 0).edx >> 28 & 1), (id, 6, 1));
        assert_eq!((get(4, 1).eax >> 14 & 0xfff, get(4, 1).eax >> 26), (1, 3), "a core's own cache");
        assert_eq!((get(4, 3).eax >> 14 & 0xfff, get(4, 3).eax >> 26), (7, 3), "the socket's cache");
        let level = |index| (get(0xb, index).eax, get(0xb, index).ebx, get(0xb, index).ecx, get(0xb, index).edx);
        assert_eq!([level(0), level(1), level(2)], [(1, 2, 0x100, id), (3, 6, 0x201, id), (0, 0, 2, id)]);
        assert_eq!(get(0x8000_0008, 0).ecx, 3 << 12 | 5);
        assert_eq!(get(0x8000_001d, 3).eax >> 14 & 0xfff, 5);
        let amd = get(0x8000_001e, 0);
        assert_eq!((amd.eax, amd.ebx, amd.ecx), (id, 1 | 1 << 8, 1));
    }
}
