//! `cargo xtask bench`: start-up and memory of Ostler's VMM beside its peers, data through its devices, and devices of the
//! host beside them, each in one lab boot; load on the daemon and decisions of policy, here.
//!
//! The figures come from the bench programs `boot`, `many`, `io` and `devices` (`benches/`). Here they are built, carried into
//! the lab in counting mode (where such figures repeat to 1 %, whatever else the machine does), but for what waits for devices
//! or has ten guests at once, together with the peers that the caller names, and their tables are brought back as `target/bench.json`. QEMU comes with the lab. The other programs are
//! `jail`, `load` and `policy`: they need no guest, run on this machine in real time, and leave `target/jail.json`,
//! `target/load.json` and `target/policy.json`.

use crate::cargo::{self, build_ostler};
use crate::lab::{self, Errand, probe};
use crate::progress::step;
use crate::test::assets;
use crate::workspace::{Workspace, remove};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Those that boot guests.
const WITH_GUESTS: [(Which, &str); 4] =
    [(Which::Boot, "boot"), (Which::Many, "many"), (Which::Io, "io"), (Which::Devices, "devices")];
const LOAD: &str = "load";
const JAIL: &str = "jail";
const POLICY: &str = "policy";
/// What programs with guests leave.
const FIGURES: &str = "target/bench.json";
const LIMIT: Duration = Duration::from_secs(45 * 60);
const LAB_MEMORY_MIB: u32 = 4096;
/// Variables that name a peer's binary; each must be a static one, to run in the lab.
const PEERS: [&str; 2] = ["FIRECRACKER", "CLOUD_HYPERVISOR"];
/// The peer that is in the lab anyway.
const QEMU: (&str, &str) = ("QEMU", "/usr/bin/qemu-system-x86_64");

/// Options of `cargo xtask bench`.
#[derive(Args)]
#[command(
    after_help = "FIRECRACKER=/path and CLOUD_HYPERVISOR=/path add these peers (static binaries). With --here,\nNVME_SERIAL=… names the controller that `devices` takes: what it holds is overwritten."
)]
pub(crate) struct BenchArguments {
    /// Run one of them only
    #[arg(long, value_enum)]
    only: Option<Which>,
    /// Run those with guests on this machine's own KVM, in real time, if it can boot Linux
    #[arg(long)]
    here: bool,
    /// Let the lab's clock run in time instead of counting instructions
    #[arg(long, conflicts_with = "here")]
    timed: bool,
}

/// A bench program.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    /// Start-up and memory of a VM, beside other hypervisors
    Boot,
    /// Ten VMs started at once, through the daemon, beside other hypervisors' processes
    Many,
    /// Data through disks and NICs of a VM, beside other hypervisors
    Io,
    /// Virtual functions and NVMe namespaces of the host, beside virtio devices of the same VM; what attaching and detaching
    /// takes, by step
    Devices,
    /// A VM's process until its first instruction, in a jail and without one
    Jail,
    /// Calls of the API over mutual TLS: throughput, latency, growth
    Load,
    /// Decisions of plugins, in the policy host and in one process
    Policy,
}

