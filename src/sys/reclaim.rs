//! Pages of guest memory that are given back to the host, unless a device of the host may reach them. Key types:
//! [`Reclaim`], [`Pin`].
//!
//! ```text
//!   Loose ──pin──▶ Pinned(1) ──pin──▶ Pinned(2) …        give_back: removes pages while Loose, under the state's lock;
//!     ▲               │                                  anywhere else it leaves them alone
//!     └──last Pin─────┘
//! ```
//! What is mapped for a device's DMA is pinned page by page: a page that was removed beneath it would be another one for
//! the guest than for the device. Who maps takes a [`Pin`] first, and thereby waits for a removal that is under way; none
//! begins until the last pin is dropped.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::guest_buffers::{GuestBuffers, GuestRangeError};

/// Bytes that are removed under the lock at once: a pin waits for as many at most.
const STEP: usize = 32 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Pages may be removed.
    #[default]
    Loose,
    /// So many hold all pages where they are.
    Pinned(NonZeroU32),
}

/// Whether pages of one guest may be removed; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Reclaim {
    /// Rank: leaf. Held for one removal of [`STEP`] bytes at most.
    state: Arc<Mutex<State>>,
}

impl Reclaim {
    /// Gives a range back to the host: the guest finds zeroes there, in fresh pages. Returns for how many bytes the host
    /// did so; the others, maybe all, are as they were. A range that is not all guest memory is left alone.
    pub fn give_back(
        &self,
        memory: &Arc<GuestMemoryMmap>,
        address: GuestAddress,
        len: usize,
    ) -> Result<usize, GuestRangeError> {
        // All of it, so that the steps below cannot run out of the address space.
        GuestBuffers::new(memory, [(address, len)])?;
        let mut given = 0;
        for at in (0..len).step_by(STEP) {
            let step = STEP.min(len - at);
            let pieces = GuestBuffers::new(memory, [(GuestAddress(address.0.wrapping_add(at as u64)), step)])?;
            let state = self.state();
            if *state == State::Loose && pieces.remove().is_ok() {
                given += step;
            }
        }
        Ok(given)
    }

    /// Holds every page where it is until what comes back is dropped. Waits for a removal that is under way.
    pub fn pin(&self) -> Pin {
        let mut state = self.state();
        *state = State::Pinned(match *state {
            State::Loose => NonZeroU32::MIN,
            State::Pinned(count) => count.saturating_add(1),
        });
        Pin(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As long as it lives, no page of the guest is removed.
#[derive(Debug)]
pub struct Pin(Reclaim);

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.0.state();
        *state = match *state {
            State::Pinned(count) => NonZeroU32::new(count.get() - 1).map_or(State::Loose, State::Pinned),
            State::Loose => unreachable!("pinned by this"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::mmap::MmapRegionBuilder;
    use vm_memory::{Bytes, GuestRegionMmap};

    const PAGE: usize = 4096;

    /// Two regions that touch, then a hole.
    fn memory() -> Arc<GuestMemoryMmap> {
        let ranges = [(GuestAddress(0), 4 * PAGE), (GuestAddress(0x4000), 4 * PAGE), (GuestAddress(0x10000), PAGE)];
        Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
    }

    fn first_byte(memory: &GuestMemoryMmap, address: u64) -> u8 {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    #[test]
    fn what_is_given_back_is_zero_and_what_lies_beside_it_stays() {
        let memory = memory();
        for page in 0..8 {
            memory.write_obj(7_u8, GuestAddress(page * PAGE as u64)).unwrap();
        }
        let reclaim = Reclaim::default();
        // The last page of one region and the first of the next.
        assert_eq!(reclaim.give_back(&memory, GuestAddress(0x3000), 2 * PAGE).unwrap(), 2 * PAGE);
        let firsts: Vec<_> = (0..8).map(|page| first_byte(&memory, page * PAGE as u64)).collect();
        assert_eq!(firsts, [7, 7, 7, 0, 0, 7, 7, 7]);
        memory.write_obj(9_u8, GuestAddress(0x3000)).unwrap();
        assert_eq!(first_byte(&memory, 0x3000), 9, "it is memory as before");
    }

    #[test]
    fn a_range_that_is_not_memory_is_left_alone_as_a_whole() {
        let memory = memory();
        memory.write_obj(7_u8, GuestAddress(0x7000)).unwrap();
        for (address, len) in [(0x7000, 2 * PAGE), (0x9000, PAGE), (u64::MAX - 4095, PAGE), (0x7000, usize::MAX)] {
            Reclaim::default().give_back(&memory, GuestAddress(address), len).unwrap_err();
        }
        assert_eq!(first_byte(&memory, 0x7000), 7);
    }

    #[test]
    fn a_page_that_the_kernel_does_not_remove_is_counted_as_kept() {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_LOCKED;
        let region = MmapRegionBuilder::new(PAGE).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
        let region = GuestRegionMmap::new(region.with_mmap_flags(flags).build().unwrap(), GuestAddress(0)).unwrap();
        let locked = Arc::new(GuestMemoryMmap::from_regions(vec![region]).unwrap());
        locked.write_obj(7_u8, GuestAddress(0)).unwrap();
        assert_eq!(Reclaim::default().give_back(&locked, GuestAddress(0), PAGE).unwrap(), 0);
        assert_eq!(first_byte(&locked, 0), 7);
    }

    #[test]
    fn nothing_is_removed_until_the_last_pin_is_gone() {
        let memory = memory();
        memory.write_obj(7_u8, GuestAddress(0)).unwrap();
        let reclaim = Reclaim::default();
        let (first, second) = (reclaim.pin(), reclaim.clone().pin());
        assert_eq!(reclaim.give_back(&memory, GuestAddress(0), PAGE).unwrap(), 0);
        drop(first);
        assert_eq!(reclaim.give_back(&memory, GuestAddress(0), PAGE).unwrap(), 0);
        assert_eq!(first_byte(&memory, 0), 7);
        drop(second);
        assert_eq!(reclaim.give_back(&memory, GuestAddress(0), PAGE).unwrap(), PAGE);
        assert_eq!(first_byte(&memory, 0), 0);
    }

    #[test]
    fn a_pin_waits_for_what_is_being_removed() {
        let memory = memory();
        let reclaim = Reclaim::default();
        std::thread::scope(|scope| {
            let removing = scope.spawn(|| (0..4000).map(|_| given(&reclaim, &memory)).collect::<Vec<_>>());
            let pin = reclaim.pin();
            memory.write_obj(7_u8, GuestAddress(0)).unwrap();
            // Whatever the other thread is at: under the pin the page stays.
            while !removing.is_finished() {
                assert_eq!(first_byte(&memory, 0), 7, "removed under a pin");
            }
            drop(pin);
        });
        assert_eq!(given(&reclaim, &memory), PAGE);
    }

    fn given(reclaim: &Reclaim, memory: &Arc<GuestMemoryMmap>) -> usize {
        reclaim.give_back(memory, GuestAddress(0), PAGE).unwrap()
    }
}
