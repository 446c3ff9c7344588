//! What a plugin's directory says of itself. Key type: [`Project`].

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// The file that says how a plugin is built that is no crate.
pub const MANIFEST: &str = "plugin.toml";

/// Languages of plugins that are no crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// By clang.
    C,
    /// By componentize-js.
    Js,
    /// By componentize-py.
    Python,
}

/// A plugin's directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Project {
    /// In Rust; cargo knows the rest.
    Crate,
    Source(Source),
}

/// A plugin that is one file, and what that imports or includes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) language: Language,
    /// The project's directory.
    pub(crate) dir: PathBuf,
    /// The file, below it.
    pub(crate) file: PathBuf,
    /// Its world: `admit`.
    pub(crate) world: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    language: Language,
    source: PathBuf,
    world: String,
}

impl Project {
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        if !path.is_file() {
            if dir.join("Cargo.toml").is_file() {
                return Ok(Self::Crate);
            }
            bail!("{} is no plugin's directory: it has neither Cargo.toml nor {MANIFEST}", dir.display());
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let manifest: Manifest =
            toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))?;
        // Compilers run in the directory, and paths in their messages are shorter then.
        let dir = dir.canonicalize().with_context(|| format!("cannot find {}", dir.display()))?;
        let Manifest { language, source: file, world } = manifest;
        ensure!(dir.join(&file).is_file(), "{} names {}, which is not there", path.display(), file.display());
        ensure!(dir.join("wit").is_dir(), "{} has no folder wit with the host's interfaces", dir.display());
        Ok(Self::Source(Source { language, dir, file, world }))
    }
}

impl Source {
    /// Where files in between are kept, below `dir`; made if it is not there.
    pub(crate) fn scratch(&self) -> Result<PathBuf> {
        let scratch = self.dir.join("target");
        fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
        Ok(scratch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_a_crate_or_says_how_it_is_built() {
        let dir = tempfile::tempdir().unwrap();
        let read = || Project::read(dir.path()).map_err(|error| format!("{error:#}"));
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert!(read().unwrap_err().contains("neither Cargo.toml nor plugin.toml"));
        write("Cargo.toml", "");
        assert_eq!(read(), Ok(Project::Crate));
        write(MANIFEST, "language = \"c\"\nsource = \"plugin.c\"\nworld = \"admit\"\n");
        assert!(read().unwrap_err().contains("plugin.c, which is not there"));
        write("plugin.c", "");
        assert!(read().unwrap_err().contains("no folder wit"));
        fs::create_dir(dir.path().join("wit")).unwrap();
        let source = Source {
            language: Language::C,
            dir: dir.path().canonicalize().unwrap(),
            file: "plugin.c".into(),
            world: "admit".into(),
        };
        assert_eq!(read(), Ok(Project::Source(source)));
        write(MANIFEST, "language = \"cobol\"\nsource = \"plugin.c\"\nworld = \"admit\"\n");
        assert!(read().unwrap_err().contains("cobol"));
    }
}
