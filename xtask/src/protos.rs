//! `cargo xtask protos`: whether `proto/` keeps to its rules (`buf.yaml`), and whether it breaks clients of the last
//! release (`proto/released.json`, the public package as it was then). `tests/protos.rs` does the same in every run of
//! the tests.

use crate::progress::output_of;
use crate::python::Python;
use crate::workspace::{Workspace, unfinished};
use anyhow::{Context, Result};
use clap::Args;
use std::fs;
use std::process::{Command, ExitCode};

/// The public package as of the last release.
const RELEASED: &str = "proto/released.json";

/// Options of `cargo xtask protos`.
#[derive(Args)]
pub(crate) struct ProtosArguments {
    /// Make what is in proto/ now the release that later changes are compared with; commit it with the release
    #[arg(long)]
    release: bool,
}

/// Runs the chore.
pub(crate) fn run(workspace: &Workspace, arguments: &ProtosArguments) -> Result<ExitCode> {
    let python = Python::ready(workspace)?;
    let buf = || {
        let mut buf = Command::new(python.buf());
        buf.current_dir(workspace.root());
        buf
    };
    for check in [&["lint"][..], &["breaking", "--against", RELEASED]] {
        let status = buf().args(check).status().context("cannot run buf")?;
        let is_waived = arguments.release && check.first() == Some(&"breaking");
        if !status.success() && !is_waived {
            return Ok(ExitCode::FAILURE);
        }
    }
    if arguments.release {
        // Its name tells buf the format.
        let made = unfinished(&workspace.root().join("target/released")).with_extension("json");
        let build = ["build", "--exclude-source-info", "--path", "proto/ostler", "--output"];
        output_of(buf().args(build).arg(&made))?;
        let released: serde_json::Value = serde_json::from_slice(&fs::read(&made)?)?;
        fs::remove_file(&made)?;
        // Line by line, for whoever reads the difference.
        let mut text = serde_json::to_string_pretty(&released)?;
        text.push('\n');
        crate::workspace::write_whole(&workspace.root().join(RELEASED), text.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}
