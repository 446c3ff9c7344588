//! How a daemon is set up. Key type: [`ServeConfig`], which `cli` fills from flags.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::inventory::{FIRST_USER, Network};
use super::rpc::TlsFiles;
use super::service::{JailConfig, Places};
use super::supervisor::MAX_RUN_DIR_LEN;
use crate::sys::program::Program;

/// The program that runs VMs.
const VMM: &str = "ostler-vmm";

/// Everything that a daemon can be told. `None` is a place below the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeConfig {
    /// Where clients connect. Default 127.0.0.1:7800.
    pub listen: SocketAddr,
    /// Store, plugins, consoles, logs. Default /var/lib/ostler.
    pub data_dir: PathBuf,
    /// Sockets. Default /run/ostler. At most [`MAX_RUN_DIR_LEN`] bytes.
    pub run_dir: PathBuf,
    /// Kernels and initrds. Default `<data>/images`.
    pub images_dir: Option<PathBuf>,
    /// Disk images, one directory per tenant. Default `<data>/volumes`.
    pub volumes_dir: Option<PathBuf>,
    /// The daemon's certificate chain. Default `<data>/certs/server.pem`.
    pub certificate: Option<PathBuf>,
    /// Its private key. Default `<data>/certs/server.key`.
    pub key: Option<PathBuf>,
    /// The authority of client certificates. Default `<data>/certs/ca.pem`.
    pub client_ca: Option<PathBuf>,
    /// Revocation lists of that authority; need not exist. Default `<data>/certs/crl.pem`.
    pub client_crl: Option<PathBuf>,
    /// From which NICs get their /30s. Default 172.30.0.0/16.
    pub network: Network,
    /// How VMs are confined; `None`: not at all (`--no-jail`). Default /sys/fs/cgroup/ostler, users from 0x4f000000 on.
    pub jail: Option<JailConfig>,
    /// The program that is run as `<program> jail`, or `<program> vmm` without a jail. Default: `ostler-vmm` beside this.
    pub vmm: Option<PathBuf>,
    /// The SPIFFE trust domain of client certificates. Default ostler.local.
    pub trust_domain: String,
    /// Where metrics are served, without authentication. Default: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Whether that may be an address that others reach. Default: no.
    pub has_public_metrics: bool,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7800)),
            data_dir: "/var/lib/ostler".into(),
            run_dir: "/run/ostler".into(),
            images_dir: None,
            volumes_dir: None,
            certificate: None,
            key: None,
            client_ca: None,
            client_crl: None,
            network: Network::default(),
            jail: Some(JailConfig { cgroup: "/sys/fs/cgroup/ostler".into(), first_user: FIRST_USER }),
            vmm: None,
            trust_domain: "ostler.local".into(),
            metrics: None,
            has_public_metrics: false,
        }
    }
}

/// Why the directories cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlacesError {
    /// Sockets below it would have names that the kernel refuses.
    #[error("run directory {path} has {len} bytes, at most {MAX_RUN_DIR_LEN} are allowed; choose a shorter one")]
    RunDirTooLong {
        /// The directory.
        path: PathBuf,
        /// Its length.
        len: usize,
    },
    /// Cannot be made or opened.
    #[error("cannot use {path}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No program that runs VMs.
    #[error("cannot use {path} to run VMs; say where ostler-vmm is with --vmm, or put it beside ostler")]
    Vmm {
        /// Where it was looked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another daemon has it.
    #[error("another daemon serves {path}; stop it, or choose another data directory")]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
}

impl ServeConfig {
    /// Where the certificates are.
    pub(super) fn tls_files(&self) -> TlsFiles {
        let in_certs =
            |given: &Option<PathBuf>, name| given.clone().unwrap_or_else(|| self.data_dir.join("certs").join(name));
        TlsFiles {
            certificate: in_certs(&self.certificate, "server.pem"),
            key: in_certs(&self.key, "server.key"),
            client_ca: in_certs(&self.client_ca, "ca.pem"),
            client_crl: in_certs(&self.client_crl, "crl.pem"),
        }
    }

    /// Makes the directories (0700) and claims the data directory for as long as the file is open.
    pub(super) fn claim(&self) -> Result<(Places, File), PlacesError> {
        let absolute =
            |path: &Path| std::path::absolute(path).map_err(|source| PlacesError::Io { path: path.to_owned(), source });
        let data = absolute(&self.data_dir)?;
        let run = absolute(&self.run_dir)?;
        let below_data = |given: &Option<PathBuf>, name| given.as_deref().map_or_else(|| Ok(data.join(name)), absolute);
        let images = below_data(&self.images_dir, "images")?;
        let volumes = below_data(&self.volumes_dir, "volumes")?;
        let len = run.as_os_str().as_bytes().len();
        if len > MAX_RUN_DIR_LEN {
            return Err(PlacesError::RunDirTooLong { path: run, len });
        }
        make_dir(&data)?;
        let lock = lock(&data)?;
        for dir in [&run, &run.join("vms"), &data.join("vms"), &data.join("plugins"), &images, &volumes] {
            make_dir(dir)?;
        }
        let vmm = self.vmm.clone().map_or_else(beside_this_program, Ok);
        let vmm = vmm.and_then(|path| absolute(&path)).and_then(|path| {
            let opened = Program::open(&path);
            opened.map_err(|source| PlacesError::Vmm { path, source })
        })?;
        Ok((Places { data, run, images, volumes, vmm }, lock))
    }
}

/// Where the program that runs VMs is if nothing is said.
fn beside_this_program() -> Result<PathBuf, PlacesError> {
    match std::env::current_exe() {
        Ok(own) => Ok(own.with_file_name(VMM)),
        Err(source) => Err(PlacesError::Vmm { path: VMM.into(), source }),
    }
}

fn make_dir(path: &Path) -> Result<(), PlacesError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| PlacesError::Io { path: path.to_owned(), source })
}

fn lock(data: &Path) -> Result<File, PlacesError> {
    let path = data.join("lock");
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = opened.map_err(|source| PlacesError::Io { path: path.clone(), source })?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(PlacesError::InUse { path: data.to_owned() }),
        Err(error) => Err(PlacesError::Io { path, source: error.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn config(dir: &Path) -> ServeConfig {
        ServeConfig {
            data_dir: dir.join("data"),
            run_dir: dir.join("run"),
            vmm: Some("/bin/true".into()),
            ..ServeConfig::default()
        }
    }

    #[test]
    fn makes_private_directories_and_admits_one_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let (places, lock) = config.claim().unwrap();
        for path in [&places.data, &places.run, &places.images, &places.volumes] {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700, "{}", path.display());
        }
        assert!(matches!(config.claim(), Err(PlacesError::InUse { .. })));
        drop(lock);
        assert!(config.claim().is_ok());
    }

    #[test]
    fn refuses_a_run_directory_whose_sockets_would_not_fit() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("r".repeat(MAX_RUN_DIR_LEN));
        let refused = ServeConfig { run_dir, ..config(dir.path()) }.claim();
        assert!(matches!(refused, Err(PlacesError::RunDirTooLong { .. })));
    }
}
