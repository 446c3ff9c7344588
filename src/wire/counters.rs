//! Layout of the file that a VM's counters are in: the vmm counts through a mapping, the daemon reads it at any time,
//! also after the vmm's end. Key function: [`decode`].
//!
//! ```text
//!   0       words: mark, vCPUs, what the VM has of KVM ([`Held`]); from word 8 on a moment for each [`Phase`] (CLOCK_MONOTONIC, ns; 0: not yet)
//!   1024    names of the devices, 64 bytes each, by PCI slot
//!   4096    8 words for each vCPU: its exits, by [`Reason`]
//!   12288   256 words for each device, by PCI slot: faults, queues; from word 8 on 30 words for each queue:
//!           operations, bytes, errors, sum of latencies in ns, requests by latency (26 buckets, powers of two of 1 µs)
//!   77824   32 words of the balloon, see [`BalloonWord`]; from word 16 on the guest's statistics, by [`Statistic`]
//! ```
//! All words are u64, little-endian. A word is written by one thread; a reader sees each whole, and no two of one moment.
//! What is read was written by a process that a guest may have taken over: nothing here is believed but that it is numbers.

use std::time::Duration;

/// Length of the file in bytes.
pub const FILE_LEN: usize = BALLOON_AT + BALLOON_LEN;
/// What the first word is: of this layout.
pub const MARK: u64 = 0x0001_5354_4154_534f;
/// Buckets of a latency histogram: bucket n counts those below 2^n µs that no earlier one counts, the last one the rest.
pub const BUCKETS: usize = 26;
/// Queues of one device that are counted apart; those beyond are counted with the last.
pub const QUEUES: usize = 8;

const WORD: usize = 8;
const NAMES_AT: usize = 1024;
const NAME_LEN: usize = 64;
const VCPUS_AT: usize = 4096;
const VCPUS: usize = 128;
const VCPU_LEN: usize = 8 * WORD;
const DEVICES_AT: usize = 12288;
const DEVICES: usize = 32;
/// Bytes of the words of one device.
pub const DEVICE_LEN: usize = 256 * WORD;
const BALLOON_AT: usize = DEVICES_AT + DEVICES * DEVICE_LEN;
const BALLOON_LEN: usize = 32 * WORD;
const STATISTICS_AT: usize = BALLOON_AT + 16 * WORD;
const QUEUES_AT: usize = 8 * WORD;
const QUEUE_LEN: usize = (4 + BUCKETS) * WORD;

/// A moment on the way to a guest that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The daemon is about to start the process.
    Spawned,
    /// The vmm's first instructions, the jail behind it.
    Started,
    /// The launch has come.
    Received,
    /// Machine and devices are built.
    Built,
    /// All vCPUs are let go.
    Running,
    /// The guest's first byte on the console.
    Console,
}

impl Phase {
    /// All, in order.
    pub const ALL: [Self; 6] =
        [Self::Spawned, Self::Started, Self::Received, Self::Built, Self::Running, Self::Console];

    /// Its name for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Spawned => "spawned",
            Self::Started => "started",
            Self::Received => "received",
            Self::Built => "built",
            Self::Running => "running",
            Self::Console => "console",
        }
    }

    /// Offset of its word.
    pub fn at(self) -> usize {
        (8 + self as usize) * WORD
    }
}

/// What a VM has of KVM now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Memory slots (`KVM_SET_USER_MEMORY_REGION`).
    MemorySlots,
    /// Eventfds that raise an interrupt (`KVM_IRQFD`), each with its route.
    Irqfds,
    /// Eventfds that a guest's write signals (`KVM_IOEVENTFD`).
    Ioeventfds,
}

impl Held {
    /// All, in the order of their words.
    pub const ALL: [Self; 3] = [Self::MemorySlots, Self::Irqfds, Self::Ioeventfds];

    /// Its name for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::MemorySlots => "memory_slots",
            Self::Irqfds => "irqfds",
            Self::Ioeventfds => "ioeventfds",
        }
    }

    /// Offset of its word.
    pub fn at(self) -> usize {
        (2 + self as usize) * WORD
    }
}

/// Why a vCPU came out of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It read a port.
    PortRead,
    /// It wrote a port.
    PortWrite,
    /// It read a register in memory.
    MmioRead,
    /// It wrote one.
    MmioWrite,
    /// Of these, writes for which it had to wait for the control thread.
    Effect,
    /// A signal, or nothing to do.
    Interrupted,
    /// Everything else: it ends the run.
    Other,
}

