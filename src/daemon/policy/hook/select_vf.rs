//! Which virtual function does a NIC get? `wit/select-vf.wit`. Key function: [`combine`].
//!
//! Plugins are asked in order; the first that denies or fails decides. How marks add up is in [`Tally`]. Settings narrow: the lowest rate,
//! trust and missing spoof checks only by the operator's grant, one MAC address and one VLAN or a denial.

use crate::daemon::policy::call::{Site, refusal};
use crate::daemon::policy::imports::bindings::exports::ostler::policy::select_vf_hook as wit;
use crate::daemon::policy::imports::bindings::ostler::policy::types;
use crate::daemon::policy::limits::MAX_VF_SETTINGS;
use crate::model::{
    LastTenant, MacAddr, Mark, Opinion, PfView, PolicyFault, PolicyScope, SelectVfRequest, TenantId, VfOutcome,
    VfRanking, VfSetting, VfSettings, VfVerdict, VfWish, VlanId,
};

use super::ranking::{Tally, check_marks};
use super::{Question, check_denial};

/// Two plugins want the NIC to be two things.
const CONFLICT: &str = "policy.conflict";

impl Question for SelectVfRequest {
    type Verdict = VfVerdict;
    type Outcome = VfOutcome;
    const HOOK: &'static str = "select-vf";

    fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    fn subject(&self) -> String {
        format!("vms/{}/nics/{}", self.vm, self.nic)
    }

    fn ask(&self, site: &Site<'_>) -> Result<VfVerdict, PolicyFault> {
        let question = question(self);
        let answer = site.call(|code, store, instance| match &code.select_vf {
            Some(hook) => hook.load(&mut *store, instance)?.call_select_vf(store, &question).map(Some),
            None => Ok(None),
        })?;
        match answer {
            Some(Ok(answer)) => verdict(answer).map_err(PolicyFault::BadAnswer),
            Some(Err(error)) => Err(PolicyFault::Refused(refusal(error))),
            None => Ok(VfVerdict::Abstain),
        }
    }

    fn check(&self, verdict: &VfVerdict, scope: &PolicyScope) -> Result<(), String> {
        match verdict {
            VfVerdict::Rank(ranking) => check_ranking(ranking, self, scope),
            VfVerdict::Deny { code, message } => check_denial(code, message),
            VfVerdict::Abstain => Ok(()),
        }
    }

    fn is_final(verdict: &VfVerdict) -> bool {
        matches!(verdict, VfVerdict::Deny { .. })
    }

    fn combine(&self, opinions: &[Opinion<VfVerdict>]) -> VfOutcome {
        combine(opinions, self.wish, self.candidates.len())
    }
}

