//! User ids of vmm processes: each VM has one of its own. Key types: [`UserPool`], [`UserLease`].

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// First user id unless the daemon is told another: far above those of people, services and usual containers.
pub const FIRST_USER: u32 = 0x4f00_0000;
/// User ids in the pool.
pub const USERS: u32 = 1 << 16;

/// Every user id of the pool is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {USERS} user ids from {first} on are in use")]
pub struct UsersExhausted {
    first: u32,
}

/// Which user ids are taken. A handle: clones share the pool.
#[derive(Debug, Clone)]
pub struct UserPool {
    first: u32,
    /// Rank: leaf. Guards the taken ids; held for a lookup only.
    taken: Arc<Mutex<BTreeSet<u32>>>,
}

impl UserPool {
    /// The pool from `first` on, of which `taken` is in use already (and may lie outside, after a change of
    /// configuration).
    pub fn new(first: u32, taken: impl IntoIterator<Item = u32>) -> Self {
        Self { first, taken: Arc::new(Mutex::new(taken.into_iter().collect())) }
    }

    /// Reserves the lowest free id. It is free again when the lease is dropped uncommitted.
    pub fn lease(&self) -> Result<UserLease, UsersExhausted> {
        let mut taken = self.taken();
        let ids = self.first..self.first.saturating_add(USERS);
        let Some(id) = ids.into_iter().find(|id| *id != 0 && !taken.contains(id)) else {
            return Err(UsersExhausted { first: self.first });
        };
        taken.insert(id);
        Ok(UserLease { pool: self.clone(), id: Some(id) })
    }

    /// Gives an id back: nothing runs as it any more.
    pub fn release(&self, id: u32) {
        self.taken().remove(&id);
    }

    fn taken(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        // Every holder leaves the set whole, whatever happens.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An id reserved for a VM that is about to be registered.
#[derive(Debug)]
pub struct UserLease {
    pool: UserPool,
    id: Option<u32>,
}

impl UserLease {
    /// The id.
    pub fn id(&self) -> u32 {
        self.id.unwrap_or_default()
    }

    /// Keeps it: the VM's record holds it from here on.
    pub fn commit(mut self) {
        self.id = None;
    }
}

impl Drop for UserLease {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.pool.release(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_lowest_free_id_and_never_one_twice() {
        let pool = UserPool::new(1000, [1000, 1002, 7]);
        let first = pool.lease().unwrap();
        assert_eq!(first.id(), 1001);
        let second = pool.lease().unwrap();
        assert_eq!(second.id(), 1003);
        drop(first);
        let again = pool.lease().unwrap();
        assert_eq!(again.id(), 1001);
        again.commit();
        assert_eq!(pool.lease().unwrap().id(), 1004);
        pool.release(1001);
        assert_eq!(pool.lease().unwrap().id(), 1001);
    }

    #[test]
    fn never_gives_root_and_says_when_none_is_left() {
        assert_eq!(UserPool::new(0, []).lease().unwrap().id(), 1);
        let full = UserPool::new(10, 10..10 + USERS);
        assert!(full.lease().unwrap_err().to_string().contains("from 10 on"));
    }
}
