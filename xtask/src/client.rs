//! Assembles the Python client in `target/python`: what is ours from `clients/python`, and the code that gRPC's own
//! generator makes of `proto/ostler/v1`. `pip install target/python` installs it; `PYTHONPATH=target/python` does too.

use crate::progress::{output_of, step};
use crate::python::Python;
use crate::workspace::{Workspace, remove, unfinished};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs the chore, and returns the directory.
pub(crate) fn assemble(workspace: &Workspace) -> Result<PathBuf> {
    let python = Python::ready(workspace)?;
    let _lock = workspace.lock()?;
    let client = workspace.root().join("target/python");
    step("making the Python client", || {
        let unfinished = unfinished(&client);
        remove(&unfinished)?;
        let ours = workspace.root().join("clients/python");
        copy(&ours.join("ostler"), &unfinished.join("ostler"))?;
        fs::copy(ours.join("pyproject.toml"), unfinished.join("pyproject.toml"))?;
        generate(&python, &workspace.root().join("proto"), &unfinished)?;
        remove(&client)?;
        Ok(fs::rename(&unfinished, &client)?)
    })?;
    Ok(client)
}

fn generate(python: &Python, protos: &Path, out: &Path) -> Result<()> {
    let mut protoc = Command::new(python.launcher());
    protoc.args(["-m", "grpc_tools.protoc", "--proto_path"]).arg(protos);
    for kind in ["python_out", "pyi_out", "grpc_python_out"] {
        protoc.arg(format!("--{kind}={}", out.display()));
    }
    let public = protos.join("ostler/v1");
    let mut files: Vec<PathBuf> = fs::read_dir(&public)
        .with_context(|| format!("cannot read {}", public.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "proto"))
        .collect();
    files.sort();
    output_of(protoc.args(files))?;
    Ok(fs::write(out.join("ostler/v1/__init__.py"), "\"\"\"Generated from proto/ostler/v1.\"\"\"\n")?)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "py") {
            fs::copy(&path, to.join(path.file_name().context("an entry has a name")?))?;
        }
    }
    Ok(())
}
