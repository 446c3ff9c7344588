//! A vmm process that lives, and how one ended. Key type: [`Live`]; key functions: [`cause`], [`read_exit_record`].

use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::VmPaths;
use super::link::{Link, watch};
use crate::model::{InstanceId, VmExit};
use crate::sys::process::{End, Process};
use crate::wire::{ToVmm, decode_ended};

/// How long a vmm that was told to end may take before it is killed by signal.
pub(super) const KILL_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest exit record that is read, in bytes: a cause is a sentence.
const MAX_EXIT_RECORD_LEN: u64 = 4096;

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
}

impl Live {
    pub(super) fn new(process: Process, link: Option<Link>) -> std::io::Result<Self> {
        let process = watch(process)?;
        Ok(Self { process, link, ready_by: None, kill_by: None, last_word: None })
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

/// How a run ended: its exit record, else its last message (or what we did to it), else how the process ended.
pub(super) fn cause(last_word: Option<VmExit>, record: Option<VmExit>, end: End) -> VmExit {
    if let Some(exit) = record.or(last_word) {
        return exit;
    }
    VmExit::Vanished(match end {
        End::Signal(signal) => format!("killed by signal {signal}"),
        End::Exited(code) => format!("ended with status {code} and without a record; see its log"),
        End::Unknown => "process ended without a record".to_owned(),
    })
}

/// What the vmm wrote about the end of `instance`, if it came to it.
pub(super) async fn read_exit_record(paths: &VmPaths, instance: InstanceId) -> Option<VmExit> {
    use tokio::io::AsyncReadExt;
    let file = tokio::fs::File::open(paths.exit_record(instance)).await.ok()?;
    let mut record = Vec::new();
    file.take(MAX_EXIT_RECORD_LEN).read_to_end(&mut record).await.ok()?;
    decode_ended(&record).ok()
}
