//! Messages between daemon and policy host, through `sys::lane`. Key types: [`Request`], [`Spoken`], [`Loaded`].
//!
//! A question of a hook and its verdict are types of `model`, written as serde says. What the host says is foreign to the
//! daemon: decoding fails on what is no message, and what it gives is bounded by the lane but not believed.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::{Grant, InventoryView, KvView, KvWrites, PolicyFault, VmName};

/// Settings of a plugin: key to text.
pub type Settings = BTreeMap<String, String>;

/// What the daemon wants of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "one is made at a time, and not kept")]
pub enum Request<'a> {
    /// Take the artefact that was sent beside the lane under this number. Answer: `Result<Loaded, Refusal>`.
    Load {
        /// The daemon's number for the code; never used twice.
        code: u64,
    },
    /// Have a plugin check its settings. Answer: `Spoken` with keys and what is wrong with them.
    Validate {
        /// Which code.
        code: u64,
        /// The settings.
        settings: Cow<'a, Settings>,
    },
    /// Ask a plugin the question that follows. Answer: `Spoken` with the hook's verdict.
    Ask {
        /// Which code.
        code: u64,
        /// What it may read.
        settings: Cow<'a, Settings>,
        /// What it remembers of the tenant, if it may.
        kv: Option<Cow<'a, KvView>>,
        /// What it sees of the tenant's inventory, if it may.
        inventory: Option<Cow<'a, InventoryView>>,
        /// Which hook the question is of.
        hook: Cow<'a, str>,
    },
    /// Forget these codes: nothing will ask for them. No answer but an empty one.
    Forget {
        /// Which.
        codes: Cow<'a, [u64]>,
    },
}

/// What a plugin said in one call, and what it left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spoken<T> {
    /// The answer, unchecked, or why there is none.
    pub said: Result<T, PolicyFault>,
    /// What the call cost, in units of about one WebAssembly instruction.
    pub fuel: u64,
    /// Lines for the log.
    pub notes: Vec<Note>,
    /// Further lines that were not kept.
    pub dropped: u64,
    /// What it did with what it remembers, if it was given that.
    pub kv: Option<KvSpoken>,
    /// What it looked at of the inventory, if it was given that.
    pub inventory: Option<InventorySpoken>,
    /// Where it failed, the innermost function first.
    pub backtrace: Vec<String>,
}

/// What a plugin did with its store in one call.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KvSpoken {
    /// Keys that its answer may hang on.
    pub touched: Vec<String>,
    /// What it wants to be kept.
    pub wrote: KvWrites,
}

/// What a plugin looked at of the tenant's inventory in one call.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InventorySpoken {
    /// VMs that it asked for by name, there or not.
    pub looked: Vec<VmName>,
    /// Whether it asked for others, too: all of them may count.
    pub is_listed: bool,
}

/// A line of a plugin's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// How loud.
    pub level: NoteLevel,
    /// The line.
    pub line: String,
}

/// How loud a line of a log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoteLevel {
    /// Details.
    Debug,
    /// What is usual.
    Info,
    /// What somebody should look at.
    Warn,
}

/// What a plugin says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it does.
    pub summary: String,
}

/// Code that can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// Hooks that it exports.
    pub hooks: Vec<String>,
    /// What it imports that must be granted.
    pub wants: Vec<Grant>,
    /// What it says about itself.
    pub manifest: Spoken<Manifest>,
}

/// Why code cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The engine does not take it: it is of another engine, or needs more than an instance may have.
    Unusable(String),
    /// Imports that no plugin may use.
    UndeclaredImports(Vec<String>),
    /// An interface that it lacks.
    MissingExport(String),
    /// An interface that it has in another version only, with that version.
    WrongVersion(String),
    /// The right interfaces with other types.
    WrongTypes(String),
    /// It starts with so many bytes of memory, more than allowed.
    TooMuchMemory(u64),
    /// The host has a fault of its own.
    Failed(String),
}

/// What the host says when it is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hello {
    /// It is confined and listens. The number tells engines apart that run different machine code.
    Ready(u64),
    /// It cannot be.
    Failed(String),
}

/// These bytes are no such message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a message of the policy host's contract")]
pub struct Malformed;

/// A message as bytes.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    // Only types that cannot say their length cannot be written, and there are none here.
    postcard::to_allocvec(message).unwrap_or_default()
}

/// A question behind its request.
pub fn encode_question(request: &Request<'_>, question: &impl Serialize) -> Vec<u8> {
    encode(&(request, question))
}

/// The message that these bytes are, all of them.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(Malformed),
    }
}

/// The request that these bytes begin with, and what follows it.
pub fn decode_request(bytes: &[u8]) -> Result<(Request<'static>, &[u8]), Malformed> {
    postcard::take_from_bytes(bytes).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests;
