//! How a run begins, or is taken over from an earlier daemon: the part of a VM's task that is about it.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::call::{Call, Wanted};
use super::launch::{self, LaunchError, Spawned};
use super::live::Live;
use super::vm_task::{Phase, VmTask, ready_within};
use crate::daemon::crash::{self, Point};
use crate::daemon::operation::{Step, Underway};
use crate::daemon::record::VmRecord;
use crate::daemon::trace;
use crate::model::{Event, VmExit, VmState};
use crate::sys::process::Process;
use crate::wire::ToVmm;

impl VmTask {
    pub(super) fn launch(&mut self) {
        let Some(run) = &self.vm.run else { return };
        let (shared, vm, instance) = (Arc::clone(&self.shared), self.vm.clone(), run.instance);
        // Before the work, which tells more; of several calls to the first.
        self.tell_starts("beginning a run");
        let operation = self.starts().next().map_or_else(Underway::unseen, |call| call.operation.for_telling());
        // In a task of its own: calls are answered meanwhile, and a claim is finished even if nobody waits for it.
        let spawn = trace::spawn(launch::launch(shared, vm, instance, operation));
        self.phase = Phase::Launching { spawn, is_unwanted: false };
    }

    /// The calls that wait for the VM to run.
    fn starts(&self) -> impl Iterator<Item = &Call> {
        self.waiting.iter().filter(|call| matches!(call.wanted, Wanted::Running | Wanted::Rebooted { .. }))
    }

    fn tell_starts(&self, step: &'static str) {
        self.starts().for_each(|call| call.operation.tell(Step::new(step)));
    }

    /// The process is there, or not: record it, then send it its launch.
    pub(super) async fn launched(&mut self, result: Result<Spawned, LaunchError>) {
        let is_unwanted = matches!(self.phase, Phase::Launching { is_unwanted: true, .. });
        self.phase = Phase::Idle;
        let spawned = match result {
            Ok(spawned) => spawned,
            Err(error) => return self.apply(Event::Exited(VmExit::LaunchFailed(error.to_string()))).await,
        };
        if let Some(run) = &mut self.vm.run {
            run.process = Some(spawned.process.identity());
        }
        self.vm.vfs.clone_from(&spawned.vfs);
        self.vm.nvmes.clone_from(&spawned.nvmes);
        self.vm.placement.clone_from(&spawned.placement);
        self.tell_starts("handing over to the VM's process");
        let recorded = self.shared.journal.update(self.vm.clone()).await;
        crash::reach(Point::LaunchRecorded);
        let (process, link, last_word) = match recorded {
            Err(error) => (spawned.process, None, Some(VmExit::LaunchFailed(error.to_string()))),
            Ok(()) if is_unwanted => (spawned.process, None, Some(VmExit::Killed)),
            Ok(()) => match spawned.send(&self.paths) {
                Ok((process, link)) => (process, Some(link), None),
                Err((process, error)) => (process, None, Some(VmExit::LaunchFailed(error.to_string()))),
            },
        };
        crash::reach(Point::LaunchSent);
        if let Err(error) = process_killed_unless(&process, last_word.is_none()) {
            tracing::error!(%error, uid = %self.vm.uid, "cannot kill a vmm process");
        }
        match Live::new(process, link) {
            Ok(mut live) => {
                live.ready_by = last_word.is_none().then(|| Instant::now() + ready_within(self.vm.spec.memory_bytes()));
                live.last_word = last_word;
                self.tell_starts("waiting for the guest's processors");
                self.phase = Phase::Live(Box::new(live));
            }
            Err(error) => {
                // Unwatched, it must not live: the handle is gone with the error, its name is not.
                launch_leftovers_killed(&self.vm);
                self.apply(Event::Exited(VmExit::HostError(format!("cannot watch the vmm: {error}")))).await;
            }
        }
    }

    /// A process of an earlier daemon: go on with what that one was doing.
    pub(super) fn take_over(&mut self) {
        match self.vm.state {
            VmState::Stopping | VmState::Rebooting => {
                let left = self.vm.run.as_ref().and_then(|run| run.kill_at);
                let left = left.and_then(|at| at.duration_since(SystemTime::now()).ok()).unwrap_or_default();
                self.stop_by = Some(Instant::now() + left);
                self.tell(&ToVmm::PowerButton); // the earlier one may not have come to it
            }
            VmState::Destroying => {
                if let Phase::Live(live) = &mut self.phase {
                    live.kill();
                }
            }
            _ => {}
        }
    }
}

fn process_killed_unless(process: &Process, is_wanted: bool) -> std::io::Result<()> {
    if is_wanted { Ok(()) } else { process.kill() }
}

fn launch_leftovers_killed(vm: &VmRecord) {
    for process in crate::sys::process::find_by_arg0(&launch::arg0(vm.uid), vm.user).unwrap_or_default() {
        let _ = process.kill();
    }
}
