//! Policy: WebAssembly components that are asked before anything is decided. Key types: [`PolicyHost`],
//! [`LoadedPlugin`], [`Bound`], [`Limits`].
//!
//! `daemon/service` asks, and acts on the [`Decision`]; it checks again what a patch changed before it acts. The host
//! fails closed: whatever goes wrong with a plugin, a queue or a thread comes out as a denial that names the cause.
//!
//! ```text
//! load(bytes, settings) ─▶ blocking pool: check, compile, describe, validate ─▶ LoadedPlugin
//! admit(chain, request) ─▶ bounded queue ─▶ executor thread: per plugin a fresh instance ─▶ combine ─▶ Decision
//! ```
//!
//! The host runs inside the daemon's process for now. Only values cross its door (bytes and settings in, opinions and
//! decisions out), so that it can move into a process of its own, with the compiler in another, without changing a caller.

mod call;
mod engine;
mod executor;
mod hook;
mod host;
mod limits;
mod load;
mod plugin;
mod text;

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::time::timeout;
use wasmtime::component::Linker;

use crate::model::{
    AdmitRequest, AttachRequest, Decision, DetachRequest, Opinion, PluginDigest, PolicyFault, SelectVfRequest,
    VfDecision,
};

use call::Compiled;
use engine::Sandbox;
use executor::Job;
use hook::{Question, admit, attach, detach, select_vf};
use host::Call;

pub use limits::Limits;
pub use load::LoadError;
pub use plugin::{Bound, LoadedPlugin};

/// What the host is started with.
#[derive(Debug, Clone, Default)]
pub struct PolicyConfig {
    /// What plugins may use.
    pub limits: Limits,
}

/// Why the host could not start: the cause is the daemon's host, not a plugin.
#[derive(Debug, thiserror::Error)]
pub enum PolicyStartError {
    /// The engine refuses the configuration, or the kernel the address space for its slots.
    #[error("cannot start the WebAssembly engine: {reason}")]
    Engine {
        /// The engine's words.
        reason: String,
    },
    /// No thread.
    #[error("cannot start a policy thread")]
    Thread(#[source] std::io::Error),
}

/// Loads plugins and makes decisions. Cheap to clone; its threads end with the last clone.
#[derive(Clone)]
pub struct PolicyHost(Arc<Inner>);

struct Inner {
    sandbox: Sandbox,
    linker: Linker<Call>,
    queue: SyncSender<Job>,
    compilers: Arc<Semaphore>,
    /// Rank: leaf. Guards the components in use, by content: the same one is compiled once.
    compiled: Mutex<HashMap<PluginDigest, Weak<Compiled>>>,
}

/// How much longer than its patience a decision is awaited, before the executor counts as gone.
const GRACE: Duration = Duration::from_secs(1);

impl PolicyHost {
    /// Starts the engine, its clock and the executor thread.
    pub fn start(config: PolicyConfig) -> Result<Self, PolicyStartError> {
        let sandbox = Sandbox::start(config.limits)?;
        let linker =
            host::linker(sandbox.engine()).map_err(|e| PolicyStartError::Engine { reason: format!("{e:#}") })?;
        let queue = executor::start(sandbox.clone()).map_err(PolicyStartError::Thread)?;
        let compilers = Arc::new(Semaphore::new(config.limits.compilers.max(1)));
        Ok(Self(Arc::new(Inner { sandbox, linker, queue, compilers, compiled: Mutex::default() })))
    }

