//! The thread that owns a device. Key type: [`Worker`].
//!
//! ```text
//!             Start(Active)                 fault
//!      Idle ───────────────▶ Active ─────────────────▶ Idle, device marked NEEDS_RESET
//!       ▲        Stop          │
//!       └──────────────────────┘  acknowledged when no I/O touches guest memory any more
//! ```
//! Beside that it may be paused: acknowledged when nothing is in flight; then it answers to nothing but commands.
//! Spawned with the device, because no thread can be made later. Wakes up for commands (an eventfd beside the channel),
//! queue notifications and the device's own descriptor; drained kicks of an idle device have no effect, since a start
//! looks at all queues.

use std::io;
use std::os::fd::AsRawFd;
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
    Start(Active),
    /// Answered when the device is idle.
    Stop(SyncSender<()>),
    /// Answered with what the device says.
    Change(DeviceChange, SyncSender<Changed>),
    /// Answered when nothing is in flight.
    Pause(SyncSender<()>),
    Resume,
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
    wake: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Spawns the thread for `device`, which begins with `confine`, listens to `kicks` (by queue) and reports through
    /// `signals`.
    pub(super) fn spawn(
        id: &str,
        device: impl Device,
        kicks: Vec<Arc<EventFd>>,
        signals: Arc<Signals>,
        confine: Confine,
    ) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK)?;
        let epoll = Epoll::new()?;
        let add = |fd, events, data| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, data));
        add(wake.as_raw_fd(), EventSet::IN, COMMAND)?;
        for (number, kick) in (0..).zip(&kicks) {
            add(kick.as_raw_fd(), EventSet::IN, number)?;
        }
        for (number, fd) in (BACKEND..).zip(device.backends()) {
            add(fd, EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED, number)?;
        }
        let (commands, inbox) = channel();
        let own = Owner {
            id: id.to_owned(),
            device,
            epoll,
            inbox,
            wake: wake.try_clone()?,
            kicks,
            signals,
            active: None,
            is_paused: false,
        };
        let name: String = format!("vio-{id}").chars().take(NAME_LEN).collect();
        let thread = std::thread::Builder::new().name(name).spawn(move || own.run(confine))?;
        Ok(Self { commands: Some(commands), wake, thread: Some(thread) })
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
struct Owner<D> {
    id: String,
    device: D,
    epoll: Epoll,
    inbox: Receiver<Command>,
    wake: EventFd,
    kicks: Vec<Arc<EventFd>>,
    signals: Arc<Signals>,
    active: Option<Active>,
    is_paused: bool,
}

impl<D: Device> Owner<D> {
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
        if let Some(kick) = self.kicks.get(number) {
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
            match self.inbox.try_recv() {
                Ok(Command::Start(active)) => {
                    self.active = Some(active);
                    next = self.call(Wake::Any);
                }
                Ok(Command::Stop(done)) => {
                    self.idle();
                    next = Next::Wait;
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(());
                }
                Ok(Command::Change(change, done)) => {
                    let changed = self.device.change(change);
                    let _ = done.send(changed);
                    if self.call(Wake::Any) == Next::Again {
                        next = Next::Again;
                    }
                }
                Ok(Command::Pause(done)) => {
                    self.is_paused = true;
                    next = Next::Wait;
                    if let Some(active) = &mut self.active
                        && let Err(fault) = self.device.rest(active)
                    {
                        self.fail(fault);
                    }
                    let _ = done.send(());
                }
                Ok(Command::Resume) => {
                    self.is_paused = false;
                    // Kicks that came meanwhile were drained.
                    next = self.call(Wake::Any);
                }
                Err(TryRecvError::Empty) => return Some(next),
                Err(TryRecvError::Disconnected) => {
                    self.idle();
                    return None;
                }
            }
        }
    }

    fn call(&mut self, wake: Wake) -> Next {
        if self.is_paused {
            return Next::Wait;
        }
        let Some(active) = &mut self.active else { return Next::Wait };
        match self.device.run(active, wake) {
            Ok(next) => next,
            Err(fault) => {
                self.fail(fault);
                Next::Wait
            }
        }
    }

    fn fail(&mut self, fault: Fault) {
        let is_live = self.active.is_some();
        self.idle();
        let count = self.signals.fail(is_live);
        // At most one line per doubling: a guest cannot fill the log.
        if count.is_power_of_two() {
            let cause = std::error::Error::source(&fault).map(ToString::to_string);
            tracing::warn!(device = %self.id, %fault, cause, count, "device needs a reset");
        }
    }

    fn idle(&mut self) {
        self.device.stop();
        self.active = None;
    }
}
