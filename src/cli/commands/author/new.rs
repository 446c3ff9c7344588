//! `ostler plugin new`: a crate that is a plugin already, with everything that it is made with.

use std::path::{Path, PathBuf};

use crate::cli::args::PluginNewArgs;
use crate::cli::failure::{Exit, Failure};
use crate::cli::show;
use crate::model::PluginId;

/// What the crate is made of: path, text. `{name}` and `{version}` are replaced.
const TEMPLATE: [(&str, &str); 6] = [
    ("Cargo.toml", include_str!("template/manifest.toml")),
    ("README.md", include_str!("template/README.md")),
    ("src/lib.rs", include_str!("template/lib.rs")),
    ("fixtures/small.json", include_str!("template/small.json")),
    ("fixtures/large.json", include_str!("template/large.json")),
    ("ostler/sdk/Cargo.toml", include_str!("template/sdk.toml")),
];

/// Files of the repository, as they are there.
macro_rules! copied {
    ($($from:literal => $to:literal),+ $(,)?) => {
        [$(($to, include_str!(concat!("../../../../", $from)))),+]
    };
}

/// What the crate is made with: this version's interfaces and SDK. The SDK finds `wit` two directories above itself.
const COPIED: [(&str, &str); 24] = copied![
    "plugins/sdk/src/admit.rs" => "ostler/sdk/src/admit.rs",
    "plugins/sdk/src/arena.rs" => "ostler/sdk/src/arena.rs",
    "plugins/sdk/src/attach.rs" => "ostler/sdk/src/attach.rs",
    "plugins/sdk/src/detach.rs" => "ostler/sdk/src/detach.rs",
    "plugins/sdk/src/export.rs" => "ostler/sdk/src/export.rs",
    "plugins/sdk/src/host.rs" => "ostler/sdk/src/host.rs",
    "plugins/sdk/src/lib.rs" => "ostler/sdk/src/lib.rs",
    "plugins/sdk/src/log.rs" => "ostler/sdk/src/log.rs",
    "plugins/sdk/src/policy.rs" => "ostler/sdk/src/policy.rs",
    "plugins/sdk/src/reasons.rs" => "ostler/sdk/src/reasons.rs",
    "plugins/sdk/src/select_nvme.rs" => "ostler/sdk/src/select_nvme.rs",
    "plugins/sdk/src/select_vf.rs" => "ostler/sdk/src/select_vf.rs",
    "plugins/sdk/src/settings.rs" => "ostler/sdk/src/settings.rs",
    "plugins/sdk/src/testing.rs" => "ostler/sdk/src/testing.rs",
    "LICENSE" => "ostler/LICENSE",
    "wit/admit.wit" => "wit/admit.wit",
    "wit/attach.wit" => "wit/attach.wit",
    "wit/detach.wit" => "wit/detach.wit",
    "wit/lifecycle.wit" => "wit/lifecycle.wit",
    "wit/log.wit" => "wit/log.wit",
    "wit/select-nvme.wit" => "wit/select-nvme.wit",
    "wit/select-vf.wit" => "wit/select-vf.wit",
    "wit/settings.wit" => "wit/settings.wit",
    "wit/types.wit" => "wit/types.wit",
];

/// Makes the crate in a directory that is not there yet.
pub(super) fn new(arguments: &PluginNewArgs) -> Result<(), Failure> {
    let name: PluginId = arguments
        .name
        .parse()
        .map_err(|error| Failure::new(Exit::Usage, format!("{:?} cannot name a plugin: {error}", arguments.name)))?;
    let dir = arguments.dir.clone().unwrap_or_else(|| PathBuf::from(name.as_str()));
    let unwritable = |path: &Path, error| Failure::local(format_args!("cannot write {}", path.display()), &error);
    std::fs::create_dir(&dir).map_err(|error| unwritable(&dir, error))?;
    let replaced = |text: &str| text.replace("{name}", name.as_str()).replace("{version}", env!("CARGO_PKG_VERSION"));
    let made = TEMPLATE.map(|(path, text)| (path, replaced(text)));
    let copied = COPIED.map(|(path, text)| (path, text.to_owned()));
    for (path, text) in made.into_iter().chain(copied) {
        let path = dir.join(path);
        path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(|error| unwritable(&path, error))?;
        std::fs::write(&path, text).map_err(|error| unwritable(&path, error))?;
    }
    show(&format!("{} is a plugin: see {}\n", dir.display(), dir.join("README.md").display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_sdk_and_of_the_interfaces_is_copied() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for (from, to) in [("plugins/sdk/src", "ostler/sdk/src"), ("wit", "wit")] {
            for entry in std::fs::read_dir(root.join(from)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let path = format!("{to}/{name}");
                assert!(COPIED.iter().any(|(copied, _)| *copied == path), "{path} is not copied");
            }
        }
    }

    #[test]
    fn the_copied_sdk_has_the_dependencies_of_the_repositorys() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let own = std::fs::read_to_string(root.join("plugins/sdk/Cargo.toml")).unwrap();
        let dependencies = |text: &str| text.split_once("[dependencies]").unwrap().1.to_owned();
        assert_eq!(dependencies(include_str!("template/sdk.toml")), dependencies(&own));
    }
}
