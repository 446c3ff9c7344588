//! One virtual machine in one process: threads, no async. Receives its sealed configuration and every descriptor from
//! the daemon and opens nothing itself.
//!
//! Key function: [`run`], the role's entry. Flow: `launch` (what came) → `machine` (built) → `confine` (what it may call
//! from here on) → `control` (runs).
//!
//! ```text
//!   control thread ── epoll: daemon's link · console · mailbox          one
//!   vcpu<N>        ── KVM_RUN, ports, ECAM, BARs ──▶ mailbox            one per vCPU
//!   vio-<device>   ── queues, disk or tap; irqfd ──▶ guest              one per device, and some for those that come later
//! ```

mod alarms;
pub mod boot;
pub mod confine;
mod console;
mod control;
mod counters;
mod devices;
mod hotplug;
mod kvm;
mod launch;
mod legacy;
mod log;
mod machine;
pub mod pci;
pub mod ports;
mod vfio;
pub mod virtio;

use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::epoll::Epoll;
use vmm_sys_util::eventfd::EventFd;

use crate::model::{DeviceKind, Launch, PciSlot, SPARE_DEVICES, VmExit};
use crate::sys;
use crate::sys::packet::{Connection, Listener, Received};
use crate::wire::counters::Phase;
use crate::wire::{FromVmm, MAX_PACKET_LEN, ToVmm, WireError, encode_ended};
use console::{Readers, Ring, Writer};
use control::{Control, Identity, Parts};
use counters::Counting;
use devices::Devices;
use hotplug::{AttachError, Attached};
use kvm::Hypervisor;
use launch::{Inheritance, LaunchError};
use machine::{Console, Machine, MachineError, Mailbox, Plan};
use virtio::Keyboard;

/// The descriptor that the daemon leaves open for this process: its listening control socket.
pub const CONTROL_FD: i32 = 3;

/// The role's entry: waits for the launch on [`CONTROL_FD`], runs the VM, and ends with the status of `VmExit::code`.
/// What it logs goes to stderr, which is the VM's log file.
pub fn run() -> ExitCode {
    let started = (Instant::now(), sys::counter_page::now_ns());
    sys::heap::keep_together();
    log::Lines::begin();
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("{panic}");
        // Not abort: the first process of a pid namespace is deaf to its own signals.
        std::process::exit(VmExit::HostError(String::new()).code().into());
    }));
    // What jail and daemon took away before stays away; this one is given back by each exec.
    if let Err(error) = sys::namespaces::hide_memory() {
        tracing::error!(%error, "cannot hide the guest's memory from other processes");
        return ExitCode::from(VmExit::HostError(String::new()).code());
    }
    let Some(listener) = sys::inherit::descriptor(CONTROL_FD).map(Listener::from_fd) else {
        tracing::error!(
            "`ostler-vmm vmm` is started by `ostler serve`, with a control socket as descriptor {CONTROL_FD}"
        );
        return ExitCode::from(VmExit::LaunchFailed(String::new()).code());
    };
    let mut exit_record = None;
    let exit = serve(listener, &mut exit_record, started);
    tracing::info!("{exit}");
    if let Some(mut record) = exit_record
        && let Err(error) = record.write_all(&encode_ended(&exit))
    {
        tracing::error!(%error, "cannot write the exit record");
    }
    // Not a return: vCPU threads may still be in the guest, and nothing may run after the record is written.
    std::process::exit(exit.code().into())
}

/// Receives the launch, builds, runs. Whatever fails before the guest runs is a failed launch, with the cause for the
/// client; the daemon finds it in the exit record.
fn serve(listener: Listener, exit_record: &mut Option<File>, (started, started_ns): (Instant, u64)) -> VmExit {
    let launched = receive(&listener, exit_record).and_then(|(link, launch, mut inheritance)| {
        let counting = Counting::begin(inheritance.counters.take(), launch.vcpus)?;
        tracing::info!(vm = %launch.vm, instance = %launch.instance, call = launch.request, "launched");
        counting.reached(Phase::Started, started_ns);
        counting.reach(Phase::Received);
        let (parts, mailbox) = assemble(&launch, inheritance, listener, link, &counting)?;
        let mut control = Control::new(parts)?;
        counting.reach(Phase::Built);
        control.start(&mailbox)?;
        counting.reach(Phase::Running);
        Ok(control)
    });
    match launched {
        Ok(mut control) => {
            let build_ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
            control.send(&FromVmm::Ready { build_ns });
            control.run()
        }
        Err(error) => VmExit::LaunchFailed(error.to_string()),
    }
}

