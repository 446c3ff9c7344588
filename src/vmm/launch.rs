//! What the daemon handed over: the sealed configuration and every descriptor, sorted by role. Key types: [`Launch`]
//! (from `model`), [`Inheritance`].

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use crate::model::{DeviceId, Launch};
use crate::sys::sealed;
use crate::wire::{self, Role, WireError};

/// Longest configuration, in bytes.
const MAX_CONFIG_LEN: usize = 64 << 10;

/// Why a launch was refused.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Not a message of the contract, or a configuration that does not hold together.
    #[error("bad launch message: {0}")]
    Wire(#[from] WireError),
    /// The configuration cannot be read.
    #[error("bad launch configuration: {0}")]
    Config(io::Error),
    /// Descriptors and roles do not match in number.
    #[error("launch message names {roles} descriptors and carries {descriptors}")]
    Count {
        /// How many it names.
        roles: usize,
        /// How many came.
        descriptors: usize,
    },
    /// A descriptor that the configuration needs did not come.
    #[error("launch message lacks the descriptor for {0}")]
    Missing(String),
}

/// The descriptors of a launch.
#[derive(Debug)]
pub struct Inheritance {
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// Kernel image.
    pub kernel: File,
    /// Initial RAM disk.
    pub initrd: Option<File>,
    /// Where consoles connect.
    pub console: UnixListener,
    /// The console's past.
    pub console_ring: File,
    /// Where to count; without it nothing is counted.
    pub counters: Option<File>,
    /// Disk image, tap or socket of each device; container and device of one that is passed through.
    pub devices: HashMap<DeviceId, Vec<OwnedFd>>,
}

/// Sorts the descriptors and reads the configuration. The exit record is taken out first, so that the caller can write
/// there why everything else was refused.
pub fn receive(
    roles: Vec<Role>,
    descriptors: Vec<OwnedFd>,
    exit_record: &mut Option<File>,
) -> Result<(Launch, Inheritance), LaunchError> {
    let [named, carried] = [roles.len(), descriptors.len()];
    let mut devices: HashMap<DeviceId, Vec<OwnedFd>> = HashMap::new();
    let mut by_role: HashMap<Role, OwnedFd> = HashMap::new();
    for (role, descriptor) in roles.into_iter().zip(descriptors) {
        match role {
            // One device may have several, in the order of the packet.
            Role::Device(id) => devices.entry(id).or_default().push(descriptor),
            role => drop(by_role.insert(role, descriptor)),
        }
    }
    *exit_record = by_role.remove(&Role::ExitRecord).map(File::from);
    if named != carried {
        return Err(LaunchError::Count { roles: named, descriptors: carried });
    }
    let counters = by_role.remove(&Role::Counters).map(File::from);
    let mut take = |role: Role| by_role.remove(&role).ok_or_else(|| LaunchError::Missing(format!("{role:?}")));
    let config = sealed::read(take(Role::Config)?, MAX_CONFIG_LEN).map_err(LaunchError::Config)?;
    let launch = wire::decode_launch(&config)?;
    let inheritance = Inheritance {
        kvm: take(Role::Kvm)?,
        kernel: take(Role::Kernel)?.into(),
        initrd: if launch.has_initrd { Some(take(Role::Initrd)?.into()) } else { None },
        console: take(Role::ConsoleListener)?.into(),
        console_ring: take(Role::ConsoleRing)?.into(),
        counters,
        devices,
    };
    Ok((launch, inheritance))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InstanceId, VmId};

    fn config() -> OwnedFd {
        let launch = Launch {
            vm: VmId::new(),
            instance: InstanceId::new(),
            vcpus: 1,
            memory_bytes: 128 << 20,
            cmdline: String::new(),
            has_initrd: false,
            devices: vec![],
            request: String::new(),
            memory: Default::default(),
            cpus: Default::default(),
        };
        sealed::seal("config", &wire::encode_launch(&launch)).unwrap()
    }

    fn any_fd() -> OwnedFd {
        tempfile::tempfile().unwrap().into()
    }

    #[test]
    fn names_the_descriptor_that_is_missing_and_still_gives_the_exit_record() {
        let mut record = None;
        let roles = vec![Role::Config, Role::ExitRecord];
        let error = receive(roles, vec![config(), any_fd()], &mut record).unwrap_err();
        assert_eq!(error.to_string(), "launch message lacks the descriptor for Kvm");
        assert!(record.is_some());
    }

    #[test]
    fn a_device_gets_its_descriptors_in_the_order_of_the_packet() {
        use rustix::fs::fstat;
        let roles = [Role::Config, Role::Kvm, Role::Kernel, Role::ConsoleListener, Role::ConsoleRing];
        let device = Role::Device("vf".parse().unwrap());
        let roles = roles.into_iter().chain([device.clone(), device]).collect();
        let listener = UnixListener::bind(tempfile::tempdir().unwrap().path().join("s")).unwrap();
        let [first, second] = [any_fd(), any_fd()];
        let inodes = [&first, &second].map(|fd| fstat(fd).unwrap().st_ino);
        let descriptors = vec![config(), any_fd(), any_fd(), listener.into(), any_fd(), first, second];
        let (_, inheritance) = receive(roles, descriptors, &mut None).unwrap();
        let got: Vec<_> = inheritance.devices.values().flatten().map(|fd| fstat(fd).unwrap().st_ino).collect();
        assert_eq!(got, inodes);
    }

    #[test]
    fn refuses_a_configuration_that_is_not_sealed() {
        let error = receive(vec![Role::Config], vec![any_fd()], &mut None).unwrap_err();
        assert!(matches!(error, LaunchError::Config(_)), "{error}");
    }

    #[test]
    fn refuses_descriptors_that_do_not_match_their_roles() {
        let error = receive(vec![Role::Config, Role::Kvm], vec![config()], &mut None).unwrap_err();
        assert!(matches!(error, LaunchError::Count { roles: 2, descriptors: 1 }), "{error}");
    }
}
