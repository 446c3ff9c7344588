//! What was decided, by whom, from what: a chain of records per tenant, each holding the hash of the one before it.
//! Key types: [`JournalRecord`], [`DecisionEntry`], [`ChainVerifier`].
//!
//! `daemon/policy` makes the entries, `daemon/store` numbers, links and keeps them, `rpc` and `cli` show and verify them.
//!
//! ```text
//!   0 decision ◀─ 1 enforcement ◀─ 2 decision ◀─ … ◀─ 900 checkpoint{first: 450} ◀─ …
//!   one line:  {"hash":"sha256:…","record":{…,"previous":"sha256:…",…}}       hash = SHA-256 of the record's bytes
//! ```
//!
//! A chain of its own for each tenant: nobody learns from numbers how much others do, and nobody's flood pushes out
//! others' records. Old records go together with a checkpoint at the chain's other end that says where the rest begins;
//! records that are missing without one were taken out by somebody else.

mod explain;
mod verify;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::canonical::{Json, NotCanonical, canonical};
use super::{InventoryView, KvUse, PluginDigest, PluginWeight, PolicyFault, PolicyScope, RecordHash, TenantId};

pub use explain::{Cell, Explanation, Mark as CellMark, Row};
pub use verify::{ChainEnd, ChainFault, ChainVerifier, FaultKind};

/// Number of the format that is written.
const FORMAT: u32 = 1;
/// What a line begins with, up to its hash.
const LINE_START: &[u8] = b"{\"hash\":\"";
/// What stands between the hash and the record.
const LINE_MIDDLE: &[u8] = b"\",\"record\":";

/// Names a decision: whose, and which record of its chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DecisionId {
    /// Whose chain.
    pub tenant: TenantId,
    /// Place in it, from 0.
    pub sequence: u64,
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.sequence)
    }
}

/// One record of a tenant's chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalRecord {
    /// Number of the format.
    pub format: u32,
    /// Whose chain.
    pub tenant: TenantId,
    /// Place in it, from 0, without gaps.
    pub sequence: u64,
    /// When it was written, in nanoseconds since 1970; on one node no two records have the same, and later ones more.
    pub time_ns: u64,
    /// Hash of the record before it; [`RecordHash::START`] before the first.
    pub previous: RecordHash,
    /// What happened.
    pub entry: JournalEntry,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JournalEntry {
    /// Something was decided; nothing was done about it yet.
    Decision(Box<DecisionEntry>),
    /// What was done about it.
    Enforcement(EnforcementEntry),
    /// What shadows would have said to it.
    Shadow(ShadowEntry),
    /// Older records were removed.
    Checkpoint(CheckpointEntry),
}

/// A decision, complete enough to be made again. What is [`Json`] is the hook's own type as serde writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionEntry {
    /// The hook: `admit`, `attach`, `detach`, `select-vf`, `select-nvme`, `place`; `observe`, at which nothing is decided.
    pub hook: String,
    /// What it is about, within the tenant: `vms/web`, `vms/web/nics/eth0`.
    pub subject: String,
    /// The question.
    pub question: Json,
    /// Who stood in the chain, in the order asked.
    pub chain: Vec<ChainLink>,
    /// What they answered. Shorter than the chain if somebody's answer was final.
    pub answers: Vec<Answer>,
    /// What came of it: an object of one key, `deny` if it was a denial.
    pub outcome: Json,
    /// From the question to the outcome, waiting included, in nanoseconds.
    pub took_ns: u64,
}

/// A plugin in a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainLink {
    /// Name of the binding.
    pub plugin: String,
    /// Whose it is.
    pub scope: PolicyScope,
    /// Content.
    pub digest: PluginDigest,
    /// Settings.
    pub settings: BTreeMap<String, String>,
    /// How many times its scores count. Left out if once: records from before there were weights keep their form.
    #[serde(default, skip_serializing_if = "PluginWeight::is_one")]
    pub weight: PluginWeight,
}

/// A plugin's answer and what it cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// What it said.
    pub said: Said,
    /// What the call cost, in units of about one WebAssembly instruction.
    pub fuel: u64,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
    /// What it read and wrote of what it remembers. Left out if it remembers nothing: records of others keep their form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv: Option<KvUse>,
    /// What it looked at of the tenant's inventory. Left out if it sees none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventory: Option<InventoryView>,
    /// Where it failed, the innermost function first: its name or number, and the offset in the component's file. Left out
    /// if it answered, or failed where none of its functions was under way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backtrace: Vec<String>,
}

