//! The last changes, for watchers that come back. Key types: [`History`], [`ResumePoint`].
//!
//! Kept in memory and, in the same transaction as the change itself, in the file: a watch can be resumed across a restart.
//! A point names a change and what it was, so that a point of another history (a restored backup, a change that never
//! came to the disk) is noticed and not mistaken for a place in this one.

use std::collections::VecDeque;

use sha2::{Digest, Sha256};

use super::Change;

/// Changes that are kept.
pub(super) const HISTORY_LEN: u64 = 2048;

/// Where a watcher got to: everything up to and with this change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumePoint {
    /// The change's number; 0: before the first.
    pub revision: u64,
    /// What it was; 0 if it is not known any more.
    pub check: u64,
}

/// The history does not reach back to a point, or is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("changes since revision {wanted} are not kept any more: the history begins at {oldest}")]
pub struct Compacted {
    /// Where the watcher got to.
    pub wanted: u64,
    /// The first change that is kept.
    pub oldest: u64,
}

/// The last changes, without a gap.
#[derive(Debug, Default)]
pub(super) struct History {
    changes: VecDeque<Change>,
    /// The change before the first of `changes`: everything that ever happened if there are none.
    before: u64,
}

impl History {
    /// From rows by revision; only what follows the last gap is of use. `revision`: of the last change that the file
    /// knows of.
    pub(super) fn load(rows: Vec<Change>, revision: u64) -> Self {
        let mut history = Self { changes: VecDeque::new(), before: revision };
        for change in rows.into_iter().rev() {
            if change.revision != history.before {
                break;
            }
            history.before -= 1;
            history.changes.push_front(change);
        }
        history
    }

    pub(super) fn push(&mut self, change: Change) {
        self.changes.push_back(change);
        while self.changes.len() as u64 > HISTORY_LEN {
            if let Some(forgotten) = self.changes.pop_front() {
                self.before = forgotten.revision;
            }
        }
    }

    /// The last change.
    pub(super) fn end(&self) -> ResumePoint {
        self.changes.back().map_or(ResumePoint { revision: self.before, check: 0 }, Change::point)
    }

    /// Every change after `point`.
    pub(super) fn since(&self, point: ResumePoint) -> Result<Vec<Change>, Compacted> {
        let compacted = || Compacted { wanted: point.revision, oldest: self.before + 1 };
        let after = if point == (ResumePoint { revision: self.before, check: 0 }) {
            0
        } else {
            let at = self.changes.binary_search_by_key(&point.revision, |change| change.revision);
            at.ok().filter(|at| self.changes.get(*at).map(Change::point) == Some(point)).ok_or_else(compacted)? + 1
        };
        Ok(self.changes.range(after..).cloned().collect())
    }
}

/// What tells a change from another one of the same number.
pub(super) fn check(revision: u64, is_gone: bool, record: &[u8]) -> u64 {
    let digest = Sha256::new().chain_update(revision.to_le_bytes()).chain_update([u8::from(is_gone)]);
    let bytes: [u8; 32] = digest.chain_update(record).finalize().into();
    // Never 0, which means "not known".
    bytes.first_chunk().map_or(1, |first| u64::from_le_bytes(*first)).max(1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::daemon::record::samples;
    use proptest::prelude::*;

    fn change(revision: u64) -> Change {
        let vm = Arc::new(samples::running("acme", "web"));
        Change { revision, vm, is_gone: false, check: revision * 7 + 1 }
    }

    fn revisions(changes: &[Change]) -> Vec<u64> {
        changes.iter().map(|change| change.revision).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn from_every_point_that_is_kept_nothing_is_missed_or_repeated(first in 0u64..5, count in 0u64..40, at in 0u64..50) {
            let rows = (first + 1..=first + count).map(change).collect();
            let history = History::load(rows, first + count);
            let point = ResumePoint { revision: at, check: at * 7 + 1 };
            match history.since(point) {
                Ok(changes) => prop_assert_eq!(revisions(&changes), (at + 1..=first + count).collect::<Vec<_>>()),
                Err(compacted) => {
                    prop_assert!(at <= first || at > first + count);
                    prop_assert_eq!(compacted.oldest, first + 1);
                }
            }
            let end = history.end();
            prop_assert_eq!(history.since(end).unwrap().len(), 0);
            let other = ResumePoint { check: end.check ^ 1, ..end };
            prop_assert!(history.since(other).is_err());
        }
    }

    #[test]
    fn only_what_follows_the_last_gap_is_of_use() {
        let history = History::load(vec![change(1), change(2), change(4), change(5)], 5);
        assert_eq!(revisions(&history.since(ResumePoint { revision: 4, check: 29 }).unwrap()), [5]);
        assert!(history.since(ResumePoint { revision: 2, check: 15 }).is_err());
        // The last changes did not come to the disk, or the file is of before there was a history.
        let history = History::load(vec![change(1), change(2)], 5);
        assert!(history.since(ResumePoint { revision: 2, check: 15 }).is_err());
        assert_eq!(history.end(), ResumePoint { revision: 5, check: 0 });
        assert_eq!(history.since(history.end()).unwrap().len(), 0);
    }

    #[test]
    fn the_oldest_go_first() {
        let mut history = History::load(vec![], 0);
        let start = history.end();
        history.push(change(1));
        assert_eq!(history.since(start).unwrap().len(), 1);
        (2..=HISTORY_LEN + 3).for_each(|revision| history.push(change(revision)));
        assert_eq!(history.since(start).unwrap_err(), Compacted { wanted: 0, oldest: 4 });
        assert_eq!(history.since(ResumePoint { revision: 4, check: 29 }).unwrap().len() as u64, HISTORY_LEN - 1);
    }
}
