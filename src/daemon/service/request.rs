//! Changes that a client may repeat, make conditional, or only try. Key types: [`Terms`], [`Requests`].
//!
//! ```text
//!   Node::change ── turn of the request id ── known? ──DONE──▶ the first answer
//!                                               │ BEGUN (a daemon before this one was cut off): Terms::left
//!                                               ▼
//!                     the use case ── begin(before) ── effect ──▶ success is remembered, failure forgotten
//! ```
//!
//! A use case whose effect is one write to the store puts the answer into that write ([`Terms::success`]); one that acts
//! on the host writes what it is about to change first ([`Node::begin`]), and after a crash compares.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::turns::Turns;
use super::{Node, ServiceError};
use crate::daemon::crash::{self, Point};
use crate::daemon::operation::{OperationEnd, OperationName, Operations, Owner, Subject, Ticket, Underway};
use crate::daemon::record::{Before, BegunWork, Progress, RequestKey, RequestRecord};
use crate::daemon::store::Store;
use crate::model::RequestId;

/// How long a request is remembered.
const WINDOW: Duration = Duration::from_secs(24 * 60 * 60);
/// Requests that are remembered of one caller; then its oldest go first.
const MAX_PER_CALLER: usize = 1024;
/// Requests that are remembered at all; then the oldest of whoever has most go first.
const MAX_REQUESTS: usize = 8192;

/// What a client asks of a change beside the change itself; `T` is what the use case gives.
#[derive(Debug)]
pub struct Terms<T> {
    /// The resource's etag that the client has seen; `None`: whatever it is now.
    pub etag: Option<String>,
    /// Check everything, change nothing.
    pub validate_only: bool,
    /// To be remembered under this.
    pub claim: Option<Claim<T>>,
    /// Becomes an operation once the work begins; `None`: nobody is told of it.
    pub ticket: Option<Ticket>,
}

/// A use case's result to the bytes of its response.
pub type Encode<T> = Arc<dyn Fn(&T) -> Vec<u8> + Send + Sync>;

/// A request that is to be remembered once it succeeds.
pub struct Claim<T> {
    /// Whose, and which.
    pub key: RequestKey,
    /// SHA-256 of method and message, without the id.
    pub fingerprint: [u8; 32],
    /// The response, encoded.
    pub encode: Encode<T>,
    /// Of an attempt that a daemon before this one did not finish.
    pub left: Option<Before>,
}

impl<T> Clone for Terms<T> {
    fn clone(&self) -> Self {
        let Self { etag, validate_only, claim, ticket } = self;
        Self { etag: etag.clone(), validate_only: *validate_only, claim: claim.clone(), ticket: ticket.clone() }
    }
}

impl<T> Clone for Claim<T> {
    fn clone(&self) -> Self {
        Self {
            key: self.key.clone(),
            fingerprint: self.fingerprint,
            encode: Arc::clone(&self.encode),
            left: self.left.clone(),
        }
    }
}

impl<T> std::fmt::Debug for Claim<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claim").field("key", &self.key).field("left", &self.left).finish_non_exhaustive()
    }
}

/// What came of a change.
#[derive(Debug)]
pub enum Answer<T> {
    /// It was done now.
    Fresh(T),
    /// It had been done before: the response of then, encoded.
    Repeated(Vec<u8>),
}

impl<T> Terms<T> {
    /// Refuses if the client has seen another version than `now`; `what` goes into the error.
    pub(super) fn require_etag(&self, what: &str, now: impl FnOnce() -> Option<String>) -> Result<(), ServiceError> {
        match &self.etag {
            Some(seen) if now().as_ref() != Some(seen) => Err(ServiceError::Changed { what: what.to_owned() }),
            Some(_) | None => Ok(()),
        }
    }

    /// What is to be remembered if the use case comes to `value`: for the same write as its effect.
    pub(super) fn success(&self, value: &T) -> Option<RequestRecord> {
        let claim = self.claim.as_ref()?;
        Some(claim.record(Progress::Done { answer: (claim.encode)(value) }, None))
    }

