//! What a plugin remembers: a small store for each tenant, under the name that the plugin is bound as. Key types:
//! [`KvStore`], [`KvView`], [`KvUse`].
//!
//! ```text
//!   KvStore ──whole──▶ KvView ──question──▶ plugin ──▶ keys that it touched, KvWrites
//!      ▲                 └──narrowed to the keys touched──▶ KvUse, on record: enough to answer the same again
//!      └── KvChange, in one transaction with the decision's record ◀── checked, if its answer counted
//! ```
//!
//! The limits are part of the contract in `wit/kv.wit`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{PolicyScope, TenantId};

/// Keys of one store.
pub const MAX_KV_KEYS: usize = 64;
/// Longest key, in bytes.
pub const MAX_KV_KEY_BYTES: usize = 64;
/// Longest value, in bytes.
pub const MAX_KV_VALUE_BYTES: usize = 4096;
/// Keys and values of one store together, in bytes: it goes with each question, and may stand in each record.
pub const MAX_KV_BYTES: usize = 16 << 10;
/// Calls of the interface in one call of the plugin.
pub const MAX_KV_CALLS: u32 = 256;

/// Which store: whose plugin, under which name, remembers something about whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KvPlace {
    /// The plugin's chain.
    pub scope: PolicyScope,
    /// Its name there, whichever version is bound.
    pub plugin: String,
    /// About whose VMs it was asked.
    pub tenant: TenantId,
}

/// A value: any bytes. As JSON a text if it is one, else `{"hex": "00ff"}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct KvValue(pub Vec<u8>);

/// A store as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KvStore {
    /// The moment of the last decision that wrote, in seconds since 1970.
    pub moment_s: u64,
    /// By key.
    pub entries: BTreeMap<String, KvValue>,
}

/// What of a store a plugin may read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvView {
    /// The decision's moment, in seconds since 1970.
    #[serde(default)]
    pub moment_s: u64,
    /// What each of these keys was at the decision's start; null: not there.
    #[serde(default)]
    pub known: BTreeMap<String, Option<KvValue>>,
    /// What else was there. Null: nothing.
    #[serde(default)]
    pub rest: Option<KvRest>,
}

/// Entries that nobody looked at: enough of them to say whether a store is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvRest {
    /// Their number.
    pub keys: usize,
    /// Their keys and values together.
    pub bytes: usize,
}

/// What a plugin wrote, by key; null: deleted.
pub type KvWrites = BTreeMap<String, Option<KvValue>>;

/// A plugin's use of its store in one decision, on record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvUse {
    /// What it could read: the keys that it touched.
    pub read: KvView,
    /// What it wrote.
    pub wrote: KvWrites,
}

/// What a decision changes in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvChange {
    /// Which.
    pub place: KvPlace,
    /// The decision's moment, in seconds since 1970.
    pub moment_s: u64,
    /// Its writes.
    pub wrote: KvWrites,
}

/// Why a value cannot be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KvRefusal {
    /// The key.
    #[error("a key has 1 to {MAX_KV_KEY_BYTES} bytes without control characters")]
    BadKey,
    /// The value.
    #[error("a value has at most {MAX_KV_VALUE_BYTES} bytes")]
    TooLarge,
    /// The store.
    #[error("a store has at most {MAX_KV_KEYS} keys, and {MAX_KV_BYTES} bytes of keys and values")]
    Full,
}

impl KvStore {
    /// All of it, at `now_s`. Moments never go back, whatever the clock does.
    pub fn view(&self, now_s: u64) -> KvView {
        let known = self.entries.iter().map(|(key, value)| (key.clone(), Some(value.clone())));
        KvView { moment_s: now_s.max(self.moment_s), known: known.collect(), rest: None }
    }

    /// Takes over what a decision wrote.
    pub fn apply(&mut self, change: &KvChange) {
        self.moment_s = self.moment_s.max(change.moment_s);
        for (key, value) in &change.wrote {
            match value {
                Some(value) => drop(self.entries.insert(key.clone(), value.clone())),
                None => drop(self.entries.remove(key)),
            }
        }
    }

