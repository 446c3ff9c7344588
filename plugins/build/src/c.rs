//! Plugins in C: clang for the target without any system interface, with a run time of our own (`c/`). Key function:
//! [`build`].
//!
//! Headers of the world come from `wit/` at each build, and stay in the project's `target` for editors.

use std::ffi::OsStr;
use std::fs;

use anyhow::{Context, Result};
use wit_bindgen_core::{Files, wit_parser};

use crate::project::Source;
use crate::tools::{Missing, Toolbox, run, version};
use crate::{Built, componentize};

/// Compiler and linker.
pub const DEBIAN_PACKAGES: [&str; 2] = ["clang", "lld"];

/// The run time: no other library is linked.
const RUNTIME: [(&str, &str); 4] = [
    ("ostler.h", include_str!("../c/ostler.h")),
    ("runtime.c", include_str!("../c/runtime.c")),
    ("stdlib.h", include_str!("../c/stdlib.h")),
    ("string.h", include_str!("../c/string.h")),
];

/// What clang gets, beside files. Features of WebAssembly are those of its first version, whatever the compiler's default.
const FLAGS: [&str; 13] = [
    "--target=wasm32-unknown-unknown",
    "-mcpu=mvp",
    "-std=c11",
    "-Os",
    "-ffreestanding",
    "-nostdlib",
    "-nostdlibinc",
    "-Wall",
    "-Wextra",
    "-Wl,--no-entry",
    "-Wl,--strip-debug",
    // Below the data, so that an overflow traps instead of writing over it.
    "-Wl,--stack-first",
    "-Wl,-z,stack-size=65536",
];

pub(crate) fn build(source: &Source, toolbox: &Toolbox) -> Result<Built> {
    let missing = |what| Missing::new(what, format!("on Debian: apt-get install {}", DEBIAN_PACKAGES.join(" ")));
    let clang = toolbox.program("clang").ok_or_else(|| missing("clang"))?;
    let linker = toolbox.program("wasm-ld").ok_or_else(|| missing("wasm-ld"))?;
    let scratch = source.scratch()?;
    let made = bindings(source)?;
    let runtime = RUNTIME.iter().map(|(name, text)| (*name, text.as_bytes()));
    for (name, bytes) in made.iter().chain(runtime) {
        let path = scratch.join(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let module = scratch.join("plugin.core.wasm");
    let compiled = made.iter().map(|(name, _)| name).filter(|name| !name.ends_with(".h")).chain(["runtime.c"]);
    let inputs: Vec<_> = compiled.map(|name| scratch.join(name)).collect();
    let mut use_linker = OsStr::new("-fuse-ld=").to_owned();
    use_linker.push(&linker);
    let mut arguments: Vec<&OsStr> = FLAGS.iter().map(OsStr::new).collect();
    arguments.extend([use_linker.as_os_str(), OsStr::new("-I"), scratch.as_os_str(), source.file.as_os_str()]);
    arguments.extend(inputs.iter().map(|path| path.as_os_str()));
    arguments.extend([OsStr::new("-o"), module.as_os_str()]);
    run(&source.dir, &clang, &arguments)?;
    let bytes = fs::read(&module).with_context(|| format!("cannot read {}", module.display()))?;
    let component = componentize(&bytes).context("what clang made cannot be made a component")?;
    Ok(Built { component, by: version(&clang) })
}

/// Header, glue, and an object that carries the world.
fn bindings(source: &Source) -> Result<Files> {
    let mut resolve = wit_parser::Resolve::default();
    let (package, _) = resolve.push_dir(source.dir.join("wit")).context("cannot understand wit/")?;
    let world = resolve.select_world(&[package], Some(&source.world))?;
    let mut files = Files::default();
    wit_bindgen_c::Opts::default().build().generate(&mut resolve, world, &mut files)?;
    Ok(files)
}