    /// What an attempt of this request that was cut off was about, if there was one.
    pub(super) fn left(&self) -> Option<&Before> {
        self.claim.as_ref()?.left.as_ref()
    }
}

impl<T> Claim<T> {
    fn record(&self, progress: Progress, work: Option<BegunWork>) -> RequestRecord {
        let Self { key, fingerprint, .. } = self;
        RequestRecord { key: key.clone(), fingerprint: *fingerprint, begun: SystemTime::now(), progress, work }
    }
}

impl Node {
    /// Does `work` under `terms`, unless it has been done.
    pub async fn change<T, F>(
        &self,
        mut terms: Terms<T>,
        work: impl FnOnce(Terms<T>) -> F,
    ) -> Result<Answer<T>, ServiceError>
    where
        F: Future<Output = Result<T, ServiceError>>,
    {
        let Some(claim) = terms.claim.take().filter(|_| !terms.validate_only) else {
            return work(terms).await.map(Answer::Fresh);
        };
        let _turn = self.requests.turns.take(&claim.key).await;
        // Whoever called off what this waited for has called this off too.
        let called_off = terms.ticket.as_ref().and_then(|ticket| self.operations.called_off_meanwhile(ticket));
        if let Some(failure) = called_off {
            return Err(ServiceError::CalledOff(failure.message));
        }
        let left = match self.requests.find(&claim.key) {
            None => None,
            Some(known) if known.fingerprint != claim.fingerprint => return Err(ServiceError::RequestReused),
            Some(RequestRecord { progress: Progress::Done { answer }, .. }) => return Ok(Answer::Repeated(answer)),
            Some(RequestRecord { progress: Progress::Begun(before), .. }) => Some(before),
        };
        let terms = Terms { claim: Some(Claim { left, ..claim }), ..terms };
        let outcome = work(terms.clone()).await;
        match &outcome {
            Ok(value) => {
                self.requests.succeeded(&terms, value).await;
                crash::reach(Point::RequestAnswered);
            }
            // Whether it happened is not known: the next attempt finds out.
            Err(ServiceError::Ending | ServiceError::Store(_)) => {}
            Err(_failed) => self.requests.forget(terms.claim.as_ref().map(|claim| &claim.key)).await,
        }
        outcome.map(Answer::Fresh)
    }

    /// Remembers that the request's effect is about to happen to what `before` describes, and lists the operation, which
    /// is `owner`'s. The first thing that a use case with effects on the host does once all its checks have passed.
    pub(super) async fn begin<T>(
        &self,
        terms: &Terms<T>,
        owner: Owner,
        before: Before,
    ) -> Result<Underway, ServiceError> {
        let (work, underway) = match &terms.ticket {
            Some(ticket) => {
                let (OperationName { owner, id }, underway) = self.operations.begin(ticket, owner);
                let Subject { method, target, .. } = ticket.subject().clone();
                (Some(BegunWork { owner, operation: id, method, target }), underway)
            }
            None => (None, Underway::unseen()),
        };
        if let Some(claim) = &terms.claim {
            self.requests.put(claim.record(Progress::Begun(before), work)).await?;
            crash::reach(Point::RequestBegun);
        }
        Ok(underway)
    }

    /// The same for work of the host whose repetition finds out by itself what has happened: nothing is remembered.
    pub(super) fn begin_on_host<T>(&self, terms: &Terms<T>) -> Underway {
        terms.ticket.as_ref().map_or_else(Underway::unseen, |ticket| self.operations.begin(ticket, None).1)
    }
}

/// The requests that are remembered: all of the store's, in memory.
#[derive(Debug)]
pub(super) struct Requests {
    store: Store,
    /// Rank: leaf. Held for a lookup or an update only.
    known: Mutex<Known>,
    /// One at a time under one id.
    turns: Turns<RequestKey>,
}

