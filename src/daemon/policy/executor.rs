//! The one thread that runs decisions. Key types: [`Job`], [`start`].
//!
//! One thread, because fresh instances on several threads contend for the process's memory map and are slower together
//! (measured: 31,000 decisions a second on one thread, 23,000 on two). Its queue is bounded; what does not fit is denied.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::model::{Opinion, PolicyFault};

use super::call::Site;
use super::engine::Sandbox;
use super::hook::{self, Question};
use super::plugin::Bound;

/// A decision to make, on the executor's thread.
pub(super) struct Job(Box<dyn FnOnce(&Sandbox) + Send>);

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
        let job = Self(Box::new(move |sandbox| {
            if !reply.is_closed() {
                // Nobody waits any more: nothing to do.
                let _ = reply.send(ask_all(sandbox, &chain, &*question, asked));
            }
        }));
        (job, answer)
    }
}

/// Starts the thread; it ends when the last sender is gone.
pub(super) fn start(sandbox: Sandbox) -> std::io::Result<SyncSender<Job>> {
    let (sender, receiver) = sync_channel(sandbox.limits().queue_depth);
    thread::Builder::new().name("policy".into()).spawn(move || run(&sandbox, &receiver))?;
    Ok(sender)
}

fn run(sandbox: &Sandbox, jobs: &Receiver<Job>) {
    for Job(work) in jobs {
        // A fault in the host's own code costs one decision, not the executor: the dropped sender denies it.
        let _ = catch_unwind(AssertUnwindSafe(|| work(sandbox)));
    }
}

fn ask_all<Q: Question>(sandbox: &Sandbox, chain: &[Bound], question: &Q, asked: Instant) -> Vec<Opinion<Q::Verdict>> {
    let patience = sandbox.limits().patience;
    let mut opinions = Vec::with_capacity(chain.len());
    for bound in chain {
        let started = Instant::now();
        let (verdict, fuel) = if started.duration_since(asked) > patience {
            (Err(PolicyFault::Unavailable(format!("decision waited longer than {patience:?}"))), 0)
        } else {
            ask(sandbox, bound, question)
        };
        let opinion = opinion(bound, verdict, fuel, started.elapsed());
        let is_last = hook::decides::<Q>(&opinion);
        opinions.push(opinion);
        if is_last {
            break;
        }
    }
    opinions
}

/// The answer, and what it cost.
fn ask<Q: Question>(sandbox: &Sandbox, bound: &Bound, question: &Q) -> (Result<Q::Verdict, PolicyFault>, u64) {
    let (compiled, settings) = match bound.plugin.code() {
        Ok(code) => code,
        Err(cause) => return (Err(PolicyFault::Unavailable(cause.to_owned())), 0),
    };
    let site = Site { sandbox, code: &compiled.code, settings, name: &bound.name, fuel: Cell::default() };
    let verdict = hook::ask(question, &site, &bound.scope);
    (verdict, site.fuel.get())
}

/// `verdict` as the opinion of `bound`.
pub(super) fn opinion<V>(bound: &Bound, verdict: Result<V, PolicyFault>, fuel: u64, took: Duration) -> Opinion<V> {
    let (plugin, digest, scope) = (bound.name.clone(), bound.plugin.digest(), bound.scope.clone());
    Opinion { plugin, digest, scope, verdict, fuel, took }
}