impl Reason {
    /// All, in the order of their words.
    pub const ALL: [Self; 7] = [
        Self::PortRead,
        Self::PortWrite,
        Self::MmioRead,
        Self::MmioWrite,
        Self::Effect,
        Self::Interrupted,
        Self::Other,
    ];

    /// Its name for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::PortRead => "port_read",
            Self::PortWrite => "port_write",
            Self::MmioRead => "mmio_read",
            Self::MmioWrite => "mmio_write",
            Self::Effect => "effect",
            Self::Interrupted => "interrupted",
            Self::Other => "other",
        }
    }
}

/// What a balloon counts, in bytes where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BalloonWord {
    /// Not 0: the VM has one.
    IsThere,
    /// What the guest is to give up.
    Target,
    /// What it has given up.
    Held,
    /// What the host got back of that, all in all.
    Removed,
    /// What the host got back of pages that were reported as free, all in all.
    Reported,
    /// What of both was left where it is, all in all.
    Kept,
    /// When the guest's statistics were told (CLOCK_MONOTONIC, ns).
    ToldAt,
    /// Which of them: a bit for each, by its number.
    Told,
}

impl BalloonWord {
    /// Offset of its word.
    pub fn at(self) -> usize {
        BALLOON_AT + self as usize * WORD
    }
}

/// What a guest tells of its memory: tags of VIRTIO 1.3 §5.5.6.4, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistic {
    /// Bytes that were swapped in.
    SwapIn,
    /// Bytes that were swapped out.
    SwapOut,
    /// Faults that had to wait for a disk.
    MajorFaults,
    /// Faults that had not.
    MinorFaults,
    /// Bytes that nothing is in.
    Free,
    /// All bytes, without those in the balloon.
    Total,
    /// Bytes that programs could have without swapping.
    Available,
    /// Bytes that a cache of files holds.
    DiskCaches,
    /// Huge pages that were allocated.
    HugePages,
    /// Huge pages that could not be.
    HugePageFailures,
}

impl Statistic {
    /// All, in the order of their tags.
    pub const ALL: [Self; 10] = [
        Self::SwapIn,
        Self::SwapOut,
        Self::MajorFaults,
        Self::MinorFaults,
        Self::Free,
        Self::Total,
        Self::Available,
        Self::DiskCaches,
        Self::HugePages,
        Self::HugePageFailures,
    ];

    /// Its name for people and programs, with its unit.
    pub fn name(self) -> &'static str {
        match self {
            Self::SwapIn => "swap_in_bytes",
            Self::SwapOut => "swap_out_bytes",
            Self::MajorFaults => "major_faults",
            Self::MinorFaults => "minor_faults",
            Self::Free => "free_bytes",
            Self::Total => "total_bytes",
            Self::Available => "available_bytes",
            Self::DiskCaches => "disk_caches_bytes",
            Self::HugePages => "huge_pages",
            Self::HugePageFailures => "huge_page_failures",
        }
    }

    /// Offset of its word.
    pub fn at(self) -> usize {
        STATISTICS_AT + self as usize * WORD
    }
}

/// Offset of the number of vCPUs.
pub const VCPU_COUNT_AT: usize = WORD;

/// Offset of vCPU `index`'s word for `reason`. `None` beyond the last.
pub fn exit_at(index: usize, reason: Reason) -> Option<usize> {
    (index < VCPUS).then_some(VCPUS_AT + index * VCPU_LEN + reason as usize * WORD)
}

/// Offset of the name of the device in `slot`, and its length. `None` beyond the last.
pub fn name_at(slot: u8) -> Option<(usize, usize)> {
    (usize::from(slot) < DEVICES).then_some((NAMES_AT + usize::from(slot) * NAME_LEN, NAME_LEN))
}

/// Offset of the faults of the device in `slot`; its number of queues stands behind it. `None` beyond the last.
pub fn faults_at(slot: u8) -> Option<usize> {
    (usize::from(slot) < DEVICES).then_some(DEVICES_AT + usize::from(slot) * DEVICE_LEN)
}

/// Offset of the words of a queue: operations, bytes, errors, sum of latencies, then the buckets.
pub fn queue_at(slot: u8, queue: usize) -> Option<usize> {
    Some(faults_at(slot)? + QUEUES_AT + queue.min(QUEUES - 1) * QUEUE_LEN)
}

