//! What a VM shall be. Key types: [`VmSpec`] and its parts, complete and within bounds once constructed.
//!
//! `api::convert` builds these from requests; the store keeps them; `daemon/supervisor` plans a launch from them.

use std::collections::HashSet;
use std::fmt;

use super::{DeviceId, VfWish};

/// vCPUs that one VM may have. Bounded by xAPIC ids (8 bits, 255 is broadcast) with room to spare.
const MAX_VCPUS: u32 = 128;
/// Least guest memory, in MiB: a stock kernel with its initrd does not boot in less.
const MIN_MEMORY_MIB: u64 = 64;
/// Most guest memory, in MiB (4 TiB).
const MAX_MEMORY_MIB: u64 = 4 << 20;
/// Longest kernel command line, in bytes without the final NUL (Linux x86 `COMMAND_LINE_SIZE` is 2048).
const MAX_CMDLINE_LEN: usize = 2047;
/// Bytes of the command line that the daemon keeps for itself (console, root, addresses).
const CMDLINE_RESERVE: usize = 256;
/// Longest image path, in bytes.
const MAX_IMAGE_PATH_LEN: usize = 255;

/// Why a spec was refused: the field, as the API names it, and the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct SpecError {
    /// Path of the field in the request, such as `spec.vcpus`.
    pub field: String,
    /// What is wrong, with the refused value and the allowed range.
    pub reason: String,
}

impl SpecError {
    /// An error for `field`.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

/// A relative path below a directory that the operator chose (images, or the tenant's volumes).
///
/// Only plain components: no leading `/`, no `.` or `..`, no empty component. Symbolic links are refused when the
/// daemon opens it (`openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImagePath(String);

impl ImagePath {
    /// Checks `text`; `field` names it in the error.
    pub fn new(field: &str, text: &str) -> Result<Self, SpecError> {
        let refuse = |reason: String| Err(SpecError::new(field, reason));
        if text.is_empty() {
            return refuse("path is empty".into());
        }
        if text.len() > MAX_IMAGE_PATH_LEN {
            return refuse(format!("path has {} bytes, at most {MAX_IMAGE_PATH_LEN} are allowed", text.len()));
        }
        if text.chars().any(char::is_control) {
            return refuse(format!("path {text:?} holds a control character"));
        }
        if text.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return refuse(format!("path {text:?} must be relative, without '.', '..' or empty parts"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The path as given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the VM boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootSpec {
    /// ELF `vmlinux` with a PVH note, or `bzImage`; below the images directory.
    pub kernel: ImagePath,
    /// Initial RAM disk; below the images directory.
    pub initrd: Option<ImagePath>,
    /// Kernel command line, added to the daemon's own words.
    pub cmdline: String,
}

/// A raw disk image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// Name of the device; also the disk's serial number in the guest (first 20 bytes).
    pub id: DeviceId,
    /// The image, below the tenant's volume directory.
    pub volume: ImagePath,
    /// The guest may only read.
    pub is_read_only: bool,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicSpec {
    /// Name of the device.
    pub id: DeviceId,
    /// What is behind it on the host.
    pub backend: NicBackend,
}

/// What is behind a network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NicBackend {
    /// virtio-net on a tap, with an address pair of its own.
    Tap,
    /// A virtual function of an SR-IOV network card, passed through; policy chooses which at each start.
    Sriov(VfWish),
}

impl NicSpec {
    /// What is asked of the VF, if it is to be one.
    pub fn vf_wish(&self) -> Option<VfWish> {
        match self.backend {
            NicBackend::Tap => None,
            NicBackend::Sriov(wish) => Some(wish),
        }
    }
}

/// A device of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceSpec {
    /// A disk.
    Disk(DiskSpec),
    /// A network interface.
    Nic(NicSpec),
}

impl DeviceSpec {
    /// Its name.
    pub fn id(&self) -> &DeviceId {
        match self {
            Self::Disk(disk) => &disk.id,
            Self::Nic(nic) => &nic.id,
        }
    }
}

/// A complete, valid VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    vcpus: u32,
    memory_mib: u64,
    boot: BootSpec,
    disks: Vec<DiskSpec>,
    nics: Vec<NicSpec>,
}

impl VmSpec {
    /// Disks and NICs together: bus 0 has 32 slots, of which the host bridge and the rng take two.
    pub const MAX_DEVICES: usize = 24;

