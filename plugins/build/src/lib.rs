//! From a policy plugin's source to a component. Key functions: [`build`], [`find`], [`componentize`].
//!
//! For authors (`ostler plugin build`) and for the plugins of this repository (`cargo xtask plugins`). A component imports
//! what its world grants and nothing else, whatever its language: [`rust`] and [`c`] have no system interface at all, and in
//! [`js`] and [`python`] nothing stands behind it.

mod c;
mod js;
mod project;
mod python;
mod rust;
mod toolchain;
mod tools;

use std::path::Path;

use anyhow::Result;
use wit_component::ComponentEncoder;

pub use c::DEBIAN_PACKAGES as C_DEBIAN_PACKAGES;
pub use project::{Language, MANIFEST};
pub use toolchain::{DEBIAN_PACKAGES, OLDEST, TARGET, Toolchain, find};
pub use tools::{Missing, Toolbox};

use project::Project;

/// A core module that carries its world (as `wit-bindgen` leaves it) to a component.
pub fn componentize(module: &[u8]) -> Result<Vec<u8>> {
    ComponentEncoder::default().validate(true).module(module)?.encode()
}

/// How much a compiler is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// What the project asks for.
    Full,
    /// Rust: nothing across crates, whatever the project's profile says. Done sooner, larger, and takes more fuel.
    Quick,
}

/// What [`build`] made.
pub struct Built {
    /// The component's bytes.
    pub component: Vec<u8>,
    /// For people: by what.
    pub by: String,
}

/// Builds the plugin in `dir` with what is in `toolbox`; files in between lie in its folder `target`. Messages of compilers
/// go to stderr.
///
/// # Errors
/// A [`Missing`] if a tool is not there; else what is wrong with the project, or that its build failed.
pub fn build(dir: &Path, toolbox: &Toolbox, effort: Effort) -> Result<Built> {
    match Project::read(dir)? {
        Project::Crate => {
            let toolchain = find().ok_or_else(Missing::rust)?;
            Ok(Built { component: rust::build(&toolchain, dir, effort)?, by: toolchain.description })
        }
        Project::Source(source) => match source.language {
            Language::C => c::build(&source, toolbox),
            Language::Js => js::build(&source, toolbox),
            Language::Python => python::build(&source, toolbox),
        },
    }
}
