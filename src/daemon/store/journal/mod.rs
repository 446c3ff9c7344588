//! The chains of decision records on disk: appending, and what retention removes. Key types: [`Journal`], [`Append`].
//!
//! ```text
//!   decisions            (tenant, sequence) → line      decision_times         time → (tenant, sequence)
//!   decision_heads       tenant → head, JSON            decision_enforcements  (tenant, decision) → sequence
//!                                                       decision_shadows       (tenant, decision) → sequence
//! ```
//!
//! A record, its chain's head and what retention removes for it are one transaction: after a crash the chain ends where
//! the last transaction left it. So a gap, or an end that is not the head's, never comes from a crash.

mod read;

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::StoreError;
use super::events::Told;
use super::format::{FORMAT, from_json, to_json};
use crate::model::{CheckpointEntry, DecisionId, JournalEntry, JournalRecord, KvChange, RecordHash, TenantId};

pub use read::{Chains, DecisionPage, DecisionQuery, StoredDecision};

const DECISIONS: TableDefinition<(&str, u64), &[u8]> = TableDefinition::new("decisions");
const HEADS: TableDefinition<&str, &[u8]> = TableDefinition::new("decision_heads");
const TIMES: TableDefinition<u64, (&str, u64)> = TableDefinition::new("decision_times");
const ENFORCEMENTS: TableDefinition<(&str, u64), u64> = TableDefinition::new("decision_enforcements");
const SHADOWS: TableDefinition<(&str, u64), u64> = TableDefinition::new("decision_shadows");

/// Records that retention removes in one transaction, at most: what is over is removed by the next.
const MAX_REMOVED: u64 = 2048;

/// How long decision records are kept, per tenant. What is over one of them goes, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Records; of a decision that was allowed there are two, and one more if it has shadows.
    pub records: u64,
    /// Bytes of their lines.
    pub bytes: u64,
    /// Time since they were written.
    pub age: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { records: 250_000, bytes: 256 << 20, age: Duration::from_secs(180 * 24 * 3600) }
    }
}

impl Retention {
    /// Removing begins this much above what is kept, so that it is not done, and recorded, for each record.
    fn slack(self) -> Self {
        let Self { records, bytes, age } = self;
        Self { records: records + records / 16, bytes: bytes + bytes / 16, age: age + age / 16 }
    }
}

/// A record to append, with where its place goes.
pub(super) struct Append {
    pub(super) tenant: TenantId,
    pub(super) entry: JournalEntry,
    /// What plugins remember of it, in the same transaction.
    pub(super) kv: Vec<KvChange>,
    /// The position of the observer that it is about, in the same transaction.
    pub(super) told: Option<Told>,
    /// Let go behind it.
    #[expect(dead_code, reason = "dropped with it")]
    pub(super) held: Box<dyn Send>,
    pub(super) done: oneshot::Sender<Result<DecisionId, StoreError>>,
}

/// Where a chain begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    format: u32,
    /// Sequence of the first record that is left.
    first: u64,
    /// Sequence of the next record.
    next: u64,
    /// Hash of the last record.
    hash: RecordHash,
    /// Bytes of all lines.
    bytes: u64,
    /// When the first record that is left was written.
    first_ns: u64,
    /// When the last record was written.
    last_ns: u64,
}

impl Head {
    const START: Self =
        Self { format: FORMAT, first: 0, next: 0, hash: RecordHash::START, bytes: 0, first_ns: 0, last_ns: 0 };

    fn records(&self) -> u64 {
        self.next - self.first
    }
}

/// The ends of all chains. The store's thread has it.
#[derive(Debug)]
pub(super) struct Journal {
    heads: HashMap<TenantId, Head>,
    last_ns: u64,
    retention: Retention,
}

/// What a transaction will have changed, once it is on disk.
#[derive(Debug)]
pub(super) struct Advance {
    heads: HashMap<TenantId, Head>,
    last_ns: u64,
}

pub(super) fn make_tables(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    transaction.open_table(DECISIONS)?;
    transaction.open_table(HEADS)?;
    transaction.open_table(TIMES)?;
    transaction.open_table(ENFORCEMENTS)?;
    transaction.open_table(SHADOWS)?;
    Ok(())
}

