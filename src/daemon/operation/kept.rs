//! Which operations are on the list: all that are under way, and the last that ended of each owner. Key type: [`Kept`].

use std::collections::BTreeMap;

use super::{OperationName, Owner, Underway};

/// Operations that have ended and are still listed, of each tenant, and of the host.
const MAX_ENDED: usize = 256;

/// Operations by owner and id; ids grow with time.
#[derive(Debug)]
pub(super) struct Kept<T> {
    by_owner: BTreeMap<Owner, BTreeMap<String, (Underway, T)>>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { by_owner: BTreeMap::new() }
    }
}

impl<T: Clone> Kept<T> {
    /// Puts one on the list. Those of the same owner that ended, and for which there is no room, leave it: the oldest first.
    pub(super) fn insert(&mut self, name: &OperationName, underway: Underway, about: T) {
        let own = self.by_owner.entry(name.owner.clone()).or_default();
        own.insert(name.id.clone(), (underway, about));
        let ended: Vec<_> = own.iter().filter(|(_, (work, _))| work.has_ended()).map(|(id, _)| id.clone()).collect();
        let surplus = ended.len().saturating_sub(MAX_ENDED);
        for id in ended.iter().take(surplus) {
            own.remove(id);
        }
    }

    pub(super) fn get(&self, name: &OperationName) -> Option<(Underway, T)> {
        self.by_owner.get(&name.owner)?.get(&name.id).cloned()
    }

    /// Those of the owners that `is_asked_for` says, by owner, then id.
    pub(super) fn of(&self, is_asked_for: impl Fn(&Owner) -> bool) -> Vec<(OperationName, Underway, T)> {
        let own = self.by_owner.iter().filter(|(owner, _)| is_asked_for(owner));
        let named = own.flat_map(|(owner, own)| {
            own.iter().map(|(id, (work, about))| {
                (OperationName { owner: owner.clone(), id: id.clone() }, work.clone(), about.clone())
            })
        });
        named.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::OperationEnd;
    use super::*;

    fn name(owner: &str, number: usize) -> OperationName {
        OperationName { owner: Some(owner.parse().unwrap()), id: format!("{number:08}") }
    }

    #[test]
    fn an_owner_s_oldest_that_ended_give_way_and_nobody_else_s() {
        let mut kept = Kept::default();
        let running = Underway::begun();
        kept.insert(&name("acme", 0), running.clone(), ());
        kept.insert(&name("globex", 0), Underway::ended(std::time::SystemTime::now(), OperationEnd::Succeeded), ());
        for number in 1..MAX_ENDED + 10 {
            let work = Underway::begun();
            kept.insert(&name("acme", number), work.clone(), ());
            work.end(OperationEnd::Succeeded);
        }
        let ids: Vec<_> =
            kept.of(|owner| *owner == name("acme", 0).owner).into_iter().map(|(name, ..)| name.id).collect();
        // The last one ended after it was listed, and the running one is not counted.
        assert_eq!(ids.len(), MAX_ENDED + 2);
        assert_eq!((ids[0].as_str(), ids[1].as_str()), ("00000000", "00000009"));
        assert!(kept.get(&name("globex", 0)).is_some());
        assert!(kept.get(&name("acme", 1)).is_none() && kept.get(&name("acme", 0)).is_some());
    }
}
