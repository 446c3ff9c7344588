//! What a VM shall be. Key type: [`VmSpec`], complete and within bounds once constructed; its devices are in `device`.
//!
//! `api::convert` builds these from requests; the store keeps them; `daemon/supervisor` plans a launch from them.

use std::collections::HashSet;

use super::resources::check_memory as check_pages;
use super::{
    BalloonSpec, ConsoleSpec, CpuSpec, DeviceId, DeviceSpec, DiskSpec, ImagePath, Labels, MAX_DISK_QUEUES,
    MAX_NIC_QUEUES, MemorySpec, NicBackend, NicSpec, NvmeSpec, RateLimits, ServedBy, TapSpec, Topology, VsockSpec,
};

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

/// Descriptors that all devices together may need of the host: a launch is one packet, which carries 64 at most
/// (`wire::MAX_DESCRIPTORS`), some of them for the VM itself.
const MAX_DEVICE_DESCRIPTORS: usize = 56;

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

/// A complete, valid VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    vcpus: u32,
    memory_mib: u64,
    boot: BootSpec,
    disks: Vec<DiskSpec>,
    nics: Vec<NicSpec>,
    memory: MemorySpec,
    cpus: CpuSpec,
    nvmes: Vec<NvmeSpec>,
    vsock: Option<VsockSpec>,
    balloon: Option<BalloonSpec>,
    console: ConsoleSpec,
    labels: Labels,
}