impl Journal {
    /// Reads the ends of all chains.
    pub(super) fn open(transaction: &redb::ReadTransaction, retention: Retention) -> Result<Self, StoreError> {
        let heads: HashMap<_, _> = read::heads(transaction)?.into_iter().collect();
        let last_ns = heads.values().map(|head| head.last_ns).max().unwrap_or(0);
        Ok(Self { heads, last_ns, retention })
    }

    /// Reads the ends of all chains again.
    pub(super) fn reload(&mut self, transaction: &redb::ReadTransaction) -> Result<(), StoreError> {
        *self = Self::open(transaction, self.retention)?;
        Ok(())
    }

    /// Appends in their order, within `transaction`; gives each its place. To be taken over with
    /// [`advance`](Self::advance) once the transaction is on disk.
    pub(super) fn append(
        &self,
        transaction: &WriteTransaction,
        appends: &[Append],
        now: SystemTime,
    ) -> Result<(Vec<DecisionId>, Advance), redb::Error> {
        let mut tables = Tables::open(transaction)?;
        let mut advance = Advance { heads: HashMap::new(), last_ns: self.last_ns };
        let mut ids = Vec::with_capacity(appends.len());
        for Append { tenant, entry, .. } in appends {
            let mut head = self.head(&advance, tenant);
            let sequence = advance.write(&mut tables, tenant, &mut head, entry.clone(), now)?;
            ids.push(DecisionId { tenant: tenant.clone(), sequence });
            advance.trim(&mut tables, tenant, &mut head, self.retention, now)?;
            advance.heads.insert(tenant.clone(), head);
        }
        advance.save(&mut tables)?;
        Ok((ids, advance))
    }

    /// Removes what is too old, of every chain, within `transaction`.
    pub(super) fn sweep(&self, transaction: &WriteTransaction, now: SystemTime) -> Result<Advance, redb::Error> {
        let mut tables = Tables::open(transaction)?;
        let mut advance = Advance { heads: HashMap::new(), last_ns: self.last_ns };
        for (tenant, head) in &self.heads {
            let mut head = *head;
            if advance.trim(&mut tables, tenant, &mut head, self.retention, now)? {
                advance.heads.insert(tenant.clone(), head);
            }
        }
        advance.save(&mut tables)?;
        Ok(advance)
    }

    /// Takes over what is on disk now.
    pub(super) fn advance(&mut self, advance: Advance) {
        self.heads.extend(advance.heads);
        self.last_ns = advance.last_ns;
    }

    fn head(&self, advance: &Advance, tenant: &TenantId) -> Head {
        advance.heads.get(tenant).or_else(|| self.heads.get(tenant)).copied().unwrap_or(Head::START)
    }
}

impl Advance {
    /// Appends one record; gives its place.
    fn write(
        &mut self,
        tables: &mut Tables<'_>,
        tenant: &TenantId,
        head: &mut Head,
        entry: JournalEntry,
        now: SystemTime,
    ) -> Result<u64, redb::Error> {
        // A clock that was set back does not turn the order round.
        self.last_ns = to_ns(now).max(self.last_ns + 1);
        let sequence = head.next;
        let is_decision = matches!(entry, JournalEntry::Decision(_));
        let follows = match &entry {
            JournalEntry::Enforcement(enforcement) => Some((&mut tables.enforcements, enforcement.decision)),
            JournalEntry::Shadow(shadow) => Some((&mut tables.shadows, shadow.decision)),
            JournalEntry::Decision(_) | JournalEntry::Checkpoint(_) => None,
        };
        if let Some((index, decision)) = follows.filter(|(_, decision)| *decision >= head.first) {
            index.insert((tenant.as_str(), decision), sequence)?;
        }
        let record = JournalRecord::new(tenant.clone(), sequence, self.last_ns, head.hash, entry);
        let (hash, line) = record.to_line().map_err(|error| redb::Error::Io(std::io::Error::other(error)))?;
        tables.decisions.insert((tenant.as_str(), sequence), line.as_slice())?;
        if is_decision {
            tables.times.insert(self.last_ns, (tenant.as_str(), sequence))?;
        }
        if head.records() == 0 {
            head.first_ns = self.last_ns;
        }
        let bytes = head.bytes + line.len() as u64;
        *head = Head { next: sequence + 1, hash, bytes, last_ns: self.last_ns, ..*head };
        Ok(sequence)
    }

