//! Options of the daemon.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::TRUST_DOMAIN;

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
    /// The program that runs a VM [default: ostler-vmm, beside this one]
    #[arg(long, value_name = "PATH")]
    pub vmm: Option<PathBuf>,
    /// Run vmm processes with the daemon's own rights and without limits: to try things out, never for tenants
    #[arg(long, conflicts_with_all = ["cgroup", "first_user"])]
    pub no_jail: bool,
}
