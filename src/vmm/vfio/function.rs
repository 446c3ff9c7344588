//! A device of the host on the guest's bus. Key types: [`VfioFunction`], [`AttachError`].
//!
//! Register calls come from vCPU threads and end in one pread(2) or pwrite(2) of the device at most; `apply` comes from
//! the control thread. The device's MSI-X is on from the start, with all vectors bound to events: the guest's table,
//! masks and enable bit decide which of them KVM listens to, so that no vCPU ever waits for the host's interrupt setup.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::bars::{BarLayout, LayoutError, Target};
use super::config::{
    COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY, EXPRESS_BODY, EXPRESS_ID, FORWARDED, Facts, SNAPSHOT_LEN, Unfit,
};
use crate::model::{Bdf, DeviceId};
use crate::sys::reclaim::{Pin, Reclaim};
use crate::sys::vfio::{CONFIG_REGION, Container, Device, Irq, Pages, Region};
use crate::vmm::pci::{Bars, Capabilities, ConfigSpace, Msix};
use crate::vmm::ports::{
    Alarm, AlarmKind, BarMapping, Doorbell, Effect, GuestMemory, PageMapping, PciFunction, Vector,
};

/// Why a device cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It is not of a kind that can be passed through.
    #[error("the device cannot be passed through: {0}")]
    Unfit(#[from] Unfit),
    /// Its BARs cannot be laid out.
    #[error("the device cannot be passed through: {0}")]
    Layout(#[from] LayoutError),
    /// Guest memory cannot be made reachable for its DMA.
    #[error(
        "cannot pin {mib} MiB of guest memory for DMA: {source}; the vmm's locked-memory limit must allow all of the guest's memory for each device that is passed through"
    )]
    Dma {
        /// Length of the memory region.
        mib: u64,
        /// The I/O error.
        source: io::Error,
    },
    /// The host refused something else.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The I/O error.
        source: io::Error,
    },
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> AttachError {
    move |source| AttachError::Host { what, source }
}

/// Where BARs may lie: 32-bit space that no other function has.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Its start, a multiple of its length.
    pub base: u32,
    /// Its length in bytes, a power of two.
    pub len: u64,
}

/// One BAR of the device: its region, and the pages that are the guest's own.
#[derive(Debug)]
struct BarRegion {
    number: u8,
    region: Region,
    /// By their offset in the BAR.
    pages: Vec<(u64, Arc<Pages>)>,
}

/// A PCI function of the host.
#[derive(Debug)]
pub struct VfioFunction {
    id: DeviceId,
    device: Device,
    /// Keeps guest memory mapped for the device.
    container: Container,
    /// The device's own configuration space.
    device_config: Region,
    /// What the guest sees.
    config: ConfigSpace,
    bars: Bars,
    layout: BarLayout,
    regions: Vec<BarRegion>,
    msix: Msix,
    /// Accesses that the device refused.
    faults: u64,
    /// Dropped last: until the device is closed, its DMA reaches the pages that it found.
    _pin: Pin,
}

impl VfioFunction {
    /// Takes a device over: `container` and `device` are VFIO descriptors, `at` its address on the host. All of `memory`
    /// is pinned and mapped for its DMA, and nothing of it goes back by `reclaim` as long as that is so; BARs are assigned
    /// in `window`. Alarms are for the control thread to watch.
    pub fn new(
        id: DeviceId,
        at: Bdf,
        [container, device]: [OwnedFd; 2],
        memory: &GuestMemory,
        reclaim: &Reclaim,
        window: Window,
    ) -> Result<(Self, Vec<Alarm>), AttachError> {
        let container = Container::from_fd(container).map_err(host("VFIO container"))?;
        let device = Device::from_fd(device).map_err(host("VFIO device"))?;
        let device_config = device.region(CONFIG_REGION).map_err(host("configuration space"))?;
        let mut snapshot = [0; SNAPSHOT_LEN];
        device.read(&device_config, 0, &mut snapshot).map_err(host("configuration space"))?;
        let facts = Facts::read(&snapshot)?;
        let mut bar_regions: [Region; 6] = Default::default();
        for (number, region) in (0..).zip(&mut bar_regions) {
            *region = device.region(number).map_err(host("BAR"))?;
        }
        let layout = BarLayout::new(&facts, &bar_regions, window.base.into(), window.len)?;

        let mut config = ConfigSpace::new(facts.identity);
        let mut bars = Bars::default();
        let mut regions = Vec::new();
        for plan in layout.bars() {
            bars.add(&mut config, plan.number, plan.kind, plan.len, plan.base)
                .map_err(|error| host("BAR")(io::Error::other(error)))?;
            let Some(region) = bar_regions.get_mut(usize::from(plan.number)).map(std::mem::take) else { continue };
            let map = |part: &std::ops::Range<u64>| Ok((part.start, Arc::new(device.map(&region, part.clone())?)));
            let pages = plan.direct.iter().map(map).collect::<io::Result<_>>().map_err(host("mapping of a BAR"))?;
            regions.push(BarRegion { number: plan.number, region, pages });
        }
        let mut caps = Capabilities::default();
        let msix = Msix::new(&mut config, &mut caps, facts.msix).map_err(host("MSI-X"))?;
        if facts.is_express {
            caps.add(&mut config, EXPRESS_ID, &EXPRESS_BODY)
                .map_err(|error| host("capabilities")(io::Error::other(error)))?;
        }
        let alarms = alarms(&id, &device).map_err(host("device errors"))?;
        // Before any page is mapped: none may change beneath the device.
        let _pin = reclaim.pin();
        let function =
            Self { id, device, container, device_config, config, bars, layout, regions, msix, faults: 0, _pin };
        function.start(memory)?;
        tracing::info!(device = %function.id, host = %at, vectors = facts.msix.vectors, "device is passed through");
        Ok((function, alarms))
    }

