//! Ends guests that spin for ever: on the lab's emulated processor a guest's kernel sometimes does, interrupts off at a lock
//! of its own, under whichever hypervisor. The clock cannot tell, which jumps ahead when the machine is idle; the processor
//! time can.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use ostler::sys::process::Process;

/// More processor time than a run with one guest takes.
pub const LIMIT: Duration = Duration::from_secs(30);
/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often a run is tried.
const ATTEMPTS: usize = 3;

/// A process that is killed when it has had its time.
pub struct Watch {
    limit: Duration,
    is_over: Sender<()>,
    thread: JoinHandle<bool>,
}

impl Watch {
    /// Until [`Watch::end`], or until `pid` has had `limit` of processor time.
    pub fn begin(pid: u32, limit: Duration) -> io::Result<Self> {
        let process = Process::open(pid)?;
        let (is_over, over) = channel();
        let thread = std::thread::spawn(move || {
            while over.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                if process.cpu_time().is_ok_and(|had| had > limit) {
                    return process.kill().is_ok();
                }
            }
            false
        });
        Ok(Self { limit, is_over, thread })
    }

    /// What came of the work with it, or that it was stuck.
    pub fn end<T>(self, outcome: io::Result<T>) -> io::Result<T> {
        drop(self.is_over);
        if self.thread.join().is_ok_and(|is_killed| is_killed) {
            let message = format!("used {:?} of processor time and did not come to its end", self.limit);
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        outcome
    }
}

/// Runs it again, and says so, if it was stuck.
pub fn repeated<T>(mut run: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..ATTEMPTS {
        match run() {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => eprint!(" {error}; again:"),
            outcome => return outcome,
        }
    }
    run()
}
