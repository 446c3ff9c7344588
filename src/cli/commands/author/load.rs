//! `ostler plugin inspect|check`, and how each of these commands comes by a plugin. Key type: [`Workbench`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cli::args::{Output, PluginCheckArgs};
use crate::cli::commands::component::read;
use crate::cli::failure::{Exit, Failure};
use crate::cli::view::json;
use crate::cli::{print, show};
use crate::daemon::policy::{self, LoadError, LoadedPlugin, PolicyConfig, PolicyHost};
use crate::model::{Grant, PolicyScope};

/// This program, in whose other roles plugins are compiled and run.
const PROGRAM: &str = "/proc/self/exe";

/// A component and a policy host for it.
pub(super) struct Workbench {
    pub(super) host: PolicyHost,
    bytes: Vec<u8>,
}

impl Workbench {
    /// Reads the component and starts the policy host.
    pub(super) fn open(file: &Path) -> Result<Self, Failure> {
        let bytes = read(file)?;
        let host = PolicyHost::start(PolicyConfig::for_author(Path::new(PROGRAM)));
        let host = host.map_err(|error| Failure::new(Exit::Refused, chain(&error)))?;
        Ok(Self { host, bytes })
    }

    /// Loads the component as a daemon would that grants it what it wants.
    pub(super) async fn load(&self, settings: BTreeMap<String, String>) -> Result<LoadedPlugin, LoadError> {
        self.load_granted(settings, Grant::ALL.into()).await
    }

    /// Loads it as a daemon would that grants it this.
    async fn load_granted(
        &self,
        settings: BTreeMap<String, String>,
        grants: BTreeSet<Grant>,
    ) -> Result<LoadedPlugin, LoadError> {
        self.host.load_granted(&PolicyScope::Operator, self.bytes.clone(), settings, grants).await
    }

    /// The same before any settings are known.
    pub(super) async fn load_without_settings(&self) -> Result<LoadedPlugin, LoadError> {
        self.host.load_without_settings(&PolicyScope::Operator, self.bytes.clone()).await
    }
}

/// A component that is refused, in the words in which a daemon refuses it.
pub(super) fn refused(error: &LoadError) -> Failure {
    let exit = if matches!(error, LoadError::Unavailable(_)) { Exit::Refused } else { Exit::Usage };
    let facts = vec![("reason".into(), "PLUGIN_REFUSED".into()), ("code".into(), error.code().into())];
    Failure { facts, ..Failure::new(exit, format!("plugin is refused: {error}")) }
}

/// An error with its causes, as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Settings by key.
pub(super) fn settings(given: Vec<(String, String)>) -> Result<BTreeMap<String, String>, Failure> {
    let mut settings = BTreeMap::new();
    for (key, value) in given {
        if settings.insert(key.clone(), value).is_some() {
            return Err(Failure::new(Exit::Usage, format!("setting {key:?} is given twice")));
        }
    }
    Ok(settings)
}

#[derive(Serialize)]
struct InspectView {
    digest: String,
    size_bytes: usize,
    hooks: Vec<&'static str>,
    packages: Vec<String>,
    imports: Vec<String>,
    refused_imports: Vec<String>,
    /// What it must be granted.
    grants: Vec<&'static str>,
    exports: Vec<String>,
}

/// Shows a component's outside; nothing of it is compiled or run.
pub(super) fn inspect(file: &Path, output: Output) -> Result<(), Failure> {
    let found = policy::inspect(&read(file)?).map_err(|error| refused(&error))?;
    let names = found.imports.iter().chain(&found.exports);
    let packages: BTreeSet<String> = names.filter_map(|name| package(name)).collect();
    let view = InspectView {
        digest: found.digest.to_string(),
        size_bytes: found.size_bytes,
        hooks: found.hooks,
        packages: packages.into_iter().collect(),
        imports: found.imports,
        refused_imports: found.refused_imports,
        grants: found.wants.into_iter().map(Grant::name).collect(),
        exports: found.exports,
    };
    match output {
        Output::Json => show(&json(&view, false)?),
        Output::Table => {
            let mut facts = vec![
                ("digest", view.digest),
                ("size", format!("{} bytes", view.size_bytes)),
                ("hooks", none_or(&view.hooks.join(", "))),
                ("packages", none_or(&view.packages.join(", "))),
                ("imports", none_or(&view.imports.join("\n"))),
                ("exports", none_or(&view.exports.join("\n"))),
            ];
            if !view.grants.is_empty() {
                facts.push(("wants", format!("{}: what it must be granted (--grant)", view.grants.join(", "))));
            }
            if !view.refused_imports.is_empty() {
                facts.push(("refused", format!("{}: no plugin may import this", view.refused_imports.join(", "))));
            }
            show(&print::facts(&facts))
        }
    }
}

/// `ostler:policy/log@0.1.0` to `ostler:policy@0.1.0`.
fn package(name: &str) -> Option<String> {
    let (package, interface) = name.split_once('/')?;
    Some(interface.split_once('@').map_or_else(|| package.to_owned(), |(_, version)| format!("{package}@{version}")))
}

fn none_or(text: &str) -> String {
    if text.is_empty() { "none".to_owned() } else { text.to_owned() }
}

#[derive(Serialize)]
struct CheckView {
    name: String,
    version: String,
    summary: String,
    hooks: Vec<&'static str>,
    /// What it must be granted.
    grants: Vec<&'static str>,
    digest: String,
    size_bytes: u64,
    code_bytes: u64,
    took_ns: u64,
}

/// Loads a component, and says what a daemon would say.
pub(super) async fn check(arguments: PluginCheckArgs, output: Output) -> Result<(), Failure> {
    let settings = settings(arguments.settings)?;
    let workbench = Workbench::open(&arguments.file)?;
    let started = Instant::now();
    let grants = arguments.grants.into_iter().collect();
    let plugin = workbench.load_granted(settings, grants).await.map_err(|error| refused(&error))?;
    let took = started.elapsed();
    let view = CheckView {
        name: plugin.name().to_owned(),
        version: plugin.version().to_owned(),
        summary: plugin.summary().to_owned(),
        hooks: plugin.hooks().to_vec(),
        grants: plugin.wants().iter().map(|grant| grant.name()).collect(),
        digest: plugin.digest().to_string(),
        size_bytes: plugin.size_bytes(),
        code_bytes: plugin.code_bytes(),
        took_ns: nanos(took),
    };
    match output {
        Output::Json => show(&json(&view, false)?),
        Output::Table => show(&print::facts(&[
            ("plugin", format!("{} {}", view.name, view.version)),
            ("summary", view.summary),
            ("hooks", view.hooks.join(", ")),
            ("grants", none_or(&view.grants.join(", "))),
            ("digest", view.digest),
            ("size", format!("{} bytes, {} of machine code", view.size_bytes, view.code_bytes)),
            ("took", format!("{} to compile and check", print::duration(took))),
        ])),
    }
}

/// A duration as JSON has it.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_named_with_its_version() {
        assert_eq!(package("ostler:policy/log@0.1.0").as_deref(), Some("ostler:policy@0.1.0"));
        assert_eq!(package("a:b/c").as_deref(), Some("a:b"));
        assert_eq!(package("run"), None);
    }

    #[test]
    fn a_setting_is_given_once() {
        let pair = |key: &str| (key.to_owned(), "1".to_owned());
        assert_eq!(settings(vec![pair("a"), pair("b")]).unwrap().len(), 2);
        assert_eq!(settings(vec![pair("a"), pair("a")]).unwrap_err().exit, Exit::Usage);
    }
}
