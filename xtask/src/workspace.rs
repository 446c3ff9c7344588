//! Where things lie: the workspace root and the lab's directory under `target/`.
//!
//! Every other module takes a [`Workspace`] and asks it for paths; none builds a path from the current directory.

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The workspace's root and the directories derived from it.
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// Finds the workspace from the variable that cargo sets, or else upwards from the current directory.
    pub(crate) fn locate() -> Result<Self> {
        let start = match std::env::var_os("CARGO_MANIFEST_DIR") {
            Some(manifest) => PathBuf::from(manifest),
            None => std::env::current_dir().context("the current directory cannot be read")?,
        };
        match start.ancestors().find(|directory| directory.join("xtask/Cargo.toml").is_file()) {
            Some(root) => Ok(Self { root: root.to_path_buf() }),
            None => bail!("{} is in no Ostler workspace: run this inside a clone", start.display()),
        }
    }

    /// The directory of the workspace's `Cargo.toml`.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A path under `target/lab`.
    pub(crate) fn lab(&self, below: &str) -> PathBuf {
        self.root.join("target/lab").join(below)
    }

    /// Holds the lab's directory for this process until the guard is dropped: two chores must not build the same thing.
    pub(crate) fn lock(&self) -> Result<File> {
        let path = self.lab("lock");
        fs::create_dir_all(self.lab("")).with_context(|| format!("cannot create {}", self.lab("").display()))?;
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            eprintln!("   waiting for another chore that builds in target/lab …");
            flock(&file, FlockOperation::LockExclusive).context("cannot lock target/lab")?;
        }
        Ok(file)
    }
}

/// Writes a file so that it is either whole or absent: first a neighbour, then a rename.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let unfinished = unfinished(path);
    fs::write(&unfinished, content).with_context(|| format!("cannot write {}", unfinished.display()))?;
    fs::rename(&unfinished, path).with_context(|| format!("cannot rename to {}", path.display()))
}

/// The neighbour of `path` that holds it while it is being made.
pub(crate) fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    PathBuf::from(name)
}

/// Removes a file or a whole directory, if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let outcome = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    outcome.with_context(|| format!("cannot remove {}", path.display()))
}
