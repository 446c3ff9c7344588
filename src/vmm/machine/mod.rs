//! The machine: memory, vCPUs, buses, interrupts and the functions attached to it. Key type: [`Machine`].
//!
//! Assembles `kvm`, `boot`, `pci`, `virtio`, `legacy` and `console`; owned by `vmm/control`, which calls [`Machine::apply`]
//! for what vCPU threads ask. Cold plug is [`Machine::attach`] before [`Machine::run`]; hot plug is the same call later,
//! of which the guest is told. A device leaves by [`Machine::detach`], whether or not the guest was asked for it before.
//!
//! ```text
//!   attach ──▶ on the bus ──(guest told: device check)──▶ driver ──▶ BARs, doorbells, vectors
//!   ask_back ──(guest told: eject request)──▶ driver lets go ──_EJ0──▶ Message::Eject ──▶ detach ──▶ nothing is left
//! ```

mod bus;
mod irq;
mod layout;
mod memory;
mod pages;
mod stillness;
mod vcpu;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Barrier, PoisonError};

use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::boot::{self, BootError, acpi};
use super::console::Writer;
use super::counters::Counting;
use super::kvm::{EntryPoint, Hypervisor, KvmError, Lacks, Vcpu, Vm};
use super::legacy::power;
use super::legacy::serial::Serial;
use super::pci::{PciBus, SharedFunction, SlotTaken};
use super::ports::{ChangeError, Confine, Doorbell, Effect, GuestMemory, PciFunction};
use super::virtio::Keyboard;
use crate::model::{CpuSpec, DeviceChange, MemorySpec, PageSize, PciSlot, Topology};
use crate::sys::reclaim::Reclaim;
use crate::sys::{kick, numa};
use bus::Bus;
use irq::IrqTable;
use pages::PageTable;
pub use stillness::Pause;
use stillness::{Stillness, all_rest};
use vcpu::Place;
pub use vcpu::{Mailbox, Message};

/// Why a machine could not be built or changed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The host's KVM is too old.
    #[error(transparent)]
    Lacks(#[from] Lacks),
    /// A KVM call failed.
    #[error("{error}: {}", error.source)]
    Kvm {
        /// Which one, and why.
        error: KvmError,
    },
    /// The kernel, the initrd or the command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Guest memory could not be mapped.
    #[error("cannot map {mib} MiB of guest memory in {pages} pages: {source}")]
    Memory {
        /// What was asked for.
        mib: u64,
        /// In these pages.
        pages: PageSize,
        /// The I/O error.
        source: io::Error,
    },
    /// The host has no such node, or no memory there.
    #[error("cannot take memory from NUMA node {node}: {source}; /sys/devices/system/node shows which there are")]
    Node {
        /// Which.
        node: u32,
        /// The I/O error.
        source: io::Error,
    },
    /// More vCPUs than KVM gives a VM here.
    #[error("{wanted} vCPUs, this host's KVM allows {most}")]
    TooManyVcpus {
        /// What was asked for.
        wanted: u32,
        /// What the host allows.
        most: usize,
    },
    /// Two functions for one slot.
    #[error(transparent)]
    SlotTaken(#[from] SlotTaken),
    /// The guest was not told of this slot when it booted.
    #[error("slot {slot} takes no device while the VM runs: those up to {last} do")]
    SlotIsFixed {
        /// The slot.
        slot: u8,
        /// The last one that does.
        last: u8,
    },
    /// Anything else that the host refused.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The I/O error.
        source: io::Error,
    },
}

impl From<KvmError> for MachineError {
    fn from(error: KvmError) -> Self {
        Self::Kvm { error }
    }
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Host { what, source }
}

/// What a machine is built from.
pub struct Plan<'a> {
    /// `/dev/kvm`.
    pub hypervisor: &'a Hypervisor,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// How they look to the guest, and where they run.
    pub cpus: &'a CpuSpec,
    /// Length of guest memory in bytes.
    pub memory_bytes: u64,
    /// What kind of pages it has, and where they come from.
    pub memory: MemorySpec,
    /// Kernel image.
    pub kernel: &'a File,
    /// Initial RAM disk.
    pub initrd: Option<&'a File>,
    /// Kernel command line.
    pub cmdline: &'a str,
    /// By what the guest speaks with its console.
    pub console: Console,
    /// Where vCPUs count.
    pub counting: &'a Counting,
    /// First and last slot whose device may come or leave while the VM runs.
    pub hotplug_slots: (PciSlot, PciSlot),
}

