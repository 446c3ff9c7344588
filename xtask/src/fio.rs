//! fio, which verifies what it has written: built here, one static program, because guests have no libraries, and Debian's
//! own is linked with those of whole storage systems.

use crate::progress::{output_of, step};
use crate::workspace::{Workspace, remove, unfinished};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a guest does not need, whether or not this machine has it.
const WITHOUT: [&str; 11] =
    ["native", "numa", "rdma", "rados", "rbd", "http", "gfapi", "pmem", "libzbc", "xnvme", "libnfs"];

/// Builds it from an archive of its sources, once for each version, and returns the program.
pub(crate) fn build(workspace: &Workspace, archive: &Path) -> Result<PathBuf> {
    let version = archive.file_stem().context("the sources of fio have no name")?.to_string_lossy().into_owned();
    let program = workspace.lab("fio").join(version);
    if program.is_file() {
        return Ok(program);
    }
    step("building fio", || {
        let sources = unfinished(&program);
        remove(&sources)?;
        fs::create_dir_all(&sources)?;
        let unpack = ["--extract", "--strip-components=1", "--no-same-owner", "--file"];
        output_of(Command::new("tar").args(unpack).arg(archive).arg("--directory").arg(&sources))?;
        let without = WITHOUT.map(|feature| format!("--disable-{feature}"));
        output_of(Command::new("./configure").args(without).current_dir(&sources))?;
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let make = [format!("-j{jobs}"), "LDFLAGS=-static".to_owned(), "fio".to_owned()];
        output_of(Command::new("make").args(make).current_dir(&sources))?;
        output_of(Command::new("strip").arg("fio").current_dir(&sources))?;
        fs::rename(sources.join("fio"), &program)?;
        remove(&sources)
    })?;
    Ok(program)
}
