//! Devices that come and go on a real KVM, without a guest that runs: the test programs registers as a driver would.

use super::*;
use crate::model::{MacAddr, RateLimits};
use crate::sys::tap::Offloads;
use crate::vmm::console::{Readers, Ring};
use crate::vmm::virtio::{Net, TapControl, VirtioFunction, Workers};
use crate::wire::console_ring;
use std::os::fd::OwnedFd;

fn slot(number: u8) -> PciSlot {
    PciSlot::new(number).unwrap()
}

/// An ELF of one instruction (`hlt`) with the note that says where PVH begins.
fn kernel() -> File {
    use std::io::Write;
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    image.resize(16, 0);
    image.extend([2u16, 62].into_iter().flat_map(u16::to_le_bytes));
    image.extend(1u32.to_le_bytes());
    image.extend([0x10_0000u64, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    image.extend(0u32.to_le_bytes());
    image.extend([64u16, 56, 2, 0, 0, 0].into_iter().flat_map(u16::to_le_bytes));
    let note: Vec<u8> =
        [4u32, 4, 18].into_iter().flat_map(u32::to_le_bytes).chain(*b"Xen\0").chain([0, 0, 0x10, 0]).collect();
    let mut segment = |kind: u32, offset: u64, address: u64, len: u64| {
        image.extend([kind, 5].into_iter().flat_map(u32::to_le_bytes));
        image.extend([offset, address, address, len, len, 4].into_iter().flat_map(u64::to_le_bytes));
    };
    segment(1, 176, 0x10_0000, 1);
    segment(4, 180, 0, note.len() as u64);
    image.extend([0xf4, 0, 0, 0]);
    image.extend(note);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&image).unwrap();
    file
}

fn machine() -> Option<Machine> {
    machine_with(|output, input_taken| Console::Serial { output, input_taken })
}

/// One with another console.
fn machine_with(console: impl FnOnce(Writer, Arc<EventFd>) -> Console) -> Option<Machine> {
    let Ok(kvm) = File::options().read(true).write(true).open("/dev/kvm") else {
        crate::sys::absence::skip("/dev/kvm");
        return None;
    };
    let hypervisor = Hypervisor::from_fd(OwnedFd::from(kvm)).unwrap();
    let ring = tempfile::tempfile().unwrap();
    ring.set_len(console_ring::FILE_LEN as u64).unwrap();
    let output = Writer::new(Arc::new(Ring::map(ring).unwrap()), Readers::new().unwrap());
    let input_taken = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let console = console(output, input_taken);
    let mut machine = Machine::build(Plan {
        hypervisor: &hypervisor,
        vcpus: 1,
        cpus: &CpuSpec::default(),
        memory_bytes: 64 << 20,
        memory: MemorySpec::default(),
        kernel: &kernel(),
        initrd: None,
        cmdline: "",
        console,
        counting: &Counting::default(),
        hotplug_slots: (slot(2), slot(6)),
    })
    .unwrap();
    machine.is_running = true;
    Some(machine)
}

/// A NIC whose other end of the wire is given too.
fn nic(machine: &Machine, workers: &Workers, at: PciSlot) -> std::io::Result<(Box<dyn PciFunction>, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (tap, network) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).unwrap();
    let (mac, limits, control) = (MacAddr([2, 0, 0, 0, 0, 1]), RateLimits::default(), TapControl::KERNEL);
    let device = Net::new("net".parse().unwrap(), vec![tap], mac, Offloads::NONE, limits, control).unwrap();
    let function = VirtioFunction::new(device, machine.memory(), Machine::slot_window(at), workers)?;
    Ok((Box::new(function), network))
}

/// Switches memory decoding on and routes all vectors, as a guest's write to ECAM and the table would.
fn program(machine: &mut Machine, at: PciSlot) {
    let ecam = layout::ECAM + (u64::from(at.number()) << 15);
    let base = u64::from(Machine::slot_window(at));
    let mut writes = vec![(ecam + 4, vec![6, 0])];
    let mut capability = [0];
    machine.bus.memory_read(ecam + 0x34, &mut capability);
    loop {
        let mut head = [0; 2];
        machine.bus.memory_read(ecam + u64::from(capability[0]), &mut head[..1]);
        machine.bus.memory_read(ecam + u64::from(capability[0]) + 1, &mut head[1..]);
        if head[0] == 0x11 {
            break;
        }
        capability[0] = head[1];
    }
    writes.push((ecam + u64::from(capability[0]) + 2, vec![0, 0x80]));
    for vector in 0..3u64 {
        let entry = base + 0x4000 + vector * 16;
        writes.push((entry, 0xfee0_0000_u32.to_le_bytes().to_vec()));
        writes.push((entry + 8, vec![0x30 + vector as u8, 0, 0, 0]));
        writes.push((entry + 12, vec![0; 4]));
    }
    for (address, data) in writes {
        if let Some(bus::Request::Device { slot, effect }) = machine.bus.memory_write(address, &data) {
            machine.apply(slot, effect).unwrap();
        }
    }
}

