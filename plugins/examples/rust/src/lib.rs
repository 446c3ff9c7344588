//! Admits VMs by their name and size. Settings, all optional:
//!
//! | key | meaning |
//! |---|---|
//! | `tenant` | whom this is about; what others ask for is left to other plugins |
//! | `name-prefix` | how the names of VMs begin |
//! | `max-vcpus` | vCPUs of one VM |
//! | `max-memory-mib` | memory of one VM |
//! | `cap` | `true`: a VM that is too large is made smaller; else it is denied |

use ostler_policy::admit::{Admit, AdmitRequest, Verdict, VmPatch};
use ostler_policy::{Error, Policy, Reader, Source, log, refuse};

/// The settings.
struct Rules {
    tenant: Option<String>,
    name_prefix: Option<String>,
    max_vcpus: Option<u64>,
    max_memory_mib: Option<u64>,
    cap: bool,
}

impl Policy for Rules {
    const NAME: &'static str = env!("CARGO_PKG_NAME");
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &'static str = "admits VMs by their name and size";
    const SETTINGS: &'static [&'static str] = &["cap", "max-memory-mib", "max-vcpus", "name-prefix", "tenant"];

    fn read(settings: &mut Reader<'_, impl Source>) -> Self {
        Self {
            tenant: settings.parsed("tenant", |text| Ok(text.to_owned())),
            name_prefix: settings.parsed("name-prefix", |text| Ok(text.to_owned())),
            max_vcpus: settings.number("max-vcpus", 1..=u64::MAX),
            max_memory_mib: settings.number("max-memory-mib", 1..=u64::MAX),
            cap: settings.flag("cap").unwrap_or(false),
        }
    }
}

impl Admit for Rules {
    fn admit(&self, request: &AdmitRequest) -> Result<Verdict, Error> {
        let (vm, mut patches) = (&request.vm, Vec::new());
        if self.tenant.as_ref().is_some_and(|tenant| *tenant != request.tenant) {
            return Ok(Verdict::Abstain);
        }
        if let Some(prefix) = self.name_prefix.as_ref().filter(|prefix| !vm.name.starts_with(prefix.as_str())) {
            return Ok(refuse("name.prefix", format!("{} does not begin with {prefix}", vm.name)).into());
        }
        if let Some(most) = self.max_vcpus.filter(|most| u64::from(vm.vcpus) > *most) {
            if !self.cap {
                return Ok(
                    refuse("limit.vcpus", format!("{} vCPUs are asked for, {most} are allowed", vm.vcpus)).into()
                );
            }
            patches.push(VmPatch::CapVcpus(u32::try_from(most).unwrap_or(u32::MAX)));
        }
        if let Some(most) = self.max_memory_mib.filter(|most| vm.memory_mib > *most) {
            if !self.cap {
                let message = format!("{} MiB of memory are asked for, {most} are allowed", vm.memory_mib);
                return Ok(refuse("limit.memory", message).into());
            }
            patches.push(VmPatch::CapMemoryMib(most));
        }
        if !patches.is_empty() {
            log::info(&format!("{} is made smaller", vm.name));
        }
        Ok(Verdict::Allow(patches))
    }
}

ostler_policy::export!(Rules: admit);

#[cfg(test)]
mod tests {
    use super::*;
    use ostler_policy::testing;

    #[test]
    fn large_vms_are_denied_or_capped() {
        let mut request = testing::admit();
        request.vm.vcpus = 3;
        let rules: Rules = testing::read([("max-vcpus", "2")]).unwrap();
        assert!(matches!(rules.admit(&request), Ok(Verdict::Deny(denial)) if denial.code == "limit.vcpus"));
        let rules: Rules = testing::read([("max-vcpus", "2"), ("cap", "true")]).unwrap();
        assert_eq!(rules.admit(&request), Ok(Verdict::Allow(vec![VmPatch::CapVcpus(2)])));
    }
}
