//! `cargo xtask test`: builds everything, runs every test where it can run, and adds the results up.
//!
//! The tests of a program are run as suites: its modules if it is `host` or `guests`, else all of it. The suites of
//! `guests` are named in the root package's `[package.metadata.lab] tests`; they run on this machine if its KVM can boot
//! Linux, else each in a lab of its own, in the order of that list. The others run here. A guest test finds
//! `OSTLER_BIN` (the `ostler` program), `OSTLER_ASSETS` (a directory with `images/`, `plugins/`, `client/`, `python/` and, not
//! in the lab, `examples/`), `OSTLER_PYTHON` (in the lab: its own interpreter) and `OSTLER_SKIPPED` (a file to which a test that lacks something appends one line, `<test>: needs …`, before it returns). Unit tests of the
//! library that lack something of this machine (vhost-net, taps) are run once more in the lab, which has it.

use crate::cargo::{self, Message};
use crate::lab::{self, Errand, probe};
use crate::progress::step;
use crate::workspace::{Workspace, remove};
use crate::{client, images, plugins};
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// For one suite; it ends itself, and says more, after 25 minutes.
const LAB_LIMIT: Duration = Duration::from_secs(30 * 60);
const LAB_MEMORY_MIB: u32 = 8192;
/// Labs at once: each takes up to [`LAB_MEMORY_MIB`].
const MAX_LABS: usize = 2;

/// Options of `cargo xtask test`.
#[derive(Args)]
pub(crate) struct TestArguments {
    /// Run only tests whose name contains this
    filter: Option<String>,
    /// Run the guest tests in the lab even if this machine could run them
    #[arg(long)]
    in_lab: bool,
    /// Run only the suites of this name: a test program (`lib`, `tidy`, …), or a module of `host` or `guests`
    /// (`policy`, `create_vm`, …)
    #[arg(long = "program", value_name = "NAME")]
    suites: Vec<String>,
}

/// Test programs whose modules are suites.
const HOST: &str = "host";
const GUESTS: &str = "guests";
/// The test program of the library, all of it one suite.
const LIB: &str = "lib";

/// A test executable that cargo built.
#[derive(Clone)]
struct Program {
    name: String,
    executable: PathBuf,
    package_directory: PathBuf,
}

/// Tests that run together.
struct Suite {
    name: String,
    program: Program,
    /// Their full names.
    tests: Vec<String>,
}

/// What libtest said of one program, or of all.
#[derive(Default, Debug, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
}

/// Runs the chore.
pub(crate) fn run(workspace: &Workspace, arguments: &TestArguments) -> Result<ExitCode> {
    let assets = assets(workspace)?;
    add_client(workspace, &assets)?;
    link(&assets, [("examples", plugins::examples::build(workspace)?)])?;
    let Guests { tests: order, kernel } = Guests::of(&workspace.root().join("Cargo.toml"))?;
    let (ostler, programs) = build_tests(workspace, &arguments.suites, &order)?;
    let mut suites = Vec::new();
    for program in &programs {
        suites.extend(program.suites()?);
    }
    let place = |suite: &Suite| order.iter().position(|name| *name == suite.name);
    if let Some(unlisted) = suites.iter().find(|suite| suite.program.name == GUESTS && place(suite).is_none()) {
        bail!("Cargo.toml does not list tests/{}.rs in [package.metadata.lab] tests", unlisted.name);
    }
    if let Some(unknown) = arguments.suites.iter().find(|name| !suites.iter().any(|suite| suite.name == **name)) {
        let known: Vec<_> = suites.iter().map(|suite| suite.name.as_str()).collect();
        bail!("there are no tests named {unknown}; there are {}", known.join(", "));
    }
    if !arguments.suites.is_empty() {
        suites.retain(|suite| arguments.suites.contains(&suite.name));
    }
    if let Some(filter) = &arguments.filter {
        suites.iter_mut().for_each(|suite| suite.tests.retain(|test| test.contains(filter)));
    }
    // Without a test it is not worth a lab.
    suites.retain(|suite| !suite.tests.is_empty());
    suites.sort_by(|a, b| place(a).cmp(&place(b)).then_with(|| a.name.cmp(&b.name)));
    let (mut guest, host): (Vec<Suite>, Vec<Suite>) =
        suites.into_iter().partition(|suite| suite.program.name == GUESTS);
    let mut tally = Tally::default();
    let skips = workspace.lab("skipped");
    remove(&skips)?;
    for suite in &host {
        tally.add(run_here(suite, &ostler, &assets, &skips)?);
    }
    let mut skipped = lines_of(&skips);
    let verdict = probe::verdict(workspace)?;
    if !verdict.can_run_directly {
        let lacking = host.iter().filter(|suite| suite.program.name == LIB);
        guest.extend(lacking.filter_map(|suite| suite.once_more(&mut skipped, &mut tally)));
    }
    if !guest.is_empty() {
        if verdict.can_run_directly && !arguments.in_lab {
            eprintln!("== guest tests run on this machine: {}", verdict.reason);
            for suite in &guest {
                tally.add(run_here(suite, &ostler, &assets, &skips)?);
            }
            skipped = lines_of(&skips);
        } else {
            let reason = if arguments.in_lab { "as asked for" } else { verdict.reason.as_str() };
            eprintln!("== guest tests run in the lab: {reason}");
            tally.add(run_in_labs(workspace, &guest, &ostler, &kernel)?);
        }
    }
    tally.skip(skipped);
    Ok(tally.report(std::env::var("CI").is_ok_and(|ci| ci == "true")))
}

