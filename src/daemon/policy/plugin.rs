//! A plugin that is loaded, or that should be and is not. Key types: [`LoadedPlugin`], [`Bound`].

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::{Grant, ObserveRequest, PlaceRequest, PluginDigest, PluginMode, PluginWeight, PolicyScope};
use crate::sys::artefact::Artefact;

use super::compiler::Compiler;
use super::hook::Question;

/// A plugin's settings: key to text, fixed while it is loaded.
pub(super) type Settings = Arc<BTreeMap<String, String>>;

/// A component that was compiled, with what it says about itself. The policy host has its code under a number.
pub(super) struct Compiled {
    pub about: About,
    pub code: u64,
    code_bytes: u64,
    artefact: Kept,
    released: Arc<Released>,
}

/// Where machine code is had again for another policy host.
pub(super) enum Kept {
    /// In the compiler's files, for engines of this number.
    File(Arc<Compiler>, u64),
    /// Here: nobody keeps it elsewhere.
    Memory(Artefact),
}

/// Numbers of codes: those to come, and those that nobody asks for any more.
#[derive(Debug, Default)]
pub(super) struct Released {
    next: AtomicU64,
    /// Rank: leaf. Guards the list; held for a push or a swap.
    codes: Mutex<Vec<u64>>,
}

impl Released {
    /// A number for a code, never used before.
    pub(super) fn number(&self) -> u64 {
        // Relaxed: only that it differs counts.
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Nobody asks for this code any more.
    pub(super) fn release(&self, code: u64) {
        self.codes.lock().unwrap_or_else(PoisonError::into_inner).push(code);
    }

    /// Takes the list: the caller has the host forget them.
    pub(super) fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.codes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Compiled {
    pub(super) fn new(about: About, code: u64, (artefact, code_bytes): (Kept, u64), released: Arc<Released>) -> Self {
        Self { about, code, code_bytes, artefact, released }
    }

    /// Has `send` pass the machine code on; `None`: it is gone.
    pub(super) fn with_artefact<T>(&self, send: impl FnOnce(&Artefact) -> T) -> Option<T> {
        match &self.artefact {
            Kept::Memory(artefact) => Some(send(artefact)),
            Kept::File(compiler, compatibility) => compiler.kept(*compatibility, self.about.digest).as_ref().map(send),
        }
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        self.released.release(self.code);
    }
}

/// A plugin with its settings, ready to be asked. Cheap to clone; the same component is compiled once.
#[derive(Clone)]
pub struct LoadedPlugin(Arc<Inner>);

struct Inner {
    about: About,
    version: VersionKey,
    settings: Settings,
    state: State,
}

/// Tells versions of a plugin apart, within this process: content and settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct VersionKey {
    digest: PluginDigest,
    settings: u64,
}

impl VersionKey {
    pub(super) fn new(digest: PluginDigest, settings: &BTreeMap<String, String>) -> Self {
        let mut hasher = DefaultHasher::new();
        settings.hash(&mut hasher);
        Self { digest, settings: hasher.finish() }
    }
}

/// What a plugin says about itself, checked, and what the host knows about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct About {
    pub name: String,
    pub version: String,
    pub summary: String,
    pub hooks: Vec<&'static str>,
    pub wants: Vec<Grant>,
    pub digest: PluginDigest,
    pub size_bytes: u64,
}

enum State {
    Ready(Arc<Compiled>),
    Broken(String),
}

impl LoadedPlugin {
    pub(super) fn ready(compiled: Arc<Compiled>, settings: Settings) -> Self {
        let version = VersionKey::new(compiled.about.digest, &settings);
        Self(Arc::new(Inner { about: compiled.about.clone(), version, settings, state: State::Ready(compiled) }))
    }

    /// Stands in for a plugin that is bound but could not be loaded again, so that its chain fails closed: every
    /// decision that passes through it is denied as `policy.unavailable` with `cause`.
    pub fn broken(name: impl Into<String>, digest: PluginDigest, cause: impl Into<String>) -> Self {
        let about = About {
            name: name.into(),
            version: String::new(),
            summary: String::new(),
            hooks: Vec::new(),
            wants: Vec::new(),
            digest,
            size_bytes: 0,
        };
        let (settings, version) = (Settings::default(), VersionKey::new(digest, &BTreeMap::new()));
        Self(Arc::new(Inner { about, version, settings, state: State::Broken(cause.into()) }))
    }

