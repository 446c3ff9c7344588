//! Project chores: packages, guest images, the lab, tests, fuzzing, demo, bench.
//!
//! `cargo xtask <command> --help` explains each. Everything that is downloaded or built here lies under `target/lab`
//! and is made once. The lab (an emulated host with real KVM, VFIO and taps) is in `lab/`.

mod archive;
mod bench;
mod cargo;
mod client;
mod debian;
mod demo;
mod fio;
mod fuzz;
mod images;
mod initrd;
mod kernel;
mod lab;
mod modules;
mod packages;
mod plugins;
mod progress;
mod protos;
mod python;
mod test;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Chores of the Ostler project", version)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Fetch the Debian packages (QEMU, kernels, tools) into target/lab; the machine itself is left as it is
    Setup(packages::SetupArguments),
    /// Make the guest kernels, initial RAM disks, the example disk and the broken fixtures in target/lab/images
    Images,
    /// Run a command in the lab, an emulated host with KVM, VFIO and taps; without a command: a shell
    Lab(lab::LabArguments),
    /// Compare start-up and memory with other hypervisors, in one lab boot; load the daemon; measure policy; writes
    /// target/bench.json, target/load.json and target/policy.json
    Bench(bench::BenchArguments),
    /// Feed the devices, loaders and decoders what no guest, file or peer should send; targets lie in fuzz/
    Fuzz(fuzz::FuzzArguments),
    /// Show the whole path: certificates, daemon, policy, a VM and its shell, a VM that is denied
    Demo(demo::DemoArguments),
    /// Build the policy plugins and the tests' hostile ones into target/plugins
    Plugins,
    /// Make the Python client in target/python, its generated code included
    Client,
    /// Check proto/ against its rules and against the last release
    Protos(protos::ProtosArguments),
    /// Say whether guests run on this machine's own KVM or in the lab, and why
    Probe,
    /// The probe's child process
    #[command(hide = true)]
    ProbeGuest,
    /// Build everything and run all tests, those with guests in the lab where needed
    Test(test::TestArguments),
}

fn main() -> ExitCode {
    run(&Arguments::parse().chore).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(chore: &Chore) -> Result<ExitCode> {
    if matches!(chore, Chore::ProbeGuest) {
        // Also runs in the lab, where there is no workspace.
        lab::probe::run_guest()?;
        return Ok(ExitCode::SUCCESS);
    }
    let workspace = Workspace::locate()?;
    match chore {
        Chore::Setup(setup) => packages::setup(&workspace, setup).map(drop)?,
        Chore::Images => images::make(&workspace).map(drop)?,
        Chore::Plugins => plugins::build(workspace.root(), &workspace.root().join("target/plugins")).map(drop)?,
        Chore::Client => client::assemble(&workspace).map(|client| println!("{}", client.display()))?,
        Chore::Protos(protos) => return protos::run(&workspace, protos),
        Chore::Probe => lab::probe::verdict(&workspace).map(|verdict| println!("{verdict}"))?,
        Chore::Lab(lab) => return lab::run_chore(&workspace, lab),
        Chore::Bench(bench) => return bench::run(&workspace, bench),
        Chore::Fuzz(fuzz) => return fuzz::run(&workspace, fuzz),
        Chore::Demo(demo) => return demo::run(&workspace, demo),
        Chore::Test(test) => return test::run(&workspace, test),
        Chore::ProbeGuest => {}
    }
    Ok(ExitCode::SUCCESS)
}
