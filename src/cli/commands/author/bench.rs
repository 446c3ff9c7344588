//! `ostler plugin bench`: what an answer costs.

use std::time::Duration;

use serde::Serialize;

use super::fixture::Fixture;
use super::load::{Workbench, refused};
use super::run;
use crate::cli::args::{Output, PluginBenchArgs};
use crate::cli::failure::{Exit, Failure};
use crate::cli::view::json;
use crate::cli::{print, show};
use crate::daemon::policy::Limits;
use crate::model::Said;

/// Calls that are not counted: the first ones find nothing in any cache.
const WARM_UP: u32 = 20;

#[derive(Serialize)]
struct BenchView {
    plugin: String,
    digest: String,
    hook: String,
    verdict: String,
    calls: u32,
    fuel: u64,
    fuel_limit: u64,
    p50_ns: u64,
    p99_ns: u64,
    longest_ns: u64,
}

pub(super) async fn bench(arguments: PluginBenchArgs, output: Output) -> Result<(), Failure> {
    let fixture = Fixture::read(&arguments.fixture)?.with(arguments.settings)?;
    let workbench = Workbench::open(&arguments.file)?;
    let plugin = workbench.load(fixture.settings.clone()).await.map_err(|error| refused(&error))?;
    let ask = || run::ask(&workbench.host, &plugin, &fixture).map_err(|error| run::not_asked(&error));
    let (first, _) = ask()?;
    if let Said::Fault(fault) = &first.said {
        return Err(Failure::new(Exit::Refused, format!("the plugin failed ({}): {fault}", fault.code())));
    }
    for _ in 0..WARM_UP {
        ask()?;
    }
    let mut took = Vec::new();
    for _ in 0..arguments.calls {
        let (answer, _) = ask()?;
        if (&answer.said, answer.fuel) != (&first.said, first.fuel) {
            let what =
                format!("the same question cost {} fuel, then {}, or was answered otherwise", first.fuel, answer.fuel);
            return Err(Failure::new(Exit::Refused, what));
        }
        took.push(answer.took_ns);
    }
    took.sort_unstable();
    let percentile = |percent: usize| took.get((took.len() * percent / 100).min(took.len() - 1)).copied().unwrap_or(0);
    let view = BenchView {
        plugin: plugin.name().to_owned(),
        digest: plugin.digest().to_string(),
        hook: fixture.hook.clone(),
        verdict: first.summary().0,
        calls: arguments.calls,
        fuel: first.fuel,
        fuel_limit: Limits::default().fuel,
        p50_ns: percentile(50),
        p99_ns: percentile(99),
        longest_ns: percentile(100),
    };
    match output {
        Output::Json => show(&json(&view, false)?),
        Output::Table => {
            let time = |nanos| print::duration(Duration::from_nanos(nanos));
            show(&print::facts(&[
                ("plugin", format!("{} {}", view.plugin, print::short_digest(&view.digest))),
                ("asked", format!("{} {} times, each on a fresh instance: {}", view.hook, view.calls, view.verdict)),
                ("fuel", format!("{} of {}, the same each time", view.fuel, view.fuel_limit)),
                (
                    "took",
                    format!("p50 {}, p99 {}, at most {}", time(view.p50_ns), time(view.p99_ns), time(view.longest_ns)),
                ),
            ]))
        }
    }
}
