//! NVMe for VMs: what a spec asks for, and how policy chooses. Key types: [`NvmeSpec`], [`NvmeWish`],
//! [`SelectNvmeRequest`], [`NvmeDecision`].
//!
//! As for network functions: `daemon/service` asks with candidates that the core has found free and safe,
//! `daemon/policy` answers with an order, the core verifies the outcome again before it acts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Bdf, DeviceId, LastTenant, Mark, Opinion, TenantId, VmName};

/// Smallest namespace that may be asked for, in bytes.
const MIN_BYTES: u64 = 1 << 20;

/// An NVMe device of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmeSpec {
    /// Name of the device.
    pub id: DeviceId,
    /// What it is to be.
    pub wish: NvmeWish,
}

/// What an NVMe device is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NvmeWish {
    /// A secondary controller with one namespace of at least `min_bytes`; the guest sees all of it.
    Namespace {
        /// Least number of bytes, at least one MiB.
        min_bytes: u64,
    },
    /// A whole controller.
    Controller,
}

impl NvmeWish {
    /// Whether a device may be this.
    pub(super) fn check(self) -> Result<(), String> {
        match self {
            Self::Namespace { min_bytes } if min_bytes < MIN_BYTES => {
                Err(format!("a namespace of {min_bytes} bytes, at least {MIN_BYTES} must be asked for"))
            }
            Self::Namespace { .. } | Self::Controller => Ok(()),
        }
    }
}

/// A controller as policy sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmeControllerView {
    /// PCI address.
    pub address: Bdf,
    /// Serial number.
    pub serial: String,
    /// Model.
    pub model: String,
    /// NUMA node, where the host has any.
    pub numa_node: Option<u32>,
    /// The root port above it: what shares one shares its bandwidth.
    pub root: Option<Bdf>,
    /// Percent of the medium's life that is over; may exceed 100.
    pub wear_percent: Option<u8>,
    /// Secondary controllers that are online.
    pub online: u32,
    /// Those without an owner.
    pub free: u32,
    /// Namespaces that the asking tenant has on it.
    pub own: u32,
    /// Other tenants that have any.
    pub other_tenants: u32,
}

/// A namespace that could be given, or a whole controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmeCandidate {
    /// Index of its controller in [`SelectNvmeRequest::controllers`].
    pub controller: usize,
    /// Id of the namespace; 0: the whole controller.
    pub nsid: u32,
    /// Bytes that it holds; of a whole controller, its namespaces together.
    pub size_bytes: u64,
    /// Bytes of a logical block; 0 for a whole controller.
    pub block_bytes: u32,
    /// Who had it before.
    pub last_tenant: LastTenant,
}

/// The question of the `select-nvme` hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelectNvmeRequest {
    /// Whose VM.
    pub tenant: TenantId,
    /// The VM that is about to start for the first time with this device.
    pub vm: VmName,
    /// Its vCPUs.
    pub vcpus: u32,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Number of its disks.
    pub disks: u32,
    /// Number of its NICs.
    pub nics: u32,
    /// The device.
    pub device: DeviceId,
    /// What its owner asks for.
    pub wish: NvmeWish,
    /// The controllers of the candidates.
    pub controllers: Vec<NvmeControllerView>,
    /// At least one, at most [`MAX_CANDIDATES`](Self::MAX_CANDIDATES), in a stable order: it breaks ties.
    pub candidates: Vec<NvmeCandidate>,
}

impl SelectNvmeRequest {
    /// Candidates of one question; the rest is not shown to policy.
    pub const MAX_CANDIDATES: usize = 1024;
}

/// One plugin's marks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmeRanking {
    /// One for each candidate, in their order.
    pub marks: Vec<Mark>,
    /// Code and text of each reason that a mark names.
    pub reasons: Vec<(String, String)>,
}

/// What one plugin said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NvmeVerdict {
    /// These candidates.
    Rank(NvmeRanking),
    /// Nothing for this device, because.
    Deny {
        /// Stable, machine-readable (`size.too-large`).
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
pub enum NvmeOutcome {
    /// One of these.
    Select {
        /// Indices of the feasible candidates, best first; never empty.
        order: Vec<usize>,
    },
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
pub struct NvmeDecision {
    /// What came of it.
    pub outcome: NvmeOutcome,
    /// Who said what, in the order asked.
    pub opinions: Vec<Opinion<NvmeVerdict>>,
    /// Whole time of the decision.
    pub took: Duration,
}