#[derive(Debug, Default)]
struct Known {
    by_caller: HashMap<String, Remembered>,
    len: usize,
}

#[derive(Debug, Default)]
struct Remembered {
    by_id: HashMap<RequestId, RequestRecord>,
    /// Oldest first; each id of `by_id` once.
    order: VecDeque<(SystemTime, RequestId)>,
}

impl Requests {
    pub(super) fn new(store: Store, mut found: Vec<RequestRecord>) -> Self {
        found.sort_by_key(|request| request.begun);
        let mut known = Known::default();
        found.into_iter().for_each(|request| known.insert(request));
        Self { store, known: Mutex::new(known), turns: Turns::default() }
    }

    /// Lists what a daemon before this one began and did not answer.
    pub(super) fn list_cut_off(&self, operations: &Operations) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for request in known.by_caller.values().flat_map(|remembered| remembered.by_id.values()) {
            let Some(BegunWork { owner, operation, method, target }) = request.work.clone() else { continue };
            let subject = Subject {
                method,
                target,
                principal: request.key.caller.clone(),
                call: None,
                request: Some(request.key.id),
                fingerprint: request.fingerprint,
            };
            let name = OperationName { owner, id: operation };
            operations.restore(&name, subject, request.begun, OperationEnd::Interrupted);
        }
    }

    fn find(&self, key: &RequestKey) -> Option<RequestRecord> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.by_caller.get(&key.caller)?.by_id.get(&key.id)?;
        let is_expired = found.begun.elapsed().is_ok_and(|age| age > WINDOW);
        (!is_expired).then(|| found.clone())
    }

    async fn put(&self, request: RequestRecord) -> Result<(), ServiceError> {
        self.make_room(&request.key).await;
        self.store.put_request(request.clone()).await?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(request);
        Ok(())
    }

    /// A request that is in the store already, by the same write as its effect.
    pub(super) async fn written(&self, request: Option<RequestRecord>) {
        let Some(request) = request else { return };
        self.make_room(&request.key).await;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(request);
    }

    /// After the effect, unless the answer was part of it.
    async fn succeeded<T>(&self, terms: &Terms<T>, value: &T) {
        let Some(claim) = &terms.claim else { return };
        if matches!(self.find(&claim.key), Some(RequestRecord { progress: Progress::Done { .. }, .. })) {
            return;
        }
        let Some(request) = terms.success(value) else { return };
        let key = request.key.clone();
        if let Err(error) = self.put(request).await {
            tracing::warn!(%error, caller = key.caller, id = %key.id, "done, but not remembered as answered");
        }
    }

    async fn forget(&self, key: Option<&RequestKey>) {
        let Some(key) = key.filter(|key| self.find(key).is_some()) else { return };
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        // One that stays in the store is compared with its resource when it is repeated.
        let _ = self.store.forget_request(key.clone()).await;
    }

    async fn make_room(&self, key: &RequestKey) {
        let surplus = self.known.lock().unwrap_or_else(PoisonError::into_inner).surplus(key, SystemTime::now());
        for key in surplus {
            let _ = self.store.forget_request(key).await;
        }
    }
}

impl Known {
    fn insert(&mut self, request: RequestRecord) {
        let RequestKey { caller, id } = request.key.clone();
        let remembered = self.by_caller.entry(caller).or_default();
        let begun = request.begun;
        if remembered.by_id.insert(id, request).is_none() {
            remembered.order.push_back((begun, id));
            self.len += 1;
        }
    }

    fn remove(&mut self, key: &RequestKey) {
        let Some(remembered) = self.by_caller.get_mut(&key.caller) else { return };
        if remembered.by_id.remove(&key.id).is_some() {
            remembered.order.retain(|(_, id)| *id != key.id);
            self.len -= 1;
        }
        if remembered.by_id.is_empty() {
            self.by_caller.remove(&key.caller);
        }
    }

