//! May this device leave this VM, by its tenant's wish? `wit/detach.wit`. Key function: [`combine`].
//!
//! A veto: releases need no permission, so nobody's opinion lets the device go.

use super::attach::vm;
use super::{Question, check_denial, first_denial};
use crate::daemon::policy::call::{Site, refusal};
use crate::daemon::policy::imports::bindings::exports::ostler::policy::detach_hook as wit;
use crate::model::{DetachRequest, Opinion, Outcome, PolicyFault, PolicyScope, SubjectVm, TenantId, Verdict};

impl Question for DetachRequest {
    type Verdict = Verdict;
    type Outcome = Outcome;
    const HOOK: &'static str = "detach";

    fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    fn subject(&self) -> String {
        format!("vms/{}/devices/{}", self.vm.name, self.device)
    }

    fn take_vm(&mut self) -> Option<SubjectVm> {
        Some(self.vm.take_subject())
    }

    fn ask(&self, site: &Site<'_>) -> Result<Verdict, PolicyFault> {
        let question = wit::DetachRequest {
            tenant: self.tenant.to_string(),
            vm: vm(&self.vm),
            running: self.vm.is_running,
            device: self.device.to_string(),
            force: self.is_forced,
        };
        let answer = site.call(|code, store, instance| match &code.detach {
            Some(hook) => hook.load(&mut *store, instance)?.call_detach_device(store, &question).map(Some),
            None => Ok(None),
        })?;
        match answer {
            Some(Ok(wit::DetachVerdict::Allow)) => Ok(Verdict::Allow(Vec::new())),
            Some(Ok(wit::DetachVerdict::Deny(denial))) => {
                Ok(Verdict::Deny { code: denial.code, message: denial.message })
            }
            Some(Ok(wit::DetachVerdict::Abstain)) | None => Ok(Verdict::Abstain),
            Some(Err(error)) => Err(PolicyFault::Refused(refusal(error))),
        }
    }

    fn check(&self, verdict: &Verdict, _scope: &PolicyScope) -> Result<(), String> {
        match verdict {
            Verdict::Deny { code, message } => check_denial(code, message),
            Verdict::Allow(_) | Verdict::Abstain => Ok(()),
        }
    }

    fn is_final(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Deny { .. })
    }

    fn combine(&self, opinions: &[Opinion]) -> Outcome {
        combine(opinions)
    }
}

/// What the opinions, checked and in the order asked, come to.
fn combine(opinions: &[Opinion]) -> Outcome {
    first_denial(opinions).unwrap_or_else(|| Outcome::Allow(Vec::new()))
}
