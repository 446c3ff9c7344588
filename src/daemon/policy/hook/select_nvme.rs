//! Which NVMe namespace or controller does a device get? `wit/select-nvme.wit`. Key function: [`combine`].
//!
//! Plugins are asked in order; the first that denies or fails decides. How marks add up is in [`Tally`].

use crate::daemon::policy::call::{Site, refusal};
use crate::daemon::policy::imports::bindings::exports::ostler::policy::select_nvme_hook as wit;
use crate::daemon::policy::imports::bindings::ostler::policy::types;
use crate::model::{
    LastTenant, Mark, NvmeControllerView, NvmeOutcome, NvmeRanking, NvmeVerdict, NvmeWish, Opinion, PolicyFault,
    PolicyScope, SelectNvmeRequest, TenantId,
};

use super::ranking::{Tally, check_marks};
use super::{Question, check_denial};

impl Question for SelectNvmeRequest {
    type Verdict = NvmeVerdict;
    type Outcome = NvmeOutcome;
    const HOOK: &'static str = "select-nvme";

    fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    fn subject(&self) -> String {
        format!("vms/{}/nvme/{}", self.vm, self.device)
    }

    fn ask(&self, site: &Site<'_>) -> Result<NvmeVerdict, PolicyFault> {
        let question = question(self);
        let answer = site.call(|code, store, instance| match &code.select_nvme {
            Some(hook) => hook.load(&mut *store, instance)?.call_select_nvme(store, &question).map(Some),
            None => Ok(None),
        })?;
        match answer {
            Some(Ok(answer)) => Ok(verdict(answer)),
            Some(Err(error)) => Err(PolicyFault::Refused(refusal(error))),
            None => Ok(NvmeVerdict::Abstain),
        }
    }

    fn check(&self, verdict: &NvmeVerdict, _scope: &PolicyScope) -> Result<(), String> {
        match verdict {
            NvmeVerdict::Rank(NvmeRanking { marks, reasons }) => check_marks(marks, reasons, self.candidates.len()),
            NvmeVerdict::Deny { code, message } => check_denial(code, message),
            NvmeVerdict::Abstain => Ok(()),
        }
    }

    fn is_final(verdict: &NvmeVerdict) -> bool {
        matches!(verdict, NvmeVerdict::Deny { .. })
    }

    fn combine(&self, opinions: &[Opinion<NvmeVerdict>]) -> NvmeOutcome {
        combine(opinions, self.candidates.len())
    }
}

/// What the opinions, checked and in the order asked, come to for this many candidates.
fn combine(opinions: &[Opinion<NvmeVerdict>], candidates: usize) -> NvmeOutcome {
    let mut tally = Tally::of(candidates);
    for opinion in opinions {
        tally.asked();
        match &opinion.verdict {
            Ok(NvmeVerdict::Abstain) => {}
            Ok(NvmeVerdict::Rank(ranking)) => tally.add(opinion, &ranking.marks, &ranking.reasons),
            Ok(NvmeVerdict::Deny { code, message }) => return deny(code, message.clone(), Some(&opinion.plugin)),
            Err(fault) => return deny(fault.code(), fault.to_string(), Some(&opinion.plugin)),
        }
    }
    match tally.order("candidate", SelectNvmeRequest::HOOK) {
        Ok(order) => NvmeOutcome::Select { order },
        Err((code, message, plugin)) => deny(&code, message, plugin.as_ref()),
    }
}

fn deny(code: &str, message: String, plugin: Option<&String>) -> NvmeOutcome {
    NvmeOutcome::Deny { code: code.to_owned(), message, plugin: plugin.cloned() }
}

fn question(request: &SelectNvmeRequest) -> wit::SelectNvmeRequest {
    let candidates = &request.candidates;
    wit::SelectNvmeRequest {
        tenant: request.tenant.to_string(),
        vm: types::Vm {
            name: request.vm.to_string(),
            vcpus: request.vcpus,
            memory_mib: request.memory_mib,
            disks: request.disks,
            nics: request.nics,
        },
        device: request.device.to_string(),
        wish: match request.wish {
            NvmeWish::Namespace { min_bytes } => wit::NvmeWish::Namespace(min_bytes),
            NvmeWish::Controller => wit::NvmeWish::Controller,
        },
        controllers: request.controllers.iter().map(controller).collect(),
        candidates: wit::NvmeTable {
            // The table is bounded, and with it the number of controllers.
            controller: candidates.iter().map(|one| u16::try_from(one.controller).unwrap_or(u16::MAX)).collect(),
            nsid: candidates.iter().map(|one| one.nsid).collect(),
            size_bytes: candidates.iter().map(|one| one.size_bytes).collect(),
            block_bytes: candidates.iter().map(|one| one.block_bytes).collect(),
            last_tenant: candidates
                .iter()
                .map(|one| match one.last_tenant {
                    LastTenant::Nobody => wit::LastTenant::Nobody,
                    LastTenant::Same => wit::LastTenant::Same,
                    LastTenant::Other => wit::LastTenant::Other,
                })
                .collect(),
        },
    }
}

fn controller(view: &NvmeControllerView) -> wit::Controller {
    wit::Controller {
        address: view.address.to_string(),
        serial: view.serial.clone(),
        model: view.model.clone(),
        numa_node: view.numa_node,
        root: view.root.map(|root| root.to_string()),
        wear_percent: view.wear_percent,
        online: view.online,
        free: view.free,
        own_namespaces: view.own,
        other_tenants: view.other_tenants,
    }
}

fn verdict(answer: wit::Verdict) -> NvmeVerdict {
    let ranking = match answer {
        wit::Verdict::Rank(ranking) => ranking,
        wit::Verdict::Deny(denial) => return NvmeVerdict::Deny { code: denial.code, message: denial.message },
        wit::Verdict::Abstain => return NvmeVerdict::Abstain,
    };
    let marks = ranking.marks.into_iter().map(|mark| match mark {
        wit::Mark::Score(score) => Mark::Score(score),
        wit::Mark::Reject(reason) => Mark::Reject(usize::try_from(reason).unwrap_or(usize::MAX)),
    });
    NvmeVerdict::Rank(NvmeRanking {
        marks: marks.collect(),
        reasons: ranking.reasons.into_iter().map(|reason| (reason.code, reason.message)).collect(),
    })
}

#[cfg(test)]
mod tests;
