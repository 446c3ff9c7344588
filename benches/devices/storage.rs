//! Disks of the guest: its program on one, and a namespace of the host's own as a virtio disk, on the same controller as
//! the one that the guest drives itself.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ostler::api::v1;
use ostler::api::v1::device_lease::State as Lease;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::support::console::Console;
use super::support::drives::Drives;
use super::support::wait::{BOOT, until};
use super::support::{Caller, Host};

/// This program, in the guest.
pub const PROGRAM: &str = "/tmp/devices";
pub const TOOLS: &str = "tools.img";
pub const DATA: &str = "data";
const SECTOR_LEN: u64 = 512;

/// A disk whose bytes are this program's.
pub fn pack_program(host: &Host, tenant: &str) {
    let image = host.volume(tenant, TOOLS);
    let len = fs::copy(std::env::current_exe().unwrap(), &image).unwrap();
    File::options().write(true).open(&image).unwrap().set_len(len.next_multiple_of(SECTOR_LEN)).unwrap();
}

/// Has the guest copy it from there.
pub fn unpack_program(console: &mut Console) {
    let disk = device(console, "tools");
    console.run(&format!("cat {disk} > {PROGRAM}; busybox chmod 755 {PROGRAM}"));
}

/// Has secondary controllers made, and the controller's first namespace, which stays the host's, among the volumes. Why
/// not, if not.
pub fn provide(host: &Host, drives: &Drives, tenant: &str) -> Result<(), String> {
    let made = host.operator().provision_nvme(&drives.lab, 1).map_err(|error| error.message().to_owned())?;
    let own = made.namespaces.iter().find(|namespace| !namespace.block_device.is_empty());
    let own = own.ok_or("the controller has no namespace that is the host's")?;
    let device = fs::metadata(Path::new("/dev").join(&own.block_device)).map_err(|error| error.to_string())?.rdev();
    let volume = host.volume(tenant, DATA);
    mknodat(CWD, &volume, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, device).map_err(|error| error.to_string())
}

/// The guest's name of one of its virtio disks.
pub fn device(console: &mut Console, id: &str) -> String {
    let printed = console
        .run(&format!("for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = {id} ] && echo is=/dev/${{d##*/}}.; done"));
    // The echo of the line has "is=/dev/$".
    let mut names = printed.split("is=").filter_map(|rest| rest.split_once('.')).map(|(name, _)| name);
    names.find(|name| name.starts_with("/dev/vd")).expect("the disk's name").to_owned()
}

/// Waits until nobody has a namespace of the controller any more.
pub fn wait_until_free(operator: &Caller, controller: &str) {
    until("the end of the erasing", BOOT, || {
        let all = operator.nvme_controllers().unwrap();
        let leases = all.into_iter().filter(|one: &v1::NvmeHostController| one.address == controller);
        let mut leases = leases.flat_map(|one| one.namespaces).filter_map(|namespace| namespace.lease);
        leases.all(|lease| lease.state() == Lease::Free).then_some(())
    });
}
