//! Decisions that wait for the executor, fairly between tenants. Key types: [`Queue`], [`Full`].
//!
//! Each tenant has a lane of its own, bounded. The next decision is the first of the lane that has had the least of the
//! executor's *time*: a tenant that floods, or whose plugins take long, waits behind itself. A lane that was empty begins
//! level with the others, so that nobody saves time up.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::model::TenantId;

/// Why nothing more is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// The tenant's own lane.
    Lane,
    /// All lanes together.
    Whole,
    /// The executor is gone.
    Closed,
}

/// Work of several tenants for one worker.
pub(super) struct Queue<T> {
    /// Rank: leaf. Guards the lanes; held for one push or pop.
    lanes: Mutex<Lanes<T>>,
    /// Told when there is work, or the end.
    changed: Condvar,
    max_lane: usize,
    max_whole: usize,
}

struct Lanes<T> {
    lanes: HashMap<TenantId, Lane<T>>,
    /// The least time that a lane with work has had: where new ones begin.
    level: Duration,
    len: usize,
    is_closed: bool,
}

struct Lane<T> {
    work: VecDeque<T>,
    /// Time that it has had, level included.
    had: Duration,
}

impl<T> Queue<T> {
    /// At most `max_lane` of one tenant wait, and `max_whole` of all.
    pub(super) fn new(max_lane: usize, max_whole: usize) -> Self {
        let lanes = Lanes { lanes: HashMap::new(), level: Duration::ZERO, len: 0, is_closed: false };
        Self { lanes: Mutex::new(lanes), changed: Condvar::new(), max_lane, max_whole }
    }

    /// Adds work of `tenant`, or says why not.
    pub(super) fn push(&self, tenant: &TenantId, work: T) -> Result<(), Full> {
        let mut state = self.lanes();
        if state.is_closed {
            return Err(Full::Closed);
        }
        if state.len >= self.max_whole {
            return Err(Full::Whole);
        }
        let level = state.level;
        let lane = state.lanes.entry(tenant.clone()).or_insert_with(|| Lane { work: VecDeque::new(), had: level });
        if lane.work.len() >= self.max_lane {
            return Err(Full::Lane);
        }
        if lane.work.is_empty() {
            lane.had = lane.had.max(level);
        }
        lane.work.push_back(work);
        state.len += 1;
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// The next work, and whose; waits for it. `None` once the queue is closed and empty.
    pub(super) fn pop(&self) -> Option<(TenantId, T)> {
        let mut state = self.lanes();
        loop {
            let next = state.lanes.iter().filter(|(_, lane)| !lane.work.is_empty()).min_by_key(|(_, lane)| lane.had);
            if let Some((tenant, lane)) = next.map(|(tenant, lane)| (tenant.clone(), lane.had)) {
                state.level = state.level.max(lane);
                let work = state.lanes.get_mut(&tenant).and_then(|lane| lane.work.pop_front())?;
                state.len -= 1;
                return Some((tenant, work));
            }
            if state.is_closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Charges `tenant` for what its work took.
    pub(super) fn charge(&self, tenant: &TenantId, took: Duration) {
        let mut state = self.lanes();
        if let Some(lane) = state.lanes.get_mut(tenant) {
            lane.had += took;
        }
        // A lane without work that is below the level has nothing to remember.
        let level = state.level;
        state.lanes.retain(|_, lane| !lane.work.is_empty() || lane.had > level);
    }

    /// No more work; what waits is done still.
    pub(super) fn close(&self) {
        self.lanes().is_closed = true;
        self.changed.notify_all();
    }

    fn lanes(&self) -> std::sync::MutexGuard<'_, Lanes<T>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tenant(name: &str) -> TenantId {
        name.parse().unwrap()
    }

    /// Runs everything, each piece of work as long as it says; gives whose it was, in order.
    fn order(queue: &Queue<u64>) -> Vec<String> {
        queue.close();
        let mut order = Vec::new();
        while let Some((tenant, took)) = queue.pop() {
            queue.charge(&tenant, Duration::from_millis(took));
            order.push(tenant.to_string());
        }
        order
    }

    #[test]
    fn a_flood_waits_behind_itself() {
        let queue = Queue::new(100, 1000);
        (0..100).for_each(|_| queue.push(&tenant("flood"), 5).unwrap());
        assert_eq!(queue.push(&tenant("flood"), 5), Err(Full::Lane));
        (0..3).for_each(|_| queue.push(&tenant("quiet"), 1).unwrap());
        let order = order(&queue);
        let last = order.iter().rposition(|name| name == "quiet").unwrap();
        assert!(last <= 4, "after {last} others: {order:?}");
    }

    #[test]
    fn time_counts_not_the_number() {
        let queue = Queue::new(100, 1000);
        (0..10).for_each(|_| queue.push(&tenant("slow"), 50).unwrap());
        (0..100).for_each(|_| queue.push(&tenant("fast"), 1).unwrap());
        let order = order(&queue);
        let slow = order.iter().take(104).filter(|name| *name == "slow").count();
        assert!(slow <= 4, "{slow} long ones among the first 104");
    }

    #[test]
    fn nobody_saves_time_up() {
        let queue = Queue::new(100, 1000);
        // One works alone for long; one that comes then is level with it, not ahead by all that time.
        for _ in 0..50 {
            queue.push(&tenant("old"), 10).unwrap();
            let (who, took) = queue.pop().unwrap();
            queue.charge(&who, Duration::from_millis(took));
        }
        (0..20).for_each(|_| queue.push(&tenant("new"), 10).unwrap());
        (0..20).for_each(|_| queue.push(&tenant("old"), 10).unwrap());
        let order = order(&queue);
        let old = order.iter().take(20).filter(|name| *name == "old").count();
        assert!((8..=11).contains(&old), "{old} of the first 20");
    }

    #[test]
    fn a_whole_queue_is_full_and_a_closed_one_takes_nothing() {
        let queue = Queue::new(10, 15);
        (0..10).for_each(|_| queue.push(&tenant("a"), 1).unwrap());
        (0..5).for_each(|_| queue.push(&tenant("b"), 1).unwrap());
        assert_eq!(queue.push(&tenant("c"), 1), Err(Full::Whole));
        assert_eq!(order(&queue).len(), 15);
        assert_eq!(queue.push(&tenant("c"), 1), Err(Full::Closed));
        assert_eq!(queue.lanes().lanes.values().filter(|lane| !lane.work.is_empty()).count(), 0);
    }

    proptest! {
        #[test]
        fn everything_that_was_taken_comes_out_once(pushes in proptest::collection::vec((0u8..4, 1u64..20), 0..60)) {
            let queue = Queue::new(8, 24);
            let taken = pushes.iter().filter(|(who, took)| queue.push(&tenant(&format!("t{who}")), *took).is_ok()).count();
            prop_assert_eq!(order(&queue).len(), taken);
        }
    }
}
