//! A thousand tenants with three plugins each, all different: what one takes to be loaded, compiled and from the node's files;
//! what it holds in memory; and what decisions cost among so many.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ostler::daemon::policy::{Bound, CompilerConfig, PolicyConfig, PolicyHost};
use ostler::model::{PluginMode, PolicyScope, VfOutcome};
use serde_json::{Value, json};

use crate::figure::Figure;
use crate::question::{component, question};

const TENANTS: usize = 1_000;
const EACH: usize = 3;
const CANDIDATES: usize = 64;
/// Decisions of each kind, in turns of as many as there are tenants.
const ROUNDS: usize = 5;

type Chains = Vec<Arc<[Bound]>>;

/// Prints the figures and gives them.
pub async fn measure(program: &Path) -> Result<Vec<Value>, String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let config = || {
        let compiler = CompilerConfig::in_dir(dir.path(), program, true).map_err(|error| error.to_string())?;
        Ok::<_, String>(PolicyConfig { compiler: Some(compiler), ..PolicyConfig::for_author(program) })
    };
    let (host, _, cold) = crowd(config()?, "compiled").await?;
    drop(host);
    // Another host, as after a restart.
    let (host, chains, cached) = crowd(config()?, "from files").await?;
    let (cold, cached) = (Figure::of(cold), Figure::of(cached));
    println!("{:<45} {cold}", "a load, compiled, µs");
    println!("{:<45} {cached}", "a load, from the node's files, µs");
    let memory = Memory::of(host.process_id().ok_or("the policy host is gone")?)?;
    let alone = PolicyHost::start(PolicyConfig::for_author(program)).map_err(|error| error.to_string())?;
    let empty = Memory::of(alone.process_id().ok_or("the policy host is gone")?)?;
    let loaded = TENANTS * EACH;
    let each = |held: u64, without: u64| held.saturating_sub(without) as f64 / loaded as f64;
    let (resident, anonymous) = (each(memory.resident, empty.resident), each(memory.anonymous, empty.anonymous));
    println!("memory of one of {loaded} plugins, KiB: {resident:.1} resident, {anonymous:.1} of it anonymous");
    let times = decide_in_turns(&host, &chains).await?;
    let [many, one] = times.map(Figure::of);
    println!("{:<45} {many}", format!("chain of {EACH}, each time another tenant, µs"));
    println!("{:<45} {one}", format!("chain of {EACH}, one tenant, µs"));
    Ok(vec![json!({
        "part": "crowd", "tenants": TENANTS, "plugins_each": EACH, "candidates": CANDIDATES,
        "load_compiled_us": cold.to_json(), "load_from_files_us": cached.to_json(),
        "resident_kib_each": resident, "anonymous_kib_each": anonymous,
        "another_tenant_us": many.to_json(), "one_tenant_us": one.to_json(),
        "ratio_p50": many.p50_us / one.p50_us, "ratio_p99": many.p99_us / one.p99_us,
    })])
}

/// A host with everybody's plugins, their chains, and what each took to be loaded.
async fn crowd(config: PolicyConfig, how: &str) -> Result<(PolicyHost, Chains, Vec<Duration>), String> {
    let host = PolicyHost::start(config).map_err(|error| error.to_string())?;
    let (plain, mut times, mut chains) = (component()?, Vec::new(), Vec::new());
    for tenant in 0..TENANTS {
        if tenant % 100 == 0 {
            eprintln!("loading plugins of tenant {tenant} of {TENANTS}, {how}");
        }
        let mut chain = Vec::new();
        for number in 0..EACH {
            let bytes = different(&plain, tenant * EACH + number);
            let begin = Instant::now();
            let plugin = host.load(bytes, BTreeMap::new()).await.map_err(|error| error.to_string())?;
            times.push(begin.elapsed());
            let (name, scope, mode) = (format!("p{number}"), PolicyScope::Operator, PluginMode::Enforced);
            chain.push(Bound { name, scope, plugin, mode, weight: Default::default() });
        }
        chains.push(chain.into());
    }
    Ok((host, chains, times))
}

/// The same plugin with another content: a custom section that nobody reads (core specification, 5.5.3).
fn different(component: &[u8], number: usize) -> Vec<u8> {
    let [low, high, ..] = number.to_le_bytes();
    [component, &[0, 4, 1, b'n', low, high]].concat()
}

/// Decisions about VMs of all tenants in turn, and of one.
async fn decide_in_turns(host: &PolicyHost, chains: &Chains) -> Result<[Vec<Duration>; 2], String> {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (kind, times) in times.iter_mut().enumerate() {
            for tenant in 0..TENANTS {
                let chain = Arc::clone(&chains[if kind == 0 { tenant } else { 0 }]);
                let question = question(CANDIDATES)?;
                let asked = Instant::now();
                let decision = host.select_vf(chain, question).await;
                times.push(asked.elapsed());
                if let VfOutcome::Deny { code, message, .. } = decision.dry_run().outcome {
                    return Err(format!("{code}: {message}"));
                }
            }
        }
    }
    Ok(times)
}

/// What a process holds, in KiB (`/proc/<pid>/smaps_rollup`).
struct Memory {
    resident: u64,
    anonymous: u64,
}

impl Memory {
    fn of(pid: u32) -> Result<Self, String> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        let kib = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
        };
        Ok(Self { resident: kib("Rss:"), anonymous: kib("Anonymous:") })
    }
}
