//! NVMe for guests: namespaces to secondary controllers and back, clean. Key types: [`NvmePlace`]; key functions:
//! [`connect`], [`disconnect`], [`clean_namespace`], [`provision`].
//!
//! Everything goes through the primary controller's admin queue, which the host's driver runs. Each step is verified by
//! asking the controller; each can be repeated after a crash at any point.
//!
//! ```text
//!   connect:     vfio-pci ─▶ reset ─▶ nothing attached to the secondary ─▶ the namespace attached ─▶ verified
//!   disconnect:  reset ─▶ unbound ─▶ nothing attached to the secondary ─▶ verified
//!   clean:       attached to the primary only ─▶ Format NVM, or zeroes ─▶ all of it read back ─▶ detached
//! ```

mod clean;
mod controller;
mod provision;

use super::HostdevError;
use super::bind::{BINDING, PciBus, UNBINDING};
use super::reset::{RESETTING, reset};
use crate::daemon::crash::{self, Point};
use crate::daemon::operation::{Step, Underway};
use crate::model::Bdf;
use crate::sys::nvme::{Admin, CommandError};
pub use clean::{clean_controller, clean_namespace};
pub use controller::{lend_controller, reset_controller, take_controller_back};
pub use provision::{Shares, provision};

/// Where a secondary controller is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmePlace {
    /// The kernel's name of its primary controller, such as `nvme0`.
    pub primary: String,
    /// Its id in the subsystem.
    pub controller: u16,
    /// Its virtual function.
    pub function: Bdf,
}

/// Makes a secondary controller ready for a guest: vfio-pci bound, reset, namespace `nsid` attached to it and to nothing
/// else, and nothing else to it. Blocks. On an error it may be anywhere in between: [`disconnect`] it.
pub fn connect(place: &NvmePlace, nsid: u32, operation: &Underway) -> Result<(), HostdevError> {
    let admin = open(&place.primary)?;
    let bus = PciBus::of_host();
    operation.tell(Step::new(BINDING));
    bus.bind_to_vfio(place.function)?;
    operation.tell(Step::new(RESETTING));
    reset(&bus.dir(place.function), place.function)?;
    crash::reach(Point::SecondaryBound);
    operation.tell(Step::new("attaching the namespace to its controller"));
    detach_all(&admin, &place.primary, place.controller)?;
    set_attached(&admin, &place.primary, nsid, Some(place.controller))?;
    crash::reach(Point::SecondaryConnected);
    Ok(())
}

/// Takes a secondary controller back: reset, unbound from vfio-pci, nothing attached to it. Gives the ids of namespaces
/// that were. Blocks; can be repeated.
pub fn disconnect(place: &NvmePlace, operation: &Underway) -> Result<Vec<u32>, HostdevError> {
    let admin = open(&place.primary)?;
    let bus = PciBus::of_host();
    operation.tell(Step::new(RESETTING));
    reset(&bus.dir(place.function), place.function)?;
    operation.tell(Step::new(UNBINDING));
    bus.leave_vfio(place.function)?;
    crash::reach(Point::SecondaryUnbound);
    operation.tell(Step::new("detaching namespaces from the controller"));
    let detached = detach_all(&admin, &place.primary, place.controller)?;
    crash::reach(Point::SecondaryEmptied);
    Ok(detached)
}

/// The same for a controller whose function is gone.
pub fn detach_all_from(primary: &str, controller: u16) -> Result<Vec<u32>, HostdevError> {
    detach_all(&open(primary)?, primary, controller)
}

fn open(device: &str) -> Result<Admin, HostdevError> {
    Admin::open(device).map_err(|source| HostdevError::NvmeOpen { device: device.to_owned(), source })
}

fn refused(device: &str) -> impl Fn(CommandError) -> HostdevError {
    move |source| HostdevError::Nvme { device: device.to_owned(), source }
}

/// Detaches every namespace from a controller; gives their ids.
fn detach_all(admin: &Admin, device: &str, controller: u16) -> Result<Vec<u32>, HostdevError> {
    let refused = refused(device);
    let mut detached = Vec::new();
    for nsid in admin.allocated_namespaces().map_err(&refused)? {
        if admin.controllers_of(nsid).map_err(&refused)?.contains(&controller) {
            admin.detach_namespace(nsid, controller).map_err(&refused)?;
            if admin.controllers_of(nsid).map_err(&refused)?.contains(&controller) {
                return Err(HostdevError::NvmeAttachment { device: device.to_owned(), nsid });
            }
            detached.push(nsid);
        }
    }
    Ok(detached)
}

/// Has a namespace attached to `wanted` only, or to nothing; verified.
fn set_attached(admin: &Admin, device: &str, nsid: u32, wanted: Option<u16>) -> Result<(), HostdevError> {
    let refused = refused(device);
    let attached = admin.controllers_of(nsid).map_err(&refused)?;
    for controller in attached.iter().filter(|controller| Some(**controller) != wanted) {
        admin.detach_namespace(nsid, *controller).map_err(&refused)?;
    }
    if let Some(controller) = wanted.filter(|controller| !attached.contains(controller)) {
        admin.attach_namespace(nsid, controller).map_err(&refused)?;
    }
    if admin.controllers_of(nsid).map_err(&refused)?.into_iter().eq(wanted) {
        return Ok(());
    }
    Err(HostdevError::NvmeAttachment { device: device.to_owned(), nsid })
}
