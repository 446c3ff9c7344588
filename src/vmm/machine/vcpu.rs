//! vCPU threads. Each runs its vCPU, answers exits from the bus, and hands what it cannot answer to the control thread.
//!
//! The only wait on another thread: a register write with an effect (`ports::Effect`) must have it before the guest's
//! next instruction. It ends when the control thread answers, or when the machine ends.

use std::io;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};

use vmm_sys_util::eventfd::EventFd;

use super::bus::{Bus, Request};
use crate::model::VmExit;
use crate::vmm::kvm::{Exit, Vcpu};
use crate::vmm::ports::{Confine, Effect, PowerRequest};

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

/// Starts the thread of vCPU `index`, which begins with `confine`; the guest begins when all have come to `start`.
pub(super) fn spawn(
    index: usize,
    vcpu: Vcpu,
    bus: Arc<Bus>,
    mailbox: Mailbox,
    start: Arc<Barrier>,
    confine: Confine,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("vcpu{index}")).spawn(move || {
        let confined = confine();
        start.wait();
        match confined {
            Ok(()) => run(vcpu, &bus, &mailbox),
            Err(error) => end(&mailbox, VmExit::HostError(format!("cannot confine a vCPU thread: {error}"))),
        }
    })
}

fn run(mut vcpu: Vcpu, bus: &Bus, mailbox: &Mailbox) {
    let mut is_answered = true;
    // Without an answer the machine ends.
    while is_answered {
        let request = match vcpu.run() {
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
            Ok(Exit::Interrupted) => None,
            Ok(Exit::Shutdown) => return end(mailbox, VmExit::TripleFault),
            Ok(Exit::Fault(cause)) => return end(mailbox, VmExit::HostError(cause)),
            Err(error) => return end(mailbox, VmExit::HostError(format!("{error}: {}", error.source))),
        };
        match request {
            None => {}
            Some(Request::Power(PowerRequest::PowerOff)) => return end(mailbox, VmExit::PowerOff),
            Some(Request::Power(PowerRequest::Reset)) => return end(mailbox, VmExit::Reset),
            Some(Request::Device { slot, effect }) => {
                is_answered = mailbox.ask(|done| Message::Effect { slot, effect, done });
            }
            Some(Request::Eject(slots)) => is_answered = mailbox.ask(|done| Message::Eject { slots, done }),
        }
    }
}

fn end(mailbox: &Mailbox, exit: VmExit) {
    mailbox.post(Message::Ended(exit));
}
