//! Admin commands of NVMe controllers through their character device (linux/nvme_ioctl.h). Key types: [`Admin`],
//! [`CommandError`].
//!
//! What a page means is in [`identify`], which only reads bytes. Sections are those of NVM Express Base 2.0.
//!
//! ```text
//!   Admin ── NVME_IOCTL_ADMIN_CMD ──▶ kernel's admin queue ──▶ controller
//!         ◀── 4 KiB page, or a status of the controller
//! ```
#![allow(unsafe_code, reason = "an ioctl that no crate wraps")]

pub mod block;
pub mod identify;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use identify::{
    ControllerIdentity, NamespaceIdentity, PrimaryCapabilities, SecondaryController, controller_list, namespace_list,
    secondary_list,
};

/// `_IOWR('N', 0x41, struct nvme_admin_cmd)`.
const NVME_IOCTL_ADMIN_CMD: u64 = 0xc048_4e41;
/// Bytes of an Identify page (§5.17).
pub const PAGE_LEN: usize = 4096;
/// Bytes of the SMART / Health Information log page (§5.16.1.3).
const SMART_LEN: usize = 512;
/// How long a command may take that does not touch data.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a Format NVM may take.
const FORMAT_TIMEOUT: Duration = Duration::from_secs(600);
/// Every namespace (§3.2.1.2).
const ALL_NAMESPACES: u32 = u32::MAX;

/// Opcodes of admin commands (figure 138).
mod opcode {
    pub(super) const GET_LOG_PAGE: u8 = 0x02;
    pub(super) const IDENTIFY: u8 = 0x06;
    pub(super) const NAMESPACE_ATTACHMENT: u8 = 0x15;
    pub(super) const VIRTUALIZATION_MANAGEMENT: u8 = 0x1c;
    pub(super) const FORMAT_NVM: u8 = 0x80;
}

/// What an Identify command asks for (`CNS`, figure 273).
mod cns {
    pub(super) const CONTROLLER: u8 = 0x01;
    pub(super) const ALLOCATED_NAMESPACES: u8 = 0x10;
    pub(super) const ALLOCATED_NAMESPACE: u8 = 0x11;
    pub(super) const CONTROLLERS_OF_NAMESPACE: u8 = 0x12;
    pub(super) const PRIMARY_CAPABILITIES: u8 = 0x14;
    pub(super) const SECONDARY_CONTROLLERS: u8 = 0x15;
}

/// `struct nvme_passthru_cmd` (linux/nvme_ioctl.h).
#[repr(C)]
#[derive(Default)]
struct Passthrough {
    opcode: u8,
    flags: u8,
    reserved: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    address: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The kernel could not send it, or the controller did not answer.
    #[error("NVMe command {command}: {source}")]
    Io {
        /// Which command.
        command: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// The controller refused it.
    #[error("NVMe command {command} is refused with status {status:#x}{}", meaning(*status))]
    Refused {
        /// Which command.
        command: &'static str,
        /// Status code and its type, without the bits above (§3.3.3.2.1).
        status: u16,
    },
}

/// The statuses that tell an operator something (figures 94 to 96).
fn meaning(status: u16) -> &'static str {
    match status {
        0x001 => " (invalid opcode: not supported)",
        0x002 => " (invalid field)",
        0x00b => " (invalid namespace or format)",
        0x118 => " (namespace is attached already)",
        0x119 => " (namespace is private)",
        0x11a => " (namespace is not attached)",
        0x11f => " (invalid controller identifier)",
        0x120 => " (invalid secondary controller state)",
        0x121 => " (invalid number of controller resources)",
        0x122 => " (invalid resource identifier)",
        _ => "",
    }
}

impl CommandError {
    /// The controller does not know the command at all.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Refused { status: 0x001, .. })
    }
}

/// Resources that a primary controller deals out (§8.26).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Queue pairs, the admin queue included.
    Queues,
    /// Interrupt vectors.
    Interrupts,
}

impl Resource {
    fn number(self) -> u32 {
        match self {
            Self::Queues => 0,
            Self::Interrupts => 1,
        }
    }
}

/// The admin queue of a controller that the host's driver runs.
#[derive(Debug)]
pub struct Admin {
    file: File,
}

