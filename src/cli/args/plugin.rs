//! `ostler plugin`: policy plugins.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::super::units;
use super::{AuthorCommand, ChangeArgs, EtagArg};
use crate::model::Grant;

#[derive(Debug, Subcommand)]
pub(crate) enum PluginCommand {
    /// Load a plugin, or replace one of the same name
    Load(PluginLoadArgs),
    /// Show the plugins that decide, in the order asked
    List(PluginListArgs),
    /// Bind an earlier version again: the last one, or that of --to
    Rollback(PluginRollbackArgs),
    /// Names of a plugin's versions, by which other commands know them
    #[command(subcommand)]
    Alias(PluginAliasCommand),
    /// Have a shadow's answers count, or a canary decide about all VMs
    Promote(PluginPromoteArgs),
    /// Make a plugin a shadow, which is asked and decides nothing; or drop its canary
    Demote(PluginDemoteArgs),
    /// Take a plugin out of its chain
    Unload(PluginUnloadArgs),
    /// What a plugin remembers about a tenant
    #[command(subcommand)]
    Kv(PluginKvCommand),
    /// Sign a component; no daemon is asked
    Sign(PluginSignArgs),
    /// Make a key to sign with; no daemon is asked
    Keygen(PluginKeygenArgs),
    /// Ask a plugin again what was decided before, and show what it would have said otherwise
    Replay(PluginReplayArgs),
    #[command(flatten)]
    Author(AuthorCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum PluginAliasCommand {
    /// Show them
    List(PluginArg),
    /// Have an alias name a version; if the plugin follows the alias, that version decides from the next decision on
    Set(PluginAliasSetArgs),
    /// Take an alias away, and its version with it unless that is kept for another reason
    Remove(PluginAliasRemoveArgs),
    /// Have a plugin be what an alias names, from now on
    Follow(PluginAliasFollowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PluginAliasSetArgs {
    #[command(flatten)]
    pub(crate) plugin: PluginArg,
    /// The alias: a name such as stable, next, 2026-11
    #[arg(value_name = "ALIAS")]
    pub(crate) alias: String,
    /// Digest of a version, as `plugin list -o json` shows it, or another alias [default: the version that is bound]
    #[arg(value_name = "VERSION", default_value = "", hide_default_value = true)]
    pub(crate) version: String,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
}

#[derive(Debug, Args)]
pub(crate) struct PluginAliasRemoveArgs {
    #[command(flatten)]
    pub(crate) plugin: PluginArg,
    /// The alias
    #[arg(value_name = "ALIAS")]
    pub(crate) alias: String,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
}

#[derive(Debug, Args)]
pub(crate) struct PluginAliasFollowArgs {
    #[command(flatten)]
    pub(crate) plugin: PluginArg,
    /// The alias
    #[arg(value_name = "ALIAS", required_unless_present = "none")]
    pub(crate) alias: Option<String>,
    /// None any more: what is bound stays, whatever becomes of its alias
    #[arg(long, conflicts_with = "alias")]
    pub(crate) none: bool,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PluginKvCommand {
    /// Show it
    List(PluginKvArgs),
    /// Have the plugin forget all of it
    Clear(PluginKvClearArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PluginKvArgs {
    #[command(flatten)]
    pub(crate) plugin: PluginArg,
    /// About this tenant [default: the chain's own]
    #[arg(long, value_name = "TENANT", default_value = "")]
    pub(crate) about: String,
}

#[derive(Debug, Args)]
pub(crate) struct PluginKvClearArgs {
    #[command(flatten)]
    pub(crate) kv: PluginKvArgs,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
}

/// A plugin that is loaded.
#[derive(Debug, Args)]
pub(crate) struct PluginArg {
    /// Its name
    #[arg(value_name = "PLUGIN")]
    pub(crate) name: String,
    /// Of the operator's chain
    #[arg(long, conflicts_with = "tenant")]
    pub(crate) operator: bool,
    /// Of this tenant's chain [default: the caller's own chain]
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PluginRollbackArgs {
    #[command(flatten)]
    pub(crate) plugin: PluginArg,
    /// Digest of the version, as `plugin list -o json` shows it, or its alias
    #[arg(long, value_name = "VERSION", default_value = "")]
    pub(crate) to: String,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
}

#[derive(Debug, Args)]
pub(crate) struct PluginPromoteArgs {
    #[command(flatten)]
    pub(crate) plugin: PluginArg,
    /// Its canary, in the place of the version that is bound
    #[arg(long)]
    pub(crate) canary: bool,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
}

#[derive(Debug, Args)]
pub(crate) struct PluginDemoteArgs {
    #[command(flatten)]
    pub(crate) plugin: PluginArg,
    /// Its canary alone: the version that is bound decides about all VMs again
    #[arg(long, conflicts_with = "force")]
    pub(crate) canary: bool,
    /// Even if it is the operator's last plugin at a hook other than place: everything is denied there then
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
}

#[derive(Debug, Args)]
pub(crate) struct PluginUnloadArgs {
    #[command(flatten)]
    pub(crate) plugin: PluginArg,
    /// Even if it is the operator's last plugin at a hook other than place: everything is denied there then
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
}

#[derive(Debug, Args)]
pub(crate) struct PluginReplayArgs {
    /// The component: a .wasm file, or oci:DIR[:TAG] (OCI image layout); none: the one that is loaded
    pub(crate) file: Option<PathBuf>,
    /// Instead of a file, a version of what is loaded, with its own settings: its digest, or its alias
    #[arg(long, value_name = "VERSION", conflicts_with = "file", default_value = "", hide_default_value = true)]
    pub(crate) to: String,
    /// In the place of this plugin [default: the file's name]
    #[arg(long, required_unless_present = "file")]
    pub(crate) name: Option<String>,
    /// Of the operator's chain: all tenants' decisions
    #[arg(long, conflicts_with = "tenant")]
    pub(crate) operator: bool,
    /// Of this tenant's chain [default: the caller's own chain]
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
    /// Only decisions of this hook: admit, attach, detach, select-vf, select-nvme, place, observe
    #[arg(long, value_name = "HOOK")]
    pub(crate) hook: Option<String>,
    /// Only decisions that are not older than this: 90s, 2h
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub(crate) since: Option<Duration>,
    /// A setting for all decisions (may be repeated) [default: those that each decision was made with]
    #[arg(long = "setting", value_name = "KEY=VALUE", value_parser = units::parse_setting)]
    pub(crate) settings: Vec<(String, String)>,
    /// At most so many decisions, oldest first; 0: a million
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub(crate) limit: u64,
}

#[derive(Debug, Args)]
pub(crate) struct PluginLoadArgs {
    /// The component: a .wasm file, or oci:DIR[:TAG] (OCI image layout)
    pub(crate) file: PathBuf,
    /// A file of signatures (may be repeated) [default: FILE.sig, if there is one]
    #[arg(long = "signature", value_name = "SIG")]
    pub(crate) signatures: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) binding: PluginBindingArgs,
}

/// How a component is bound.
#[derive(Debug, Args)]
pub(crate) struct PluginBindingArgs {
    /// Into the operator's chain: asked for every tenant
    #[arg(long, conflicts_with = "tenant")]
    pub(crate) operator: bool,
    /// Into this tenant's chain [default: the caller's own chain]
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
    /// Its name [default: that of the file, or of the directory]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// A setting that the plugin understands: max-vcpus=4 (may be repeated)
    #[arg(long = "setting", value_name = "KEY=VALUE", value_parser = units::parse_setting)]
    pub(crate) settings: Vec<(String, String)>,
    /// What it may have beyond settings and log: kv, to remember; inventory, to see the tenant's VMs (may be repeated)
    #[arg(long = "grant", value_name = "IMPORT")]
    pub(crate) grants: Vec<Grant>,
    /// As a shadow: it is asked what the chain is asked, and decides nothing
    #[arg(long)]
    pub(crate) shadow: bool,
    /// As a canary of the plugin of that name: it decides about so many of the VMs (10%), until it is promoted or taken back
    #[arg(long, value_name = "SHARE", value_parser = units::parse_percent, conflicts_with = "shadow")]
    pub(crate) canary: Option<u32>,
    /// Where several plugins rank candidates, its scores count so many times, 1 to 100 [default: as before, 1 at first]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100), conflicts_with_all = ["canary", "alias"])]
    pub(crate) weight: Option<u32>,
    /// Keep it under this alias, as a version of the plugin of that name, and bind it only if the plugin follows the alias
    #[arg(long, value_name = "ALIAS", default_value = "", hide_default_value = true, conflicts_with_all = ["shadow", "canary"])]
    pub(crate) alias: String,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
}

#[derive(Debug, Args)]
pub(crate) struct PluginSignArgs {
    /// The component: a .wasm file, or oci:DIR[:TAG] (OCI image layout)
    pub(crate) file: PathBuf,
    /// The private Ed25519 key, in PEM; readable by its owner only
    #[arg(long, value_name = "KEY")]
    pub(crate) key: PathBuf,
    /// Where the signature goes, beside those of others of the same content [default: FILE.sig]
    #[arg(long, value_name = "SIG")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct PluginKeygenArgs {
    /// Where the private key goes, in PEM; what exists is not replaced
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct PluginListArgs {
    /// Only the operator's
    #[arg(long, conflicts_with = "tenant")]
    pub(crate) operator: bool,
    /// Only this tenant's
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
}
