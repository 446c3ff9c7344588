//! Admits VMs by a tenant's limits, by what they boot and have as disks, and by their labels. The examples to read first when writing a plugin are in `../examples`.
//!
//! Settings, all optional; what is not set does not limit:
//!
//! | key | meaning |
//! |---|---|
//! | `max-vms` | registered VMs of the tenant |
//! | `max-vcpus`, `max-memory-mib` | size of one VM |
//! | `max-disks`, `max-nics` | disks and network interfaces of one VM, when it is registered and when one is attached |
//! | `total-vcpus`, `total-memory-mib` | all VMs of the tenant together |
//! | `allowed-images` | kernels and initial RAM disks: files, and directories with a `/` behind them, below the node's images |
//! | `allowed-volumes` | disks, when a VM is registered and when one is attached: the same below the tenant's volumes |
//! | `required-labels` | labels that each VM must have: keys, or keys with values, `owner,tier=prod\|test` |
//! | `mode` | `deny` (default): a VM that is too large is denied; `cap`: it is made smaller instead |
//!
//! A VM is denied as `limit.*`, `image.not-allowed`, `volume.not-allowed`, `label.missing` or `label.not-allowed`.
//!
//! [`limits`], [`files`] and [`labels`] decide, [`settings`] says by what; this file is what the host sees of it.

mod files;
mod labels;
mod limits;
mod settings;
mod text;

use files::Files;
use labels::Required;
use limits::Limits;
use ostler_policy::admit::{self, Admit, AdmitRequest, VmPatch};
use ostler_policy::attach::{self, Attach, AttachRequest, Device};
use ostler_policy::{Error, Policy, Reader, Refusal, Source, subject};

/// What a VM must keep to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Admission {
    pub limits: Limits,
    pub files: Files,
    pub labels: Required,
}

impl Policy for Admission {
    const NAME: &'static str = "admission";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &'static str = "admits VMs by the tenant's limits, their images and their labels";
    const SETTINGS: &'static [&'static str] = &settings::KEYS;

    fn read(settings: &mut Reader<'_, impl Source>) -> Self {
        settings::read(settings)
    }
}

impl Admission {
    fn judge(&self, request: &AdmitRequest) -> Result<Vec<VmPatch>, Refusal> {
        let caps = self.limits.judge(request)?;
        // Asked for only where a rule needs them: a question from before they were in it is judged by the rest all the same.
        if !self.files.is_open() {
            self.files.judge(&subject::images())?;
        }
        self.labels.judge(subject::label)?;
        Ok(caps)
    }
}

impl Admit for Admission {
    fn admit(&self, request: &AdmitRequest) -> Result<admit::Verdict, Error> {
        Ok(self.judge(request).map_or_else(admit::Verdict::from, admit::Verdict::Allow))
    }
}

impl Attach for Admission {
    fn attach(&self, request: &AttachRequest) -> Result<attach::Verdict, Error> {
        let (limits, vm) = (&self.limits, &request.vm);
        let judged = match &request.device {
            Device::Disk(disk) => {
                limits.judge_disks(vm.disks.saturating_add(1)).and_then(|()| self.files.judge_volume(&disk.volume))
            }
            Device::Nic(_) => limits.judge_nics(vm.nics.saturating_add(1)),
            // Whether there is one for it is for plugins with the hook `select-nvme`.
            Device::Nvme(_) => Ok(()),
        };
        Ok(judged.map_or_else(attach::Verdict::from, |()| attach::Verdict::Allow))
    }
}

ostler_policy::export!(Admission: admit, attach);

#[cfg(test)]
mod tests {
    use super::*;
    use ostler_policy::attach::{Disk, Nvme};
    use ostler_policy::subject::{DiskImage, Image};
    use ostler_policy::testing;

    fn code(verdict: Result<admit::Verdict, Error>) -> String {
        match verdict.unwrap() {
            admit::Verdict::Deny(denial) => denial.code,
            admit::Verdict::Allow(_) => "allowed".to_owned(),
            admit::Verdict::Abstain => "abstained".to_owned(),
        }
    }

    #[test]
    fn images_and_labels_count_beside_limits() {
        let settings = [
            ("allowed-images", "linux/"),
            ("allowed-volumes", "base.img"),
            ("required-labels", "owner,tier=prod|test"),
            ("max-vcpus", "1"),
        ];
        let policy: Admission = testing::read(settings).unwrap();
        let kernel = || Image::Kernel("linux/vmlinux".into());
        let disk = |volume: &str| Image::Disk(DiskImage { id: "root".into(), volume: volume.into() });
        let admit = |images: &[Image], labels: &[(&str, &str)]| {
            testing::with_images(images);
            testing::labelled(labels);
            code(policy.admit(&testing::admit()))
        };
        let labels = [("owner", "x"), ("tier", "prod")];
        assert_eq!(admit(&[kernel(), disk("base.img")], &labels), "allowed");
        assert_eq!(admit(&[Image::Kernel("mine".into())], &labels), "image.not-allowed");
        assert_eq!(admit(&[kernel(), disk("mine.img")], &labels), "volume.not-allowed");
        assert_eq!(admit(&[kernel()], &labels[1..]), "label.missing");
        assert_eq!(admit(&[kernel()], &[("owner", "x"), ("tier", "lab")]), "label.not-allowed");
        // What is too large is told first, as it was before there was anything else.
        let mut large = testing::admit();
        large.vm.vcpus = 2;
        assert_eq!(code(policy.admit(&large)), "limit.vcpus");
        let open: Admission = testing::read([]).unwrap();
        testing::labelled(&[]);
        assert_eq!(code(open.admit(&testing::admit())), "allowed");
    }

    #[test]
    fn a_disk_that_comes_later_is_of_the_same_volumes() {
        let policy: Admission = testing::read([("allowed-volumes", "data/")]).unwrap();
        let attach = |volume: &str| {
            let disk = Device::Disk(Disk { id: "data".into(), volume: volume.into(), read_only: false });
            policy.attach(&testing::attach(disk)).unwrap()
        };
        assert_eq!(attach("data/1.img"), attach::Verdict::Allow);
        assert!(matches!(attach("other/1.img"), attach::Verdict::Deny(denial) if denial.code == "volume.not-allowed"));
    }

    #[test]
    fn one_more_device_counts_and_an_nvme_device_is_others_business() {
        let limits: Admission = testing::read([("max-disks", "0")]).unwrap();
        let disk = Device::Disk(Disk { id: "data".into(), volume: "data.img".into(), read_only: false });
        let verdict = limits.attach(&testing::attach(disk)).unwrap();
        assert!(matches!(verdict, attach::Verdict::Deny(denial) if denial.code == "limit.disks"));
        let nvme = Device::Nvme(Nvme { id: "data".into(), min_bytes: None });
        assert_eq!(limits.attach(&testing::attach(nvme)), Ok(attach::Verdict::Allow));
    }
}
