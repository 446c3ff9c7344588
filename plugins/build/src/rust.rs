//! Plugins in Rust: cargo makes a core module, which carries its world. Key function: [`build`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::toolchain::{TARGET, Toolchain};
use crate::{Effort, componentize};

/// Builds the crate in `dir`, and gives its component. The compiler's messages go to stderr.
pub(crate) fn build(toolchain: &Toolchain, dir: &Path, effort: Effort) -> Result<Vec<u8>> {
    let mut cargo = command(toolchain.cargo(), dir, effort);
    let output = cargo.output().with_context(|| format!("cannot run {:?}", cargo.get_program()))?;
    ensure!(output.status.success(), "the build failed ({}); the compiler's messages are above", output.status);
    let module = made(&output.stdout).context("the build made no .wasm: is the crate's type `cdylib`?")?;
    let bytes = fs::read(&module).with_context(|| format!("cannot read {}", module.display()))?;
    match componentize(&bytes) {
        Ok(component) => Ok(component),
        Err(error) => bail!("{} cannot be made a component: {error:#}", module.display()),
    }
}

fn command(mut cargo: Command, dir: &Path, effort: Effort) -> Command {
    if effort == Effort::Quick {
        cargo.env("CARGO_PROFILE_RELEASE_LTO", "false");
    }
    cargo
        .current_dir(dir)
        .args(["build", "--release", "--lib", "--target", TARGET, "--message-format=json-render-diagnostics"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    cargo
}

/// The last core module that cargo tells of: that of the crate itself.
fn made(messages: &[u8]) -> Option<PathBuf> {
    let mut files = messages.split(|byte| *byte == b'\n').filter_map(|line| {
        let message: Value = serde_json::from_slice(line).ok()?;
        let files = message.get("filenames")?.as_array()?.iter().filter_map(Value::as_str);
        files.map(PathBuf::from).find(|file| file.extension().is_some_and(|extension| extension == "wasm"))
    });
    files.next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_quick_build_overrules_the_project() {
        let overruled = |effort| {
            let cargo = command(Command::new("cargo"), Path::new("mine"), effort);
            cargo.get_envs().map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned))).collect::<Vec<_>>()
        };
        assert_eq!(overruled(Effort::Quick), [("CARGO_PROFILE_RELEASE_LTO".into(), Some("false".into()))]);
        assert_eq!(overruled(Effort::Full), []);
    }

    #[test]
    fn the_crates_own_module_is_the_last_that_was_made() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","filenames":["/t/libsdk.rlib"]}"#,
            "\n",
            r#"{"reason":"compiler-artifact","filenames":["/t/mine.wasm","/t/mine.d"]}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
            "\n"
        );
        assert_eq!(made(messages.as_bytes()), Some(PathBuf::from("/t/mine.wasm")));
        assert_eq!(made(b"{}\nnonsense"), None);
    }
}
