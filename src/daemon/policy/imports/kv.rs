//! The import `kv`: what a plugin remembers about a tenant. Key type: [`Memory`].
//!
//! The store comes with the question and goes back with the answer as keys that were touched and what was written: no
//! call leaves this process. What a plugin may keep is checked here, for its own sake, and again by the daemon.

use std::collections::BTreeSet;

use crate::model::{KvRefusal, KvValue, KvView, KvWrites, MAX_KV_CALLS, is_kv_key};
use crate::wire::policy::KvSpoken;

use super::Call;
use super::bindings::ostler::policy::kv::{Host, Refusal};

/// A store during one call.
#[derive(Debug)]
pub(in super::super) struct Memory {
    view: KvView,
    touched: BTreeSet<String>,
    wrote: KvWrites,
    calls: u32,
}

/// Why a call of the interface ends the plugin's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in super::super) enum NoMemory {
    /// There is none: it does not decide, or was not granted one.
    #[error("kv is there while a decision is made only, and if it is granted")]
    None,
    /// It has called too often.
    #[error("more than {MAX_KV_CALLS} calls of kv")]
    TooManyCalls,
    /// Only some of the store is known, and this is not: the decision's record says no more.
    #[error("the record does not say what the store had under {0:?}")]
    Unknown(String),
}

impl Memory {
    pub(in super::super) fn new(view: KvView) -> Self {
        Self { view, touched: BTreeSet::new(), wrote: KvWrites::new(), calls: 0 }
    }

    /// What was done with it; nothing is written by a call that `is_failed`.
    pub(in super::super) fn into_spoken(self, is_failed: bool) -> KvSpoken {
        let wrote = if is_failed { KvWrites::new() } else { self.wrote };
        KvSpoken { touched: self.touched.into_iter().collect(), wrote }
    }

    /// What `key` is now.
    fn look(&mut self, key: &str) -> Result<Option<&KvValue>, NoMemory> {
        // Nothing is ever kept under such a key.
        if !is_kv_key(key) {
            return Ok(None);
        }
        if !self.touched.contains(key) {
            if self.view.rest.is_some() && !self.view.known.contains_key(key) {
                return Err(NoMemory::Unknown(key.to_owned()));
            }
            self.touched.insert(key.to_owned());
        }
        Ok(self.wrote.get(key).or_else(|| self.view.known.get(key)).and_then(Option::as_ref))
    }

    fn set(&mut self, key: &str, value: Vec<u8>) -> Result<Result<(), KvRefusal>, NoMemory> {
        self.look(key)?;
        let before = self.wrote.insert(key.to_owned(), Some(KvValue(value)));
        let checked = self.view.check(&self.wrote);
        if checked.is_err() {
            match before {
                Some(before) => drop(self.wrote.insert(key.to_owned(), before)),
                None => drop(self.wrote.remove(key)),
            }
        }
        Ok(checked)
    }

    fn delete(&mut self, key: &str) -> Result<bool, NoMemory> {
        let was_there = self.look(key)?.is_some();
        if was_there {
            self.wrote.insert(key.to_owned(), None);
        }
        Ok(was_there)
    }

    fn keys(&mut self) -> Result<Vec<String>, NoMemory> {
        if self.view.rest.is_some() {
            return Err(NoMemory::Unknown("its other keys".into()));
        }
        self.touched.extend(self.view.known.keys().cloned());
        let before = self.view.known.iter().filter(|(key, _)| !self.wrote.contains_key(*key));
        let there = before.chain(&self.wrote).filter(|(_, value)| value.is_some()).map(|(key, _)| key.clone());
        Ok(there.collect::<BTreeSet<_>>().into_iter().collect())
    }
}

impl Call {
    /// The store, for one call more.
    fn memory(&mut self) -> wasmtime::Result<&mut Memory> {
        self.count()?;
        let memory = self.memory.as_mut().ok_or(NoMemory::None)?;
        memory.calls += 1;
        if memory.calls > MAX_KV_CALLS { Err(NoMemory::TooManyCalls.into()) } else { Ok(memory) }
    }
}

