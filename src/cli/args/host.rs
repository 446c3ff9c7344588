//! `ostler host`: the node's devices.

use clap::{Args, Subcommand};

use super::{ChangeArgs, EtagArg};

#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// Show SR-IOV network cards and NVMe controllers, their parts and who has them
    Devices,
    /// Clean a device that no VM has and free it: the way out of a quarantine
    Release(HostReleaseArgs),
    /// NVMe controllers
    #[command(subcommand)]
    Nvme(NvmeCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum NvmeCommand {
    /// Make secondary controllers of a controller, for VMs. Resets it: do it before VMs need it
    Provision(NvmeProvisionArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NvmeProvisionArgs {
    /// PCI address of the controller, such as 0000:02:00.0
    #[arg(value_name = "ADDRESS")]
    pub(crate) address: String,
    /// Number of virtual functions, each with a secondary controller; 0 takes them all away
    #[arg(long, value_name = "COUNT")]
    pub(crate) vfs: u32,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct HostReleaseArgs {
    /// PCI address of the virtual function, such as 0000:01:10.0, or of an NVMe controller
    #[arg(value_name = "ADDRESS")]
    pub(crate) address: String,
    /// Of that NVMe controller: the namespace of this id, which is erased
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) namespace: Option<u32>,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
    /// Do not wait for the end: `ostler operation` shows what comes of it
    #[arg(long, conflicts_with = "validate_only")]
    pub(crate) no_wait: bool,
}
