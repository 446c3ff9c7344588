//! `ostler plugin new`: a directory that is a plugin already, with everything that it is made with.
//!
//! What it is made of are the examples in `plugins/examples`, which say the same in each language.

use std::path::{Path, PathBuf};

use crate::cli::args::{PluginLanguage, PluginNewArgs};
use crate::cli::failure::{Exit, Failure};
use crate::cli::show;
use crate::model::PluginId;

/// The examples' name, which becomes the plugin's.
const EXAMPLE: &str = "size-limit";
/// For all languages. `{name}`, `{source}` and `{first}` are replaced.
const README: &str = include_str!("template/README.md");

/// Files of the repository, as they are there.
macro_rules! copied {
    ($($from:literal => $to:literal),+ $(,)?) => {
        [$(($to, include_str!(concat!("../../../../", $from)))),+]
    };
}

/// What the crate is made with: this version's interfaces and SDK. The SDK finds `wit` two directories above itself.
const COPIED: [(&str, &str); 36] = copied![
    "plugins/sdk/src/admit.rs" => "ostler/sdk/src/admit.rs",
    "plugins/sdk/src/arena.rs" => "ostler/sdk/src/arena.rs",
    "plugins/sdk/src/attach.rs" => "ostler/sdk/src/attach.rs",
    "plugins/sdk/src/detach.rs" => "ostler/sdk/src/detach.rs",
    "plugins/sdk/src/export.rs" => "ostler/sdk/src/export.rs",
    "plugins/sdk/src/host.rs" => "ostler/sdk/src/host.rs",
    "plugins/sdk/src/inventory.rs" => "ostler/sdk/src/inventory.rs",
    "plugins/sdk/src/kv.rs" => "ostler/sdk/src/kv.rs",
    "plugins/sdk/src/lib.rs" => "ostler/sdk/src/lib.rs",
    "plugins/sdk/src/log.rs" => "ostler/sdk/src/log.rs",
    "plugins/sdk/src/memory.rs" => "ostler/sdk/src/memory.rs",
    "plugins/sdk/src/observe.rs" => "ostler/sdk/src/observe.rs",
    "plugins/sdk/src/place.rs" => "ostler/sdk/src/place.rs",
    "plugins/sdk/src/policy.rs" => "ostler/sdk/src/policy.rs",
    "plugins/sdk/src/preferences.rs" => "ostler/sdk/src/preferences.rs",
    "plugins/sdk/src/reasons.rs" => "ostler/sdk/src/reasons.rs",
    "plugins/sdk/src/select_nvme.rs" => "ostler/sdk/src/select_nvme.rs",
    "plugins/sdk/src/select_vf.rs" => "ostler/sdk/src/select_vf.rs",
    "plugins/sdk/src/settings.rs" => "ostler/sdk/src/settings.rs",
    "plugins/sdk/src/subject.rs" => "ostler/sdk/src/subject.rs",
    "plugins/sdk/src/testing.rs" => "ostler/sdk/src/testing.rs",
    "LICENSE" => "ostler/LICENSE",
    "wit/admit.wit" => "wit/admit.wit",
    "wit/attach.wit" => "wit/attach.wit",
    "wit/detach.wit" => "wit/detach.wit",
    "wit/inventory.wit" => "wit/inventory.wit",
    "wit/kv.wit" => "wit/kv.wit",
    "wit/lifecycle.wit" => "wit/lifecycle.wit",
    "wit/log.wit" => "wit/log.wit",
    "wit/observe.wit" => "wit/observe.wit",
    "wit/place.wit" => "wit/place.wit",
    "wit/select-nvme.wit" => "wit/select-nvme.wit",
    "wit/select-vf.wit" => "wit/select-vf.wit",
    "wit/settings.wit" => "wit/settings.wit",
    "wit/subject.wit" => "wit/subject.wit",
    "wit/types.wit" => "wit/types.wit",
];

/// Questions, and what the plugin answers in each language.
const FIXTURES: [(&str, &str); 12] = copied![
    "plugins/examples/fixtures/capped.json" => "fixtures/capped.json",
    "plugins/examples/fixtures/exact.json" => "fixtures/exact.json",
    "plugins/examples/fixtures/large.json" => "fixtures/large.json",
    "plugins/examples/fixtures/memory.json" => "fixtures/memory.json",
    "plugins/examples/fixtures/name.json" => "fixtures/name.json",
    "plugins/examples/fixtures/other.json" => "fixtures/other.json",
    "plugins/examples/fixtures/own.json" => "fixtures/own.json",
    "plugins/examples/fixtures/plain.json" => "fixtures/plain.json",
    "plugins/examples/fixtures/prefix.json" => "fixtures/prefix.json",
    "plugins/examples/fixtures/short.json" => "fixtures/short.json",
    "plugins/examples/fixtures/small.json" => "fixtures/small.json",
    "plugins/examples/fixtures/wide.json" => "fixtures/wide.json",
];