impl VmSpec {
    /// Disks, NICs and NVMe devices together: bus 0 has 32 slots, of which the host bridge and the rng take two.
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
        for (index, disk) in disks.iter().enumerate() {
            if !(1..=MAX_DISK_QUEUES).contains(&disk.queues) {
                let reason = format!("{} queues, 1 to {MAX_DISK_QUEUES} are allowed", disk.queues);
                return Err(SpecError::new(format!("spec.disks[{index}].queues"), reason));
            }
        }
        for (index, nic) in nics.iter().enumerate() {
            check_tap(nic.tap().unwrap_or_default())
                .map_err(|(field, reason)| SpecError::new(format!("spec.nics[{index}].{field}"), reason))?;
        }
        let descriptors = descriptors(&disks, &nics);
        if descriptors > MAX_DEVICE_DESCRIPTORS {
            let reason =
                format!("{descriptors} queues of NICs and disks, at most {MAX_DEVICE_DESCRIPTORS} are allowed");
            return Err(SpecError::new("spec.nics", reason));
        }
        let mut seen = HashSet::new();
        let named = disks.iter().map(|d| ("spec.disks", &d.id)).chain(nics.iter().map(|n| ("spec.nics", &n.id)));
        for (field, id) in named {
            if id.as_str() == "rng" || !seen.insert(id) {
                return Err(SpecError::new(field, format!("device id {id:?} is taken", id = id.as_str())));
            }
        }
        Ok(Self {
            vcpus,
            memory_mib,
            boot,
            disks,
            nics,
            memory: MemorySpec::default(),
            cpus: CpuSpec::default(),
            nvmes: Vec::new(),
            vsock: None,
            balloon: None,
            console: ConsoleSpec::default(),
            labels: Labels::default(),
        })
    }

    /// The same VM with its memory from there.
    pub fn with_memory(mut self, memory: MemorySpec) -> Result<Self, SpecError> {
        check_pages(&memory, self.memory_bytes())?;
        self.memory = memory;
        Ok(self)
    }

    /// The same VM with its vCPUs like that. Their number is that of the topology, if there is one.
    pub fn with_cpus(mut self, cpus: CpuSpec) -> Result<Self, SpecError> {
        if let Some(topology) = cpus.topology {
            Topology::new(topology.sockets(), topology.cores(), topology.threads(), self.vcpus)?;
        }
        self.cpus = cpus;
        Ok(self)
    }

    /// The same VM with these NVMe devices.
    pub fn with_nvmes(mut self, nvmes: Vec<NvmeSpec>) -> Result<Self, SpecError> {
        let devices = self.disks.len() + self.nics.len() + nvmes.len();
        if devices > Self::MAX_DEVICES {
            let most = Self::MAX_DEVICES;
            let reason = format!("{devices} disks, NICs and NVMe devices, at most {most} are allowed");
            return Err(SpecError::new("spec.nvme", reason));
        }
        let others = self.disks.iter().map(|disk| &disk.id).chain(self.nics.iter().map(|nic| &nic.id));
        let mut seen: HashSet<_> = others.collect();
        for (index, nvme) in nvmes.iter().enumerate() {
            if nvme.id.as_str() == "rng" || !seen.insert(&nvme.id) {
                let reason = format!("device id {:?} is taken", nvme.id.as_str());
                return Err(SpecError::new(format!("spec.nvme[{index}].id"), reason));
            }
            let field = || format!("spec.nvme[{index}].min_bytes");
            nvme.wish.check().map_err(|reason| SpecError::new(field(), reason))?;
        }
        self.nvmes = nvmes;
        Ok(self)
    }

    /// The same VM with that socket device, or with none.
    pub fn with_vsock(mut self, vsock: Option<VsockSpec>) -> Result<Self, SpecError> {
        self.vsock = None;
        if let Some(vsock) = &vsock {
            if self.device_ids().any(|id| id == vsock.id()) {
                let reason = format!("device id {:?} is taken: that is the socket device's", vsock.id().as_str());
                return Err(SpecError::new("spec.vsock", reason));
            }
            if descriptors(&self.disks, &self.nics) >= MAX_DEVICE_DESCRIPTORS {
                let reason = format!(
                    "it needs one of {MAX_DEVICE_DESCRIPTORS} queues of devices, and NICs and disks have them all"
                );
                return Err(SpecError::new("spec.vsock", reason));
            }
        }
        self.vsock = vsock;
        Ok(self)
    }

    /// The same VM with that balloon, or with none. What was reserved for good cannot be given back: with such pages there
    /// is none.
    pub fn with_balloon(mut self, balloon: Option<BalloonSpec>) -> Result<Self, SpecError> {
        self.balloon = None;
        if let Some(balloon) = &balloon {
            if self.device_ids().any(|id| id == balloon.id()) {
                let reason = format!("device id {:?} is taken: that is the balloon's", balloon.id().as_str());
                return Err(SpecError::new("spec.memory.balloon", reason));
            }
            if self.memory.pages.is_huge() {
                let reason =
                    "memory in reserved pages cannot be given back: none might be left when the guest wants it";
                return Err(SpecError::new("spec.memory.balloon", reason));
            }
        }
        self.balloon = balloon;
        Ok(self)
    }

    /// The same VM with that console.
    pub fn with_console(mut self, console: ConsoleSpec) -> Result<Self, SpecError> {
        self.console = ConsoleSpec::default();
        if let Some(id) = console.id()
            && self.device_ids().any(|taken| taken == id)
        {
            let reason = format!("device id {:?} is taken: that is the virtio console's", id.as_str());
            return Err(SpecError::new("spec.console", reason));
        }
        self.console = console;
        Ok(self)
    }

    /// The same VM with these labels, in the place of those it has.
    pub fn with_labels(self, labels: Labels) -> Self {
        Self { labels, ..self }
    }

    /// The same VM whose balloon leaves the guest so much; `None`: all. One without a balloon stays as it is.
    pub fn with_kept(self, keep_mib: Option<u64>) -> Result<Self, SpecError> {
        if self.balloon.is_none() {
            return Ok(self);
        }
        let balloon = BalloonSpec::new("keep_mib", keep_mib, self.memory_mib)?;
        self.with_balloon(Some(balloon))
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

    /// Where its memory comes from.
    pub fn memory(&self) -> &MemorySpec {
        &self.memory
    }

    /// How its vCPUs look, and where they run.
    pub fn cpus(&self) -> &CpuSpec {
        &self.cpus
    }

    /// What is booted.
    pub fn boot(&self) -> &BootSpec {
        &self.boot
    }

    /// Ids of disks, NICs, NVMe devices, the socket device, the balloon and a virtio console, in this order.
    pub fn device_ids(&self) -> impl Iterator<Item = &DeviceId> {
        let disks = self.disks.iter().map(|disk| &disk.id);
        let passed = self.nvmes.iter().map(|nvme| &nvme.id);
        disks.chain(self.nics.iter().map(|nic| &nic.id)).chain(passed).chain(self.fixed_ids())
    }

    /// Ids of those that stay from the registration to the end.
    fn fixed_ids(&self) -> impl Iterator<Item = &DeviceId> {
        let vsock = self.vsock.iter().map(VsockSpec::id);
        vsock.chain(self.balloon.iter().map(BalloonSpec::id)).chain(self.console.id())
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
            DeviceSpec::Nvme(nvme) => self.nvmes.push(nvme),
        }
        let Self { vcpus, memory_mib, boot, disks, nics, memory, cpus, nvmes, vsock, balloon, console, labels } = self;
        let spec = Self::new(vcpus, memory_mib, boot, disks, nics)?.with_memory(memory)?.with_cpus(cpus)?;
        let spec = spec.with_nvmes(nvmes)?.with_vsock(vsock)?.with_balloon(balloon)?.with_console(console)?;
        Ok(spec.with_labels(labels))
    }

    /// Takes a device out, if the VM has it.
    pub fn remove_device(&mut self, id: &DeviceId) {
        self.disks.retain(|disk| disk.id != *id);
        self.nics.retain(|nic| nic.id != *id);
        self.nvmes.retain(|nvme| nvme.id != *id);
    }

    /// Whether it has just this device.
    pub fn has_device(&self, device: &DeviceSpec) -> bool {
        match device {
            DeviceSpec::Disk(disk) => self.disks.contains(disk),
            DeviceSpec::Nic(nic) => self.nics.contains(nic),
            DeviceSpec::Nvme(nvme) => self.nvmes.contains(nvme),
        }
    }

    /// NVMe devices, in slot order.
    pub fn nvmes(&self) -> &[NvmeSpec] {
        &self.nvmes
    }

    /// The socket device, if it has one.
    pub fn vsock(&self) -> Option<&VsockSpec> {
        self.vsock.as_ref()
    }

    /// The balloon, if it has one.
    pub fn balloon(&self) -> Option<&BalloonSpec> {
        self.balloon.as_ref()
    }

    /// Its console.
    pub fn console(&self) -> ConsoleSpec {
        self.console
    }

    /// What its owner says about it.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// Whether that device is the VM's from its registration to its end.
    pub fn is_fixed(&self, id: &DeviceId) -> bool {
        self.fixed_ids().any(|fixed| fixed == id)
    }

    /// The same VM with another vCPU count (a policy patch). A topology that was asked for does not fit it any more: the
    /// vCPUs are cores of one socket then.
    pub fn with_vcpus(mut self, vcpus: u32) -> Result<Self, SpecError> {
        check_vcpus(vcpus)?;
        if vcpus != self.vcpus {
            self.cpus.topology = None;
        }
        self.vcpus = vcpus;
        Ok(self)
    }

    /// The same VM with other limits of one device. `None` if it has no such disk, nor such a NIC on a tap that the vmm
    /// serves.
    pub fn with_limits(mut self, device: &DeviceId, limits: RateLimits) -> Option<Self> {
        if let Some(disk) = self.disks.iter_mut().find(|disk| disk.id == *device) {
            disk.limits = limits;
            return Some(self);
        }
        let nic = self.nics.iter_mut().find(|nic| nic.id == *device)?;
        let NicBackend::Tap(tap) = &mut nic.backend else { return None };
        if tap.served_by == ServedBy::Kernel {
            return None;
        }
        tap.limits = limits;
        Some(self)
    }

    /// The same VM with another memory size (a policy patch).
    pub fn with_memory_mib(mut self, memory_mib: u64) -> Result<Self, SpecError> {
        check_memory(memory_mib)?;
        self.memory_mib = memory_mib;
        self.balloon = self.balloon.map(|balloon| balloon.within(memory_mib));
        check_pages(&self.memory, self.memory_bytes())?;
        Ok(self)
    }
}

