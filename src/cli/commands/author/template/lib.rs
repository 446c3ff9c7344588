//! Admits VMs by their size. Settings, all optional:
//!
//! | key | meaning |
//! |---|---|
//! | `max-vcpus` | vCPUs of one VM |

use ostler_policy::admit::{Admit, AdmitRequest, Verdict};
use ostler_policy::{Error, Policy, Reader, Source, refuse};

/// The settings.
struct Rules {
    max_vcpus: Option<u64>,
}

impl Policy for Rules {
    const NAME: &'static str = env!("CARGO_PKG_NAME");
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &'static str = "admits VMs by their size";
    const SETTINGS: &'static [&'static str] = &["max-vcpus"];

    fn read(settings: &mut Reader<'_, impl Source>) -> Self {
        Self { max_vcpus: settings.number("max-vcpus", 1..=1024) }
    }
}

impl Admit for Rules {
    fn admit(&self, request: &AdmitRequest) -> Result<Verdict, Error> {
        let asked = u64::from(request.vm.vcpus);
        if let Some(most) = self.max_vcpus.filter(|most| asked > *most) {
            return Ok(refuse("limit.vcpus", format!("{asked} vCPUs are asked for, {most} are allowed")).into());
        }
        Ok(Verdict::Allow(Vec::new()))
    }
}

ostler_policy::export!(Rules: admit);

#[cfg(test)]
mod tests {
    use super::*;
    use ostler_policy::testing;

    #[test]
    fn large_vms_are_denied() {
        let rules: Rules = testing::read([("max-vcpus", "2")]).unwrap();
        let mut request = testing::admit();
        assert_eq!(rules.admit(&request), Ok(Verdict::Allow(Vec::new())));
        request.vm.vcpus = 3;
        assert!(matches!(rules.admit(&request), Ok(Verdict::Deny(denial)) if denial.code == "limit.vcpus"));
    }
}
