//! The thread that owns a device. Key types: [`Worker`], [`Seat`].
//!
//! ```text
//!              seat            Start(Active)                 fault
//!      Free ──────────▶ Idle ───────────────▶ Active ─────────────────▶ Idle, device marked NEEDS_RESET
//!       ▲                │▲        Stop          │
//!       └────vacate──────┘└──────────────────────┘  acknowledged when no I/O touches guest memory any more
//! ```
//! Beside that it may be paused: acknowledged when nothing is in flight; then it waits for nothing but commands, whatever
//! comes to its device.
//! Spawned before system calls are restricted, because no thread can be made later; a free one waits in `workers` for a
//! device that comes while the VM runs. Wakes up for commands (an eventfd beside the channel), queue notifications and
//! the device's own descriptor; drained kicks of an idle device have no effect, since a start looks at all queues.
//!
//! What a thread waits for is registered by whoever seats a device, so that the thread itself needs no right to.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{Active, Device, Fault, Next, Wake};
use super::signals::Signals;
use crate::model::DeviceChange;
use crate::vmm::ports::{ChangeError, Confine};

/// Epoll data: queue numbers from 0, the device's own descriptors from `BACKEND`, commands.
const COMMAND: u64 = u64::MAX;
const BACKEND: u64 = 1 << 32;
/// Longest thread name that Linux keeps (`TASK_COMM_LEN` less one).
const NAME_LEN: usize = 15;
/// Events taken per wait.
const BATCH: usize = 8;

/// What a device says to a change: its configuration, if that is another now.
pub(super) type Changed = Result<Option<Vec<u8>>, ChangeError>;

enum Command {
    Seat(Seat),
    Start(Active),
    /// Answered when the device is idle.
    Stop(SyncSender<()>),
    /// Answered with what the device says.
    Change(DeviceChange, SyncSender<Changed>),
    /// Answered when nothing is in flight.
    Pause(SyncSender<()>),
    Resume,
    /// Answered with the device when it is idle; the thread is free then.
    Vacate(SyncSender<Box<dyn Device>>),
}

/// A device with all that its thread works with.
pub(super) struct Seat {
    /// For logs.
    pub(super) id: String,
    /// The device.
    pub(super) device: Box<dyn Device>,
    /// By queue.
    pub(super) kicks: Vec<Arc<EventFd>>,
    /// How it reports.
    pub(super) signals: Arc<Signals>,
}

/// The thread is gone: it met an error that it could not survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("device worker is gone")]
pub(super) struct WorkerGone;

