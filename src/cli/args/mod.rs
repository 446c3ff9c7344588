//! What may stand on the command line, as clap types. Nothing is done here.
//!
//! Key types: [`Arguments`], [`Command`], [`GlobalArgs`]; a file per noun holds the commands on it. Sizes, durations and
//! devices are parsed in `units`.

mod apply;
mod author;
mod certs;
mod decision;
mod device;
mod doctor;
mod host;
mod operation;
mod plugin;
mod serve;
mod spec;
mod stream;
mod tenant;
mod vm;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::failure::Exit;

pub(crate) use apply::ApplyArgs;
pub(crate) use author::{
    AuthorCommand, EffortArgs, PluginBenchArgs, PluginBuildArgs, PluginCheckArgs, PluginFixtureArgs, PluginFuelArgs,
    PluginLanguage, PluginNewArgs, PluginPushArgs, PluginRunArgs, PluginTestArgs,
};
pub(crate) use certs::{CertsCommand, CertsInitArgs, CertsRevokeArgs};
pub(crate) use decision::{DecisionCommand, DecisionExportArgs, DecisionListArgs, DecisionVerifyArgs};
pub(crate) use device::{AttachArgs, BalloonArgs, DetachArgs, LimitArgs, RateArgs, ResizeDiskArgs};
pub(crate) use doctor::DoctorArgs;
pub(crate) use host::{HostCommand, HostReleaseArgs, NvmeCommand, NvmeProvisionArgs};
pub(crate) use operation::{OperationArg, OperationCommand, OperationListArgs, OperationWaitArgs};
pub(crate) use plugin::{
    PluginAliasCommand, PluginAliasFollowArgs, PluginAliasRemoveArgs, PluginAliasSetArgs, PluginArg, PluginBindingArgs,
    PluginCommand, PluginDemoteArgs, PluginKeygenArgs, PluginKvArgs, PluginKvClearArgs, PluginKvCommand,
    PluginListArgs, PluginLoadArgs, PluginPromoteArgs, PluginReplayArgs, PluginRollbackArgs, PluginSignArgs,
    PluginUnloadArgs,
};
pub use serve::ServeArgs;
pub(crate) use spec::{ConsoleArg, Hugepages, SpecArgs};
pub(crate) use stream::{ConsoleArgs, EventsArgs, StatsArgs, TopArgs, TopOrder, WaitArgs, WatchArgs};
pub(crate) use tenant::{TenantCommand, TenantGetArgs};
pub(crate) use vm::{DestroyArgs, ListArgs, OnVmArgs, RegisterArgs, Removal, RunArgs, StopArgs, VmCommand};

/// Where `certs init` writes and every other command looks.
pub(crate) const CERTS_DIR: &str = "/var/lib/ostler/certs";

/// The trust domain of development certificates, and of a daemon that is not told another.
pub(crate) const TRUST_DOMAIN: &str = "ostler.local";

/// What stands below every option: all exit codes, and how VMs are named.
pub(super) fn after_help() -> String {
    let codes: String = Exit::ALL.map(|(code, meaning)| format!("  {code:<5}  {meaning}\n")).concat();
    format!("Exit codes:\n{codes}\nVMs are named `web` (your own tenant's), `acme/web` or `tenants/acme/vms/web`.\n")
}