    /// The plugin's own name for itself: 1 to 63 bytes of `a-z`, `0-9` and inner `-`.
    pub fn name(&self) -> &str {
        &self.0.about.name
    }

    /// Its version, as it says; one line.
    pub fn version(&self) -> &str {
        &self.0.about.version
    }

    /// What it does, as it says; one line, may be empty.
    pub fn summary(&self) -> &str {
        &self.0.about.summary
    }

    /// Hooks that it exports: `admit`, `place`, ….
    pub fn hooks(&self) -> &[&'static str] {
        &self.0.about.hooks
    }

    /// Of these, the hooks at which something is lost with the last plugin. Where nobody places VMs they run anywhere, and
    /// where nobody observes nothing is denied.
    pub fn hooks_to_keep(&self) -> impl Iterator<Item = &'static str> {
        let hooks = self.0.about.hooks.iter().copied();
        hooks.filter(|hook| *hook != PlaceRequest::HOOK && *hook != ObserveRequest::HOOK)
    }

    /// Whether it has a say in where VMs run.
    pub fn places(&self) -> bool {
        self.serves(PlaceRequest::HOOK)
    }

    /// Whether it is asked at `hook`. A broken one is asked everywhere: nobody knows what it would have denied.
    pub(super) fn serves(&self, hook: &str) -> bool {
        matches!(self.0.state, State::Broken(_)) || self.0.about.hooks.contains(&hook)
    }

    /// What it imports that its binding has to grant, and has.
    pub fn wants(&self) -> &[Grant] {
        &self.0.about.wants
    }

    /// SHA-256 of the component.
    pub fn digest(&self) -> PluginDigest {
        self.0.about.digest
    }

    pub(super) fn version_key(&self) -> VersionKey {
        self.0.version
    }

    /// Size of the component, in bytes; 0 when broken.
    pub fn size_bytes(&self) -> u64 {
        self.0.about.size_bytes
    }

    /// Size of its machine code, in bytes; 0 when broken.
    pub fn code_bytes(&self) -> u64 {
        self.machine_code().map_or(0, |(_, bytes)| bytes)
    }

    /// The number and the size, in bytes, of the machine code that the policy host has for it; none when broken. Plugins of
    /// one content share it.
    pub fn machine_code(&self) -> Option<(u64, u64)> {
        match &self.0.state {
            State::Ready(compiled) => Some((compiled.code, compiled.code_bytes)),
            State::Broken(_) => None,
        }
    }

    /// The settings that it was loaded with; none when broken.
    pub fn settings(&self) -> &BTreeMap<String, String> {
        &self.0.settings
    }

    /// Why it cannot be asked, if it is [`broken`](Self::broken).
    pub fn broken_cause(&self) -> Option<&str> {
        match &self.0.state {
            State::Ready(_) => None,
            State::Broken(cause) => Some(cause),
        }
    }

    /// The code and its settings, or why there is none.
    pub(super) fn code(&self) -> Result<(&Compiled, &Settings), &str> {
        match &self.0.state {
            State::Ready(compiled) => Ok((compiled, &self.0.settings)),
            State::Broken(cause) => Err(cause),
        }
    }
}

impl std::fmt::Debug for LoadedPlugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedPlugin").field("about", &self.0.about).field("broken", &self.broken_cause()).finish()
    }
}

/// A plugin at its place in a chain.
#[derive(Debug, Clone)]
pub struct Bound {
    /// Name of the binding, as people see it in decisions and listings.
    pub name: String,
    /// Whose chain it is in.
    pub scope: PolicyScope,
    /// The plugin.
    pub plugin: LoadedPlugin,
    /// What its answers count for.
    pub mode: PluginMode,
    /// How many times its scores count beside those of others.
    pub weight: PluginWeight,
}
