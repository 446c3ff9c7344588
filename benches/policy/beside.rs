//! The same question asked in other ways: a native call, a warm instance, a fresh one in this process, the daemon's way, and
//! a call over gRPC on loopback. Ratios are the daemon's way divided by each.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ostler::daemon::policy::{Bound, PolicyConfig, PolicyHost};
use ostler::model::{PluginMode, PolicyScope, VfOutcome};
use ostler_policy::select_vf::{LastTenant, Pf, SelectVfRequest};
use ostler_policy::testing;
use serde_json::{Value, json};

use crate::figure::Figure;
use crate::question::{component, question};
use crate::rules::Rules;
use crate::sidecar::Sidecar;
use crate::warm::Warm;

const SIZES: [usize; 2] = [64, 1024];
/// Turns, and questions of each way in one.
const ROUNDS: usize = 20;
const TURN: usize = 50;
/// Ways, in the order of the table. Of the two that decide there is also the plugin's call alone, sandbox included: what is left
/// is the way there, and the question spelled for the record.
const WAYS: [&str; 7] =
    ["native", "warm instance", "fresh instance", "daemon", "gRPC", "fresh instance, call alone", "daemon, call alone"];
const ASKED: usize = 5;
/// Who asks at once, and how many questions each has.
const ASKERS: [usize; 2] = [1, 2];
const QUESTIONS: usize = 5_000;

/// What the plugin's rules say, called as any function; the number of marks.
pub fn native(question: &SelectVfRequest) -> usize {
    let rules = Rules::default();
    black_box(question.rank(|row| rules.judge(row))).marks.len()
}

/// Prints the figures and gives them.
pub async fn measure(program: &Path) -> Result<Vec<Value>, String> {
    let mut figures = Vec::new();
    println!("{:<45} {:>32} {:>14}", "select-vf, µs", "p10, p50, p99", "daemon ÷ it");
    for candidates in SIZES {
        let times = in_turns(program, candidates).await?.map(Figure::of);
        let daemon = times[3];
        for (way, figure) in WAYS.iter().zip(times) {
            let ratio = daemon.p50_us / figure.p50_us;
            println!("{:<45} {figure} {ratio:>14.3}", format!("{candidates} candidates, {way}"));
            figures.push(json!({
                "part": "beside", "candidates": candidates, "way": way, "us": figure.to_json(), "daemon_ratio_p50": ratio,
            }));
        }
    }
    figures.push(several(program).await?);
    Ok(figures)
}

/// A plugin of a host, as a chain.
async fn chain(host: &PolicyHost) -> Result<Arc<[Bound]>, String> {
    let plugin = host.load(component()?, BTreeMap::new()).await.map_err(|error| error.to_string())?;
    let (scope, mode) = (PolicyScope::Operator, PluginMode::Enforced);
    Ok([Bound { name: "p".into(), scope, plugin, mode, weight: Default::default() }].into())
}

async fn in_turns(program: &Path, candidates: usize) -> Result<[Vec<Duration>; WAYS.len()], String> {
    let started = |config| PolicyHost::start(config).map_err(|error| error.to_string());
    let (threads, process) = (started(PolicyConfig::default())?, started(PolicyConfig::for_author(program))?);
    let chains = [chain(&threads).await?, chain(&process).await?];
    let hosts = [&threads, &process];
    let mut warm = Warm::new(&component()?, candidates).map_err(|error| error.to_string())?;
    let plain = plain(candidates);
    // As many bytes as columns of small numbers have.
    let mut sidecar = Sidecar::start(plain.clone(), 256 + 5 * candidates).await?;
    let mut times: [Vec<Duration>; WAYS.len()] = Default::default();
    for round in 0..=ROUNDS {
        for way in 0..ASKED {
            for _ in 0..TURN {
                let mut alone = None;
                let (took, marks) = match way {
                    0 => timed(|| Ok(native(&plain)))?,
                    1 => {
                        warm.prepare().map_err(|error| error.to_string())?;
                        timed(|| warm.ask().map_err(|error| error.to_string()))?
                    }
                    2 | 3 => {
                        let (took, call, marks) = decide(hosts[way - 2], &chains[way - 2], candidates).await?;
                        alone = Some((way - 2 + ASKED, call));
                        (took, marks)
                    }
                    _ => {
                        let asked = Instant::now();
                        let marks = sidecar.ask().await?;
                        (asked.elapsed(), marks)
                    }
                };
                if marks != candidates {
                    return Err(format!("{}: {marks} marks for {candidates} candidates", WAYS[way]));
                }
                // The first round warms slots and caches.
                if round > 0 {
                    times[way].push(took);
                    alone.into_iter().for_each(|(way, call)| times[way].push(call));
                }
            }
        }
    }
    Ok(times)
}

fn timed(work: impl FnOnce() -> Result<usize, String>) -> Result<(Duration, usize), String> {
    let asked = Instant::now();
    let marks = work()?;
    Ok((asked.elapsed(), marks))
}

/// How long it took, how long the plugin's call, and the number of marks.
async fn decide(
    host: &PolicyHost,
    chain: &Arc<[Bound]>,
    candidates: usize,
) -> Result<(Duration, Duration, usize), String> {
    let (chain, question) = (Arc::clone(chain), question(candidates)?);
    let asked = Instant::now();
    let decision = host.select_vf(chain, question).await;
    let took = asked.elapsed();
    let decision = decision.dry_run();
    let call = decision.opinions.iter().map(|opinion| opinion.took).sum();
    match decision.outcome {
        VfOutcome::Select { order, .. } => Ok((took, call, order.len())),
        denied => Err(format!("{denied:?}")),
    }
}

/// The question of `question`, as the plugin's own types.
fn plain(candidates: usize) -> SelectVfRequest {
    let pf = |at: u16| Pf {
        address: format!("0000:{:02x}:00.0", 0x10 + at),
        numa_node: Some(u32::from(at >= 2)),
        link_mbps: Some(25_000),
        total_vfs: 256,
        free_vfs: 256,
        ..testing::pf(&format!("eth{at}"))
    };
    let rows = (0..candidates as u16).map(|at| (at % 4, at / 4, LastTenant::Nobody)).collect::<Vec<_>>();
    testing::select_vf((0..4).map(pf).collect(), &rows)
}

/// Decisions a second, by how many ask at once.
async fn several(program: &Path) -> Result<Value, String> {
    let host = PolicyHost::start(PolicyConfig::for_author(program)).map_err(|error| error.to_string())?;
    let chain = chain(&host).await?;
    let mut rates = Vec::new();
    for askers in ASKERS {
        let begin = Instant::now();
        let asks = (0..askers).map(|_| {
            let (host, chain) = (host.clone(), Arc::clone(&chain));
            tokio::spawn(async move {
                for _ in 0..QUESTIONS {
                    decide(&host, &chain, SIZES[0]).await?;
                }
                Ok::<_, String>(())
            })
        });
        for asked in asks.collect::<Vec<_>>() {
            asked.await.map_err(|error| error.to_string())??;
        }
        rates.push((askers * QUESTIONS) as f64 / begin.elapsed().as_secs_f64());
    }
    println!("decisions a second, {} candidates: {:.0} asked by one, {:.0} by two", SIZES[0], rates[0], rates[1]);
    Ok(json!({ "part": "several", "candidates": SIZES[0], "per_second": rates, "ratio": rates[1] / rates[0] }))
}
