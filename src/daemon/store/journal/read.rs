//! Reading the chains, beside the thread that appends: each call sees one moment. Key types: [`DecisionQuery`], [`Chains`].

use std::collections::BTreeMap;

use redb::{Database, ReadTransaction, ReadableDatabase, TableDefinition};

use super::super::StoreError;
use super::{DECISIONS, ENFORCEMENTS, HEADS, Head, SHADOWS, TIMES, read_head};
use crate::model::{
    ChainEnd, ChainFault, ChainVerifier, DecisionEntry, DecisionId, Enforcement, FaultKind, JournalEntry,
    JournalRecord, OBSERVE_HOOK, RecordHash, ShadowAnswer, TenantId,
};

/// Records that one page looks at, at most, whether or not they fit: the next page goes on from there.
const MAX_SCANNED: usize = 20_000;
/// Bytes of records after which a page ends: candidates, or what plugins saw of a tenant's VMs, make records of 100 KiB, and
/// clients take answers of 4 MiB.
const MAX_PAGE_BYTES: usize = 1 << 20;

/// Which decisions are wanted, newest first.
#[derive(Debug, Clone, Default)]
pub struct DecisionQuery {
    /// Whose; `None`: everybody's.
    pub tenant: Option<TenantId>,
    /// Of this hook; `None`: of all at which something is decided. What observers were told is listed when it is asked for.
    pub hook: Option<String>,
    /// About this, or something below it: `vms/web` is about `vms/web/nics/eth0` too.
    pub subject: Option<String>,
    /// Those that allowed, or those that denied.
    pub is_allowed: Option<bool>,
    /// Only those that a shadow would have had come out otherwise.
    pub has_differing_shadow: bool,
    /// Not older than this, in nanoseconds since 1970.
    pub since_ns: Option<u64>,
    /// Only what is older than this, in nanoseconds since 1970: where the page before ended.
    pub before_ns: Option<u64>,
    /// At most so many.
    pub limit: usize,
}

/// A decision on record, and what was done about it since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDecision {
    /// Its place.
    pub id: DecisionId,
    /// When it was recorded, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Hash of its record.
    pub hash: RecordHash,
    /// What was decided.
    pub entry: DecisionEntry,
    /// What was done; `None`: nothing was told (yet).
    pub enforcement: Option<Enforcement>,
    /// What shadows said, once they were asked.
    pub shadows: Vec<ShadowAnswer>,
}

impl StoredDecision {
    /// Whether the outcome would have been another with one of the shadows.
    pub fn has_differing_shadow(&self) -> bool {
        self.shadows.iter().any(|shadow| shadow.instead.is_some())
    }
}

/// Some of the decisions that are wanted.
#[derive(Debug, Clone, Default)]
pub struct DecisionPage {
    /// Newest first.
    pub decisions: Vec<StoredDecision>,
    /// There may be more, older than this.
    pub next_ns: Option<u64>,
}

