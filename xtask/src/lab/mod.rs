//! The lab: an emulated host with real KVM, VFIO, SR-IOV, taps and cgroups, in which the project's binaries run.
//!
//! [`run`] carries files in, runs one command as root, passes its output and exit status through, and brings `/out`
//! back. `host` makes the disks that every run shares, `machine` runs QEMU. Each run has a directory of its own under
//! `target/lab/runs`, so that any number can run at once.

mod host;
mod machine;
pub(crate) mod probe;

use crate::images::ext4;
use crate::packages::{self, Packages};
use crate::progress::output_of;
use crate::workspace::{Workspace, remove};
use anyhow::{Context, Result, bail};
use clap::Args;
use host::Host;
use machine::{End, Machine, NVME_DISKS, Shape};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// CPUs of a lab host. With two emulated CPUs that run at once, nested guests triple-faulted at random under load
/// (5 of 13 boots, against none of 13 with one): more speed comes from two labs beside each other.
pub(crate) const CPUS: u32 = 1;
const OUT_SIZE: &str = "1G";
/// What `timeout(1)` says when the time is up.
const TIMED_OUT: u8 = 124;
/// The exit status of a lab that hung: the emulated machine itself, not what ran in it.
pub(crate) const HUNG: u8 = 125;

/// Options of `cargo xtask lab`.
#[derive(Args)]
pub(crate) struct LabArguments {
    /// Memory of the lab host in MiB, at most 12288
    #[arg(long, default_value_t = 8192)]
    memory: u32,
    /// CPUs of the lab host
    #[arg(long, default_value_t = CPUS)]
    cpus: u32,
    /// NUMA nodes of the lab host, each with a share of its memory and, if there are several, a CPU
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    nodes: u32,
    /// Further words for the lab host's kernel, such as intel_iommu=off
    #[arg(long, value_name = "WORDS", default_value = "")]
    kernel_words: String,
    /// Let the lab's clock count executed instructions (1 ns each) instead of time
    #[arg(long)]
    counting: bool,
    /// Stop the lab after so many seconds, with exit status 124
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Carry a file or directory into the lab: PATH becomes /lab/carried/<its name>, PATH=NAME becomes /lab/NAME
    #[arg(long, value_name = "PATH[=NAME]")]
    carry: Vec<String>,
    /// Set an environment variable of the command
    #[arg(long = "env", value_name = "NAME=VALUE")]
    environment: Vec<String>,
    /// Where the lab's /out goes
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
    /// The command and its arguments; if it is a file of this machine, it is carried to /lab/bin and run there
    #[arg(last = true)]
    command: Vec<String>,
}

/// What to run in the lab, and with what.
#[derive(Default)]
pub(crate) struct Errand {
    /// The command and its arguments; empty for a shell.
    pub(crate) command: Vec<String>,
    /// Environment variables of the command.
    pub(crate) environment: Vec<(String, String)>,
    /// Files and directories of this machine, and their place below `/lab`. ELF files are carried without debug information.
    pub(crate) carried: Vec<(PathBuf, String)>,
    /// Let the clock count instructions.
    pub(crate) is_counting: bool,
    /// Lab host's memory in MiB.
    pub(crate) memory_mib: u32,
    /// Lab host's CPUs.
    pub(crate) cpus: u32,
    /// Its NUMA nodes; 0 is one.
    pub(crate) nodes: u32,
    /// Further words for its kernel.
    pub(crate) kernel_words: String,
    /// When to give up.
    pub(crate) timeout: Option<Duration>,
    /// Stands before each line of output, to tell labs apart that run at once.
    pub(crate) label: Option<String>,
    /// Where the lab's `/out` goes; `target/lab/out` if none.
    pub(crate) out: Option<PathBuf>,
}

/// Runs the chore.
pub(crate) fn run_chore(workspace: &Workspace, arguments: &LabArguments) -> Result<ExitCode> {
    let mut errand = Errand {
        command: arguments.command.clone(),
        is_counting: arguments.counting,
        memory_mib: arguments.memory,
        cpus: arguments.cpus,
        nodes: arguments.nodes,
        kernel_words: arguments.kernel_words.clone(),
        timeout: arguments.timeout.map(Duration::from_secs),
        out: arguments.out.clone(),
        environment: contract(),
        ..Errand::default()
    };
    for variable in &arguments.environment {
        let Some((name, value)) = variable.split_once('=') else { bail!("--env {variable}: write NAME=VALUE") };
        errand.environment.push((name.to_owned(), value.to_owned()));
    }
    for carried in &arguments.carry {
        let (path, name) = match carried.split_once('=') {
            Some((path, name)) => (PathBuf::from(path), name.to_owned()),
            None => (PathBuf::from(carried), format!("carried/{}", file_name(Path::new(carried))?)),
        };
        errand.carried.push((path, name));
    }
    if let Some(program) = errand.command.first_mut()
        && program.contains('/')
        && Path::new(program.as_str()).is_file()
    {
        let name = format!("bin/{}", file_name(Path::new(program.as_str()))?);
        let path = std::mem::replace(program, format!("/lab/{name}"));
        errand.carried.push((PathBuf::from(path), name));
    }
    let built = workspace.root().join("target/x86_64-unknown-linux-gnu/release/ostler");
    if built.is_file() && !errand.carried.iter().any(|(_, name)| name == "bin/ostler") {
        errand.carried.extend(programs(&built));
    }
    let plugins = workspace.root().join("target/plugins");
    if plugins.is_dir() {
        errand.carried.push((plugins, "assets/plugins".to_owned()));
    }
    Ok(ExitCode::from(run(workspace, &errand)?))
}

