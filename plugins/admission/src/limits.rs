//! The decision itself: [`Limits`] judge a request, and give caps or why not.

use ostler_policy::admit::{AdmitRequest, VmPatch};
use ostler_policy::{Refusal, refuse};

/// What to do with a VM that is larger than one VM may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mode {
    /// Deny it.
    #[default]
    Deny,
    /// Make it smaller.
    Cap,
}

/// The limits; `None` does not limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Limits {
    /// Registered VMs.
    pub max_vms: Option<u64>,
    /// vCPUs of one VM, at least 1.
    pub max_vcpus: Option<u64>,
    /// Memory of one VM in MiB, at least 1.
    pub max_memory_mib: Option<u64>,
    /// Disks of one VM.
    pub max_disks: Option<u64>,
    /// Network interfaces of one VM.
    pub max_nics: Option<u64>,
    /// vCPUs of all VMs.
    pub total_vcpus: Option<u64>,
    /// Memory of all VMs in MiB.
    pub total_memory_mib: Option<u64>,
    /// For `max_vcpus` and `max_memory_mib`; totals always deny.
    pub mode: Mode,
}

impl Limits {
    /// Decides. The size of the VM is settled first, so that totals count what it would really get.
    pub(crate) fn judge(&self, request: &AdmitRequest) -> Result<Vec<VmPatch>, Refusal> {
        let AdmitRequest { vm, in_use, .. } = request;
        if let Some(limit) = self.max_vms.filter(|&limit| u64::from(in_use.vms) >= limit) {
            return Err(refuse("limit.vms", format!("tenant has {} VMs registered, {limit} are allowed", in_use.vms)));
        }
        self.judge_disks(vm.disks)?;
        self.judge_nics(vm.nics)?;
        let vcpus = self.size(u64::from(vm.vcpus), self.max_vcpus).map_err(|limit| {
            refuse("limit.vcpus", format!("VM asks for {} vCPUs, {limit} are allowed for one VM", vm.vcpus))
        })?;
        let memory_mib = self.size(vm.memory_mib, self.max_memory_mib).map_err(|limit| {
            let message = format!("VM asks for {} MiB of memory, {limit} are allowed for one VM", vm.memory_mib);
            refuse("limit.memory", message)
        })?;
        within_total(vcpus, u64::from(in_use.vcpus), self.total_vcpus).map_err(|limit| {
            let message = format!(
                "VM asks for {vcpus} vCPUs and the tenant has {} in use, {limit} are allowed in total",
                in_use.vcpus
            );
            refuse("limit.total-vcpus", message)
        })?;
        within_total(memory_mib, in_use.memory_mib, self.total_memory_mib).map_err(|limit| {
            let message = format!(
                "VM asks for {memory_mib} MiB of memory and the tenant has {} in use, {limit} are allowed in total",
                in_use.memory_mib
            );
            refuse("limit.total-memory", message)
        })?;
        let vcpus = u32::try_from(vcpus).ok().filter(|&vcpus| vcpus < vm.vcpus).map(VmPatch::CapVcpus);
        let memory = Some(memory_mib).filter(|&mib| mib < vm.memory_mib).map(VmPatch::CapMemoryMib);
        Ok(vcpus.into_iter().chain(memory).collect())
    }

    /// Whether one VM may have so many disks.
    pub(crate) fn judge_disks(&self, count: u32) -> Result<(), Refusal> {
        match self.max_disks {
            Some(limit) if u64::from(count) > limit => {
                Err(refuse("limit.disks", format!("VM would have {count} disks, {limit} are allowed for one VM")))
            }
            _ => Ok(()),
        }
    }

    /// Whether one VM may have so many network interfaces.
    pub(crate) fn judge_nics(&self, count: u32) -> Result<(), Refusal> {
        match self.max_nics {
            Some(limit) if u64::from(count) > limit => {
                let message = format!("VM would have {count} network interfaces, {limit} are allowed for one VM");
                Err(refuse("limit.nics", message))
            }
            _ => Ok(()),
        }
    }

