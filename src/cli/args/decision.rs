//! `ostler decision`: what policy decided, on record.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::super::units;

#[derive(Debug, Subcommand)]
pub(crate) enum DecisionCommand {
    /// Show decisions, newest first
    List(DecisionListArgs),
    /// Show one decision: who was asked what, and what was done
    Get(DecisionArg),
    /// Show a decision as a table: which plugin said what of which candidate
    Explain(DecisionArg),
    /// Walk the chains of records and name the first that is not as it was written
    Verify(DecisionVerifyArgs),
    /// Print whole chains as lines of JSON that verify without the daemon
    Export(DecisionExportArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DecisionArg {
    /// The decision: 42, acme/42 or tenants/acme/decisions/42
    #[arg(value_name = "DECISION")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct DecisionListArgs {
    /// Only this tenant's
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
    /// Only of this hook: admit, attach, detach, select-vf, select-nvme, place, observe
    #[arg(long, value_name = "HOOK")]
    pub(crate) hook: Option<String>,
    /// Only about this: vms/web, vms/web/nics/eth0
    #[arg(long, value_name = "PATH")]
    pub(crate) subject: Option<String>,
    /// Only denials
    #[arg(long, conflicts_with = "allowed")]
    pub(crate) denied: bool,
    /// Only allowances
    #[arg(long)]
    pub(crate) allowed: bool,
    /// Only what a shadow would have had come out otherwise
    #[arg(long)]
    pub(crate) shadow_differs: bool,
    /// Only what is not older than this: 90s, 2h
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub(crate) since: Option<Duration>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) limit: u32,
}

#[derive(Debug, Args)]
pub(crate) struct DecisionVerifyArgs {
    /// Only this tenant's
    #[arg(long, value_name = "TENANT", conflicts_with = "file")]
    pub(crate) tenant: Option<String>,
    /// An export, instead of the daemon's records; `-` reads stdin
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DecisionExportArgs {
    /// Only this tenant's
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
}
