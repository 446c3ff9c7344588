//! Admits so many VMs of one family: the example of a plugin that sees what the tenant has.
//!
//! | key | meaning |
//! |---|---|
//! | `max-vms` | so many VMs of a family may there be; 3 |
//! | `only-on` | `true`: those that are off do not count; `false` |
//!
//! A family are the VMs whose names differ in the number at their end only: `web`, `web-1` and `web-2`. Beyond the limit it
//! denies, else it abstains: whether a VM is admitted is for other plugins to say.

use ostler_policy::admit::{Admit, AdmitRequest, Verdict};
use ostler_policy::{Error, Policy, Reader, Source, inventory, refuse};

struct Family {
    max_vms: u64,
    only_on: bool,
}

impl Policy for Family {
    const NAME: &'static str = "family";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &'static str = "lets a tenant have so many VMs of one family";
    const SETTINGS: &'static [&'static str] = &["max-vms", "only-on"];

    fn read(settings: &mut Reader<'_, impl Source>) -> Self {
        Self {
            max_vms: settings.number("max-vms", 1..=1024).unwrap_or(3),
            only_on: settings.flag("only-on").unwrap_or(false),
        }
    }
}

impl Admit for Family {
    fn admit(&self, request: &AdmitRequest) -> Result<Verdict, Error> {
        let family = family(&request.vm.name);
        let counts = |vm: &inventory::Machine| self::family(&vm.name) == family && (vm.state.is_on() || !self.only_on);
        // The VM in question is not there yet.
        let others: Vec<_> = inventory::all().into_iter().filter(counts).map(|vm| vm.name).collect();
        let Self { max_vms, .. } = self;
        if (others.len() as u64) < *max_vms {
            return Ok(Verdict::Abstain);
        }
        let message = format!("{} VMs of the family {family} are there, {max_vms} are allowed", others.len());
        Ok(refuse("family.vms", message).into())
    }
}

/// The name without a number at its end.
fn family(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((family, number)) if number.bytes().all(|b| b.is_ascii_digit()) => family,
        _ => name,
    }
}

ostler_policy::export!(Family: admit);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use ostler_policy::inventory::State;
    use ostler_policy::{Vm, testing};

    fn ask(only_on: &'static str, name: &str) -> Option<String> {
        let rule: Family = testing::read([("max-vms", "2"), ("only-on", only_on)]).unwrap();
        let request = AdmitRequest { vm: Vm { name: name.into(), ..testing::vm(name) }, ..testing::admit() };
        match rule.admit(&request).unwrap() {
            Verdict::Deny(denial) => Some(denial.message),
            Verdict::Allow(_) | Verdict::Abstain => None,
        }
    }

    #[test]
    fn a_family_are_those_that_differ_in_their_last_number() {
        for (name, expected) in
            [("web", "web"), ("web-1", "web"), ("web-a-12", "web-a"), ("web-1a", "web-1a"), ("7", "7")]
        {
            assert_eq!(family(name), expected, "{name}");
        }
    }

    #[test]
    fn so_many_of_a_family_and_others_do_not_count() {
        let machine = testing::machine;
        testing::has(&[machine("web", State::Running), machine("webster-1", State::Running)], None);
        assert_eq!(ask("false", "web-2"), None);
        testing::has(&[machine("web", State::Running), machine("web-1", State::Stopped)], None);
        assert_eq!(ask("false", "web-2").unwrap(), "2 VMs of the family web are there, 2 are allowed");
        assert_eq!((ask("true", "web-2"), ask("false", "db-1")), (None, None));
        testing::has(&[machine("web", State::Running), machine("web-1", State::Starting)], None);
        assert!(ask("true", "web-2").is_some());
    }
}
