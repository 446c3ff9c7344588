//! From an edit to the decision that shows it: a plugin in Rust, as `ostler plugin new` makes it, whose source is changed,
//! built by `ostler plugin build`, loaded and asked. Before the first edit it was built once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ostler::daemon::policy::{Bound, PolicyConfig, PolicyHost};
use ostler::model::{AdmitRequest, LimitUse, Outcome, PluginMode, PolicyScope};
use serde_json::{Value, json};

use crate::figure::Figure;

const ROUNDS: usize = 7;
/// What stands before the code by which the plugin refuses VMs with too many vCPUs.
const BEFORE: &str = "\n                    refuse(\"";

/// Prints the figures and gives them.
pub async fn measure(program: &Path) -> Result<Vec<Value>, String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let desks = [("optimised", false), ("quick", true)].map(|(way, is_quick)| Desk {
        program,
        way,
        is_quick,
        project: dir.path().join(way),
    });
    for desk in &desks {
        eprintln!("building a plugin for the first time, {}", desk.way);
        run(Command::new(program).args(["plugin", "new", "mine", "--lang", "rust", "--dir"]).arg(&desk.project))?;
        desk.build()?;
    }
    let host = PolicyHost::start(PolicyConfig::for_author(program)).map_err(|error| error.to_string())?;
    let mut times: [[Vec<Duration>; 3]; 2] = Default::default();
    for round in 0..ROUNDS {
        for (desk, times) in desks.iter().zip(&mut times) {
            for (times, took) in times.iter_mut().zip(desk.edited(&host, &format!("round.{round}")).await?) {
                times.push(took);
            }
        }
    }
    println!("{:<45} {:>32}", "an edit of a plugin in Rust, µs", "p10, p50, p99");
    let figures = desks.iter().zip(times).map(|(desk, times)| {
        let [built, decided, total] = times.map(Figure::of);
        for (step, figure) in [("built", built), ("loaded, and decided", decided), ("from the edit", total)] {
            println!("{:<45} {figure}", format!("{}: {step}", desk.way));
        }
        json!({
            "part": "edit", "way": desk.way, "build_us": built.to_json(), "load_and_decide_us": decided.to_json(),
            "edit_to_decision_us": total.to_json(),
        })
    });
    Ok(figures.collect())
}

/// Where the plugin is written.
struct Desk<'a> {
    program: &'a Path,
    way: &'static str,
    is_quick: bool,
    project: PathBuf,
}

impl Desk<'_> {
    /// Makes the plugin say `code`: what it took to build it, to have it decide, and both.
    async fn edited(&self, host: &PolicyHost, code: &str) -> Result<[Duration; 3], String> {
        let source = self.project.join("src/lib.rs");
        let text = std::fs::read_to_string(&source).map_err(|error| error.to_string())?;
        let (before, rest) = text.split_once(BEFORE).ok_or_else(|| format!("no {BEFORE:?} in {}", source.display()))?;
        let (_, after) = rest.split_once('"').unwrap_or_default();
        let begin = Instant::now();
        std::fs::write(&source, format!("{before}{BEFORE}{code}\"{after}")).map_err(|error| error.to_string())?;
        let component = self.build()?;
        let built = begin.elapsed();
        let settings = BTreeMap::from([("max-vcpus".to_owned(), "1".to_owned())]);
        let plugin = host.load(component, settings).await.map_err(|error| error.to_string())?;
        let (scope, mode) = (PolicyScope::Operator, PluginMode::Enforced);
        let chain = [Bound { name: "p".into(), scope, plugin, mode, weight: Default::default() }].into();
        match host.admit(chain, request()?).await.dry_run().outcome {
            Outcome::Deny { code: said, .. } if said == code => {}
            other => return Err(format!("instead of {code} the plugin said {other:?}")),
        }
        Ok([built, begin.elapsed() - built, begin.elapsed()])
    }

    fn build(&self) -> Result<Vec<u8>, String> {
        let out = self.project.join("mine.wasm");
        let mut command = Command::new(self.program);
        command.args(["plugin", "build"]).arg(&self.project).arg("--out").arg(&out);
        run(if self.is_quick { command.arg("--quick") } else { &mut command })?;
        std::fs::read(&out).map_err(|error| format!("{}: {error}", out.display()))
    }
}

fn request() -> Result<AdmitRequest, String> {
    let name = |error: &dyn std::fmt::Display| error.to_string();
    Ok(AdmitRequest {
        tenant: "acme".parse().map_err(|error| name(&error))?,
        vm: "web".parse().map_err(|error| name(&error))?,
        vcpus: 2,
        memory_mib: 256,
        disks: 0,
        nics: 0,
        in_use: LimitUse::default(),
        labels: None,
        images: None,
    })
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {said}")) }
}
