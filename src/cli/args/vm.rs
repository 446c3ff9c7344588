//! `ostler vm`: what is done to one VM as a whole. Its spec is in `spec`, its devices are in `device`, its streams in
//! `stream`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::super::units;
use super::device::{AttachArgs, BalloonArgs, DetachArgs, LimitArgs, ResizeDiskArgs};
use super::spec::SpecArgs;
use super::stream::{ConsoleArgs, StatsArgs, WaitArgs, WatchArgs};
use super::{ChangeArgs, EtagArg};

#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Ask policy, and remember a VM; nothing runs yet
    Register(RegisterArgs),
    /// Register and start a VM, attend its console, and destroy it at the end
    Run(RunArgs),
    /// Start a VM and wait until its vCPUs run
    Start(OnVmArgs),
    /// Press the power button and wait until the VM is STOPPED
    Stop(StopArgs),
    /// Power a VM off as `stop` does, and start it again
    Reboot(StopArgs),
    /// Make a VM stand still
    Pause(OnVmArgs),
    /// Let a paused VM go on
    Resume(OnVmArgs),
    /// Press a VM's power button, and leave the rest to its guest
    PowerButton(OnVmArgs),
    /// Give every vCPU of a VM a non-maskable interrupt
    Nmi(OnVmArgs),
    /// Forget a VM
    Destroy(DestroyArgs),
    /// Show one VM
    Get(NameArg),
    /// Show VMs
    List(ListArgs),
    /// Have a guest told that the volume behind a disk has grown, or (operators) grow it first
    ResizeDisk(ResizeDiskArgs),
    /// Limit what a disk or a network interface may move, now and at later starts
    Limit(LimitArgs),
    /// Have a guest give memory back to the host, or take it again, now and at later starts
    Balloon(BalloonArgs),
    /// Show what a VM has done: exits, requests, latencies, the way to its first instruction
    Stats(StatsArgs),
    /// Show what a VM's process has and may do, as the kernel sees it
    InspectJail(NameArg),
    /// Attach a disk or a network interface: to the guest at once if the VM runs, else for its next start
    Attach(AttachArgs),
    /// Detach a disk or a network interface: a running guest is asked for it
    Detach(DetachArgs),
    /// Wait until a VM is as it is to be, or cannot come to be so any more
    Wait(WaitArgs),
    /// Print every change of state, in order
    Watch(WatchArgs),
    /// Attach to a VM's console; Ctrl-] detaches
    Console(ConsoleArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NameArg {
    /// The VM: web, acme/web or tenants/acme/vms/web
    #[arg(value_name = "VM")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct OnVmArgs {
    #[command(flatten)]
    pub(crate) name: NameArg,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
}

#[derive(Debug, Args)]
pub(crate) struct RegisterArgs {
    #[command(flatten)]
    pub(crate) name: NameArg,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The VM: web, acme/web or tenants/acme/vms/web [default: a tenant's own, with a name that is made up]
    #[arg(value_name = "VM")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
    /// When the VM is stopped and destroyed at the end
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Removal::Always)]
    pub(crate) rm: Removal,
    /// Print its name once it runs, and leave it running
    #[arg(long, conflicts_with_all = ["rm", "timeout", "grace"])]
    pub(crate) detach: bool,
    /// How long the guest may take to power off at the end before it is killed
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "10s")]
    pub(crate) grace: Duration,
    /// End after this long: 90s, 2m
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

/// What becomes of the VM of `vm run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Removal {
    /// Whatever ends it
    Always,
    /// It stays as it is, and runs on if it runs
    Never,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) name: NameArg,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
    /// How long the guest may take to power off before it is killed [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, conflicts_with = "force")]
    pub(crate) grace: Option<Duration>,
    /// Kill it at once
    #[arg(long)]
    pub(crate) force: bool,
    /// Do not wait for the end: `ostler operation` shows what comes of it
    #[arg(long, conflicts_with = "validate_only")]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DestroyArgs {
    #[command(flatten)]
    pub(crate) name: NameArg,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
    /// Kill it first if it runs
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only this tenant's
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
    /// Only these, such as: state = RUNNING AND name : "web"
    #[arg(long, value_name = "FILTER")]
    pub(crate) filter: Option<String>,
}