    /// Makes the device ready: its BARs decode, its DMA reaches guest memory once the guest lets it, its vectors are
    /// events.
    fn start(&self, memory: &GuestMemory) -> Result<(), AttachError> {
        self.set_register(COMMAND, COMMAND_MEMORY, COMMAND_MEMORY).map_err(host("command register"))?;
        for region in memory.memory().iter() {
            self.container.map(region).map_err(|source| AttachError::Dma { mib: region.len() >> 20, source })?;
        }
        let events = self.msix.events().iter().map(|event| &**event);
        self.device.signal(Irq::MsiX, events).map_err(host("MSI-X vectors of the host"))
    }

    /// Changes the bits of `mask` in one of the device's own registers.
    fn set_register(&self, register: u16, mask: u16, value: u16) -> io::Result<()> {
        let mut bytes = [0; 2];
        self.device.read(&self.device_config, register.into(), &mut bytes)?;
        let value = u16::from_le_bytes(bytes) & !mask | value & mask;
        self.device.write(&self.device_config, register.into(), &value.to_le_bytes())
    }

    /// Tells the device what of a guest's write it may know. `before`: configuration space as it was.
    fn forward(&mut self, before: [u16; FORWARDED.len()]) {
        for ((register, mask), old) in FORWARDED.into_iter().zip(before) {
            let new = self.config.u16(register) & mask;
            if new != old & mask {
                let result = self.set_register(register, mask, new);
                self.count(result);
            }
        }
    }

    /// Counts what the device or the host refused, and says so now and then: a guest must not fill the log.
    fn count(&mut self, result: io::Result<()>) -> bool {
        let Err(error) = result else { return true };
        self.faults += 1;
        if self.faults.is_power_of_two() {
            tracing::warn!(device = %self.id, %error, count = self.faults, "the device does not take an access");
        }
        false
    }

    fn region(&self, bar: u8) -> Option<&BarRegion> {
        self.regions.iter().find(|region| region.number == bar)
    }
}

/// Asks the host to tell of errors and of its wish to have the device back, where the device can.
fn alarms(id: &DeviceId, device: &Device) -> io::Result<Vec<Alarm>> {
    let mut alarms = Vec::new();
    for (irq, kind) in [(Irq::Error, AlarmKind::Error), (Irq::Request, AlarmKind::Request)] {
        // Not every device and kernel has them.
        if device.irqs(irq).unwrap_or(0) > 0 {
            let event = EventFd::new(EFD_NONBLOCK)?;
            device.signal(irq, [&event])?;
            alarms.push(Alarm { device: id.clone(), kind, event });
        }
    }
    Ok(alarms)
}

impl PciFunction for VfioFunction {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> Option<Effect> {
        let mapped = self.bars.mappings(&self.config);
        let forwarded = FORWARDED.map(|(register, _)| self.config.u16(register));
        self.config.write(offset, data);
        self.forward(forwarded);
        // One access reaches either the header or MSI-X control.
        let is_rerouted = self.msix.sync(&self.config);
        if self.bars.mappings(&self.config) != mapped {
            Some(Effect::BarsChanged)
        } else {
            is_rerouted.then_some(Effect::VectorsChanged)
        }
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        match self.layout.target(bar, offset, data.len()) {
            Target::Table(at) => self.msix.read_table(at, data),
            Target::Pending(at) => self.msix.read_pending(at, data),
            Target::Device => {
                let Some(region) = self.region(bar) else { return };
                let result = self.device.read(&region.region, offset, data);
                if !self.count(result) {
                    data.fill(0xff);
                }
            }
            Target::Nowhere => {}
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) -> Option<Effect> {
        match self.layout.target(bar, offset, data.len()) {
            Target::Table(at) => self.msix.write_table(at, data).then_some(Effect::VectorsChanged),
            Target::Device => {
                let result = self.device.write(&self.region(bar)?.region, offset, data);
                self.count(result);
                None
            }
            // Pending bits are read-only.
            Target::Pending(_) | Target::Nowhere => None,
        }
    }

    fn bars(&self) -> Vec<BarMapping> {
        self.bars.mappings(&self.config)
    }

    fn doorbells(&self) -> Vec<Doorbell> {
        Vec::new()
    }

    fn pages(&self) -> Vec<PageMapping> {
        let of_bar = |mapping: BarMapping| {
            let pages = self.region(mapping.bar).map_or(&[][..], |region| &region.pages);
            pages.iter().map(move |(offset, pages)| PageMapping {
                address: mapping.base.saturating_add(*offset),
                pages: Arc::clone(pages),
            })
        };
        self.bars().into_iter().flat_map(of_bar).collect()
    }

    fn vectors(&self) -> Vec<Vector> {
        self.msix.vectors()
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            // The end of the run: no DMA from here on.
            Effect::Reset => {
                let result = self.set_register(COMMAND, COMMAND_BUS_MASTER, 0);
                self.count(result);
            }
            // The machine's business, and what this function never asks for.
            Effect::BarsChanged | Effect::VectorsChanged | Effect::Activate => {}
        }
    }
}
