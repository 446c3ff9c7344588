//! On which NUMA node does a VM run? `wit/place.wit`. Key function: [`combine`].
//!
//! Plugins are asked in order; the first that denies or fails decides. How marks add up is in [`Tally`]. Where nobody
//! decides at this hook a VM runs anywhere, as it did before there was the hook; only shadows are asked then.

use crate::daemon::policy::call::{Site, refusal};
use crate::daemon::policy::imports::bindings::exports::ostler::policy::place_hook as wit;
use crate::daemon::policy::imports::bindings::ostler::policy::types;
use crate::model::{
    Mark, Opinion, PageSize, PlaceCandidate, PlaceOutcome, PlaceRanking, PlaceRequest, PlaceVerdict, PolicyFault,
    PolicyScope, TenantId,
};

use super::ranking::{Tally, check_marks};
use super::{Question, check_denial};

impl Question for PlaceRequest {
    type Verdict = PlaceVerdict;
    type Outcome = PlaceOutcome;
    const HOOK: &'static str = "place";

    fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    fn subject(&self) -> String {
        format!("vms/{}", self.vm)
    }

    fn ask(&self, site: &Site<'_>) -> Result<PlaceVerdict, PolicyFault> {
        let question = question(self);
        let answer = site.call(|code, store, instance| match &code.place {
            Some(hook) => hook.load(&mut *store, instance)?.call_place_vm(store, &question).map(Some),
            None => Ok(None),
        })?;
        match answer {
            Some(Ok(answer)) => Ok(verdict(answer)),
            Some(Err(error)) => Err(PolicyFault::Refused(refusal(error))),
            None => Ok(PlaceVerdict::Abstain),
        }
    }

    fn check(&self, verdict: &PlaceVerdict, _scope: &PolicyScope) -> Result<(), String> {
        match verdict {
            PlaceVerdict::Rank(PlaceRanking { marks, reasons }) => check_marks(marks, reasons, self.candidates.len()),
            PlaceVerdict::Deny { code, message } => check_denial(code, message),
            PlaceVerdict::Abstain => Ok(()),
        }
    }

    fn is_final(verdict: &PlaceVerdict) -> bool {
        matches!(verdict, PlaceVerdict::Deny { .. })
    }

    fn combine(&self, opinions: &[Opinion<PlaceVerdict>]) -> PlaceOutcome {
        combine(opinions, self.candidates.len())
    }
}

/// What the opinions, checked and in the order asked, come to for so many `candidates`.
fn combine(opinions: &[Opinion<PlaceVerdict>], candidates: usize) -> PlaceOutcome {
    if opinions.is_empty() {
        return PlaceOutcome::Anywhere {};
    }
    let mut tally = Tally::of(candidates);
    for opinion in opinions {
        tally.asked();
        match &opinion.verdict {
            Ok(PlaceVerdict::Abstain) => {}
            Ok(PlaceVerdict::Rank(ranking)) => tally.add(opinion, &ranking.marks, &ranking.reasons),
            Ok(PlaceVerdict::Deny { code, message }) => return deny(code, message.clone(), Some(&opinion.plugin)),
            Err(fault) => return deny(fault.code(), fault.to_string(), Some(&opinion.plugin)),
        }
    }
    match tally.order("NUMA node", PlaceRequest::HOOK) {
        Ok(order) => PlaceOutcome::Select { order },
        Err((code, message, plugin)) => deny(&code, message, plugin.as_ref()),
    }
}

fn deny(code: &str, message: String, plugin: Option<&String>) -> PlaceOutcome {
    PlaceOutcome::Deny { code: code.to_owned(), message, plugin: plugin.cloned() }
}

fn question(request: &PlaceRequest) -> wit::PlaceRequest {
    fn column<T>(candidates: &[PlaceCandidate], of: impl Fn(&PlaceCandidate) -> T) -> Vec<T> {
        candidates.iter().map(of).collect()
    }
    let candidates = &request.candidates;
    wit::PlaceRequest {
        tenant: request.tenant.to_string(),
        vm: types::Vm {
            name: request.vm.to_string(),
            vcpus: request.vcpus,
            memory_mib: request.memory_mib,
            disks: request.disks,
            nics: request.nics,
        },
        pages: match request.pages {
            PageSize::Small => wit::Pages::Ordinary,
            PageSize::Huge2M => wit::Pages::TwoMib,
            PageSize::Huge1G => wit::Pages::OneGib,
        },
        devices: request.devices,
        candidates: wit::NodeTable {
            node: column(candidates, |one| one.node),
            cpus: column(candidates, |one| one.cpus.count()),
            memory_mib: column(candidates, |one| one.memory_mib),
            available_mib: column(candidates, |one| one.available_mib),
            two_mib_pages: column(candidates, |one| one.two_mib_pages),
            one_gib_pages: column(candidates, |one| one.one_gib_pages),
            vms: column(candidates, |one| one.vms),
            own_vms: column(candidates, |one| one.own_vms),
            placed_vcpus: column(candidates, |one| one.placed_vcpus),
            placed_mib: column(candidates, |one| one.placed_mib),
            own_devices: column(candidates, |one| one.own_devices),
            free_vfs: column(candidates, |one| one.free_vfs),
        },
    }
}

fn verdict(answer: wit::Verdict) -> PlaceVerdict {
    let ranking = match answer {
        wit::Verdict::Rank(ranking) => ranking,
        wit::Verdict::Deny(denial) => return PlaceVerdict::Deny { code: denial.code, message: denial.message },
        wit::Verdict::Abstain => return PlaceVerdict::Abstain,
    };
    let marks = ranking.marks.into_iter().map(|mark| match mark {
        wit::Mark::Score(score) => Mark::Score(score),
        wit::Mark::Reject(reason) => Mark::Reject(usize::try_from(reason).unwrap_or(usize::MAX)),
    });
    PlaceVerdict::Rank(PlaceRanking {
        marks: marks.collect(),
        reasons: ranking.reasons.into_iter().map(|reason| (reason.code, reason.message)).collect(),
    })
}

#[cfg(test)]
mod tests;