/// What the guest's console is.
pub enum Console {
    /// COM1.
    Serial {
        /// Where its output goes.
        output: Writer,
        /// Signalled when the guest has taken the input that was typed.
        input_taken: Arc<EventFd>,
    },
    /// A PCI function, which comes like the others; this takes what is typed. There is no COM1.
    Virtio(Keyboard),
}

/// A VM that is built, and runs once [`Machine::run`] was called.
pub struct Machine {
    vm: Vm,
    memory: GuestMemory,
    bus: Arc<Bus>,
    /// `None`: COM1 takes what is typed.
    keyboard: Option<Keyboard>,
    irqs: IrqTable,
    /// Doorbells as KVM knows them, by slot.
    doorbells: BTreeMap<u8, Vec<Doorbell>>,
    pages: PageTable,
    /// Raises the generic event device's interrupt.
    power_button: EventFd,
    /// Raises its second one.
    slot_news: EventFd,
    hotplug_slots: (PciSlot, PciSlot),
    /// Off the bus, but not yet done with what they have of the host.
    leaving: Vec<(PciSlot, Box<dyn PciFunction>)>,
    /// Until they run.
    vcpus: Vec<Vcpu>,
    /// CPUs of the host that each may use; `None`: all.
    pins: Vec<Option<Vec<u32>>>,
    counting: Counting,
    stillness: Stillness,
    reclaim: Reclaim,
    is_running: bool,
}

impl Machine {
    /// Builds everything but the devices, and loads what is booted, one after the other: what KVM takes is an eighth of the
    /// instructions until the guest's first one, most of the rest are page faults in the same address space, and a second
    /// thread would cost more than it could overlap (its start, its stack, its filter of system calls).
    pub fn build(plan: Plan<'_>) -> Result<Self, MachineError> {
        let most = plan.hypervisor.max_vcpus();
        // APIC ids are told in 8 bits.
        if plan.vcpus as usize > most.min(usize::from(u8::MAX)) {
            return Err(MachineError::TooManyVcpus { wanted: plan.vcpus, most });
        }
        if let Some(node) = plan.memory.numa_node {
            // Threads that are made later inherit it: whoever touches a page first, it comes from there.
            numa::bind(node).map_err(|source| MachineError::Node { node, source })?;
        }
        let pages = plan.memory.pages;
        let memory = memory::map(plan.memory_bytes, &plan.memory).map_err(|source| MachineError::Memory {
            mib: plan.memory_bytes >> 20,
            pages,
            source,
        })?;
        let vm = Vm::new(plan.hypervisor, memory.clone(), layout::KVM_TSS, plan.counting.holdings())?;
        let topology = plan.cpus.topology.unwrap_or(Topology::flat(plan.vcpus));
        let vcpus = (0..plan.vcpus).map(|index| vm.create_vcpu(index, topology)).collect::<Result<Vec<_>, _>>()?;

        let kickers = vcpus.iter().map(|vcpu| vm.kicker(vcpu)).collect::<Result<Vec<_>, _>>()?;

        let images = boot::Images { kernel: plan.kernel, initrd: plan.initrd, cmdline: plan.cmdline };
        let apic_ids: Vec<u8> = (0..plan.vcpus).map(|index| topology.apic_id(index) as u8).collect();
        let has_serial = matches!(plan.console, Console::Serial { .. });
        let hotplug_slots = plan.hotplug_slots;
        let shape = Shape { memory_bytes: plan.memory_bytes, apic_ids: &apic_ids, hotplug_slots, has_serial };
        let entry = load(&memory, images, &shape)?;
        if let Some(first) = vcpus.first() {
            first.set_entry(entry)?;
        }

        let line = |gsi| -> Result<EventFd, MachineError> {
            let event = EventFd::new(libc::EFD_NONBLOCK).map_err(host("eventfd"))?;
            vm.connect_irq(&event, gsi)?;
            Ok(event)
        };
        let (serial, keyboard) = match plan.console {
            Console::Serial { output, input_taken } => {
                (Some(Serial::new(line(layout::SERIAL_GSI)?, input_taken, output)), None)
            }
            Console::Virtio(keyboard) => (None, Some(keyboard)),
        };
        let power_button = line(layout::GED_GSI)?;
        let slot_news = line(layout::SLOTS_GSI)?;
        Ok(Self {
            vm,
            memory: GuestMemoryAtomic::new(memory),
            bus: Arc::new(Bus::new(serial, PciBus::new())),
            keyboard,
            irqs: IrqTable::default(),
            doorbells: BTreeMap::new(),
            pages: PageTable::default(),
            power_button,
            slot_news,
            hotplug_slots,
            leaving: Vec::new(),
            vcpus,
            pins: (0..plan.vcpus as usize).map(|index| plan.cpus.pinned(index, plan.vcpus as usize)).collect(),
            counting: plan.counting.clone(),
            stillness: Stillness::new(kickers),
            reclaim: Reclaim::default(),
            is_running: false,
        })
    }

