//! Builds the policy plugins: Rust to a core module to a component, and the hostile fixtures of the tests from text.
//!
//! [`build`] is the door. [`toolchain`] sees that there is a compiler with the WebAssembly standard library; [`hostile`] makes
//! the fixtures; [`examples`] builds those in other languages, which only tests need. Nothing is built when no input changed since the last time.

pub(crate) mod examples;
mod hostile;
mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use plugin_build::{TARGET, Toolchain, componentize};
use sha2::{Digest, Sha256};

/// Names of plugins, each of which becomes `<name>.wasm`, and their packages. The last is the example in Rust.
const PLUGINS: [(&str, &str); 8] = [
    ("admission", "plugin-admission"),
    ("sriov-net", "plugin-sriov-net"),
    ("nvme", "plugin-nvme"),
    ("placement", "plugin-placement"),
    ("rate", "plugin-rate"),
    ("family", "plugin-family"),
    ("tally", "plugin-tally"),
    ("size-limit", "size-limit"),
];

/// What the outputs are made from, beside the compiler.
const INPUTS: [&str; 7] =
    ["wit", "plugins", "tests/plugins", "xtask/src/plugins.rs", "xtask/src/plugins", "Cargo.toml", "Cargo.lock"];

/// Builds every plugin into `out` and the hostile fixtures into `out/hostile`; returns the plugins' paths.
///
/// `root` is the workspace. Needs a compiler with the WebAssembly standard library and installs one if it can; the
/// error says what to install otherwise.
pub(crate) fn build(root: &Path, out: &Path) -> Result<Vec<PathBuf>> {
    let started = Instant::now();
    let outputs: Vec<PathBuf> = PLUGINS.iter().map(|(name, _)| out.join(format!("{name}.wasm"))).collect();
    let stamp = out.join(".inputs");
    let inputs = fingerprint(root, &INPUTS)?;
    let fixtures = hostile::outputs(out);
    let is_complete = outputs.iter().chain(&fixtures).all(|path| path.is_file());
    if is_complete && fs::read_to_string(&stamp).is_ok_and(|last| last == inputs) {
        eprintln!("plugins: unchanged in {}", out.display());
        return Ok(outputs);
    }
    fs::create_dir_all(out.join("hostile")).with_context(|| format!("cannot create {}", out.display()))?;
    let toolchain = toolchain::find_or_install()?;
    eprintln!("plugins: building with {}", toolchain.description);
    let modules = compile(root, &toolchain)?;
    for (((name, _), module), output) in PLUGINS.iter().zip(modules).zip(&outputs) {
        let component = componentize(&module).with_context(|| format!("cannot make a component of {name}"))?;
        write(output, &component)?;
        eprintln!("plugins: {} ({} bytes)", output.display(), component.len());
    }
    hostile::build(root, out, &outputs[0])?;
    eprintln!("plugins: {} hostile fixtures in {}", fixtures.len(), out.join("hostile").display());
    write(&stamp, inputs.as_bytes())?;
    eprintln!("plugins: done in {:.1} s", started.elapsed().as_secs_f32());
    Ok(outputs)
}

/// Compiles all plugins in one go; returns the core modules in the order of [`PLUGINS`].
fn compile(root: &Path, toolchain: &Toolchain) -> Result<Vec<Vec<u8>>> {
    // A folder of its own: another compiler's output beside the host's would rebuild both in turns.
    let target_dir = root.join("target/plugins-build");
    if !target_dir.exists() {
        eprintln!("plugins: first build, this may take a minute");
    }
    let mut cargo = toolchain.cargo();
    cargo
        .current_dir(root)
        .args(["build", "--locked", "--lib", "--profile", "plugin", "--target", TARGET, "--target-dir"])
        .arg(&target_dir);
    for (_, package) in PLUGINS {
        cargo.args(["--package", package]);
    }
    let status = cargo.status().with_context(|| format!("cannot run {:?}", cargo.get_program()))?;
    ensure!(status.success(), "the plugin build failed ({status}); the compiler's messages are above");
    PLUGINS
        .iter()
        .map(|(_, package)| {
            let path = target_dir.join(TARGET).join("plugin").join(format!("{}.wasm", package.replace('-', "_")));
            fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        })
        .collect()
}

/// Writes all of `path` or nothing: a half-written plugin never lies under its name.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_extension("part");
    fs::write(&part, bytes)
        .and_then(|()| fs::rename(&part, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// SHA-256 over names and contents of all inputs below `root`.
fn fingerprint(root: &Path, inputs: &[&str]) -> Result<String> {
    let mut files = Vec::new();
    for input in inputs {
        collect(&root.join(input), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in &files {
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(file).to_string_lossy();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}
