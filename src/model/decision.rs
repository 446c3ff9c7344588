//! What policy is asked and what came of it. Key types: [`AdmitRequest`], [`Opinion`], [`Outcome`], [`Decision`].
//!
//! `daemon/policy` produces decisions, `daemon/service` acts on them, the store keeps them, the API shows them.

use std::fmt;
use std::time::Duration;

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

use super::subject::serialize_said;
use super::{DecisionId, Labels, PluginDigest, PluginWeight, TenantId, VmImage, VmName};

/// Whose chain a plugin belongs to. The operator's comes first and is mandatory; a tenant's can only narrow.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyScope {
    /// Asked for every tenant.
    Operator,
    /// Asked for one tenant, after the operator's.
    Tenant(TenantId),
}

/// What a plugin's answers count for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PluginMode {
    /// They decide.
    #[default]
    Enforced,
    /// They are recorded beside the decision, and decide nothing.
    Shadow,
}

/// What a tenant has in use, or may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LimitUse {
    /// Registered VMs.
    pub vms: u32,
    /// Their vCPUs, added up.
    pub vcpus: u32,
    /// Their memory in MiB, added up.
    pub memory_mib: u64,
}

/// The question of the `admit` hook.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AdmitRequest {
    /// Who asks.
    pub tenant: TenantId,
    /// The VM that shall be registered.
    pub vm: VmName,
    /// Its vCPUs.
    pub vcpus: u32,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Number of disks.
    pub disks: u32,
    /// Number of NICs.
    pub nics: u32,
    /// What the tenant has registered already, without this VM.
    pub in_use: LimitUse,
    /// Its labels. `None`: the question does not say, as those from before there were any.
    #[serde(default)]
    pub labels: Option<Labels>,
    /// What it boots, and what its disks are. `None` as above.
    #[serde(default)]
    pub images: Option<Vec<VmImage>>,
}

impl Serialize for AdmitRequest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { tenant, vm, vcpus, memory_mib, disks, nics, in_use, labels, images } = self;
        let is_text = serializer.is_human_readable();
        // In the order of the struct: the policy host's messages have no names.
        let mut fields = serializer.serialize_struct("AdmitRequest", 9)?;
        fields.serialize_field("tenant", tenant)?;
        fields.serialize_field("vm", vm)?;
        fields.serialize_field("vcpus", vcpus)?;
        fields.serialize_field("memory_mib", memory_mib)?;
        fields.serialize_field("disks", disks)?;
        fields.serialize_field("nics", nics)?;
        fields.serialize_field("in_use", in_use)?;
        serialize_said(&mut fields, is_text, "labels", labels.as_ref())?;
        serialize_said(&mut fields, is_text, "images", images.as_ref())?;
        fields.end()
    }
}

/// A change to the VM that a plugin asks for; the core checks that it only narrows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Patch {
    /// Cap the vCPUs at this count.
    CapVcpus(u32),
    /// Cap the memory at this many MiB.
    CapMemoryMib(u64),
}

impl fmt::Display for Patch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CapVcpus(vcpus) => write!(f, "cap vCPUs at {vcpus}"),
            Self::CapMemoryMib(mib) => write!(f, "cap memory at {mib} MiB"),
        }
    }
}

/// Why a plugin gave no usable answer. Each is a stable code; each denies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyFault {
    /// It executed a trap (`unreachable`, out-of-bounds access, …).
    #[error("plugin trapped: {0}")]
    Trap(String),
    /// It ran past its wall-clock deadline.
    #[error("plugin ran longer than {0:?}")]
    Deadline(Duration),
    /// It did more work than it may.
    #[error("plugin used up its budget of {fuel} instructions")]
    Budget {
        /// The budget, in units of about one WebAssembly instruction.
        fuel: u64,
    },
    /// It asked for more memory than it may have.
    #[error("plugin wanted more than {limit_bytes} bytes of memory")]
    Memory {
        /// The cap.
        limit_bytes: u64,
    },
    /// It answered that it could not decide.
    #[error("plugin could not decide: {0}")]
    Refused(String),
    /// Its answer breaks the contract (a patch that widens, a text without end, …).
    #[error("plugin gave an invalid answer: {0}")]
    BadAnswer(String),
    /// It failed several times in a row for this tenant, and is left alone for a while.
    #[error("plugin keeps failing and is not asked now; it is tried again in {retry_s} s")]
    BreakerOpen {
        /// When it is tried again, in seconds, rounded up.
        retry_s: u64,
    },
    /// The host could not ask it (queue full, executor gone).
    #[error("policy host is unavailable: {0}")]
    Unavailable(String),
    /// The process that plugins run in ended or hung before it answered, or is being replaced.
    #[error("the process that runs plugins was lost and is being replaced; try again")]
    HostLost,
}

