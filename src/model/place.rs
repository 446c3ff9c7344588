//! Choosing a NUMA node for a VM: what policy is asked and what came of it. Key types: [`PlaceRequest`],
//! [`PlaceDecision`], [`Placement`].
//!
//! As for devices: `daemon/service` asks with nodes that can hold the VM, `daemon/policy` answers with an order, the core
//! looks again at what was chosen.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{CpuList, DecisionId, Mark, Opinion, PageSize, TenantId, VmName};

/// Where a VM runs until it is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Its memory comes from this node alone.
    pub node: u32,
    /// Its threads run on these CPUs, those of the node.
    pub cpus: CpuList,
    /// The decision that chose it; `None` if that was only tried.
    pub decision: Option<DecisionId>,
}

/// A node that could hold the VM. "There" are VMs that have a process and were placed on it, or name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceCandidate {
    /// Its number.
    pub node: u32,
    /// Its CPUs that are online.
    pub cpus: CpuList,
    /// All its memory, in MiB.
    pub memory_mib: u64,
    /// Memory that is free now or would be if the kernel dropped what it keeps of files, in MiB.
    pub available_mib: u64,
    /// Reserved pages of 2 MiB that are free.
    pub two_mib_pages: u64,
    /// Reserved pages of 1 GiB that are free.
    pub one_gib_pages: u64,
    /// VMs there.
    pub vms: u32,
    /// Those of the asking tenant.
    pub own_vms: u32,
    /// vCPUs of the VMs there.
    pub placed_vcpus: u32,
    /// Memory of the VMs there, touched or not, in MiB.
    pub placed_mib: u64,
    /// Devices of the host that the VM has been given and that are near.
    pub own_devices: u32,
    /// Virtual functions near it that nobody has.
    pub free_vfs: u32,
}

/// The question of the `place` hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceRequest {
    /// Whose VM.
    pub tenant: TenantId,
    /// The VM that is about to start.
    pub vm: VmName,
    /// Its vCPUs.
    pub vcpus: u32,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Number of its disks.
    pub disks: u32,
    /// Number of its NICs.
    pub nics: u32,
    /// Of its memory.
    pub pages: PageSize,
    /// Devices of the host that it has been given.
    pub devices: u32,
    /// At least one, at most [`MAX_CANDIDATES`](Self::MAX_CANDIDATES), by number: that breaks ties.
    pub candidates: Vec<PlaceCandidate>,
}

impl PlaceRequest {
    /// Candidates of one question; no kernel has more nodes.
    pub const MAX_CANDIDATES: usize = 1024;
}

/// One plugin's marks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceRanking {
    /// One for each candidate, in their order.
    pub marks: Vec<Mark>,
    /// Code and text of each reason that a mark names.
    pub reasons: Vec<(String, String)>,
}

/// What one plugin said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlaceVerdict {
    /// These candidates.
    Rank(PlaceRanking),
    /// Nowhere, because.
    Deny {
        /// Stable, machine-readable (`memory.reserved`).
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
pub enum PlaceOutcome {
    /// One of these.
    Select {
        /// Indices of the feasible candidates, best first; never empty.
        order: Vec<usize>,
    },
    /// Nobody decides at this hook, only shadows are asked: the VM runs wherever the kernel puts it.
    Anywhere {},
    /// None.
    Deny {
        /// Stable code: the plugin's, or one that begins with `policy.`.
        code: String,
        /// For people.
        message: String,
        /// Name of the plugin that decided, if one did.
        plugin: Option<String>,
    },
}

/// A decision with its explanation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceDecision {
    /// What came of it.
    pub outcome: PlaceOutcome,
    /// Who said what, in the order asked.
    pub opinions: Vec<Opinion<PlaceVerdict>>,
    /// Whole time of the decision.
    pub took: Duration,
}