/// Which field of a NIC on a tap is wrong, and what about it.
fn check_tap(tap: TapSpec) -> Result<(), (&'static str, String)> {
    let queues = tap.queues;
    if !(1..=MAX_NIC_QUEUES).contains(&queues) {
        return Err(("queues", format!("{queues} pairs of queues, 1 to {MAX_NIC_QUEUES} are allowed")));
    }
    if tap.served_by == ServedBy::Kernel && tap.limits != RateLimits::default() {
        let reason = "the host's kernel keeps no limits: leave them out, or leave vhost out";
        return Err(("limits", reason.to_owned()));
    }
    Ok(())
}

/// Descriptors that come with these devices: a disk has one, a virtual function its container and itself.
fn descriptors(disks: &[DiskSpec], nics: &[NicSpec]) -> usize {
    let of_nic = |nic: &NicSpec| nic.tap().map_or(2, TapSpec::descriptors);
    disks.len() + nics.iter().map(of_nic).sum::<usize>()
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
    use crate::model::{Rate, VfWish};

    fn boot() -> BootSpec {
        BootSpec {
            kernel: ImagePath::new("spec.boot.kernel", "linux-6.12/vmlinux").unwrap(),
            initrd: None,
            cmdline: String::new(),
        }
    }

    fn nic(id: &str) -> NicSpec {
        NicSpec { id: id.parse().unwrap(), backend: NicBackend::Tap(TapSpec::default()) }
    }

    #[test]
    fn a_balloon_is_the_only_device_of_its_name_in_memory_that_can_be_given_back() {
        let plain = || VmSpec::new(1, 256, boot(), vec![], vec![]).unwrap();
        let balloon = |keep| Some(BalloonSpec::new("f", keep, 256).unwrap());
        let spec = plain().with_balloon(balloon(Some(128))).unwrap();
        let id = spec.balloon().unwrap().id().clone();
        assert!(spec.is_fixed(&id) && spec.device_ids().eq([&id]));
        let taken = VmSpec::new(1, 256, boot(), vec![], vec![nic("balloon")]).unwrap();
        assert_eq!(taken.with_balloon(balloon(None)).unwrap_err().field, "spec.memory.balloon");
        let second = DeviceSpec::Nic(nic("balloon"));
        assert_eq!(spec.clone().with_device(second).unwrap_err().field, "spec.memory.balloon");
        let huge = MemorySpec { pages: crate::model::PageSize::Huge2M, ..MemorySpec::default() };
        let refused = plain().with_memory(huge).unwrap().with_balloon(balloon(None)).unwrap_err();
        assert_eq!(refused.field, "spec.memory.balloon");

        assert_eq!(spec.clone().with_memory_mib(100).unwrap().balloon().unwrap().keep_mib(), None, "less than it kept");
        assert_eq!(spec.clone().with_kept(Some(200)).unwrap().balloon().unwrap().keep_mib(), Some(200));
        assert_eq!(spec.with_kept(Some(257)).unwrap_err().field, "keep_mib");
        assert_eq!(plain().with_kept(Some(200)).unwrap().balloon(), None);
    }

    #[test]
    fn a_virtio_console_is_the_only_device_of_its_name_and_stays() {
        let spec = VmSpec::new(1, 128, boot(), vec![], vec![nic("eth0")]).unwrap();
        assert_eq!((spec.console(), spec.console().kernel_word()), (ConsoleSpec::Serial, "console=ttyS0"));
        let spec = spec.with_console(ConsoleSpec::Virtio).unwrap();
        let id = spec.console().id().unwrap().clone();
        assert!(spec.is_fixed(&id) && spec.device_ids().any(|other| *other == id));
        assert_eq!(spec.console().kernel_word(), "console=hvc0");
        let labels = Labels::new([("team".to_owned(), "web".to_owned())].into()).unwrap();
        let spec = spec.with_labels(labels);
        let more = spec.clone().with_device(DeviceSpec::Nic(nic("eth1"))).unwrap();
        assert_eq!((more.console(), more.labels()), (spec.console(), spec.labels()));
        let second = DeviceSpec::Nic(nic("console"));
        assert_eq!(spec.with_device(second.clone()).unwrap_err().field, "spec.console");
        // With COM1 the name is free.
        let serial = VmSpec::new(1, 128, boot(), vec![], vec![]).unwrap().with_device(second).unwrap();
        assert!(serial.with_console(ConsoleSpec::Serial).is_ok());
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
    fn a_launch_fits_into_one_packet() {
        let nics = |count, queues| -> Vec<_> {
            let tap = NicBackend::Tap(TapSpec { queues, ..TapSpec::default() });
            (0..count).map(|index| NicSpec { backend: tap, ..nic(&format!("eth{index}")) }).collect()
        };
        assert!(VmSpec::new(1, 128, boot(), vec![], nics(14, 4)).is_ok());
        assert_eq!(VmSpec::new(1, 128, boot(), vec![], nics(15, 4)).unwrap_err().field, "spec.nics");
        assert!(VmSpec::new(1, 128, boot(), vec![], nics(24, 1)).is_ok());
        let of_kernel = |count| {
            let tap = TapSpec { queues: 4, served_by: ServedBy::Kernel, ..TapSpec::default() };
            let backend = NicBackend::Tap(tap);
            nics(count, 1).into_iter().map(|nic| NicSpec { backend, ..nic }).collect()
        };
        assert!(VmSpec::new(1, 128, boot(), vec![], of_kernel(7)).is_ok());
        assert_eq!(VmSpec::new(1, 128, boot(), vec![], of_kernel(8)).unwrap_err().field, "spec.nics");
        assert_eq!(VmSpec::new(1, 128, boot(), vec![], nics(1, 5)).unwrap_err().field, "spec.nics[0].queues");
    }

    #[test]
    fn limits_go_to_the_device_that_is_named_and_no_other() {
        let vf = NicSpec { backend: NicBackend::Sriov(VfWish::default()), ..nic("vf") };
        let tap = TapSpec { served_by: ServedBy::Kernel, ..TapSpec::default() };
        let fast = NicSpec { backend: NicBackend::Tap(tap), ..nic("fast") };
        let spec = VmSpec::new(1, 128, boot(), vec![], vec![nic("a"), nic("b"), vf, fast]).unwrap();
        let limits = RateLimits { bandwidth: Rate::new("f", 7, 0).ok(), operations: None };
        let limited = NicSpec { backend: NicBackend::Tap(TapSpec { limits, ..tap }), ..nic("fast") };
        let refused = VmSpec::new(1, 128, boot(), vec![], vec![nic("a"), limited]).unwrap_err();
        assert_eq!(refused.field, "spec.nics[1].limits", "the kernel keeps none");
        let changed = spec.clone().with_limits(&"b".parse().unwrap(), limits).unwrap();
        let of = |index: usize| changed.nics()[index].tap().unwrap().limits;
        assert_eq!((of(0), of(1)), (RateLimits::default(), limits));
        for missing in ["vf", "fast", "rng", "nobody"] {
            assert_eq!(spec.clone().with_limits(&missing.parse().unwrap(), limits), None, "{missing}");
        }
    }

    #[test]
    fn nvme_devices_have_names_of_their_own_and_a_size() {
        use crate::model::NvmeWish;
        let base = || VmSpec::new(1, 128, boot(), vec![], vec![nic("a")]).unwrap();
        let nvme = |id: &str, min_bytes| NvmeSpec { id: id.parse().unwrap(), wish: NvmeWish::Namespace { min_bytes } };
        assert_eq!(base().with_nvmes(vec![nvme("b", 1 << 20), nvme("c", 1 << 40)]).unwrap().nvmes().len(), 2);
        let field = |nvmes| base().with_nvmes(nvmes).unwrap_err().field;
        assert_eq!(field(vec![nvme("b", 1 << 20), nvme("b", 1 << 20)]), "spec.nvme[1].id");
        assert_eq!(field(vec![nvme("a", 1 << 20)]), "spec.nvme[0].id");
        assert_eq!(field(vec![nvme("b", 1)]), "spec.nvme[0].min_bytes");
        assert_eq!(field((0..24).map(|n| nvme(&format!("n{n}"), 1 << 20)).collect()), "spec.nvme");
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
    fn refuses_a_command_line_with_control_characters_or_without_end() {
        let with = |cmdline: &str| {
            VmSpec::new(1, 128, BootSpec { cmdline: cmdline.into(), ..boot() }, vec![], vec![]).is_err()
        };
        assert!(with("quiet\nfoo"));
        assert!(with(&"x".repeat(3000)));
        assert!(!with("quiet root=/dev/vda"));
    }
}