const RUST: [(&str, &str); 1] = copied!["plugins/examples/rust/src/lib.rs" => "src/lib.rs"];
const C: [(&str, &str); 2] = copied![
    "plugins/examples/c/plugin.c" => "plugin.c",
    "plugins/examples/c/plugin.toml" => "plugin.toml",
];
const JS: [(&str, &str); 3] = copied![
    "plugins/examples/js/package.json" => "package.json",
    "plugins/examples/js/plugin.js" => "plugin.js",
    "plugins/examples/js/plugin.toml" => "plugin.toml",
];
const PYTHON: [(&str, &str); 3] = copied![
    "plugins/examples/python/plugin.py" => "plugin.py",
    "plugins/examples/python/plugin.toml" => "plugin.toml",
    "plugins/examples/python/requirements.txt" => "requirements.txt",
];

/// The plugin's own files: path, text.
fn own(language: PluginLanguage) -> Vec<(&'static str, String)> {
    let files: &[(&str, &str)] = match language {
        PluginLanguage::Rust => &RUST,
        PluginLanguage::C => &C,
        PluginLanguage::Js => &JS,
        PluginLanguage::Python => &PYTHON,
    };
    let mut own: Vec<_> = files.iter().map(|(path, text)| (*path, (*text).to_owned())).collect();
    if language == PluginLanguage::Rust {
        let package = include_str!("../../../../plugins/examples/rust/Cargo.toml").replace("../../sdk", "ostler/sdk");
        own.push(("Cargo.toml", package + include_str!("template/workspace.toml")));
        let sdk = include_str!("template/sdk.toml").replace("{version}", env!("CARGO_PKG_VERSION"));
        own.push(("ostler/sdk/Cargo.toml", sdk));
    }
    own
}

fn readme(name: &str, language: PluginLanguage) -> String {
    let (source, first) = match language {
        PluginLanguage::Rust => ("src/lib.rs", "cargo test                      # what it decides, natively"),
        PluginLanguage::C => ("plugin.c", "apt-get install clang lld       # once; or as your system has them"),
        PluginLanguage::Js => ("plugin.js", "npm install                     # once: what builds it"),
        PluginLanguage::Python => {
            ("plugin.py", "pip install -r requirements.txt # once, in a virtual environment: what builds it")
        }
    };
    README.replace("{name}", name).replace("{source}", source).replace("{first}", first)
}

/// Makes the directory, which is not there yet.
pub(super) fn new(arguments: &PluginNewArgs) -> Result<(), Failure> {
    let name: PluginId = arguments
        .name
        .parse()
        .map_err(|error| Failure::new(Exit::Usage, format!("{:?} cannot name a plugin: {error}", arguments.name)))?;
    let dir = arguments.dir.clone().unwrap_or_else(|| PathBuf::from(name.as_str()));
    let unwritable = |path: &Path, error| Failure::local(format_args!("cannot write {}", path.display()), &error);
    std::fs::create_dir(&dir).map_err(|error| unwritable(&dir, error))?;
    let mut files = own(arguments.lang);
    files.iter_mut().for_each(|(_, text)| *text = text.replace(EXAMPLE, name.as_str()));
    files.push(("README.md", readme(name.as_str(), arguments.lang)));
    // The SDK is Rust's.
    let copied = COPIED.iter().filter(|(path, _)| arguments.lang == PluginLanguage::Rust || path.starts_with("wit/"));
    files.extend(copied.chain(&FIXTURES).map(|(path, text)| (*path, (*text).to_owned())));
    for (path, text) in files {
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
    fn every_file_of_the_sdk_of_the_interfaces_and_of_the_fixtures_is_copied() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let all = [("plugins/sdk/src", "ostler/sdk/src"), ("wit", "wit"), ("plugins/examples/fixtures", "fixtures")];
        for (from, to) in all {
            for entry in std::fs::read_dir(root.join(from)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let path = format!("{to}/{name}");
                assert!(COPIED.iter().chain(&FIXTURES).any(|(copied, _)| *copied == path), "{path} is not copied");
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
