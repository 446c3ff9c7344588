//! Policy: WebAssembly components that are asked before anything is decided. Key types: [`PolicyHost`],
//! [`LoadedPlugin`], [`Bound`], [`Limits`].
//!
//! `daemon/service` asks, and acts on the [`Decision`]; it checks again what a patch changed before it acts. The host
//! fails closed: whatever goes wrong with a plugin, a queue or a thread comes out as a denial that names the cause.
//!
//! ```text
//! load(bytes, settings) ─▶ blocking pool: check, compile in a process ─┐
//! admit(chain, request) ─▶ fair queue ─▶ executor thread: per plugin ──┤ lanes: shared memory
//!                     Decision ◀─ check, combine ◀─ answers ───────────┘
//!                                                        ostler policy-host: a fresh instance per call
//! ```
//!
//! Plugins run in a process of their own (`serve`), the *policy host*: no rights, no files, no devices, no keys. The
//! daemon loads no machine code. It starts that process, replaces it when it ends or hangs (`keeper`), and believes nothing
//! that it says: answers are checked as the plugins' own, breakers, queue and records are here.
//!
//! Plugins that are bound as shadows decide nothing; they are asked afterwards, apart from all this (`shadow`).

mod breaker;
mod call;
mod compiler;
mod confine;
mod engine;
mod executor;
mod hook;
mod imports;
mod inspect;
mod keeper;
mod kv;
mod limits;
mod load;
mod load_queue;
mod notes;
mod observe;
mod plugin;
mod prepare;
mod queue;
mod record;
mod rehearsal;
mod replay;
mod serve;
mod session;
mod shadow;
mod text;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::model::{
    AdmitRequest, AttachRequest, Decision, DetachRequest, Grant, InventoryView, NvmeDecision, ObserveRequest, Opinion,
    Outcome, PlaceDecision, PlaceRequest, PluginDigest, PluginMode, PolicyFault, PolicyScope, SelectNvmeRequest,
    SelectVfRequest, TenantId, VfDecision,
};
use crate::sys::artefact::Artefact;
use crate::wire::policy::{Loaded, Refusal};
pub use crate::wire::policy::{Note, NoteLevel};

use breaker::Breakers;
use compiler::Compiler;
use executor::{Asker, Job, Jobs, Part, Voice};
use hook::Question;
use keeper::Keeper;
use kv::Memories;
use load_queue::LoadQueue;
use plugin::{Compiled, Kept, Released};
use queue::Full;
use view::{Trail, Views, sees};

pub use breaker::BreakerState;
pub use compiler::{ArtefactFiles, CompilerConfig, ROLE as COMPILER_ROLE, run as compile};
pub use inspect::{Interfaces, inspect};
pub use keeper::HostProgram;
pub use kv::{KvShelf, KvTurn, Remembered};
pub use limits::Limits;
pub use load::LoadError;
pub use observe::Telling;
pub use plugin::{Bound, LoadedPlugin};
pub use record::Unrecorded;
pub use rehearsal::{NotAsked, Rehearsal};
pub use replay::{Change, Replayed, Replayer};
pub use serve::{GROUP as HOST_GROUP, ROLE as HOST_ROLE, run as serve_host};
pub use shadow::Shadows;
pub use view::InventorySource;

/// What the host is started with.
#[derive(Debug, Clone, Default)]
pub struct PolicyConfig {
    /// What plugins may use.
    pub limits: Limits,
    /// How components are compiled; `None`: in this process, and nothing is kept.
    pub compiler: Option<CompilerConfig>,
    /// The process that runs plugins; `None`: threads of this one, for tests of this module and to measure by.
    pub host: Option<HostProgram>,
    /// Where what plugins remember is kept; `None`: nowhere.
    pub shelf: Option<Arc<dyn KvShelf>>,
    /// Where it is known what tenants have; `None`: they have nothing.
    pub inventory: Option<Arc<dyn InventorySource>>,
}

