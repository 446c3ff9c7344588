//! What goes on until something ends it: `ostler vm watch|wait|console|stats`, `ostler events|top`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::super::condition::Condition;
use super::super::units;
use super::vm::NameArg;

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    pub(crate) name: NameArg,
    /// Again every second, until interrupted
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Only this VM
    #[arg(value_name = "VM")]
    pub(crate) name: Option<String>,
    /// Only this tenant's
    #[arg(long, value_name = "TENANT", conflicts_with = "name")]
    pub(crate) tenant: Option<String>,
    /// End once the VM is in this state
    #[arg(long, value_name = "STATE", requires = "name", ignore_case = true, value_parser = STATES)]
    pub(crate) until: Option<String>,
    /// Give up after this long: 90s, 2m
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Go on behind this resume_token, as `-o json` shows it, instead of beginning with all VMs
    #[arg(long, value_name = "TOKEN")]
    pub(crate) resume: Option<String>,
}

/// States that can be waited for, as the API names them.
const STATES: [&str; 9] =
    ["REGISTERED", "STARTING", "RUNNING", "PAUSED", "STOPPING", "STOPPED", "FAILED", "DESTROYING", "DESTROYED"];

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    pub(crate) name: NameArg,
    /// registered, running, paused, stopped, failed, deleted, device=ID:attached or device=ID:detached
    #[arg(long = "for", value_name = "CONDITION")]
    pub(crate) condition: Condition,
    /// Give up after this long: 90s, 2m [default: never]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Only this VM's
    #[arg(value_name = "VM")]
    pub(crate) name: Option<String>,
    /// Only those of this tenant's VMs
    #[arg(long, value_name = "TENANT", conflicts_with = "name")]
    pub(crate) tenant: Option<String>,
    /// Go on behind this resume_token, as `-o json` shows it, instead of from now on
    #[arg(long, value_name = "TOKEN")]
    pub(crate) resume: Option<String>,
    /// End after this long: 90s, 2m
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// With `-o json`: also a line without events, for its resume_token, at the beginning and every 15 s of quiet
    #[arg(long)]
    pub(crate) bookmarks: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConsoleArgs {
    #[command(flatten)]
    pub(crate) name: NameArg,
    /// End once the console has printed this text, what it printed before included
    #[arg(long, value_name = "TEXT")]
    pub(crate) until: Option<String>,
    /// End after this long: 90s, 2m
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// When input is not a terminal and has ended: end once the console is quiet for this long
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "2s")]
    pub(crate) linger: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Only this tenant's VMs
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
    /// What comes first
    #[arg(long, value_enum, default_value_t = TopOrder::Cpu)]
    pub(crate) sort: TopOrder,
    /// Over which time rates are taken: 500ms, 2s; at least 100ms
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, default_value = "2s")]
    pub(crate) interval: Duration,
    /// Print so many tables below each other and end [default: a live view on a terminal, else 1]
    #[arg(long, short = 'n', value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
}

/// By what VMs are ordered; the largest first, names from a to z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TopOrder {
    /// Processor time
    Cpu,
    /// Memory that is touched
    Memory,
    /// Bytes to and from disks
    Disk,
    /// Bytes to and from networks
    Net,
    /// Names
    Name,
}