fn check_ranking(ranking: &VfRanking, request: &SelectVfRequest, scope: &PolicyScope) -> Result<(), String> {
    let VfRanking { marks, reasons, settings } = ranking;
    check_marks(marks, reasons, request.candidates.len())?;
    if settings.len() > MAX_VF_SETTINGS {
        return Err(format!("{} settings, at most {MAX_VF_SETTINGS} are allowed", settings.len()));
    }
    for setting in settings {
        let is_operator = *scope == PolicyScope::Operator;
        match setting {
            VfSetting::Mac(mac) if !mac.is_station() => {
                return Err(format!("{setting}: not an address of one station"));
            }
            VfSetting::MaxTxMbps(0) => return Err(format!("{setting}: nothing would be left")),
            VfSetting::Trust(true) | VfSetting::SpoofCheck(false) if !is_operator => {
                return Err(format!("{setting}: only a plugin of the operator may grant it"));
            }
            VfSetting::Vlan(vlan) if !is_operator && request.wish.vlan != Some(*vlan) => {
                return Err(format!("{setting}: only a plugin of the operator may choose another than the wish"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What the opinions, checked and in the order asked, come to for `candidates` VFs.
fn combine(opinions: &[Opinion<VfVerdict>], wish: VfWish, candidates: usize) -> VfOutcome {
    let mut tally = Tally::of(candidates);
    let mut wanted = Wanted::default();
    for opinion in opinions {
        tally.asked();
        let ranking = match &opinion.verdict {
            Ok(VfVerdict::Abstain) => continue,
            Ok(VfVerdict::Rank(ranking)) => ranking,
            Ok(VfVerdict::Deny { code, message }) => return deny(code, message.clone(), Some(&opinion.plugin)),
            Err(fault) => return deny(fault.code(), fault.to_string(), Some(&opinion.plugin)),
        };
        tally.add(opinion, &ranking.marks, &ranking.reasons);
        if let Err(message) = wanted.add(&opinion.plugin, &ranking.settings) {
            return deny(CONFLICT, message, Some(&opinion.plugin));
        }
    }
    match tally.order("VF", SelectVfRequest::HOOK) {
        Ok(order) => VfOutcome::Select { order, settings: wanted.settle(wish) },
        Err((code, message, plugin)) => deny(&code, message, plugin.as_ref()),
    }
}

fn deny(code: &str, message: String, plugin: Option<&String>) -> VfOutcome {
    VfOutcome::Deny { code: code.to_owned(), message, plugin: plugin.cloned() }
}

/// What the plugins so far want the VF to be, with who wanted it first.
#[derive(Default)]
struct Wanted<'a> {
    mac: Option<(MacAddr, &'a str)>,
    vlan: Option<(VlanId, &'a str)>,
    max_tx_mbps: Option<u32>,
    trust: Grant,
    unchecked: Grant,
}

/// A right: there once granted, unless it is withdrawn by anyone.
#[derive(Default)]
struct Grant {
    is_granted: bool,
    is_withdrawn: bool,
}

impl Grant {
    fn add(&mut self, is_granted: bool) {
        self.is_granted |= is_granted;
        self.is_withdrawn |= !is_granted;
    }

    fn holds(&self) -> bool {
        self.is_granted && !self.is_withdrawn
    }
}

impl<'a> Wanted<'a> {
    fn add(&mut self, plugin: &'a str, settings: &[VfSetting]) -> Result<(), String> {
        for setting in settings {
            match *setting {
                VfSetting::Mac(mac) => agree(&mut self.mac, mac, plugin, "MAC address")?,
                VfSetting::Vlan(vlan) => agree(&mut self.vlan, vlan, plugin, "VLAN")?,
                VfSetting::MaxTxMbps(mbps) => {
                    self.max_tx_mbps = Some(self.max_tx_mbps.map_or(mbps, |least| least.min(mbps)));
                }
                VfSetting::Trust(is_trusted) => self.trust.add(is_trusted),
                VfSetting::SpoofCheck(is_on) => self.unchecked.add(!is_on),
            }
        }
        Ok(())
    }

    fn settle(self, wish: VfWish) -> VfSettings {
        VfSettings {
            mac: self.mac.map(|(mac, _)| mac).or(wish.mac),
            vlan: self.vlan.map(|(vlan, _)| vlan).or(wish.vlan),
            max_tx_mbps: self.max_tx_mbps,
            is_trusted: self.trust.holds(),
            checks_spoofing: !self.unchecked.holds(),
        }
    }
}

fn agree<'a, T: Copy + PartialEq + std::fmt::Display>(
    slot: &mut Option<(T, &'a str)>,
    value: T,
    plugin: &'a str,
    what: &str,
) -> Result<(), String> {
    let (first, by) = *slot.get_or_insert((value, plugin));
    if first == value {
        return Ok(());
    }
    Err(format!("{plugin} wants the {what} {value}, and {by} before it wanted {first}"))
}

fn question(request: &SelectVfRequest) -> wit::SelectVfRequest {
    let candidates = &request.candidates;
    wit::SelectVfRequest {
        tenant: request.tenant.to_string(),
        vm: types::Vm {
            name: request.vm.to_string(),
            vcpus: request.vcpus,
            memory_mib: request.memory_mib,
            disks: request.disks,
            nics: request.nics,
        },
        nic: request.nic.to_string(),
        wish: wit::VfWish {
            mac: request.wish.mac.map(|mac| mac.to_string()),
            vlan: request.wish.vlan.map(VlanId::number),
        },
        pfs: request.pfs.iter().map(pf).collect(),
        candidates: wit::VfTable {
            // The table is bounded, and with it the number of PFs.
            pf: candidates.iter().map(|vf| u16::try_from(vf.pf).unwrap_or(u16::MAX)).collect(),
            index: candidates.iter().map(|vf| vf.index).collect(),
            last_tenant: candidates
                .iter()
                .map(|vf| match vf.last_tenant {
                    LastTenant::Nobody => wit::LastTenant::Nobody,
                    LastTenant::Same => wit::LastTenant::Same,
                    LastTenant::Other => wit::LastTenant::Other,
                })
                .collect(),
        },
    }
}

fn pf(pf: &PfView) -> wit::Pf {
    wit::Pf {
        address: pf.address.to_string(),
        name: pf.name.clone(),
        numa_node: pf.numa_node,
        root: pf.root.map(|root| root.to_string()),
        link_mbps: pf.link_mbps,
        total_vfs: pf.total_vfs,
        free_vfs: pf.free_vfs,
        own_vfs: pf.own_vfs,
        other_tenants: pf.other_tenants,
    }
}

/// The answer in our words, or what of it has no meaning.
fn verdict(answer: wit::Verdict) -> Result<VfVerdict, String> {
    let ranking = match answer {
        wit::Verdict::Rank(ranking) => ranking,
        wit::Verdict::Deny(denial) => return Ok(VfVerdict::Deny { code: denial.code, message: denial.message }),
        wit::Verdict::Abstain => return Ok(VfVerdict::Abstain),
    };
    let marks = ranking.marks.into_iter().map(|mark| match mark {
        wit::Mark::Score(score) => Mark::Score(score),
        wit::Mark::Reject(reason) => Mark::Reject(usize::try_from(reason).unwrap_or(usize::MAX)),
    });
    let settings = ranking.settings.into_iter().map(|setting| {
        Ok(match setting {
            wit::VfSetting::Mac(text) => {
                VfSetting::Mac(text.parse().map_err(|_| format!("MAC address of {} bytes is none", text.len()))?)
            }
            wit::VfSetting::Vlan(number) => {
                VfSetting::Vlan(VlanId::new(number).ok_or_else(|| format!("VLAN {number}: 1 to 4094 are allowed"))?)
            }
            wit::VfSetting::MaxTxMbps(mbps) => VfSetting::MaxTxMbps(mbps),
            wit::VfSetting::Trust(is_trusted) => VfSetting::Trust(is_trusted),
            wit::VfSetting::SpoofCheck(is_on) => VfSetting::SpoofCheck(is_on),
        })
    });
    Ok(VfVerdict::Rank(VfRanking {
        marks: marks.collect(),
        reasons: ranking.reasons.into_iter().map(|reason| (reason.code, reason.message)).collect(),
        settings: settings.collect::<Result<_, String>>()?,
    }))
}

#[cfg(test)]
mod tests;
