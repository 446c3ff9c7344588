//! What a jail depends on of the VM in it. Key type: [`JailFacts`].
//!
//! `daemon/supervisor` derives it from a launch, sizes the cgroup by it and passes it to the role `jail` as arguments;
//! `jail/plan` turns it into steps.

use std::str::FromStr;

use super::{DeviceKind, Launch, MAX_VSOCK_CONNECTIONS, SPARE_DEVICES, ServedBy};

/// Threads beside the guest's and the devices': the control thread, and KVM's own for the VM (`vhost_task`).
const OWN_THREADS: u64 = 2;
/// Kernel workers that io_uring may start for one disk (bounded by its queue, `io-wq`).
const WORKERS_PER_DISK: u64 = 64;
/// Descriptors beside those of devices and vCPUs: control, console with its connections, epoll, log, KVM, images.
const OWN_DESCRIPTORS: u64 = 64;
/// What a vmm may write into its log: far more than it ever does.
const LOG_BYTES: u64 = 64 << 20;
/// Descriptors of one device: its own, queues, vectors, worker.
const DESCRIPTORS_PER_DEVICE: u64 = 32;
/// Memory beside the guest's: the program, its heap and stacks, KVM's own structures.
const OWN_MEMORY_BYTES: u64 = 64 << 20;
/// The same for each vCPU or device.
const MEMORY_PER_THREAD_BYTES: u64 = 4 << 20;
/// The same for each connection of a program of the host: what the guest sent and the program has not read, in the vmm's
/// own buffer and in the kernel's.
const MEMORY_PER_CONNECTION_BYTES: u64 = 64 << 10;
/// Guest memory divided by this is what its page tables take at most: 8 bytes per 4 KiB page, twice (the process' and
/// the guest's second level), and as much again.
const PAGE_TABLES_SHARE: u64 = 128;
/// The same for the tables of an IOMMU, by device: 8 bytes per 4 KiB page.
const IOMMU_TABLES_SHARE: u64 = 512;
/// Memory that may be locked without passthrough, in bytes: nothing is.
const LOCKED_BYTES: u64 = 0;
/// Memory locked beside the guest's when devices are passed through, in bytes.
const LOCKED_SLACK_BYTES: u64 = 64 << 20;

/// What limits and identity of a jail follow from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JailFacts {
    /// User and group id, of this VM alone; not 0.
    pub uid: u32,
    /// vCPUs, at least 1.
    pub vcpus: u32,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Devices, those below included.
    pub devices: u32,
    /// Devices with an I/O ring.
    pub disks: u32,
    /// Devices of the host that the guest drives itself.
    pub passed_through: u32,
    /// Pairs of queues that the host's kernel serves.
    pub kernel_served: u32,
    /// Connections of the host's programs at most.
    pub connections: u32,
    /// Length of the longest file that is written, in bytes.
    pub longest_file_bytes: u64,
}

impl JailFacts {
    /// The facts of a launch that runs as `uid`; `longest_file_bytes` is of its disk images.
    pub fn new(launch: &Launch, uid: u32, longest_file_bytes: u64) -> Self {
        let count = |is_counted: fn(&DeviceKind) -> bool| {
            // At most 31 slots.
            launch.devices.iter().filter(|device| is_counted(&device.kind)).count() as u32
        };
        let has_vsock = launch.devices.iter().any(|device| matches!(device.kind, DeviceKind::Vsock { .. }));
        Self {
            uid,
            vcpus: launch.vcpus,
            memory_bytes: launch.memory_bytes,
            // Those that may still come are disks in the worst case.
            devices: count(|_| true) + u32::from(SPARE_DEVICES),
            disks: count(|kind| matches!(kind, DeviceKind::Block { .. })) + u32::from(SPARE_DEVICES),
            passed_through: count(|kind| matches!(kind, DeviceKind::Vfio { .. })),
            kernel_served: launch.devices.iter().map(|device| kernel_served(&device.kind)).sum(),
            connections: if has_vsock { MAX_VSOCK_CONNECTIONS } else { 0 },
            longest_file_bytes,
        }
    }

