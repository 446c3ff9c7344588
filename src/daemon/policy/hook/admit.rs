//! May this VM be registered? `wit/admit.wit`. Key function: [`combine`].
//!
//! Plugins are asked in order. The first that denies or fails decides, and later ones are not asked. Otherwise the VM is
//! allowed if a plugin of the *operator* allowed it: a tenant's own plugin may narrow, never admit. Of several caps the
//! narrowest holds.

use crate::daemon::policy::call::{Site, refusal};
use crate::daemon::policy::imports::bindings::exports::ostler::policy::admit_hook;
use crate::daemon::policy::imports::bindings::ostler::policy::types;
use crate::daemon::policy::limits::MAX_PATCHES;
use crate::model::{AdmitRequest, Opinion, Outcome, Patch, PolicyFault, PolicyScope, SubjectVm, TenantId, Verdict};

use super::{NO_OPINION, Question, check_denial, deny};

impl Question for AdmitRequest {
    type Verdict = Verdict;
    type Outcome = Outcome;
    const HOOK: &'static str = "admit";

    fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    fn subject(&self) -> String {
        format!("vms/{}", self.vm)
    }

    fn take_vm(&mut self) -> Option<SubjectVm> {
        Some(SubjectVm { labels: self.labels.take(), images: self.images.take() })
    }

    fn ask(&self, site: &Site<'_>) -> Result<Verdict, PolicyFault> {
        let question = question(self);
        let answer = site.call(|code, store, instance| match &code.admit {
            Some(hook) => hook.load(&mut *store, instance)?.call_admit_vm(store, &question).map(Some),
            None => Ok(None),
        })?;
        match answer {
            Some(Ok(answer)) => Ok(verdict(answer)),
            Some(Err(error)) => Err(PolicyFault::Refused(refusal(error))),
            None => Ok(Verdict::Abstain),
        }
    }

    fn check(&self, verdict: &Verdict, _scope: &PolicyScope) -> Result<(), String> {
        match verdict {
            Verdict::Allow(patches) => check_patches(patches, self),
            Verdict::Deny { code, message } => check_denial(code, message),
            Verdict::Abstain => Ok(()),
        }
    }

    fn is_final(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Deny { .. })
    }

    fn combine(&self, opinions: &[Opinion]) -> Outcome {
        combine(opinions)
    }
}

fn check_patches(patches: &[Patch], request: &AdmitRequest) -> Result<(), String> {
    if patches.len() > MAX_PATCHES {
        return Err(format!("{} patches, at most {MAX_PATCHES} are allowed", patches.len()));
    }
    for patch in patches {
        let (cap, asked) = match *patch {
            Patch::CapVcpus(vcpus) => (u64::from(vcpus), u64::from(request.vcpus)),
            Patch::CapMemoryMib(mib) => (mib, request.memory_mib),
        };
        if cap == 0 {
            return Err(format!("{patch}: nothing would be left"));
        }
        if cap > asked {
            return Err(format!("{patch}: the request asks for {asked}, and a patch may only narrow"));
        }
    }
    Ok(())
}

/// What the opinions, checked and in the order asked, come to.
fn combine(opinions: &[Opinion]) -> Outcome {
    let mut has_operator_allowed = false;
    let mut vcpus: Option<u32> = None;
    let mut memory_mib: Option<u64> = None;
    for opinion in opinions {
        let patches = match &opinion.verdict {
            Ok(Verdict::Abstain) => continue,
            Ok(Verdict::Allow(patches)) => patches,
            Ok(Verdict::Deny { code, message }) => return deny(code, message.clone(), Some(opinion)),
            Err(fault) => return deny(fault.code(), fault.to_string(), Some(opinion)),
        };
        has_operator_allowed |= opinion.scope == PolicyScope::Operator;
        for patch in patches {
            match *patch {
                Patch::CapVcpus(cap) => vcpus = Some(vcpus.map_or(cap, |least| least.min(cap))),
                Patch::CapMemoryMib(cap) => memory_mib = Some(memory_mib.map_or(cap, |least| least.min(cap))),
            }
        }
    }
    if !has_operator_allowed {
        let message = match opinions {
            [] => "no policy plugin is loaded, and only a plugin of the operator can admit",
            _ => "no policy plugin of the operator admitted the VM",
        };
        return deny(NO_OPINION, message.into(), None);
    }
    let vcpus = vcpus.map(Patch::CapVcpus);
    Outcome::Allow(vcpus.into_iter().chain(memory_mib.map(Patch::CapMemoryMib)).collect())
}

fn question(request: &AdmitRequest) -> admit_hook::AdmitRequest {
    admit_hook::AdmitRequest {
        tenant: request.tenant.to_string(),
        vm: types::Vm {
            name: request.vm.to_string(),
            vcpus: request.vcpus,
            memory_mib: request.memory_mib,
            disks: request.disks,
            nics: request.nics,
        },
        in_use: types::Usage {
            vms: request.in_use.vms,
            vcpus: request.in_use.vcpus,
            memory_mib: request.in_use.memory_mib,
        },
    }
}

fn verdict(answer: admit_hook::Verdict) -> Verdict {
    match answer {
        admit_hook::Verdict::Allow(patches) => Verdict::Allow(
            patches
                .into_iter()
                .map(|patch| match patch {
                    admit_hook::VmPatch::CapVcpus(vcpus) => Patch::CapVcpus(vcpus),
                    admit_hook::VmPatch::CapMemoryMib(mib) => Patch::CapMemoryMib(mib),
                })
                .collect(),
        ),
        admit_hook::Verdict::Deny(denial) => Verdict::Deny { code: denial.code, message: denial.message },
        admit_hook::Verdict::Abstain => Verdict::Abstain,
    }
}

#[cfg(test)]
mod tests;