/// An answer, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// The hook's own kind of verdict, checked.
    Verdict(Json),
    /// No usable one.
    Fault(PolicyFault),
}

/// What the core did about an earlier decision of the same chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnforcementEntry {
    /// Sequence of the decision.
    pub decision: u64,
    /// What was done.
    pub enforcement: Enforcement,
}

/// What the core did about a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Enforcement {
    /// What was decided, with what it came to: a VM's id, a device's address.
    Enforced(String),
    /// Something else: the core's own checks, or the world, stood against it.
    Overruled {
        /// Stable code.
        code: String,
        /// For people.
        message: String,
    },
}

/// What shadows said to an earlier decision of the same chain. Its own record, since the decision's is complete before
/// anybody acts on it and never changed, and since nobody shall wait for shadows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShadowEntry {
    /// Sequence of the decision.
    pub decision: u64,
    /// Each that was asked, in the order of a chain.
    pub shadows: Vec<ShadowAnswer>,
}

/// A shadow's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShadowAnswer {
    /// Who.
    pub link: ChainLink,
    /// What it said, and what that cost.
    pub answer: Answer,
    /// The outcome that there would have been with this one enforced in its place, and no other shadow; null if that is
    /// the decision's own. All denials are one.
    pub instead: Option<Json>,
}

/// The chain begins later from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointEntry {
    /// Sequence of the first record that is left.
    pub first: u64,
    /// Hash of the record before it, the last that was removed.
    pub removed: RecordHash,
}

/// Why a decision was denied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// Stable code.
    pub code: String,
    /// For people.
    pub message: String,
    /// The plugin that decided, if one did.
    pub plugin: Option<String>,
}

impl DecisionEntry {
    /// The denial, if it is one.
    pub fn denial(&self) -> Option<Denial> {
        self.outcome.read().ok().map(|Denied { deny }| deny)
    }

    /// Whether it allows what was asked. Whatever is not understood does not.
    pub fn is_allowed(&self) -> bool {
        self.outcome.variant().is_some_and(|variant| variant != DENY)
    }
}

/// An outcome that is a denial.
#[derive(Deserialize)]
struct Denied {
    deny: Denial,
}

/// The variant of every hook's denials.
const DENY: &str = "deny";

impl JournalRecord {
    /// A record of today's format.
    pub fn new(tenant: TenantId, sequence: u64, time_ns: u64, previous: RecordHash, entry: JournalEntry) -> Self {
        Self { format: FORMAT, tenant, sequence, time_ns, previous, entry }
    }

    /// The record's hash, and its line: the one form in which it is stored and exported, without a line feed.
    pub fn to_line(&self) -> Result<(RecordHash, Vec<u8>), NotCanonical> {
        let record = canonical(self)?;
        let hash = RecordHash(Sha256::digest(&record).into());
        let mut line = Vec::with_capacity(record.len() + 100);
        line.extend_from_slice(LINE_START);
        line.extend_from_slice(hash.to_string().as_bytes());
        line.extend_from_slice(LINE_MIDDLE);
        line.extend_from_slice(&record);
        line.push(b'}');
        Ok((hash, line))
    }

    /// Reads a line without looking at its hash: for what was verified, or need not be. The error is for people.
    pub fn from_line(line: &[u8]) -> Result<(RecordHash, Self), String> {
        let (hash, record) = split(line).ok_or("not a line of a hash and a record")?;
        let record: Self = serde_json::from_slice(record).map_err(|error| error.to_string())?;
        if record.format != FORMAT {
            return Err(format!("format {} is not known, {FORMAT} is", record.format));
        }
        Ok((hash, record))
    }
}

/// The parts of a line: the hash that it names and the bytes of its record.
fn split(line: &[u8]) -> Option<(RecordHash, &[u8])> {
    let rest = line.strip_prefix(LINE_START)?;
    let (hash, rest) = rest.split_at_checked("sha256:".len() + 64)?;
    let record = rest.strip_prefix(LINE_MIDDLE)?.strip_suffix(b"}")?;
    Some((std::str::from_utf8(hash).ok()?.parse().ok()?, record))
}

/// Chains for tests.
#[cfg(test)]
pub mod samples;

#[cfg(test)]
mod tests;
