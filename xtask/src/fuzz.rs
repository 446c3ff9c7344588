//! `cargo xtask fuzz`: builds the fuzz targets with coverage feedback, runs each for a while, and says what came of it.
//!
//! The targets lie in `fuzz/`, a workspace of its own, laid out as `cargo fuzz` has it. The instrumentation is the
//! compiler's, and needs no nightly one. What a target finds of interest is kept in `target/fuzz/corpus/<target>`, from
//! where the next run goes on; an input that fails is left in `target/fuzz/failures/<target>`.

use crate::cargo;
use crate::progress::step;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use clap::Args;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// The compiler's part of libFuzzer's feedback: edges counted, comparisons traced.
const INSTRUMENTATION: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg=fuzzing -Ccodegen-units=1 -Cforce-frame-pointers";
/// Longest input: more than every target makes use of.
const MAX_INPUT_LEN: &str = "-max_len=4096";
/// An input that takes longer hangs.
const TIMEOUT: &str = "-timeout=10";
/// Lines of a failed run that are printed.
const LAST_LINES: usize = 30;
const SMOKE_SECONDS: u64 = 10;

/// Options of `cargo xtask fuzz`.
#[derive(Args)]
pub(crate) struct FuzzArguments {
    /// The targets to run; all if none is named
    targets: Vec<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    seconds: u64,
    /// Run each target so many times instead
    #[arg(long, conflicts_with = "seconds", value_name = "NUMBER")]
    runs: Option<u64>,
    /// A short run of each: what continuous integration does
    #[arg(long, conflicts_with_all = ["seconds", "runs"])]
    smoke: bool,
    /// Find misuse of memory, too (slower)
    #[arg(long)]
    address_sanitizer: bool,
    /// List the targets
    #[arg(long)]
    list: bool,
}

/// How one target's run ended.
struct Outcome {
    runs: u64,
    seconds: u64,
    failure: Option<PathBuf>,
}

