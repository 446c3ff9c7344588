//! A whole NVMe controller for a guest and back. Key functions: [`lend_controller`], [`take_controller_back`].

use std::fs;
use std::time::Duration;

use super::super::HostdevError;
use super::super::bind::{BINDING, PciBus, UNBINDING};
use super::super::reset::{RESETTING, reset};
use super::clean_controller;
use crate::daemon::crash::{self, Point};
use crate::daemon::operation::{Step, Underway};
use crate::model::Bdf;

/// Looks at a driver that is about to take the controller back, and the time between them.
const LOOKS: u32 = 200;
const STEP: Duration = Duration::from_millis(50);

/// Gives a controller to vfio-pci, reset. Blocks.
pub fn lend_controller(address: Bdf, operation: &Underway) -> Result<(), HostdevError> {
    let bus = PciBus::of_host();
    operation.tell(Step::new(BINDING));
    bus.bind_to_vfio(address)?;
    operation.tell(Step::new(RESETTING));
    reset(&bus.dir(address), address)?;
    crash::reach(Point::ControllerLent);
    Ok(())
}

/// Resets a controller that vfio-pci keeps for its VM.
pub fn reset_controller(address: Bdf) -> Result<(), HostdevError> {
    reset(&PciBus::of_host().dir(address), address)
}

/// Gives a controller back to the host's driver, reset, and every namespace of it without data. Blocks for as long as
/// they take to be read; can be repeated. `operation` is told how far that is, and may be called off.
pub fn take_controller_back(address: Bdf, operation: &Underway) -> Result<(), HostdevError> {
    let bus = PciBus::of_host();
    operation.tell(Step::new(RESETTING));
    reset(&bus.dir(address), address)?;
    operation.tell(Step::new(UNBINDING));
    bus.leave_vfio(address)?;
    operation.tell(Step::new("waiting for the host's driver"));
    bus.probe(address)?;
    for _ in 0..LOOKS {
        if let Some(device) = live_device(&bus, address) {
            crash::reach(Point::ControllerReturned);
            return clean_controller(&device, operation);
        }
        std::thread::sleep(STEP);
    }
    Err(HostdevError::NvmeNotBack { controller: address })
}

/// The kernel's name of a controller that its driver has brought up.
fn live_device(bus: &PciBus, address: Bdf) -> Option<String> {
    let dir = bus.dir(address).join("nvme");
    let name = fs::read_dir(&dir).ok()?.flatten().next()?.file_name().into_string().ok()?;
    let state = fs::read_to_string(dir.join(&name).join("state")).ok()?;
    (state.trim() == "live").then_some(name)
}
