//! Walks chains and names the first record that is not as it was written. Key type: [`ChainVerifier`].
//!
//! It sees lines in the order of each chain; chains of several tenants may be mixed. Nothing but the lines is needed, so
//! that an export is verified anywhere. What lines alone cannot show is that the newest ones are missing: compare the
//! end with one that was noted elsewhere.

use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest, Sha256};

use super::super::canonical::read_canonical;
use super::super::{RecordHash, TenantId};
use super::{CheckpointEntry, FORMAT, JournalEntry, JournalRecord, split};

/// Follows chains. Cheap: remembers one link per chain.
#[derive(Debug, Default)]
pub struct ChainVerifier {
    chains: BTreeMap<TenantId, Chain>,
    lines: u64,
}

#[derive(Debug)]
struct Chain {
    /// Sequence of the first record, and the hash that it follows.
    first: (u64, RecordHash),
    last: ChainEnd,
    checkpoint: Option<CheckpointEntry>,
}

/// The newest record of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainEnd {
    /// Its sequence.
    pub sequence: u64,
    /// Its hash.
    pub hash: RecordHash,
    /// Its time.
    pub time_ns: u64,
    /// Records seen.
    pub records: u64,
}

/// The first thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}{}", place(.tenant.as_ref(), *.sequence, *.line))]
pub struct ChainFault {
    /// Whose chain, if the record says so much.
    pub tenant: Option<TenantId>,
    /// Which record, if that can be told.
    pub sequence: Option<u64>,
    /// Which line, from 1; 0 if it is about the chain as a whole.
    pub line: u64,
    /// What.
    pub kind: FaultKind,
}

fn place(tenant: Option<&TenantId>, sequence: Option<u64>, line: u64) -> String {
    let mut text = String::new();
    if let Some(tenant) = tenant {
        text += &format!(" (tenant {tenant}");
        text += &sequence.map_or_else(|| ")".to_owned(), |sequence| format!(", record {sequence})"));
    }
    if line > 0 {
        text += &format!(", line {line}");
    }
    text
}

/// What is wrong with a chain. Each is a stable code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The line is not what a daemon writes.
    Malformed,
    /// The record's bytes have another hash than the line says.
    Altered,
    /// The record does not follow the one before it.
    Unlinked,
    /// Records between it and the one before it are missing.
    Gap,
    /// It is not later than the one before it.
    Time,
    /// Older records are missing, and no checkpoint says so.
    Beheaded,
    /// The newest records are missing, or others are there.
    Truncated,
}

impl FaultKind {
    /// A stable, machine-readable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Altered => "altered",
            Self::Unlinked => "unlinked",
            Self::Gap => "gap",
            Self::Time => "time",
            Self::Beheaded => "beheaded",
            Self::Truncated => "truncated",
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "this is not a record as a daemon writes it",
            Self::Altered => "the record was altered: its hash is another",
            Self::Unlinked => "the record does not follow the one before it",
            Self::Gap => "records before this one are missing",
            Self::Time => "the record is not later than the one before it",
            Self::Beheaded => "older records are missing, and no checkpoint of retention says so",
            Self::Truncated => "the newest records are missing or replaced: the chain does not end as it should",
        })
    }
}

impl ChainVerifier {
    /// Looks at the next line, without its line feed.
    pub fn line(&mut self, line: &[u8]) -> Result<(), ChainFault> {
        self.lines += 1;
        let number = self.lines;
        let fault = |tenant: Option<&TenantId>, sequence, kind| ChainFault {
            tenant: tenant.cloned(),
            sequence,
            line: number,
            kind,
        };
        let (hash, bytes) = split(line).ok_or_else(|| fault(None, None, FaultKind::Malformed))?;
        // The hash first: what was altered is called so, whatever it became.
        let is_altered = RecordHash(Sha256::digest(bytes).into()) != hash;
        let record: Option<JournalRecord> = read_canonical(bytes).and_then(|value| serde_json::from_value(value).ok());
        let at = record.as_ref().map(|record| (&record.tenant, record.sequence));
        let (tenant, sequence) = (at.map(|(tenant, _)| tenant), at.map(|(_, sequence)| sequence));
        if is_altered {
            return Err(fault(tenant, sequence, FaultKind::Altered));
        }
        let Some(record) = record.filter(|record| record.format == FORMAT) else {
            return Err(fault(None, None, FaultKind::Malformed));
        };
        let chain = self.chains.get_mut(&record.tenant);
        let is_wrong = match chain {
            Some(chain) => chain.follow(&record, hash).err(),
            None => {
                let mut chain = Chain::begin(&record, hash);
                chain.note(&record);
                self.chains.insert(record.tenant.clone(), chain);
                None
            }
        };
        is_wrong.map_or(Ok(()), |kind| Err(fault(Some(&record.tenant), Some(record.sequence), kind)))
    }

    /// After the last line: whether each chain begins where it may, and where it ends.
    pub fn finish(self) -> Result<BTreeMap<TenantId, ChainEnd>, ChainFault> {
        let mut ends = BTreeMap::new();
        for (tenant, chain) in self.chains {
            let (first, follows) = chain.first;
            let is_begin = first == 0 && follows == RecordHash::START;
            let is_told = chain.checkpoint.is_some_and(|told| (told.first, told.removed) == (first, follows));
            if !is_begin && !is_told {
                let kind = FaultKind::Beheaded;
                return Err(ChainFault { tenant: Some(tenant), sequence: Some(first), line: 0, kind });
            }
            ends.insert(tenant, chain.last);
        }
        Ok(ends)
    }
}

impl Chain {
    fn begin(record: &JournalRecord, hash: RecordHash) -> Self {
        Self {
            first: (record.sequence, record.previous),
            last: ChainEnd { sequence: record.sequence, hash, time_ns: record.time_ns, records: 1 },
            checkpoint: None,
        }
    }

    fn follow(&mut self, record: &JournalRecord, hash: RecordHash) -> Result<(), FaultKind> {
        let last = self.last;
        if last.sequence.checked_add(1) != Some(record.sequence) {
            return Err(if record.sequence > last.sequence { FaultKind::Gap } else { FaultKind::Unlinked });
        }
        if record.previous != last.hash {
            return Err(FaultKind::Unlinked);
        }
        if record.time_ns <= last.time_ns {
            return Err(FaultKind::Time);
        }
        let records = last.records + 1;
        self.last = ChainEnd { sequence: record.sequence, hash, time_ns: record.time_ns, records };
        self.note(record);
        Ok(())
    }

    fn note(&mut self, record: &JournalRecord) {
        if let JournalEntry::Checkpoint(checkpoint) = &record.entry {
            self.checkpoint = Some(checkpoint.clone());
        }
    }
}