/// Runs the chore.
pub(crate) fn run(workspace: &Workspace, arguments: &BenchArguments) -> Result<ExitCode> {
    let mut peers = Vec::new();
    for name in PEERS {
        if let Some(path) = std::env::var_os(name).map(PathBuf::from) {
            if !path.is_file() {
                bail!("{name}={} is no file", path.display());
            }
            peers.push((name, path));
        }
    }
    let is_wanted = |which| arguments.only.is_none_or(|only| only == which);
    let ostler = build_ostler(workspace)?;
    if is_wanted(Which::Policy) {
        let status = run_policy(workspace, &ostler)?;
        if status != 0 {
            return Ok(ExitCode::from(status));
        }
    }
    if is_wanted(Which::Jail) {
        let status = run_here(workspace, &build(workspace, JAIL)?, &ostler, &assets(workspace)?)?;
        if status != 0 {
            return Ok(ExitCode::from(status));
        }
    }
    if is_wanted(Which::Load) {
        let status = run_here(workspace, &build(workspace, LOAD)?, &ostler, &assets(workspace)?)?;
        if status != 0 {
            return Ok(ExitCode::from(status));
        }
    }
    let wanted: Vec<_> = WITH_GUESTS.into_iter().filter(|(which, _)| is_wanted(*which)).collect();
    if wanted.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let assets = assets(workspace)?;
    let mut figures: Vec<serde_json::Value> = Vec::new();
    for (which, name) in wanted {
        let program = build(workspace, name)?;
        let status = if arguments.here {
            let verdict = probe::verdict(workspace)?;
            if !verdict.can_run_directly {
                bail!("--here is not possible: {}", verdict.reason);
            }
            run_here(workspace, &program, &ostler, &assets)?
        } else {
            // Ten guests at once are too much for the processor that counts; and it does not count what a device does.
            let is_counting = !arguments.timed && !matches!(which, Which::Many | Which::Devices);
            run_in_lab(workspace, &program, &ostler, &peers, is_counting)?
        };
        if status != 0 {
            return Ok(ExitCode::from(status));
        }
        // Each program leaves its own.
        let left = fs::read(workspace.root().join(FIGURES)).context("the bench program left no bench.json")?;
        figures.extend(serde_json::from_slice::<Vec<_>>(&left).context("bench.json")?);
        crate::workspace::write_whole(&workspace.root().join(FIGURES), &serde_json::to_vec_pretty(&figures)?)?;
    }
    eprintln!("== the figures are in {FIGURES}");
    Ok(ExitCode::SUCCESS)
}

fn build(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let command = ["build", "--release", "--package", "ostler", "--bench", name];
    step("building the bench program", || cargo::build(workspace, &command))?
        .into_iter()
        .find(|message| message.is_executable(name, "bench"))
        .and_then(|message| message.executable)
        .context("cargo built no bench program")
}

fn run_policy(workspace: &Workspace, ostler: &Path) -> Result<u8> {
    let plugins = workspace.root().join("target/plugins");
    step("building plugins", || crate::plugins::build(workspace.root(), &plugins))?;
    let program = build(workspace, POLICY)?;
    let mut command = Command::new(&program);
    command.env("OSTLER_BIN", ostler).env("OSTLER_PLUGINS", plugins);
    command.env("OSTLER_OUT", workspace.root().join("target"));
    let status = command.status().with_context(|| format!("cannot run {}", program.display()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn run_here(workspace: &Workspace, program: &Path, ostler: &Path, assets: &Path) -> Result<u8> {
    let out = workspace.root().join("target");
    let mut command = Command::new(program);
    command.env("OSTLER_BIN", ostler).env("OSTLER_ASSETS", assets).env("OSTLER_OUT", &out);
    let status = command.status().with_context(|| format!("cannot run {}", program.display()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn run_in_lab(
    workspace: &Workspace,
    program: &Path,
    ostler: &Path,
    peers: &[(&str, PathBuf)],
    is_counting: bool,
) -> Result<u8> {
    let out = workspace.lab(&format!("bench.{}", std::process::id()));
    remove(&out)?;
    let mut environment = lab::contract();
    environment.push(("OSTLER_OUT".to_owned(), "/out".to_owned()));
    environment.push((QEMU.0.to_owned(), QEMU.1.to_owned()));
    let [daemon, vmm] = lab::programs(ostler);
    let plugins = (workspace.root().join("target/plugins"), "assets/plugins".to_owned());
    let mut carried = vec![daemon, vmm, (program.to_path_buf(), "bin/bench".to_owned()), plugins];
    for (name, path) in peers {
        let place = format!("bin/{}", name.to_lowercase());
        environment.push(((*name).to_owned(), format!("/lab/{place}")));
        carried.push((path.clone(), place));
    }
    eprintln!(
        "== the bench runs in the lab; {}",
        if is_counting { "1 ns is one executed instruction" } else { "in time" }
    );
    let errand = Errand {
        command: vec!["/lab/bin/bench".to_owned()],
        environment,
        carried,
        is_counting,
        memory_mib: LAB_MEMORY_MIB,
        cpus: lab::CPUS,
        timeout: Some(LIMIT),
        out: Some(out.clone()),
        ..Errand::default()
    };
    let status = lab::run(workspace, &errand)?;
    if status == 0 {
        let figures = fs::read(out.join("bench.json")).context("the bench program left no bench.json")?;
        crate::workspace::write_whole(&workspace.root().join(FIGURES), &figures)?;
    }
    remove(&out)?;
    Ok(status)
}
