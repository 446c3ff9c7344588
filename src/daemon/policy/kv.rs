//! What plugins remember, on the daemon's side: whose turn it is, what goes with a question, what of an answer is kept.
//! Key types: [`KvShelf`], [`KvTurn`], [`Memories`].
//!
//! ```text
//!   turn of the tenant ─▶ stores as they are ─▶ questions ─▶ answers, checked ─▶ record and changes, one transaction
//!         └──────────────────────── held until that is written ────────────────────────────────┘
//! ```
//!
//! One after the other, so that no decision is made on what another one is about to change: none is lost, none is made
//! twice. Rejected: deciding at once and again where a store has changed meanwhile. A plugin that counts writes at each
//! decision, so that of many at once most would be made again and again. Who has no plugin that remembers takes no turn.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

use crate::model::{
    Grant, KvChange, KvPlace, KvStore, KvUse, KvView, KvWrites, MAX_KV_CALLS, MAX_KV_KEYS, Opinion, PolicyFault,
    TenantId, is_kv_key,
};
use crate::wire::policy::KvSpoken;

use super::limits::Limits;
use super::plugin::Bound;
use super::view::Trail;

/// Where stores are kept.
pub trait KvShelf: fmt::Debug + Send + Sync {
    /// What is kept there, all changes that are on disk included. Does not block.
    fn read(&self, place: &KvPlace) -> Arc<KvStore>;
}

/// While it is held, no decision of its tenant begins that reads a store.
#[derive(Debug)]
pub struct KvTurn(#[expect(dead_code, reason = "held")] OwnedMutexGuard<()>);

/// What a decision leaves in stores, once it is on record.
#[derive(Debug, Default)]
pub struct Remembered {
    /// To be written with the record.
    pub changes: Vec<KvChange>,
    /// To be held until that is done.
    pub turn: Option<KvTurn>,
}

/// What each of a chain may read; empty if nobody remembers.
pub(super) type Stores = Arc<[Option<KvView>]>;

/// Stores and turns.
pub(super) struct Memories {
    shelf: Option<Arc<dyn KvShelf>>,
    /// Rank: leaf. Guards the table; the turns themselves are waited for outside of it.
    turns: Mutex<HashMap<TenantId, Arc<tokio::sync::Mutex<()>>>>,
    max_waiting: usize,
    patience: Duration,
}

impl Memories {
    /// Without a shelf every store is empty, and stays so.
    pub(super) fn new(shelf: Option<Arc<dyn KvShelf>>, limits: &Limits) -> Self {
        Self { shelf, turns: Mutex::default(), max_waiting: limits.queue_depth, patience: limits.patience }
    }

    /// Waits for the tenant's turn, if somebody in the chain remembers.
    pub(super) async fn turn_for(&self, chain: &[Bound], tenant: &TenantId) -> Result<Option<KvTurn>, PolicyFault> {
        if chain.iter().any(remembers) { self.turn(tenant).await.map(Some) } else { Ok(None) }
    }

    /// Waits for the tenant's turn.
    pub(super) async fn turn(&self, tenant: &TenantId) -> Result<KvTurn, PolicyFault> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody waits for are forgotten, so that the table stays as small as its use.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            let turn = turns.entry(tenant.clone()).or_default();
            // One is the table's, one has the turn.
            if Arc::strong_count(turn) >= self.max_waiting + 2 {
                return Err(PolicyFault::Unavailable("too many decisions of this tenant are waiting".into()));
            }
            Arc::clone(turn)
        };
        match timeout(self.patience, turn.lock_owned()).await {
            Ok(guard) => Ok(KvTurn(guard)),
            Err(_) => Err(PolicyFault::Unavailable(format!("decision waited longer than {:?}", self.patience))),
        }
    }

    /// What each of the chain may read now.
    pub(super) fn stores(&self, chain: &[Bound], tenant: &TenantId) -> Stores {
        if !chain.iter().any(remembers) {
            return Stores::default();
        }
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let view = |bound: &Bound| match &self.shelf {
            Some(shelf) => shelf.read(&place(bound, tenant)).view(now_s),
            None => KvStore::default().view(now_s),
        };
        chain.iter().map(|bound| remembers(bound).then(|| view(bound))).collect()
    }
}

fn remembers(bound: &Bound) -> bool {
    bound.plugin.wants().contains(&Grant::Kv)
}

fn place(bound: &Bound, tenant: &TenantId) -> KvPlace {
    KvPlace { scope: bound.scope.clone(), plugin: bound.name.clone(), tenant: tenant.clone() }
}

