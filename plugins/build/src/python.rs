//! Plugins in Python: componentize-py puts the module, already imported, beside an interpreter. Key function: [`build`].

use std::ffi::OsStr;
use std::fs;

use anyhow::{Context, Result};

use crate::Built;
use crate::project::Source;
use crate::tools::{Missing, Toolbox, run, version};

/// Makes the component. Interfaces of a system that the interpreter could use are replaced by traps (`--stub-wasi`).
pub(crate) fn build(source: &Source, toolbox: &Toolbox) -> Result<Built> {
    let program = toolbox.program("componentize-py");
    let program = program.ok_or_else(|| {
        Missing::new("componentize-py", "run pip install -r requirements.txt, best in a virtual environment")
    })?;
    let component = source.scratch()?.join("plugin.wasm");
    let module = source.file.file_stem().with_context(|| format!("{} is no module", source.file.display()))?;
    let path = source.dir.join(&source.file);
    let path = path.parent().unwrap_or(&source.dir);
    let arguments = ["-q", "-d", "wit", "-w", &source.world, "componentize", "--stub-wasi", "-p"].map(OsStr::new);
    let more = [path.as_os_str(), module, OsStr::new("-o"), component.as_os_str()];
    run(&source.dir, &program, &[&arguments[..], &more[..]].concat())?;
    let component = fs::read(&component).with_context(|| format!("cannot read {}", component.display()))?;
    Ok(Built { component, by: version(&program) })
}