/// Makes plugins and images, and a directory that has both.
pub(crate) fn assets(workspace: &Workspace) -> Result<PathBuf> {
    let images = images::make(workspace)?;
    let built = workspace.root().join("target/plugins");
    step("building plugins", || plugins::build(workspace.root(), &built))?;
    let assets = workspace.lab("assets");
    fs::create_dir_all(&assets)?;
    link(&assets, [("images", images), ("plugins", built)])?;
    Ok(assets)
}

/// Adds the Python client, and the Python that runs it.
fn add_client(workspace: &Workspace, assets: &Path) -> Result<()> {
    let client = client::assemble(workspace)?;
    link(assets, [("client", client), ("python", workspace.lab("python"))])
}

fn link<const N: usize>(assets: &Path, targets: [(&str, PathBuf); N]) -> Result<()> {
    for (name, target) in targets {
        remove(&assets.join(name))?;
        std::os::unix::fs::symlink(target, assets.join(name))?;
    }
    Ok(())
}

/// Builds the `ostler` program and the test programs that hold the suites in question (all, if none is named). Every call
/// of cargo is for the same packages: else a few shared crates would get other features, and all that stands on those be
/// compiled once more.
fn build_tests(workspace: &Workspace, wanted: &[String], guests: &[String]) -> Result<(PathBuf, Vec<Program>)> {
    let is_file = |name: &str| workspace.root().join("tests").join(format!("{name}.rs")).is_file();
    let Targets { shipped, units } = Targets::of(wanted, guests, is_file);
    let build = |targets: &[&str]| {
        let command = ["test", "--release", "--workspace", "--no-run", "--features", "ostler/lab"];
        cargo::build(workspace, &[&command[..], targets].concat())
    };
    let mut messages = step("building ostler and its tests", || build(&shipped))?;
    let ostler = cargo::ostler_of(&messages)?;
    if units {
        messages.extend(step("building the unit tests of libraries", || build(&["--lib", "--config", UNITS_PROFILE]))?);
    }
    let program = |message: Message| {
        let package_directory = message.manifest_path.parent()?.to_path_buf();
        let name = match message.target.kind.first().map(String::as_str) {
            Some("lib") if package_directory == workspace.root() => LIB.to_owned(),
            _ => message.target.name.clone(),
        };
        Some(Program { name, executable: message.executable?, package_directory })
    };
    Ok((ostler, messages.into_iter().filter(|message| message.profile.test).filter_map(program).collect()))
}

/// The library's unit tests are as much code again as the library, run for seconds, and took the compiler longer to
/// optimise than all else of ours. What they stand on, and what is shipped, is optimised.
const UNITS_PROFILE: &str = "profile.release.package.ostler.opt-level=0";

/// What cargo is to build for some suites.
#[derive(Debug, PartialEq, Eq)]
struct Targets {
    /// As what is shipped; a test program brings the `ostler` program with it.
    shipped: Vec<&'static str>,
    /// Unit tests of libraries.
    units: bool,
}