impl PolicyFault {
    /// A stable, machine-readable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Trap(_) => "policy.trap",
            Self::Deadline(_) => "policy.deadline",
            Self::Budget { .. } => "policy.budget",
            Self::Memory { .. } => "policy.memory",
            Self::Refused(_) => "policy.refused",
            Self::BadAnswer(_) => "policy.bad-answer",
            Self::BreakerOpen { .. } => "policy.breaker-open",
            Self::Unavailable(_) => "policy.unavailable",
            Self::HostLost => "policy.host-lost",
        }
    }

    /// Whether the plugin was not asked, or its answer got lost: the fault is the node's, and says nothing about the request.
    pub fn is_nodes(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::HostLost => true,
            Self::Trap(_)
            | Self::Deadline(_)
            | Self::Budget { .. }
            | Self::Memory { .. }
            | Self::Refused(_)
            | Self::BadAnswer(_)
            | Self::BreakerOpen { .. } => false,
        }
    }
}

/// One plugin's part in a decision; `V` is the hook's kind of answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opinion<V = Verdict> {
    /// The plugin's name.
    pub plugin: String,
    /// Its content.
    pub digest: PluginDigest,
    /// Whose chain it is in.
    pub scope: PolicyScope,
    /// How many times its scores count.
    pub weight: PluginWeight,
    /// What it said, or why it said nothing of use.
    pub verdict: Result<V, PolicyFault>,
    /// What the call cost, in units of about one WebAssembly instruction; 0 if it was not made.
    pub fuel: u64,
    /// From the call's start to its end, sandbox included.
    pub took: Duration,
}

/// What a plugin said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Go ahead, with these changes.
    Allow(Vec<Patch>),
    /// No, because.
    Deny {
        /// Stable, machine-readable (`limit.vcpus`).
        code: String,
        /// For people.
        message: String,
    },
    /// Not mine to decide.
    Abstain,
}

/// What the chain as a whole came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Go ahead, with these changes (the narrowest of each kind).
    Allow(Vec<Patch>),
    /// No: the first plugin in the chain that denied or failed decides.
    Deny {
        /// Stable code: the plugin's, a `policy.*` fault, or `policy.no-opinion` when no plugin of the operator allowed.
        code: String,
        /// For people.
        message: String,
        /// Name of the plugin that decided, if one did.
        plugin: Option<String>,
    },
}

/// A decision with its explanation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What came of it.
    pub outcome: Outcome,
    /// Who said what, in the order asked.
    pub opinions: Vec<Opinion>,
    /// Whole time of the decision.
    pub took: Duration,
    /// Where it is on record, once it is.
    pub id: Option<DecisionId>,
}

impl Decision {
    /// Whether it denies because a plugin could not be asked. Nobody said no: the same request may be allowed later.
    pub fn is_for_want_of_an_answer(&self) -> bool {
        // The first that denied or failed has decided.
        let decisive =
            self.opinions.iter().find(|opinion| matches!(opinion.verdict, Ok(Verdict::Deny { .. }) | Err(_)));
        matches!(self.outcome, Outcome::Deny { .. })
            && decisive.is_some_and(|opinion| opinion.verdict.as_ref().is_err_and(PolicyFault::is_nodes))
    }
}

/// Whose denial it is, for people.
pub fn denier(plugin: Option<&str>) -> String {
    plugin.map_or_else(|| "policy".to_owned(), |plugin| format!("policy plugin {plugin}"))
}
