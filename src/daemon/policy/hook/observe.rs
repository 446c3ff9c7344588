//! What has happened: `wit/observe.wit`. The only hook at which nothing is decided.

use super::Question;
use crate::daemon::policy::call::{Site, refusal};
use crate::daemon::policy::imports::bindings::exports::ostler::policy::observe_hook as wit;
use crate::model::{
    Happening, OBSERVE_HOOK, ObserveOutcome, ObserveRequest, ObserveVerdict, ObservedEvent, Opinion, PolicyFault,
    PolicyScope, TenantId, VmEnd,
};

impl Question for ObserveRequest {
    type Verdict = ObserveVerdict;
    type Outcome = ObserveOutcome;
    const HOOK: &'static str = OBSERVE_HOOK;

    fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    fn subject(&self) -> String {
        self.to_string()
    }

    fn ask(&self, site: &Site<'_>) -> Result<ObserveVerdict, PolicyFault> {
        let events = self.events.iter().map(event).collect();
        let batch = wit::Batch { tenant: self.tenant.to_string(), missed: self.missed, events };
        let answer = site.call(|code, store, instance| match &code.observe {
            Some(hook) => hook.load(&mut *store, instance)?.call_on_events(store, &batch).map(Some),
            None => Ok(None),
        })?;
        match answer {
            Some(Ok(())) | None => Ok(ObserveVerdict::Heard),
            Some(Err(error)) => Err(PolicyFault::Refused(refusal(error))),
        }
    }

    fn check(&self, _: &ObserveVerdict, _: &PolicyScope) -> Result<(), String> {
        Ok(())
    }

    fn is_final(_: &ObserveVerdict) -> bool {
        false
    }

    fn combine(&self, opinions: &[Opinion<ObserveVerdict>]) -> ObserveOutcome {
        let failed = opinions.iter().find_map(|opinion| Some((opinion, opinion.verdict.as_ref().err()?)));
        match failed {
            None => ObserveOutcome::Heard(self.events.len() as u64),
            Some((opinion, fault)) => ObserveOutcome::Deny {
                code: fault.code().to_owned(),
                message: fault.to_string(),
                plugin: Some(opinion.plugin.clone()),
            },
        }
    }
}

fn event(event: &ObservedEvent) -> wit::Event {
    let of_vm =
        |vm: &dyn ToString, device: &dyn ToString| wit::DeviceOfVm { vm: vm.to_string(), device: device.to_string() };
    let what = match &event.what {
        Happening::VmRegistered(vm) => wit::Happening::VmRegistered(vm.to_string()),
        Happening::VmStarted(vm) => wit::Happening::VmStarted(vm.to_string()),
        Happening::VmStopped { vm, end } => {
            wit::Happening::VmStopped(wit::StoppedVm { vm: vm.to_string(), end: vm_end(*end) })
        }
        Happening::VmDestroyed(vm) => wit::Happening::VmDestroyed(vm.to_string()),
        Happening::DeviceAttached { vm, device } => wit::Happening::DeviceAttached(of_vm(vm, device)),
        Happening::DeviceDetached { vm, device } => wit::Happening::DeviceDetached(of_vm(vm, device)),
        Happening::DecisionOverruled { decision, hook, subject, code } => {
            wit::Happening::DecisionOverruled(wit::OverruledDecision {
                decision: *decision,
                hook: hook.clone(),
                subject: subject.clone(),
                code: code.clone(),
            })
        }
    };
    wit::Event { sequence: event.sequence, moment: event.moment_s, what }
}

fn vm_end(end: VmEnd) -> wit::VmEnd {
    match end {
        VmEnd::Off => wit::VmEnd::Off,
        VmEnd::Restart => wit::VmEnd::Restart,
        VmEnd::TripleFault => wit::VmEnd::TripleFault,
        VmEnd::Panicked => wit::VmEnd::Panicked,
        VmEnd::Killed => wit::VmEnd::Killed,
        VmEnd::LaunchFailed => wit::VmEnd::LaunchFailed,
        VmEnd::HostError => wit::VmEnd::HostError,
        VmEnd::Vanished => wit::VmEnd::Vanished,
    }
}