    /// Threads at most, kernel workers of its rings and NICs included: one for each pair of queues that the kernel serves.
    /// A NIC that comes later has fewer than the disk that is counted for it.
    pub fn threads(&self) -> u64 {
        let own = OWN_THREADS + u64::from(self.vcpus) + u64::from(self.devices);
        own + WORKERS_PER_DISK * u64::from(self.disks) + u64::from(self.kernel_served)
    }

    /// Descriptors at most.
    pub fn descriptors(&self) -> u64 {
        let own = OWN_DESCRIPTORS + u64::from(self.vcpus) + DESCRIPTORS_PER_DEVICE * u64::from(self.devices);
        own + u64::from(self.connections)
    }

    /// Bytes of any file at most: its log, or a disk.
    pub fn file_bytes(&self) -> u64 {
        LOG_BYTES.max(self.longest_file_bytes)
    }

    /// Bytes of memory that may be locked at first.
    pub fn locked_bytes(&self) -> u64 {
        locked_bytes(self.memory_bytes, self.passed_through)
    }

    /// Bytes of memory that the process may take, the guest's included.
    pub fn resident_bytes(&self) -> u64 {
        let threads = u64::from(self.vcpus) + u64::from(self.devices);
        let connections = u64::from(self.connections) * MEMORY_PER_CONNECTION_BYTES;
        let own = OWN_MEMORY_BYTES + threads * MEMORY_PER_THREAD_BYTES + connections;
        // Those that may still come are devices of the host in the worst case.
        let passed_through = u64::from(self.passed_through) + u64::from(SPARE_DEVICES);
        let tables = self.memory_bytes / PAGE_TABLES_SHARE + self.memory_bytes / IOMMU_TABLES_SHARE * passed_through;
        let overhead = own + tables;
        self.memory_bytes.saturating_add(overhead)
    }

    /// As arguments of `ostler-vmm jail`.
    pub fn to_args(&self) -> [String; 9] {
        let Self { uid, vcpus, memory_bytes, devices, disks, passed_through, kernel_served, .. } = *self;
        let Self { connections, longest_file_bytes, .. } = *self;
        [
            format!("uid={uid}"),
            format!("vcpus={vcpus}"),
            format!("memory={memory_bytes}"),
            format!("devices={devices}"),
            format!("disks={disks}"),
            format!("passed-through={passed_through}"),
            format!("kernel-served={kernel_served}"),
            format!("connections={connections}"),
            format!("longest-file={longest_file_bytes}"),
        ]
    }

    /// Reads the arguments, in any order; each must be there once, and no other.
    pub fn from_args(args: impl IntoIterator<Item = String>) -> Result<Self, JailArgsError> {
        let mut found = std::collections::BTreeMap::new();
        for arg in args {
            let Some((key, value)) = arg.split_once('=') else { return Err(JailArgsError(arg)) };
            if found.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(JailArgsError(arg));
            }
        }
        let facts = Self {
            uid: take(&mut found, "uid")?,
            vcpus: take(&mut found, "vcpus")?,
            memory_bytes: take(&mut found, "memory")?,
            devices: take(&mut found, "devices")?,
            disks: take(&mut found, "disks")?,
            passed_through: take(&mut found, "passed-through")?,
            kernel_served: take(&mut found, "kernel-served")?,
            connections: take(&mut found, "connections")?,
            longest_file_bytes: take(&mut found, "longest-file")?,
        };
        match found.pop_first() {
            Some((key, _)) => Err(JailArgsError(key)),
            None if facts.uid == 0 => Err(JailArgsError("uid".to_owned())),
            None => Ok(facts),
        }
    }
}

/// Pairs of queues of this device that the kernel serves.
fn kernel_served(kind: &DeviceKind) -> u32 {
    match *kind {
        DeviceKind::Net { queues, served_by: ServedBy::Kernel, .. } => queues.into(),
        _ => 0,
    }
}