    /// What a VM gets of what it asks for, or the limit it breaks.
    fn size(&self, asked: u64, limit: Option<u64>) -> Result<u64, u64> {
        match (limit, self.mode) {
            (Some(limit), Mode::Deny) if asked > limit => Err(limit),
            (Some(limit), Mode::Cap) => Ok(asked.min(limit)),
            _ => Ok(asked),
        }
    }
}

fn within_total(asked: u64, in_use: u64, limit: Option<u64>) -> Result<(), u64> {
    match limit {
        Some(limit) if asked.saturating_add(in_use) > limit => Err(limit),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ostler_policy::{Usage, Vm, testing};

    fn request() -> AdmitRequest {
        AdmitRequest {
            vm: Vm { vcpus: 4, memory_mib: 1024, disks: 2, nics: 1, ..testing::vm("web") },
            in_use: Usage { vms: 2, vcpus: 6, memory_mib: 3000 },
            ..testing::admit()
        }
    }

    fn denial(limits: &Limits) -> (&'static str, String) {
        match limits.judge(&request()) {
            Err(Refusal { code, message }) => (code, message),
            Ok(caps) => panic!("{caps:?}"),
        }
    }

    #[test]
    fn allows_everything_without_limits() {
        assert_eq!(Limits::default().judge(&request()), Ok(Vec::new()));
    }

    #[test]
    fn allows_up_to_each_limit() {
        let limits = Limits {
            max_vms: Some(3),
            max_vcpus: Some(4),
            max_memory_mib: Some(1024),
            max_disks: Some(2),
            max_nics: Some(1),
            total_vcpus: Some(10),
            total_memory_mib: Some(4024),
            mode: Mode::Deny,
        };
        assert_eq!(limits.judge(&request()), Ok(Vec::new()));
        assert_eq!(Limits { mode: Mode::Cap, ..limits }.judge(&request()), Ok(Vec::new()));
    }

    #[test]
    fn denies_one_above_each_limit_with_value_and_limit() {
        let cases = [
            (Limits { max_vms: Some(2), ..Limits::default() }, "limit.vms", "2 VMs"),
            (Limits { max_disks: Some(1), ..Limits::default() }, "limit.disks", "2 disks"),
            (Limits { max_nics: Some(0), ..Limits::default() }, "limit.nics", "1 network interfaces"),
            (Limits { max_vcpus: Some(3), ..Limits::default() }, "limit.vcpus", "4 vCPUs, 3 are"),
            (Limits { max_memory_mib: Some(1023), ..Limits::default() }, "limit.memory", "1024 MiB of memory, 1023"),
            (Limits { total_vcpus: Some(9), ..Limits::default() }, "limit.total-vcpus", "6 in use, 9"),
            (Limits { total_memory_mib: Some(4023), ..Limits::default() }, "limit.total-memory", "3000 in use, 4023"),
        ];
        for (limits, code, part) in cases {
            let (got, message) = denial(&limits);
            assert_eq!(got, code);
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn caps_the_size_of_a_vm_and_counts_the_capped_size_in_totals() {
        let limits = Limits {
            max_vcpus: Some(2),
            max_memory_mib: Some(512),
            total_vcpus: Some(8),
            total_memory_mib: Some(3512),
            mode: Mode::Cap,
            ..Limits::default()
        };
        assert_eq!(limits.judge(&request()), Ok(vec![VmPatch::CapVcpus(2), VmPatch::CapMemoryMib(512)]));
    }

    #[test]
    fn denies_totals_in_cap_mode_too() {
        let limits = Limits { total_vcpus: Some(7), mode: Mode::Cap, ..Limits::default() };
        assert_eq!(denial(&limits).0, "limit.total-vcpus");
    }

    #[test]
    fn sums_near_the_top_of_the_range_do_not_wrap() {
        let limits = Limits { total_memory_mib: Some(u64::MAX - 1), ..Limits::default() };
        let mut request = request();
        (request.vm.memory_mib, request.in_use.memory_mib) = (u64::MAX, u64::MAX);
        assert_eq!(limits.judge(&request).unwrap_err().code, "limit.total-memory");
    }
}
