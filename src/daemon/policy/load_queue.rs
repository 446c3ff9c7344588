//! In which order components are loaded. Key type: [`LoadQueue`].
//!
//! To compile one may take a minute, and its owner may send the next as soon as that is done. So an owner has one load under
//! way at a time, and behind it a few that wait: of all owners each has one in the queue, which is served in the order in which
//! they came. Nobody waits for more than one load of each other owner.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as Turn, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::limits::Limits;
use super::load::LoadError;
use crate::model::PolicyScope;

/// Loads of one owner, under way and waiting. Each holds its component in memory.
const MAX_OF_OWNER: usize = 4;
/// Owners with loads under way or waiting: with all of theirs, components and copies of them, some 1.5 GiB at worst.
const MAX_OWNERS: usize = 8;

/// Who loads, and who waits for that.
#[derive(Debug)]
pub(super) struct LoadQueue {
    /// Rank: leaf. Guards the table of owners; turns are waited for outside of it.
    owners: Mutex<HashMap<PolicyScope, Arc<Turn<()>>>>,
    whole: Arc<Semaphore>,
}

/// The right to load, until it is dropped.
#[derive(Debug)]
pub(super) struct LoadTurn {
    _whole: OwnedSemaphorePermit,
    _own: OwnedMutexGuard<()>,
}

impl LoadQueue {
    pub(super) fn new(limits: &Limits) -> Self {
        let whole = Arc::new(Semaphore::new(limits.compilers.max(1)));
        Self { owners: Mutex::default(), whole }
    }

    /// Waits for the turn of `owner`, no longer than `patience`. Who gives up waiting has lost nothing but its place.
    pub(super) async fn take(&self, owner: &PolicyScope, patience: Duration) -> Result<LoadTurn, LoadError> {
        let own = self.join(owner)?;
        let whole = Arc::clone(&self.whole);
        let turn = async {
            let own = own.lock_owned().await;
            Ok::<_, tokio::sync::AcquireError>(LoadTurn { _whole: whole.acquire_owned().await?, _own: own })
        };
        match timeout(patience, turn).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => {
                Err(LoadError::Unavailable(format!("other plugins are still being compiled after {patience:?}")))
            }
        }
    }

    /// Takes a place among the loads of `owner`, which lasts as long as this is held.
    fn join(&self, owner: &PolicyScope) -> Result<Arc<Turn<()>>, LoadError> {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        // Owners without loads are forgotten, so that the table stays as small as its use.
        owners.retain(|_, turn| Arc::strong_count(turn) > 1);
        if owners.len() >= MAX_OWNERS && !owners.contains_key(owner) {
            return Err(LoadError::Unavailable(format!("plugins of {MAX_OWNERS} owners are being loaded")));
        }
        let own = owners.entry(owner.clone()).or_default();
        if Arc::strong_count(own) > MAX_OF_OWNER {
            let reason = format!("{MAX_OF_OWNER} loads of the same owner are under way; load one after the other");
            return Err(LoadError::Unavailable(reason));
        }
        Ok(Arc::clone(own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::Poll;

    const LONG: Duration = Duration::from_secs(60);

    fn queue() -> LoadQueue {
        LoadQueue::new(&Limits::default())
    }

    fn tenant(name: &str) -> PolicyScope {
        PolicyScope::Tenant(name.parse().unwrap())
    }

    /// Whether it is still waiting.
    async fn waits<T>(mut turn: std::pin::Pin<&mut impl Future<Output = T>>) -> bool {
        std::future::poll_fn(|cx| Poll::Ready(turn.as_mut().poll(cx).is_pending())).await
    }

    #[tokio::test]
    async fn another_owner_goes_before_the_next_load_of_the_same() {
        let queue = queue();
        let (greedy, other) = (tenant("greedy"), tenant("other"));
        let first = queue.take(&greedy, LONG).await.unwrap();
        let (mut second, mut third) = (pin!(queue.take(&greedy, LONG)), pin!(queue.take(&greedy, LONG)));
        assert!(waits(second.as_mut()).await && waits(third.as_mut()).await);
        let mut others = pin!(queue.take(&other, LONG));
        assert!(waits(others.as_mut()).await);
        drop(first);
        // The second one had come earlier, and is behind all the same.
        assert!(waits(second.as_mut()).await);
        let turn = others.await.unwrap();
        assert!(waits(second.as_mut()).await);
        drop(turn);
        drop(second.await.unwrap());
        drop(third.await.unwrap());
    }

    #[tokio::test]
    async fn an_owner_has_few_loads_and_nobody_waits_for_ever() {
        let (queue, short) = (queue(), Duration::from_millis(20));
        let turn = queue.take(&tenant("greedy"), short).await.unwrap();
        let waiting: Vec<_> = (1..MAX_OF_OWNER).map(|_| queue.join(&tenant("greedy")).unwrap()).collect();
        let refused = queue.take(&tenant("greedy"), short).await.unwrap_err();
        assert!(refused.to_string().contains("same owner"), "{refused}");
        let late = queue.take(&PolicyScope::Operator, short).await.unwrap_err();
        assert!(late.to_string().contains("still being compiled"), "{late}");
        let others: Vec<_> =
            (1..MAX_OWNERS).map(|number| queue.join(&tenant(&format!("t{number}"))).unwrap()).collect();
        let refused = queue.take(&PolicyScope::Operator, short).await.unwrap_err();
        assert!(refused.to_string().contains("8 owners"), "{refused}");
        drop((turn, waiting, others));
        drop(queue.take(&PolicyScope::Operator, short).await.unwrap());
        assert_eq!(queue.owners.lock().unwrap().len(), 1);
    }
}
