//! One step of a VM's lifecycle: what a driver of `model::step` does with its effects. The part of a VM's task that is
//! about it.
//!
//! ```text
//!   event ──step──▶ state, effects ──▶ release what is over ──▶ record ──▶ perform the other effects ──▶ answer calls
//! ```

use std::time::SystemTime;

use tokio::time::Instant;

use super::call::Wanted;
use super::launch;
use super::vm_task::{Phase, VmTask};
use super::{CallError, JournalError};
use crate::daemon::crash::{self, Point};
use crate::daemon::operation::Underway;
use crate::daemon::record::{Run, VmRecord};
use crate::model::{Effect, Event, InstanceId, VmExit, VmState, step};
use crate::wire::ToVmm;

impl VmTask {
    /// One step of the lifecycle: release what is over, record what will be, then do it.
    pub(super) async fn apply(&mut self, event: Event) {
        let mut next_event = Some(event);
        while let Some(event) = next_event.take() {
            let (state, effects) = match step(&self.vm.state, &event) {
                Ok(step) => step,
                Err(refused) => {
                    tracing::debug!(uid = %self.vm.uid, %refused, "ignoring an event");
                    return;
                }
            };
            // A wish to the vmm alone is nothing to remember: what comes of it is.
            let is_wish = |effect: &Effect| {
                matches!(effect, Effect::Pause | Effect::Resume | Effect::PressPowerButton | Effect::InjectNmi)
            };
            if state == self.vm.state && effects.iter().all(is_wish) {
                for effect in effects {
                    self.perform(effect).await;
                }
                self.settle();
                return;
            }
            let before = self.vm.clone();
            self.enter(state, &effects);
            if matches!(event, Event::Destroy { .. }) {
                if let Err(error) = self.shared.journal.update(self.vm.clone()).await {
                    return self.not_destroyed(before, &error).await;
                }
                crash::reach(Point::DestroyRecorded);
            }
            if effects.contains(&Effect::Release) {
                // Before it is recorded: what is recorded as ended holds nothing any more.
                self.release(&before, &effects).await;
            }
            let recorded = match &event {
                Event::Destroy { .. } => Ok(()),                  // above
                _ if effects.contains(&Effect::Remove) => Ok(()), // removed below, once everything is released
                _ => self.shared.journal.update(self.vm.clone()).await,
            };
            recorded_step(&event);
            if let (Err(error), true) = (&recorded, effects.contains(&Effect::Launch)) {
                // No intent on disk, no process.
                next_event = Some(Event::Exited(VmExit::LaunchFailed(error.to_string())));
            }
            for effect in effects {
                let is_due = match effect {
                    Effect::Release => false,
                    Effect::Launch => recorded.is_ok(),
                    Effect::Pause
                    | Effect::Resume
                    | Effect::PressPowerButton
                    | Effect::InjectNmi
                    | Effect::ArmStopDeadline(_)
                    | Effect::DisarmStopDeadline
                    | Effect::Kill
                    | Effect::Remove => true,
                };
                if is_due {
                    self.perform(effect).await;
                }
            }
            self.settle();
        }
    }

    /// Gives back what a run held, and what the VM held across its runs if it is to be forgotten.
    async fn release(&mut self, before: &VmRecord, effects: &[Effect]) {
        self.perform(Effect::Release).await;
        self.hotplug.finish().await;
        // What was coming or going is not the VM's any more, whatever the others are.
        for id in before.devices_of_host().into_iter().filter(|id| self.vm.attachment(id).is_none()) {
            self.shared.devices.give_back(self.vm.uid, id, Underway::unseen()).await;
        }
        // A guest that resets keeps its devices: they are its own until it is off.
        if !effects.contains(&Effect::Launch) {
            // Of several calls the first is told how; one that waits for something else has failed.
            let call = self.waiting.iter().find(|call| call.wanted.ends_the_run());
            let operation = call.map_or_else(Underway::unseen, |call| call.operation.for_telling());
            self.shared.devices.release(self.vm.uid, operation).await;
            self.vm.vfs.clear();
            self.vm.placement = None;
            // Their namespaces stay its own: there lies its data.
            self.vm.nvmes.iter_mut().for_each(|nvme| nvme.function = None);
        }
        if effects.contains(&Effect::Remove) {
            self.shared.devices.forget(self.vm.uid).await;
        }
        crash::reach(Point::EndReleased);
    }

