//! `ostler plugin new|build|inspect|check|run|test|bench|fuel|fixture|push`: for who writes plugins. All but the last two need
//! no daemon.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::super::units;
use super::plugin::PluginBindingArgs;
use crate::model::Grant;

#[derive(Debug, Subcommand)]
pub(crate) enum AuthorCommand {
    /// Make a directory that is a plugin already, with everything that it needs; needs no daemon
    New(PluginNewArgs),
    /// Build a plugin into a component; needs no daemon, but what its language is built with
    Build(PluginBuildArgs),
    /// Show a component's digest, hooks and imports, without running it; needs no daemon
    Inspect(PluginFileArg),
    /// Load a plugin as a daemon would, and tell what is wrong with it; needs no daemon
    Check(PluginCheckArgs),
    /// Ask a plugin the question of a fixture, and show its answer; needs no daemon
    Run(PluginRunArgs),
    /// Compare a plugin's answers with those that fixtures expect; needs no daemon
    Test(PluginTestArgs),
    /// Ask a plugin the question of a fixture again and again, and show what an answer costs; needs no daemon
    Bench(PluginBenchArgs),
    /// Show what the answers to fixtures take of a call's fuel, and compare two builds; needs no daemon
    Fuel(PluginFuelArgs),
    /// Make a fixture of a recorded decision
    Fixture(PluginFixtureArgs),
    /// Build a plugin, compare its answers with its fixtures, and load it: from an edit to the next decision
    Push(PluginPushArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PluginNewArgs {
    /// The plugin's name
    pub(crate) name: String,
    /// What it is written in
    #[arg(long, value_name = "LANGUAGE", value_enum, default_value_t)]
    pub(crate) lang: PluginLanguage,
    /// Where it is made; must not exist [default: the name]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

/// Languages that there is an example in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum PluginLanguage {
    #[default]
    Rust,
    C,
    Js,
    Python,
}

#[derive(Debug, Args)]
pub(crate) struct PluginBuildArgs {
    /// The plugin's directory: a crate, or what has a plugin.toml
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Where the component is written
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) effort: EffortArgs,
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct EffortArgs {
    /// Do not optimise across crates (Rust): done sooner, but larger, and decisions take more fuel
    #[arg(long)]
    pub(crate) quick: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PluginFileArg {
    /// The component: a .wasm file, or oci:DIR[:TAG] (OCI image layout)
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct PluginCheckArgs {
    /// The component: a .wasm file, or oci:DIR[:TAG] (OCI image layout)
    pub(crate) file: PathBuf,
    /// A setting that the plugin understands: max-vcpus=4 (may be repeated)
    #[arg(long = "setting", value_name = "KEY=VALUE", value_parser = units::parse_setting)]
    pub(crate) settings: Vec<(String, String)>,
    /// What it may have beyond settings and log: kv, inventory (may be repeated)
    #[arg(long = "grant", value_name = "IMPORT")]
    pub(crate) grants: Vec<Grant>,
}

#[derive(Debug, Args)]
pub(crate) struct PluginRunArgs {
    /// The component: a .wasm file, or oci:DIR[:TAG] (OCI image layout)
    pub(crate) file: PathBuf,
    /// The fixture (.json): hook, question, settings
    #[arg(long, value_name = "FILE")]
    pub(crate) fixture: PathBuf,
    /// A setting, in the place of the fixture's own (may be repeated)
    #[arg(long = "setting", value_name = "KEY=VALUE", value_parser = units::parse_setting)]
    pub(crate) settings: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(crate) struct PluginTestArgs {
    /// The component: a .wasm file, or oci:DIR[:TAG] (OCI image layout)
    pub(crate) file: PathBuf,
    /// Directory of the fixtures (*.json)
    pub(crate) dir: PathBuf,
    /// Write what the plugin says into the fixtures, as what they expect
    #[arg(long)]
    pub(crate) update: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PluginBenchArgs {
    /// The component: a .wasm file, or oci:DIR[:TAG] (OCI image layout)
    pub(crate) file: PathBuf,
    /// The fixture (.json): hook, question, settings
    #[arg(long, value_name = "FILE")]
    pub(crate) fixture: PathBuf,
    /// A setting, in the place of the fixture's own (may be repeated)
    #[arg(long = "setting", value_name = "KEY=VALUE", value_parser = units::parse_setting)]
    pub(crate) settings: Vec<(String, String)>,
    /// So many calls, each on a fresh instance
    #[arg(long, default_value_t = 1000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) calls: u32,
}

#[derive(Debug, Args)]
pub(crate) struct PluginFuelArgs {
    /// The component: a .wasm file, or oci:DIR[:TAG] (OCI image layout)
    pub(crate) file: PathBuf,
    /// Directory of the fixtures (*.json)
    pub(crate) dir: PathBuf,
    /// Another build of it to compare with
    #[arg(long, value_name = "FILE")]
    pub(crate) than: Option<PathBuf>,
    /// Fail if an answer takes more than this
    #[arg(long, value_name = "FUEL")]
    pub(crate) most: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct PluginFixtureArgs {
    /// The decision: 42, acme/42 or tenants/acme/decisions/42
    #[arg(value_name = "DECISION")]
    pub(crate) decision: String,
    /// The plugin whose answer is expected; of two of one name, the operator's [default: the only one that was asked]
    #[arg(long, value_name = "PLUGIN")]
    pub(crate) name: Option<String>,
    /// In this file, which `decision export` wrote, instead of the daemon's records; the decision is then acme/42
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct PluginPushArgs {
    /// The plugin's directory: a crate, or what has a plugin.toml; fixtures are in its directory fixtures
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Sign it with this private Ed25519 key, in PEM
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) effort: EffortArgs,
    #[command(flatten)]
    pub(crate) binding: PluginBindingArgs,
}
