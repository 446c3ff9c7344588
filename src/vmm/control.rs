//! The control thread: one epoll loop over the daemon's link, the console and what vCPU threads ask. Key type:
//! [`Control`], which owns the [`Machine`].
//!
//! It performs effects of register writes, presses the power button, ends the run. It never waits for the daemon, the
//! guest or a console.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::alarms::Alarms;
use super::hotplug::Attached;
use super::machine::{Machine, MachineError, Mailbox, Message, Pause};
use super::ports::{Alarm, AlarmKind};
use super::{confine, console};
use crate::model::{DeviceChange, DeviceId, InstanceId, PciSlot, VmExit, VmId};
use crate::sys::packet::{Connection, Listener, Received};
use crate::wire::{FromVmm, MAX_PACKET_LEN, ToVmm};

const EVENTS_AT_ONCE: usize = 16;
/// After how long the machine is looked at again while it waits for its guest or for the host.
const REMIND: Duration = Duration::from_millis(200);

/// Which descriptor an epoll event is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    LinkListener,
    Link,
    Mailbox,
    InputTaken,
    Console(console::Token),
    /// By its number in `Parts::alarms`.
    Alarm(u32),
}

const CONSOLE_CONNECTION: u64 = 1 << 32;
const ALARM: u64 = 1 << 33;

impl Token {
    fn data(self) -> u64 {
        match self {
            Self::LinkListener => 0,
            Self::Link => 1,
            Self::Mailbox => 2,
            Self::InputTaken => 3,
            Self::Console(console::Token::Listener) => 4,
            Self::Console(console::Token::Output) => 5,
            Self::Console(console::Token::Connection(id)) => CONSOLE_CONNECTION | u64::from(id),
            Self::Alarm(number) => ALARM | u64::from(number),
        }
    }

    fn of(data: u64) -> Self {
        match data {
            0 => Self::LinkListener,
            1 => Self::Link,
            2 => Self::Mailbox,
            3 => Self::InputTaken,
            4 => Self::Console(console::Token::Listener),
            5 => Self::Console(console::Token::Output),
            // The lower half is the number, or the connection's id.
            alarm if alarm & ALARM != 0 => Self::Alarm((alarm & 0xffff_ffff) as u32),
            id => Self::Console(console::Token::Connection((id & 0xffff_ffff) as u32)),
        }
    }
}

/// What the epoll data of a console event is.
pub fn console_data(token: console::Token) -> u64 {
    Token::Console(token).data()
}

/// Who this vmm is, as it tells a daemon that connects.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// The VM.
    pub vm: VmId,
    /// The run.
    pub instance: InstanceId,
}

/// The descriptors and parts that the loop is made of.
pub struct Parts {
    /// Who this is.
    pub identity: Identity,
    /// The VM.
    pub machine: Machine,
    /// Its devices.
    pub attached: Attached,
    /// Where a restarted daemon connects.
    pub listener: Listener,
    /// The daemon that is connected: at first the one that launched this.
    pub link: Option<Connection>,
    /// The console's server, registered with `epoll`.
    pub console: console::Server,
    /// What vCPU threads ask.
    pub mailbox: Receiver<Message>,
    /// Wakes the loop for the mailbox.
    pub mailbox_wake: Arc<EventFd>,
    /// Signalled when the guest has taken its input.
    pub input_taken: Arc<EventFd>,
    /// What the host may have to tell of devices that are passed through.
    pub alarms: Alarms,
    /// The loop's epoll instance.
    pub epoll: Epoll,
}

/// The loop.
pub struct Control {
    parts: Parts,
    /// When the machine is to be looked at again, while it waits.
    reminds_at: Option<Instant>,
}

impl Control {
    /// Registers everything.
    pub fn new(parts: Parts) -> io::Result<Self> {
        let control = Self { parts, reminds_at: None };
        control.watch(&control.parts.listener, Token::LinkListener)?;
        control.watch_raw(control.parts.mailbox_wake.as_raw_fd(), Token::Mailbox)?;
        control.watch_raw(control.parts.input_taken.as_raw_fd(), Token::InputTaken)?;
        for (number, alarm) in control.parts.alarms.iter() {
            control.watch_raw(alarm.event.as_raw_fd(), Token::Alarm(number))?;
        }
        if let Some(link) = &control.parts.link {
            control.watch(link, Token::Link)?;
        }
        Ok(control)
    }