impl Targets {
    fn of(wanted: &[String], guests: &[String], is_file: impl Fn(&str) -> bool) -> Self {
        // Not `--tests`: unit tests of libraries are among those.
        let all = Self { shipped: vec!["--bins", "--test", "*"], units: true };
        if wanted.is_empty() {
            return all;
        }
        let mut targets = Self { shipped: vec!["--test", "tidy"], units: false };
        for name in wanted {
            match name.as_str() {
                "tidy" => (),
                LIB => targets.units = true,
                name if guests.iter().any(|guest| guest == name) => targets.shipped.extend(["--test", GUESTS]),
                name if is_file(name) => targets.shipped.extend(["--test", HOST]),
                // A program's own unit tests, or nothing that there is.
                _ => return all,
            }
        }
        targets
    }
}

/// What the root package says of the suites of `guests`.
#[derive(Deserialize)]
struct Guests {
    /// All of them, in the order in which they run.
    tests: Vec<String>,
    /// Words for the lab's kernel, by suite.
    kernel: BTreeMap<String, String>,
}

impl Guests {
    fn of(manifest: &Path) -> Result<Self> {
        let output = cargo::command()
            .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
            .arg(manifest)
            .output()
            .context("cannot run cargo metadata")?;
        let metadata: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("cargo metadata gave no JSON")?;
        let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
        let root = packages.iter().find(|package| package["manifest_path"].as_str().map(Path::new) == Some(manifest));
        let root = root.context("cargo metadata does not name the root package")?;
        serde_json::from_value(root["metadata"]["lab"].clone()).context("[package.metadata.lab] of Cargo.toml")
    }
}

impl Program {
    /// Its tests, as they run together.
    fn suites(&self) -> Result<Vec<Suite>> {
        let listed = Command::new(&self.executable)
            .args(["--list", "--format", "terse"])
            .output()
            .with_context(|| format!("cannot run {}", self.executable.display()))?;
        let mut suites: Vec<Suite> = Vec::new();
        for test in String::from_utf8_lossy(&listed.stdout).lines().filter_map(|line| line.strip_suffix(": test")) {
            let name = match test.split_once("::") {
                Some((module, _)) if self.name == HOST || self.name == GUESTS => module,
                _ => &self.name,
            };
            match suites.iter_mut().find(|suite| suite.name == name) {
                Some(suite) => suite.tests.push(test.to_owned()),
                None => {
                    suites.push(Suite { name: name.to_owned(), program: self.clone(), tests: vec![test.to_owned()] })
                }
            }
        }
        Ok(suites)
    }
}

impl Suite {
    /// Those of its tests that lacked something, and are to be looked at no further here.
    fn once_more(&self, skipped: &mut Vec<String>, tally: &mut Tally) -> Option<Self> {
        let is_lacking = |test: &String| skipped.iter().any(|line| is_about(line, test));
        let tests: Vec<String> = self.tests.iter().filter(|test| is_lacking(test)).cloned().collect();
        skipped.retain(|line| !tests.iter().any(|test| is_about(line, test)));
        // As passed, by libtest.
        tally.passed = tally.passed.saturating_sub(tests.len());
        (!tests.is_empty()).then(|| Self { name: self.name.clone(), program: self.program.clone(), tests })
    }

    /// The arguments with which its program runs this suite and no more.
    fn arguments(&self) -> impl Iterator<Item = &str> {
        std::iter::once("--exact").chain(self.tests.iter().map(String::as_str))
    }
}

fn run_here(suite: &Suite, ostler: &Path, assets: &Path, skips: &Path) -> Result<Tally> {
    let Suite { name, program, .. } = suite;
    eprintln!("== tests of {name}");
    let mut child = Command::new(&program.executable)
        .args(suite.arguments())
        .current_dir(&program.package_directory)
        .env("CARGO_MANIFEST_DIR", &program.package_directory)
        .env("OSTLER_BIN", ostler)
        .env("OSTLER_ASSETS", assets)
        .env("OSTLER_SKIPPED", skips)
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", program.executable.display()))?;
    let mut text = String::new();
    let mut stdout = BufReader::new(child.stdout.take().context("the test program has no output")?);
    let mut line = Vec::new();
    while stdout.read_until(b'\n', &mut line)? > 0 {
        std::io::stdout().write_all(&line)?;
        text.push_str(&String::from_utf8_lossy(&line));
        line.clear();
    }
    let is_success = child.wait()?.success();
    Ok(Tally::read(name, &text, is_success))
}

