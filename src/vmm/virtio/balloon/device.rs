//! The balloon's rings. Key type: [`Balloon`].

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::super::chain::{self, Chain, Segment};
use super::super::device::{Active, Device, Fault, Identity, Next, Wake};
use super::super::queue::{Ring, RingFault};
use super::super::stock::Stock;
use super::pages::{self, NUMBER_LEN, PAGE, Pages, Run};
use super::statistics::{self, PERIOD, Statistics};
use crate::model::{DeviceChange, DeviceId};
use crate::sys::reclaim::Reclaim;
use crate::vmm::ports::{BalloonCounters, ChangeError, GuestMemory};

/// Linux reports 32 ranges in one request, and does not begin with less room than that.
const QUEUE_SIZE: u16 = 64;
/// Queues on offer: inflate, deflate, statistics, and two places for the one that reports (see [`Role::of`]).
const QUEUES: usize = 5;
/// No class of its own: "does not fit any defined class".
const CLASS: u32 = 0x00_ff_00;

/// Features (VIRTIO 1.3 §5.5.3).
const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_PAGE_REPORTING: u64 = 1 << 5;

/// Page numbers that one request holds at most: drivers send 256 or 1,024.
const MAX_NUMBERS: u64 = 4096;
/// Bytes that one request reports at most: Linux reports 32 ranges of 4 MiB. What is beyond stays where it is.
const MAX_REPORT: u64 = 256 << 20;
/// Bytes after which one call of the device ends, that commands may be heard.
const MAX_CALL: u64 = 256 << 20;
/// What the removal of a shorter run counts as: each is a call of the kernel, and may take a huge page apart.
const MIN_COST: u64 = 64 << 10;

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
}

impl Role {
    /// What queue `number` is for. The specification gives reporting number 4; Linux before 6.11, and later ones where that
    /// is not there, number only the queues whose features are negotiated. No other queue can be meant by any of these.
    fn of(number: usize, features: u64) -> Option<Self> {
        let has = |feature| features & feature != 0;
        match number {
            0 => Some(Self::Inflate),
            1 => Some(Self::Deflate),
            2 if has(F_STATS_VQ) => Some(Self::Statistics),
            2..QUEUES if has(F_PAGE_REPORTING) => Some(Self::Reporting),
            _ => None,
        }
    }
}

/// A balloon in the guest's memory.
#[derive(Debug)]
pub struct Balloon {
    id: DeviceId,
    reclaim: Reclaim,
    counters: BalloonCounters,
    statistics: Statistics,
    /// Pages that the guest has.
    all: u64,
    /// Pages that it is to give up.
    target: u32,
    /// Pages that it has given up and not taken back, as far as it can be believed.
    held: u64,
}

impl Balloon {
    /// A balloon in `memory`, of which the guest is to keep so much; `None`: all. It tells what it does in `counters`.
    pub fn new(
        id: DeviceId,
        memory: &GuestMemory,
        keep_mib: Option<u64>,
        reclaim: Reclaim,
        counters: BalloonCounters,
        stock: &Stock,
    ) -> io::Result<Self> {
        let all = memory.memory().iter().map(GuestMemoryRegion::len).sum::<u64>() / PAGE;
        let statistics = Statistics::new(stock.timer()?, PERIOD);
        let mut balloon = Self { id, reclaim, counters, statistics, all, target: 0, held: 0 };
        balloon.aim(keep_mib);
        Ok(balloon)
    }

    fn aim(&mut self, keep_mib: Option<u64>) {
        let keep = keep_mib.map_or(self.all, |mib| (mib << 20) / PAGE);
        self.target = u32::try_from(self.all.saturating_sub(keep)).unwrap_or(u32::MAX);
        self.counters.target.set(u64::from(self.target) * PAGE);
    }

    /// Device configuration: `num_pages`, then `actual`, which the driver writes and nobody reads: the device counts.
    fn config(&self) -> Vec<u8> {
        [self.target, 0].into_iter().flat_map(u32::to_le_bytes).collect()
    }

    fn hold(&mut self, pages: u64) {
        self.held = pages.min(self.all);
        self.counters.held.set(self.held * PAGE);
    }

    /// Removes a run if it is all memory; gives the bytes that the host has back.
    fn give_back(&self, memory: &Arc<GuestMemoryMmap>, run: Run) -> Result<u64, RingFault> {
        // At most MAX_REPORT, or as many pages as a request has numbers.
        let given = self.reclaim.give_back(memory, run.address, run.len as usize).map_err(|_| RingFault::NotMemory)?;
        self.counters.kept.add(run.len - given as u64);
        Ok(given as u64)
    }

    /// The pages that a request to inflate or deflate names.
    fn named(&self, ring: &Ring, memory: &Arc<GuestMemoryMmap>, chain: &Chain) -> Result<Pages, Fault> {
        let len = chain::len(&chain.readable);
        let most = len.min(MAX_NUMBERS * NUMBER_LEN as u64);
        let bytes = chain::read(&**memory, &chain.readable, most).ok_or(RingFault::NotMemory)?;
        let pages = pages::runs(&bytes, |address| memory.address_in_range(address));
        if pages.is_flawed || len > most || len == 0 || !chain.writable.is_empty() {
            self.offend(ring, "pages that are none, or too many");
        }
        Ok(pages)
    }

