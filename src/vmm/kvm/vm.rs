//! One VM: memory slots, interrupt controller, eventfds, routes. Key type: [`Vm`].

use std::collections::BTreeMap;
use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, NoDatamatch, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::{Hypervisor, Kicker, KvmError, Named, Vcpu, cpuid};
use crate::model::Topology;
use crate::sys::vfio::Pages;
use crate::vmm::ports::Holdings;

/// Where an interrupt of a device goes: GSI, message address, message data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiRoute {
    /// The GSI that the device's irqfd raises.
    pub gsi: u32,
    /// MSI address.
    pub address: u64,
    /// MSI data.
    pub data: u32,
}

/// A VM with memory and an in-kernel interrupt controller.
pub struct Vm {
    fd: VmFd,
    cpuid: cpuid::Supported,
    /// Length in bytes of what each vCPU shares with KVM.
    run_size: usize,
    // Keep the mappings that the slots point at for as long as the VM exists.
    memory: GuestMemoryMmap,
    /// Pages of devices, with their addresses, by memory slot.
    pages: BTreeMap<u32, (u64, Arc<Pages>)>,
    holdings: Holdings,
}

impl Vm {
    /// Creates the VM and gives it `memory`; `tss` is the first of three pages that KVM may use. What KVM holds for it is
    /// counted in `holdings`.
    pub fn new(
        hypervisor: &Hypervisor,
        memory: GuestMemoryMmap,
        tss: u64,
        holdings: Holdings,
    ) -> Result<Self, KvmError> {
        let kvm = &hypervisor.0;
        let fd = kvm.create_vm().named("KVM_CREATE_VM")?;
        for (slot, region) in (0u32..).zip(memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped with that length and stays mapped: `memory` outlives the VM's descriptor
            // (fields drop in order), and regions of one `GuestMemoryMmap` do not overlap.
            unsafe { fd.set_user_memory_region(slot) }.named("KVM_SET_USER_MEMORY_REGION")?;
            holdings.memory_slots.add(1);
        }
        fd.set_tss_address(usize::try_from(tss).unwrap_or_default()).named("KVM_SET_TSS_ADDR")?;
        fd.create_irq_chip().named("KVM_CREATE_IRQCHIP")?;
        let has_tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let supported =
            kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).named("KVM_GET_SUPPORTED_CPUID")?;
        let run_size = kvm.get_vcpu_mmap_size().named("KVM_GET_VCPU_MMAP_SIZE")?;
        let cpuid = cpuid::Supported::new(supported, has_tsc_deadline);
        Ok(Self { fd, cpuid, run_size, memory, pages: BTreeMap::new(), holdings })
    }

    /// Shows the guest a device's pages at `address`, which nothing else of this kind and no RAM has.
    pub fn map_pages(&mut self, address: u64, pages: Arc<Pages>) -> Result<(), KvmError> {
        let first = self.memory.num_regions() as u32;
        let number = (first..).find(|slot| !self.pages.contains_key(slot)).unwrap_or(u32::MAX);
        let slot = kvm_userspace_memory_region {
            slot: number,
            flags: 0,
            guest_phys_addr: address,
            memory_size: pages.len_bytes(),
            userspace_addr: pages.address(),
        };
        // SAFETY: the pages are mapped with that length and stay mapped while the slot exists: `self.pages` keeps them
        // until it is deleted, and outlives the VM's descriptor. KVM refuses a slot that overlaps another one.
        unsafe { self.fd.set_user_memory_region(slot) }.named("KVM_SET_USER_MEMORY_REGION")?;
        self.pages.insert(number, (address, pages));
        self.holdings.memory_slots.add(1);
        Ok(())
    }

    /// Undoes [`Self::map_pages`] at `address`: from then on accesses there exit.
    pub fn unmap_pages(&mut self, address: u64) -> Result<(), KvmError> {
        let found = self.pages.iter().find(|(_, (at, _))| *at == address);
        let Some(number) = found.map(|(&number, _)| number) else { return Ok(()) };
        // Length 0 deletes a slot (KVM api §4.35).
        let slot = kvm_userspace_memory_region { slot: number, ..Default::default() };
        // SAFETY: nothing is mapped by it.
        unsafe { self.fd.set_user_memory_region(slot) }.named("KVM_SET_USER_MEMORY_REGION")?;
        self.pages.remove(&number);
        self.holdings.memory_slots.subtract(1);
        Ok(())
    }

    /// Creates vCPU `index`, in the state after reset. Its number for KVM is its APIC id.
    pub fn create_vcpu(&self, index: u32, topology: Topology) -> Result<Vcpu, KvmError> {
        let fd = self.fd.create_vcpu(topology.apic_id(index).into()).named("KVM_CREATE_VCPU")?;
        fd.set_cpuid2(&self.cpuid.for_vcpu(index, topology)).named("KVM_SET_CPUID2")?;
        Vcpu::new(fd)
    }

    /// What brings `vcpu` out of the guest.
    pub fn kicker(&self, vcpu: &Vcpu) -> Result<Kicker, KvmError> {
        Kicker::new(vcpu, self.run_size)
    }

    /// Signals `event` at each guest write to `address`, whatever its length and value.
    pub fn add_doorbell(&self, event: &EventFd, address: u64) -> Result<(), KvmError> {
        self.fd.register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch).named("KVM_IOEVENTFD")?;
        self.holdings.ioeventfds.add(1);
        Ok(())
    }

    /// Undoes [`Self::add_doorbell`].
    pub fn remove_doorbell(&self, event: &EventFd, address: u64) -> Result<(), KvmError> {
        self.fd.unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch).named("KVM_IOEVENTFD")?;
        self.holdings.ioeventfds.subtract(1);
        Ok(())
    }

    /// Raises `gsi` each time that `event` is written. One that was written before is delivered at once.
    pub fn connect_irq(&self, event: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.fd.register_irqfd(event, gsi).named("KVM_IRQFD")?;
        self.holdings.irqfds.add(1);
        Ok(())
    }

    /// Undoes [`Self::connect_irq`].
    pub fn disconnect_irq(&self, event: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.fd.unregister_irqfd(event, gsi).named("KVM_IRQFD")?;
        self.holdings.irqfds.subtract(1);
        Ok(())
    }

    /// Replaces all routes: GSIs below `ioapic_pins` go to the I/O APIC, the others where `messages` says.
    pub fn set_routes(&self, ioapic_pins: u32, messages: &[MsiRoute]) -> Result<(), KvmError> {
        let pins = (0..ioapic_pins).map(|pin| {
            let mut entry = kvm_irq_routing_entry { gsi: pin, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
            entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
            entry.u.irqchip.pin = pin;
            entry
        });
        let messages = messages.iter().map(|message| {
            let mut entry =
                kvm_irq_routing_entry { gsi: message.gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
            let [low, high] = [message.address as u32, (message.address >> 32) as u32];
            entry.u.msi.address_lo = low;
            entry.u.msi.address_hi = high;
            entry.u.msi.data = message.data;
            entry
        });
        let entries: Vec<_> = pins.chain(messages).collect();
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| KvmError { call: "KVM_SET_GSI_ROUTING", source: kvm_ioctls::Error::new(libc::E2BIG) })?;
        self.fd.set_gsi_routing(&routing).named("KVM_SET_GSI_ROUTING")
    }
}
