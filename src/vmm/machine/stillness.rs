//! Making a machine stand still, and what else is asked of vCPU threads from outside. Key types: [`Gate`], [`Seat`],
//! [`Stillness`].
//!
//! ```text
//!            pause: gate closed, vCPUs kicked      all parked: devices told to rest     all at rest
//!   Running ──────────────────────────▶ Parking ─────────────────────────────────▶ Still
//!      ▲                                   │             a device is late               │ resume
//!      └───────────── gate opened ─────────┴─────────────────────────────────◀──────────┘
//! ```
//! vCPUs come first, so that devices get nothing new while they finish what they have. The control thread waits for
//! devices only: a vCPU may itself wait for the control thread, and parks after that.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::sys::kick::ThreadId;
use crate::vmm::kvm::Kicker;

/// Longest that the control thread waits for devices to rest.
const REST_WAIT: Duration = Duration::from_secs(2);

/// Where vCPU threads wait while the machine stands still.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Rank 2: nothing else is locked while it is held, but for the mailbox's own.
    state: Mutex<GateState>,
    opened: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
struct GateState {
    is_closed: bool,
    /// Which closing: those who waited for an earlier one tell of the next one too.
    turn: u64,
}

impl Gate {
    fn close(&self) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_closed = true;
        state.turn += 1;
        state.turn
    }

    fn open(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_closed = false;
        self.opened.notify_all();
    }

    /// Waits while the gate is closed, and tells of each turn once with `tell`. Whether it waited at all.
    pub(super) fn pass(&self, tell: impl Fn(u64)) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told = None;
        while state.is_closed {
            if told != Some(state.turn) {
                told = Some(state.turn);
                tell(state.turn);
            }
            state = self.opened.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        told.is_some()
    }
}

/// A vCPU's place: how its thread is reached, and what is wanted of it. Looked at only after a kick, so that it costs a
/// running guest nothing.
#[derive(Debug, Default)]
pub(super) struct Seat {
    /// Set by the thread before the vCPUs start together.
    thread: OnceLock<ThreadId>,
    /// Set by the control thread before a kick, taken by the vCPU thread after one.
    wants_nmi: AtomicBool,
}

impl Seat {
    /// The calling thread takes it.
    pub(super) fn take(&self) {
        // A seat has one thread.
        let _ = self.thread.set(ThreadId::current());
    }

    /// Whether an NMI is wanted; once.
    pub(super) fn take_nmi(&self) -> bool {
        self.wants_nmi.swap(false, Ordering::AcqRel)
    }
}

/// What the machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// So many vCPUs are still to park, in this turn of the gate.
    Parking {
        turn: u64,
        left: usize,
    },
    Still,
}

/// What came of a vCPU that parked, or of a wish to pause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pause {
    /// Others are still under way.
    Pending,
    /// All vCPUs are parked: the devices are next.
    Parked,
    /// It has been so already.
    Still,
}

/// The control thread's side of it.
#[derive(Debug)]
pub(super) struct Stillness {
    phase: Phase,
    gate: Arc<Gate>,
    seats: Vec<(Arc<Seat>, Kicker)>,
}

impl Stillness {
    pub(super) fn new(kickers: Vec<Kicker>) -> Self {
        let seats = kickers.into_iter().map(|kicker| (Arc::default(), kicker)).collect();
        Self { phase: Phase::Running, gate: Arc::default(), seats }
    }

    pub(super) fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    /// The seats, by vCPU.
    pub(super) fn seats(&self) -> Vec<Arc<Seat>> {
        self.seats.iter().map(|(seat, _)| Arc::clone(seat)).collect()
    }

    /// Brings every vCPU out of the guest, to look at what is wanted of it.
    fn kick(&mut self) -> io::Result<()> {
        for (seat, kicker) in &mut self.seats {
            // In this order: one that is about to enter the guest sees the flag, one that is in there the signal.
            kicker.raise();
            if let Some(thread) = seat.thread.get() {
                thread.kick()?;
            }
        }
        Ok(())
    }

