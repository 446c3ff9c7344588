//! `ostler plugin test`: a directory of fixtures, each with the answer that it expects.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::differ::differences;
use super::fixture::Fixture;
use super::load::{Workbench, refused};
use super::run;
use crate::cli::args::{Output, PluginTestArgs};
use crate::cli::failure::{Exit, Failure};
use crate::cli::view::json;
use crate::cli::{print, show};
use crate::model::{Answer, KvWrites, Said};

#[derive(Serialize)]
struct SuiteView {
    passed: usize,
    failed: usize,
    updated: usize,
    fixtures: Vec<ResultView>,
}

#[derive(Serialize)]
struct ResultView {
    fixture: String,
    result: Verdict,
    /// The plugin's answer in a word, or why there is none.
    said: String,
    /// What is not as expected, a line each.
    differences: Vec<String>,
    fuel: u64,
    took_ns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    Failed,
    Updated,
}

pub(super) async fn test(arguments: &PluginTestArgs, output: Output) -> Result<(), Failure> {
    let fixtures = asked(&arguments.file, &arguments.dir, arguments.update, output == Output::Table).await?;
    let of = |verdict| fixtures.iter().filter(|result| result.result == verdict).count();
    let (passed, failed, updated) = (of(Verdict::Ok), of(Verdict::Failed), of(Verdict::Updated));
    let count = fixtures.len();
    match output {
        Output::Json => show(&json(&SuiteView { passed, failed, updated, fixtures }, false)?)?,
        Output::Table => {
            let updated = if updated > 0 { format!(", {updated} updated") } else { String::new() };
            show(&format!("{passed} passed, {failed} failed{updated}\n"))?;
        }
    }
    if failed == 0 {
        return Ok(());
    }
    let failure = Failure::new(Exit::Refused, format!("{failed} of {count} fixtures failed"));
    Err(failure.hint("if the plugin is right, --update writes what it says into the fixtures"))
}

/// Asks the plugin in `file` each fixture in `dir`; each is shown as soon as it is known, if it `is_shown`.
async fn asked(file: &Path, dir: &Path, is_update: bool, is_shown: bool) -> Result<Vec<ResultView>, Failure> {
    let paths = fixtures(dir)?;
    let workbench = Workbench::open(file)?;
    // Held meanwhile, so that the component is compiled once.
    let _compiled = workbench.load_without_settings().await.map_err(|error| refused(&error))?;
    let mut results = Vec::with_capacity(paths.len());
    for path in &paths {
        let result = one(&workbench, path, is_update).await?;
        if is_shown {
            show(&result.text())?;
        }
        results.push(result);
    }
    Ok(results)
}

/// How many fixtures in `dir` the plugin in `file` passes: all of them, or those that failed are the error.
pub(super) async fn passed(file: &Path, dir: &Path) -> Result<usize, Failure> {
    let results = asked(file, dir, false, false).await?;
    let failed: Vec<_> = results.iter().filter(|result| result.result != Verdict::Ok).map(ResultView::text).collect();
    if failed.is_empty() {
        return Ok(results.len());
    }
    let what = format!("{} of {} fixtures failed:\n{}", failed.len(), results.len(), failed.concat().trim_end());
    Err(Failure::new(Exit::Refused, what))
}

/// The fixtures in a directory, by name.
pub(super) fn fixtures(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let unreadable = |error| {
        let failure = Failure::local(format_args!("cannot read {}", dir.display()), &error);
        Failure { exit: Exit::Usage, ..failure }
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            found.push(path);
        }
    }
    if found.is_empty() {
        return Err(Failure::new(Exit::Usage, format!("no fixture (*.json) is in {}", dir.display()))
            .hint("ostler plugin fixture makes one of a recorded decision"));
    }
    found.sort();
    Ok(found)
}

async fn one(workbench: &Workbench, path: &Path, is_update: bool) -> Result<ResultView, Failure> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let failed = |said: String| {
        let result = Verdict::Failed;
        ResultView { fixture: name.clone(), result, said, differences: Vec::new(), fuel: 0, took_ns: 0 }
    };
    let fixture = match Fixture::read(path) {
        Ok(fixture) => fixture,
        Err(failure) => return Ok(failed(failure.message)),
    };
    let plugin = match workbench.load(fixture.settings.clone()).await {
        Ok(plugin) => plugin,
        Err(error) => return Ok(failed(format!("{}: {error}", error.code()))),
    };
    let answer = match run::ask(&workbench.host, &plugin, &fixture) {
        Ok((answer, _)) => answer,
        Err(error) => return Ok(failed(error.to_string())),
    };
    let wrote = answer.kv.as_ref().map(|kv| kv.wrote.clone()).unwrap_or_default();
    let mut differences = compare(fixture.expect.as_ref(), &answer.said);
    differences.extend(compare_writes(&fixture.writes, &wrote));
    let is_nodes = matches!(&answer.said, Said::Fault(fault) if fault.is_nodes());
    let result = match (differences.is_empty(), is_update && !is_nodes) {
        (true, _) => Verdict::Ok,
        (false, false) => Verdict::Failed,
        (false, true) => {
            Fixture { expect: Some(answer.said.clone()), writes: wrote, ..fixture }.write(path)?;
            Verdict::Updated
        }
    };
    let (fuel, took_ns) = (answer.fuel, answer.took_ns);
    Ok(ResultView { fixture: name, result, said: in_words(&answer), differences, fuel, took_ns })
}

fn compare(expected: Option<&Said>, said: &Said) -> Vec<String> {
    let json = |said: &Said| serde_json::to_value(said).unwrap_or(Value::Null);
    match expected {
        Some(expected) if expected == said => Vec::new(),
        Some(expected) => differences(&json(expected), &json(said)),
        None => vec!["the fixture expects nothing yet; --update writes what the plugin says".to_owned()],
    }
}

fn compare_writes(expected: &KvWrites, wrote: &KvWrites) -> Vec<String> {
    let json = |writes: &KvWrites| serde_json::json!({ "writes": writes });
    differences(&json(expected), &json(wrote))
}

fn in_words(answer: &Answer) -> String {
    let (word, detail) = answer.summary();
    if detail.is_empty() { word } else { format!("{word}: {detail}") }
}

impl ResultView {
    fn text(&self) -> String {
        let word = match self.result {
            Verdict::Ok => "ok     ",
            Verdict::Failed => "FAILED ",
            Verdict::Updated => "updated",
        };
        let mut text = format!("{word} {}  {}", self.fixture, self.said);
        if self.fuel > 0 {
            text.push_str(&format!(", {} fuel", self.fuel));
        }
        for difference in &self.differences {
            text.push_str(&format!("\n        {difference}"));
        }
        print::clean(&text) + "\n"
    }
}
