//! What a VM's task shows of the calls that wait for it, and how one of them is called off.
//!
//! ```text
//!   stop, reboot   in the grace: RUNNING again, the button stays pressed        detach   asked: ATTACHED again, and the
//!                  past it: not any more                                                 guest may let it go all the same
//! ```
//! Each of these is one record: a daemon that dies before it goes on with the stop or the detachment, and one that dies
//! after it does not.

use std::time::{Duration, SystemTime};

use super::CallError;
use super::call::{Call, Wanted};
use super::launch::SPAWNING;
use super::vm_task::VmTask;
use crate::daemon::operation::{Step, Underway};
use crate::daemon::record::AttachState;
use crate::model::{Event, VmState};

const STOP_CALLED_OFF: &str = "the VM goes on, and its power button has been pressed";
const DETACH_CALLED_OFF: &str = "the device stays, and the guest has been asked for it: it may let it go all the same";

impl VmTask {
    /// Shows how far a call is that goes on waiting, and whether it can be called off.
    pub(super) fn show(&self, call: &Call) {
        let is_stop = matches!(call.wanted, Wanted::Stopped { .. } | Wanted::Rebooted { .. });
        match (&self.vm.state, self.stop_by) {
            (VmState::Stopping | VmState::Rebooting, Some(_)) if is_stop => {
                let kill_at = self.vm.run.as_ref().and_then(|run| run.kill_at);
                let text = "waiting for the guest to power off; it is killed at the deadline";
                // First open: whoever reads what it waits for may call it off at once.
                call.operation.open(&self.called_off);
                call.operation.tell(Step::until(text, kill_at));
                return;
            }
            (VmState::Stopping | VmState::Rebooting | VmState::Destroying, _) => {
                call.operation.tell(Step::new("ending the VM's process"));
            }
            // Whoever starts it tells more.
            (VmState::Starting, _) => call.operation.tell_first(Step::new(SPAWNING)),
            (VmState::Running | VmState::Paused, _) => {
                call.operation.tell(Step::new("waiting for the VM's process"));
            }
            (VmState::Registered | VmState::Stopped | VmState::Failed(_), _) => {}
        }
        // If it was called off before, what has happened meanwhile is its end.
        call.operation.seal();
    }

    /// Shows what a detachment waits for; one that waits for the guest's consent can be called off.
    pub(super) fn show_detach(&self, operation: &Underway, waited: Duration, is_asked: bool) {
        let deadline = SystemTime::now().checked_add(waited);
        if is_asked {
            operation.open(&self.called_off);
            operation.tell(Step::until("waiting for the guest to let the device go, until the deadline", deadline));
        } else {
            operation.tell(Step::until("taking the device from the guest", deadline));
        }
    }

    /// Leaves off from what was called off.
    pub(super) async fn leave_off(&mut self) {
        let is_stop = |call: &mut Call| {
            matches!(call.wanted, Wanted::Stopped { .. } | Wanted::Rebooted { .. }) && call.operation.is_called_off()
        };
        if self.stop_by.is_some() {
            let left: Vec<_> = self.waiting.extract_if(.., is_stop).collect();
            if !left.is_empty() {
                self.apply(Event::StopWithdrawn).await;
            }
            for call in left {
                // Nobody waits for the answer any more: fine.
                let _ = call.reply.send(Err(CallError::CalledOff(STOP_CALLED_OFF)));
            }
        }
        for (id, replies) in self.hotplug.take_called_off() {
            let is_wanted = self.hotplug.is_wanted_back(&id);
            let is_detaching = |state| state == AttachState::Detaching;
            if !is_wanted && self.vm.attachment(&id).is_some_and(|attachment| is_detaching(attachment.state)) {
                let mut next = self.vm.clone();
                next.set_device(&id, AttachState::Attached);
                self.record_fact(next).await;
            }
            for reply in replies {
                let _ = reply.send(Err(CallError::CalledOff(DETACH_CALLED_OFF)));
            }
        }
    }

    /// The grace of a stop is over; unless it was called off until now, the VM is killed.
    pub(super) async fn use_force(&mut self) {
        let is_called_off = |call: &Call| !call.operation.seal();
        if self.waiting.iter().filter(|call| is_called_off(call)).count() > 0 {
            return self.leave_off().await;
        }
        self.stop_by = None;
        self.apply(Event::StopDeadline).await;
    }
}