    /// Guest memory, as devices see it.
    pub fn memory(&self) -> GuestMemory {
        self.memory.clone()
    }

    /// By which pages of it go back to the host, unless a device of the host pins them.
    pub fn reclaim(&self) -> Reclaim {
        self.reclaim.clone()
    }

    /// Where a function in `slot` finds its BARs: the start of 1 MiB of the 32-bit window.
    pub fn slot_window(slot: PciSlot) -> u32 {
        // The window ends below 4 GiB, as a test of the layout shows.
        layout::slot_window(slot.number()) as u32
    }

    /// Length of that space in bytes.
    pub const SLOT_WINDOW_LEN: u64 = layout::SLOT_WINDOW_LEN;

    /// Puts a function into a slot, and tells the guest if it runs. On an error nothing of it is left.
    pub fn attach(&mut self, slot: PciSlot, function: Box<dyn PciFunction>) -> Result<(), MachineError> {
        let (first, last) = self.hotplug_slots;
        if self.is_running && !(first..=last).contains(&slot) {
            return Err(MachineError::SlotIsFixed { slot: slot.number(), last: last.number() });
        }
        if self.leaving.iter().any(|(taken, _)| *taken == slot) {
            return Err(SlotTaken { slot: slot.number() }.into());
        }
        self.bus.with_pci(|pci| pci.insert(slot, function))?;
        let connected = self.sync_bars(slot.number()).and_then(|()| self.sync_vectors(slot.number()));
        if let Err(error) = connected {
            self.detach(slot)?;
            return Err(error);
        }
        if self.is_running {
            self.bus.with_slots(|slots| slots.insert(slot.number()));
            self.tell_of_slots();
        }
        Ok(())
    }

    /// Asks the guest for what is in a slot: if it lets it go, [`Message::Eject`] follows, at any time. May be repeated.
    pub fn ask_back(&self, slot: PciSlot) {
        self.bus.with_slots(|slots| slots.ask(slot.number()));
        self.tell_of_slots();
    }

    /// Takes the function out of a slot, whatever the guest does with it: off the bus, off KVM, its work ended. Returns
    /// whether it is gone; if not, the host still works for it, and [`Machine::departed`] will tell.
    pub fn detach(&mut self, slot: PciSlot) -> Result<bool, MachineError> {
        let number = slot.number();
        let Some(function) = self.bus.with_pci(|pci| pci.remove(slot)) else { return Ok(true) };
        self.bus.with_slots(|slots| slots.clear(number));
        self.bus.set_windows(number, &[]);
        for doorbell in self.doorbells.remove(&number).unwrap_or_default() {
            self.vm.remove_doorbell(&doorbell.event, doorbell.address)?;
        }
        self.pages.sync(&mut self.vm, number, Vec::new())?;
        self.irqs.sync(&self.vm, number, &[])?;
        let mut function = sole(function);
        let is_gone = function.leave();
        if !is_gone {
            self.leaving.push((slot, function));
        }
        Ok(is_gone)
    }

    /// Slots whose functions have left since [`Machine::detach`] said that they had not.
    pub fn departed(&mut self) -> Vec<PciSlot> {
        let gone = self.leaving.extract_if(.., |(_, function)| function.leave());
        gone.map(|(slot, _)| slot).collect()
    }

    /// Whether something is to be looked at again after a while: news that the guest has not read, or functions that
    /// have not left.
    pub fn is_waiting(&self) -> bool {
        !self.leaving.is_empty() || self.bus.with_slots(|slots| slots.has_news())
    }

    /// Raises the interrupt again for news that the guest has not read: it may have had no handler before.
    pub fn remind(&self) {
        if self.bus.with_slots(|slots| slots.has_news()) {
            self.tell_of_slots();
        }
    }

    fn tell_of_slots(&self) {
        // Fails only when the counter is full, and then the interrupt is pending anyway.
        let _ = self.slot_news.write(1);
    }

