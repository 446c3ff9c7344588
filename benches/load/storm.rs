//! A tenant's decisions at a steady rate: first beside a neighbour that behaves, then while their plugin is swapped and the
//! neighbour's loops, takes memory, traps and floods its log, then beside one that attacks the loader. One that fails, or is
//! made by a mixture of versions, ends it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at};

use super::figures::Figures;
use super::support::client::wait;
use super::support::storm::{Manner, Neighbour, Versions};
use super::support::{Caller, Host};

/// Clients, and how often each asks: 1,000 decisions a second.
const CLIENTS: u32 = 8;
const EVERY: Duration = Duration::from_millis(8);
/// How long each part lasts, and how often the plugin is replaced meanwhile.
const LASTS: Duration = Duration::from_secs(60);
const SWAPS: u32 = 100;
/// The neighbour's requests to each of its plugins: each has its quarter of the time.
const QUESTIONS: usize = 750;
/// Between them.
const PAUSE: Duration = Duration::from_millis(20);

/// The same without and with each.
pub fn measure(host: &Host) -> Result<Vec<Figures>, String> {
    let operator = host.operator();
    let callers: Vec<_> = (0..CLIENTS).map(|_| host.tenant("acme")).collect();
    let versions = Arc::new(Versions::load(&operator));
    let mut all = Vec::new();
    let globex = || host.tenant("globex");
    let quiet = || Neighbour::start(globex(), Manner::Quiet, QUESTIONS, PAUSE);
    let hostile = || Neighbour::start(globex(), Manner::Hostile, QUESTIONS, PAUSE);
    let attacking = || Neighbour::attacking(globex(), PAUSE);
    let parts: [(&str, &dyn Fn() -> Neighbour, bool); 3] = [
        ("Decisions, quiet", &quiet, false),
        ("Decisions, swaps, hostile neighbour", &hostile, true),
        ("Decisions, attacks on the loader", &attacking, false),
    ];
    for (name, neighbour, has_swaps) in parts {
        let neighbour = neighbour();
        let begun = Instant::now();
        let swaps = has_swaps.then(|| {
            let (operator, versions) = (operator.clone(), Arc::clone(&versions));
            std::thread::spawn(move || {
                for count in 0..SWAPS {
                    versions.swap(&operator, count as usize);
                    let due = begun + LASTS * (count + 1) / SWAPS;
                    wait(async { tokio::time::sleep_until(due.into()).await });
                }
            })
        });
        let took = wait(at_a_rate(&callers, &versions))?;
        let all_of_it = begun.elapsed();
        swaps.map_or(Ok(()), std::thread::JoinHandle::join).map_err(|_| "a swap failed")?;
        eprintln!("{name}: the neighbour's requests: {:?}", neighbour.stop());
        all.push(Figures::new(name, callers.len(), took, all_of_it));
    }
    Ok(all)
}

/// How long each took. What is due while another is under way follows at once.
async fn at_a_rate(callers: &[Caller], versions: &Arc<Versions>) -> Result<Vec<Duration>, String> {
    let mut clients = JoinSet::new();
    for (caller, number) in callers.iter().cloned().zip(0..) {
        let first = Instant::now() + EVERY * number / CLIENTS;
        let versions = Arc::clone(versions);
        clients.spawn(async move {
            let (mut ticks, mut took) = (interval_at(first.into(), EVERY), Vec::new());
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for _ in 0..LASTS.as_millis() / EVERY.as_millis() {
                ticks.tick().await;
                let begin = Instant::now();
                versions.decide(&caller).await?;
                took.push(begin.elapsed());
            }
            Ok::<_, String>(took)
        });
    }
    let took: Result<Vec<_>, _> = clients.join_all().await.into_iter().collect();
    Ok(took?.concat())
}