    /// Removes what is over, if it is enough to be worth a checkpoint; whether it did.
    fn trim(
        &mut self,
        tables: &mut Tables<'_>,
        tenant: &TenantId,
        head: &mut Head,
        retention: Retention,
        now: SystemTime,
    ) -> Result<bool, redb::Error> {
        let is_over = |head: &Head, limit: Retention| {
            let age = Duration::from_nanos(to_ns(now).saturating_sub(head.first_ns));
            head.records() > 0 && (head.records() > limit.records || head.bytes > limit.bytes || age > limit.age)
        };
        if !is_over(head, retention.slack()) {
            return Ok(false);
        }
        let mut removed = None;
        let until = head.next.min(head.first + MAX_REMOVED);
        while head.first < until && is_over(head, retention) {
            let Some((hash, time_ns, len)) = tables.remove(tenant, head.first)? else { break };
            removed = Some(hash);
            head.first += 1;
            head.bytes = head.bytes.saturating_sub(len);
            head.first_ns = tables.time_of(tenant, head.first)?.unwrap_or(time_ns);
        }
        let Some(removed) = removed else { return Ok(false) };
        let checkpoint = JournalEntry::Checkpoint(CheckpointEntry { first: head.first, removed });
        self.write(tables, tenant, head, checkpoint, now)?;
        Ok(true)
    }

    fn save(&self, tables: &mut Tables<'_>) -> Result<(), redb::Error> {
        for (tenant, head) in &self.heads {
            tables.heads.insert(tenant.as_str(), to_json(head).as_slice())?;
        }
        Ok(())
    }
}

/// The tables of one transaction.
struct Tables<'a> {
    decisions: redb::Table<'a, (&'static str, u64), &'static [u8]>,
    heads: redb::Table<'a, &'static str, &'static [u8]>,
    times: redb::Table<'a, u64, (&'static str, u64)>,
    enforcements: redb::Table<'a, (&'static str, u64), u64>,
    shadows: redb::Table<'a, (&'static str, u64), u64>,
}

impl<'a> Tables<'a> {
    fn open(transaction: &'a WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            decisions: transaction.open_table(DECISIONS)?,
            heads: transaction.open_table(HEADS)?,
            times: transaction.open_table(TIMES)?,
            enforcements: transaction.open_table(ENFORCEMENTS)?,
            shadows: transaction.open_table(SHADOWS)?,
        })
    }

    /// Removes a record and what points at it; gives its hash, time and length.
    fn remove(&mut self, tenant: &TenantId, sequence: u64) -> Result<Option<(RecordHash, u64, u64)>, redb::Error> {
        let key = (tenant.as_str(), sequence);
        let Some(line) = self.decisions.remove(key)?.map(|line| line.value().to_owned()) else { return Ok(None) };
        self.enforcements.remove(key)?;
        self.shadows.remove(key)?;
        // One that cannot be read goes too, and the checkpoint names nothing that could be taken for its hash.
        let Ok((hash, record)) = JournalRecord::from_line(&line) else {
            return Ok(Some((RecordHash::START, 0, line.len() as u64)));
        };
        self.times.remove(record.time_ns)?;
        Ok(Some((hash, record.time_ns, line.len() as u64)))
    }

    fn time_of(&self, tenant: &TenantId, sequence: u64) -> Result<Option<u64>, redb::Error> {
        let line = self.decisions.get((tenant.as_str(), sequence))?;
        Ok(line.and_then(|line| Some(JournalRecord::from_line(line.value()).ok()?.1.time_ns)))
    }
}

/// Hook and subject of a decision; `None` if there is none of that number.
pub(super) fn about(
    transaction: &WriteTransaction,
    tenant: &TenantId,
    sequence: u64,
) -> Result<Option<(String, String)>, redb::Error> {
    let decisions = transaction.open_table(DECISIONS)?;
    let Some(line) = decisions.get((tenant.as_str(), sequence))? else { return Ok(None) };
    Ok(match JournalRecord::from_line(line.value()) {
        Ok((_, JournalRecord { entry: JournalEntry::Decision(entry), .. })) => Some((entry.hook, entry.subject)),
        _ => None,
    })
}

fn to_ns(moment: SystemTime) -> u64 {
    u64::try_from(moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

fn read_head(bytes: &[u8]) -> Result<Head, String> {
    let head: Head = from_json(bytes)?;
    if head.first > head.next { Err("the chain ends before it begins".into()) } else { Ok(head) }
}

#[cfg(test)]
mod tests;
