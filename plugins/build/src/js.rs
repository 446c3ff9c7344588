//! Plugins in JavaScript: componentize-js puts the source, already run once, beside an engine. Key function: [`build`].

use std::ffi::OsStr;
use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::Built;
use crate::project::Source;
use crate::tools::{Missing, Toolbox, version};

/// Runs in the project's `target`, so that its import finds the project's `node_modules`.
const SCRIPT: &str = include_str!("componentize.mjs");
/// What the script ends with if there is no such package.
const NO_PACKAGE: i32 = 3;

pub(crate) fn build(source: &Source, toolbox: &Toolbox) -> Result<Built> {
    let node = toolbox.program("node");
    let node = node.ok_or_else(|| Missing::new("node", "on Debian: apt-get install nodejs npm"))?;
    let scratch = source.scratch()?;
    let (script, component) = (scratch.join("componentize.mjs"), scratch.join("plugin.wasm"));
    fs::write(&script, SCRIPT).with_context(|| format!("cannot write {}", script.display()))?;
    let mut command = Command::new(&node);
    command.current_dir(&source.dir).stdin(Stdio::null()).stdout(Stdio::null());
    let world = OsStr::new(&source.world);
    command.args([script.as_os_str(), source.file.as_os_str(), OsStr::new("wit"), world, component.as_os_str()]);
    let status = command.status().with_context(|| format!("cannot run {}", node.display()))?;
    if status.code() == Some(NO_PACKAGE) {
        bail!(Missing::new(
            "@bytecodealliance/componentize-js",
            format!("run npm install in {}", source.dir.display())
        ));
    }
    ensure!(status.success(), "componentize-js failed ({status}); its messages are above");
    let component = fs::read(&component).with_context(|| format!("cannot read {}", component.display()))?;
    Ok(Built { component, by: format!("componentize-js, node {}", version(&node)) })
}
