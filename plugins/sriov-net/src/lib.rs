//! Chooses SR-IOV virtual functions for NICs. Settings, all optional:
//!
//! | key | meaning |
//! |---|---|
//! | `require-link` | `true` (default): a PF without carrier is out |
//! | `min-link-mbps` | a PF whose link is slower, or of unknown speed, is out |
//! | `numa-node` | PFs of this node first |
//! | `numa-strict` | `true`: PFs of other nodes are out (needs `numa-node`) |
//! | `spread` | `balance` (default): the PF with the largest free share first; `pack`: the smallest |
//! | `other-tenants` | `share` (default); `avoid`: PFs without other tenants first; `refuse`: PFs with any are out |
//! | `last-tenant` | `any` (default); `avoid`: VFs that another tenant had come last; `refuse`: they are out |
//! | `vlans` | VLANs that may be wished for, such as `100,200-210`; without it none |
//! | `vlan` | every NIC gets this VLAN; wishing for another is denied |
//! | `macs` | beginning of addresses that may be wished for, such as `02:aa`; without it any may |
//! | `max-tx-mbps` | highest transmit rate |
//! | `trust`, `spoof-check` | `true` or `false`; to grant (`trust` on, `spoof-check` off) is the operator's |
//!
//! [`rules`] decides, on plain values; this file is the door to the host (`wit/`).

mod rules;
mod settings;

#[allow(missing_docs, unsafe_code, unreachable_pub, reason = "generated from wit/, which carries the documentation")]
mod host {
    wit_bindgen::generate!({ path: "../../wit", world: "select-vf" });
}

use host::exports::ostler::policy::lifecycle::{self, Manifest, SettingError};
use host::exports::ostler::policy::select_vf_hook::{
    self, LastTenant, Mark, Ranking, SelectVfRequest, Verdict, VfSetting,
};
use host::ostler::policy::types::{Denial, Error};
use rules::{Ask, Candidate, Judged, Pf, Refusal};

/// Instances live for one call: see the crate.
#[cfg(target_arch = "wasm32")]
#[global_allocator]
static ARENA: plugin_arena::Arena = plugin_arena::Arena::new();

struct SriovNet;

impl lifecycle::Guest for SriovNet {
    fn describe() -> Manifest {
        Manifest {
            name: "sriov-net".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "ranks virtual functions by link, locality, load and who had them".into(),
        }
    }

    fn validate_settings() -> Result<(), Vec<SettingError>> {
        match settings::read(&settings::Host) {
            Ok(_) => Ok(()),
            Err(errors) => Err(errors.into_iter().map(|e| SettingError { key: e.key, message: e.message }).collect()),
        }
    }
}

impl select_vf_hook::Guest for SriovNet {
    fn select_vf(request: SelectVfRequest) -> Result<Verdict, Error> {
        let rules = settings::read(&settings::Host).map_err(|errors| {
            Error::BadSettings(errors.into_iter().map(|e| format!("{}: {}", e.key, e.message)).collect::<String>())
        })?;
        let ask = Ask { mac: request.wish.mac.as_deref(), vlan: request.wish.vlan };
        let chosen = match rules.settle(ask) {
            Ok(chosen) => chosen,
            Err(refusal) => return Ok(Verdict::Deny(denial(refusal))),
        };
        let pfs: Vec<Pf<'_>> = request.pfs.iter().map(pf).collect();
        let mut ranking = Ranking { marks: Vec::new(), reasons: Vec::new(), settings: Vec::new() };
        let table = &request.candidates;
        for (index, last_tenant) in table.pf.iter().zip(&table.last_tenant) {
            let pf = pfs.get(usize::from(*index)).ok_or_else(|| Error::Internal("a VF without its PF".into()))?;
            let candidate = Candidate { pf, was_anothers: *last_tenant == LastTenant::Other };
            ranking.marks.push(match rules.judge(candidate) {
                Judged::Score(score) => Mark::Score(score),
                Judged::Reject(refusal) => Mark::Reject(reason(&mut ranking.reasons, refusal)),
            });
        }
        let rate = chosen.max_tx_mbps.map(VfSetting::MaxTxMbps);
        let trust = chosen.trust.map(VfSetting::Trust);
        let spoof_check = chosen.spoof_check.map(VfSetting::SpoofCheck);
        ranking
            .settings
            .extend(chosen.vlan.map(VfSetting::Vlan).into_iter().chain(rate).chain(trust).chain(spoof_check));
        Ok(Verdict::Rank(ranking))
    }
}

fn pf(pf: &select_vf_hook::Pf) -> Pf<'_> {
    Pf {
        name: &pf.name,
        numa_node: pf.numa_node,
        link_mbps: pf.link_mbps,
        total_vfs: pf.total_vfs,
        free_vfs: pf.free_vfs,
        own_vfs: pf.own_vfs,
        other_tenants: pf.other_tenants,
    }
}

/// Index of this reason in the list; one PF's VFs share theirs, and what does not fit any more shares the last.
fn reason(reasons: &mut Vec<Denial>, refusal: Refusal) -> u32 {
    const MAX_REASONS: usize = 16;
    let known = reasons.iter().position(|known| known.message == refusal.message);
    let index = known.unwrap_or_else(|| {
        if reasons.len() < MAX_REASONS {
            reasons.push(denial(refusal));
        }
        reasons.len() - 1
    });
    u32::try_from(index).unwrap_or(0)
}

fn denial(refusal: Refusal) -> Denial {
    Denial { code: refusal.code.into(), message: refusal.message }
}

#[allow(unsafe_code, reason = "generated: the functions that the host calls")]
mod exports {
    use super::{SriovNet, host};

    host::export!(SriovNet with_types_in host);
}