    /// Keys and values together, in bytes.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(|(key, value)| key.len() + value.0.len()).sum()
    }
}

impl KvView {
    /// Only these keys; what else there was is only counted.
    pub fn narrowed(&self, keys: &BTreeSet<String>) -> Self {
        let known = keys.iter().map(|key| (key.clone(), self.known.get(key).cloned().flatten())).collect();
        let mut rest = self.rest.unwrap_or_default();
        for (key, value) in self.known.iter().filter(|(key, _)| !keys.contains(*key)) {
            if let Some(value) = value {
                rest = KvRest { keys: rest.keys + 1, bytes: rest.bytes + key.len() + value.0.len() };
            }
        }
        Self { moment_s: self.moment_s, known, rest: Some(rest).filter(|rest| *rest != KvRest::default()) }
    }

    /// Number and bytes of the entries that there are after `wrote`.
    fn size_after(&self, wrote: &KvWrites) -> KvRest {
        let kept = self.known.iter().filter(|(key, _)| !wrote.contains_key(*key));
        let entries = kept.chain(wrote).filter_map(|(key, value)| Some(key.len() + value.as_ref()?.0.len()));
        entries.fold(self.rest.unwrap_or_default(), |sum, bytes| KvRest {
            keys: sum.keys.saturating_add(1),
            bytes: sum.bytes.saturating_add(bytes),
        })
    }

    /// Whether a store that began like this has room for what is there after `wrote`.
    pub fn check(&self, wrote: &KvWrites) -> Result<(), KvRefusal> {
        for (key, value) in wrote {
            if !is_kv_key(key) {
                return Err(KvRefusal::BadKey);
            }
            if value.as_ref().is_some_and(|value| value.0.len() > MAX_KV_VALUE_BYTES) {
                return Err(KvRefusal::TooLarge);
            }
        }
        let KvRest { keys, bytes } = self.size_after(wrote);
        if keys > MAX_KV_KEYS || bytes > MAX_KV_BYTES { Err(KvRefusal::Full) } else { Ok(()) }
    }
}

/// Whether a store may have this key.
pub fn is_kv_key(key: &str) -> bool {
    !key.is_empty() && key.len() <= MAX_KV_KEY_BYTES && !key.chars().any(char::is_control)
}

impl fmt::Display for KvPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            PolicyScope::Operator => write!(f, "operator/{}:{}", self.plugin, self.tenant),
            PolicyScope::Tenant(owner) => write!(f, "tenant/{owner}/{}:{}", self.plugin, self.tenant),
        }
    }
}

impl fmt::Debug for KvValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(text) => write!(f, "{text:?}"),
            Err(_) => write!(f, "0x{}", hex(&self.0)),
        }
    }
}

impl From<&str> for KvValue {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let is_hex = digits.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    if !is_hex || !digits.len().is_multiple_of(2) {
        return None;
    }
    let pairs = digits.chunks_exact(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    pairs.collect()
}

impl Serialize for KvValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return serializer.serialize_bytes(&self.0);
        }
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("hex", &hex(&self.0))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for KvValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_any(ReadsValue)
        } else {
            deserializer.deserialize_byte_buf(ReadsValue)
        }
    }
}

/// Reads a [`KvValue`] in either form.
struct ReadsValue;

