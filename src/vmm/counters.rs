//! Where a VM's threads count: the page that the daemon passed, by what is counted. Key types: [`Counting`],
//! [`VcpuCounters`]. Devices get theirs as `ports::DeviceCounters`.

use std::fs::File;
use std::io;

use super::ports::{BalloonCounters, DeviceCounters, Holdings, QueueCounters};
use crate::sys::counter_page::{Counter, CounterPage, now_ns};
use crate::wire::counters::{self, BUCKETS, BalloonWord, FILE_LEN, Held, MARK, Phase, QUEUES, Reason, Statistic};

/// Bytes of a number.
const WORD: usize = 8;

/// The page.
#[derive(Debug, Clone, Default)]
pub struct Counting(CounterPage);

impl Counting {
    /// Begins to count in `file`, for a VM of `vcpus` vCPUs; without a file nothing is counted.
    pub fn begin(file: Option<File>, vcpus: u32) -> io::Result<Self> {
        let Some(file) = file else { return Ok(Self::default()) };
        let page = CounterPage::map(file, FILE_LEN)?;
        page.write(counters::VCPU_COUNT_AT, &u64::from(vcpus).to_le_bytes());
        page.write(0, &MARK.to_le_bytes());
        Ok(Self(page))
    }

    /// Now is the moment of `phase`.
    pub fn reach(&self, phase: Phase) {
        self.reached(phase, now_ns());
    }

    /// That moment was the one of `phase`.
    pub fn reached(&self, phase: Phase, ns: u64) {
        self.0.counter(Some(phase.at())).set(ns);
    }

    /// Whose moment is written by somebody else.
    pub fn phase(&self, phase: Phase) -> Counter {
        self.0.counter(Some(phase.at()))
    }

    /// Where it is counted what KVM holds for the VM.
    pub fn holdings(&self) -> Holdings {
        let word = |held: Held| self.0.counter(Some(held.at()));
        Holdings {
            memory_slots: word(Held::MemorySlots),
            irqfds: word(Held::Irqfds),
            ioeventfds: word(Held::Ioeventfds),
        }
    }

    /// Where the exits of vCPU `index` are counted.
    pub fn vcpu(&self, index: usize) -> VcpuCounters {
        VcpuCounters(Reason::ALL.map(|reason| self.0.counter(counters::exit_at(index, reason))))
    }

    /// Where the device in `slot` counts, from 0 on, which has `queues` queues and is called `name`.
    pub fn device(&self, slot: u8, name: &str, queues: usize) -> DeviceCounters {
        self.forget(slot);
        if let Some((at, len)) = counters::name_at(slot) {
            let mut bytes = vec![0; len];
            for (place, byte) in bytes.iter_mut().zip(name.bytes()) {
                *place = byte;
            }
            self.0.write(at, &bytes);
        }
        let faults = counters::faults_at(slot);
        self.0.counter(faults.map(|at| at + WORD)).set(queues.min(QUEUES) as u64);
        DeviceCounters {
            faults: self.0.counter(faults),
            queues: (0..queues).map(|number| self.queue(counters::queue_at(slot, number))).collect(),
        }
    }

    /// Where the balloon counts: a VM has one at most, from its launch to its end.
    pub fn balloon(&self) -> BalloonCounters {
        let word = |word: BalloonWord| self.0.counter(Some(word.at()));
        word(BalloonWord::IsThere).set(1);
        BalloonCounters {
            target: word(BalloonWord::Target),
            held: word(BalloonWord::Held),
            removed: word(BalloonWord::Removed),
            reported: word(BalloonWord::Reported),
            kept: word(BalloonWord::Kept),
            told_at: word(BalloonWord::ToldAt),
            told: word(BalloonWord::Told),
            statistics: Statistic::ALL.map(|statistic| self.0.counter(Some(statistic.at()))).to_vec(),
        }
    }

    /// The device in `slot` is gone, and its numbers with it.
    pub fn forget(&self, slot: u8) {
        if let Some((at, len)) = counters::name_at(slot) {
            self.0.write(at, &vec![0; len]);
        }
        if let Some(at) = counters::faults_at(slot) {
            self.0.write(at, &vec![0; counters::DEVICE_LEN]);
        }
    }

    fn queue(&self, at: Option<usize>) -> QueueCounters {
        let word = |number: usize| self.0.counter(at.map(|at| at + number * WORD));
        QueueCounters {
            operations: word(0),
            bytes: word(1),
            errors: word(2),
            latency_sum_ns: word(3),
            latency: (0..BUCKETS).map(|bucket| word(4 + bucket)).collect(),
        }
    }
}

/// Exits of one vCPU.
#[derive(Debug, Clone, Default)]
pub struct VcpuCounters([Counter; Reason::ALL.len()]);

impl VcpuCounters {
    /// One more.
    pub fn count(&self, reason: Reason) {
        if let Some(counter) = self.0.get(reason as usize) {
            counter.add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_what_is_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(FILE_LEN as u64).unwrap();
        let counting = Counting::begin(Some(file.try_clone().unwrap()), 2).unwrap();
        counting.reached(Phase::Started, 1_000);
        counting.reached(Phase::Running, 3_000);
        counting.vcpu(1).count(Reason::PortWrite);
        let device = counting.device(2, "root", 1);
        device.faults.add(1);
        counting.holdings().memory_slots.add(1);
        counting.holdings().irqfds.add(3);
        device.queues[0].operations.add(4);
        device.queues[0].latency[3].add(4);
        let mut bytes = vec![0; FILE_LEN];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
        let read = counters::decode(&bytes).unwrap();
        assert_eq!(read.phases.last().unwrap().1.as_nanos(), 2_000);
        assert_eq!(read.held, Some([1, 3, 0]));
        assert_eq!((read.exits.len(), read.exits[1][Reason::PortWrite as usize]), (2, 1));
        assert_eq!((read.devices[0].name.as_str(), read.devices[0].faults), ("root", 1));
        assert_eq!((read.devices[0].queues[0].operations, read.devices[0].queues[0].latency[3]), (4, 4));
        // Another device comes to the slot.
        counting.device(2, "data", 2);
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
        let read = counters::decode(&bytes).unwrap();
        assert_eq!((read.devices[0].name.as_str(), read.devices[0].faults), ("data", 0));
        assert_eq!(read.devices[0].queues, [counters::QueueCounters::default(); 2]);
        counting.forget(2);
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
        assert!(counters::decode(&bytes).unwrap().devices.is_empty());
        assert_eq!(read.balloon, None);
        let balloon = counting.balloon();
        balloon.held.set(4096);
        balloon.statistics[Statistic::Available as usize].set(7);
        balloon.told.set(1 << Statistic::Available as usize);
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
        let read = counters::decode(&bytes).unwrap().balloon.unwrap();
        assert_eq!((read.held, read.statistics), (4096, vec![(Statistic::Available, 7)]));
        let first = now_ns();
        assert!(first > 0 && now_ns() >= first);
    }
}
