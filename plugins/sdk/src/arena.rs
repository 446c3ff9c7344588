//! A global allocator for components that live for one call: memory is handed out upwards and never taken back.
//!
//! The first 256 KiB lie in the component's initial memory, so that an ordinary decision never executes `memory.grow`:
//! the host then has no page mapping to change, which is most of the cost of a fresh instance. Beyond that the memory
//! grows, up to the host's cap. Freeing is a no-op, since the host throws the whole instance away after the call.
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait")]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::{Cell, UnsafeCell};
use core::ptr;

/// Bytes in the initial memory: many times what a decision needs, and four pages of WebAssembly memory.
const ARENA_BYTES: usize = 256 << 10;

#[repr(C, align(16))]
struct Block(UnsafeCell<[u8; ARENA_BYTES]>);

/// The allocator. One static per component: [`export!`](crate::export) makes it.
pub struct Arena {
    block: Block,
    /// Address of the first free byte; 0 before the first allocation.
    next: Cell<usize>,
    /// Address behind the last usable byte.
    end: Cell<usize>,
}

// SAFETY: the crate is for components, which have one thread (the host's worlds grant none); elsewhere `Arena` is used
// by one test thread at a time.
unsafe impl Sync for Arena {}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

impl Arena {
    /// An arena with all of its initial block free.
    pub const fn new() -> Self {
        Self { block: Block(UnsafeCell::new([0; ARENA_BYTES])), next: Cell::new(0), end: Cell::new(0) }
    }

    /// Address of `layout`-sized free bytes, or 0.
    fn take(&self, layout: Layout) -> usize {
        if self.end.get() == 0 {
            let start = self.block.0.get() as usize;
            self.next.set(start);
            self.end.set(start + ARENA_BYTES);
        }
        if let Some(address) = self.fit(layout) {
            return address;
        }
        let Some(needed_bytes) = layout.size().checked_add(layout.align()) else { return 0 };
        match grow(needed_bytes) {
            Some((start, end)) => {
                // Memory above the arena may follow directly on what was grown before.
                if start != self.end.get() {
                    self.next.set(start);
                }
                self.end.set(end);
                self.fit(layout).unwrap_or(0)
            }
            None => 0,
        }
    }

    fn fit(&self, layout: Layout) -> Option<usize> {
        let address = self.next.get().checked_next_multiple_of(layout.align())?;
        let behind = address.checked_add(layout.size())?;
        (behind <= self.end.get()).then(|| {
            self.next.set(behind);
            address
        })
    }
}

/// Adds at least `bytes` to the linear memory: start and end address of the new pages.
#[cfg(target_arch = "wasm32")]
fn grow(bytes: usize) -> Option<(usize, usize)> {
    const PAGE_BYTES: usize = 64 << 10;
    let pages = bytes.div_ceil(PAGE_BYTES);
    match core::arch::wasm32::memory_grow::<0>(pages) {
        usize::MAX => None,
        // An end at the very top of the address space would wrap to 0: such a page is not used.
        old_pages => {
            let start = old_pages.checked_mul(PAGE_BYTES)?;
            Some((start, start.checked_add(pages.checked_mul(PAGE_BYTES)?)?))
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn grow(_bytes: usize) -> Option<(usize, usize)> {
    None
}

// SAFETY: `take` returns addresses within memory that nothing else uses (its own block, or pages it added), aligned and
// disjoint, because `next` only moves up; the bytes outlive the component's instance.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            0 => ptr::null_mut(),
            address => ptr::with_exposed_provenance_mut(address),
        }
    }

    unsafe fn dealloc(&self, _block: *mut u8, _layout: Layout) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_out_aligned_and_disjoint_blocks_until_it_is_full() {
        let arena = Box::new(Arena::new());
        let mut last_end = 0;
        for (size, align) in [(1, 1), (8, 8), (3, 1), (16, 16), (100, 4)] {
            let address = arena.take(Layout::from_size_align(size, align).unwrap());
            assert_eq!(address % align, 0);
            assert!(address >= last_end && address != 0);
            last_end = address + size;
        }
        assert_eq!(arena.take(Layout::from_size_align(ARENA_BYTES, 1).unwrap()), 0, "more than is left");
        assert_ne!(arena.take(Layout::from_size_align(1000, 1).unwrap()), 0, "a refusal takes nothing");
    }

    #[test]
    fn refuses_sizes_that_overflow() {
        let arena = Box::new(Arena::new());
        assert_eq!(arena.take(Layout::from_size_align(isize::MAX as usize, 1).unwrap()), 0);
    }
}
