//! What CPUID tells the guest: the host's view as KVM supports it, with the VM's own topology.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

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

    /// The entries of vCPU `index` of `count`: one socket, `count` cores of one thread each; APIC ids are indices.
    pub(super) fn for_vcpu(&self, index: u8, count: u8) -> CpuId {
        let mut cpuid = self.0.clone();
        for entry in cpuid.as_mut_slice() {
            set_topology(entry, index, count);
        }
        cpuid
    }
}

fn set_topology(entry: &mut kvm_cpuid_entry2, index: u8, count: u8) {
    let [id, cores] = [u32::from(index), u32::from(count)];
    // Bits of an APIC id that number a core within the socket.
    let core_bits = u32::from(count).next_power_of_two().trailing_zeros();
    match entry.function {
        // EBX: initial APIC id, addressable ids per socket; EDX bit 28: that count is valid.
        1 => {
            entry.ebx = (entry.ebx & 0x0000_ffff) | id << 24 | cores.min(255) << 16;
            entry.edx = if count > 1 { entry.edx | 1 << 28 } else { entry.edx & !(1 << 28) };
        }
        // Extended topology, Intel's and AMD's: level 0 threads (1 per core), level 1 cores.
        0xb | 0x1f => {
            let (shift, number, kind) = match entry.index {
                0 => (0, 1, 1),
                1 => (core_bits, cores, 2),
                _ => (0, 0, 0),
            };
            entry.eax = shift;
            entry.ebx = number;
            entry.ecx = entry.index | kind << 8;
            entry.edx = id;
        }
        // AMD: number of cores less one, size of the core id field.
        0x8000_0008 => entry.ecx = (entry.ecx & !0xf0ff) | core_bits << 12 | (cores - 1),
        // AMD: APIC id; core id and threads per core less one; node id.
        0x8000_001e => {
            entry.eax = id;
            entry.ebx = id;
            entry.ecx = 0;
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
        let cpuid = Supported::new(supported, true).for_vcpu(2, 4);
        let entries = cpuid.as_slice();
        assert_eq!(entries[0].ebx >> 24, 2);
        assert_eq!(entries[0].ebx >> 16 & 0xff, 4);
        assert_ne!(entries[0].ecx & TSC_DEADLINE, 0);
        assert_eq!((entries[1].eax, entries[1].ebx, entries[1].ecx, entries[1].edx), (0, 1, 0x100, 2));
        assert_eq!((entries[2].eax, entries[2].ebx, entries[2].ecx, entries[2].edx), (2, 4, 0x201, 2));
        assert_eq!(entries[3].eax, 2);
    }
}