impl PolicyConfig {
    /// For a plugin's author, who is no daemon: the same processes with the same limits, confined as far as the caller's
    /// rights allow; no files. `program` is this one.
    pub fn for_author(program: &Path) -> Self {
        let program = program.to_owned();
        let compiler = CompilerConfig { program: program.clone(), files: None, is_lenient: true };
        let host = HostProgram { program, user: compiler::NOBODY, is_lenient: true, cgroup: None };
        Self { limits: Limits::default(), compiler: Some(compiler), host: Some(host), shelf: None, inventory: None }
    }
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
    /// No process.
    #[error("cannot start the process that runs plugins")]
    Process(#[source] std::io::Error),
    /// The process cannot confine itself.
    #[error(
        "the process that runs plugins cannot be confined: {reason}; run the daemon as root on a kernel with namespaces \
         (or, to try things out, with --no-jail)"
    )]
    Confined {
        /// Its words.
        reason: String,
    },
    /// The process did not come to serve.
    #[error("the process that runs plugins ended, or said nothing, at its start ({end:?})")]
    Silent {
        /// How it ended.
        end: crate::sys::process::End,
        /// What was heard of it.
        source: std::io::Error,
    },
}

/// Loads plugins and makes decisions. Cheap to clone; its threads end with the last clone.
#[derive(Clone)]
pub struct PolicyHost(Arc<Inner>);

struct Inner {
    keeper: Arc<Keeper>,
    queue: Arc<Jobs>,
    breakers: Arc<Breakers>,
    /// Of shadows: nothing that they do or keep busy is a decision's.
    shadow_queue: Arc<Jobs>,
    shadow_breakers: Arc<Breakers>,
    loads: LoadQueue,
    compiler: Arc<Compiler>,
    memories: Memories,
    inventory: Option<Arc<dyn InventorySource>>,
    released: Arc<Released>,
    /// Rank: leaf. Guards the components in use, by content: the same one is compiled once.
    compiled: Mutex<HashMap<PluginDigest, Weak<Compiled>>>,
}

/// How much longer than its patience a decision is awaited, before the executor counts as gone.
const GRACE: Duration = Duration::from_secs(1);

impl PolicyHost {
    /// Starts the process that runs plugins, and the executor threads.
    pub fn start(config: PolicyConfig) -> Result<Self, PolicyStartError> {
        let keeper = Keeper::start(config.host, config.limits)?;
        let start = |part| {
            let queue = Arc::new(Jobs::new(config.limits.queue_depth, config.limits.queue_whole));
            let breakers = Arc::<Breakers>::default();
            let asker = Asker { keeper: Arc::clone(&keeper), breakers: Arc::clone(&breakers), part };
            executor::start(asker, Arc::clone(&queue)).map_err(PolicyStartError::Thread)?;
            Ok((queue, breakers))
        };
        let (queue, breakers) = start(Part::Chain)?;
        let (shadow_queue, shadow_breakers) = start(Part::Shadows)?;
        let loads = LoadQueue::new(&config.limits);
        let compiler = Arc::new(Compiler::new(config.compiler));
        let memories = Memories::new(config.shelf, &config.limits);
        let (released, compiled) = (Arc::default(), Mutex::default());
        Ok(Self(Arc::new(Inner {
            keeper,
            queue,
            breakers,
            shadow_queue,
            shadow_breakers,
            loads,
            compiler,
            memories,
            inventory: config.inventory,
            released,
            compiled,
        })))
    }

    /// Id of the process that runs plugins now; `None` while there is none, or it is this one.
    pub fn process_id(&self) -> Option<u32> {
        self.0.keeper.now()?.process().map(|process| process.identity().pid)
    }

    /// Checks, compiles and describes a component, and lets it check its settings.
    ///
    /// Takes tens of milliseconds of a blocking thread for a component of some 30 KiB; decisions go on meanwhile. Needs
    /// a tokio runtime.
    pub async fn load(&self, bytes: Vec<u8>, settings: BTreeMap<String, String>) -> Result<LoadedPlugin, LoadError> {
        let patience = self.0.keeper.limits().load_patience;
        self.load_with((&PolicyScope::Operator, patience), bytes, Some(settings), BTreeSet::new()).await
    }