impl Host for Call {
    fn get(&mut self, key: String) -> wasmtime::Result<Option<Vec<u8>>> {
        Ok(self.memory()?.look(&key)?.map(|value| value.0.clone()))
    }

    fn set(&mut self, key: String, value: Vec<u8>) -> wasmtime::Result<Result<(), Refusal>> {
        let kept = self.memory()?.set(&key, value)?;
        Ok(kept.map_err(|refusal| match refusal {
            KvRefusal::BadKey => Refusal::BadKey,
            KvRefusal::TooLarge => Refusal::TooLarge,
            KvRefusal::Full => Refusal::Full,
        }))
    }

    fn delete(&mut self, key: String) -> wasmtime::Result<bool> {
        Ok(self.memory()?.delete(&key)?)
    }

    fn keys(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(self.memory()?.keys()?)
    }

    fn moment(&mut self) -> wasmtime::Result<u64> {
        Ok(self.memory()?.view.moment_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{KvRest, KvStore, MAX_KV_KEYS};

    fn memory(entries: &[(&str, &str)]) -> Memory {
        let entries = entries.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        Memory::new(KvStore { moment_s: 0, entries }.view(5))
    }

    fn get(memory: &mut Memory, key: &str) -> Option<String> {
        memory.look(key).unwrap().map(|value| String::from_utf8(value.0.clone()).unwrap())
    }

    #[test]
    fn reads_its_own_writes_and_tells_what_it_touched() {
        let mut memory = memory(&[("a", "1"), ("b", "2"), ("c", "3")]);
        assert_eq!(get(&mut memory, "a").as_deref(), Some("1"));
        memory.set("a", b"4".to_vec()).unwrap().unwrap();
        assert!(memory.delete("b").unwrap() && !memory.delete("b").unwrap() && !memory.delete("new").unwrap());
        assert_eq!((get(&mut memory, "a").as_deref(), get(&mut memory, "b")), (Some("4"), None));
        let spoken = memory.into_spoken(false);
        assert_eq!(spoken.touched, ["a", "b", "new"]);
        assert_eq!(spoken.wrote, [("a".into(), Some("4".into())), ("b".into(), None)].into());
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let mut memory = memory(&[]);
        for at in 0..MAX_KV_KEYS {
            memory.set(&format!("k{at}"), Vec::new()).unwrap().unwrap();
        }
        assert_eq!(memory.set("more", Vec::new()).unwrap(), Err(KvRefusal::Full));
        assert_eq!(memory.set("", Vec::new()).unwrap(), Err(KvRefusal::BadKey));
        assert_eq!(memory.set("k0", vec![0; 5000]).unwrap(), Err(KvRefusal::TooLarge));
        assert_eq!((get(&mut memory, "more"), get(&mut memory, "k0").as_deref()), (None, Some("")));
        assert_eq!(memory.keys().unwrap().len(), MAX_KV_KEYS);
        assert_eq!(memory.into_spoken(true).wrote, KvWrites::new(), "a failed call writes nothing");
    }

    #[test]
    fn what_a_record_does_not_say_is_not_made_up() {
        let mut memory = memory(&[("a", "1"), ("b", "2")]);
        memory.look("a").unwrap();
        memory.look("new").unwrap();
        let known = memory.view.narrowed(&memory.touched);
        assert_eq!(known.rest, Some(KvRest { keys: 1, bytes: 2 }));
        let mut again = Memory::new(known);
        assert_eq!((get(&mut again, "a").as_deref(), get(&mut again, "new")), (Some("1"), None));
        assert_eq!(again.look("b"), Err(NoMemory::Unknown("b".into())));
        assert!(again.keys().is_err());
        // A listing puts all of it on record.
        memory.keys().unwrap();
        assert_eq!(memory.view.narrowed(&memory.touched).rest, None);
    }
}
