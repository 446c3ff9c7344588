//! How a VM's task stands, for those who compare it with the host; and its tidying. Key type: [`Standing`].

use std::time::Duration;

use tokio::sync::oneshot;

use super::call::Request;
use super::launch;
use super::vm_task::{Phase, VmTask};
use super::{CallError, VmHandle};
use crate::daemon::record::AttachState;
use crate::model::VmState;
use crate::sys::process::Identity;

/// How long a task may take to say how it stands; one that is busy with the host does not say.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// How a VM's task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The process that it watches.
    pub process: Option<Identity>,
    /// That process listens to it.
    pub is_linked: bool,
    /// Nothing is under way: the VM is off, or runs with what it has.
    pub is_settled: bool,
}

impl VmHandle {
    /// How its task stands; `None`: it is busy. The error is that there is no task any more.
    pub async fn standing(&self) -> Result<Option<Standing>, CallError> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.ask(Request::Look(reply)).await?;
            answer.await.map_err(|_| CallError::Gone)
        };
        tokio::time::timeout(LOOK_TIMEOUT, asked).await.map_or(Ok(None), |standing| standing.map(Some))
    }

    /// Removes the run directory and the cgroup that a VM which is off should not have. Whether it was off.
    pub async fn tidy(&self) -> Result<bool, CallError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Tidy(reply)).await?;
        answer.await.map_err(|_| CallError::Gone)
    }
}

impl VmTask {
    pub(super) fn standing(&self) -> Standing {
        let is_coming = self.vm.devices.iter().any(|device| device.state == AttachState::Attaching);
        let is_quiet = self.hotplug.is_quiet() && !is_coming;
        let (process, is_linked, is_settled) = match &self.phase {
            Phase::Idle => (None, false, !self.vm.state.has_process() && is_quiet),
            Phase::Launching { .. } => (None, false, false),
            Phase::Live(live) => {
                let is_still = matches!(self.vm.state, VmState::Running | VmState::Paused);
                let is_ending = live.ready_by.or(live.kill_by).is_some() || live.last_word.is_some();
                (Some(live.process.get_ref().identity()), live.link.is_some(), is_still && !is_ending && is_quiet)
            }
        };
        Standing { process, is_linked, is_settled }
    }

    /// The same as at a start of the daemon: no run, nothing of a run.
    pub(super) async fn tidy(&mut self) -> bool {
        let is_off = matches!(self.phase, Phase::Idle) && !self.vm.state.has_process();
        if is_off {
            let run_dir = self.paths.run_dir().to_owned();
            super::steps::blocking(move || launch::remove_dir(&run_dir), "run directory").await;
            self.shared.remove_cgroup(self.vm.uid).await;
        }
        is_off
    }
}
