//! Chooses NVMe namespaces, and whole controllers, for VMs. Settings, all optional:
//!
//! | key | meaning |
//! |---|---|
//! | `size-slack` | percent by which a namespace may be larger than asked for: 100 (default) is up to twice as large, 0 is exact |
//! | `max-mib` | asking for more than so many MiB is denied |
//! | `block-bytes` | namespaces with other logical blocks are out: 512, 4096, … |
//! | `max-wear` | controllers whose medium is worn by more than so many percent, or by nobody knows how much, are out |
//! | `spread` | `balance` (default): the controller with the largest free share first; `pack`: the smallest |
//! | `numa-node` | controllers of this node first |
//! | `numa-strict` | `true`: controllers of other nodes are out (needs `numa-node`) |
//! | `other-tenants` | `share` (default); `avoid`: controllers without other tenants first; `refuse`: those with any are out |
//! | `last-tenant` | `any` (default); `avoid`: what another tenant had comes last; `refuse`: it is out |
//! | `whole` | serial numbers of controllers that may be given whole, such as `S1,S2`; without it none |
//!
//! Of what is left the namespace that fits best comes first. [`rules`] decides, on plain values; this file is the door to
//! the host (`wit/`).

mod rules;
mod settings;

#[allow(missing_docs, unsafe_code, unreachable_pub, reason = "generated from wit/, which carries the documentation")]
mod host {
    wit_bindgen::generate!({ path: "../../wit", world: "select-nvme" });
}

use host::exports::ostler::policy::lifecycle::{self, Manifest, SettingError};
use host::exports::ostler::policy::select_nvme_hook::{
    self, LastTenant, Mark, NvmeWish, Ranking, SelectNvmeRequest, Verdict,
};
use host::ostler::policy::types::{Denial, Error};
use rules::{Ask, Candidate, Controller, Judged, Refusal};

/// Instances live for one call: see the crate.
#[cfg(target_arch = "wasm32")]
#[global_allocator]
static ARENA: plugin_arena::Arena = plugin_arena::Arena::new();

struct Nvme;

impl lifecycle::Guest for Nvme {
    fn describe() -> Manifest {
        Manifest {
            name: "nvme".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "ranks NVMe namespaces by size, wear, locality, load and who had them".into(),
        }
    }

    fn validate_settings() -> Result<(), Vec<SettingError>> {
        match settings::read(&settings::Host) {
            Ok(_) => Ok(()),
            Err(errors) => Err(errors.into_iter().map(|e| SettingError { key: e.key, message: e.message }).collect()),
        }
    }
}

impl select_nvme_hook::Guest for Nvme {
    fn select_nvme(request: SelectNvmeRequest) -> Result<Verdict, Error> {
        let rules = settings::read(&settings::Host).map_err(|errors| {
            Error::BadSettings(errors.into_iter().map(|e| format!("{}: {}", e.key, e.message)).collect::<String>())
        })?;
        let ask = match request.wish {
            NvmeWish::Namespace(min_bytes) => Ask::Namespace { min_bytes },
            NvmeWish::Controller => Ask::Controller,
        };
        if let Err(refusal) = rules.allow(ask) {
            return Ok(Verdict::Deny(denial(refusal)));
        }
        let controllers: Vec<Controller<'_>> = request.controllers.iter().map(controller).collect();
        let mut ranking = Ranking { marks: Vec::new(), reasons: Vec::new() };
        let table = &request.candidates;
        let rows = table.controller.iter().zip(&table.nsid).zip(&table.size_bytes);
        let rows = rows.zip(&table.block_bytes).zip(&table.last_tenant);
        for ((((index, nsid), size_bytes), block_bytes), last_tenant) in rows {
            let controller = controllers.get(usize::from(*index));
            let controller = controller.ok_or_else(|| Error::Internal("a row without its controller".into()))?;
            let candidate = Candidate {
                controller,
                nsid: *nsid,
                size_bytes: *size_bytes,
                block_bytes: *block_bytes,
                was_anothers: *last_tenant == LastTenant::Other,
            };
            ranking.marks.push(match rules.judge(ask, candidate) {
                Judged::Score(score) => Mark::Score(score),
                Judged::Reject(refusal) => Mark::Reject(reason(&mut ranking.reasons, refusal)),
            });
        }
        Ok(Verdict::Rank(ranking))
    }
}

fn controller(controller: &select_nvme_hook::Controller) -> Controller<'_> {
    Controller {
        address: &controller.address,
        serial: &controller.serial,
        numa_node: controller.numa_node,
        wear_percent: controller.wear_percent,
        online: controller.online,
        free: controller.free,
        other_tenants: controller.other_tenants,
    }
}

/// Index of this reason in the list; what does not fit any more shares the last.
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
    use super::{Nvme, host};

    host::export!(Nvme with_types_in host);
}
