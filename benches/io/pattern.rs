//! What is written, so that whoever reads it can tell: pages of noise, each with its place and a generation in front.

use std::ops::Range;

/// Unit of stamps, and of random access.
pub const PAGE: usize = 4096;
/// Size of a disk.
pub const DISK_LEN: u64 = 16 << 20;
/// How much is written or read at once in sequence.
pub const PIECE: usize = 1 << 20;
/// Random accesses of each kind.
pub const ACCESSES: u64 = 512;
/// Random accesses under way at once.
pub const AT_ONCE: u64 = 4;

/// Numbers that look random, and are the same in guest and host (xorshift64, Marsaglia 2003).
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// The pages of the disk that one of [`AT_ONCE`] threads goes to.
pub fn places(thread: u64) -> impl Iterator<Item = u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15 + thread;
    (0..ACCESSES / AT_ONCE).map(move |_| next(&mut state) % (DISK_LEN / PAGE as u64))
}

/// What a page says of itself: when it was written, and where.
pub fn stamp(generation: u8, page: u64) -> u64 {
    u64::from(generation) << 56 | page
}

/// Pages of noise, aligned for direct I/O.
pub struct Buffer {
    bytes: Vec<u8>,
    used: Range<usize>,
}

impl Buffer {
    /// With `len` bytes, whole pages.
    pub fn new(len: usize) -> Self {
        let mut state = 88_172_645_463_325_252;
        let page: Vec<u8> = (0..PAGE / 8).flat_map(|_| next(&mut state).to_le_bytes()).collect();
        let mut bytes = vec![0; len + PAGE];
        let start = bytes.as_ptr().align_offset(PAGE);
        let used = start..start + len;
        bytes[used.clone()].chunks_exact_mut(PAGE).for_each(|place| place.copy_from_slice(&page));
        Self { bytes, used }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.used.clone()]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.used.clone()]
    }

    /// Stamps all pages, the first as `page`.
    pub fn stamp(&mut self, generation: u8, page: u64) {
        for (place, page) in self.bytes_mut().chunks_exact_mut(PAGE).zip(page..) {
            place[..8].copy_from_slice(&stamp(generation, page).to_le_bytes());
        }
    }
}

/// Whether all pages have the stamps that are due.
pub fn is_stamped(bytes: &[u8], mut due: impl Iterator<Item = u64>) -> bool {
    bytes
        .chunks_exact(PAGE)
        .all(|page| page.get(..8) == due.next().map(u64::to_le_bytes).as_ref().map(<[u8; 8]>::as_slice))
}

/// Whether all pages have noise behind their stamps.
pub fn is_noise(bytes: &[u8], noise: &Buffer) -> bool {
    bytes.chunks_exact(PAGE).all(|page| page[8..] == noise.bytes()[8..PAGE])
}

/// The stamps of a disk to which everything was written: by random access last.
pub fn stamps_at_the_end() -> Vec<u64> {
    let mut stamps: Vec<u64> = (0..DISK_LEN / PAGE as u64).map(|page| stamp(1, page)).collect();
    for page in (0..AT_ONCE).flat_map(places) {
        stamps[page as usize] = stamp(2, page);
    }
    stamps
}
