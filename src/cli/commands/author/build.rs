//! `ostler plugin build`: from source to a component.

use plugin_build::{Built, Missing, Toolbox};

use crate::cli::args::PluginBuildArgs;
use crate::cli::failure::{Exit, Failure};
use crate::cli::show;

pub(super) fn build(arguments: &PluginBuildArgs) -> Result<(), Failure> {
    let Built { component, by } = plugin_build::build(&arguments.dir, &Toolbox::default()).map_err(|error| {
        let failure = Failure::new(Exit::Refused, format!("{error:#}"));
        match error.downcast_ref::<Missing>() {
            Some(missing) => failure.hint(missing.install()),
            None => failure,
        }
    })?;
    let unwritable = |error| Failure::local(format_args!("cannot write {}", arguments.out.display()), &error);
    let partial = arguments.out.with_added_extension("partial");
    std::fs::write(&partial, &component)
        .and_then(|()| std::fs::rename(&partial, &arguments.out))
        .map_err(unwritable)?;
    show(&format!("{}: {} bytes, by {by}\n", arguments.out.display(), component.len()))
}
