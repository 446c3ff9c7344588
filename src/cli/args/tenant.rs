//! `ostler tenant`: what tenants may have, and have.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// Show what a tenant has, and may have
    Get(TenantGetArgs),
    /// Show every tenant that you may see
    List,
}

#[derive(Debug, Args)]
pub(crate) struct TenantGetArgs {
    /// The tenant [default: your own]
    #[arg(value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
}
