//! Devices of the host in a guest: a virtual function of a network card, and an NVMe controller.
//!
//! Below the API: the test prepares the device, opens it as the daemon does, and launches a vmm.

use std::fs;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::support::assets;
use crate::support::vmm::{DirectVmm, Plan};
use crate::support::wait::{BOOT, SOON, until};
use ostler::daemon::hostdev::{OpenError, open};
use ostler::model::{Bdf, DeviceKind, DeviceLaunch, PciSlot};

const DEVICES: &str = "/sys/bus/pci/devices";
const MAC: &str = "02:00:5e:10:00:07";
/// What the guest's network takes as its own gateway answers pings there.
const NETWORK: &str = "ip=10.0.2.20::10.0.2.2:255.255.255.0::eth0:off";
/// PCI class of an NVMe controller.
const NVME_CLASS: &str = "0x010802";
/// Longest that a guest may be silent.
const PATIENCE: Duration = BOOT;

fn device(at: Bdf, file: &str) -> PathBuf {
    Path::new(DEVICES).join(at.to_string()).join(file)
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn write(path: impl AsRef<Path>, text: &str) {
    fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()));
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Functions of the host that `is_wanted`.
fn functions(is_wanted: impl Fn(Bdf) -> bool) -> Vec<Bdf> {
    let mut found: Vec<Bdf> = fs::read_dir(DEVICES)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(|at| is_wanted(*at))
        .collect();
    found.sort();
    found
}

/// A device that vfio-pci has for the time of a test.
struct Bound(Bdf);

impl Bound {
    fn new(at: Bdf) -> Self {
        if device(at, "driver").exists() {
            write(device(at, "driver/unbind"), &at.to_string());
        }
        write(device(at, "driver_override"), "vfio-pci");
        write("/sys/bus/pci/drivers_probe", &at.to_string());
        Self(at)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = fs::write(device(self.0, "driver/unbind"), self.0.to_string());
        let _ = fs::write(device(self.0, "driver_override"), "\n");
    }
}

/// One virtual function of the lab's network card, with its address set; the card itself has its link.
struct VirtualFunction {
    card: Bdf,
    bound: Bound,
    /// There is one card, and tests run side by side.
    _turn: MutexGuard<'static, ()>,
}

impl VirtualFunction {
    fn make() -> Option<Self> {
        static CARD: Mutex<()> = Mutex::new(());
        let turn = CARD.lock().unwrap_or_else(PoisonError::into_inner);
        run("modprobe", &["igb"]);
        let card =
            functions(|at| device(at, "sriov_numvfs").exists() && device(at, "net").exists()).first().copied()?;
        let interface = fs::read_dir(device(card, "net")).unwrap().next()?.unwrap().file_name().into_string().unwrap();
        let carrier = || {
            let carrier = format!("/sys/class/net/{interface}/carrier");
            until("the card's carrier", SOON, || (read(&carrier) == "1").then_some(()));
        };
        run("ip", &["link", "set", &interface, "up"]);
        carrier();
        write(device(card, "sriov_drivers_autoprobe"), "0");
        write(device(card, "sriov_numvfs"), "1");
        // Making functions resets the card.
        carrier();
        run("ip", &["link", "set", &interface, "vf", "0", "mac", MAC]);
        let function = fs::read_link(device(card, "virtfn0")).unwrap();
        let at = function.file_name().unwrap().to_str().unwrap().parse().unwrap();
        Some(Self { card, bound: Bound::new(at), _turn: turn })
    }
}

impl Drop for VirtualFunction {
    fn drop(&mut self) {
        let _ = fs::write(device(self.card, "sriov_numvfs"), "0");
    }
}

/// Boots a guest with the device in slot 2.
fn boot(at: Bdf, descriptors: Vec<OwnedFd>, cmdline: &str, directory: &Path) -> DirectVmm {
    let launch =
        |id: &str, slot, kind| DeviceLaunch { id: id.parse().unwrap(), slot: PciSlot::new(slot).unwrap(), kind };
    let images = assets::images().join("linux-6.12-full");
    let plan = Plan {
        binary: &assets::vmm(),
        kernel: File::open(images.join("vmlinux")).unwrap().into(),
        initrd: Some(File::open(images.join("initrd")).unwrap().into()),
        vcpus: 1,
        memory_mib: 512,
        cmdline: format!("console=ttyS0 quiet panic=-1 {cmdline}"),
        devices: vec![
            (launch("rng", 1, DeviceKind::Rng), vec![]),
            (launch("passed", 2, DeviceKind::Vfio { host: at }), descriptors),
        ],
        patience: Some(PATIENCE),
    };
    DirectVmm::launch(plan, directory).unwrap()
}

fn descriptors(at: Bdf) -> Vec<OwnedFd> {
    let opened = open(at).unwrap_or_else(|error| panic!("{error}"));
    vec![opened.container, opened.device]
}