impl<'de> Visitor<'de> for ReadsValue {
    type Value = KvValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, or {\"hex\": \"00ff\"}")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<KvValue, E> {
        Ok(text.into())
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<KvValue, E> {
        Ok(KvValue(bytes.to_vec()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<KvValue, A::Error> {
        let value = match map.next_entry::<String, String>()? {
            Some((key, digits)) if key == "hex" => unhex(&digits).map(KvValue),
            _ => None,
        };
        let value = value.ok_or_else(|| A::Error::custom("a value of bytes is {\"hex\": \"00ff\"}"))?;
        match map.next_key::<String>()? {
            None => Ok(value),
            Some(_) => Err(A::Error::custom("a value of bytes has the key hex only")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn store(entries: &[(&str, &str)]) -> KvStore {
        KvStore { moment_s: 7, entries: entries.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect() }
    }

    fn writes(entries: &[(&str, Option<&str>)]) -> KvWrites {
        entries.iter().map(|(key, value)| ((*key).into(), value.map(KvValue::from))).collect()
    }

    #[test]
    fn a_value_is_a_text_if_it_is_one() {
        let json = |value: &KvValue| serde_json::to_string(value).unwrap();
        assert_eq!(json(&"3".into()), "\"3\"");
        assert_eq!(json(&KvValue(vec![0xff, 0])), "{\"hex\":\"ff00\"}");
        for wrong in
            ["7", "{\"hex\":\"0\"}", "{\"hex\":\"0g\"}", "{\"text\":\"x\"}", "{\"hex\":\"00\",\"x\":\"\"}", "{}"]
        {
            assert!(serde_json::from_str::<KvValue>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_store_is_within_each_limit() {
        let full: Vec<_> = (0..MAX_KV_KEYS).map(|at| format!("k{at}")).collect();
        let full = store(&full.iter().map(|key| (key.as_str(), "")).collect::<Vec<_>>()).view(9);
        assert_eq!(full.check(&writes(&[("k1", Some("other"))])), Ok(()));
        assert_eq!(full.check(&writes(&[("new", Some(""))])), Err(KvRefusal::Full));
        assert_eq!(full.check(&writes(&[("k1", None), ("new", Some(""))])), Ok(()));
        let empty = KvView::default();
        let long = "v".repeat(MAX_KV_VALUE_BYTES + 1);
        assert_eq!(empty.check(&writes(&[("k", Some(&long))])), Err(KvRefusal::TooLarge));
        for key in ["", "a\nb", &"k".repeat(MAX_KV_KEY_BYTES + 1)] {
            assert_eq!(empty.check(&writes(&[(key, Some(""))])), Err(KvRefusal::BadKey), "{key:?}");
        }
        let most = "v".repeat(MAX_KV_VALUE_BYTES);
        let keys = ["a", "b", "c", "d"].map(|key| (key, Some(most.as_str())));
        assert_eq!(empty.check(&writes(&keys[..3])), Ok(()));
        assert_eq!(empty.check(&writes(&keys)), Err(KvRefusal::Full));
    }

    #[test]
    fn moments_never_go_back() {
        let mut store = store(&[]);
        assert_eq!((store.view(3).moment_s, store.view(8).moment_s), (7, 8));
        let place = KvPlace { scope: PolicyScope::Operator, plugin: "p".into(), tenant: "acme".parse().unwrap() };
        store.apply(&KvChange { place, moment_s: 3, wrote: writes(&[("a", Some("1"))]) });
        assert_eq!((store.moment_s, store.bytes()), (7, 2));
    }

    proptest! {
        #[test]
        fn a_narrowed_view_takes_the_same_writes(
            kept in proptest::collection::btree_map("[a-f]", proptest::collection::vec(any::<u8>(), 0..4096), 0..6),
            wrote in proptest::collection::btree_map("[a-h]", proptest::option::of(proptest::collection::vec(any::<u8>(), 0..5000)), 0..8),
        ) {
            let entries = kept.into_iter().map(|(key, value)| (key, KvValue(value))).collect();
            let whole = KvStore { moment_s: 0, entries }.view(1);
            let wrote: KvWrites = wrote.into_iter().map(|(key, value)| (key, value.map(KvValue))).collect();
            let narrowed = whole.narrowed(&wrote.keys().cloned().collect());
            prop_assert_eq!(narrowed.check(&wrote), whole.check(&wrote));
            let json = serde_json::to_string(&narrowed).unwrap();
            prop_assert_eq!(&serde_json::from_str::<KvView>(&json).unwrap(), &narrowed);
            let bytes = postcard::to_allocvec(&narrowed).unwrap();
            prop_assert_eq!(&postcard::from_bytes::<KvView>(&bytes).unwrap(), &narrowed);
        }
    }
}