/// A lab for each suite, as many at once as this machine runs well.
fn run_in_labs(
    workspace: &Workspace,
    suites: &[Suite],
    ostler: &Path,
    kernel: &BTreeMap<String, String>,
) -> Result<Tally> {
    let most = std::thread::available_parallelism().map_or(1, usize::from).clamp(1, MAX_LABS);
    let queue = Mutex::new(suites.iter());
    let next = || queue.lock().ok()?.next();
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..most)
            .map(|_| {
                scope.spawn(|| {
                    let mut tally = Tally::default();
                    while let Some(suite) = next() {
                        let words = kernel.get(&suite.name).cloned().unwrap_or_default();
                        tally.add(run_in_lab(workspace, suite, ostler, words)?);
                    }
                    Ok::<_, anyhow::Error>(tally)
                })
            })
            .collect();
        let mut tally = Tally::default();
        for lane in lanes {
            tally.add(lane.join().map_err(|_| anyhow!("a lab's thread panicked"))??);
        }
        Ok(tally)
    })
}

/// Runs one suite in a lab of its own, whose kernel gets these words: what hangs or breaks there is nobody else's.
fn run_in_lab(workspace: &Workspace, suite: &Suite, ostler: &Path, kernel_words: String) -> Result<Tally> {
    let Suite { name, program, .. } = suite;
    let run = format!("{}.{name}", std::process::id());
    let script = workspace.lab(&format!("run-test.{run}.sh"));
    fs::write(&script, include_str!("../assets/run-test.sh"))?;
    let out = workspace.lab(&format!("test-results.{run}"));
    remove(&out)?;
    let [daemon, vmm] = lab::programs(ostler);
    let carried = vec![
        daemon,
        vmm,
        (workspace.root().join("target/plugins"), "assets/plugins".to_owned()),
        (workspace.root().join("target/python"), "assets/client".to_owned()),
        (workspace.lab("python/packages"), "assets/python/packages".to_owned()),
        (script.clone(), "run-test.sh".to_owned()),
        (program.executable.clone(), format!("tests/{name}")),
    ];
    let mut environment = lab::contract();
    environment.push(("OSTLER_PYTHON".to_owned(), "/usr/bin/python3".to_owned()));
    let mut command = vec!["bash".to_owned(), "/lab/run-test.sh".to_owned(), format!("/lab/tests/{name}")];
    command.extend(suite.arguments().map(str::to_owned));
    let errand = Errand {
        command,
        carried,
        environment,
        memory_mib: LAB_MEMORY_MIB,
        cpus: lab::CPUS,
        kernel_words,
        label: Some(format!("{name} | ")),
        timeout: Some(LAB_LIMIT),
        out: Some(out.clone()),
        ..Errand::default()
    };
    eprintln!("== tests of {name} (in a lab)");
    let started = Instant::now();
    let mut status = lab::run(workspace, &errand)?;
    if status == lab::HUNG {
        // It says nothing of the program: once more from the start, in a new machine.
        eprintln!("== the lab of {name} hung and is started again, once");
        remove(&out)?;
        status = lab::run(workspace, &errand)?;
    }
    eprintln!("== tests of {name}: status {status} after {} s", started.elapsed().as_secs());
    let text = fs::read(out.join("log")).unwrap_or_default();
    let mut tally = Tally::read(name, &String::from_utf8_lossy(&text), status == 0);
    tally.skip(lines_of(&out.join("skipped")));
    remove(&script)?;
    remove(&out)?;
    Ok(tally)
}

/// Whether a line of `OSTLER_SKIPPED` is about this test.
fn is_about(line: &str, test: &str) -> bool {
    line.strip_prefix(test).is_some_and(|rest| rest.starts_with(": needs "))
}