    fn inflate(&mut self, ring: &Ring, memory: &Arc<GuestMemoryMmap>, chain: &Chain) -> Result<u64, Fault> {
        let pages = self.named(ring, memory, chain)?;
        for &run in &pages.runs {
            self.counters.removed.add(self.give_back(memory, run)?);
        }
        self.hold(self.held.saturating_add(pages.count));
        Ok(pages.runs.iter().map(|run| run.len.max(MIN_COST)).sum())
    }

    /// Takes in what the guest has again: a page comes when it is touched.
    fn deflate(&mut self, ring: &Ring, memory: &Arc<GuestMemoryMmap>, chain: &Chain) -> Result<u64, Fault> {
        let pages = self.named(ring, memory, chain)?;
        self.hold(self.held.saturating_sub(pages.count));
        Ok(0)
    }

    /// Removes what the guest says is free. It may be touched again as soon as the request is given back.
    fn report(&self, ring: &Ring, memory: &Arc<GuestMemoryMmap>, chain: &Chain) -> Result<u64, Fault> {
        let (mut left, mut cost) = (MAX_REPORT, 0);
        let mut is_flawed = !chain.readable.is_empty() || chain.writable.is_empty();
        for &range in &chain.writable {
            let Segment { address, len } = range;
            is_flawed |= !address.0.is_multiple_of(PAGE) || !u64::from(len).is_multiple_of(PAGE);
            let Some(run) = pages::whole(range, left)? else {
                is_flawed = true;
                continue;
            };
            left -= run.len;
            cost += run.len.max(MIN_COST);
            self.counters.kept.add((u64::from(len) & !(PAGE - 1)).saturating_sub(run.len));
            self.counters.reported.add(self.give_back(memory, run)?);
        }
        if is_flawed {
            self.offend(ring, "free ranges that are no pages, or too many");
        }
        Ok(cost)
    }

    /// Takes in statistics and keeps the buffer.
    fn tell(&mut self, ring: &mut Ring, memory: &Arc<GuestMemoryMmap>, chain: &Chain) -> Result<(), Fault> {
        let most = chain::len(&chain.readable).min(statistics::MAX_LEN);
        let bytes = chain::read(&**memory, &chain.readable, most).ok_or(RingFault::NotMemory)?;
        if let Some(before) = self.statistics.keep(chain.head, &bytes, &self.counters)? {
            self.offend(ring, "a second buffer of statistics");
            ring.complete(&**memory, before, 0)?;
        }
        Ok(())
    }

    /// Counts what the driver does wrong without harm to anybody.
    fn offend(&self, ring: &Ring, what: &str) {
        let count = ring.count_offence();
        if count.is_power_of_two() {
            tracing::warn!(device = %self.id, count, "the driver names {what}");
        }
    }

    /// Does what a queue holds, until the call has worked on as many bytes as it may.
    fn serve(
        &mut self,
        role: Role,
        ring: &mut Ring,
        memory: &Arc<GuestMemoryMmap>,
        left: &mut u64,
    ) -> Result<Next, Fault> {
        for _ in 0..ring.size() {
            if *left == 0 {
                return Ok(Next::Again);
            }
            let Some(chain) = ring.pop(&**memory)? else {
                if ring.listen(&**memory)? {
                    continue;
                }
                return Ok(Next::Wait);
            };
            let worked = match role {
                Role::Inflate => self.inflate(ring, memory, &chain)?,
                Role::Deflate => self.deflate(ring, memory, &chain)?,
                Role::Reporting => self.report(ring, memory, &chain)?,
                Role::Statistics => {
                    self.tell(ring, memory, &chain)?;
                    continue;
                }
            };
            *left = left.saturating_sub(worked);
            ring.complete(&**memory, chain.head, 0)?;
        }
        Ok(Next::Again)
    }
}

impl Device for Balloon {
    fn identity(&self) -> Identity {
        Identity {
            id: self.id.to_string(),
            device_type: VIRTIO_ID_BALLOON as u16,
            class: CLASS,
            features: F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_REPORTING,
            config: self.config(),
            queue_sizes: vec![QUEUE_SIZE; QUEUES],
        }
    }

    fn backends(&self) -> Vec<RawFd> {
        vec![self.statistics.descriptor()]
    }

    fn run(&mut self, active: &mut Active, _wake: Wake) -> Result<Next, Fault> {
        let memory = active.memory.memory().into_inner();
        let (mut next, mut left) = (Next::Wait, MAX_CALL);
        for (number, ring) in active.rings.iter_mut().enumerate() {
            let (Some(ring), Some(role)) = (ring, Role::of(number, active.features)) else { continue };
            if role == Role::Statistics
                && let Some(head) = self.statistics.due()
            {
                ring.complete(&*memory, head, 0)?;
            }
            next = next.or(self.serve(role, ring, &memory, &mut left)?);
            ring.signal(&*memory)?;
        }
        Ok(next)
    }

    fn change(&mut self, change: DeviceChange) -> Result<Option<Vec<u8>>, ChangeError> {
        let DeviceChange::Balloon { keep_mib } = change else { return Err(ChangeError::Unsupported) };
        self.aim(keep_mib);
        Ok(Some(self.config()))
    }

    /// A driver that comes anew has given up nothing.
    fn stop(&mut self) {
        self.statistics.forget();
        self.hold(0);
    }
}

#[cfg(test)]
impl Balloon {
    /// Asks for statistics so often.
    pub(in crate::vmm::virtio) fn with_period(mut self, period: std::time::Duration) -> Self {
        self.statistics.period = period;
        self
    }
}
