//! What may stand on the command line, as clap types. Nothing is done here.
//!
//! Key types: [`Arguments`], [`Command`], [`ServeArgs`]. Sizes, durations and devices are parsed in `units`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::units::{self, DiskArg, MemoryMib, NicArg, NvmeArg, TopologyArg};

/// Where `certs init` writes and every other command looks.
pub(crate) const CERTS_DIR: &str = "/var/lib/ostler/certs";

/// The trust domain of development certificates, and of a daemon that is not told another.
pub(crate) const TRUST_DOMAIN: &str = "ostler.local";

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused or failed
  2  the command line or the request is invalid
  3  the daemon is unreachable, or it refused the certificate
  4  not found (or another tenant's)
  5  denied by policy
  6  the VM's state forbids it
  7  what was waited for did not happen in time

VMs are named `web` (your own tenant's), `acme/web` or `tenants/acme/vms/web`.";

/// A WASM-extensible hypervisor host.
#[derive(Debug, Parser)]
#[command(name = "ostler", version, after_help = EXIT_CODES, infer_subcommands = false, max_term_width = 100)]
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
    /// Policy plugins
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// What policy decided, on record
    #[command(subcommand)]
    Decision(DecisionCommand),
    /// Tenants: what they may have, and have
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// The node's devices, for its operators
    #[command(subcommand)]
    Host(HostCommand),
    /// Print a shell's completion script
    #[command(hide = true)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Options of the daemon. `main.rs` hands them over.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Address and port to listen on
    #[arg(long, default_value = "127.0.0.1:7800", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// What the daemon remembers: store, consoles, logs
    #[arg(long, default_value = "/var/lib/ostler", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Sockets of running VMs; keep the path short
    #[arg(long, default_value = "/run/ostler", value_name = "DIR")]
    pub run_dir: PathBuf,
    /// Kernels and initial RAM disks [default: <data-dir>/images]
    #[arg(long, value_name = "DIR")]
    pub images_dir: Option<PathBuf>,
    /// Disk images, a directory per tenant [default: <data-dir>/volumes]
    #[arg(long, value_name = "DIR")]
    pub volumes_dir: Option<PathBuf>,
    /// Holds server.pem, server.key, ca.pem and (if there is one) crl.pem; followed while the daemon runs [default:
    /// <data-dir>/certs]
    #[arg(long, value_name = "DIR")]
    pub certs_dir: Option<PathBuf>,
    /// Trust domain of the SPIFFE ids in client certificates
    #[arg(long, default_value = TRUST_DOMAIN, value_name = "DOMAIN")]
    pub trust_domain: String,
    /// Private IPv4 network that VM links are cut from, /30 each
    #[arg(long, default_value = "172.30.0.0/16", value_name = "CIDR")]
    pub network: String,
    /// Where every VM gets a cgroup of its own; must lie in a cgroup v2 file system
    #[arg(long, default_value = "/sys/fs/cgroup/ostler", value_name = "DIR")]
    pub cgroup: PathBuf,
    /// First of the 65,536 user ids that vmm processes run as, one per VM; give them to nobody else
    #[arg(long, default_value_t = 0x4f00_0000, value_name = "UID", value_parser = clap::value_parser!(u32).range(1..))]
    pub first_user: u32,
    /// Serve metrics as Prometheus text at http://ADDRESS/metrics, such as 127.0.0.1:9464; a loopback address, since whoever
    /// connects sees every tenant's VMs [default: not served]
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
    /// Serve metrics at an address that is not a loopback one
    #[arg(long, requires = "metrics")]
    pub metrics_public: bool,
    /// Run vmm processes with the daemon's own rights and without limits: to try things out, never for tenants
    #[arg(long, conflicts_with_all = ["cgroup", "first_user"])]
    pub no_jail: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Make a development CA and certificates; what exists already is kept
    Init(CertsInitArgs),
    /// Revoke certificates of the development CA: adds them to crl.pem, which a daemon follows
    Revoke(CertsRevokeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CertsRevokeArgs {
    /// Certificates to revoke, such as tenant-acme.pem; none: the list is only renewed
    #[arg(value_name = "FILE")]
    pub(crate) certificates: Vec<PathBuf>,
    /// Directory of ca.pem, ca.key and crl.pem
    #[arg(long, default_value = CERTS_DIR)]
    pub(crate) dir: PathBuf,
    /// Days until the list expires: from then on the daemon refuses everybody, until it is renewed
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: u32,
}

#[derive(Debug, Args)]
pub(crate) struct CertsInitArgs {
    /// Directory for ca.pem, server.pem, operator-NAME.pem, tenant-NAME.pem and their keys
    #[arg(long, default_value = CERTS_DIR)]
    pub(crate) dir: PathBuf,
    /// A tenant to make a certificate for (may be repeated)
    #[arg(long = "tenant", value_name = "TENANT")]
    pub(crate) tenants: Vec<String>,
    /// An operator to make a certificate for (may be repeated)
    #[arg(long = "operator", value_name = "NAME", default_value = "admin")]
    pub(crate) operators: Vec<String>,
    /// Host name or address of the daemon, beside localhost (may be repeated)
    #[arg(long = "server-name", value_name = "NAME")]
    pub(crate) server_names: Vec<String>,
    /// Days until new certificates expire
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Ask policy, and remember a VM; nothing runs yet
    Register(RegisterArgs),
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
    /// Show what a VM has done: exits, requests, latencies, the way to its first instruction
    Stats(StatsArgs),
    /// Show what a VM's process has and may do, as the kernel sees it
    InspectJail(NameArg),
    /// Attach a disk or a network interface: to the guest at once if the VM runs, else for its next start
    Attach(AttachArgs),
    /// Detach a disk or a network interface: a running guest is asked for it
    Detach(DetachArgs),
    /// Print every change of state, in order
    Watch(WatchArgs),
    /// Attach to a VM's serial console; Ctrl-] detaches
    Console(ConsoleArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NameArg {
    /// The VM: web, acme/web or tenants/acme/vms/web
    #[arg(value_name = "VM")]
    pub(crate) name: String,
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
pub(crate) struct StatsArgs {
    #[command(flatten)]
    pub(crate) name: NameArg,
    /// Again every second, until interrupted
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RegisterArgs {
    #[command(flatten)]
    pub(crate) name: NameArg,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    /// Number of virtual CPUs
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    pub(crate) vcpus: u32,
    /// Memory with its unit: 256M, 1G, 5GiB (powers of 1024)
    #[arg(long, default_value = "256M", value_name = "SIZE", value_parser = units::parse_memory)]
    pub(crate) memory: MemoryMib,
    /// Back memory with pages of this size that the host has reserved (operators only)
    #[arg(long, value_name = "SIZE", value_enum)]
    pub(crate) hugepages: Option<Hugepages>,
    /// Allocate all memory before the guest runs
    #[arg(long)]
    pub(crate) prefault: bool,
    /// Take memory from this NUMA node only (operators only)
    #[arg(long, value_name = "NODE")]
    pub(crate) numa_node: Option<u32>,
    /// CPUs of the host to run on, such as 0-1,4; one for each vCPU if there are enough (operators only)
    #[arg(long, value_name = "LIST", value_parser = units::parse_cpus)]
    pub(crate) cpus: Option<String>,
    /// How vCPUs look to the guest: sockets=1,cores=2,threads=2 [default: one socket of single-threaded cores]
    #[arg(long, value_name = "TOPOLOGY", value_parser = units::parse_topology)]
    pub(crate) topology: Option<TopologyArg>,
    /// Kernel (ELF vmlinux or bzImage), below the node's images directory
    #[arg(long, value_name = "PATH")]
    pub(crate) kernel: String,
    /// Initial RAM disk, below the node's images directory
    #[arg(long, value_name = "PATH")]
    pub(crate) initrd: Option<String>,
    /// Words added to the kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    pub(crate) cmdline: String,
    /// A disk: id=root,volume=hello.img[,ro][,direct][,queues=N][,bandwidth=10M][,iops=500] (may be repeated)
    #[arg(long = "disk", value_name = "DISK", value_parser = units::parse_disk)]
    pub(crate) disks: Vec<DiskArg>,
    /// A network interface: id=eth0[,queues=N][,bandwidth=10M][,iops=500], or an SR-IOV virtual function: [id=ID,]sriov[,mac=MAC][,vlan=VLAN] (may be repeated)
    #[arg(long = "nic", value_name = "NIC", value_parser = units::parse_nic)]
    pub(crate) nics: Vec<NicArg>,
    /// An NVMe device of the host: a namespace of at least so much, id=data,size=64M, or a whole controller,
    /// id=disk,controller (may be repeated)
    #[arg(long = "nvme", value_name = "NVME", value_parser = units::parse_nvme)]
    pub(crate) nvmes: Vec<NvmeArg>,
}

/// Sizes of reserved pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Hugepages {
    /// 2 MiB
    #[value(name = "2M")]
    Size2M,
    /// 1 GiB
    #[value(name = "1G")]
    Size1G,
}

#[derive(Debug, Args)]
#[group(id = "device", args = ["disk", "nic", "nvme"], required = true, multiple = false)]
pub(crate) struct AttachArgs {
    #[command(flatten)]
    pub(crate) name: NameArg,
    /// A disk: id=data,volume=data.img[,ro]
    #[arg(long, value_name = "DISK", value_parser = units::parse_disk)]
    pub(crate) disk: Option<DiskArg>,
    /// A network interface: id=eth1, or an SR-IOV virtual function: [id=ID,]sriov[,mac=MAC][,vlan=VLAN]
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

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only this tenant's
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
    /// Only these, such as: state = RUNNING AND name : "web"
    #[arg(long, value_name = "FILTER")]
    pub(crate) filter: Option<String>,
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
}

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
    /// Only of this hook: admit, select-vf, select-nvme
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

#[derive(Debug, Subcommand)]
pub(crate) enum PluginCommand {
    /// Load a plugin, or replace one of the same name
    Load(PluginLoadArgs),
    /// Show the plugins that decide, in the order asked
    List(PluginListArgs),
    /// Bind an earlier version again: the last one, or that of --to
    Rollback(PluginRollbackArgs),
    /// Take a plugin out of its chain
    Unload(PluginUnloadArgs),
    /// Ask a plugin again what was decided before, and show what it would have said otherwise
    Replay(PluginReplayArgs),
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
    /// Digest of the version, as `plugin list -o json` shows it
    #[arg(long, value_name = "DIGEST", default_value = "")]
    pub(crate) to: String,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
}

#[derive(Debug, Args)]
pub(crate) struct PluginUnloadArgs {
    #[command(flatten)]
    pub(crate) plugin: PluginArg,
    /// Even if it is the operator's last plugin at a hook: everything is denied there then
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
}

#[derive(Debug, Args)]
pub(crate) struct PluginReplayArgs {
    /// The component (.wasm); none: the one that is loaded
    pub(crate) file: Option<PathBuf>,
    /// In the place of this plugin [default: the file's name]
    #[arg(long, required_unless_present = "file")]
    pub(crate) name: Option<String>,
    /// Of the operator's chain: all tenants' decisions
    #[arg(long, conflicts_with = "tenant")]
    pub(crate) operator: bool,
    /// Of this tenant's chain [default: the caller's own chain]
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
    /// Only decisions of this hook: admit, select-vf, select-nvme
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
    /// The component (.wasm)
    pub(crate) file: PathBuf,
    /// Into the operator's chain: asked for every tenant
    #[arg(long, conflicts_with = "tenant")]
    pub(crate) operator: bool,
    /// Into this tenant's chain [default: the caller's own chain]
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<String>,
    /// Its name [default: the file's name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// A setting that the plugin understands: max-vcpus=4 (may be repeated)
    #[arg(long = "setting", value_name = "KEY=VALUE", value_parser = units::parse_setting)]
    pub(crate) settings: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) etag: EtagArg,
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
        assert!(help.contains("3  the daemon is unreachable"), "{help}");
        assert!(!help.contains("completions"), "{help}");
    }

    #[test]
    fn reads_a_whole_registration() {
        let line = "vm register web --vcpus 2 --memory 1G --kernel linux-6.12/vmlinux --initrd linux-6.12/initrd \
                    --cmdline -- --disk id=root,volume=hello.img,ro --nic id=eth0 -o json";
        let arguments = parse(&line.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap();
        assert_eq!(arguments.global.output, Output::Json);
        let Command::Vm(VmCommand::Register(register)) = arguments.command else { panic!("not register") };
        assert_eq!((register.vcpus, register.memory.0), (2, 1024));
        assert_eq!(register.disks.len() + register.nics.len(), 2);
    }

    #[test]
    fn refuses_what_contradicts_itself() {
        for line in [
            "vm stop web --force --grace 3s",
            "vm reboot web --force --grace 3s",
            "vm pause",
            "vm attach web",
            "vm attach web --disk id=a,volume=a.img --nic id=b",
            "vm detach web",
            "vm detach web data --force --timeout 3s",
            "vm watch --until RUNNING",
            "vm watch web --until SLEEPING",
            "plugin load x.wasm --operator --tenant acme",
            "certs init --days 0",
            "vm register web",
            "vm register web --kernel k --hugepages 4M",
            "vm register web --kernel k --cpus 1-",
            "vm register web --kernel k --topology sockets=2",
            "vm register web --kernel k --memory 256",
            "vm limit web root",
            "vm limit web root --none --iops 3",
            "vm limit web root --iops-burst 3",
            "vm resize-disk web",
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
