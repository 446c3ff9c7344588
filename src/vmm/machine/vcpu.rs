//! vCPU threads. Each runs its vCPU, answers exits from the bus, and hands what it cannot answer to the control thread.
//!
//! The only wait on another thread: a register write with an effect (`ports::Effect`) must have it before the guest's
//! next instruction. It ends when the control thread answers, or when the machine ends.

use std::io;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};

use rustix::thread::CpuSet;
use vmm_sys_util::eventfd::EventFd;

use super::bus::{Bus, Request};
use super::stillness::{Gate, Seat};
use crate::model::VmExit;
use crate::vmm::counters::VcpuCounters;
use crate::vmm::kvm::{Exit, KvmError, Vcpu};
use crate::vmm::ports::{Confine, Effect, PowerRequest};
use crate::wire::counters::Reason;

/// From a vCPU thread to the control thread.
#[derive(Debug)]
pub enum Message {
    /// Perform the effect, then answer.
    Effect {
        /// Slot of the function.
        slot: u8,
        /// What to do.
        effect: Effect,
        /// The vCPU waits for this.
        done: Sender<()>,
    },
    /// A vCPU stands at the gate, in this turn of it.
    Parked(u64),
    /// Empty these slots, one bit each, then answer: the guest has let them go.
    Eject {
        /// Which.
        slots: u32,
        /// The vCPU waits for this.
        done: Sender<()>,
    },
    /// The guest ended, or its vCPU cannot go on.
    Ended(VmExit),
}

/// Where vCPU threads put their messages: a channel, and an eventfd that wakes the control thread.
#[derive(Clone)]
pub struct Mailbox {
    sender: Sender<Message>,
    wake: Arc<EventFd>,
}

impl Mailbox {
    /// A mailbox and its receiving end.
    pub fn new() -> io::Result<(Self, mpsc::Receiver<Message>, Arc<EventFd>)> {
        let (sender, receiver) = mpsc::channel();
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK)?);
        Ok((Self { sender, wake: Arc::clone(&wake) }, receiver, wake))
    }

    /// Posts what wants an answer, and waits for it.
    fn ask(&self, message: impl FnOnce(Sender<()>) -> Message) -> bool {
        let (done, answer) = mpsc::channel();
        self.post(message(done)) && answer.recv().is_ok()
    }

    fn post(&self, message: Message) -> bool {
        self.sender.send(message).is_ok() && self.wake.write(1).is_ok()
    }
}

/// What a vCPU thread works with.
pub(super) struct Place {
    pub(super) bus: Arc<Bus>,
    pub(super) mailbox: Mailbox,
    pub(super) seat: Arc<Seat>,
    pub(super) gate: Arc<Gate>,
    /// CPUs of the host that the thread may use.
    pub(super) pin: Option<Vec<u32>>,
    pub(super) counters: VcpuCounters,
}

/// Starts the thread of vCPU `index`, which begins with `confine`; the guest begins when all have come to `start`.
pub(super) fn spawn(
    index: usize,
    vcpu: Vcpu,
    place: Place,
    start: Arc<Barrier>,
    confine: Confine,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("vcpu{index}")).spawn(move || {
        place.seat.take();
        let confined = pin(place.pin.as_deref()).and_then(|()| confine());
        start.wait();
        match confined {
            Ok(()) => run(vcpu, &place),
            Err(error) => {
                end(&place.mailbox, VmExit::HostError(format!("cannot place or confine a vCPU thread: {error}")))
            }
        }
    })
}

/// Keeps the calling thread on these CPUs.
fn pin(cpus: Option<&[u32]>) -> io::Result<()> {
    let Some(cpus) = cpus else { return Ok(()) };
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu as usize);
    }
    rustix::thread::sched_setaffinity(None, &set)
        .map_err(|error| io::Error::other(format!("CPUs {cpus:?} of the host: {error}")))
}

fn run(mut vcpu: Vcpu, place: &Place) {
    let Place { bus, mailbox, counters, .. } = place;
    let mut is_answered = true;
    // Without an answer the machine ends.
    while is_answered {
        let mut is_interrupted = false;
        let exit = vcpu.run();
        counters.count(reason(&exit));
        let request = match exit {
            Ok(Exit::PortRead(port, data)) => {
                bus.port_read(port, data);
                None
            }
            Ok(Exit::PortWrite(port, data)) => bus.port_write(port, data),
            Ok(Exit::MmioRead(address, data)) => {
                bus.memory_read(address, data);
                None
            }
            Ok(Exit::MmioWrite(address, data)) => bus.memory_write(address, data),
            Ok(Exit::Interrupted) => {
                is_interrupted = true;
                None
            }
            Ok(Exit::Shutdown) => return end(mailbox, VmExit::TripleFault),
            Ok(Exit::Fault(cause)) => return end(mailbox, VmExit::HostError(cause)),
            Err(error) => return end(mailbox, VmExit::HostError(format!("{error}: {}", error.source))),
        };
        match request {
            None => {}
            Some(Request::Power(PowerRequest::PowerOff)) => return end(mailbox, VmExit::PowerOff),
            Some(Request::Power(PowerRequest::Reset)) => return end(mailbox, VmExit::Reset),
            Some(Request::Power(PowerRequest::Panicked)) => return end(mailbox, VmExit::Panicked),
            Some(Request::Device { slot, effect }) => {
                counters.count(Reason::Effect);
                is_answered = mailbox.ask(|done| Message::Effect { slot, effect, done });
            }
            Some(Request::Eject(slots)) => {
                counters.count(Reason::Effect);
                is_answered = mailbox.ask(|done| Message::Eject { slots, done });
            }
        }
        if is_interrupted && let Err(error) = heed(&mut vcpu, place) {
            return end(mailbox, VmExit::HostError(format!("{error}: {}", error.source)));
        }
    }
}

fn reason(exit: &Result<Exit<'_>, KvmError>) -> Reason {
    match exit {
        Ok(Exit::PortRead(..)) => Reason::PortRead,
        Ok(Exit::PortWrite(..)) => Reason::PortWrite,
        Ok(Exit::MmioRead(..)) => Reason::MmioRead,
        Ok(Exit::MmioWrite(..)) => Reason::MmioWrite,
        Ok(Exit::Interrupted) => Reason::Interrupted,
        Ok(Exit::Shutdown | Exit::Fault(_)) | Err(_) => Reason::Other,
    }
}

/// Does what the vCPU was interrupted for, if it was for anything.
fn heed(vcpu: &mut Vcpu, place: &Place) -> Result<(), KvmError> {
    vcpu.lower();
    if place.seat.take_nmi() {
        vcpu.nmi()?;
    }
    let has_waited = place.gate.pass(|turn| {
        // Nobody hears it only when the machine ends.
        place.mailbox.post(Message::Parked(turn));
    });
    if has_waited { vcpu.tell_paused() } else { Ok(()) }
}

fn end(mailbox: &Mailbox, exit: VmExit) {
    mailbox.post(Message::Ended(exit));
}