    /// Starts the vCPUs. Their threads begin with `confine_vcpu`; the calling thread does `confine_own` before it lets
    /// them go, and can make no thread afterwards.
    pub fn run(&mut self, mailbox: &Mailbox, confine_vcpu: Confine, confine_own: Confine) -> Result<(), MachineError> {
        let vcpus = std::mem::take(&mut self.vcpus);
        let start = Arc::new(Barrier::new(vcpus.len() + 1));
        kick::prepare().map_err(host("signal handler"))?;
        let pins = std::mem::take(&mut self.pins);
        let each = vcpus.into_iter().zip(pins).zip(self.stillness.seats());
        for (index, ((vcpu, pin), seat)) in each.enumerate() {
            let (bus, mailbox, gate) = (Arc::clone(&self.bus), mailbox.clone(), self.stillness.gate());
            let place = Place { bus, mailbox, seat, gate, pin, counters: self.counting.vcpu(index) };
            vcpu::spawn(index, vcpu, place, Arc::clone(&start), confine_vcpu).map_err(host("vCPU thread"))?;
        }
        confine_own().map_err(host("system call filter"))?;
        self.is_running = true;
        start.wait();
        Ok(())
    }

    /// Performs what a register write of the function in `slot` asked for.
    pub fn apply(&mut self, slot: u8, effect: Effect) -> Result<(), MachineError> {
        match effect {
            Effect::BarsChanged => self.sync_bars(slot),
            Effect::VectorsChanged => self.sync_vectors(slot),
            Effect::Activate | Effect::Reset => {
                if let Some(function) = self.bus.function(slot) {
                    function.lock().unwrap_or_else(PoisonError::into_inner).apply(effect);
                }
                Ok(())
            }
        }
    }

    /// Changes what the host decides of the function in `slot`.
    pub fn change(&self, slot: u8, change: DeviceChange) -> Result<(), ChangeError> {
        let function = self.bus.function(slot).ok_or(ChangeError::Unsupported)?;
        let mut function = function.lock().unwrap_or_else(PoisonError::into_inner);
        function.change(change)
    }

    /// Presses the ACPI power button.
    pub fn press_power_button(&self) -> io::Result<()> {
        self.power_button.write(1)
    }

    /// Begins to make the machine stand still: each vCPU that parks posts [`Message::Parked`].
    pub fn pause(&mut self) -> io::Result<Pause> {
        self.stillness.park()
    }

    /// A vCPU has parked. When it was the last one, [`Machine::rest`] is next.
    pub fn parked(&mut self, turn: u64) -> Pause {
        self.stillness.parked(turn)
    }

    /// With all vCPUs parked: waits until every device of ours rests. When one is late, everything goes on, and the
    /// answer is false. Devices of the host are not ours to hold: they go on with what their driver gave them.
    pub fn rest(&mut self) -> bool {
        let resting =
            self.functions().filter_map(|function| function.lock().unwrap_or_else(PoisonError::into_inner).pause());
        // One that leaves is off the bus, and may still be at work.
        if all_rest(resting.collect()) && self.leaving.is_empty() {
            self.stillness.settle();
            return true;
        }
        self.resume();
        false
    }

    /// Ends a pause, or what there is of one.
    pub fn resume(&mut self) {
        for function in self.functions() {
            function.lock().unwrap_or_else(PoisonError::into_inner).resume();
        }
        self.stillness.resume();
    }

    /// Whether everything stands still.
    pub fn is_still(&self) -> bool {
        self.stillness.is_still()
    }

    /// Gives every vCPU a non-maskable interrupt.
    pub fn inject_nmi(&mut self) -> io::Result<()> {
        self.stillness.inject_nmi()
    }

    fn functions(&self) -> impl Iterator<Item = SharedFunction> {
        (1..32).filter_map(|slot| self.bus.function(slot))
    }

    /// Types as much of `input` as the console takes.
    pub fn type_in(&self, input: &[u8]) -> usize {
        match &self.keyboard {
            Some(keyboard) => keyboard.type_in(input),
            None => self.bus.with_serial(|serial| serial.type_in(input)).unwrap_or(0),
        }
    }

    /// Resets every device, which ends its I/O: nothing reaches a disk afterwards.
    pub fn quiesce(&self) {
        for function in self.functions() {
            function.lock().unwrap_or_else(PoisonError::into_inner).apply(Effect::Reset);
        }
    }

