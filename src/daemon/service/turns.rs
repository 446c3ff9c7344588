//! One at a time for each key. Key type: [`Turns`].

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

/// Lets one go on at a time for each key, in the order in which they came.
#[derive(Debug)]
pub(super) struct Turns<K> {
    /// Rank: leaf. Guards the table; the turns themselves are waited for outside of it.
    turns: Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { turns: Mutex::default() }
    }
}

impl<K: Eq + Hash + Clone> Turns<K> {
    /// Waits for `key`'s turn, which lasts as long as the guard.
    pub(super) async fn take(&self, key: &K) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            // Keys that nobody is waiting for are forgotten, so that the table stays as small as its use.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(key.clone()).or_default())
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TenantId;

    #[tokio::test]
    async fn a_tenant_waits_for_its_own_turn_only() {
        let turns = Turns::default();
        let (a, b): (TenantId, TenantId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let first = turns.take(&a).await;
        let _other = turns.take(&b).await;
        let second = turns.take(&a);
        tokio::pin!(second);
        assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(second.as_mut().poll(cx).is_pending())).await);
        drop(first);
        drop(second.await);
        let _ = turns.take(&a).await;
        assert!(turns.turns.lock().unwrap().len() <= 2);
    }
}
