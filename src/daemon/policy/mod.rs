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
//! The host runs inside the daemon's process for now; only the compiler is a process of its own. Only values cross its
//! door (bytes and settings in, opinions and decisions out), so that it can move out too without changing a caller.

mod breaker;
mod call;
mod compiler;
mod engine;
mod executor;
mod hook;
mod host;
mod limits;
mod load;
mod plugin;
mod queue;
mod record;
mod replay;
mod text;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::time::timeout;
use wasmtime::component::Linker;

use crate::model::{
    AdmitRequest, AttachRequest, Decision, DetachRequest, NvmeDecision, Opinion, PluginDigest, PolicyFault,
    PolicyScope, SelectNvmeRequest, SelectVfRequest, TenantId, VfDecision,
};

use breaker::Breakers;
use call::Compiled;
use compiler::Compiler;
use engine::Sandbox;
use executor::{Job, Jobs};
use hook::{Question, admit, attach, detach, select_nvme, select_vf};
use host::Call;
use queue::Full;

pub use breaker::BreakerState;
pub use compiler::{CompilerConfig, ROLE as COMPILER_ROLE, run as compile};
pub use limits::Limits;
pub use load::LoadError;
pub use plugin::{Bound, LoadedPlugin};
pub use record::Unrecorded;
pub use replay::{Change, Replayed, Replayer};