    /// The same for a chain of `owner`, and for a binding that grants it more than every plugin has.
    pub async fn load_granted(
        &self,
        owner: &PolicyScope,
        bytes: Vec<u8>,
        settings: BTreeMap<String, String>,
        grants: BTreeSet<Grant>,
    ) -> Result<LoadedPlugin, LoadError> {
        let patience = self.0.keeper.limits().load_patience;
        self.load_with((owner, patience), bytes, Some(settings), grants).await
    }

    /// The same for one that was loaded before, whose machine code is kept, by somebody for whom others wait: it is not waited
    /// for longer than for a decision.
    pub async fn load_again(
        &self,
        owner: &PolicyScope,
        bytes: Vec<u8>,
        settings: BTreeMap<String, String>,
        grants: BTreeSet<Grant>,
    ) -> Result<LoadedPlugin, LoadError> {
        self.load_with((owner, self.0.keeper.limits().patience), bytes, Some(settings), grants).await
    }

    /// The same for a replay with recorded settings, which it has yet to see. Nothing follows from what it says, so that all
    /// is granted.
    pub async fn load_without_settings(&self, owner: &PolicyScope, bytes: Vec<u8>) -> Result<LoadedPlugin, LoadError> {
        let patience = self.0.keeper.limits().load_patience;
        self.load_with((owner, patience), bytes, None, Grant::ALL.into()).await
    }

