//! `ostler apply`: VMs from a file.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// The file (TOML); `-` reads stdin
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Show what would change, and check it, without changing anything
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// Stop and destroy VMs that the file does not name, of each tenant that it names (a tenant: of itself)
    #[arg(long)]
    pub(crate) prune: bool,
}