fn lines_of(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

impl Tally {
    /// Reads one program's output. A program that fails without naming a failed test counts as one failed test.
    fn read(program: &str, text: &str, is_success: bool) -> Self {
        let mut tally = Self::default();
        for line in text.lines() {
            let Some((name, outcome)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) else {
                continue;
            };
            match outcome {
                "ok" => tally.passed += 1,
                "FAILED" => tally.failed.push(format!("{program}::{name}")),
                _ if outcome.starts_with("ignored") => tally.skipped.push(format!("{program}::{name}: {outcome}")),
                _ => {}
            }
        }
        if !is_success && tally.failed.is_empty() {
            tally.failed.push(format!("{program} (it ended before its last test)"));
        }
        tally
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }

    /// Takes out the tests that skipped themselves, each of which libtest counted as passed.
    fn skip(&mut self, skipped: Vec<String>) {
        self.passed = self.passed.saturating_sub(skipped.len());
        self.skipped.extend(skipped);
    }

    /// Prints names, then the last line; skipped tests fail a run of the continuous integration.
    fn report(self, is_ci: bool) -> ExitCode {
        for name in &self.skipped {
            println!("skipped: {name}");
        }
        for name in &self.failed {
            println!("failed: {name}");
        }
        let is_bad_skip = is_ci && !self.skipped.is_empty();
        if is_bad_skip {
            println!("CI=true: a skipped test fails the run");
        }
        println!("{} passed, {} failed", self.passed, self.failed.len());
        if self.failed.is_empty() && !is_bad_skip { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_libtest_says() {
        let text = "running 3 tests\ntest a::b ... ok\ntest c ... ignored, slow\ntest d ... FAILED\n\ntest result: FAILED. 1 passed\n";
        let tally = Tally::read("lib", text, false);
        assert_eq!(
            tally,
            Tally { passed: 1, failed: vec!["lib::d".into()], skipped: vec!["lib::c: ignored, slow".into()] }
        );
    }

    #[test]
    fn builds_no_more_than_was_asked_for() {
        let targets = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|&name| name.to_owned()).collect();
            let Targets { shipped, units } = Targets::of(&wanted, &["create_vm".to_owned()], |name| name != "xtask");
            (shipped.join(" "), units)
        };
        let all = || ("--bins --test *".to_owned(), true);
        assert_eq!(targets(&[]), all());
        assert_eq!(targets(&["create_vm", "lib"]), ("--test tidy --test guests".to_owned(), true));
        assert_eq!(targets(&["tidy", "policy"]), ("--test tidy --test host".to_owned(), false));
        assert_eq!(targets(&["create_vm", "xtask"]), all(), "a program's own unit tests");
    }

    #[test]
    fn counts_a_crash_as_a_failure() {
        let tally = Tally::read("create_vm", "running 2 tests\ntest a ... ok\n", false);
        assert_eq!((tally.passed, tally.failed.len()), (1, 1));
    }

    #[test]
    fn has_tests_of_the_library_that_lacked_something_run_once_more() {
        let program = Program { name: LIB.into(), executable: PathBuf::new(), package_directory: PathBuf::new() };
        let suite = Suite { name: LIB.into(), program, tests: ["a::b", "a::bc", "d"].map(str::to_owned).to_vec() };
        let mut tally = Tally::read(LIB, "test a::b ... ok\ntest a::bc ... ok\ntest d ... ok\n", true);
        let mut skipped = vec!["a::bc: needs /dev/vhost-net".to_owned(), "policy::x: needs root".to_owned()];
        let again = suite.once_more(&mut skipped, &mut tally).unwrap();
        assert_eq!((again.tests, tally.passed), (vec!["a::bc".to_owned()], 2));
        assert_eq!(skipped, ["policy::x: needs root"]);
        assert!(suite.once_more(&mut skipped, &mut tally).is_none());
    }

    #[test]
    fn does_not_count_a_skipped_test_as_passed() {
        let mut tally = Tally::read("vf_attach", "test a ... ok\ntest b ... ok\n", true);
        tally.skip(vec!["b: needs an SR-IOV device".into()]);
        assert_eq!((tally.passed, tally.skipped.len()), (1, 1));
        assert_eq!(format!("{:?}", tally.report(true)), format!("{:?}", ExitCode::FAILURE));
    }
}
