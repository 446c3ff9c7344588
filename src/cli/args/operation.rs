//! `ostler operation`: what is under way, and was lately.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::super::units;

#[derive(Debug, Subcommand)]
pub(crate) enum OperationCommand {
    /// Show what is under way, and what has ended lately
    List(OperationListArgs),
    /// Show one operation
    Get(OperationArg),
    /// Wait until an operation has ended
    Wait(OperationWaitArgs),
    /// Call an operation off, if it is not too late
    ///
    /// A VM that is being stopped or rebooted goes on if its grace is not over; its power button stays pressed. A device
    /// that the guest is asked for stays. A namespace that is being erased goes to quarantine. Nothing else can be called
    /// off.
    Cancel(OperationArg),
}

#[derive(Debug, Args)]
pub(crate) struct OperationArg {
    /// The operation: its id, acme/ID, or its name as `list` shows it
    #[arg(value_name = "OPERATION")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct OperationListArgs {
    /// Only this tenant's
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
    /// Only these, such as: state = RUNNING AND method = StopVirtualMachine
    #[arg(long, value_name = "FILTER")]
    pub(crate) filter: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct OperationWaitArgs {
    #[command(flatten)]
    pub(crate) operation: OperationArg,
    /// Give up after this long: 90s, 2m [default: never]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub(crate) timeout: Option<Duration>,
}
