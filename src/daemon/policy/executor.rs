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

use super::breaker::{Breakers, Key};
use super::hook::{self, Question};
use super::keeper::Keeper;
use super::notes;
use super::plugin::Bound;
use super::queue::Queue;

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

/// Where the opinions of a decision arrive, in the order asked.
pub(super) type Opinions<V> = oneshot::Receiver<Vec<Opinion<V>>>;

impl Job {
    /// Asks `chain` about `question`. Nothing is asked once nobody waits any more; what was `asked` longer ago than the
    /// host's patience is denied.
    pub(super) fn new<Q: Question>(
        chain: Arc<[Bound]>,
        question: Arc<Q>,
        asked: Instant,
    ) -> (Self, Opinions<Q::Verdict>) {
        let (reply, answer) = oneshot::channel();
        let job = Self(Box::new(move |asker| {
            if !reply.is_closed() {
                // Nobody waits any more: nothing to do.
                let _ = reply.send(asker.ask_all(&chain, &*question, asked));
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
    fn ask_all<Q: Question>(&self, chain: &[Bound], question: &Q, asked: Instant) -> Vec<Opinion<Q::Verdict>> {
        let patience = self.keeper.limits().patience;
        let mut opinions = Vec::with_capacity(chain.len());
        for bound in chain {
            let started = Instant::now();
            let key = || Key {
                plugin: bound.name.clone(),
                scope: bound.scope.clone(),
                version: bound.plugin.version_key(),
                hook: Q::HOOK,
                tenant: question.tenant().clone(),
            };
            let (verdict, fuel) = if started.duration_since(asked) > patience {
                (Err(PolicyFault::Unavailable(format!("decision waited longer than {patience:?}"))), 0)
            } else if let Err(open) = self.breakers.check(&key(), started) {
                (Err(open), 0)
            } else {
                let asked = self.ask(bound, question);
                // While there is no host nobody is asked, and nobody has failed: one loss is one failure.
                if let Some((verdict, _)) = &asked {
                    self.breakers.note(key(), verdict, Instant::now());
                }
                asked.unwrap_or((Err(PolicyFault::HostLost), 0))
            };
            let opinion = opinion(bound, verdict, fuel, started.elapsed());
            let is_last = self.part == Part::Chain && hook::decides::<Q>(&opinion);
            opinions.push(opinion);
            if is_last {
                break;
            }
        }
        opinions
    }

    /// The answer, and what it cost; `None` while there is no policy host.
    fn ask<Q: Question>(&self, bound: &Bound, question: &Q) -> Option<(Result<Q::Verdict, PolicyFault>, u64)> {
        let (compiled, settings) = match bound.plugin.code() {
            Ok(code) => code,
            Err(cause) => return Some((Err(PolicyFault::Unavailable(cause.to_owned())), 0)),
        };
        let session = self.keeper.now()?;
        let spoken = match self.part {
            Part::Chain => session.decide(compiled, settings, question),
            Part::Shadows => session.rehearse(compiled, settings, question),
        };
        Some(match spoken {
            Ok(spoken) => {
                notes::write(&bound.name, spoken.notes, spoken.dropped);
                (hook::checked(question, spoken.said, &bound.scope), spoken.fuel)
            }
            Err(fault) => (Err(fault), 0),
        })
    }
}

/// `verdict` as the opinion of `bound`.
pub(super) fn opinion<V>(bound: &Bound, verdict: Result<V, PolicyFault>, fuel: u64, took: Duration) -> Opinion<V> {
    let (plugin, digest, scope) = (bound.name.clone(), bound.plugin.digest(), bound.scope.clone());
    Opinion { plugin, digest, scope, verdict, fuel, took }
}
