//! `ostler plugin push`: from source to a plugin that decides.
//!
//! ```text
//!   DIR ──build──▶ DIR/target/NAME.wasm ──DIR/fixtures──▶ as expected ──sign (--key)──▶ load ──▶ the next decision
//! ```
//! What fails ends it there: what is loaded stays as it was.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{build, suite};
use crate::cli::args::{GlobalArgs, PluginLoadArgs, PluginPushArgs, PluginSignArgs};
use crate::cli::client::Client;
use crate::cli::commands::plugin::{self, Upload, plugin_id};
use crate::cli::commands::sign;
use crate::cli::failure::Failure;
use crate::cli::print;

pub(super) async fn push(arguments: PluginPushArgs, global: &GlobalArgs) -> Result<(), Failure> {
    let PluginPushArgs { dir, key, effort, binding } = arguments;
    let mut steps = Steps(Instant::now());
    let dir = std::fs::canonicalize(&dir)
        .map_err(|error| Failure::local(format_args!("cannot read {}", dir.display()), &error))?;
    let plugin = plugin_id(binding.name.as_deref(), Some(&dir))?;
    let file = file(&dir, plugin.as_str())?;
    steps.done(&build::made(&dir, &file, effort)?);
    let fixtures = dir.join("fixtures");
    if fixtures.is_dir() {
        let passed = suite::passed(&file, &fixtures).await?;
        steps.done(&format!("{passed} fixtures passed"));
    } else {
        steps.done(&format!("no fixtures are in {}", fixtures.display()));
    }
    let mut signatures = Vec::new();
    if let Some(key) = key {
        let out = file.with_added_extension("sig");
        sign::write(&PluginSignArgs { file: file.clone(), key, out: Some(out.clone()) })?;
        steps.done(&format!("signed: {}", out.display()));
        signatures.push(out);
    }
    let last = if binding.change.validate_only { "could be loaded" } else { "loaded" };
    let upload = Upload::prepare(PluginLoadArgs { file, signatures, binding })?;
    plugin::load(Client::connect(global).await?, upload).await?;
    steps.done(last);
    Ok(())
}

/// Where the component goes: with what else its build leaves.
fn file(dir: &Path, name: &str) -> Result<PathBuf, Failure> {
    let target = dir.join("target");
    std::fs::create_dir_all(&target)
        .map_err(|error| Failure::local(format_args!("cannot make {}", target.display()), &error))?;
    Ok(target.join(format!("{name}.wasm")))
}

/// Says on stderr what each step took.
struct Steps(Instant);

impl Steps {
    fn done(&mut self, what: &str) {
        let took = self.0.elapsed();
        self.0 += took;
        // To the millisecond, as people read it.
        let took = Duration::from_millis(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        eprintln!("{what} ({})", print::duration(took));
    }
}