/// An answer with what its plugin did with the store of which it was given `view`, both checked: what breaks a limit is no
/// answer, and what failed has written nothing.
pub(super) fn heard<V>(
    view: Option<&KvView>,
    said: Result<V, PolicyFault>,
    spoken: Option<KvSpoken>,
) -> (Result<V, PolicyFault>, Option<KvUse>) {
    let bad = |why: String| Err(PolicyFault::BadAnswer(why));
    let (view, KvSpoken { touched, wrote }) = match (view, spoken) {
        (Some(view), spoken) => (view, spoken.unwrap_or_default()),
        (None, None) => return (said, None),
        (None, Some(_)) => return (bad("it wrote where it has no store".into()), None),
    };
    let most = MAX_KV_KEYS + usize::try_from(MAX_KV_CALLS).unwrap_or(usize::MAX);
    if touched.len() > most || wrote.len() > most || !touched.iter().all(|key| is_kv_key(key)) {
        let read = view.narrowed(&BTreeSet::new());
        return (bad("it touched what no store has".into()), Some(KvUse { read, wrote: KvWrites::new() }));
    }
    let mut keys: BTreeSet<String> = touched.into_iter().collect();
    let said = match view.check(&wrote) {
        Ok(()) => said,
        Err(refusal) => bad(format!("what it wrote cannot be kept: {refusal}")),
    };
    let wrote = if said.is_ok() { wrote } else { KvWrites::new() };
    keys.extend(wrote.keys().cloned());
    (said, Some(KvUse { read: view.narrowed(&keys), wrote }))
}

/// What is to be kept of what those who decided wrote.
pub(super) fn changes<V>(
    chain: &[Bound],
    tenant: &TenantId,
    opinions: &[Opinion<V>],
    trails: &[Trail],
) -> Vec<KvChange> {
    let asked = chain.iter().zip(opinions).zip(trails);
    let wrote = asked.filter_map(|((bound, opinion), trail)| {
        let KvUse { read, wrote } = trail.kv.as_ref().filter(|_| opinion.verdict.is_ok())?;
        let change = KvChange { place: place(bound, tenant), moment_s: read.moment_s, wrote: wrote.clone() };
        (!wrote.is_empty()).then_some(change)
    });
    wrote.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MAX_KV_VALUE_BYTES;

    fn view() -> KvView {
        KvStore { moment_s: 1, entries: [("a".into(), "1".into()), ("b".into(), "2".into())].into() }.view(9)
    }

    fn spoken(touched: &[&str], wrote: KvWrites) -> Option<KvSpoken> {
        Some(KvSpoken { touched: touched.iter().map(|key| (*key).to_owned()).collect(), wrote })
    }

    #[test]
    fn what_a_lying_host_claims_is_no_answer_and_keeps_nothing() {
        let wrote = |key: &str, len: usize| [(key.to_owned(), Some(crate::model::KvValue(vec![0; len])))].into();
        let (said, kv) = heard(None, Ok(()), spoken(&[], wrote("a", 1)));
        assert!(matches!(said, Err(PolicyFault::BadAnswer(_))) && kv.is_none());
        for lie in [
            spoken(&[], wrote("a", MAX_KV_VALUE_BYTES + 1)),
            spoken(&[], wrote("", 1)),
            spoken(&["a\n"], KvWrites::new()),
            spoken(&vec!["a"; 1000], KvWrites::new()),
            spoken(&[], (0..65).map(|at| (format!("k{at}"), Some("".into()))).collect()),
        ] {
            let (said, kv) = heard(Some(&view()), Ok(()), lie.clone());
            assert!(matches!(said, Err(PolicyFault::BadAnswer(_))), "{lie:?}");
            assert_eq!(kv.unwrap().wrote, KvWrites::new(), "{lie:?}");
        }
    }

    #[test]
    fn the_record_has_what_was_touched_and_written_and_no_more() {
        let wrote: KvWrites = [("new".to_owned(), Some("3".into()))].into();
        let (said, kv) = heard(Some(&view()), Ok(()), spoken(&["a"], wrote.clone()));
        let kv = kv.unwrap();
        assert_eq!((said, &kv.wrote), (Ok(()), &wrote));
        assert_eq!(kv.read.known, [("a".to_owned(), Some("1".into())), ("new".to_owned(), None)].into());
        assert_eq!((kv.read.moment_s, kv.read.rest.unwrap().keys), (9, 1));
        // What failed is answered from the same again, and has written nothing.
        let trap = || Err::<(), _>(PolicyFault::Trap("t".into()));
        let (said, kv) = heard(Some(&view()), trap(), spoken(&["a"], wrote));
        assert_eq!((said, kv.unwrap().wrote), (trap(), KvWrites::new()));
    }

    #[tokio::test]
    async fn one_tenant_waits_for_its_own_turn_and_not_for_ever() {
        let limits = Limits { queue_depth: 2, patience: Duration::from_millis(10), ..Limits::default() };
        let memories = Arc::new(Memories::new(None, &limits));
        let (acme, globex): (TenantId, TenantId) = ("acme".parse().unwrap(), "globex".parse().unwrap());
        let held = memories.turn(&acme).await.unwrap();
        drop(memories.turn(&globex).await.unwrap());
        let waits = memories.turn(&acme).await.unwrap_err();
        assert!(matches!(&waits, PolicyFault::Unavailable(why) if why.contains("10ms")), "{waits}");
        let (first, second, third) = tokio::join!(memories.turn(&acme), memories.turn(&acme), memories.turn(&acme));
        assert!(first.is_err() && second.is_err());
        assert!(third.unwrap_err().to_string().contains("too many"));
        drop(held);
        memories.turn(&acme).await.unwrap();
    }
}
