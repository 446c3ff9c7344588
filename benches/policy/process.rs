//! Decisions as the daemon sees them: with the policy host as the process that it is, and as threads of this process, which
//! shows what the process of its own costs.
//!
//! *In a row*: the next question follows at once; *alone*: after a pause in which everything has gone to sleep.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ostler::daemon::policy::{Bound, LoadedPlugin, PolicyConfig, PolicyHost};
use ostler::model::{PluginMode, PolicyScope, VfOutcome};
use serde_json::{Value, json};

use crate::figure::Figure;
use crate::question::{component, question};

/// Candidates of a question, and plugins in a chain.
const SIZES: [(usize, usize); 4] = [(64, 1), (64, 3), (1024, 1), (1024, 3)];
/// Decisions in a row for each figure, in turns of so many.
const ROUNDS: usize = 20;
const TURN: usize = 100;
/// Decisions that stand alone, and the pause before each.
const ALONE: usize = 200;
const PAUSE: Duration = Duration::from_millis(2);

struct Kind {
    name: &'static str,
    host: PolicyHost,
    plugin: LoadedPlugin,
}

/// Prints the figures and gives them.
pub async fn measure(program: &Path) -> Result<Vec<Value>, String> {
    let kinds = [("process", PolicyConfig::for_author(program)), ("threads", PolicyConfig::default())];
    let mut contenders = Vec::new();
    for (name, config) in kinds {
        let host = PolicyHost::start(config).map_err(|error| format!("{name}: {error}"))?;
        let plugin = host.load(component()?, BTreeMap::new()).await.map_err(|error| format!("{name}: {error}"))?;
        contenders.push(Kind { name, host, plugin });
    }
    let mut figures = Vec::new();
    println!("{:<45} {:>32} {:>32}", "select-vf, µs: p10, p50, p99", "process", "threads");
    for (candidates, plugins) in SIZES {
        for (way, times) in [
            ("in a row", in_a_row(&contenders, candidates, plugins).await?),
            ("alone", alone(&contenders, candidates, plugins).await?),
        ] {
            let [process, threads] = times.map(Figure::of);
            let what = format!("{candidates} candidates, chain of {plugins}, {way}");
            println!("{what:<45} {process} {threads}");
            figures.push(json!({
                "part": "process", "candidates": candidates, "chain": plugins, "way": way,
                "process_us": process.to_json(), "threads_us": threads.to_json(),
                "ratio_p10": process.p10_us / threads.p10_us, "ratio_p50": process.p50_us / threads.p50_us,
            }));
        }
    }
    Ok(figures)
}

async fn in_a_row(contenders: &[Kind], candidates: usize, plugins: usize) -> Result<[Vec<Duration>; 2], String> {
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        for (kind, times) in contenders.iter().zip(&mut times) {
            for _ in 0..TURN {
                let took = decide(kind, candidates, plugins).await?;
                // The first round warms slots and caches.
                if round > 0 {
                    times.push(took);
                }
            }
        }
    }
    Ok(times)
}

async fn alone(contenders: &[Kind], candidates: usize, plugins: usize) -> Result<[Vec<Duration>; 2], String> {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..ALONE {
        for (kind, times) in contenders.iter().zip(&mut times) {
            tokio::time::sleep(PAUSE).await;
            times.push(decide(kind, candidates, plugins).await?);
        }
    }
    Ok(times)
}

async fn decide(kind: &Kind, candidates: usize, plugins: usize) -> Result<Duration, String> {
    let bound = |at| Bound {
        name: format!("p{at}"),
        scope: PolicyScope::Operator,
        plugin: kind.plugin.clone(),
        mode: PluginMode::Enforced,
        weight: Default::default(),
    };
    let (chain, question) = ((0..plugins).map(bound).collect::<Arc<[_]>>(), question(candidates)?);
    let asked = Instant::now();
    let decision = kind.host.select_vf(chain, question).await;
    let took = asked.elapsed();
    match decision.dry_run().outcome {
        VfOutcome::Select { .. } => Ok(took),
        denied => Err(format!("{}: {denied:?}", kind.name)),
    }
}