/// A device's thread; dropping it stops the device and joins.
#[derive(Debug)]
pub(super) struct Worker {
    /// Dropped first of all: its end is the command to quit.
    commands: Option<Sender<Command>>,
    wake: Arc<EventFd>,
    epoll: Arc<Epoll>,
    /// What is registered for the device that is seated.
    watched: Vec<RawFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Spawns a free thread of this name, which begins with `confine`.
    pub(super) fn spawn(name: &str, confine: Confine) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let epoll = Arc::new(Epoll::new()?);
        epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), EpollEvent::new(EventSet::IN, COMMAND))?;
        let (commands, inbox) = channel();
        let own = Owner { epoll: Arc::clone(&epoll), inbox, wake: Arc::clone(&wake), seated: None };
        let name: String = format!("vio-{name}").chars().take(NAME_LEN).collect();
        let thread = std::thread::Builder::new().name(name).spawn(move || own.run(confine))?;
        Ok(Self { commands: Some(commands), wake, epoll, watched: Vec::new(), thread: Some(thread) })
    }

    /// Gives the free thread a device. On an error the thread is to be dropped.
    pub(super) fn seat(&mut self, seat: Seat) -> io::Result<()> {
        for (number, kick) in (0..).zip(&seat.kicks).filter(|(number, _)| seat.device.serves(*number as usize)) {
            self.watch(kick.as_raw_fd(), EventSet::IN, number)?;
        }
        for (number, fd) in (BACKEND..).zip(seat.device.backends()) {
            self.watch(fd, EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED, number)?;
        }
        self.send(Command::Seat(seat)).map_err(io::Error::other)
    }

    fn watch(&mut self, fd: RawFd, events: EventSet, data: u64) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, data))?;
        self.watched.push(fd);
        Ok(())
    }

    /// Takes the device from the thread: it arrives when nothing of it is in flight. If the thread is gone, so is the
    /// device, and the receiver is disconnected.
    pub(super) fn vacate(&mut self) -> Receiver<Box<dyn Device>> {
        for fd in self.watched.drain(..) {
            // Gone with its device, if the thread is.
            let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
        let (done, receiver) = sync_channel(1);
        // On failure the sender is dropped with the command, and the receiver learns.
        let _ = self.send(Command::Vacate(done));
        receiver
    }

    /// Hands the rings over; the device runs at once.
    pub(super) fn start(&self, active: Active) -> Result<(), WorkerGone> {
        self.send(Command::Start(active))
    }

    /// Asks for the end of all work; the receiver hears of it (or is disconnected, if the thread is gone).
    pub(super) fn stop(&self) -> Receiver<()> {
        let (done, receiver) = sync_channel(1);
        // On failure the sender is dropped with the command, and the receiver learns.
        let _ = self.send(Command::Stop(done));
        receiver
    }

    /// Asks the device to change; the receiver hears what it says.
    pub(super) fn change(&self, change: DeviceChange) -> Receiver<Changed> {
        let (done, receiver) = sync_channel(1);
        // As above.
        let _ = self.send(Command::Change(change, done));
        receiver
    }

    /// Has the device look at its vectors: they are others. Costs the thread a look, however often it is asked.
    pub(super) fn reroute(&self) {
        // Fails only when the counter is full, and then the thread is awake anyway.
        let _ = self.wake.write(1);
    }

    /// Asks for rest; the receiver hears of it (or is disconnected, if the thread is gone).
    pub(super) fn pause(&self) -> Receiver<()> {
        let (done, receiver) = sync_channel(1);
        let _ = self.send(Command::Pause(done));
        receiver
    }

    /// Ends the rest. A thread that is gone has reported that.
    pub(super) fn resume(&self) {
        let _ = self.send(Command::Resume);
    }

    fn send(&self, command: Command) -> Result<(), WorkerGone> {
        self.commands.as_ref().ok_or(WorkerGone)?.send(command).map_err(|_| WorkerGone)?;
        self.wake.write(1).map_err(|_| WorkerGone)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.commands = None;
        let is_told = self.wake.write(1).is_ok();
        if let Some(thread) = self.thread.take()
            && is_told
        {
            // A panic in there has been reported already.
            let _ = thread.join();
        }
    }
}

/// What the thread owns.
struct Owner {
    epoll: Arc<Epoll>,
    inbox: Receiver<Command>,
    wake: Arc<EventFd>,
    seated: Option<Seated>,
}

/// The device, and its rings while the driver lets it work.
struct Seated {
    seat: Seat,
    active: Option<Active>,
    is_paused: bool,
}

impl Owner {
    fn run(mut self, confine: Confine) {
        if let Err(error) = confine() {
            // Better no device than one that is not confined.
            return self.fail(Fault::Host(error));
        }
        let mut next = Next::Wait;
        let mut events = [EpollEvent::default(); BATCH];
        loop {
            let timeout = if next == Next::Again { 0 } else { -1 };
            let count = match self.epoll.wait(timeout, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return self.fail(Fault::Host(error)),
            };
            if next == Next::Again {
                next = self.call(Wake::Any);
            }
            for event in events.iter().take(count) {
                let after = match event.data() {
                    COMMAND => match self.obey() {
                        Some(after) => after,
                        None => return,
                    },
                    number if number >= BACKEND => self.call(Wake::Backend((number - BACKEND) as usize)),
                    number => self.kicked(number as usize),
                };
                if after == Next::Again {
                    next = Next::Again;
                }
            }
        }
    }

