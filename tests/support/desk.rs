//! Where a plugin's author works. Key type: [`Desk`].

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::assets::{self, plugin};
use super::unhurried::is_cut_short;
use super::wait::{BOOT, until};

/// An author's desk: a directory, and the command line without identity and daemon.
pub struct Desk(TempDir);

/// How a command ended.
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub error: String,
}

impl Said {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.error))
    }
}

/// Runs it to its end.
pub fn run(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), out: text(output.stdout), error: text(output.stderr) }
}

impl Desk {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// The file of a plugin.
    pub fn plugin(&self, name: &str) -> PathBuf {
        self.write(&format!("{}.wasm", name.replace('/', "-")), &plugin(name))
    }

    pub fn fixture(&self, name: &str, fixture: &Value) -> PathBuf {
        self.write(name, fixture.to_string().as_bytes())
    }

    /// `ostler plugin …` of an author who has nothing else: no identity, no daemon, no variable. It is run until the machine
    /// leaves the plugin the time that it may take.
    pub fn ostler(&self, arguments: &[&dyn AsRef<OsStr>]) -> Said {
        self.ostler_with(&[], arguments)
    }

    /// The same with these directories of programs.
    pub fn ostler_with(&self, path: &[PathBuf], arguments: &[&dyn AsRef<OsStr>]) -> Said {
        let mut command = Command::new(assets::binary());
        command.env_clear().env("PATH", std::env::join_paths(path).unwrap()).current_dir(self.path()).arg("plugin");
        command.args(arguments.iter().map(|argument| argument.as_ref()));
        until("a run that the clock does not end", BOOT, || {
            Some(run(&mut command)).filter(|said| !is_cut_short(&said.out) && !is_cut_short(&said.error))
        })
    }
}
