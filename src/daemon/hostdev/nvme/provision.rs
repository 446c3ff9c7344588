//! Secondary controllers of an NVMe controller (NVM Express Base 2.0, §8.26). Key function: [`provision`].
//!
//! The order is the one that controllers take: virtual functions off, the primary's share of the flexible resources to
//! none, the primary reset (only then do resources move), virtual functions on without a driver of the host, resources
//! to each secondary, online. What it did is asked in the end.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use super::super::HostdevError;
use super::super::bind::PciBus;
use super::super::reset::reset;
use super::{detach_all, open, refused};
use crate::daemon::crash::{self, Point};
use crate::model::Bdf;
use crate::sys::nvme::identify::SecondaryController;
use crate::sys::nvme::{Admin, Resource, block};

/// Looks at a controller that comes back from its reset, and the time between them.
const LOOKS: u32 = 400;
const STEP: Duration = Duration::from_millis(50);

/// What each secondary controller gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Virtual functions, each with a secondary controller.
    pub vfs: u16,
    /// Queue pairs of each, the admin queue included.
    pub queues: u16,
    /// Interrupt vectors of each.
    pub interrupts: u16,
}

/// Makes `shares.vfs` secondary controllers of the controller `device` at `address`, online and with nothing attached.
/// Resets the controller, so its namespaces stand still for a moment. Blocks for some seconds; can be repeated.
pub fn provision(device: &str, address: Bdf, shares: Shares) -> Result<(), HostdevError> {
    let admin = open(device)?;
    if is_done(&admin.secondary_controllers().map_err(refused(device))?, shares) {
        // Who was cut off may not have come to this.
        return secondaries(&admin, device, shares)?.iter().try_for_each(|one| empty(&admin, device, one));
    }
    require_unused(device)?;
    let bus = PciBus::of_host();
    bus.set(address, "switch off the virtual functions", "sriov_numvfs", "0")?;
    crash::reach(Point::ProvisionCleared);
    for resource in [Resource::Queues, Resource::Interrupts] {
        admin.set_primary_share(resource, 0).map_err(refused(device))?;
    }
    reset(&bus.dir(address), address)?;
    wait_until_live(device, address)?;
    crash::reach(Point::ProvisionReset);
    if shares.vfs == 0 {
        return Ok(());
    }
    // Only who names a driver for it (`driver_override`) gets one of these functions.
    bus.set(address, "keep host drivers from the virtual functions", "sriov_drivers_autoprobe", "0")?;
    bus.set(address, "make virtual functions", "sriov_numvfs", &shares.vfs.to_string())?;
    crash::reach(Point::ProvisionEnabled);
    for secondary in secondaries(&admin, device, shares)? {
        bring_up(&admin, device, &secondary, shares)?;
    }
    if is_done(&admin.secondary_controllers().map_err(refused(device))?, shares) {
        return Ok(());
    }
    Err(HostdevError::NvmeNotProvisioned { device: device.to_owned() })
}

/// Whoever mounts a disk or builds on it has it exclusively, its partitions included, in whatever namespace of mounts.
fn require_unused(device: &str) -> Result<(), HostdevError> {
    for (nsid, name) in block::of_controller(device) {
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(format!("/dev/{name}"));
        opened.map_err(|source| HostdevError::NvmeDisk { what: "have", device: device.to_owned(), nsid, source })?;
    }
    Ok(())
}

/// Those that have one of the virtual functions.
fn secondaries(admin: &Admin, device: &str, shares: Shares) -> Result<Vec<SecondaryController>, HostdevError> {
    let all = admin.secondary_controllers().map_err(refused(device))?;
    Ok(all.into_iter().filter(|secondary| (1..=shares.vfs).contains(&secondary.vf_number)).collect())
}

fn bring_up(admin: &Admin, device: &str, secondary: &SecondaryController, shares: Shares) -> Result<(), HostdevError> {
    let refused = refused(device);
    admin.assign(secondary.id, Resource::Queues, shares.queues).map_err(&refused)?;
    admin.assign(secondary.id, Resource::Interrupts, shares.interrupts).map_err(&refused)?;
    admin.bring_online(secondary.id).map_err(&refused)?;
    crash::reach(Point::ProvisionOnline);
    empty(admin, device, secondary)
}

/// A controller attaches its shared namespaces to new ones by itself: nobody asked for that.
fn empty(admin: &Admin, device: &str, secondary: &SecondaryController) -> Result<(), HostdevError> {
    detach_all(admin, device, secondary.id).map(drop)
}

/// Whether there is nothing to do: so many are online, with so much, and no more.
fn is_done(secondaries: &[SecondaryController], shares: Shares) -> bool {
    let online = secondaries.iter().filter(|secondary| secondary.is_online).count();
    let as_wanted = secondaries.iter().filter(|secondary| {
        secondary.is_online && secondary.queues == shares.queues && secondary.interrupts == shares.interrupts
    });
    online == usize::from(shares.vfs) && as_wanted.count() == online && shares.vfs > 0
}

fn wait_until_live(device: &str, address: Bdf) -> Result<(), HostdevError> {
    for _ in 0..LOOKS {
        if fs::read_to_string(format!("/sys/class/nvme/{device}/state")).is_ok_and(|state| state.trim() == "live") {
            return Ok(());
        }
        std::thread::sleep(STEP);
    }
    Err(HostdevError::NvmeNotBack { controller: address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_when_there_is_nothing_to_do() {
        let one = |id: u16, is_online, queues| SecondaryController {
            id,
            primary: 0,
            is_online,
            vf_number: id,
            queues,
            interrupts: u16::from(is_online),
        };
        let shares = Shares { vfs: 2, queues: 2, interrupts: 1 };
        assert!(is_done(&[one(1, true, 2), one(2, true, 2), one(3, false, 0)], shares));
        assert!(!is_done(&[one(1, true, 2), one(2, false, 0)], shares), "one is missing");
        assert!(!is_done(&[one(1, true, 2), one(2, true, 1)], shares), "one has less");
        assert!(!is_done(&[one(1, true, 2), one(2, true, 2), one(3, true, 2)], shares), "one too many");
        assert!(!is_done(&[], Shares { vfs: 0, ..shares }), "none is always made anew");
    }
}
