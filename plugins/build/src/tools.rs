//! Programs that plugins are built with. Key types: [`Toolbox`], [`Missing`].

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::toolchain::{DEBIAN_PACKAGES, TARGET};

/// Where programs are looked for.
#[derive(Debug, Default)]
pub struct Toolbox {
    /// Before those of `PATH`.
    first: Vec<PathBuf>,
}

impl Toolbox {
    /// These directories, then those of `PATH`.
    pub fn with(first: Vec<PathBuf>) -> Self {
        Self { first }
    }

    /// The first program of this name.
    pub(crate) fn program(&self, name: &str) -> Option<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        let dirs = self.first.iter().cloned().chain(env::split_paths(&path));
        // An empty entry would be where the command was given.
        dirs.filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(|path| path.is_file())
    }
}

/// A tool that is not there.
#[derive(Debug, PartialEq, Eq)]
pub struct Missing {
    what: String,
    install: String,
}

impl Missing {
    pub(crate) fn new(what: impl Into<String>, install: impl Into<String>) -> Self {
        Self { what: what.into(), install: install.into() }
    }

    pub(crate) fn rust() -> Self {
        let packages = DEBIAN_PACKAGES.join(" ");
        let install = format!("run rustup target add {TARGET}, or on Debian apt-get install {packages}");
        Self::new(format!("Rust compiler with {TARGET}"), install)
    }

    /// What to do about it.
    pub fn install(&self) -> &str {
        &self.install
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no {} is found", self.what)
    }
}

impl std::error::Error for Missing {}

/// Runs a compiler in `dir`; its messages go to stderr.
pub(crate) fn run(dir: &Path, program: &Path, arguments: &[&OsStr]) -> Result<()> {
    let mut command = Command::new(program);
    command.current_dir(dir).args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.status().with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(status.success(), "{} failed ({status}); its messages are above", program.display());
    Ok(())
}

/// First line of what a program says of its version.
pub(crate) fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}