    /// Sends the vCPUs to the gate.
    pub(super) fn park(&mut self) -> io::Result<Pause> {
        match self.phase {
            Phase::Still => return Ok(Pause::Still),
            Phase::Parking { .. } => return Ok(Pause::Pending),
            Phase::Running => {}
        }
        let turn = self.gate.close();
        self.phase = Phase::Parking { turn, left: self.seats.len() };
        self.kick()?;
        Ok(Pause::Pending)
    }

    /// A vCPU has parked in `turn`.
    pub(super) fn parked(&mut self, turn: u64) -> Pause {
        match &mut self.phase {
            Phase::Parking { turn: current, left } if *current == turn => {
                *left = left.saturating_sub(1);
                if *left == 0 { Pause::Parked } else { Pause::Pending }
            }
            // Of a turn that is over.
            Phase::Running | Phase::Parking { .. } | Phase::Still => Pause::Pending,
        }
    }

    /// All devices rest too.
    pub(super) fn settle(&mut self) {
        self.phase = Phase::Still;
    }

    pub(super) fn is_still(&self) -> bool {
        self.phase == Phase::Still
    }

    /// Opens the gate; the caller has told the devices before, if they had been told to rest.
    pub(super) fn resume(&mut self) {
        self.phase = Phase::Running;
        self.gate.open();
    }

    /// Gives every vCPU an NMI.
    pub(super) fn inject_nmi(&mut self) -> io::Result<()> {
        for (seat, _) in &self.seats {
            seat.wants_nmi.store(true, Ordering::Release);
        }
        self.kick()
    }
}

/// Waits until all of `resting` have heard, or their senders are gone; false when one is late.
pub(super) fn all_rest(resting: Vec<Receiver<()>>) -> bool {
    let end = Instant::now() + REST_WAIT;
    resting.into_iter().all(|done| {
        let left = end.saturating_duration_since(Instant::now());
        done.recv_timeout(left) != Err(RecvTimeoutError::Timeout)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_closed_gate_holds_a_thread_and_tells_of_each_turn_once() {
        let gate = Arc::new(Gate::default());
        assert!(!gate.pass(|_| unreachable!("it is open")));
        let first = gate.close();
        let (sender, told) = channel();
        let thread = std::thread::spawn({
            let gate = Arc::clone(&gate);
            move || gate.pass(|turn| sender.send(turn).unwrap())
        });
        assert_eq!(told.recv().unwrap(), first);
        // Opened and closed again before the thread woke up: it tells of the second turn too, or had gone through.
        gate.open();
        let second = gate.close();
        gate.opened.notify_all();
        match told.recv_timeout(Duration::from_secs(5)) {
            Ok(turn) => assert_eq!(turn, second),
            Err(error) => assert_eq!(error, RecvTimeoutError::Disconnected),
        }
        gate.open();
        assert!(thread.join().unwrap());
    }

    #[test]
    fn a_vcpu_that_parks_late_does_not_count_for_the_next_turn() {
        let mut stillness = Stillness::new(Vec::new());
        stillness.phase = Phase::Parking { turn: 2, left: 1 };
        assert_eq!(stillness.parked(1), Pause::Pending);
        assert_eq!(stillness.parked(2), Pause::Parked);
        stillness.settle();
        assert!(stillness.is_still());
        assert_eq!(stillness.park().unwrap(), Pause::Still);
        stillness.resume();
        assert_eq!(stillness.parked(2), Pause::Pending);
    }

    #[test]
    fn a_device_that_is_gone_rests() {
        let (sender, receiver) = channel();
        drop(sender);
        assert!(all_rest(vec![receiver]));
        let (_late, receiver) = channel();
        let begin = Instant::now();
        assert!(!all_rest(vec![receiver]));
        assert!(begin.elapsed() >= REST_WAIT);
    }
}
