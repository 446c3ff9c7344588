//! Admits VMs by a tenant's limits. The examples to read first when writing a plugin are in `../examples`.
//!
//! Settings, all optional; a limit that is not set does not limit:
//!
//! | key | meaning |
//! |---|---|
//! | `max-vms` | registered VMs of the tenant |
//! | `max-vcpus`, `max-memory-mib` | size of one VM |
//! | `max-disks`, `max-nics` | disks and network interfaces of one VM, when it is registered and when one is attached |
//! | `total-vcpus`, `total-memory-mib` | all VMs of the tenant together |
//! | `mode` | `deny` (default): a VM that is too large is denied; `cap`: it is made smaller instead |
//!
//! [`limits`] decides, [`settings`] says within which limits; this file is what the host sees of it.

mod limits;
mod settings;

use limits::Limits;
use ostler_policy::admit::{self, Admit, AdmitRequest};
use ostler_policy::attach::{self, Attach, AttachRequest, Device};
use ostler_policy::{Error, Policy, Reader, Source};

impl Policy for Limits {
    const NAME: &'static str = "admission";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &'static str = "admits VMs by the tenant's limits";
    const SETTINGS: &'static [&'static str] = &settings::KEYS;

    fn read(settings: &mut Reader<'_, impl Source>) -> Self {
        settings::read(settings)
    }
}

impl Admit for Limits {
    fn admit(&self, request: &AdmitRequest) -> Result<admit::Verdict, Error> {
        Ok(self.judge(request).map_or_else(admit::Verdict::from, admit::Verdict::Allow))
    }
}

impl Attach for Limits {
    fn attach(&self, request: &AttachRequest) -> Result<attach::Verdict, Error> {
        let judged = match request.device {
            Device::Disk(_) => self.judge_disks(request.vm.disks.saturating_add(1)),
            Device::Nic(_) => self.judge_nics(request.vm.nics.saturating_add(1)),
            // Whether there is one for it is for plugins with the hook `select-nvme`.
            Device::Nvme(_) => Ok(()),
        };
        Ok(judged.map_or_else(attach::Verdict::from, |()| attach::Verdict::Allow))
    }
}

ostler_policy::export!(Limits: admit, attach);

#[cfg(test)]
mod tests {
    use super::*;
    use ostler_policy::attach::{Disk, Nvme};
    use ostler_policy::testing;

    #[test]
    fn one_more_device_counts_and_an_nvme_device_is_others_business() {
        let limits: Limits = testing::read([("max-disks", "0")]).unwrap();
        let disk = Device::Disk(Disk { id: "data".into(), volume: "data.img".into(), read_only: false });
        let verdict = limits.attach(&testing::attach(disk)).unwrap();
        assert!(matches!(verdict, attach::Verdict::Deny(denial) if denial.code == "limit.disks"));
        let nvme = Device::Nvme(Nvme { id: "data".into(), min_bytes: None });
        assert_eq!(limits.attach(&testing::attach(nvme)), Ok(attach::Verdict::Allow));
    }
}