    /// Takes out what must go for `key` to be inserted.
    fn surplus(&mut self, key: &RequestKey, now: SystemTime) -> Vec<RequestKey> {
        let mut surplus = Vec::new();
        if self.by_caller.get(&key.caller).is_some_and(|remembered| remembered.by_id.contains_key(&key.id)) {
            return surplus;
        }
        while let Some(oldest) = self.oldest_of(&key.caller) {
            let len = self.by_caller.get(&key.caller).map_or(0, |remembered| remembered.by_id.len());
            let is_expired = now.duration_since(oldest.0).is_ok_and(|age| age > WINDOW);
            if !is_expired && len < MAX_PER_CALLER {
                break;
            }
            self.take_out(oldest.1, &mut surplus);
        }
        while self.len >= MAX_REQUESTS {
            let most = self.by_caller.iter().max_by_key(|(_, remembered)| remembered.by_id.len());
            let Some(oldest) = most.map(|(caller, _)| caller.clone()).and_then(|caller| self.oldest_of(&caller)) else {
                break;
            };
            self.take_out(oldest.1, &mut surplus);
        }
        surplus
    }

    fn oldest_of(&self, caller: &str) -> Option<(SystemTime, RequestKey)> {
        let (begun, id) = self.by_caller.get(caller)?.order.front()?;
        Some((*begun, RequestKey { caller: caller.to_owned(), id: *id }))
    }

    fn take_out(&mut self, key: RequestKey, surplus: &mut Vec<RequestKey>) {
        self.remove(&key);
        surplus.push(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(caller: &str, number: usize) -> RequestKey {
        RequestKey { caller: caller.into(), id: format!("{number:08x}-e89b-42d3-a456-426614174000").parse().unwrap() }
    }

    fn request(caller: &str, number: usize, begun: SystemTime) -> RequestRecord {
        let progress = Progress::Done { answer: vec![] };
        RequestRecord { key: key(caller, number), fingerprint: [0; 32], begun, progress, work: None }
    }

    /// Inserts after making room, as `Requests::put` does; gives what had to go.
    fn put(known: &mut Known, request: RequestRecord) -> Vec<RequestKey> {
        let gone = known.surplus(&request.key, request.begun);
        known.insert(request);
        gone
    }

    #[test]
    fn one_caller_loses_its_own_oldest_and_nobody_elses() {
        let mut known = Known::default();
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        put(&mut known, request("b", 0, at(0)));
        for number in 0..MAX_PER_CALLER {
            assert_eq!(put(&mut known, request("a", number, at(1))), []);
        }
        assert_eq!(put(&mut known, request("a", MAX_PER_CALLER, at(2))), [key("a", 0)]);
        // The same id again takes no further place.
        assert_eq!(put(&mut known, request("a", MAX_PER_CALLER, at(3))), []);
        assert_eq!(known.len, MAX_PER_CALLER + 1);
        let day = WINDOW + Duration::from_secs(10);
        assert_eq!(put(&mut known, request("a", 9999, SystemTime::UNIX_EPOCH + day)).len(), MAX_PER_CALLER);
        assert!(known.by_caller["b"].by_id.contains_key(&key("b", 0).id));
    }

    #[test]
    fn all_together_are_bounded_and_whoever_has_most_gives_way() {
        let mut known = Known::default();
        let now = SystemTime::now();
        for caller in 0..=MAX_REQUESTS / MAX_PER_CALLER {
            for number in 0..MAX_PER_CALLER {
                put(&mut known, request(&format!("c{caller}"), number, now));
                assert!(known.len <= MAX_REQUESTS);
            }
        }
        put(&mut known, request("small", 0, now));
        assert!(known.by_caller.contains_key("small"));
        let count: usize = known.by_caller.values().map(|remembered| remembered.by_id.len()).sum();
        assert_eq!(count, known.len);
    }
}