/// What a VM has done, as its vmm counted it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Moments that were reached, in the order of [`Phase::ALL`], from the first one on.
    pub phases: Vec<(Phase, Duration)>,
    /// What it has of KVM, or had last, in the order of [`Held::ALL`]. `None`: its vmm does not count that.
    pub held: Option<[u64; Held::ALL.len()]>,
    /// Exits of each vCPU, in the order of [`Reason::ALL`].
    pub exits: Vec<[u64; Reason::ALL.len()]>,
    /// Devices, by slot.
    pub devices: Vec<DeviceCounters>,
    /// Its balloon, if it has one.
    pub balloon: Option<BalloonCounters>,
}

/// What a balloon holds, in bytes, and what the guest tells through it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BalloonCounters {
    /// What the guest is to give up.
    pub target: u64,
    /// What it has given up.
    pub held: u64,
    /// What the host got back of that, all in all.
    pub removed: u64,
    /// The same of pages that were reported as free.
    pub reported: u64,
    /// What was left where it is.
    pub kept: u64,
    /// When the guest told its statistics (CLOCK_MONOTONIC). `None`: never.
    pub told_at: Option<Duration>,
    /// Those that it told, in the order of [`Statistic::ALL`].
    pub statistics: Vec<(Statistic, u64)>,
}

/// What a device has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Its name within the VM: a DNS label.
    pub name: String,
    /// Faults of guest and host that it met.
    pub faults: u64,
    /// Its queues.
    pub queues: Vec<QueueCounters>,
}

/// What went through a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Requests or frames that were given back.
    pub operations: u64,
    /// Their bytes in both directions, headers included.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// All latencies together, in ns.
    pub latency_sum_ns: u64,
    /// Operations by latency, from the device's taking a request to its giving it back.
    pub latency: [u64; BUCKETS],
}

/// Reads the file. `None` if it is none of this layout; one that is shorter ends with what it has.
pub fn decode(file: &[u8]) -> Option<Counters> {
    let word = |at: usize| -> u64 {
        file.get(at..at + WORD).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
    };
    if word(0) != MARK {
        return None;
    }
    let moments = Phase::ALL.map(|phase| (phase, word(phase.at())));
    let first = moments.iter().map(|(_, ns)| *ns).find(|&ns| ns > 0).unwrap_or(0);
    let reached = moments.into_iter().filter(|(_, ns)| *ns > 0);
    let count = usize::try_from(word(VCPU_COUNT_AT)).unwrap_or(usize::MAX).min(VCPUS);
    let exits = |index| Reason::ALL.map(|reason| exit_at(index, reason).map_or(0, word));
    Some(Counters {
        phases: reached.map(|(phase, ns)| (phase, Duration::from_nanos(ns.saturating_sub(first)))).collect(),
        // A VM has memory.
        held: Some(Held::ALL.map(|held| word(held.at()))).filter(|[slots, ..]| *slots > 0),
        exits: (0..count).map(exits).collect(),
        devices: (0..DEVICES as u8).filter_map(|slot| device(file, slot, &word)).collect(),
        balloon: balloon(&word),
    })
}

fn balloon(word: &impl Fn(usize) -> u64) -> Option<BalloonCounters> {
    let value = |of: BalloonWord| word(of.at());
    if value(BalloonWord::IsThere) == 0 {
        return None;
    }
    let told = value(BalloonWord::Told);
    let is_told = |statistic: &Statistic| told & 1 << *statistic as u64 != 0;
    Some(BalloonCounters {
        target: value(BalloonWord::Target),
        held: value(BalloonWord::Held),
        removed: value(BalloonWord::Removed),
        reported: value(BalloonWord::Reported),
        kept: value(BalloonWord::Kept),
        told_at: Some(value(BalloonWord::ToldAt)).filter(|&ns| ns > 0).map(Duration::from_nanos),
        statistics: Statistic::ALL.into_iter().filter(is_told).map(|one| (one, word(one.at()))).collect(),
    })
}

