//! Ostler's vmm, launched without a daemon.

use std::path::PathBuf;
use std::time::Instant;

use ostler::model::{DeviceKind, DeviceLaunch, FIRST_WORDS, PciSlot};

use super::vmm::{DirectVmm, Plan};
use super::{CMDLINE, Contender, Images, MEMORY_MIB, Sample, USERSPACE, VCPUS, memory};

/// The binary under test.
pub struct Ostler {
    binary: PathBuf,
}

impl Ostler {
    /// The vmm beside `OSTLER_BIN`.
    pub fn from_env() -> Result<Self, String> {
        let binary = std::env::var("OSTLER_BIN").map_err(|_| "set OSTLER_BIN (see `cargo xtask bench`)")?;
        Ok(Self { binary: PathBuf::from(binary).with_file_name("ostler-vmm") })
    }
}

impl Contender for Ostler {
    fn name(&self) -> &'static str {
        "ostler"
    }

    fn boot(&self, images: &Images) -> Result<Sample, String> {
        let dir = std::env::temp_dir().join(format!("ostler-bench-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
        let sample = boot(&self.binary, images, &dir).map_err(|error| error.to_string());
        let _ = std::fs::remove_dir_all(&dir);
        sample
    }
}

fn boot(binary: &std::path::Path, images: &Images, dir: &std::path::Path) -> std::io::Result<Sample> {
    let started = Instant::now();
    let rng = DeviceLaunch {
        id: "rng".parse().map_err(std::io::Error::other)?,
        slot: PciSlot::new(1).ok_or_else(|| std::io::Error::other("slot"))?,
        kind: DeviceKind::Rng,
    };
    let plan = Plan {
        binary,
        kernel: &images.vmlinux,
        initrd: &images.initrd,
        vcpus: VCPUS,
        memory_mib: MEMORY_MIB,
        cmdline: &format!("{FIRST_WORDS} {CMDLINE}"),
        devices: vec![(rng, vec![])],
        patience: None,
    };
    let mut vmm = DirectVmm::launch(plan, dir)?;
    vmm.wait_for(USERSPACE)?;
    let userspace_ns = started.elapsed().as_nanos() as u64;
    let memory = memory::usage(vmm.pid(), MEMORY_MIB << 10).map_err(std::io::Error::other)?;
    vmm.expect_power_off()?;
    let power_off_ns = started.elapsed().as_nanos() as u64;
    Ok(Sample { userspace_ns, power_off_ns, memory })
}