    fn kicked(&mut self, number: usize) -> Next {
        if let Some(kick) = self.seated.as_ref().and_then(|seated| seated.seat.kicks.get(number)) {
            // Non-blocking: whoever was faster has taken the same kick.
            let _ = kick.read();
        }
        self.call(Wake::Queue(number))
    }

    /// Carries out what was commanded. `None`: the other end is gone, and so is the device's work.
    fn obey(&mut self) -> Option<Next> {
        let _ = self.wake.read();
        let mut next = Next::Wait;
        loop {
            match self.next_command() {
                Ok(Command::Seat(seat)) => self.seated = Some(Seated { seat, active: None, is_paused: false }),
                Ok(Command::Start(active)) => {
                    if let Some(seated) = &mut self.seated {
                        seated.active = Some(active);
                    }
                    next = self.call(Wake::Any);
                }
                Ok(Command::Stop(done)) => {
                    self.idle();
                    next = Next::Wait;
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(());
                }
                Ok(Command::Change(change, done)) => {
                    // Dropped unanswered without a device.
                    if let Some(Seated { seat, .. }) = &mut self.seated {
                        let _ = done.send(seat.device.change(change));
                    }
                    if self.call(Wake::Any) == Next::Again {
                        next = Next::Again;
                    }
                }
                Ok(Command::Pause(done)) => {
                    next = Next::Wait;
                    self.pause();
                    let _ = done.send(());
                }
                Ok(Command::Resume) => {
                    if let Some(seated) = &mut self.seated {
                        seated.is_paused = false;
                    }
                    // The kick that woke it for its rest may have been drained.
                    next = self.call(Wake::Any);
                }
                Ok(Command::Vacate(done)) => {
                    self.idle();
                    next = Next::Wait;
                    if let Some(Seated { seat, .. }) = self.seated.take() {
                        let _ = done.send(seat.device);
                    }
                }
                Err(TryRecvError::Empty) => return Some(self.follow_vectors(next)),
                Err(TryRecvError::Disconnected) => {
                    self.idle();
                    return None;
                }
            }
        }
    }

    /// While it is paused, the next one, whenever that comes: not even a look at what a tap has is for a guest that stands still.
    fn next_command(&self) -> Result<Command, TryRecvError> {
        match &self.seated {
            Some(Seated { is_paused: true, .. }) => self.inbox.recv().map_err(|_| TryRecvError::Disconnected),
            _ => self.inbox.try_recv(),
        }
    }

    /// Calls the device if one of its queues has another vector.
    fn follow_vectors(&mut self, next: Next) -> Next {
        let is_rerouted = self.seated.as_ref().is_some_and(|seated| seated.seat.signals.take_rerouted());
        if is_rerouted { self.call(Wake::Any).or(next) } else { next }
    }

    fn call(&mut self, wake: Wake) -> Next {
        let Some(Seated { seat, active: Some(active), is_paused: false }) = &mut self.seated else { return Next::Wait };
        match seat.device.run(active, wake) {
            Ok(next) => next,
            Err(fault) => {
                self.fail(fault);
                Next::Wait
            }
        }
    }

    /// Has the device finish what it has begun, and begin nothing more.
    fn pause(&mut self) {
        let Some(Seated { seat, active, is_paused }) = &mut self.seated else { return };
        *is_paused = true;
        if let Some(active) = active
            && let Err(fault) = seat.device.rest(active)
        {
            self.fail(fault);
        }
    }

    fn fail(&mut self, fault: Fault) {
        let cause = std::error::Error::source(&fault).map(ToString::to_string);
        let Some(Seated { seat, active, .. }) = &self.seated else {
            return tracing::error!(%fault, cause, "a free device thread ends");
        };
        let (id, signals, is_live) = (seat.id.clone(), Arc::clone(&seat.signals), active.is_some());
        self.idle();
        let count = signals.fail(is_live);
        // At most one line per doubling: a guest cannot fill the log.
        if count.is_power_of_two() {
            tracing::warn!(device = %id, %fault, cause, count, "device needs a reset");
        }
    }

    fn idle(&mut self) {
        if let Some(seated) = &mut self.seated {
            seated.seat.device.stop();
            seated.active = None;
        }
    }
}
