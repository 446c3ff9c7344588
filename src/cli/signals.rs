//! Signals that ask the process to end, taken instead of dying of them. Key types: [`Signals`].
//!
//! `commands::run` has something to undo first.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::{Exit, Failure};

/// SIGINT, SIGTERM and SIGHUP: from its making on they end nothing by themselves.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    pub(crate) fn take() -> Result<Self, Failure> {
        let take = || -> io::Result<Self> {
            let interrupt = signal(SignalKind::interrupt())?;
            Ok(Self { interrupt, terminate: signal(SignalKind::terminate())?, hang_up: signal(SignalKind::hangup())? })
        };
        take().map_err(|error| Failure::local("cannot take signals", &error))
    }

    /// Waits for the next one; gives what the process then ends with. May be dropped while it waits, and called again.
    pub(crate) async fn next(&mut self) -> Exit {
        tokio::select! {
            _ = self.interrupt.recv() => Exit::Interrupted,
            _ = self.terminate.recv() => Exit::Terminated,
            _ = self.hang_up.recv() => Exit::HungUp,
        }
    }
}