/// What the host is started with.
#[derive(Debug, Clone, Default)]
pub struct PolicyConfig {
    /// What plugins may use.
    pub limits: Limits,
    /// How components are compiled; `None`: in this process, and nothing is kept.
    pub compiler: Option<CompilerConfig>,
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
    queue: Arc<Jobs>,
    breakers: Arc<Breakers>,
    compilers: Arc<Semaphore>,
    compiler: Compiler,
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
        let queue = Arc::new(Jobs::new(config.limits.queue_depth, config.limits.queue_whole));
        let breakers = Arc::<Breakers>::default();
        executor::start(sandbox.clone(), Arc::clone(&queue), Arc::clone(&breakers))
            .map_err(PolicyStartError::Thread)?;
        let compilers = Arc::new(Semaphore::new(config.limits.compilers.max(1)));
        let compiler = Compiler::new(config.compiler);
        Ok(Self(Arc::new(Inner { sandbox, linker, queue, breakers, compilers, compiler, compiled: Mutex::default() })))
    }

    /// Checks, compiles and describes a component, and lets it check its settings.
    ///
    /// Takes tens of milliseconds of a blocking thread for a component of some 30 KiB; decisions go on meanwhile. Needs
    /// a tokio runtime.
    pub async fn load(&self, bytes: Vec<u8>, settings: BTreeMap<String, String>) -> Result<LoadedPlugin, LoadError> {
        self.load_with(bytes, Some(settings)).await
    }

    /// The same for a replay with recorded settings, which it has yet to see.
    pub async fn load_without_settings(&self, bytes: Vec<u8>) -> Result<LoadedPlugin, LoadError> {
        self.load_with(bytes, None).await
    }

    async fn load_with(
        &self,
        bytes: Vec<u8>,
        settings: Option<BTreeMap<String, String>>,
    ) -> Result<LoadedPlugin, LoadError> {
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
            let checked = settings.is_some();
            let settings = Arc::new(settings.unwrap_or_default());
            if checked {
                load::check_settings(&inner.sandbox, &compiled, &settings)?;
            }
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
    pub async fn admit(&self, chain: Arc<[Bound]>, request: AdmitRequest) -> Unrecorded<Decision> {
        let Asked { question, chain, opinions, started } = self.ask(chain, request).await;
        let (outcome, took) = (admit::combine(&opinions), started.elapsed());
        let decision = Decision { outcome: outcome.clone(), opinions: opinions.clone(), took, id: None };
        record::unrecorded(&*question, &chain, &opinions, &outcome, took, decision)
    }

    /// Asks the plugins of `chain` in order which VF a NIC gets, as [`admit`](Self::admit) does for a VM.
    pub async fn select_vf(&self, chain: Arc<[Bound]>, request: SelectVfRequest) -> Unrecorded<VfDecision> {
        let Asked { question, chain, opinions, started } = self.ask(chain, request).await;
        let outcome = select_vf::combine(&opinions, question.wish, question.candidates.len());
        let took = started.elapsed();
        let decision = VfDecision { outcome: outcome.clone(), opinions: opinions.clone(), took };
        record::unrecorded(&*question, &chain, &opinions, &outcome, took, decision)
    }

    /// Asks the plugins of `chain` in order which namespace or controller an NVMe device gets.
    pub async fn select_nvme(&self, chain: Arc<[Bound]>, request: SelectNvmeRequest) -> Unrecorded<NvmeDecision> {
        let Asked { question, chain, opinions, started } = self.ask(chain, request).await;
        let outcome = select_nvme::combine(&opinions, question.candidates.len());
        let took = started.elapsed();
        let decision = NvmeDecision { outcome: outcome.clone(), opinions: opinions.clone(), took };
        record::unrecorded(&*question, &chain, &opinions, &outcome, took, decision)
    }

    /// Asks the plugins of `chain` in order whether a VM may have a device, as [`admit`](Self::admit) does for the VM.
    pub async fn attach(&self, chain: Arc<[Bound]>, request: AttachRequest) -> Unrecorded<Decision> {
        let Asked { question, chain, opinions, started } = self.ask(chain, request).await;
        let (outcome, took) = (attach::combine(&opinions), started.elapsed());
        let decision = Decision { outcome: outcome.clone(), opinions: opinions.clone(), took, id: None };
        record::unrecorded(&*question, &chain, &opinions, &outcome, took, decision)
    }

    /// Asks the plugins of `chain` in order whether any of them keeps a device where it is.
    pub async fn detach(&self, chain: Arc<[Bound]>, request: DetachRequest) -> Unrecorded<Decision> {
        let Asked { question, chain, opinions, started } = self.ask(chain, request).await;
        let (outcome, took) = (detach::combine(&opinions), started.elapsed());
        let decision = Decision { outcome: outcome.clone(), opinions: opinions.clone(), took, id: None };
        record::unrecorded(&*question, &chain, &opinions, &outcome, took, decision)
    }

    /// Forgets compiled components of all plugins but these.
    pub fn keep_compiled(&self, digests: &[PluginDigest]) {
        self.0.compiler.keep(digests);
    }

    /// Breakers of the binding that are not closed: the hook, the tenant that asked, and where it is.
    pub fn breakers(
        &self,
        scope: &PolicyScope,
        name: &str,
        digest: PluginDigest,
    ) -> Vec<(&'static str, TenantId, BreakerState)> {
        self.0.breakers.of(scope, name, digest)
    }

    /// Asks those of `chain` that have an opinion on `question`.
    async fn ask<Q: Question>(&self, chain: Arc<[Bound]>, question: Q) -> Asked<Q> {
        let started = Instant::now();
        let (chain, question) = (hook::asked::<Q>(chain), Arc::new(question));
        let opinions = self.opinions(&chain, &question, started).await;
        Asked { question, chain, opinions, started }
    }

    async fn opinions<Q: Question>(
        &self,
        chain: &Arc<[Bound]>,
        question: &Arc<Q>,
        asked: Instant,
    ) -> Vec<Opinion<Q::Verdict>> {
        let Some(first) = chain.first() else { return Vec::new() };
        let (job, answer) = Job::new(Arc::clone(chain), Arc::clone(question), asked);
        let cause = match self.0.queue.push(question.tenant(), job) {
            Ok(()) => match timeout(self.0.sandbox.limits().patience + GRACE, answer).await {
                Ok(Ok(opinions)) => return opinions,
                Ok(Err(_)) => "the executor dropped the decision",
                Err(_) => "the executor does not answer",
            },
            Err(Full::Lane) => "too many decisions of this tenant are waiting",
            Err(Full::Whole) => "too many decisions are waiting",
            Err(Full::Closed) => "the executor has ended",
        };
        vec![executor::opinion(first, Err(PolicyFault::Unavailable(cause.into())), 0, asked.elapsed())]
    }
}

/// A question with the opinions that its chain has on it.
struct Asked<Q: Question> {
    question: Arc<Q>,
    chain: Arc<[Bound]>,
    opinions: Vec<Opinion<Q::Verdict>>,
    started: Instant,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.close();
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
        let compiled = Arc::new(load::compile(&self.sandbox, &self.linker, &self.compiler, bytes)?);
        let mut table = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        table.retain(|_, compiled| compiled.strong_count() > 0);
        table.insert(digest, Arc::downgrade(&compiled));
        Ok(compiled)
    }
}

#[cfg(test)]
mod tests;
