//! The lab's SR-IOV network card. Key type: [`Card`]. What it shows is asked with `ip`, not with the code under test.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::shell::{DEVICES, read, run, write};
use super::wait::{SOON, until};

/// There is one card: tests take turns.
static TURN: Mutex<()> = Mutex::new(());

/// The lab's network card with some virtual functions, for the time of a test.
pub struct Card {
    _turn: MutexGuard<'static, ()>,
    /// Its directory in sysfs.
    pub directory: PathBuf,
    /// Its network interface.
    pub interface: String,
}

/// Network cards that can have virtual functions, by address. The lab's second one shares an IOMMU group with all of its
/// own.
pub fn cards() -> Vec<PathBuf> {
    let functions = fs::read_dir(DEVICES).unwrap().map(|entry| entry.unwrap().path());
    let mut cards: Vec<_> =
        functions.filter(|path| path.join("sriov_numvfs").exists() && path.join("net").exists()).collect();
    cards.sort();
    cards
}

/// The network interface of a function whose directory is `directory`.
pub fn interface(directory: &Path) -> String {
    let mut names = fs::read_dir(directory.join("net")).unwrap().map(|entry| entry.unwrap().file_name());
    names.next().unwrap().into_string().unwrap()
}

impl Card {
    /// `None` where there is no such card.
    pub fn with_vfs(count: u32) -> Option<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        run("modprobe", &["-a", "igb", "vfio-pci"]);
        let directory = cards().into_iter().next()?;
        let card = Self { _turn: turn, interface: interface(&directory), directory };
        run("ip", &["link", "set", &card.interface, "up"]);
        card.wait_for_carrier();
        write(card.directory.join("sriov_drivers_autoprobe"), "0");
        write(card.directory.join("sriov_numvfs"), &count.to_string());
        // Making functions resets the card.
        card.wait_for_carrier();
        Some(card)
    }

    /// Making functions resets the card.
    pub fn wait_for_carrier(&self) {
        let carrier = format!("/sys/class/net/{}/carrier", self.interface);
        until("the card's carrier", SOON, || (read(&carrier) == "1").then_some(()));
    }

    /// What the card shows of its virtual functions.
    pub fn shown(&self) -> Vec<serde_json::Value> {
        let link: serde_json::Value =
            serde_json::from_str(&run("ip", &["-j", "link", "show", "dev", &self.interface])).unwrap();
        link[0]["vfinfo_list"].as_array().cloned().unwrap_or_default()
    }

    /// A virtual function's directory.
    pub fn vf(&self, index: u64) -> PathBuf {
        fs::canonicalize(self.directory.join(format!("virtfn{index}"))).unwrap()
    }

    /// No function has a driver, or is kept for one.
    pub fn assert_unbound(&self, count: u64) {
        for index in 0..count {
            let vf = self.vf(index);
            assert!(!vf.join("driver").exists(), "{} is bound", vf.display());
            assert_eq!(read(vf.join("driver_override")), "(null)");
        }
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        let _ = fs::write(self.directory.join("sriov_numvfs"), "0");
    }
}
