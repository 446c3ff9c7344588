//! One vCPU: first state and run loop step. Key types: [`Vcpu`], [`Exit`], [`EntryPoint`], [`Kicker`].

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{KvmRunWrapper, VcpuExit, VcpuFd};

use super::{KvmError, Named};

/// MSR: memory types for ranges that no MTRR covers (Intel SDM 3A §12.11.2.1).
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled, default type write-back.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
/// MSR: miscellaneous features (Intel SDM 4).
const IA32_MISC_ENABLE: u32 = 0x1a0;
/// Fast string operations.
const FAST_STRINGS: u64 = 1;

/// Where and how the boot vCPU starts: 32-bit protected mode, flat segments, no paging. Both the PVH protocol
/// (EBX = start info) and the 32-bit Linux boot protocol (ESI = zero page) begin so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryPoint {
    /// First instruction.
    pub rip: u64,
    /// PVH: start info.
    pub rbx: u64,
    /// Linux: zero page.
    pub rsi: u64,
}

/// Why the guest stopped running.
#[derive(Debug)]
pub enum Exit<'a> {
    /// Port read; fill the bytes.
    PortRead(u16, &'a mut [u8]),
    /// Port write.
    PortWrite(u16, &'a [u8]),
    /// Memory-mapped read; fill the bytes.
    MmioRead(u64, &'a mut [u8]),
    /// Memory-mapped write.
    MmioWrite(u64, &'a [u8]),
    /// Triple fault.
    Shutdown,
    /// A signal, or nothing to do.
    Interrupted,
    /// KVM gave up; the text says at what.
    Fault(String),
}

/// A vCPU that is not running.
pub struct Vcpu(VcpuFd);

/// Keeps a vCPU out of the guest, from another thread: a second view of the page that it shares with KVM.
#[derive(Debug)]
pub struct Kicker(KvmRunWrapper);

impl Kicker {
    pub(super) fn new(vcpu: &Vcpu, run_size: usize) -> Result<Self, KvmError> {
        Ok(Self(KvmRunWrapper::mmap_from_fd(&vcpu.0, run_size).named("mmap of a vCPU")?))
    }

    /// Has the next [`Vcpu::run`] end as [`Exit::Interrupted`], once what the last exit left to do is done (KVM api §5,
    /// `immediate_exit`). One that is in the guest already needs a signal after this.
    pub fn raise(&mut self) {
        // One byte, which the vCPU's own thread only ever clears.
        self.0.as_mut_ref().immediate_exit = 1;
    }
}

impl Vcpu {
    pub(super) fn new(fd: VcpuFd) -> Result<Self, KvmError> {
        let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        let entries = [entry(IA32_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK), entry(IA32_MISC_ENABLE, FAST_STRINGS)];
        let msrs = Msrs::from_entries(&entries)
            .map_err(|_| KvmError { call: "KVM_SET_MSRS", source: kvm_ioctls::Error::new(libc::E2BIG) })?;
        let set = fd.set_msrs(&msrs).named("KVM_SET_MSRS")?;
        if set != entries.len() {
            return Err(KvmError { call: "KVM_SET_MSRS", source: kvm_ioctls::Error::new(libc::EINVAL) });
        }
        Ok(Self(fd))
    }

    /// Makes this the boot vCPU; the others wait for it to start them (INIT, SIPI).
    pub fn set_entry(&self, entry: EntryPoint) -> Result<(), KvmError> {
        let mut sregs = self.0.get_sregs().named("KVM_GET_SREGS")?;
        let flat = |type_, selector, db| kvm_segment {
            base: 0,
            limit: 0xffff_ffff,
            selector,
            type_,
            present: 1,
            db,
            s: 1,
            g: 1,
            ..Default::default()
        };
        // Code: execute/read, accessed; data: read/write, accessed; task: 32-bit, busy (Intel SDM 3A §3.4.5.1).
        sregs.cs = flat(0xb, 0x10, 1);
        let data = flat(0x3, 0x18, 1);
        [sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss] = [data; 5];
        sregs.tr = kvm_segment { limit: 0x67, type_: 0xb, present: 1, selector: 0x20, ..Default::default() };
        // Protection enabled, extension type; no paging.
        sregs.cr0 = 0x11;
        sregs.cr4 = 0;
        sregs.efer = 0;
        self.0.set_sregs(&sregs).named("KVM_SET_SREGS")?;
        let regs = kvm_regs { rip: entry.rip, rbx: entry.rbx, rsi: entry.rsi, rflags: 2, ..Default::default() };
        self.0.set_regs(&regs).named("KVM_SET_REGS")
    }

    /// Forgets a [`Kicker::raise`]; what it was raised for is looked at after this, so that none is lost.
    pub fn lower(&mut self) {
        self.0.set_kvm_immediate_exit(0);
    }

    /// Gives the guest a non-maskable interrupt (KVM api §4.64).
    pub fn nmi(&self) -> Result<(), KvmError> {
        self.0.nmi().named("KVM_NMI")
    }

    /// Tells the guest's clock that time went by without it, so that no watchdog of the guest is alarmed (KVM api §4.73).
    /// A guest without that clock has none to tell.
    pub fn tell_paused(&self) -> Result<(), KvmError> {
        match self.0.kvmclock_ctrl() {
            Err(error) if error.errno() == libc::EINVAL => Ok(()),
            told => told.named("KVM_KVMCLOCK_CTRL"),
        }
    }

    /// Runs the guest until something needs the vmm.
    pub fn run(&mut self) -> Result<Exit<'_>, KvmError> {
        match self.0.run() {
            Ok(VcpuExit::IoIn(port, data)) => Ok(Exit::PortRead(port, data)),
            Ok(VcpuExit::IoOut(port, data)) => Ok(Exit::PortWrite(port, data)),
            Ok(VcpuExit::MmioRead(address, data)) => Ok(Exit::MmioRead(address, data)),
            Ok(VcpuExit::MmioWrite(address, data)) => Ok(Exit::MmioWrite(address, data)),
            Ok(VcpuExit::Shutdown) => Ok(Exit::Shutdown),
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => Ok(Exit::Interrupted),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                Ok(Exit::Fault(format!("the processor refused to enter the guest (reason {reason:#x}, CPU {cpu})")))
            }
            Ok(VcpuExit::InternalError) => {
                Ok(Exit::Fault("KVM could not emulate an instruction of the guest".to_owned()))
            }
            Ok(other) => Ok(Exit::Fault(format!("KVM stopped the guest: {other:?}"))),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Ok(Exit::Interrupted),
            Err(source) => Err(KvmError { call: "KVM_RUN", source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Hypervisor, Vm};
    use super::*;
    use crate::model::Topology;
    use crate::vmm::ports::Holdings;
    use std::os::fd::OwnedFd;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    /// A few hand-written instructions run on any KVM, even one that cannot boot Linux.
    #[test]
    fn a_tiny_guest_reaches_its_port_and_its_mmio() {
        let Ok(file) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") else {
            crate::sys::absence::skip("/dev/kvm");
            return;
        };
        let hypervisor = Hypervisor::from_fd(OwnedFd::from(file)).unwrap();
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        // mov al, 0x41; mov dx, 0x3f8; out dx, al; mov [0xd0000000], ebx; hlt
        let code = [0xb0, 0x41, 0x66, 0xba, 0xf8, 0x03, 0xee, 0x89, 0x1d, 0, 0, 0, 0xd0, 0xf4];
        memory.write_slice(&code, GuestAddress(0x1000)).unwrap();
        let vm = Vm::new(&hypervisor, memory, 0xfffb_d000, Holdings::default()).unwrap();
        let mut vcpu = vm.create_vcpu(0, Topology::flat(1)).unwrap();
        vcpu.set_entry(EntryPoint { rip: 0x1000, rbx: 0x1234, rsi: 0 }).unwrap();
        assert!(matches!(vcpu.run().unwrap(), Exit::PortWrite(0x3f8, [0x41])));
        assert!(matches!(vcpu.run().unwrap(), Exit::MmioWrite(0xd000_0000, [0x34, 0x12, 0, 0])));
    }

    #[test]
    fn a_raised_kicker_keeps_the_guest_from_running() {
        let Ok(file) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") else {
            crate::sys::absence::skip("/dev/kvm");
            return;
        };
        let hypervisor = Hypervisor::from_fd(OwnedFd::from(file)).unwrap();
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        // mov dx, 0x3f8; out dx, al; jmp to the out
        memory.write_slice(&[0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfd], GuestAddress(0x1000)).unwrap();
        let vm = Vm::new(&hypervisor, memory, 0xfffb_d000, Holdings::default()).unwrap();
        let mut vcpu = vm.create_vcpu(0, Topology::flat(1)).unwrap();
        let mut kicker = vm.kicker(&vcpu).unwrap();
        vcpu.set_entry(EntryPoint { rip: 0x1000, rbx: 0, rsi: 0 }).unwrap();
        assert!(matches!(vcpu.run().unwrap(), Exit::PortWrite(0x3f8, _)));
        kicker.raise();
        assert!(matches!(vcpu.run().unwrap(), Exit::Interrupted));
        assert!(matches!(vcpu.run().unwrap(), Exit::Interrupted));
        vcpu.lower();
        assert!(matches!(vcpu.run().unwrap(), Exit::PortWrite(0x3f8, _)));
    }

    #[test]
    fn says_that_a_descriptor_is_not_kvm() {
        let file = tempfile::tempfile().unwrap();
        assert!(Hypervisor::from_fd(file.into()).is_err());
    }
}