/// A WASM-extensible hypervisor host.
#[derive(Debug, Parser)]
#[command(name = "ostler", version, after_help = after_help(), infer_subcommands = false, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every client command.
#[derive(Debug, Clone, Args)]
pub(crate) struct GlobalArgs {
    /// The daemon's address
    #[arg(long, global = true, env = "OSTLER_ENDPOINT", default_value = "https://127.0.0.1:7800", value_name = "URL")]
    pub(crate) endpoint: String,
    /// Client certificate and key without their endings: PREFIX.pem and PREFIX.key
    #[arg(long, global = true, env = "OSTLER_IDENTITY", default_value = "/var/lib/ostler/certs/operator-admin")]
    #[arg(value_name = "PREFIX")]
    pub(crate) identity: PathBuf,
    /// CA that signed the daemon's certificate [default: ca.pem beside the identity]
    #[arg(long, global = true, env = "OSTLER_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// How results are printed
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

/// For whom results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Columns, for people
    Table,
    /// JSON, for programs; keys stay stable
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the node's daemon
    Serve(ServeArgs),
    /// Certificates for development
    #[command(subcommand)]
    Certs(CertsCommand),
    /// Virtual machines
    #[command(subcommand)]
    Vm(VmCommand),
    /// Make VMs as a file says they are to be; what changes is shown first
    Apply(ApplyArgs),
    /// Follow what happens to VMs
    Events(EventsArgs),
    /// Show what the host, tenants and VMs take, live on a terminal
    Top(TopArgs),
    /// Policy plugins
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// What policy decided, on record
    #[command(subcommand)]
    Decision(DecisionCommand),
    /// Tenants: what they may have, and have
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Work that is under way, or was lately
    #[command(subcommand)]
    Operation(OperationCommand),
    /// The node's devices, for its operators
    #[command(subcommand)]
    Host(HostCommand),
    /// Compare what the daemon remembers with what the node shows, and repair it on request
    ///
    /// Looks twice within a second, so that nothing that is under way counts. Ends with 10 while something is wrong. What
    /// belongs to a VM is never touched: a repair removes what is certainly Ostler's and certainly nobody's, and the rest
    /// is told with what a person is to do.
    Doctor(DoctorArgs),
    /// Tell what each exit code means
    #[command(after_help = after_help())]
    ExitCodes,
    /// Write manual pages, one per command
    Man {
        /// Directory for ostler.1, ostler-vm.1 and so on
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Print a shell's completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Options of every command that changes something.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ChangeArgs {
    /// A UUID that names this change: repeated with it, the command gives the first answer and changes nothing
    #[arg(long, value_name = "UUID", default_value = "", hide_default_value = true)]
    pub(crate) request_id: String,
    /// Check everything, change nothing
    #[arg(long)]
    pub(crate) validate_only: bool,
}

/// The option of every command that changes something that is there.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct EtagArg {
    /// Only if this is still its etag, as `-o json` shows it
    #[arg(long = "if-etag", value_name = "ETAG", default_value = "", hide_default_value = true)]
    pub(crate) etag: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("ostler").chain(line.split(' ')))
    }

    #[test]
    fn definition_is_sound_and_help_tells_the_exit_codes() {
        Arguments::command().debug_assert();
        let help = Arguments::command().render_help().to_string();
        assert!(help.contains("3      the daemon is unreachable"), "{help}");
    }

    #[test]
    fn reads_a_whole_registration() {
        let line = "vm register web --vcpus 2 --memory 1G --kernel linux-6.12/vmlinux --initrd linux-6.12/initrd \
                    --cmdline -- --disk id=root,volume=hello.img,ro --nic id=eth0 -o json";
        let arguments = parse(&line.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap();
        assert_eq!(arguments.global.output, Output::Json);
        let Command::Vm(VmCommand::Register(register)) = arguments.command else { panic!("not register") };
        assert_eq!((register.spec.vcpus, register.spec.memory.0), (2, 1024));
        assert_eq!(register.spec.disks.len() + register.spec.nics.len(), 2);
    }

    #[test]
    fn refuses_what_contradicts_itself() {
        for line in [
            "vm stop web --force --grace 3s",
            "vm reboot web --force --grace 3s",
            "vm pause",
            "vm stop web --no-wait --validate-only",
            "operation cancel",
            "vm attach web",
            "vm attach web --disk id=a,volume=a.img --nic id=b",
            "vm detach web",
            "vm detach web data --force --timeout 3s",
            "vm watch --until RUNNING",
            "vm watch web --until SLEEPING",
            "vm wait web",
            "vm run web --kernel k --rm never --detach",
            "vm wait web --for starting",
            "events web --tenant acme",
            "plugin load x.wasm --operator --tenant acme",
            "certs init --days 0",
            "vm register web",
            "vm register web --kernel k --hugepages 4M",
            "vm register web --kernel k --cpus 1-",
            "vm register web --kernel k --topology sockets=2",
            "vm register web --kernel k --memory 256",
            "doctor --request-id 123e4567-e89b-42d3-a456-426614174000",
            "vm limit web root",
            "vm limit web root --none --iops 3",
            "vm limit web root --iops-burst 3",
            "vm resize-disk web",
            "vm balloon web",
            "vm balloon web --keep 128M --all",
            "vm resize-disk web root --size 20",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        for line in
            ["vm watch web --until running", "vm limit web root --bandwidth 10M --iops 500", "vm limit web root --none"]
        {
            assert!(parse(line).is_ok(), "{line}");
        }
        assert!(parse("vm attach web --nvme id=data,size=64G").is_ok());
        assert!(parse("vm attach web --nic id=eth1").is_ok() && parse("vm detach web data --timeout 3s").is_ok());
    }
}