    /// The intent to destroy the VM is not on disk: nothing was done about it, and the VM is what it was.
    async fn not_destroyed(&mut self, before: VmRecord, error: &JournalError) {
        self.vm = before;
        // Whoever watches has seen it DESTROYING.
        if let Err(error) = self.shared.journal.update(self.vm.clone()).await {
            tracing::warn!(uid = %self.vm.uid, %error, "not destroyed, and not on disk as it was either");
        }
        for call in self.waiting.extract_if(.., |call| matches!(call.wanted, Wanted::Gone { .. })) {
            // Nobody waits for the answer any more: fine.
            let _ = call.reply.send(Err(CallError::NotRecorded(error.clone())));
        }
    }

    /// The record after the step, before any of its effects.
    fn enter(&mut self, state: VmState, effects: &[Effect]) {
        let cause = match &state {
            VmState::Failed(cause) => cause.to_string(),
            _ => String::new(),
        };
        let VmRecord { uid, tenant, name, .. } = &self.vm;
        tracing::info!(%tenant, vm = %name, %uid, from = self.vm.state.name(), to = state.name(), cause, "transition");
        self.vm.state = state;
        self.vm.updated = SystemTime::now();
        for effect in effects {
            match effect {
                Effect::Launch => {
                    self.vm.run = Some(Run { instance: InstanceId::new(), process: None, kill_at: None });
                }
                Effect::ArmStopDeadline(grace) => {
                    self.stop_by = Some(Instant::now() + *grace);
                    if let Some(run) = &mut self.vm.run {
                        run.kill_at = SystemTime::now().checked_add(*grace);
                    }
                }
                Effect::DisarmStopDeadline => {
                    self.stop_by = None;
                    if let Some(run) = &mut self.vm.run {
                        run.kill_at = None;
                    }
                }
                Effect::Release => {
                    self.vm.run = None;
                    self.stop_by = None;
                    self.vm.settle_devices();
                }
                Effect::Kill => self.stop_by = None,
                Effect::Pause | Effect::Resume | Effect::PressPowerButton | Effect::InjectNmi | Effect::Remove => {}
            }
        }
    }

    async fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Launch => self.launch(),
            Effect::Pause => self.tell(&ToVmm::Pause),
            Effect::Resume => self.tell(&ToVmm::Resume),
            Effect::InjectNmi => self.tell(&ToVmm::Nmi),
            Effect::PressPowerButton => {
                self.tell(&ToVmm::PowerButton);
                crash::reach(Point::StopPressed);
            }
            Effect::ArmStopDeadline(_) | Effect::DisarmStopDeadline => {} // when it was recorded
            Effect::Kill => {
                match &mut self.phase {
                    Phase::Live(live) => live.kill(),
                    Phase::Launching { is_unwanted, .. } => *is_unwanted = true,
                    Phase::Idle => {}
                }
                crash::reach(Point::StopKilled);
            }
            Effect::Release => {
                self.phase = Phase::Idle;
                let run_dir = self.paths.run_dir().to_owned();
                blocking(move || launch::remove_dir(&run_dir), "run directory").await;
                crash::reach(Point::EndDirectory);
                self.shared.remove_cgroup(self.vm.uid).await;
                crash::reach(Point::EndCgroup);
            }
            Effect::Remove => {
                let state_dir = self.paths.state_dir().to_owned();
                blocking(move || launch::remove_dir(&state_dir), "state directory").await;
                crash::reach(Point::DestroyErased);
                if let Err(error) = self.shared.journal.remove(self.vm.clone()).await {
                    tracing::error!(uid = %self.vm.uid, %error, "destroyed, but not forgotten: the next start will");
                }
                crash::reach(Point::DestroyForgotten);
                self.is_gone = true;
            }
        }
    }
}

/// What has just come to be on record.
fn recorded_step(event: &Event) {
    match event {
        Event::Start => crash::reach(Point::StartRecorded),
        Event::Ready => crash::reach(Point::RunRecorded),
        Event::Stop { .. } => crash::reach(Point::StopRecorded),
        Event::Exited(_) => crash::reach(Point::EndRecorded),
        Event::Reboot { .. }
        | Event::Pause
        | Event::Paused
        | Event::Resume
        | Event::Resumed
        | Event::PowerButton
        | Event::Nmi
        | Event::StopDeadline
        | Event::StopWithdrawn
        | Event::Destroy { .. } => {}
    }
}

pub(super) async fn blocking(work: impl FnOnce() -> std::io::Result<()> + Send + 'static, what: &'static str) {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "cannot remove a {what}"),
        Err(error) => tracing::error!(%error, "cannot remove a {what}"),
    }
}
