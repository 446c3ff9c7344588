//! Builds the examples that are no crate, as their authors would, each in a copy below `target/lab/examples`. Key
//! function: [`build`].
//!
//! What they are built with is installed first: clang from Debian, Node and componentize-py from PyPI, componentize-js from
//! npm by the example's lock file. A component is made anew when something changed that it is made from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use plugin_build::{C_DEBIAN_PACKAGES, Effort, Missing, Toolbox};

use super::{fingerprint, toolchain, write};
use crate::progress::{output_of, step};
use crate::python::Python;
use crate::workspace::Workspace;

/// Folders below `plugins/examples`; each becomes `<name>.wasm`.
const EXAMPLES: [&str; 3] = ["c", "js", "python"];

/// Builds every example, and returns the directory of the components.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let python = Python::ready(workspace)?;
    let _lock = workspace.lock()?;
    let out = workspace.lab("examples");
    for name in EXAMPLES {
        let (component, stamp) = (out.join(format!("{name}.wasm")), out.join(format!(".{name}.inputs")));
        let from = format!("plugins/examples/{name}");
        let inputs =
            ["wit", "plugins/build", "xtask/assets/python-plugins.txt", "xtask/src/plugins/examples.rs", &from];
        let inputs = fingerprint(workspace.root(), &inputs)?;
        if component.is_file() && fs::read_to_string(&stamp).is_ok_and(|last| last == inputs) {
            eprintln!("plugins: unchanged: {}", component.display());
            continue;
        }
        let dir = out.join(name);
        let built = step(&format!("building the example in {name}"), || {
            copy(&workspace.root().join(&from), &dir)?;
            copy(&workspace.root().join("wit"), &dir.join("wit"))?;
            made(&dir, &python)
        })?;
        write(&component, &built)?;
        write(&stamp, inputs.as_bytes())?;
        eprintln!("plugins: {} ({} bytes)", component.display(), built.len());
    }
    Ok(out)
}

fn made(dir: &Path, python: &Python) -> Result<Vec<u8>> {
    if dir.join("package.json").is_file() {
        install_packages(dir, python)?;
    }
    let toolbox = Toolbox::with(vec![python.node(), python.programs()]);
    let built = match plugin_build::build(dir, &toolbox, Effort::Full) {
        Err(error) if error.is::<Missing>() && toolchain::install(&C_DEBIAN_PACKAGES) => {
            plugin_build::build(dir, &toolbox, Effort::Full)
        }
        built => built,
    };
    match built {
        Ok(built) => Ok(built.component),
        Err(error) => match error.downcast_ref::<Missing>() {
            Some(missing) => bail!("{missing}: {}", missing.install()),
            None => Err(error),
        },
    }
}

/// Has npm install exactly what the lock file names, and run nothing of it.
fn install_packages(dir: &Path, python: &Python) -> Result<()> {
    let mut npm = Command::new(python.node().join("node"));
    npm.arg(python.npm()).args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(dir);
    output_of(&mut npm).map(drop).context("npm could not install componentize-js")
}

/// Copies a folder's files over those in `to`.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let path = entry?.path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().unwrap_or_default()))?;
        }
    }
    Ok(())
}
