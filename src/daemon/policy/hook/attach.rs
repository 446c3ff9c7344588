//! May this device come to this VM? `wit/attach.wit`. Key function: [`combine`].
//!
//! As for a new VM: the first that denies or fails decides, and somebody of the operator's must have allowed.

use super::{NO_OPINION, Question, check_denial, deny, first_denial};
use crate::daemon::policy::call::{Site, refusal};
use crate::daemon::policy::imports::bindings::exports::ostler::policy::attach_hook as wit;
use crate::daemon::policy::imports::bindings::ostler::policy::types;
use crate::model::{
    AttachRequest, DeviceSpec, NvmeWish, Opinion, Outcome, PolicyFault, PolicyScope, SubjectVm, TenantId, Verdict,
    VmFacts,
};

impl Question for AttachRequest {
    type Verdict = Verdict;
    type Outcome = Outcome;
    const HOOK: &'static str = "attach";

    fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    fn subject(&self) -> String {
        format!("vms/{}/devices/{}", self.vm.name, self.device.id())
    }

    fn take_vm(&mut self) -> Option<SubjectVm> {
        Some(self.vm.take_subject())
    }

    fn ask(&self, site: &Site<'_>) -> Result<Verdict, PolicyFault> {
        let question = question(self);
        let answer = site.call(|code, store, instance| match &code.attach {
            Some(hook) => hook.load(&mut *store, instance)?.call_attach_device(store, &question).map(Some),
            None => Ok(None),
        })?;
        match answer {
            Some(Ok(wit::AttachVerdict::Allow)) => Ok(Verdict::Allow(Vec::new())),
            Some(Ok(wit::AttachVerdict::Deny(denial))) => {
                Ok(Verdict::Deny { code: denial.code, message: denial.message })
            }
            Some(Ok(wit::AttachVerdict::Abstain)) | None => Ok(Verdict::Abstain),
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
    if let Some(denied) = first_denial(opinions) {
        return denied;
    }
    let allows = |opinion: &Opinion| matches!(opinion.verdict, Ok(Verdict::Allow(_)));
    match opinions.iter().any(|opinion| opinion.scope == PolicyScope::Operator && allows(opinion)) {
        true => Outcome::Allow(Vec::new()),
        false => {
            deny(NO_OPINION, "no policy plugin of the operator with the hook `attach` allowed the device".into(), None)
        }
    }
}

fn question(request: &AttachRequest) -> wit::AttachRequest {
    let device = match &request.device {
        DeviceSpec::Disk(disk) => wit::Device::Disk(wit::Disk {
            id: disk.id.to_string(),
            volume: disk.volume.to_string(),
            read_only: disk.is_read_only,
        }),
        DeviceSpec::Nic(nic) => wit::Device::Nic(wit::Nic { id: nic.id.to_string(), sriov: nic.vf_wish().is_some() }),
        DeviceSpec::Nvme(nvme) => wit::Device::Nvme(wit::Nvme {
            id: nvme.id.to_string(),
            min_bytes: match nvme.wish {
                NvmeWish::Namespace { min_bytes } => Some(min_bytes),
                NvmeWish::Controller => None,
            },
        }),
    };
    wit::AttachRequest {
        tenant: request.tenant.to_string(),
        vm: vm(&request.vm),
        running: request.vm.is_running,
        device,
        in_use: types::Usage {
            vms: request.in_use.vms,
            vcpus: request.in_use.vcpus,
            memory_mib: request.in_use.memory_mib,
        },
    }
}

pub(super) fn vm(facts: &VmFacts) -> types::Vm {
    let VmFacts { name, vcpus, memory_mib, disks, nics, is_running: _, labels: _, images: _ } = facts;
    types::Vm { name: name.to_string(), vcpus: *vcpus, memory_mib: *memory_mib, disks: *disks, nics: *nics }
}