impl DecisionQuery {
    fn takes(&self, decision: &StoredDecision) -> bool {
        let (tenant, entry) = (&decision.id.tenant, &decision.entry);
        let is_below = |subject: &String| {
            entry.subject.strip_prefix(subject.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.tenant.as_ref().is_none_or(|wanted| wanted == tenant)
            && self.hook.as_ref().map_or(entry.hook != OBSERVE_HOOK, |hook| *hook == entry.hook)
            && self.is_allowed.is_none_or(|is_allowed| is_allowed == entry.is_allowed())
            && self.subject.as_ref().is_none_or(is_below)
            && (!self.has_differing_shadow || decision.has_differing_shadow())
    }
}

/// All chains at one moment.
pub struct Chains(ReadTransaction);

impl Chains {
    pub(in super::super) fn at(database: &Database) -> Result<Self, StoreError> {
        database.begin_read().map(Self).map_err(StoreError::io)
    }

    /// One decision; `None` if there is none (any more), or if the record is about something else.
    pub fn decision(&self, id: &DecisionId) -> Result<Option<StoredDecision>, StoreError> {
        Ok(self.sized(id)?.map(|(decision, _)| decision))
    }

    /// A decision with the bytes of its records.
    fn sized(&self, id: &DecisionId) -> Result<Option<(StoredDecision, usize)>, StoreError> {
        let decisions = self.0.open_table(DECISIONS).map_err(StoreError::io)?;
        let line = decisions.get((id.tenant.as_str(), id.sequence)).map_err(StoreError::io)?;
        let Some(line) = line else { return Ok(None) };
        let (hash, record) = record(id, line.value())?;
        let JournalEntry::Decision(entry) = record.entry else { return Ok(None) };
        let (enforcement, (shadows, more)) = (self.enforcement(id)?, self.shadows(id)?);
        let (id, time_ns, entry, len) = (id.clone(), record.time_ns, *entry, line.value().len() + more);
        Ok(Some((StoredDecision { id, time_ns, hash, entry, enforcement, shadows }, len)))
    }

    fn enforcement(&self, id: &DecisionId) -> Result<Option<Enforcement>, StoreError> {
        match self.follower(ENFORCEMENTS, id)? {
            Some((JournalEntry::Enforcement(told), _)) if told.decision == id.sequence => Ok(Some(told.enforcement)),
            _ => Ok(None),
        }
    }

    /// With the bytes of their record.
    fn shadows(&self, id: &DecisionId) -> Result<(Vec<ShadowAnswer>, usize), StoreError> {
        match self.follower(SHADOWS, id)? {
            Some((JournalEntry::Shadow(told), len)) if told.decision == id.sequence => Ok((told.shadows, len)),
            _ => Ok((Vec::new(), 0)),
        }
    }

    /// The record that `index` has for a decision, and its bytes.
    fn follower(
        &self,
        index: TableDefinition<(&'static str, u64), u64>,
        id: &DecisionId,
    ) -> Result<Option<(JournalEntry, usize)>, StoreError> {
        let index = self.0.open_table(index).map_err(StoreError::io)?;
        let key = (id.tenant.as_str(), id.sequence);
        let Some(sequence) = index.get(key).map_err(StoreError::io)? else { return Ok(None) };
        let sequence = sequence.value();
        let decisions = self.0.open_table(DECISIONS).map_err(StoreError::io)?;
        let line = decisions.get((id.tenant.as_str(), sequence)).map_err(StoreError::io)?;
        let Some(line) = line else { return Ok(None) };
        let (_, record) = record(&DecisionId { sequence, ..id.clone() }, line.value())?;
        Ok(Some((record.entry, line.value().len())))
    }

    /// The newest decisions that are wanted. Looks at a bounded number: a page may be short, or empty, and not the last.
    pub fn page(&self, query: &DecisionQuery) -> Result<DecisionPage, StoreError> {
        let times = self.0.open_table(TIMES).map_err(StoreError::io)?;
        let (since, before) = (query.since_ns.unwrap_or(0), query.before_ns.unwrap_or(u64::MAX));
        let (mut page, mut bytes) = (DecisionPage::default(), 0);
        if since >= before {
            return Ok(page);
        }
        for (scanned, row) in times.range(since..before).map_err(StoreError::io)?.rev().enumerate() {
            let (time, place) = row.map_err(StoreError::io)?;
            if page.decisions.len() >= query.limit || scanned >= MAX_SCANNED || bytes >= MAX_PAGE_BYTES {
                // The range ends before it: one nanosecond later, this one is the next page's first.
                page.next_ns = Some(time.value() + 1);
                break;
            }
            let (tenant, sequence) = place.value();
            // Spares reading others' records.
            if query.tenant.as_ref().is_some_and(|wanted| wanted.as_str() != tenant) {
                continue;
            }
            let Ok(tenant) = tenant.parse::<TenantId>() else { continue };
            let id = DecisionId { tenant, sequence };
            if let Some((decision, len)) = self.sized(&id)?.filter(|(decision, _)| query.takes(decision)) {
                page.decisions.push(decision);
                bytes += len;
            }
        }
        Ok(page)
    }

    /// Lines of `tenant`'s chain from `sequence` on, oldest first, until `f` has enough (`false`).
    pub fn lines(
        &self,
        tenant: &TenantId,
        sequence: u64,
        mut f: impl FnMut(u64, &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let decisions = self.0.open_table(DECISIONS).map_err(StoreError::io)?;
        let range = (tenant.as_str(), sequence)..=(tenant.as_str(), u64::MAX);
        for row in decisions.range(range).map_err(StoreError::io)? {
            let (key, line) = row.map_err(StoreError::io)?;
            if !f(key.value().1, line.value()) {
                break;
            }
        }
        Ok(())
    }

    /// Who has a chain.
    pub fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        Ok(heads(&self.0)?.into_keys().collect())
    }

    /// Walks the chain of `tenant` to its end, which must be the one that was written last; gives that end, `None` if
    /// there is no chain. The inner error is the first record that is wrong.
    pub fn verify(&self, tenant: &TenantId) -> Result<Result<Option<ChainEnd>, ChainFault>, StoreError> {
        let mut verifier = ChainVerifier::default();
        let mut fault = None;
        self.lines(tenant, 0, |_, line| {
            fault = verifier.line(line).err();
            fault.is_none()
        })?;
        if let Some(fault) = fault {
            return Ok(Err(fault));
        }
        let end = match verifier.finish() {
            Ok(mut ends) => ends.remove(tenant),
            Err(fault) => return Ok(Err(fault)),
        };
        let head = heads(&self.0)?.remove(tenant);
        let is_end = match (&end, &head) {
            (Some(end), Some(head)) => (end.sequence + 1, end.hash) == (head.next, head.hash),
            (None, None) => true,
            (None, Some(_)) | (Some(_), None) => false,
        };
        if !is_end {
            let (tenant, sequence) = (Some(tenant.clone()), end.map(|end| end.sequence));
            return Ok(Err(ChainFault { tenant, sequence, line: 0, kind: FaultKind::Truncated }));
        }
        Ok(Ok(end))
    }
}

fn record(id: &DecisionId, line: &[u8]) -> Result<(RecordHash, JournalRecord), StoreError> {
    JournalRecord::from_line(line).map_err(|reason| StoreError::Record {
        table: "decisions",
        key: id.to_string(),
        reason,
    })
}

/// The ends of all chains.
pub(super) fn heads(transaction: &ReadTransaction) -> Result<BTreeMap<TenantId, Head>, StoreError> {
    let table = transaction.open_table(HEADS).map_err(StoreError::io)?;
    let mut heads = BTreeMap::new();
    for row in redb::ReadableTable::iter(&table).map_err(StoreError::io)? {
        let (key, value) = row.map_err(StoreError::io)?;
        let unusable = |reason| StoreError::Record { table: "decision_heads", key: key.value().to_owned(), reason };
        let tenant = key.value().parse().map_err(|error: crate::model::IdError| unusable(error.to_string()))?;
        heads.insert(tenant, read_head(value.value()).map_err(unusable)?);
    }
    Ok(heads)
}