    /// Checks every bound that does not depend on the host.
    pub fn new(
        vcpus: u32,
        memory_mib: u64,
        boot: BootSpec,
        disks: Vec<DiskSpec>,
        nics: Vec<NicSpec>,
    ) -> Result<Self, SpecError> {
        check_vcpus(vcpus)?;
        check_memory(memory_mib)?;
        check_cmdline(&boot.cmdline)?;
        let devices = disks.len() + nics.len();
        if devices > Self::MAX_DEVICES {
            let most = Self::MAX_DEVICES;
            return Err(SpecError::new("spec.disks", format!("{devices} disks and NICs, at most {most} are allowed")));
        }
        for (index, mac) in nics.iter().enumerate().filter_map(|(index, nic)| Some((index, nic.vf_wish()?.mac?))) {
            if !mac.is_station() {
                let field = format!("spec.nics[{index}].sriov.mac");
                return Err(SpecError::new(field, format!("{mac} is no unicast address: one station cannot have it")));
            }
        }
        let mut seen = HashSet::new();
        let named = disks.iter().map(|d| ("spec.disks", &d.id)).chain(nics.iter().map(|n| ("spec.nics", &n.id)));
        for (field, id) in named {
            if id.as_str() == "rng" || !seen.insert(id) {
                return Err(SpecError::new(field, format!("device id {id:?} is taken", id = id.as_str())));
            }
        }
        Ok(Self { vcpus, memory_mib, boot, disks, nics })
    }

    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// Guest memory in MiB, [`MIN_MEMORY_MIB`] to [`MAX_MEMORY_MIB`].
    pub fn memory_mib(&self) -> u64 {
        self.memory_mib
    }

    /// Guest memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_mib << 20
    }

    /// What is booted.
    pub fn boot(&self) -> &BootSpec {
        &self.boot
    }

    /// Disks, in slot order.
    pub fn disks(&self) -> &[DiskSpec] {
        &self.disks
    }

    /// NICs, in slot order.
    pub fn nics(&self) -> &[NicSpec] {
        &self.nics
    }

    /// The same VM with a device more, behind the others of its kind.
    pub fn with_device(mut self, device: DeviceSpec) -> Result<Self, SpecError> {
        match device {
            DeviceSpec::Disk(disk) => self.disks.push(disk),
            DeviceSpec::Nic(nic) => self.nics.push(nic),
        }
        let Self { vcpus, memory_mib, boot, disks, nics } = self;
        Self::new(vcpus, memory_mib, boot, disks, nics)
    }

    /// Takes a device out, if the VM has it.
    pub fn remove_device(&mut self, id: &DeviceId) {
        self.disks.retain(|disk| disk.id != *id);
        self.nics.retain(|nic| nic.id != *id);
    }

    /// The same VM with another vCPU count (a policy patch).
    pub fn with_vcpus(mut self, vcpus: u32) -> Result<Self, SpecError> {
        check_vcpus(vcpus)?;
        self.vcpus = vcpus;
        Ok(self)
    }