    /// Checks, compiles and describes a component, and lets it check its settings.
    ///
    /// Takes tens of milliseconds of a blocking thread for a component of some 30 KiB; decisions go on meanwhile. Needs
    /// a tokio runtime.
    pub async fn load(&self, bytes: Vec<u8>, settings: BTreeMap<String, String>) -> Result<LoadedPlugin, LoadError> {
        let limits = *self.0.sandbox.limits();
        load::check_size(bytes.len(), limits.component_bytes)?;
        let turn = timeout(limits.patience, Arc::clone(&self.0.compilers).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(LoadError::Unavailable("another plugin is still being compiled".into()));
        };
        let inner = Arc::clone(&self.0);
        let loading = tokio::task::spawn_blocking(move || {
            // Held until the compiler is done, even if nobody waits for it any more.
            let _turn = turn;
            let compiled = inner.compile(&bytes)?;
            let settings = Arc::new(settings);
            load::check_settings(&inner.sandbox, &compiled, &settings)?;
            Ok(LoadedPlugin::ready(compiled, settings))
        });
        match loading.await {
            Ok(loaded) => loaded,
            Err(error) => Err(LoadError::Unavailable(format!("loading ended early: {error}"))),
        }
    }

    /// Asks the plugins of `chain` in order whether the VM may be registered.
    ///
    /// Answers within the limits' patience (and a second of grace), whatever the plugins do; what cannot be decided is
    /// denied with a code that begins with `policy.`.
    pub async fn admit(&self, chain: Arc<[Bound]>, request: AdmitRequest) -> Decision {
        let started = Instant::now();
        let opinions = self.opinions(chain, request, started).await;
        Decision { outcome: admit::combine(&opinions), opinions, took: started.elapsed() }
    }

    /// Asks the plugins of `chain` in order which VF a NIC gets, as [`admit`](Self::admit) does for a VM.
    pub async fn select_vf(&self, chain: Arc<[Bound]>, request: SelectVfRequest) -> VfDecision {
        let started = Instant::now();
        let (wish, candidates) = (request.wish, request.candidates.len());
        let opinions = self.opinions(chain, request, started).await;
        VfDecision { outcome: select_vf::combine(&opinions, wish, candidates), opinions, took: started.elapsed() }
    }

    /// Asks the plugins of `chain` in order whether a VM may have a device, as [`admit`](Self::admit) does for the VM.
    pub async fn attach(&self, chain: Arc<[Bound]>, request: AttachRequest) -> Decision {
        let started = Instant::now();
        let opinions = self.opinions(chain, request, started).await;
        Decision { outcome: attach::combine(&opinions), opinions, took: started.elapsed() }
    }

    /// Asks the plugins of `chain` in order whether any of them keeps a device where it is.
    pub async fn detach(&self, chain: Arc<[Bound]>, request: DetachRequest) -> Decision {
        let started = Instant::now();
        let opinions = self.opinions(chain, request, started).await;
        Decision { outcome: detach::combine(&opinions), opinions, took: started.elapsed() }
    }

    async fn opinions<Q: Question>(
        &self,
        chain: Arc<[Bound]>,
        question: Q,
        asked: Instant,
    ) -> Vec<Opinion<Q::Verdict>> {
        let chain = hook::asked::<Q>(chain);
        let Some(first) = chain.first().cloned() else { return Vec::new() };
        let (job, answer) = Job::new(chain, question, asked);
        let cause = match self.0.queue.try_send(job) {
            Ok(()) => match timeout(self.0.sandbox.limits().patience + GRACE, answer).await {
                Ok(Ok(opinions)) => return opinions,
                Ok(Err(_)) => "the executor dropped the decision",
                Err(_) => "the executor does not answer",
            },
            Err(TrySendError::Full(_)) => "too many decisions are waiting",
            Err(TrySendError::Disconnected(_)) => "the executor has ended",
        };
        vec![executor::opinion(&first, Err(PolicyFault::Unavailable(cause.into())), asked.elapsed())]
    }
}

impl Inner {
    /// The component, compiled now or before.
    fn compile(&self, bytes: &[u8]) -> Result<Arc<Compiled>, LoadError> {
        let digest = load::digest(bytes);
        let known = self.compiled.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).and_then(Weak::upgrade);
        if let Some(compiled) = known {
            return Ok(compiled);
        }
        let compiled = Arc::new(load::compile(&self.sandbox, &self.linker, bytes)?);
        let mut table = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        table.retain(|_, compiled| compiled.strong_count() > 0);
        table.insert(digest, Arc::downgrade(&compiled));
        Ok(compiled)
    }
}

#[cfg(test)]
mod tests;
