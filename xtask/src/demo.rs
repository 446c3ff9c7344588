//! `cargo xtask demo`: the whole path, from certificates to a guest's shell, with the real programs.
//!
//! The demo itself is a shell script, `assets/demo.sh`: what it does can be typed.

use crate::cargo::build_ostler;
use crate::lab::{self, Errand, probe};
use crate::test::assets;
use crate::workspace::{Workspace, remove};
use anyhow::{Context, Result};
use clap::Args;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

const SCRIPT: &str = include_str!("../assets/demo.sh");
const LIMIT: Duration = Duration::from_secs(10 * 60);
const LAB_MEMORY_MIB: u32 = 4096;

/// Options of `cargo xtask demo`.
#[derive(Args)]
pub(crate) struct DemoArguments {
    /// Run in the lab even if this machine could run it
    #[arg(long)]
    in_lab: bool,
}

/// Runs the chore.
pub(crate) fn run(workspace: &Workspace, arguments: &DemoArguments) -> Result<ExitCode> {
    let assets = assets(workspace)?;
    let ostler = build_ostler(workspace)?;
    let script: PathBuf = workspace.lab(&format!("demo.{}.sh", std::process::id()));
    fs::write(&script, SCRIPT)?;
    let verdict = probe::verdict(workspace)?;
    let outcome = if verdict.can_run_directly && !arguments.in_lab {
        eprintln!("== the demo runs on this machine: {}", verdict.reason);
        let status = Command::new("sh").arg(&script).env("OSTLER_BIN", &ostler).env("OSTLER_ASSETS", &assets).status();
        status
            .context("cannot run sh")
            .map(|status| status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    } else {
        eprintln!("== the demo runs in the lab: {}", if arguments.in_lab { "as asked for" } else { &verdict.reason });
        let [daemon, vmm] = lab::programs(&ostler);
        let carried = vec![
            daemon,
            vmm,
            (workspace.root().join("target/plugins"), "assets/plugins".to_owned()),
            (script.clone(), "demo.sh".to_owned()),
        ];
        let mut environment = lab::contract();
        environment.push(("OSTLER_DEMO_CARD".to_owned(), "1".to_owned()));
        let errand = Errand {
            command: vec!["sh".to_owned(), "/lab/demo.sh".to_owned()],
            carried,
            environment,
            memory_mib: LAB_MEMORY_MIB,
            cpus: lab::CPUS,
            timeout: Some(LIMIT),
            ..Errand::default()
        };
        lab::run(workspace, &errand)
    };
    remove(&script)?;
    outcome.map(ExitCode::from)
}