    /// The same VM with another memory size (a policy patch).
    pub fn with_memory_mib(mut self, memory_mib: u64) -> Result<Self, SpecError> {
        check_memory(memory_mib)?;
        self.memory_mib = memory_mib;
        Ok(self)
    }
}

fn check_vcpus(vcpus: u32) -> Result<(), SpecError> {
    if (1..=MAX_VCPUS).contains(&vcpus) {
        return Ok(());
    }
    Err(SpecError::new("spec.vcpus", format!("{vcpus} vCPUs, 1 to {MAX_VCPUS} are allowed")))
}

fn check_memory(memory_mib: u64) -> Result<(), SpecError> {
    if (MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&memory_mib) {
        return Ok(());
    }
    Err(SpecError::new(
        "spec.memory_mib",
        format!("{memory_mib} MiB of memory, {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} are allowed"),
    ))
}

fn check_cmdline(cmdline: &str) -> Result<(), SpecError> {
    let most = MAX_CMDLINE_LEN - CMDLINE_RESERVE;
    if cmdline.len() > most {
        return Err(SpecError::new(
            "spec.boot.cmdline",
            format!("command line has {} bytes, at most {most} are allowed", cmdline.len()),
        ));
    }
    if !cmdline.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        return Err(SpecError::new("spec.boot.cmdline", "command line may hold only printable ASCII"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot() -> BootSpec {
        BootSpec {
            kernel: ImagePath::new("spec.boot.kernel", "linux-6.12/vmlinux").unwrap(),
            initrd: None,
            cmdline: String::new(),
        }
    }

    fn nic(id: &str) -> NicSpec {
        NicSpec { id: id.parse().unwrap(), backend: NicBackend::Tap }
    }

    #[test]
    fn names_the_field_and_the_range_of_a_bad_size() {
        for vcpus in [0, 10_000] {
            let error = VmSpec::new(vcpus, 128, boot(), vec![], vec![]).unwrap_err();
            assert_eq!(error.field, "spec.vcpus");
            assert!(error.reason.contains("1 to 128"), "{error}");
        }
        assert_eq!(VmSpec::new(1, 0, boot(), vec![], vec![]).unwrap_err().field, "spec.memory_mib");
        assert_eq!(VmSpec::new(1, u64::MAX, boot(), vec![], vec![]).unwrap_err().field, "spec.memory_mib");
    }

    #[test]
    fn keeps_memory_of_4_gib_and_more_exact() {
        let spec = VmSpec::new(1, 5 << 10, boot(), vec![], vec![]).unwrap();
        assert_eq!(spec.memory_bytes(), 5 << 30);
    }

    #[test]
    fn refuses_a_device_id_that_is_taken() {
        assert!(VmSpec::new(1, 128, boot(), vec![], vec![nic("a"), nic("a")]).is_err());
        assert!(VmSpec::new(1, 128, boot(), vec![], vec![nic("rng")]).is_err());
        assert!(VmSpec::new(1, 128, boot(), vec![], vec![nic("a"), nic("b")]).is_ok());
    }

    #[test]
    fn refuses_a_group_address_for_a_nic_and_names_it() {
        let with_mac = |mac: &str| {
            let wish = VfWish { mac: Some(mac.parse().unwrap()), vlan: None };
            let sriov = NicSpec { backend: NicBackend::Sriov(wish), ..nic("vf") };
            VmSpec::new(1, 128, boot(), vec![], vec![nic("a"), sriov])
        };
        assert!(with_mac("02:00:00:00:00:01").is_ok());
        for mac in ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "03:00:00:00:00:01"] {
            assert_eq!(with_mac(mac).unwrap_err().field, "spec.nics[1].sriov.mac", "{mac}");
        }
    }

    #[test]
    fn refuses_paths_that_leave_their_directory() {
        for path in ["", "/etc/shadow", "../x", "a/../b", "a//b", "a/.", "a\nb"] {
            assert!(ImagePath::new("f", path).is_err(), "{path:?}");
        }
        assert!(ImagePath::new("f", "linux-6.12/vmlinux").is_ok());
    }

    #[test]
    fn refuses_a_command_line_with_control_characters_or_without_end() {
        let with = |cmdline: &str| {
            VmSpec::new(1, 128, BootSpec { cmdline: cmdline.into(), ..boot() }, vec![], vec![]).is_err()
        };
        assert!(with("quiet\nfoo"));
        assert!(with(&"x".repeat(3000)));
        assert!(!with("quiet root=/dev/vda"));
    }
}