/// Runs the chore.
pub(crate) fn run(workspace: &Workspace, arguments: &FuzzArguments) -> Result<ExitCode> {
    let known = targets(workspace)?;
    if arguments.list {
        println!("{}", known.join("\n"));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = arguments.targets.iter().find(|target| !known.contains(target)) {
        bail!("there is no fuzz target {unknown}; there are {}", known.join(", "));
    }
    let wanted = if arguments.targets.is_empty() { &known } else { &arguments.targets };
    let programs = step("building the fuzz targets", || build(workspace, arguments.address_sanitizer))?;
    let bound = match (arguments.smoke, arguments.runs) {
        (true, _) => format!("-max_total_time={SMOKE_SECONDS}"),
        (false, Some(runs)) => format!("-runs={runs}"),
        (false, None) => format!("-max_total_time={}", arguments.seconds),
    };
    let mut failed = 0;
    for target in wanted {
        let outcome = step(&format!("fuzzing {target}"), || fuzz(workspace, &programs.join(target), target, &bound))?;
        let rate = outcome.runs / outcome.seconds.max(1);
        println!("fuzz {target}: {} runs in {} s, {rate} a second", outcome.runs, outcome.seconds);
        if let Some(input) = outcome.failure {
            failed += 1;
            println!("fuzz {target}: FAILED; again: {} {}", programs.join(target).display(), input.display());
        }
    }
    println!("fuzz: {} targets, {failed} failed", wanted.len());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Names of the targets, as their files have them.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let directory = workspace.root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// Builds every target and returns the directory of the programs.
fn build(workspace: &Workspace, with_sanitizer: bool) -> Result<PathBuf> {
    if Command::new("c++").arg("--version").output().is_err() {
        bail!("libFuzzer is built with a C++ compiler, and there is no c++ here: apt-get install g++");
    }
    let out = workspace.root().join(if with_sanitizer { "target/fuzz/asan" } else { "target/fuzz/build" });
    // The versions that are shipped; cargo adds what only the fuzzer needs.
    fs::copy(workspace.root().join("Cargo.lock"), workspace.root().join("fuzz/Cargo.lock"))
        .context("cannot write fuzz/Cargo.lock")?;
    let mut command = cargo::command();
    command
        .current_dir(workspace.root().join("fuzz"))
        .args(["build", "--release", "--target", TRIPLE, "--bins"])
        .env("CARGO_TARGET_DIR", &out);
    // In place of the workspace's own flags: neither sanitizer nor fuzzer goes into a static program.
    let flags = if with_sanitizer {
        // The sanitizer is part of every compiler, but hidden behind this.
        command.env("RUSTC_BOOTSTRAP", "1");
        format!("{INSTRUMENTATION} -Zsanitizer=address")
    } else {
        INSTRUMENTATION.to_owned()
    };
    let status = command.env("RUSTFLAGS", flags).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("the fuzz targets do not build; cargo's messages are above");
    }
    Ok(out.join(TRIPLE).join("release"))
}

/// Runs one target from where it stopped the last time.
fn fuzz(workspace: &Workspace, program: &Path, target: &str, bound: &str) -> Result<Outcome> {
    let place = |kind: &str| -> Result<PathBuf> {
        let directory = workspace.root().join("target/fuzz").join(kind).join(target);
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(directory)
    };
    let (corpus, failures) = (place("corpus")?, place("failures")?);
    let seeds = workspace.root().join("fuzz/seeds").join(target);
    let mut command = Command::new(program);
    command.arg(corpus);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    let mut child = command
        .arg(format!("-artifact_prefix={}/", failures.display()))
        .args(["-print_final_stats=1", MAX_INPUT_LEN, TIMEOUT, bound])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let stderr = BufReader::new(child.stderr.take().context("the target has no output")?);
    let lines: Vec<String> =
        stderr.split(b'\n').map_while(Result::ok).map(|line| String::from_utf8_lossy(&line).into_owned()).collect();
    let is_success = child.wait()?.success();
    let outcome = outcome(&lines, is_success, &failures);
    if outcome.failure.is_some() {
        let skipped = lines.len().saturating_sub(LAST_LINES);
        eprintln!("{}", lines.iter().skip(skipped).map(String::as_str).collect::<Vec<_>>().join("\n"));
    }
    Ok(outcome)
}

/// Reads what libFuzzer says at its end.
fn outcome(lines: &[String], is_success: bool, failures: &Path) -> Outcome {
    let mut outcome = Outcome { runs: 0, seconds: 0, failure: None };
    for line in lines {
        if let Some(rest) = line.strip_prefix("Done ") {
            // "Done 12345 runs in 11 second(s)"
            let mut numbers = rest.split(' ').filter_map(|word| word.parse().ok());
            outcome.runs = numbers.next().unwrap_or_default();
            outcome.seconds = numbers.next().unwrap_or_default();
        } else if let Some(runs) = line.strip_prefix("stat::number_of_executed_units:") {
            outcome.runs = runs.trim().parse().unwrap_or(outcome.runs);
        } else if let Some((_, path)) = line.split_once("Test unit written to ") {
            outcome.failure = Some(path.trim().into());
        }
    }
    if !is_success && outcome.failure.is_none() {
        outcome.failure = Some(failures.to_path_buf());
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn reads_how_a_run_ended() {
        let failures = Path::new("/failures");
        let good = outcome(&lines("#2 INITED\nDone 4242 runs in 11 second(s)\n"), true, failures);
        assert_eq!((good.runs, good.seconds, good.failure), (4242, 11, None));
        let text = "==1== ERROR\nTest unit written to /failures/crash-1\nstat::number_of_executed_units: 17\n";
        let bad = outcome(&lines(text), false, failures);
        assert_eq!((bad.runs, bad.failure), (17, Some("/failures/crash-1".into())));
        let silent = outcome(&lines("nothing"), false, failures);
        assert_eq!(silent.failure, Some(failures.into()), "a target that ends badly has failed, whatever it says");
    }
}