#[test]
fn a_virtual_function_has_link_address_and_interrupts_in_the_guest() {
    let Some(function) = VirtualFunction::make() else {
        return assets::skip(
            "a_virtual_function_has_link_address_and_interrupts_in_the_guest",
            "an SR-IOV network card",
        );
    };
    let at = function.bound.0;
    let refused = open(function.card).unwrap_err().to_string();
    assert_eq!(refused, format!("device {} has driver igb; bind it to vfio-pci first", function.card));

    let directory = tempfile::tempdir().unwrap();
    let words = format!("{NETWORK} ostler.nic ostler.ping=100 ostler.exec=poweroff");
    let mut guest = boot(at, descriptors(at), &words, directory.path());
    let nic = guest.wait_for("ostler-guest: nic ").unwrap();
    assert_eq!(nic, format!("ostler-guest: nic igbvf {MAC} carrier 1"));
    assert!(matches!(open(at), Err(OpenError::InUse(_))), "a device belongs to one VM");
    let ping = guest.wait_for("ostler-guest: ping 100 ").unwrap();
    assert_eq!(ping, "ostler-guest: ping 100 packets transmitted, 100 packets received, 0% packet loss");
    let interrupts = guest.wait_for("ostler-guest: nic interrupts ").unwrap();
    let numbers: Vec<u64> = interrupts.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [before, after] = numbers[..] else { panic!("{interrupts}") };
    assert!(after >= before + 100, "each answer comes by an interrupt: {interrupts}");
    println!("{nic}\n{ping}\n{interrupts}");
    guest.expect_power_off().unwrap();
    drop(descriptors(at));
}

#[test]
fn a_guest_that_puts_bars_anywhere_keeps_running_and_gets_its_device_back() {
    let Some(function) = VirtualFunction::make() else {
        return assets::skip(
            "a_guest_that_puts_bars_anywhere_keeps_running_and_gets_its_device_back",
            "an SR-IOV network card",
        );
    };
    let at = function.bound.0;
    let directory = tempfile::tempdir().unwrap();
    let mut guest = boot(at, descriptors(at), NETWORK, directory.path());
    guest.wait_for("ostler-guest: ready").unwrap();
    let mut step = |number: u32, commands: &str| {
        guest.type_line(&format!("{commands}; echo step-$(({number}+0))")).unwrap();
        guest.wait_for(&format!("step-{number}")).unwrap();
    };
    step(1, "cd /sys/bus/pci/devices/0000:00:02.0; echo 0000:00:02.0 >driver/unbind");
    step(
        2,
        r#"put() { printf "$3" | dd of=config bs=$1 seek=$(($2/$1)) conv=notrunc 2>/dev/null; cat config >/tmp/c; }"#,
    );
    // BAR 0 has registers 0x10 and 0x14: RAM, ECAM, the I/O APIC, local APICs, BAR 3, another device's BAR, nowhere.
    let places = [
        r"\000\000\000\001",
        r"\000\000\000\340",
        r"\000\000\300\376",
        r"\000\000\340\376",
        r"\000\100\040\300",
        r"\000\000\020\300",
        r"\377\377\377\377",
    ];
    for (number, place) in (3..).zip(places) {
        step(number, &format!("put 4 16 '{place}'"));
    }
    step(20, r"put 4 20 '\001\000\000\000'; put 4 20 '\377\377\377\377'");
    // Back, then memory decoding and bus mastering off and on.
    step(21, r"put 4 20 '\000\000\000\000'; put 4 16 '\000\000\040\300'");
    step(22, r"for i in 1 2 3 4 5 6 7 8; do put 2 4 '\000\000'; put 2 4 '\006\004'; done");
    step(
        23,
        "echo 0000:00:02.0 >/sys/bus/pci/drivers/igbvf/bind; ip addr add 10.0.2.20/24 dev eth0; ip link set eth0 up",
    );
    step(24, "until [ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ]; do usleep 100000; done");
    guest.type_line("ping -q -A -c 20 10.0.2.2").unwrap();
    let ping = guest.wait_for("20 packets transmitted").unwrap();
    assert_eq!(ping, "20 packets transmitted, 20 packets received, 0% packet loss");
    guest.type_line("poweroff -f").unwrap();
    guest.expect_power_off().unwrap();
}

#[test]
fn an_nvme_controller_is_read_and_written_by_the_guest() {
    let Some(at) = functions(|at| read(device(at, "class")) == NVME_CLASS).first().copied() else {
        return assets::skip("an_nvme_controller_is_read_and_written_by_the_guest", "an NVMe controller to give away");
    };
    let bound = Bound::new(at);
    let directory = tempfile::tempdir().unwrap();
    let mut guest = boot(at, descriptors(at), "ostler.nvme ostler.exec=poweroff", directory.path());
    let controller = guest.wait_for("ostler-guest: nvme nvme ").unwrap();
    assert_eq!(controller, "ostler-guest: nvme nvme serial LAB model QEMU NVMe Ctrl");
    let size = guest.wait_for("ostler-guest: nvme sectors ").unwrap();
    assert_eq!(size, format!("ostler-guest: nvme sectors {}", (256 << 20) / 512));
    guest.wait_for("ostler-guest: nvme reads what was written").unwrap();
    let interrupts = guest.wait_for("ostler-guest: nvme interrupts ").unwrap();
    assert!(!interrupts.ends_with(" 0"), "{interrupts}");
    println!("{controller}\n{size}\n{interrupts}");
    guest.expect_power_off().unwrap();
    drop(bound);
}
