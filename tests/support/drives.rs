//! The lab's NVMe controllers. Key type: [`Drives`].

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::shell::{DEVICES, read, run};
use super::wait::{SOON, until};

/// There is one SR-IOV controller: tests take turns.
static TURN: Mutex<()> = Mutex::new(());

/// The lab's NVMe for the time of a test.
pub struct Drives {
    _turn: MutexGuard<'static, ()>,
    /// PCI address of the SR-IOV controller.
    pub lab: String,
}

/// The serial number of the lab's SR-IOV controller.
pub const LAB: &str = "LAB";

impl Drives {
    /// The lab's; `None` where there is no such controller.
    pub fn find() -> Option<Self> {
        Self::with(LAB)
    }

    /// With the controller of this serial number as the SR-IOV one.
    pub fn with(serial: &str) -> Option<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        run("modprobe", &["-a", "nvme", "vfio-pci"]);
        let of_serial = |serial: &str| {
            let mut names = fs::read_dir("/sys/class/nvme").ok()?.map(|entry| entry.unwrap().path());
            let path = names.find(|path| read(path.join("serial")) == serial)?;
            Some(read(path.join("address")))
        };
        let lab = until("the lab's controllers", SOON, || {
            let is_live = |entry: PathBuf| read(entry.join("state")) == "live";
            let mut all = fs::read_dir("/sys/class/nvme").ok()?.map(|entry| entry.unwrap().path());
            all.all(is_live).then_some(())?;
            Some(of_serial(serial))
        })?;
        Some(Self { _turn: turn, lab })
    }

    fn dir(&self) -> PathBuf {
        Path::new(DEVICES).join(&self.lab)
    }

    /// What the host itself shows: functions with their drivers and overrides, and its disks.
    pub fn shown(&self) -> Vec<String> {
        let entries = fs::read_dir(DEVICES).unwrap().map(|entry| entry.unwrap().path());
        let is_nvme = |path: &PathBuf| read(path.join("class")) == "0x010802";
        let mut shown: Vec<_> = entries
            .filter(is_nvme)
            .map(|path| {
                let driver = fs::read_link(path.join("driver")).ok();
                let driver = driver.and_then(|driver| Some(driver.file_name()?.to_str()?.to_owned()));
                format!("{} {driver:?} {}", path.display(), read(path.join("driver_override")))
            })
            .collect();
        let disks = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        shown.extend(disks.filter(|name| name.starts_with("nvme")));
        shown.sort();
        shown
    }

    /// The host's disks come and go a moment after what was done.
    pub fn expect_shown(&self, expected: &[String]) {
        until("the host as it was", SOON, || (self.shown() == expected).then_some(()));
    }
}

impl Drop for Drives {
    fn drop(&mut self) {
        let _ = fs::write(self.dir().join("sriov_numvfs"), "0");
    }
}