impl Admin {
    /// Opens `/dev/<name>`, such as `nvme0`. Needs `CAP_SYS_ADMIN`.
    pub fn open(name: &str) -> io::Result<Self> {
        let path = Path::new("/dev").join(name);
        Ok(Self { file: OpenOptions::new().read(true).write(true).open(path)? })
    }

    /// Identify Controller (§5.17.2.1).
    pub fn identify_controller(&self) -> Result<ControllerIdentity, CommandError> {
        Ok(ControllerIdentity::parse(&self.identify(cns::CONTROLLER, 0, 0)?))
    }

    /// Ids of all namespaces that exist in the subsystem, attached or not (§5.17.2.10). At most 1,024.
    pub fn allocated_namespaces(&self) -> Result<Vec<u32>, CommandError> {
        Ok(namespace_list(&self.identify(cns::ALLOCATED_NAMESPACES, 0, 0)?))
    }

    /// Size and format of a namespace, attached or not (§5.17.2.11). `None`: its format is none that is known.
    pub fn identify_namespace(&self, nsid: u32) -> Result<Option<NamespaceIdentity>, CommandError> {
        Ok(NamespaceIdentity::parse(&self.identify(cns::ALLOCATED_NAMESPACE, 0, nsid)?))
    }

    /// Ids of the controllers that a namespace is attached to (§5.17.2.12).
    pub fn controllers_of(&self, nsid: u32) -> Result<Vec<u16>, CommandError> {
        Ok(controller_list(&self.identify(cns::CONTROLLERS_OF_NAMESPACE, 0, nsid)?))
    }

    /// What the primary controller can deal out (§5.17.2.14).
    pub fn primary_capabilities(&self) -> Result<PrimaryCapabilities, CommandError> {
        Ok(PrimaryCapabilities::parse(&self.identify(cns::PRIMARY_CAPABILITIES, 0, 0)?))
    }

    /// The secondary controllers of this one, by id (§5.17.2.15).
    pub fn secondary_controllers(&self) -> Result<Vec<SecondaryController>, CommandError> {
        Ok(secondary_list(&self.identify(cns::SECONDARY_CONTROLLERS, 0, 0)?))
    }

    /// Percent of its life that the medium has behind it, as the vendor estimates; may exceed 100 (§5.16.1.3).
    pub fn wear_percent(&self) -> Result<u8, CommandError> {
        let mut page = [0; SMART_LEN];
        // Log page 2; number of double words, counted from 0, in bits 16 to 31.
        let cdw10 = 2 | (SMART_LEN as u32 / 4 - 1) << 16;
        let command =
            Passthrough { opcode: opcode::GET_LOG_PAGE, nsid: ALL_NAMESPACES, cdw10, ..Passthrough::default() };
        self.run("Get Log Page", command, &mut page, TIMEOUT)?;
        Ok(page[5])
    }

    /// Attaches a namespace to a controller (§5.20).
    pub fn attach_namespace(&self, nsid: u32, controller: u16) -> Result<(), CommandError> {
        self.attachment("Namespace Attachment (attach)", 0, nsid, controller)
    }

    /// Detaches a namespace from a controller (§5.20).
    pub fn detach_namespace(&self, nsid: u32, controller: u16) -> Result<(), CommandError> {
        self.attachment("Namespace Attachment (detach)", 1, nsid, controller)
    }

    fn attachment(&self, name: &'static str, select: u32, nsid: u32, controller: u16) -> Result<(), CommandError> {
        // A controller list of one (§4.5.1).
        let mut list = [0; PAGE_LEN];
        list[..2].copy_from_slice(&1u16.to_le_bytes());
        list[2..4].copy_from_slice(&controller.to_le_bytes());
        let command =
            Passthrough { opcode: opcode::NAMESPACE_ATTACHMENT, nsid, cdw10: select, ..Passthrough::default() };
        self.run(name, command, &mut list, TIMEOUT).map(drop)
    }

    /// Sets how much of a flexible resource the primary controller has after its next reset (§5.32, action 1).
    pub fn set_primary_share(&self, resource: Resource, count: u16) -> Result<(), CommandError> {
        self.virtualization("Virtualization Management (primary flexible)", 0x1, resource.number(), 0, count)
    }

