//! The one thread that has decisions made, and another that has shadows asked. Key types: [`Job`], [`Asker`], [`start`].
//!
//! One thread, because fresh instances on several threads contend for a process's memory map and are slower together
//! (measured: 31,000 decisions a second on one thread, 23,000 on two). Its queue is bounded and
//! fair between tenants; what does not fit is denied. Plugins run in the policy host; what comes from there is checked here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::model::{Opinion, PolicyFault};
use crate::wire::policy::Spoken;

use super::breaker::{Breakers, Key};
use super::hook::{self, Question};
use super::keeper::Keeper;
use super::notes;
use super::plugin::Bound;
use super::queue::Queue;
use super::view::{self, Trail, View, Views};

/// Decisions that wait.
pub(super) type Jobs = Queue<Job>;

/// A decision to make, on the executor's thread.
pub(super) struct Job(Box<Work>);

type Work = dyn FnOnce(&Asker) + Send;

/// What an executor asks with.
pub(super) struct Asker {
    pub(super) keeper: Arc<Keeper>,
    pub(super) breakers: Arc<Breakers>,
    pub(super) part: Part,
}

/// Whom an executor asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Those who decide: the first final answer is the last.
    Chain,
    /// Shadows: each is asked, beside decisions.
    Shadows,
}

/// An opinion, and what whoever has it did with what it may see.
pub(super) struct Voice<V> {
    pub(super) opinion: Opinion<V>,
    pub(super) trail: Trail,
}

/// Where the voices of a decision arrive, in the order asked.
pub(super) type Voices<V> = oneshot::Receiver<Vec<Voice<V>>>;

impl Job {
    /// Asks `chain`, who see `views`, about `question`. Nothing is asked once nobody waits any more; what was `asked`
    /// longer ago than the host's patience is denied.
    pub(super) fn new<Q: Question>(
        chain: Arc<[Bound]>,
        views: Views,
        question: Arc<Q>,
        asked: Instant,
    ) -> (Self, Voices<Q::Verdict>) {
        let (reply, answer) = oneshot::channel();
        let job = Self(Box::new(move |asker| {
            if !reply.is_closed() {
                // Nobody waits any more: nothing to do.
                let _ = reply.send(asker.ask_all(&chain, &views, &*question, asked));
            }
        }));
        (job, answer)
    }
}

/// Starts the thread; it ends when `jobs` is closed.
pub(super) fn start(asker: Asker, jobs: Arc<Jobs>) -> std::io::Result<()> {
    let name = match asker.part {
        Part::Chain => "policy-ask",
        Part::Shadows => "policy-shadow",
    };
    thread::Builder::new().name(name.into()).spawn(move || run(&asker, &jobs)).map(drop)
}

fn run(asker: &Asker, jobs: &Jobs) {
    while let Some((tenant, Job(work))) = jobs.pop() {
        let started = Instant::now();
        // A fault in the host's own code costs one decision, not the executor: the dropped sender denies it.
        let _ = catch_unwind(AssertUnwindSafe(|| work(asker)));
        jobs.charge(&tenant, started.elapsed());
    }
}

impl Asker {
    fn ask_all<Q: Question>(
        &self,
        chain: &[Bound],
        views: &Views,
        question: &Q,
        asked: Instant,
    ) -> Vec<Voice<Q::Verdict>> {
        let patience = self.keeper.limits().patience;
        let mut voices = Vec::with_capacity(chain.len());
        for (at, bound) in chain.iter().enumerate() {
            let started = Instant::now();
            let view = views.of(at, bound);
            let key = || Key {
                plugin: bound.name.clone(),
                scope: bound.scope.clone(),
                version: bound.plugin.version_key(),
                hook: Q::HOOK,
                tenant: question.tenant().clone(),
            };
            let (verdict, fuel, trail) = if started.duration_since(asked) > patience {
                silent(PolicyFault::Unavailable(format!("decision waited longer than {patience:?}")))
            } else if let Err(open) = self.breakers.check(&key(), started) {
                silent(open)
            } else {
                let asked = self.ask(bound, view, question);
                // While there is no host nobody is asked, and nobody has failed: one loss is one failure.
                if let Some((verdict, ..)) = &asked {
                    self.breakers.note(key(), verdict, Instant::now());
                }
                asked.unwrap_or_else(|| silent(PolicyFault::HostLost))
            };
            let opinion = opinion(bound, verdict, fuel, started.elapsed());
            let is_last = self.part == Part::Chain && hook::decides::<Q>(&opinion);
            voices.push(Voice { opinion, trail });
            if is_last {
                break;
            }
        }
        voices
    }

    /// The answer, what it cost and what it left; `None` while there is no policy host.
    fn ask<Q: Question>(&self, bound: &Bound, view: View<'_>, question: &Q) -> Option<Answered<Q::Verdict>> {
        let (compiled, settings) = match bound.plugin.code() {
            Ok(code) => code,
            Err(cause) => return Some(silent(PolicyFault::Unavailable(cause.to_owned()))),
        };
        let session = self.keeper.now()?;
        let spoken = match self.part {
            Part::Chain => session.decide(compiled, settings, view, question),
            Part::Shadows => session.rehearse(compiled, settings, view, question),
        };
        Some(match spoken {
            Ok(Spoken { said, fuel, notes, dropped, kv, inventory, backtrace }) => {
                notes::write(&bound.name, notes, dropped);
                let said = hook::checked(question, said, &bound.scope);
                let (said, trail) = view::heard(view, said, (kv, inventory, backtrace));
                (said, fuel, trail)
            }
            Err(fault) => silent(fault),
        })
    }
}

/// An answer, its cost, and what the call left.
type Answered<V> = (Result<V, PolicyFault>, u64, Trail);

/// Of somebody who was not asked, or not heard.
fn silent<V>(fault: PolicyFault) -> Answered<V> {
    (Err(fault), 0, Trail::default())
}

/// `verdict` as the opinion of `bound`.
pub(super) fn opinion<V>(bound: &Bound, verdict: Result<V, PolicyFault>, fuel: u64, took: Duration) -> Opinion<V> {
    let (plugin, digest, scope) = (bound.name.clone(), bound.plugin.digest(), bound.scope.clone());
    Opinion { plugin, digest, scope, weight: bound.weight, verdict, fuel, took }
}
