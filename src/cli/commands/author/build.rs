//! `ostler plugin build`: from source to a component.

use std::path::Path;

use plugin_build::{Built, Effort, Missing, Toolbox};

use crate::cli::args::{EffortArgs, PluginBuildArgs};
use crate::cli::failure::{Exit, Failure};
use crate::cli::show;

pub(super) fn build(arguments: &PluginBuildArgs) -> Result<(), Failure> {
    show(&(made(&arguments.dir, &arguments.out, arguments.effort)? + "\n"))
}

/// Builds the plugin in `dir` into the file `out`; what was made, for people.
pub(super) fn made(dir: &Path, out: &Path, effort: EffortArgs) -> Result<String, Failure> {
    let effort = if effort.quick { Effort::Quick } else { Effort::Full };
    let Built { component, by } = plugin_build::build(dir, &Toolbox::default(), effort).map_err(|error| {
        let failure = Failure::new(Exit::Refused, format!("{error:#}"));
        match error.downcast_ref::<Missing>() {
            Some(missing) => failure.hint(missing.install()),
            None => failure,
        }
    })?;
    let unwritable = |error| Failure::local(format_args!("cannot write {}", out.display()), &error);
    let partial = out.with_added_extension("partial");
    std::fs::write(&partial, &component).and_then(|()| std::fs::rename(&partial, out)).map_err(unwritable)?;
    Ok(format!("{}: {} bytes, by {by}", out.display(), component.len()))
}