/// Bytes of memory that a VM with so many devices of the host may lock: DMA mappings lock the whole guest, once for each
/// device's own address space.
pub fn locked_bytes(memory_bytes: u64, passed_through: u32) -> u64 {
    match passed_through {
        0 => LOCKED_BYTES,
        count => memory_bytes.saturating_mul(count.into()).saturating_add(LOCKED_SLACK_BYTES),
    }
}

/// An argument of the role is missing, unknown, double or no number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad or missing argument {0:?}; `ostler-vmm jail` is started by `ostler serve`")]
pub struct JailArgsError(String);

fn take<T: FromStr>(found: &mut std::collections::BTreeMap<String, String>, key: &str) -> Result<T, JailArgsError> {
    let bad = || JailArgsError(key.to_owned());
    found.remove(key).ok_or_else(bad)?.parse().map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn facts() -> JailFacts {
        JailFacts {
            uid: 0x4f00_0001,
            vcpus: 2,
            memory_bytes: 1 << 30,
            devices: 3,
            disks: 1,
            passed_through: 0,
            kernel_served: 0,
            connections: 0,
            longest_file_bytes: 5 << 30,
        }
    }

    #[test]
    fn arguments_round_trip_and_nothing_else_is_taken() {
        let facts = facts();
        assert_eq!(JailFacts::from_args(facts.to_args()), Ok(facts));
        let mut lacking = facts.to_args().to_vec();
        lacking.pop();
        assert!(JailFacts::from_args(lacking).unwrap_err().to_string().contains("longest-file"));
        let more = facts.to_args().into_iter().chain(["shell=1".to_owned()]);
        assert!(JailFacts::from_args(more).unwrap_err().to_string().contains("shell"));
        let twice = facts.to_args().into_iter().chain(["uid=7".to_owned()]);
        assert!(JailFacts::from_args(twice).is_err());
        assert!(JailFacts::from_args(JailFacts { uid: 0, ..facts }.to_args()).is_err(), "root is no jail's user");
    }

    #[test]
    fn connections_take_a_descriptor_and_bounded_memory_each() {
        let many = JailFacts { connections: 1000, ..facts() };
        assert_eq!(many.descriptors(), facts().descriptors() + 1000);
        assert_eq!(many.resident_bytes(), facts().resident_bytes() + 1000 * (64 << 10));
    }

    #[test]
    fn each_pair_of_queues_that_the_kernel_serves_has_a_thread() {
        let nic = |served_by| DeviceKind::Net {
            mac: crate::model::MacAddr([2, 0, 0, 0, 0, 1]),
            limits: Default::default(),
            queues: 4,
            served_by,
        };
        assert_eq!((kernel_served(&nic(ServedBy::Kernel)), kernel_served(&nic(ServedBy::Vmm))), (4, 0));
        assert_eq!(JailFacts { kernel_served: 4, ..facts() }.threads(), facts().threads() + 4);
    }

    #[test]
    fn only_passthrough_may_lock_memory() {
        assert_eq!(facts().locked_bytes(), 0);
        let two = JailFacts { passed_through: 2, ..facts() };
        assert_eq!(two.locked_bytes(), (2 << 30) + (64 << 20));
        let absurd = JailFacts { passed_through: 9, memory_bytes: u64::MAX, ..facts() };
        assert_eq!(absurd.locked_bytes(), u64::MAX);
    }

    #[test]
    fn the_file_limit_holds_guest_memory_and_the_longest_disk() {
        assert_eq!(facts().file_bytes(), 5 << 30);
        assert_eq!(JailFacts { longest_file_bytes: 0, ..facts() }.file_bytes(), LOG_BYTES);
    }

    proptest! {
        #[test]
        fn never_panics_on_foreign_arguments(args in proptest::collection::vec("\\PC{0,12}", 0..9)) {
            let _ = JailFacts::from_args(args);
        }
    }
}