fn device(file: &[u8], slot: u8, word: &impl Fn(usize) -> u64) -> Option<DeviceCounters> {
    let (at, len) = name_at(slot)?;
    let name: Vec<u8> = file.get(at..at + len)?.iter().copied().take_while(|&byte| byte != 0).collect();
    let is_label = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    if name.is_empty() || !name.iter().all(is_label) {
        return None;
    }
    let faults_at = faults_at(slot)?;
    let queues = usize::try_from(word(faults_at + WORD)).unwrap_or(usize::MAX).min(QUEUES);
    let queue = |number| -> Option<QueueCounters> {
        let at = queue_at(slot, number)?;
        let mut latency = [0; BUCKETS];
        for (index, bucket) in latency.iter_mut().enumerate() {
            *bucket = word(at + (4 + index) * WORD);
        }
        Some(QueueCounters {
            operations: word(at),
            bytes: word(at + WORD),
            errors: word(at + 2 * WORD),
            latency_sum_ns: word(at + 3 * WORD),
            latency,
        })
    };
    Some(DeviceCounters {
        name: String::from_utf8_lossy(&name).into_owned(),
        faults: word(faults_at),
        queues: (0..queues).filter_map(queue).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(file: &mut [u8], at: usize, value: u64) {
        file[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    #[test]
    fn reads_what_stands_where_it_says() {
        let mut file = vec![0; FILE_LEN];
        assert_eq!(decode(&file), None, "of nobody yet");
        put(&mut file, 0, MARK);
        put(&mut file, VCPU_COUNT_AT, 2);
        put(&mut file, Phase::Started.at(), 1_000);
        put(&mut file, Phase::Running.at(), 4_000);
        put(&mut file, exit_at(1, Reason::MmioWrite).unwrap(), 7);
        let (name, _) = name_at(3).unwrap();
        file[name..name + 4].copy_from_slice(b"root");
        put(&mut file, faults_at(3).unwrap(), 1);
        put(&mut file, faults_at(3).unwrap() + 8, 1);
        let queue = queue_at(3, 0).unwrap();
        put(&mut file, queue, 5);
        put(&mut file, queue + (4 + BUCKETS - 1) * 8, 2);
        let counters = decode(&file).unwrap();
        let phases = [(Phase::Started, Duration::ZERO), (Phase::Running, Duration::from_nanos(3_000))];
        assert_eq!(counters.phases, phases);
        assert_eq!((counters.exits.len(), counters.exits[1][Reason::MmioWrite as usize]), (2, 7));
        let [root] = counters.devices.as_slice() else { panic!("{:?}", counters.devices) };
        assert_eq!((root.name.as_str(), root.faults, root.queues.len()), ("root", 1, 1));
        assert_eq!((root.queues[0].operations, root.queues[0].latency[BUCKETS - 1]), (5, 2));
        assert_eq!(counters.balloon, None);
        put(&mut file, BalloonWord::IsThere.at(), 1);
        put(&mut file, BalloonWord::Held.at(), 4096);
        put(&mut file, BalloonWord::Told.at(), 1 << 4 | 1 << 63);
        put(&mut file, Statistic::Free.at(), 99);
        let balloon = decode(&file).unwrap().balloon.unwrap();
        assert_eq!((balloon.held, balloon.told_at), (4096, None));
        assert_eq!(balloon.statistics, [(Statistic::Free, 99)]);
        file[name] = b'"';
        assert!(decode(&file).unwrap().devices.is_empty(), "a name that is none");
    }

    #[test]
    fn no_two_words_share_a_place() {
        let mut places = vec![0, VCPU_COUNT_AT];
        places.extend(Phase::ALL.map(Phase::at));
        for index in 0..VCPUS {
            places.extend(Reason::ALL.map(|reason| exit_at(index, reason).unwrap()));
        }
        places.extend(Statistic::ALL.map(Statistic::at));
        places.extend((0..=BalloonWord::Told as usize).map(|word| BALLOON_AT + word * WORD));
        for slot in 0..DEVICES as u8 {
            places.extend([faults_at(slot).unwrap(), faults_at(slot).unwrap() + 8]);
            places.push(name_at(slot).unwrap().0);
            for queue in 0..QUEUES {
                places.extend((0..4 + BUCKETS).map(|word| queue_at(slot, queue).unwrap() + word * 8));
            }
        }
        let count = places.len();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), count);
        assert!(places.iter().all(|at| at + 8 <= FILE_LEN && at % 8 == 0));
        assert!(exit_at(VCPUS, Reason::Other).is_none() && faults_at(32).is_none());
        assert_eq!(queue_at(1, 7), queue_at(1, 99), "the last takes those beyond");
    }

    proptest! {
        #[test]
        fn never_panics_on_foreign_bytes(
            mut file in proptest::collection::vec(any::<u8>(), 0..20_000),
            is_marked in any::<bool>(),
        ) {
            if is_marked && file.len() >= 8 {
                file[..8].copy_from_slice(&MARK.to_le_bytes());
            }
            if let Some(counters) = decode(&file) {
                prop_assert!(counters.exits.len() <= 128 && counters.devices.len() <= 32);
            }
        }
    }
}