fn register(machine: &Machine, offset: u16) -> u32 {
    let mut data = [0; 4];
    machine.bus.port_read(layout::SLOTS_PORT + offset, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn a_device_that_came_and_went_a_hundred_times_has_left_nothing() {
    let Some(mut machine) = machine() else { return };
    let workers = Workers::new(|| Ok(()));
    workers.seal(1).unwrap();
    let at = slot(3);
    for _ in 0..100 {
        let (function, network) = nic(&machine, &workers, at).unwrap();
        machine.attach(at, function).unwrap();
        assert_eq!((register(&machine, 0), register(&machine, 0)), (1 << 3, 0), "told once");
        program(&mut machine, at);
        // KVM refuses a doorbell or an irqfd that it has: nothing of the round before is left there.
        assert_eq!((machine.doorbells[&3].len(), machine.irqs.connected()), (2, 3));
        machine.ask_back(at);
        assert_eq!(register(&machine, 4), 1 << 3);
        let answer = machine.bus.port_write(layout::SLOTS_PORT + 8, &(1u32 << 3).to_le_bytes());
        assert_eq!(answer, Some(bus::Request::Eject(1 << 3)));
        assert!(machine.detach(at).unwrap());
        assert!(machine.doorbells.is_empty() && machine.leaving.is_empty());
        assert_eq!(machine.irqs.connected(), 0);
        let mut vendor = [0; 2];
        machine.bus.memory_read(layout::ECAM + (3 << 15), &mut vendor);
        assert_eq!(vendor, [0xff; 2], "the slot reads as empty");
        let mut status = [0; 4];
        machine.bus.memory_read(u64::from(Machine::slot_window(at)), &mut status);
        assert_eq!(status, [0xff; 4], "and its window too");
        assert!(rustix::net::send(&network, b"x", rustix::net::SendFlags::NOSIGNAL).is_err(), "its tap is closed");
    }
    assert!(!machine.is_waiting());
}

#[test]
fn what_was_not_asked_for_stays_and_a_surprise_takes_it() {
    let Some(mut machine) = machine() else { return };
    let workers = Workers::new(|| Ok(()));
    let at = slot(2);
    let (function, _network) = nic(&machine, &workers, at).unwrap();
    machine.attach(at, function).unwrap();
    assert_eq!(machine.bus.port_write(layout::SLOTS_PORT + 8, &[0xff; 4]), None);
    assert!(machine.is_waiting(), "the guest has not read of it");
    assert!(machine.detach(at).unwrap());
    assert!(!machine.is_waiting(), "and need not any more");
    assert!(machine.detach(at).unwrap(), "twice is nothing");
}

#[test]
fn refuses_slots_that_are_taken_or_that_the_guest_does_not_know() {
    let Some(mut machine) = machine() else { return };
    let workers = Workers::new(|| Ok(()));
    let insert = |machine: &mut Machine, at| {
        let (function, network) = nic(machine, &workers, at).unwrap();
        machine.attach(at, function).map(|()| network)
    };
    let _network = insert(&mut machine, slot(6)).unwrap();
    assert!(matches!(insert(&mut machine, slot(6)), Err(MachineError::SlotTaken(_))));
    for number in [1, 7, 31] {
        let refused = insert(&mut machine, slot(number)).unwrap_err();
        assert!(matches!(refused, MachineError::SlotIsFixed { last: 6, .. }), "{refused}");
    }
}

#[test]
fn without_com1_its_ports_answer_nothing_and_input_goes_to_the_keyboard() {
    let Some(serial) = machine() else { return };
    let line_status = |machine: &Machine| {
        let mut byte = [0];
        machine.bus.port_read(layout::SERIAL_PORT + 5, &mut byte);
        byte[0]
    };
    assert_eq!(line_status(&serial), 0x60, "a 16550 that has nothing to say");
    assert_eq!(serial.type_in(&[b'x'; 5000]), 64);
    let keyboard = |_, input_taken| Console::Virtio(Keyboard::new(input_taken).unwrap());
    let Some(machine) = machine_with(keyboard) else { return };
    for port in layout::SERIAL_PORT..=0x3ff {
        let mut byte = [0];
        assert_eq!(machine.bus.port_write(port, &[0]), None);
        machine.bus.port_read(port, &mut byte);
        assert_eq!(byte, [0xff], "{port:#x}");
    }
    assert_eq!((machine.type_in(&[b'x'; 5000]), machine.type_in(b"y")), (4096, 0));
}