    async fn load_with(
        &self,
        (owner, patience): (&PolicyScope, Duration),
        bytes: Vec<u8>,
        settings: Option<BTreeMap<String, String>>,
        grants: BTreeSet<Grant>,
    ) -> Result<LoadedPlugin, LoadError> {
        load::check_size(bytes.len(), self.0.keeper.limits().component_bytes)?;
        let turn = self.0.loads.take(owner, patience).await?;
        let inner = Arc::clone(&self.0);
        let loading = tokio::task::spawn_blocking(move || {
            // Held until the compiler is done, even if nobody waits for it any more.
            let _turn = turn;
            let compiled = inner.compile(&bytes)?;
            load::check_grants(&compiled.about.wants, &grants)?;
            let checked = settings.is_some();
            let settings = Arc::new(settings.unwrap_or_default());
            if checked {
                inner.check_settings(&compiled, &settings)?;
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
        self.decide(chain, request, decision).await
    }

    /// Asks the plugins of `chain` in order which VF a NIC gets, as [`admit`](Self::admit) does for a VM.
    pub async fn select_vf(&self, chain: Arc<[Bound]>, request: SelectVfRequest) -> Unrecorded<VfDecision> {
        self.decide(chain, request, |outcome, opinions, took| VfDecision { outcome, opinions, took }).await
    }

    /// Asks the plugins of `chain` in order which namespace or controller an NVMe device gets.
    pub async fn select_nvme(&self, chain: Arc<[Bound]>, request: SelectNvmeRequest) -> Unrecorded<NvmeDecision> {
        self.decide(chain, request, |outcome, opinions, took| NvmeDecision { outcome, opinions, took }).await
    }

    /// Asks the plugins of `chain` in order on which NUMA node a VM runs. If none of them decides it runs anywhere.
    pub async fn place(&self, chain: Arc<[Bound]>, request: PlaceRequest) -> Unrecorded<PlaceDecision> {
        self.decide(chain, request, |outcome, opinions, took| PlaceDecision { outcome, opinions, took }).await
    }

    /// Asks the plugins of `chain` in order whether a VM may have a device, as [`admit`](Self::admit) does for the VM.
    pub async fn attach(&self, chain: Arc<[Bound]>, request: AttachRequest) -> Unrecorded<Decision> {
        self.decide(chain, request, decision).await
    }

    /// Asks the plugins of `chain` in order whether any of them keeps a device where it is.
    pub async fn detach(&self, chain: Arc<[Bound]>, request: DetachRequest) -> Unrecorded<Decision> {
        self.decide(chain, request, decision).await
    }

    /// Forgets compiled components of all plugins but these.
    pub fn keep_compiled(&self, digests: &[PluginDigest]) {
        self.0.compiler.keep(digests);
    }

    /// Breakers of a version bound under `name` that are not closed: the hook, the tenant that asked, and where it is.
    pub fn breakers(
        &self,
        scope: &PolicyScope,
        name: &str,
        plugin: &LoadedPlugin,
        mode: PluginMode,
    ) -> Vec<(&'static str, TenantId, BreakerState)> {
        let aside = self.0.shadow_breakers.of(scope, name, plugin.version_key());
        if mode == PluginMode::Shadow {
            return aside;
        }
        // Who decides may observe, too.
        let observing = aside.into_iter().filter(|(hook, ..)| *hook == ObserveRequest::HOOK);
        let mut breakers = self.0.breakers.of(scope, name, plugin.version_key());
        breakers.extend(observing);
        breakers
    }

    /// Asks those of `chain` that have an opinion on `question` and decide; who does not is kept for later.
    async fn decide<Q: Question, D>(
        &self,
        chain: Arc<[Bound]>,
        question: Q,
        decision: impl FnOnce(Q::Outcome, Vec<Opinion<Q::Verdict>>, Duration) -> D,
    ) -> Unrecorded<D> {
        let started = Instant::now();
        let ((chain, shadows), question) = (hook::asked::<Q>(chain), Arc::new(question));
        let tenant = question.tenant();
        let turn = self.0.memories.turn_for(&chain, tenant).await;
        let is_seen = chain.iter().chain(shadows.iter().map(|(_, shadow)| shadow)).any(sees);
        let inventory = is_seen.then(|| self.0.inventory_of(tenant));
        let asking = async {
            match turn {
                Ok(turn) => {
                    let views = Views { kv: self.0.memories.stores(&chain, tenant), inventory: inventory.clone() };
                    (turn, self.voices(&self.0.queue, &chain, views, &question, started).await)
                }
                Err(cause) => (None, Err(cause)),
            }
        };
        // Spelled while the plugins are asked.
        let ((turn, voices), spelled) = tokio::join!(asking, async { record::json(&*question) });
        let voices = match (voices, chain.first()) {
            (Ok(voices), _) => voices,
            (Err(cause), Some(first)) => {
                let opinion = executor::opinion(first, Err(cause), 0, started.elapsed());
                vec![Voice { opinion, trail: Trail::default() }]
            }
            (Err(_), None) => unreachable!("nobody was asked, and nothing failed"),
        };
        let (opinions, trails): (Vec<_>, Vec<_>) =
            voices.into_iter().map(|Voice { opinion, trail }| (opinion, trail)).unzip();
        let (outcome, took) = (question.combine(&opinions), started.elapsed());
        let entry = record::entry((&*question, spelled), &chain, &opinions, &trails, &outcome, took);
        let tenant = question.tenant().clone();
        let remembered = Remembered { changes: kv::changes(&chain, &tenant, &opinions, &trails), turn };
        let shadows = Shadows::new(self, question, shadows, inventory, &opinions, &entry);
        Unrecorded { tenant, entry, remembered, decision: decision(outcome, opinions, took), shadows }
    }

    /// Waits until no decision of `tenant` is under way that reads what plugins remember; none begins while it is held.
    pub async fn turn(&self, tenant: &TenantId) -> Result<KvTurn, PolicyFault> {
        self.0.memories.turn(tenant).await
    }

    /// What `chain`, who see `views`, say when the executor of `queue` asks them, or why nobody is asked.
    async fn voices<Q: Question>(
        &self,
        queue: &Jobs,
        chain: &Arc<[Bound]>,
        views: Views,
        question: &Arc<Q>,
        asked: Instant,
    ) -> Result<Vec<Voice<Q::Verdict>>, PolicyFault> {
        if chain.is_empty() {
            return Ok(Vec::new());
        }
        let (job, answer) = Job::new(Arc::clone(chain), views, Arc::clone(question), asked);
        let cause = match queue.push(question.tenant(), job) {
            Ok(()) => match timeout(self.0.keeper.limits().patience + GRACE, answer).await {
                Ok(Ok(voices)) => return Ok(voices),
                Ok(Err(_)) => "the executor dropped the decision",
                Err(_) => "the executor does not answer",
            },
            Err(Full::Lane) => "too many decisions of this tenant are waiting",
            Err(Full::Whole) => "too many decisions are waiting",
            Err(Full::Closed) => "the executor has ended",
        };
        Err(PolicyFault::Unavailable(cause.into()))
    }
}

fn decision(outcome: Outcome, opinions: Vec<Opinion>, took: Duration) -> Decision {
    Decision { outcome, opinions, took, id: None }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.close();
        self.shadow_queue.close();
        self.keeper.close();
    }
}

impl Inner {
    /// What `tenant` has now.
    fn inventory_of(&self, tenant: &TenantId) -> Arc<InventoryView> {
        Arc::new(self.inventory.as_ref().map(|inventory| inventory.of(tenant)).unwrap_or_default())
    }

    /// The component, compiled now or before.
    fn compile(&self, bytes: &[u8]) -> Result<Arc<Compiled>, LoadError> {
        let digest = load::digest(bytes);
        if let Some(compiled) = self.compiled().get(&digest).and_then(Weak::upgrade) {
            return Ok(compiled);
        }
        load::check_kind(bytes)?;
        let released = self.released.take();
        if !released.is_empty()
            && let Some(session) = self.keeper.now()
        {
            session.forget(released);
        }
        let code = self.released.number();
        let (loaded, artefact) = self.loaded(code, digest, bytes)?;
        let about = load::about(loaded, digest, bytes.len() as u64).inspect_err(|_| self.released.release(code))?;
        let compiled = Arc::new(Compiled::new(about, code, artefact, Arc::clone(&self.released)));
        let mut table = self.compiled();
        table.retain(|_, compiled| compiled.strong_count() > 0);
        table.insert(digest, Arc::downgrade(&compiled));
        Ok(compiled)
    }

    /// Has the policy host take the component's machine code, from the compiler's files or made now; with its size in bytes.
    fn loaded(&self, code: u64, digest: PluginDigest, bytes: &[u8]) -> Result<(Loaded, (Kept, u64)), LoadError> {
        let limits = self.keeper.limits();
        let compatibility = self.keeper.in_background(|session| Ok(session.compatibility)).map_err(unavailable)?;
        let load = |artefact: &Artefact| {
            self.keeper.in_background(|session| session.load(code, artefact)).map_err(unavailable)
        };
        if let Some(artefact) = self.compiler.kept(compatibility, digest) {
            match load(&artefact)? {
                Ok(loaded) => {
                    let kept = Kept::File(Arc::clone(&self.compiler), compatibility);
                    return Ok((loaded, (kept, artefact.size() as u64)));
                }
                // Made anew.
                Err(Refusal::Unusable(_)) => {}
                Err(refusal) => return Err(load::refused(refusal, limits)),
            }
        }
        let artefact = self.compiler.compile(limits, bytes)?;
        let loaded = load(&artefact)?.map_err(|refusal| load::refused(refusal, limits))?;
        let (is_kept, size) = (self.compiler.keep_one(compatibility, digest, &artefact), artefact.size() as u64);
        let kept = if is_kept { Kept::File(Arc::clone(&self.compiler), compatibility) } else { Kept::Memory(artefact) };
        Ok((loaded, (kept, size)))
    }

    /// Whether the settings are within bounds and the plugin takes them.
    fn check_settings(&self, compiled: &Compiled, settings: &plugin::Settings) -> Result<(), LoadError> {
        load::check_setting_bounds(settings)?;
        let checked = self.keeper.in_background(|session| session.validate(compiled, settings));
        load::settings_taken(checked.map_err(unavailable)?, &compiled.about.name)
    }

    fn compiled(&self) -> std::sync::MutexGuard<'_, HashMap<PluginDigest, Weak<Compiled>>> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fault of the host while something is loaded: nothing that the plugin did.
fn unavailable(fault: PolicyFault) -> LoadError {
    LoadError::Unavailable(fault.to_string())
}

#[cfg(test)]
mod tests;