    /// Makes bus, doorbells and mapped pages agree with where the function's BARs are now.
    fn sync_bars(&mut self, slot: u8) -> Result<(), MachineError> {
        let Some(function) = self.bus.function(slot) else { return Ok(()) };
        let (bars, wanted, pages) = {
            let function = function.lock().unwrap_or_else(PoisonError::into_inner);
            (function.bars(), function.doorbells(), function.pages())
        };
        self.bus.set_windows(slot, &bars);
        let present = self.doorbells.remove(&slot).unwrap_or_default();
        let is_same = |a: &Doorbell, b: &Doorbell| a.address == b.address && Arc::ptr_eq(&a.event, &b.event);
        for old in present.iter().filter(|old| !wanted.iter().any(|new| is_same(old, new))) {
            self.vm.remove_doorbell(&old.event, old.address)?;
        }
        for new in wanted.iter().filter(|new| !present.iter().any(|old| is_same(old, new))) {
            self.vm.add_doorbell(&new.event, new.address)?;
        }
        self.doorbells.insert(slot, wanted);
        Ok(self.pages.sync(&mut self.vm, slot, pages)?)
    }

    /// Makes KVM's routes and irqfds agree with the function's vectors.
    fn sync_vectors(&mut self, slot: u8) -> Result<(), MachineError> {
        let Some(function) = self.bus.function(slot) else { return Ok(()) };
        let vectors = function.lock().unwrap_or_else(PoisonError::into_inner).vectors();
        Ok(self.irqs.sync(&self.vm, slot, &vectors)?)
    }
}

/// The function, once no vCPU thread is within an access to it any more; it is off the bus, so no other comes.
fn sole(mut function: SharedFunction) -> Box<dyn PciFunction> {
    loop {
        match Arc::try_unwrap(function) {
            Ok(lock) => return lock.into_inner().unwrap_or_else(PoisonError::into_inner),
            Err(shared) => function = shared,
        }
        std::thread::yield_now();
    }
}

/// What is put into guest memory besides the images.
struct Shape<'a> {
    memory_bytes: u64,
    apic_ids: &'a [u8],
    hotplug_slots: (PciSlot, PciSlot),
    has_serial: bool,
}

/// Writes kernel, initrd, command line, ACPI tables and the reset vector into guest memory.
fn load(memory: &GuestMemoryMmap, images: boot::Images<'_>, shape: &Shape<'_>) -> Result<EntryPoint, MachineError> {
    let &Shape { memory_bytes, apic_ids, hotplug_slots: (first, last), has_serial } = shape;
    let placement = boot::Placement {
        boot_info: GuestAddress(layout::BOOT_INFO),
        memory_map: GuestAddress(layout::PVH_MEMORY_MAP),
        modules: GuestAddress(layout::PVH_MODULES),
        cmdline: GuestAddress(layout::CMDLINE),
        rsdp: GuestAddress(layout::ACPI_TABLES),
        himem: GuestAddress(layout::HIMEM),
        low_ram_end: memory_bytes.min(layout::MMIO_HOLE),
    };
    let map: Vec<boot::MapEntry> = layout::memory_map(memory_bytes)
        .into_iter()
        .map(|(base, len, kind)| {
            let kind = match kind {
                layout::RangeKind::Ram => 1,
                layout::RangeKind::Reserved => 2,
            };
            (base, len, kind)
        })
        .collect();
    let boot = boot::load(memory, images, &placement, &map)?;
    // Every address here is below 4 GiB.
    let platform = acpi::Platform {
        apic_ids,
        lapic: layout::LAPIC as u32,
        ioapic: layout::IOAPIC as u32,
        ecam: layout::ECAM,
        last_bus: 0,
        pci_window: (layout::PCI_WINDOW as u32, (layout::PCI_WINDOW + layout::PCI_WINDOW_LEN - 1) as u32),
        serial: has_serial.then_some((layout::SERIAL_PORT, layout::SERIAL_GSI)),
        ged_gsi: layout::GED_GSI,
        slots_gsi: layout::SLOTS_GSI,
        slots_port: layout::SLOTS_PORT,
        hotplug_slots: (first.number(), last.number()),
        sleep_control_port: layout::SLEEP_CONTROL_PORT,
        sleep_status_port: layout::SLEEP_STATUS_PORT,
        reset_port: layout::RESET_PORT,
        panic_port: layout::PANIC_PORT,
    };
    acpi::write(memory, placement.rsdp, layout::RESET_VECTOR - layout::ACPI_TABLES, &platform)?;
    memory
        .write_slice(&power::RESET_VECTOR_CODE, GuestAddress(layout::RESET_VECTOR))
        .map_err(|_| BootError::DoesNotFit("reset vector"))?;
    Ok(EntryPoint { rip: boot.rip, rbx: boot.rbx, rsi: boot.rsi })
}

#[cfg(test)]
mod tests;
