//! What a VM is to be, for every command that makes one.

use clap::{Args, ValueEnum};

use super::super::units::{self, DiskArg, MemoryMib, NicArg, NvmeArg, TopologyArg};

/// A VM's spec, option by option.
#[derive(Debug, Args)]
pub(crate) struct SpecArgs {
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
    /// Give memory that the guest does without back to the host; with what the guest keeps at most [default: all]
    #[arg(long, value_name = "KEEP", num_args = 0..=1, value_parser = units::parse_memory)]
    pub(crate) balloon: Option<Option<MemoryMib>>,
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
    /// A network interface: id=eth0[,queues=N][,bandwidth=10M][,iops=500], or id=eth0,vhost=on (an operator's: the host's kernel moves the frames), or an SR-IOV virtual function: [id=ID,]sriov[,mac=MAC][,vlan=VLAN] (may be repeated)
    #[arg(long = "nic", value_name = "NIC", value_parser = units::parse_nic)]
    pub(crate) nics: Vec<NicArg>,
    /// An NVMe device of the host: a namespace of at least so much, id=data,size=64M, or a whole controller,
    /// id=disk,controller (may be repeated)
    #[arg(long = "nvme", value_name = "NVME", value_parser = units::parse_nvme)]
    pub(crate) nvmes: Vec<NvmeArg>,
    /// Streams between guest and host through a socket; with the guest's context id [default: 3]
    #[arg(long, value_name = "CID", num_args = 0..=1, default_missing_value = "3")]
    pub(crate) vsock: Option<u32>,
    /// The guest's console: COM1 (ttyS0), or a virtio console (hvc0), whose driver the guest must bring
    #[arg(long, value_name = "CONSOLE", value_enum, default_value_t = ConsoleArg::Serial)]
    pub(crate) console: ConsoleArg,
    /// A label, for people, filters and policy: team=web (may be repeated)
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = units::parse_label)]
    pub(crate) labels: Vec<(String, String)>,
}

/// Devices that a console may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConsoleArg {
    /// A serial port, ttyS0
    Serial,
    /// A virtio console, hvc0
    Virtio,
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