/// Why the VM never ran.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("control socket: {0}")]
    Link(io::Error),
    #[error("the daemon left before the launch")]
    Deserted,
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Device(#[from] AttachError),
    #[error(transparent)]
    Host(#[from] io::Error),
}

/// The launch, from the first connection.
fn receive(
    listener: &Listener,
    exit_record: &mut Option<File>,
) -> Result<(Connection, Launch, Inheritance), StartError> {
    let link = listener.accept().map_err(StartError::Link)?;
    let (packet, descriptors) = match link.receive(MAX_PACKET_LEN).map_err(StartError::Link)? {
        Received::Packet(packet, descriptors) => (packet, descriptors),
        Received::Closed => return Err(StartError::Deserted),
    };
    let ToVmm::Launch { roles } = ToVmm::decode(&packet).map_err(LaunchError::from)? else {
        return Err(LaunchError::from(WireError::Malformed("the first message is not a launch")).into());
    };
    let (launch, inheritance) = launch::receive(roles, descriptors, exit_record)?;
    Ok((link, launch, inheritance))
}

/// Builds the machine with its devices, and everything that the control thread watches.
fn assemble(
    launch: &Launch,
    mut inheritance: Inheritance,
    listener: Listener,
    link: Connection,
    counting: &Counting,
) -> Result<(Parts, Mailbox), StartError> {
    let epoll = Epoll::new()?;
    let ring = Arc::new(Ring::map(inheritance.console_ring)?);
    ring.stamp_first(counting.phase(Phase::Console));
    let readers = Readers::new()?;
    let console = console::Server::new(
        inheritance.console,
        Arc::clone(&ring),
        Arc::clone(&readers),
        &epoll,
        control::console_data,
    )?;
    let input_taken = Arc::new(EventFd::new(libc::EFD_NONBLOCK)?);
    let (front, ends) = console_of(launch, Writer::new(ring, readers), Arc::clone(&input_taken))?;
    let hypervisor = Hypervisor::from_fd(inheritance.kvm).map_err(MachineError::from)?;
    let mut machine = Machine::build(Plan {
        hypervisor: &hypervisor,
        vcpus: launch.vcpus,
        cpus: &launch.cpus,
        memory_bytes: launch.memory_bytes,
        memory: launch.memory,
        kernel: &inheritance.kernel,
        initrd: inheritance.initrd.as_ref(),
        cmdline: &launch.cmdline,
        console: front,
        counting,
        hotplug_slots: hotplug_slots(launch),
    })?;
    let mut alarms = Vec::new();
    let mut attached = Attached::new(Devices::new(counting, ends)?);
    for device in &launch.devices {
        let descriptors = inheritance.devices.remove(&device.id).unwrap_or_default();
        attached.insert(&mut machine, device, descriptors, &mut alarms)?;
    }
    attached.seal()?;
    let (mailbox, receiver, mailbox_wake) = Mailbox::new()?;
    let parts = Parts {
        identity: Identity { vm: launch.vm, instance: launch.instance },
        machine,
        attached,
        listener,
        link: Some(link),
        console,
        mailbox: receiver,
        mailbox_wake,
        input_taken,
        alarms: alarms.into_iter().collect(),
        epoll,
    };
    Ok((parts, mailbox))
}

/// What the guest's console is; and, if that is a device of the launch, what the device stands between.
fn console_of(
    launch: &Launch,
    output: Writer,
    input_taken: Arc<EventFd>,
) -> io::Result<(Console, Option<(Keyboard, Writer)>)> {
    if !launch.devices.iter().any(|device| device.kind == DeviceKind::Console) {
        return Ok((Console::Serial { output, input_taken }, None));
    }
    let keyboard = Keyboard::new(input_taken)?;
    Ok((Console::Virtio(keyboard.clone()), Some((keyboard, output))))
}

/// Slots that the guest is told it may find or lose devices in: those of this launch, and as many more as can be filled.
/// Slot 1 is the entropy device's, which stays. A guest pays for each during its boot.
fn hotplug_slots(launch: &Launch) -> (PciSlot, PciSlot) {
    let highest = launch.devices.iter().map(|device| device.slot.number()).max().unwrap_or(1);
    let slot = |number: u8| PciSlot::new(number.min(31)).unwrap_or_else(|| unreachable!("1 to 31"));
    (slot(2), slot(highest.max(1).saturating_add(SPARE_DEVICES)))
}
