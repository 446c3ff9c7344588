//! A vmm process that lives. Key type: [`Live`].

use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::change::Changes;
use super::link::{Link, watch};
use crate::model::VmExit;
use crate::sys::process::Process;
use crate::wire::ToVmm;

/// How long a vmm that was told to end may take before it is killed by signal.
pub(super) const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// A process with what belongs to it.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) process: AsyncFd<Process>,
    pub(super) link: Option<Link>,
    /// When it must have reported Ready; `None` once it did.
    pub(super) ready_by: Option<Instant>,
    /// When it is killed by signal.
    pub(super) kill_by: Option<Instant>,
    /// How it ended by its own last word, or by ours if we ended it.
    pub(super) last_word: Option<VmExit>,
    /// Changes of its devices under way.
    pub(super) changes: Changes,
}

impl Live {
    pub(super) fn new(process: Process, link: Option<Link>) -> std::io::Result<Self> {
        let process = watch(process)?;
        Ok(Self { process, link, ready_by: None, kill_by: None, last_word: None, changes: Changes::default() })
    }

    /// Ends the process: by word if it listens, by signal if not or if it does not hurry.
    pub(super) fn kill(&mut self) {
        let is_told = self.link.as_ref().is_some_and(|link| link.send(&ToVmm::Kill, &[]).is_ok());
        if is_told {
            self.kill_by.get_or_insert(Instant::now() + KILL_TIMEOUT);
        } else {
            self.kill_by_signal();
        }
    }

    pub(super) fn kill_by_signal(&mut self) {
        self.kill_by = None;
        if let Err(error) = self.process.get_ref().kill() {
            tracing::error!(%error, pid = self.process.get_ref().identity().pid, "cannot kill a vmm process");
        }
    }
}
