//! Choosing an SR-IOV virtual function for a NIC: what policy is asked and what came of it.
//! Key types: [`SelectVfRequest`], [`VfDecision`], [`VfSettings`].
//!
//! `daemon/service` asks with candidates that the core has found free and safe; `daemon/policy` answers with an order
//! and settings; the core verifies the outcome again before it acts.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Bdf, DeviceId, MacAddr, Opinion, TenantId, VmName};

/// What the owner of a NIC asks for; policy may refuse or replace it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VfWish {
    /// The guest's address: unicast, not zero.
    pub mac: Option<MacAddr>,
    /// The VLAN that the PF puts the VF into.
    pub vlan: Option<VlanId>,
}

/// An IEEE 802.1Q VLAN identifier: 1 to 4094.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct VlanId(u16);

impl VlanId {
    /// `None` outside 1 to 4094 (0 means untagged, 4095 is reserved: IEEE 802.1Q, table 9-2).
    pub fn new(number: u16) -> Option<Self> {
        (1..4095).contains(&number).then_some(Self(number))
    }

    /// The number on the wire.
    pub fn number(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for VlanId {
    type Error = String;

    fn try_from(number: u16) -> Result<Self, String> {
        Self::new(number).ok_or_else(|| format!("VLAN {number}: 1 to 4094 are allowed"))
    }
}

impl From<VlanId> for u16 {
    fn from(vlan: VlanId) -> Self {
        vlan.number()
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A physical function as policy sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PfView {
    /// Its address.
    pub address: Bdf,
    /// Name of its network interface.
    pub name: String,
    /// NUMA node, where the host has any.
    pub numa_node: Option<u32>,
    /// The root port above it: what shares one shares its bandwidth.
    pub root: Option<Bdf>,
    /// Speed of its link in Mbit/s (0: not known); `None` without carrier.
    pub link_mbps: Option<u32>,
    /// VFs that exist on it.
    pub total_vfs: u32,
    /// Those without an owner.
    pub free_vfs: u32,
    /// Those that the asking tenant has.
    pub own_vfs: u32,
    /// Other tenants that have any.
    pub other_tenants: u32,
}

/// Who had a VF before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LastTenant {
    /// Nobody since the daemon remembers.
    Nobody,
    /// The tenant that asks.
    Same,
    /// Another one; the VF was reset since.
    Other,
}

/// A virtual function that could be given. Its members stand in the order in which they are spelled: a question has many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfCandidate {
    /// Its address.
    pub address: Bdf,
    /// Its number on the PF, from 0.
    pub index: u16,
    /// Who had it before.
    pub last_tenant: LastTenant,
    /// Index of its PF in [`SelectVfRequest::pfs`].
    pub pf: usize,
}

/// The question of the `select-vf` hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelectVfRequest {
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
    /// The NIC that gets the VF.
    pub nic: DeviceId,
    /// What its owner asks for.
    pub wish: VfWish,
    /// The PFs of the candidates.
    pub pfs: Vec<PfView>,
    /// At least one, at most [`MAX_CANDIDATES`](Self::MAX_CANDIDATES), in a stable order: it breaks ties.
    pub candidates: Vec<VfCandidate>,
}

impl SelectVfRequest {
    /// Candidates of one question; the rest is not shown to policy.
    pub const MAX_CANDIDATES: usize = 1024;
}

/// What one plugin makes of one candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// Feasible; more is better.
    Score(i32),
    /// Not feasible, for the reason of this index in [`VfRanking::reasons`].
    Reject(usize),
}

/// A setting of the chosen VF that a plugin asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VfSetting {
    /// The guest's address.
    Mac(MacAddr),
    /// The VLAN.
    Vlan(VlanId),
    /// Highest transmit rate, in Mbit/s, at least 1.
    MaxTxMbps(u32),
    /// Whether the guest may change its address and listen to others' traffic.
    Trust(bool),
    /// Whether frames with another source address are dropped.
    SpoofCheck(bool),
}

impl fmt::Display for VfSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => write!(f, "MAC {mac}"),
            Self::Vlan(vlan) => write!(f, "VLAN {vlan}"),
            Self::MaxTxMbps(mbps) => write!(f, "at most {mbps} Mbit/s"),
            Self::Trust(is_trusted) => write!(f, "trust {}", on_off(*is_trusted)),
            Self::SpoofCheck(is_on) => write!(f, "spoof check {}", on_off(*is_on)),
        }
    }
}

fn on_off(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}

/// One plugin's marks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfRanking {
    /// One for each candidate, in their order.
    pub marks: Vec<Mark>,
    /// Code and text of each reason that a mark names.
    pub reasons: Vec<(String, String)>,
    /// What the chosen VF shall be set to.
    pub settings: Vec<VfSetting>,
}

/// What one plugin said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VfVerdict {
    /// These candidates, with these settings.
    Rank(VfRanking),
    /// No VF for this NIC, because.
    Deny {
        /// Stable, machine-readable (`vlan.not-allowed`).
        code: String,
        /// For people.
        message: String,
    },
    /// Not mine to decide.
    Abstain,
}

/// What the chosen VF is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfSettings {
    /// The guest's address; `None`: the core gives one.
    pub mac: Option<MacAddr>,
    /// The VLAN; `None`: untagged.
    pub vlan: Option<VlanId>,
    /// Highest transmit rate in Mbit/s; `None`: the link's.
    pub max_tx_mbps: Option<u32>,
    /// Off unless a plugin of the operator grants it.
    pub is_trusted: bool,
    /// On unless a plugin of the operator switches it off.
    pub checks_spoofing: bool,
}

/// What the chain as a whole came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VfOutcome {
    /// One of these.
    Select {
        /// Indices of the feasible candidates, best first; never empty.
        order: Vec<usize>,
        /// For whichever is taken.
        settings: VfSettings,
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
pub struct VfDecision {
    /// What came of it.
    pub outcome: VfOutcome,
    /// Who said what, in the order asked.
    pub opinions: Vec<Opinion<VfVerdict>>,
    /// Whole time of the decision.
    pub took: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vlan_is_1_to_4094() {
        assert_eq!([0, 1, 4094, 4095].map(|number| VlanId::new(number).is_some()), [false, true, true, false]);
    }
}