/// `ostler` as cargo built it and the program beside it that runs a VM, where they stand in the lab.
pub(crate) fn programs(ostler: &Path) -> [(PathBuf, String); 2] {
    ["ostler", "ostler-vmm"].map(|name| (ostler.with_file_name(name), format!("bin/{name}")))
}

/// The environment that tests, demo and bench find in the lab.
pub(crate) fn contract() -> Vec<(String, String)> {
    [("OSTLER_BIN", "/lab/bin/ostler"), ("OSTLER_ASSETS", "/lab/assets"), ("OSTLER_SKIPPED", "/out/skipped")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
}

/// Runs a command in a lab of its own and returns its exit status; 124 if the time was up, [`HUNG`] if the machine hung.
pub(crate) fn run(workspace: &Workspace, errand: &Errand) -> Result<u8> {
    let packages = packages::ready(workspace)?;
    let host = Host::ready(workspace, &packages)?;
    let directory = run_directory(workspace)?;
    payload(&packages, &directory, errand)?;
    let out_image = directory.join("out.img");
    let empty = directory.join("empty");
    fs::create_dir(&empty)?;
    ext4(&packages, &empty, &out_image, OUT_SIZE)?;
    for disk in &NVME_DISKS {
        fs::File::create(directory.join(disk.file()))?.set_len(disk.mib << 20)?;
    }
    let shape = Shape {
        memory_mib: errand.memory_mib,
        cpus: errand.cpus,
        nodes: errand.nodes,
        kernel_words: errand.kernel_words.clone(),
        is_counting: errand.is_counting,
        is_shell: errand.command.is_empty(),
        timeout: errand.timeout,
        label: errand.label.clone(),
    };
    let end = Machine::new(&packages, &host, directory.clone()).run(&shape);
    fs::copy(directory.join("console"), workspace.lab("console.log"))?;
    let end = end.with_context(|| format!("the run's files are in {}", directory.display()))?;
    let out = match &errand.out {
        Some(out) => out.clone(),
        None => {
            remove(&workspace.lab("out"))?;
            workspace.lab("out")
        }
    };
    bring_back(&packages, &out_image, &out)?;
    remove(&directory)?;
    Ok(match end {
        End::Exit(status) => status,
        End::TimedOut => {
            eprintln!("error: the lab was stopped: its time was up (--timeout)");
            TIMED_OUT
        }
        End::Hung(autopsy) => {
            eprintln!("error: the lab's emulated machine hung and was stopped; its processor:\n{autopsy}");
            HUNG
        }
    })
}

/// A fresh directory, `<process id>.<number>`; those of processes that are gone are removed.
fn run_directory(workspace: &Workspace) -> Result<PathBuf> {
    let runs = workspace.lab("runs");
    fs::create_dir_all(&runs)?;
    for entry in fs::read_dir(&runs)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.split('.').next().unwrap_or_default();
        if !Path::new("/proc").join(owner).exists() {
            remove(&entry.path())?;
        }
    }
    // Only told apart, so no order with other memory is needed.
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let number = RUNS.fetch_add(1, Ordering::Relaxed);
    let directory = runs.join(format!("{}.{number}", std::process::id()));
    remove(&directory)?;
    fs::create_dir(&directory)?;
    Ok(directory)
}

fn payload(packages: &Packages, directory: &Path, errand: &Errand) -> Result<()> {
    let staging = directory.join("payload");
    for below in ["bin", "carried", "assets/images", "assets/plugins"] {
        fs::create_dir_all(staging.join(below))?;
    }
    for (path, name) in &errand.carried {
        if name.split('/').any(|part| part == "..") || name.starts_with('/') {
            bail!("{name} is no place below /lab");
        }
        let target = staging.join(name);
        fs::create_dir_all(target.parent().unwrap_or(&staging))?;
        copy(path, &target).with_context(|| format!("cannot carry {} into the lab", path.display()))?;
    }
    let mut script = String::new();
    for (name, value) in &errand.environment {
        script.push_str(&format!("export {name}={}\n", quoted(value)));
    }
    if errand.command.is_empty() {
        if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdout()) {
            script.push_str(&format!("LAB_COLUMNS={} LAB_LINES={}\n", size.ws_col, size.ws_row));
        }
        fs::write(staging.join("environment"), script)?;
    } else {
        let words: Vec<String> = errand.command.iter().map(|word| quoted(word)).collect();
        script.push_str(&format!("exec {}\n", words.join(" ")));
        fs::write(staging.join("command"), script)?;
    }
    host::disk(packages, &staging, &directory.join("payload.img"))?;
    remove(&staging)
}

/// Copies a file or a directory; ELF files lose their debug information, which would only be carried.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    let is_program = fs::metadata(from)?.permissions().mode() & 0o111 != 0;
    let is_stripped = is_program
        && Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(to)
            .arg(from)
            .output()
            .is_ok_and(|o| o.status.success());
    if !is_stripped {
        fs::copy(from, to)?;
    }
    Ok(())
}

fn bring_back(packages: &Packages, image: &Path, out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    output_of(packages.tool("debugfs")?.arg("-R").arg(format!("rdump / \"{}\"", out.display())).arg(image))?;
    remove(&out.join("lost+found"))
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().with_context(|| format!("{} has no file name", path.display()))?;
    Ok(name.to_string_lossy().into_owned())
}