    /// Starts the vCPUs; this thread and theirs are confined from here on.
    pub fn start(&mut self, mailbox: &Mailbox) -> Result<(), MachineError> {
        self.parts.machine.run(mailbox, confine::vcpu, confine::control)
    }

    /// Runs until the run is over, and says how it ended. The daemon has been told by then.
    pub fn run(mut self) -> VmExit {
        let exit = loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(exit)) => break exit,
                Err(error) => break VmExit::HostError(format!("control loop: {error}")),
            }
        };
        self.parts.machine.quiesce();
        self.parts.console.flush(&self.parts.epoll);
        self.send(&FromVmm::Ended(exit.clone()));
        exit
    }

    /// Tells the daemon that is connected, if any.
    pub fn send(&mut self, message: &FromVmm) {
        if let Some(link) = &self.parts.link
            && link.send(&message.encode(), &[]).is_err()
        {
            self.parts.link = None;
        }
    }

    /// Waits for events and handles them.
    fn turn(&mut self) -> io::Result<Option<VmExit>> {
        let (mut events, timeout_ms) = ([EpollEvent::default(); EVENTS_AT_ONCE], self.timeout_ms());
        let count = match self.parts.epoll.wait(timeout_ms, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        if self.reminds_at.is_some_and(|at| at <= Instant::now()) {
            self.reminds_at = None;
            self.look_again();
        }
        for event in events.iter().take(count) {
            let exit = match Token::of(event.data()) {
                Token::LinkListener => self.accept_link(),
                Token::Link => self.receive(),
                Token::Mailbox => self.read_mailbox(),
                Token::InputTaken => {
                    let _ = self.parts.input_taken.read();
                    None
                }
                Token::Alarm(number) => self.hear_alarm(number),
                Token::Console(token) => {
                    self.parts.console.handle(token, event.event_set(), &self.parts.epoll);
                    None
                }
            };
            if exit.is_some() {
                return Ok(exit);
            }
        }
        let Parts { console, machine, epoll, .. } = &mut self.parts;
        console.go_on(epoll);
        console.type_input(|input| machine.type_in(input), epoll);
        Ok(None)
    }

    /// How long to wait for events; negative without a limit, as epoll_wait(2) has it.
    fn timeout_ms(&mut self) -> i32 {
        let Parts { machine, console, .. } = &self.parts;
        let now = Instant::now();
        self.reminds_at = machine.is_waiting().then(|| self.reminds_at.unwrap_or(now + REMIND));
        let remind = self.reminds_at.map(|at| at.saturating_duration_since(now));
        // Rounded up: a wait that is too short would be one more.
        let ms = |left: Duration| i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        remind.into_iter().chain(console.time_left()).min().map_or(-1, ms)
    }

    /// A restarted daemon: it takes the place of the one before.
    fn accept_link(&mut self) -> Option<VmExit> {
        match self.parts.listener.accept() {
            Ok(link) if self.watch(&link, Token::Link).is_ok() => {
                self.parts.link = Some(link);
                let Identity { vm, instance } = self.parts.identity;
                let (devices, is_paused) = (self.parts.attached.ids(), self.parts.machine.is_still());
                self.send(&FromVmm::Hello { vm, instance, is_paused, devices });
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot accept a daemon's connection"),
        }
        None
    }

    fn receive(&mut self) -> Option<VmExit> {
        let link = self.parts.link.as_ref()?;
        let (packet, descriptors) = match link.receive(MAX_PACKET_LEN) {
            Ok(Received::Packet(packet, descriptors)) => (packet, descriptors),
            Ok(Received::Closed) => {
                self.parts.link = None; // the daemon is gone; the VM goes on
                return None;
            }
            Err(error) => {
                tracing::warn!(%error, "dropping the daemon's connection");
                self.parts.link = None;
                return None;
            }
        };
        match ToVmm::decode_asked(&packet) {
            Ok((message, call)) => {
                if let Some(what) = wish(&message).filter(|_| !call.is_empty()) {
                    tracing::info!(call, "asked to {what}");
                }
                self.obey(message, descriptors)
            }
            Err(error) => {
                tracing::warn!(%error, "ignoring a malformed packet");
                None
            }
        }
    }

    /// Does what the daemon wants.
    fn obey(&mut self, message: ToVmm, descriptors: Vec<OwnedFd>) -> Option<VmExit> {
        match message {
            ToVmm::PowerButton => {
                if let Err(error) = self.parts.machine.press_power_button() {
                    tracing::warn!(%error, "cannot press the power button");
                }
                None
            }
            ToVmm::Kill => Some(VmExit::Killed),
            ToVmm::DeviceChange { device, change } => {
                let error = self.change(&device, change).err();
                self.send(&FromVmm::DeviceChanged { device, error });
                None
            }
            ToVmm::Pause => {
                self.pause();
                None
            }
            ToVmm::Resume => {
                self.parts.machine.resume();
                self.send(&FromVmm::Resumed);
                None
            }
            ToVmm::Nmi => {
                if let Err(error) = self.parts.machine.inject_nmi() {
                    tracing::warn!(%error, "cannot interrupt the vCPUs");
                }
                None
            }
            ToVmm::Attach(device) => {
                let Parts { attached, machine, .. } = &mut self.parts;
                let mut alarms = Vec::new();
                let answer = attached.attach(machine, &device, descriptors, &mut alarms);
                // Those of a device that was refused are closed with it.
                if matches!(answer, FromVmm::Attached(_)) {
                    self.expect_alarms(alarms);
                }
                self.send(&answer);
                None
            }
            ToVmm::Detach { id, is_forced } => {
                let Parts { attached, machine, .. } = &mut self.parts;
                let done = attached.detach(machine, id, is_forced);
                self.detached(done)
            }
            ToVmm::Launch { .. } => {
                tracing::warn!("ignoring a second launch");
                None
            }
        }
    }

    fn change(&self, device: &DeviceId, change: DeviceChange) -> Result<(), String> {
        let slot = self.parts.attached.slot(device).ok_or_else(|| format!("there is no device {device}"))?;
        self.parts.machine.change(slot.number(), change).map_err(|error| error.to_string())
    }

    fn read_mailbox(&mut self) -> Option<VmExit> {
        let _ = self.parts.mailbox_wake.read();
        while let Ok(message) = self.parts.mailbox.try_recv() {
            match message {
                Message::Ended(exit) => return Some(exit),
                Message::Eject { slots, done } => {
                    let Parts { attached, machine, .. } = &mut self.parts;
                    let of_mask = (0..32u8).filter(|slot| slots & 1 << slot != 0).filter_map(PciSlot::new);
                    for removed in of_mask.map(|slot| attached.remove(machine, slot)).collect::<Vec<_>>() {
                        if let Some(exit) = self.detached(removed) {
                            return Some(exit);
                        }
                    }
                    let _ = done.send(());
                }
                Message::Effect { slot, effect, done } => {
                    if let Err(error) = self.parts.machine.apply(slot, effect) {
                        return Some(VmExit::HostError(format!("slot {slot}, {effect:?}: {error}")));
                    }
                    // A vCPU that no longer waits is not an error.
                    let _ = done.send(());
                }
                Message::Parked(turn) => {
                    if self.parts.machine.parked(turn) == Pause::Parked {
                        self.rest();
                    }
                }
            }
        }
        None
    }

    /// Begins a pause; it is reported when it is complete.
    fn pause(&mut self) {
        match self.parts.machine.pause() {
            Ok(Pause::Still) => self.send(&FromVmm::Paused),
            Ok(Pause::Pending | Pause::Parked) => {}
            Err(error) => {
                self.parts.machine.resume();
                self.send(&FromVmm::NotPaused { cause: format!("cannot interrupt the vCPUs: {error}") });
            }
        }
    }

    /// The vCPUs stand still: the devices follow.
    fn rest(&mut self) {
        let report = if self.parts.machine.rest() {
            FromVmm::Paused
        } else {
            FromVmm::NotPaused { cause: "a device's requests to the host do not come to an end".to_owned() }
        };
        self.send(&report);
    }

    /// Tells the daemon what became of a device that was to go. A machine that cannot let go of one is of no use.
    fn detached(&mut self, done: Result<Option<FromVmm>, MachineError>) -> Option<VmExit> {
        match done {
            Ok(Some(message)) => {
                self.tell_of_device(&message);
                None
            }
            Ok(None) => None,
            Err(error) => Some(VmExit::HostError(format!("cannot detach a device: {error}"))),
        }
    }

    /// The guest has not read its news, or the host still works for a device.
    fn look_again(&mut self) {
        let Parts { attached, machine, .. } = &mut self.parts;
        machine.remind();
        for message in attached.departed(machine) {
            self.tell_of_device(&message);
        }
    }

    fn tell_of_device(&mut self, message: &FromVmm) {
        if let FromVmm::Detached(id) = message {
            self.parts.alarms.forget(id);
        }
        self.send(message);
    }

    /// Watches what the host may have to tell of a device that has come.
    fn expect_alarms(&mut self, alarms: Vec<Alarm>) {
        for alarm in alarms {
            let (device, descriptor) = (alarm.device.clone(), alarm.event.as_raw_fd());
            let number = self.parts.alarms.add(alarm);
            if let Err(error) = self.watch_raw(descriptor, Token::Alarm(number)) {
                tracing::warn!(%device, %error, "the host's alarms of the device will not be heard");
            }
        }
    }

    /// The host tells something of a device.
    fn hear_alarm(&mut self, number: u32) -> Option<VmExit> {
        let alarm = self.parts.alarms.get(number)?;
        let _ = alarm.event.read();
        let device = &alarm.device;
        match alarm.kind {
            AlarmKind::Error => {
                Some(VmExit::HostError(format!("device {device}: the host saw an uncorrectable error of it")))
            }
            AlarmKind::Request => {
                tracing::warn!(%device, "the host wants the device back");
                let wanted = FromVmm::DeviceWanted(device.clone());
                self.send(&wanted);
                None
            }
        }
    }

    fn watch(&self, descriptor: &impl AsFd, token: Token) -> io::Result<()> {
        self.watch_raw(descriptor.as_fd().as_raw_fd(), token)
    }

    fn watch_raw(&self, descriptor: i32, token: Token) -> io::Result<()> {
        self.parts.epoll.ctl(ControlOperation::Add, descriptor, EpollEvent::new(EventSet::IN, token.data()))
    }
}

/// What a message wants, in words. Of changes of a device there may be as many as a terminal's window has sizes: no word.
fn wish(message: &ToVmm) -> Option<String> {
    Some(match message {
        ToVmm::PowerButton => "press the power button".to_owned(),
        ToVmm::Kill => "end at once".to_owned(),
        ToVmm::Pause => "stand still".to_owned(),
        ToVmm::Resume => "go on".to_owned(),
        ToVmm::Nmi => "interrupt the vCPUs".to_owned(),
        ToVmm::Attach(device) => format!("take device {}", device.id),
        ToVmm::Detach { id, .. } => format!("give device {id} up"),
        ToVmm::Launch { .. } | ToVmm::DeviceChange { .. } => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip() {
        let tokens = [
            Token::LinkListener,
            Token::Link,
            Token::Mailbox,
            Token::InputTaken,
            Token::Console(console::Token::Listener),
            Token::Console(console::Token::Output),
            Token::Console(console::Token::Connection(0)),
            Token::Console(console::Token::Connection(u32::MAX)),
            Token::Alarm(0),
            Token::Alarm(u32::MAX),
        ];
        for token in tokens {
            assert_eq!(Token::of(token.data()), token);
        }
    }
}
