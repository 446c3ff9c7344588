//! Decisions of plugins, each on a fresh instance, as the daemon sees them: with the policy host as the process that it is,
//! and as threads of this process, which shows what the process of its own costs. Needs no guest (`cargo xtask bench`).
//!
//! ```text
//!   OSTLER_BIN     the binary under test      OSTLER_PLUGINS   where components are (else target/plugins)
//!   OSTLER_OUT     where policy.json is written
//! ```
//! Figures are percentiles of the time from the question to the decision, queue, encoding and checks included; the 10th is
//! what it takes while nothing else wants the CPUs. The two kinds take turns, so that whatever else the machine does disturbs
//! both alike. *In a row*: the next question follows at once; *alone*: after a pause in which everything has gone to sleep.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ostler::daemon::policy::{Bound, HostProgram, LoadedPlugin, PolicyConfig, PolicyHost};
use ostler::model::{LastTenant, PfView, PluginMode, PolicyScope, SelectVfRequest, VfCandidate, VfOutcome, VfWish};
use serde_json::json;

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

fn main() -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(measure())
}

async fn measure() -> Result<(), String> {
    let program = PathBuf::from(std::env::var_os("OSTLER_BIN").ok_or("set OSTLER_BIN (see `cargo xtask bench`)")?);
    let process = HostProgram { program, user: 65534, is_lenient: true, cgroup: None };
    let kinds = [("process", Some(process)), ("threads", None)];
    let mut contenders = Vec::new();
    for (name, host) in kinds {
        let host = PolicyHost::start(PolicyConfig { host, ..PolicyConfig::default() });
        let host = host.map_err(|error| format!("{name}: {error}"))?;
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
                "candidates": candidates, "chain": plugins, "way": way,
                "process_us": process.to_json(), "threads_us": threads.to_json(),
                "ratio_p10": process.p10_us / threads.p10_us, "ratio_p50": process.p50_us / threads.p50_us,
            }));
        }
    }
    let out = std::env::var("OSTLER_OUT").map_or_else(|_| PathBuf::from("."), PathBuf::from);
    let path = out.join("policy.json");
    let text = serde_json::to_string_pretty(&figures).map_err(|error| error.to_string())?;
    std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn component() -> Result<Vec<u8>, String> {
    let plugins = std::env::var_os("OSTLER_PLUGINS").map_or_else(|| "target/plugins".into(), PathBuf::from);
    let path = plugins.join("sriov-net.wasm");
    std::fs::read(&path).map_err(|error| format!("{}: {error}: run `cargo xtask plugins`", path.display()))
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

/// A question about VFs of four cards.
fn question(candidates: usize) -> Result<SelectVfRequest, String> {
    let wrong = |error: &dyn std::fmt::Display| error.to_string();
    let pf = |at: usize| -> Result<PfView, String> {
        Ok(PfView {
            address: format!("0000:{:02x}:00.0", 0x10 + at).parse().map_err(|error| wrong(&error))?,
            name: format!("eth{at}"),
            numa_node: Some(u32::from(at >= 2)),
            root: None,
            link_mbps: Some(25_000),
            total_vfs: 256,
            free_vfs: 256,
            own_vfs: 0,
            other_tenants: 0,
        })
    };
    let candidate = |at: usize| -> Result<VfCandidate, String> {
        let (pf, index) = (at % 4, at / 4);
        let address = format!("0000:{:02x}:{:02x}.{}", 0x10 + pf, index / 8, index % 8);
        Ok(VfCandidate {
            address: address.parse().map_err(|error| wrong(&error))?,
            pf,
            index: u16::try_from(index).map_err(|error| wrong(&error))?,
            last_tenant: LastTenant::Nobody,
        })
    };
    Ok(SelectVfRequest {
        tenant: "acme".parse().map_err(|error| wrong(&error))?,
        vm: "web".parse().map_err(|error| wrong(&error))?,
        vcpus: 4,
        memory_mib: 1024,
        disks: 1,
        nics: 1,
        nic: "eth0".parse().map_err(|error| wrong(&error))?,
        wish: VfWish { mac: None, vlan: None },
        pfs: (0..4).map(pf).collect::<Result<_, String>>()?,
        candidates: (0..candidates).map(candidate).collect::<Result<_, String>>()?,
    })
}

#[derive(Clone, Copy)]
struct Figure {
    p10_us: f64,
    p50_us: f64,
    p99_us: f64,
}

impl Figure {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let at = |percent: usize| {
            let time = times.get(times.len() * percent / 100).copied().unwrap_or_default();
            (time.as_secs_f64() * 1e7).round() / 10.0
        };
        Self { p10_us: at(10), p50_us: at(50), p99_us: at(99) }
    }

    fn to_json(self) -> serde_json::Value {
        json!({ "p10": self.p10_us, "p50": self.p50_us, "p99": self.p99_us })
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>10.1} {:>10.1} {:>10.1}", self.p10_us, self.p50_us, self.p99_us)
    }
}
