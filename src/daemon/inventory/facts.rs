//! What the host can bear. Key type: [`HostFacts`].

use std::io;

use crate::model::{CpuList, NicSpec, SpecError, VmSpec};
use crate::sys::{proc_text, vhost_net};

/// Read once at start-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostFacts {
    /// `MemTotal` of proc_meminfo(5), in MiB.
    pub memory_mib: u64,
    /// `KVM_CAP_MAX_VCPUS`; `None` when KVM cannot be opened, which each start then reports.
    pub max_vcpus: Option<u32>,
}

impl HostFacts {
    /// Reads them from `/proc/meminfo` and `/dev/kvm`.
    pub fn read() -> io::Result<Self> {
        let meminfo = std::fs::read_to_string("/proc/meminfo")?;
        let memory_mib = parse_mem_total_mib(&meminfo)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no MemTotal in /proc/meminfo"))?;
        let max_vcpus = kvm_ioctls::Kvm::new().ok().and_then(|kvm| u32::try_from(kvm.get_max_vcpus()).ok());
        Ok(Self { memory_mib, max_vcpus })
    }

    /// Refuses a VM that this host could never run.
    pub fn check(&self, spec: &VmSpec) -> Result<(), SpecError> {
        if spec.memory_mib() > self.memory_mib {
            let (wanted, present) = (spec.memory_mib(), self.memory_mib);
            return Err(SpecError::new("spec.memory_mib", format!("{wanted} MiB of memory, this host has {present}")));
        }
        if let Some(most) = self.max_vcpus.filter(|&most| spec.vcpus() > most) {
            let wanted = spec.vcpus();
            return Err(SpecError::new("spec.vcpus", format!("{wanted} vCPUs, this host's KVM allows {most}")));
        }
        for (index, nic) in spec.nics().iter().enumerate() {
            check_nic(&format!("spec.nics[{index}]"), nic)?;
        }
        // Read anew, CPUs come and go; most specs name none, and each read is some microseconds of a call.
        if let Some(node) = spec.memory().numa_node {
            check_node(node, &read_list("/sys/devices/system/node/has_memory"))?;
        }
        if let Some(cpus) = &spec.cpus().host_cpus {
            check_cpus(cpus, &read_list("/sys/devices/system/cpu/online"))?;
        }
        Ok(())
    }
}

/// Refuses a NIC that this host cannot serve as it is to be; `field`: where it stands in the request.
///
/// Only looks: opening the device would load its module, and what is only validated leaves no trace.
pub fn check_nic(field: &str, nic: &NicSpec) -> Result<(), SpecError> {
    if nic.is_kernel_served() && !vhost_net::is_there() {
        return Err(SpecError::new(format!("{field}.vhost"), vhost_net::absence("No such device")));
    }
    Ok(())
}

/// A list of numbers as the kernel writes it; empty where it writes none.
fn read_list(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn check_node(node: u32, present: &str) -> Result<(), SpecError> {
    let has = |list: CpuList| list.iter().any(|present| present == node);
    if present.parse().is_ok_and(has) {
        return Ok(());
    }
    let present = if present.is_empty() { "none" } else { present };
    let reason = format!("this host has no NUMA node {node} with memory; it has {present}");
    Err(SpecError::new("spec.memory.numa_node", reason))
}

fn check_cpus(wanted: &CpuList, present: &str) -> Result<(), SpecError> {
    let Ok(online) = present.parse::<CpuList>() else { return Ok(()) };
    match wanted.iter().find(|cpu| !online.iter().any(|online| online == *cpu)) {
        Some(cpu) => {
            let reason = format!("CPU {cpu} is absent or offline; this host has {online}");
            Err(SpecError::new("spec.cpus.host_cpus", reason))
        }
        None => Ok(()),
    }
}

fn parse_mem_total_mib(meminfo: &str) -> Option<u64> {
    Some(proc_text::bytes(meminfo, "MemTotal")? >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BootSpec, ImagePath};

    #[test]
    fn reads_the_host() {
        assert_eq!(parse_mem_total_mib("X: 1 kB\nMemTotal:       4096 kB\n"), Some(4));
        assert!(HostFacts::read().unwrap().memory_mib > 0);
    }

    #[test]
    fn nodes_and_cpus_that_are_absent_are_named_with_those_that_are_there() {
        assert_eq!(check_node(1, "0-1"), Ok(()));
        let error = check_node(2, "0-1").unwrap_err();
        assert!(error.field == "spec.memory.numa_node" && error.reason.ends_with("it has 0-1"), "{error}");
        assert!(check_node(0, "").unwrap_err().reason.ends_with("it has none"));
        let list = |text: &str| text.parse::<CpuList>().unwrap();
        assert_eq!(check_cpus(&list("0,3"), "0-3"), Ok(()));
        let error = check_cpus(&list("0-4"), "0-3").unwrap_err();
        assert!(error.reason.starts_with("CPU 4 ") && error.reason.ends_with("this host has 0-3"), "{error}");
    }

    #[test]
    fn refuses_what_the_host_lacks_and_names_the_field() {
        let facts = HostFacts { memory_mib: 1024, max_vcpus: Some(4) };
        let boot = BootSpec { kernel: ImagePath::new("k", "k").unwrap(), initrd: None, cmdline: String::new() };
        let spec = |vcpus, mib| VmSpec::new(vcpus, mib, boot.clone(), vec![], vec![]).unwrap();
        assert_eq!(facts.check(&spec(4, 1024)), Ok(()));
        assert_eq!(facts.check(&spec(5, 1024)).unwrap_err().field, "spec.vcpus");
        assert_eq!(facts.check(&spec(1, 1025)).unwrap_err().field, "spec.memory_mib");
    }
}
