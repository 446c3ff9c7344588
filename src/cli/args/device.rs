//! Devices of a VM that come, go and change: `ostler vm attach|detach|resize-disk|limit|balloon`.

use std::time::Duration;

use clap::Args;

use super::super::units::{self, DiskArg, MemoryMib, NicArg, NvmeArg};
use super::vm::NameArg;
use super::{ChangeArgs, EtagArg};

#[derive(Debug, Args)]
#[group(id = "device", args = ["disk", "nic", "nvme"], required = true, multiple = false)]
pub(crate) struct AttachArgs {
    #[command(flatten)]
    pub(crate) name: NameArg,
    /// A disk: id=data,volume=data.img[,ro]
    #[arg(long, value_name = "DISK", value_parser = units::parse_disk)]
    pub(crate) disk: Option<DiskArg>,
    /// A network interface: id=eth1[,vhost=on], or an SR-IOV virtual function: [id=ID,]sriov[,mac=MAC][,vlan=VLAN]
    #[arg(long, value_name = "NIC", value_parser = units::parse_nic)]
    pub(crate) nic: Option<NicArg>,
    /// An NVMe device: [id=ID,]size=64G, or [id=ID,]controller
    #[arg(long, value_name = "NVME", value_parser = units::parse_nvme)]
    pub(crate) nvme: Option<NvmeArg>,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
}

#[derive(Debug, Args)]
pub(crate) struct DetachArgs {
    #[command(flatten)]
    pub(crate) name: NameArg,
    /// The disk, network interface or NVMe device, by its id
    #[arg(value_name = "ID")]
    pub(crate) device: String,
    /// How long the guest may take to let it go [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, conflicts_with = "force")]
    pub(crate) timeout: Option<Duration>,
    /// Take it without asking; the guest may lose what it has not written
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
    /// Do not wait for the end: `ostler operation` shows what comes of it
    #[arg(long, conflicts_with = "validate_only")]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ResizeDiskArgs {
    #[command(flatten)]
    pub(crate) name: NameArg,
    /// Id of the disk
    #[arg(value_name = "DISK")]
    pub(crate) disk: String,
    /// Grow the volume to this size first: 20G, 512M (powers of 1024) [default: it has its size already]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    pub(crate) size: Option<u64>,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
}

#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    #[command(flatten)]
    pub(crate) name: NameArg,
    /// Id of the disk or network interface
    #[arg(value_name = "DEVICE")]
    pub(crate) device: String,
    #[command(flatten)]
    pub(crate) rates: RateArgs,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
}

#[derive(Debug, Args)]
#[group(id = "kept", args = ["keep", "all"], required = true, multiple = false)]
pub(crate) struct BalloonArgs {
    #[command(flatten)]
    pub(crate) name: NameArg,
    /// Memory that the guest shall keep, with its unit: 128M, 1G (powers of 1024); it gives up the rest
    #[arg(long, value_name = "SIZE", value_parser = units::parse_memory)]
    pub(crate) keep: Option<MemoryMib>,
    /// All memory is the guest's again
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
}

/// What is not named is without limit.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct RateArgs {
    /// Bytes per second (of a network interface: in each direction): 10M, 512K (powers of 1024)
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    pub(crate) bandwidth: Option<u64>,
    /// Bytes that may be saved up and moved at once [default: a tenth of a second's worth]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes, requires = "bandwidth")]
    pub(crate) bandwidth_burst: Option<u64>,
    /// Requests of a disk, or frames of a network interface, per second
    #[arg(long, value_name = "COUNT")]
    pub(crate) iops: Option<u64>,
    /// Operations that may be saved up and done at once [default: a tenth of a second's worth]
    #[arg(long, value_name = "COUNT", requires = "iops")]
    pub(crate) iops_burst: Option<u64>,
    /// No limits
    #[arg(long, conflicts_with_all = ["bandwidth", "iops"])]
    pub(crate) none: bool,
}
