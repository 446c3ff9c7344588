//! What of a VM's change observers are told. Key function: [`happenings`].

use super::{AttachState, VmRecord};
use crate::model::{FailureCause, Happening, VmEnd, VmState};

/// What happened to a VM that was so `before`, and is so now; `None`: not there.
pub fn happenings(before: Option<&VmRecord>, after: Option<&VmRecord>) -> Vec<Happening> {
    match (before, after) {
        (None, None) => Vec::new(),
        (None, Some(vm)) => vec![Happening::VmRegistered(vm.name.clone())],
        (Some(vm), None) => vec![Happening::VmDestroyed(vm.name.clone())],
        (Some(before), Some(after)) => {
            let mut happened = Vec::from_iter(turn(before, after));
            happened.extend(devices(before, after));
            happened
        }
    }
}

/// What its guest did.
fn turn(before: &VmRecord, after: &VmRecord) -> Option<Happening> {
    use VmState as S;
    let vm = after.name.clone();
    let was_on = matches!(before.state, S::Starting | S::Running | S::Paused | S::Stopping | S::Rebooting);
    let end = match (&before.state, &after.state) {
        (S::Starting, S::Running | S::Paused) => return Some(Happening::VmStarted(vm)),
        (S::Running | S::Paused | S::Stopping | S::Rebooting, S::Starting) => VmEnd::Restart,
        (_, S::Stopped) if was_on => VmEnd::Off,
        (_, S::Failed(FailureCause(exit))) if was_on => exit.into(),
        _ => return None,
    };
    Some(Happening::VmStopped { vm, end })
}

/// What came to it and left it. What never was a part of it did neither.
fn devices(before: &VmRecord, after: &VmRecord) -> Vec<Happening> {
    let is_its = |vm: &VmRecord, id| vm.attachment(id).is_some_and(|device| device.state != AttachState::Attaching);
    let come = after.devices.iter().filter(|device| is_its(after, &device.id) && !is_its(before, &device.id));
    let gone = before.devices.iter().filter(|device| is_its(before, &device.id) && !is_its(after, &device.id));
    let come = come.map(|device| Happening::DeviceAttached { vm: after.name.clone(), device: device.id.clone() });
    let gone = gone.map(|device| Happening::DeviceDetached { vm: after.name.clone(), device: device.id.clone() });
    gone.chain(come).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::record::{Attachment, samples};
    use crate::model::{PciSlot, VmExit};

    fn vm(state: VmState) -> VmRecord {
        VmRecord { state, ..samples::running("acme", "web") }
    }

    fn of_states(before: VmState, after: VmState) -> Vec<Happening> {
        happenings(Some(&vm(before)), Some(&vm(after)))
    }

    #[test]
    fn a_vm_comes_and_goes() {
        let web = || "web".parse().unwrap();
        assert_eq!(happenings(None, Some(&vm(VmState::Registered))), [Happening::VmRegistered(web())]);
        assert_eq!(happenings(Some(&vm(VmState::Destroying)), None), [Happening::VmDestroyed(web())]);
        assert_eq!(happenings(None, None), []);
    }

    #[test]
    fn each_run_has_one_beginning_and_one_end() {
        use VmState as S;
        let failed = |exit| S::Failed(FailureCause(exit));
        let started = Happening::VmStarted("web".parse().unwrap());
        let stopped = |end| Happening::VmStopped { vm: "web".parse().unwrap(), end };
        for (before, after, expected) in [
            (S::Registered, S::Starting, None),
            (S::Starting, S::Running, Some(started.clone())),
            (S::Running, S::Paused, None),
            (S::Paused, S::Running, None),
            (S::Running, S::Stopping, None),
            (S::Stopping, S::Running, None),
            (S::Stopping, S::Stopped, Some(stopped(VmEnd::Off))),
            (S::Running, S::Starting, Some(stopped(VmEnd::Restart))),
            (S::Rebooting, S::Starting, Some(stopped(VmEnd::Restart))),
            (S::Starting, failed(VmExit::LaunchFailed("x".into())), Some(stopped(VmEnd::LaunchFailed))),
            (S::Paused, failed(VmExit::TripleFault), Some(stopped(VmEnd::TripleFault))),
            (failed(VmExit::Panicked), S::Starting, None),
            (failed(VmExit::Panicked), failed(VmExit::Panicked), None),
            (S::Stopped, S::Stopped, None),
            // What follows says it.
            (S::Running, S::Destroying, None),
        ] {
            let what = format!("{before:?}, {after:?}");
            assert_eq!(of_states(before, after), Vec::from_iter(expected), "{what}");
        }
    }

    #[test]
    fn a_device_has_come_once_the_vm_has_it_and_one_that_did_not_come_does_not_leave() {
        let with = |state: Option<AttachState>| {
            let mut vm = vm(VmState::Running);
            let (id, slot) = ("late".parse().unwrap(), PciSlot::new(9).unwrap());
            vm.devices.extend(state.map(|state| Attachment { id, slot, state }));
            vm
        };
        let (attaching, attached, detaching) =
            (Some(AttachState::Attaching), Some(AttachState::Attached), Some(AttachState::Detaching));
        let (vm, device) = ("web".parse().unwrap(), "late".parse().unwrap());
        let come = Happening::DeviceAttached { vm, device };
        let (vm, device) = ("web".parse().unwrap(), "late".parse().unwrap());
        let gone = Happening::DeviceDetached { vm, device };
        for (before, after, expected) in [
            (None, attaching, None),
            (attaching, attached, Some(&come)),
            (None, attached, Some(&come)),
            (attached, attached, None),
            (attaching, None, None),
            (attached, detaching, None),
            (detaching, attached, None),
            (detaching, None, Some(&gone)),
            (attached, None, Some(&gone)),
        ] {
            let seen = happenings(Some(&with(before)), Some(&with(after)));
            assert_eq!(seen, Vec::from_iter(expected.cloned()), "{before:?}, {after:?}");
        }
    }
}
