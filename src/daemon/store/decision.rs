//! A decision as it is kept beside the VM that it admitted. Key type: [`StoredDecision`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::format::{Unusable, parse_digest, scope_of, tenant_of};
use crate::model::{Decision, DecisionId, Opinion, Outcome, Patch, PluginWeight, PolicyFault, TenantId, Verdict};

#[derive(Serialize, Deserialize)]
pub(super) struct StoredDecision {
    outcome: StoredOutcome,
    opinions: Vec<StoredOpinion>,
    took_ns: u64,
    /// Its place in its tenant's chain of records; none: of a daemon that kept no records.
    #[serde(default)]
    sequence: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredOutcome {
    Allow(Vec<StoredPatch>),
    Deny { code: String, message: String, plugin: Option<String> },
}

#[derive(Serialize, Deserialize)]
struct StoredOpinion {
    plugin: String,
    digest: String,
    tenant: Option<String>,
    /// Left out if it is one, as in records from before there were weights.
    #[serde(default, skip_serializing_if = "PluginWeight::is_one")]
    weight: PluginWeight,
    verdict: StoredVerdict,
    #[serde(default)]
    fuel: u64,
    took_ns: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredVerdict {
    Allow(Vec<StoredPatch>),
    Deny { code: String, message: String },
    Abstain,
    Trap(String),
    DeadlineNs(u64),
    BudgetFuel(u64),
    MemoryBytes(u64),
    Refused(String),
    BadAnswer(String),
    BreakerOpen { retry_s: u64 },
    Unavailable(String),
    HostLost,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredPatch {
    CapVcpus(u32),
    CapMemoryMib(u64),
}

impl From<&Decision> for StoredDecision {
    fn from(decision: &Decision) -> Self {
        Self {
            outcome: match &decision.outcome {
                Outcome::Allow(patches) => StoredOutcome::Allow(store_patches(patches)),
                Outcome::Deny { code, message, plugin } => {
                    StoredOutcome::Deny { code: code.clone(), message: message.clone(), plugin: plugin.clone() }
                }
            },
            opinions: decision.opinions.iter().map(store_opinion).collect(),
            took_ns: to_ns(decision.took),
            sequence: decision.id.as_ref().map(|id| id.sequence),
        }
    }
}

impl StoredDecision {
    /// The decision about a VM of `tenant`.
    pub(super) fn load(self, tenant: &TenantId) -> Result<Decision, Unusable> {
        Ok(Decision {
            outcome: match self.outcome {
                StoredOutcome::Allow(patches) => Outcome::Allow(load_patches(patches)),
                StoredOutcome::Deny { code, message, plugin } => Outcome::Deny { code, message, plugin },
            },
            opinions: self.opinions.into_iter().map(load_opinion).collect::<Result<_, _>>()?,
            took: Duration::from_nanos(self.took_ns),
            id: self.sequence.map(|sequence| DecisionId { tenant: tenant.clone(), sequence }),
        })
    }
}

fn store_opinion(opinion: &Opinion) -> StoredOpinion {
    StoredOpinion {
        plugin: opinion.plugin.clone(),
        digest: opinion.digest.to_string(),
        tenant: tenant_of(&opinion.scope),
        weight: opinion.weight,
        verdict: match opinion.verdict.clone() {
            Ok(Verdict::Allow(patches)) => StoredVerdict::Allow(store_patches(&patches)),
            Ok(Verdict::Deny { code, message }) => StoredVerdict::Deny { code, message },
            Ok(Verdict::Abstain) => StoredVerdict::Abstain,
            Err(PolicyFault::Trap(cause)) => StoredVerdict::Trap(cause),
            Err(PolicyFault::Deadline(deadline)) => StoredVerdict::DeadlineNs(to_ns(deadline)),
            Err(PolicyFault::Budget { fuel }) => StoredVerdict::BudgetFuel(fuel),
            Err(PolicyFault::Memory { limit_bytes }) => StoredVerdict::MemoryBytes(limit_bytes),
            Err(PolicyFault::Refused(cause)) => StoredVerdict::Refused(cause),
            Err(PolicyFault::BadAnswer(cause)) => StoredVerdict::BadAnswer(cause),
            Err(PolicyFault::BreakerOpen { retry_s }) => StoredVerdict::BreakerOpen { retry_s },
            Err(PolicyFault::Unavailable(cause)) => StoredVerdict::Unavailable(cause),
            Err(PolicyFault::HostLost) => StoredVerdict::HostLost,
        },
        fuel: opinion.fuel,
        took_ns: to_ns(opinion.took),
    }
}

fn load_opinion(opinion: StoredOpinion) -> Result<Opinion, Unusable> {
    Ok(Opinion {
        plugin: opinion.plugin,
        digest: parse_digest(&opinion.digest)?,
        scope: scope_of(opinion.tenant)?,
        weight: opinion.weight,
        verdict: match opinion.verdict {
            StoredVerdict::Allow(patches) => Ok(Verdict::Allow(load_patches(patches))),
            StoredVerdict::Deny { code, message } => Ok(Verdict::Deny { code, message }),
            StoredVerdict::Abstain => Ok(Verdict::Abstain),
            StoredVerdict::Trap(cause) => Err(PolicyFault::Trap(cause)),
            StoredVerdict::DeadlineNs(ns) => Err(PolicyFault::Deadline(Duration::from_nanos(ns))),
            StoredVerdict::BudgetFuel(fuel) => Err(PolicyFault::Budget { fuel }),
            StoredVerdict::MemoryBytes(limit_bytes) => Err(PolicyFault::Memory { limit_bytes }),
            StoredVerdict::Refused(cause) => Err(PolicyFault::Refused(cause)),
            StoredVerdict::BadAnswer(cause) => Err(PolicyFault::BadAnswer(cause)),
            StoredVerdict::BreakerOpen { retry_s } => Err(PolicyFault::BreakerOpen { retry_s }),
            StoredVerdict::Unavailable(cause) => Err(PolicyFault::Unavailable(cause)),
            StoredVerdict::HostLost => Err(PolicyFault::HostLost),
        },
        fuel: opinion.fuel,
        took: Duration::from_nanos(opinion.took_ns),
    })
}

fn store_patches(patches: &[Patch]) -> Vec<StoredPatch> {
    let store = |patch: &Patch| match *patch {
        Patch::CapVcpus(vcpus) => StoredPatch::CapVcpus(vcpus),
        Patch::CapMemoryMib(mib) => StoredPatch::CapMemoryMib(mib),
    };
    patches.iter().map(store).collect()
}

fn load_patches(patches: Vec<StoredPatch>) -> Vec<Patch> {
    let load = |patch| match patch {
        StoredPatch::CapVcpus(vcpus) => Patch::CapVcpus(vcpus),
        StoredPatch::CapMemoryMib(mib) => Patch::CapMemoryMib(mib),
    };
    patches.into_iter().map(load).collect()
}

fn to_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