    /// Gives an offline secondary controller so much of a resource (§5.32, action 8).
    pub fn assign(&self, controller: u16, resource: Resource, count: u16) -> Result<(), CommandError> {
        self.virtualization("Virtualization Management (assign)", 0x8, resource.number(), controller, count)
    }

    /// Brings a secondary controller online (§5.32, action 9).
    pub fn bring_online(&self, controller: u16) -> Result<(), CommandError> {
        self.virtualization("Virtualization Management (online)", 0x9, 0, controller, 0)
    }

    fn virtualization(
        &self,
        name: &'static str,
        action: u32,
        resource: u32,
        controller: u16,
        count: u16,
    ) -> Result<(), CommandError> {
        let command = Passthrough {
            opcode: opcode::VIRTUALIZATION_MANAGEMENT,
            cdw10: action | resource << 8 | u32::from(controller) << 16,
            cdw11: u32::from(count),
            ..Passthrough::default()
        };
        self.run(name, command, &mut [], TIMEOUT).map(drop)
    }

    /// Formats a namespace as it is formatted, and has its user data erased (§5.15, SES 1). Only on a controller where
    /// that touches no other namespace.
    pub fn format(&self, nsid: u32, namespace: &NamespaceIdentity) -> Result<(), CommandError> {
        const ERASE_USER_DATA: u32 = 1 << 9;
        let cdw10 = namespace.format_bits() | ERASE_USER_DATA;
        let command = Passthrough { opcode: opcode::FORMAT_NVM, nsid, cdw10, ..Passthrough::default() };
        self.run("Format NVM", command, &mut [], FORMAT_TIMEOUT).map(drop)
    }

    fn identify(&self, cns: u8, controller: u16, nsid: u32) -> Result<[u8; PAGE_LEN], CommandError> {
        let mut page = [0; PAGE_LEN];
        let cdw10 = u32::from(cns) | u32::from(controller) << 16;
        let command = Passthrough { opcode: opcode::IDENTIFY, nsid, cdw10, ..Passthrough::default() };
        self.run("Identify", command, &mut page, TIMEOUT)?;
        Ok(page)
    }

    /// Sends a command whose data, if any, is `data`; gives its result double word.
    fn run(
        &self,
        name: &'static str,
        mut command: Passthrough,
        data: &mut [u8],
        timeout: Duration,
    ) -> Result<u32, CommandError> {
        command.address = data.as_mut_ptr() as u64;
        // A page at most; the direction is in the opcode's low bits (§3.3.3.1).
        command.data_len = u32::try_from(data.len()).unwrap_or(0);
        command.timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        // SAFETY: the ioctl reads and writes one `struct nvme_passthru_cmd`, which `command` is, alive for the call; the
        // kernel touches `data_len` bytes at `address`, which are `data`, borrowed exclusively for the call.
        let status = unsafe { libc::ioctl(self.file.as_raw_fd(), NVME_IOCTL_ADMIN_CMD as _, &raw mut command) };
        match status {
            0 => Ok(command.result),
            status if status < 0 => Err(CommandError::Io { command: name, source: io::Error::last_os_error() }),
            // Code and its type: bits 0 to 10 (§3.3.3.2.1, as the kernel gives it).
            status => Err(CommandError::Refused { command: name, status: (status & 0x7ff) as u16 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_has_the_kernels_layout() {
        assert_eq!(size_of::<Passthrough>(), 72);
        assert_eq!((NVME_IOCTL_ADMIN_CMD >> 16) & 0x3fff, size_of::<Passthrough>() as u64);
        assert_eq!(std::mem::offset_of!(Passthrough, cdw10), 40);
    }

    #[test]
    fn a_file_that_is_no_controller_is_an_error() {
        let admin = Admin { file: File::open("/dev/null").unwrap() };
        let error = admin.identify_controller().unwrap_err();
        assert!(matches!(error, CommandError::Io { command: "Identify", .. }), "{error}");
    }

    #[test]
    fn says_what_a_status_means() {
        let refused = CommandError::Refused { command: "Format NVM", status: 0x001 };
        assert!(refused.is_unsupported());
        assert_eq!(
            refused.to_string(),
            "NVMe command Format NVM is refused with status 0x1 (invalid opcode: not supported)"
        );
    }
}
