//! Cargo, called by this program. Key functions: [`command`], [`build`].

use crate::progress::step;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What cargo says of one artifact.
#[derive(Deserialize)]
pub(crate) struct Message {
    reason: String,
    /// The program, if the artifact is one.
    #[serde(default)]
    pub(crate) executable: Option<PathBuf>,
    #[serde(default)]
    pub(crate) manifest_path: PathBuf,
    #[serde(default)]
    pub(crate) target: Target,
    #[serde(default)]
    pub(crate) profile: Profile,
}

#[derive(Default, Deserialize)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) kind: Vec<String>,
}

#[derive(Default, Deserialize)]
pub(crate) struct Profile {
    pub(crate) test: bool,
}

impl Message {
    /// Whether this is the program of that name and kind (`bin`, `test`, `bench`).
    pub(crate) fn is_executable(&self, name: &str, kind: &str) -> bool {
        self.executable.is_some() && self.target.name == name && self.target.kind.iter().any(|known| known == kind)
    }
}

/// Builds the `ostler` program and returns its path.
pub(crate) fn build_ostler(workspace: &Workspace) -> Result<PathBuf> {
    let messages =
        step("building ostler", || build(workspace, &["build", "--release", "--package", "ostler", "--bins"]))?;
    ostler_of(&messages)
}

/// The `ostler` program among what cargo built; its unit tests, an executable of the same name, are not it.
pub(crate) fn ostler_of(messages: &[Message]) -> Result<PathBuf> {
    messages
        .iter()
        .find(|message| message.is_executable("ostler", "bin") && !message.profile.test)
        .and_then(|message| message.executable.clone())
        .context("cargo built no program named ostler")
}

/// Runs cargo in the workspace and returns what it says of its artifacts; its own messages go to the terminal.
pub(crate) fn build(workspace: &Workspace, arguments: &[&str]) -> Result<Vec<Message>> {
    let output = command()
        .current_dir(workspace.root())
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo {} failed; its messages are above", arguments.join(" "));
    }
    let messages =
        output.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Message>(line).ok());
    Ok(messages.filter(|message| message.reason == "compiler-artifact").collect())
}

/// Cargo as a shell would run it. What it told this program about its package is not passed on: build scripts look at some
/// of it (that of `ring` does), and everything above them would be built anew whenever one calls cargo another way.
pub(crate) fn command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let name_bytes = name.as_encoded_bytes();
        if name_bytes.starts_with(b"CARGO_PKG_") || name_bytes.starts_with(b"CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}
