//! `ostler plugin build`: from a crate to a component.

use crate::cli::args::PluginBuildArgs;
use crate::cli::failure::{Exit, Failure};
use crate::cli::show;

pub(super) fn build(arguments: &PluginBuildArgs) -> Result<(), Failure> {
    let Some(toolchain) = plugin_build::find() else {
        let (target, packages) = (plugin_build::TARGET, plugin_build::DEBIAN_PACKAGES.join(" "));
        return Err(Failure::new(Exit::Refused, format!("no Rust compiler with {target} is found"))
            .hint(format!("run rustup target add {target}, or on Debian apt-get install {packages}")));
    };
    let component = plugin_build::build(&toolchain, &arguments.dir);
    let component = component.map_err(|error| Failure::new(Exit::Refused, format!("{error:#}")))?;
    let unwritable = |error| Failure::local(format_args!("cannot write {}", arguments.out.display()), &error);
    let partial = arguments.out.with_added_extension("partial");
    std::fs::write(&partial, &component)
        .and_then(|()| std::fs::rename(&partial, &arguments.out))
        .map_err(unwritable)?;
    show(&format!("{}: {} bytes, by {}\n", arguments.out.display(), component.len(), toolchain.description))
}
