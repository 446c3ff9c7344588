//! What decisions of plugins cost: each on a fresh instance, as the daemon has them made. Needs no guest (`cargo xtask bench`).
//!
//! ```text
//!   OSTLER_BIN     the binary under test      OSTLER_PLUGINS   where components are (else target/plugins)
//!   OSTLER_OUT     where policy.json is written
//! ```
//! Figures are percentiles of the time from the question to the decision, queue, encoding and checks included; the 10th is
//! what it takes while nothing else wants the CPUs. What is compared takes turns, so that whatever else the machine does
//! disturbs all alike. Parts: `process`, what the policy host's own process costs; `beside`, other ways to ask the same;
//! `crowd`, a thousand tenants with plugins of their own; `edit`, what its author waits for.

mod beside;
mod crowd;
mod edit;
mod figure;
mod process;
mod question;
// The shipped plugin as a part of this program: its two modules that know nothing of components.
#[allow(dead_code, unused_imports, reason = "its tests run where it is at home")]
#[path = "../../plugins/sriov-net/src/rules.rs"]
mod rules;
#[allow(dead_code, unused_imports, reason = "its tests run where it is at home")]
#[path = "../../plugins/sriov-net/src/settings.rs"]
mod settings;
mod sidecar;
mod warm;

use std::path::{Path, PathBuf};

use serde_json::Value;

fn main() -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(measure())
}

async fn measure() -> Result<(), String> {
    let program = PathBuf::from(std::env::var_os("OSTLER_BIN").ok_or("set OSTLER_BIN (see `cargo xtask bench`)")?);
    let out = std::env::var("OSTLER_OUT").map_or_else(|_| PathBuf::from("."), PathBuf::from);
    let path = out.join("policy.json");
    let mut figures = process::measure(&program).await?;
    figures.extend(beside::measure(&program).await?);
    figures.extend(crowd::measure(&program).await?);
    // What a failed build is not to take with it.
    write(&path, &figures)?;
    figures.extend(edit::measure(&program).await?);
    write(&path, &figures)
}

fn write(path: &Path, figures: &[Value]) -> Result<(), String> {
    let text = serde_json::to_string_pretty(figures).map_err(|error| error.to_string())?;
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
