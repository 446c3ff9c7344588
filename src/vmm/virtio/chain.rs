//! One request as the driver described it: descriptors, copied once. Key types: [`Chain`], [`Segment`].
//!
//! After [`Chain::collect`] nothing looks at the descriptor table again; a driver that rewrites it changes nothing.
//! Addresses are not checked here: who moves data does (`sys::guest_buffers`, [`Chain::read_head`]).

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::queue::RingFault;

/// Most descriptors in a chain. No queue here is larger, and a chain may not be longer than its queue (VIRTIO 1.2
/// §2.7.5.3.1); Linux may exceed the queue size with indirect tables, but not what the device's configuration allows.
pub(super) const MAX_CHAIN_LEN: usize = 256;

/// A range of guest addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) address: GuestAddress,
    /// Bytes, at least 1.
    pub(super) len: u32,
}

/// A descriptor chain: what the device may read, then what it may write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    /// Index of the first descriptor: names the chain in the used ring.
    pub(super) head: u16,
    pub(super) readable: Vec<Segment>,
    pub(super) writable: Vec<Segment>,
}

impl Chain {
    /// Copies the descriptors. A chain that loops, leaves its table, nests indirect tables, has a writable descriptor
    /// before a readable one or is longer than [`MAX_CHAIN_LEN`] is a fault.
    pub(super) fn collect<M>(mut descriptors: DescriptorChain<M>) -> Result<Self, RingFault>
    where
        M: Deref,
        M::Target: GuestMemory,
    {
        let mut chain = Self { head: descriptors.head_index(), readable: Vec::new(), writable: Vec::new() };
        let mut last: Option<Descriptor> = None;
        for (count, descriptor) in descriptors.by_ref().enumerate() {
            if count == MAX_CHAIN_LEN {
                return Err(RingFault::ChainTooLong);
            }
            let was_writable = last.is_some_and(|last| last.is_write_only());
            let list = match (was_writable, descriptor.is_write_only()) {
                (_, true) => &mut chain.writable,
                (false, false) => &mut chain.readable,
                (true, false) => return Err(RingFault::BrokenChain),
            };
            if descriptor.len() > 0 {
                list.push(Segment { address: descriptor.addr(), len: descriptor.len() });
            }
            last = Some(descriptor);
        }
        // The iterator stops without a word at whatever it cannot follow; a whole chain ends with a descriptor that
        // names no next one.
        match last {
            Some(descriptor) if !descriptor.has_next() => Ok(chain),
            _ => Err(RingFault::BrokenChain),
        }
    }

    /// Copies the first `N` readable bytes out of the guest and removes them from the chain. `None` if there are fewer,
    /// or they are not guest memory.
    pub(super) fn read_head<const N: usize>(&mut self, memory: &impl GuestMemory) -> Option<[u8; N]> {
        let (head, rest) = split(&self.readable, N as u64)?;
        let mut bytes = [0; N];
        let mut at = 0;
        for segment in &head {
            let part = bytes.get_mut(at..at + segment.len as usize)?;
            memory.read_slice(part, segment.address).ok()?;
            at += segment.len as usize;
        }
        self.readable = rest;
        Some(bytes)
    }
}

/// Total bytes of `segments`.
pub(super) fn len(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// Splits `segments` after `at` bytes; `None` if there are fewer.
pub(super) fn split(segments: &[Segment], at: u64) -> Option<(Vec<Segment>, Vec<Segment>)> {
    let (mut head, mut rest) = (Vec::new(), Vec::new());
    let mut left = at;
    for &segment in segments {
        // At most the segment's length, hence 32 bits.
        let step = left.min(segment.len.into()) as u32;
        left -= u64::from(step);
        if step > 0 {
            head.push(Segment { address: segment.address, len: step });
        }
        if step < segment.len {
            // Past the end of the address space there is no guest memory: whoever uses the range will find out.
            let address = GuestAddress(segment.address.0.wrapping_add(step.into()));
            rest.push(Segment { address, len: segment.len - step });
        }
    }
    (left == 0).then_some((head, rest))
}

/// Copies the first `len` bytes of `segments`. `None` if there are fewer, or they are not guest memory.
pub(super) fn read(memory: &impl GuestMemory, segments: &[Segment], len: u64) -> Option<Vec<u8>> {
    let (head, _) = split(segments, len)?;
    let mut bytes = vec![0; usize::try_from(len).ok()?];
    let mut rest = bytes.as_mut_slice();
    for segment in head {
        let (part, tail) = rest.split_at_mut_checked(segment.len as usize)?;
        memory.read_slice(part, segment.address).ok()?;
        rest = tail;
    }
    Some(bytes)
}

/// Copies `bytes` to the start of `segments`. `None` if there is no room, or it is not guest memory.
pub(super) fn write(memory: &impl GuestMemory, segments: &[Segment], bytes: &[u8]) -> Option<()> {
    let (head, _) = split(segments, bytes.len() as u64)?;
    let mut rest = bytes;
    for segment in head {
        let (part, tail) = rest.split_at_checked(segment.len as usize)?;
        memory.write_slice(part, segment.address).ok()?;
        rest = tail;
    }
    Some(())
}

/// The ranges as `sys::guest_buffers` wants them.
pub(super) fn ranges(segments: &[Segment]) -> impl Iterator<Item = (GuestAddress, usize)> {
    segments.iter().map(|segment| (segment.address, segment.len as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_memory::GuestMemoryMmap;

    fn segment(address: u64, len: u32) -> Segment {
        Segment { address: GuestAddress(address), len }
    }

    proptest! {
        #[test]
        fn splits_without_losing_a_byte(
            parts in proptest::collection::vec((any::<u64>(), 1_u32..5000), 0..10), at in 0_u64..60_000,
        ) {
            let segments: Vec<_> = parts.into_iter().map(|(address, len)| segment(address, len)).collect();
            match split(&segments, at) {
                Some((head, rest)) => {
                    prop_assert_eq!(len(&head), at);
                    prop_assert_eq!(len(&rest), len(&segments) - at);
                    prop_assert!(head.iter().chain(&rest).all(|part| part.len > 0));
                }
                None => prop_assert!(len(&segments) < at),
            }
        }
    }

    #[test]
    fn copies_across_segments_and_refuses_what_is_outside() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let pieces = [segment(0x10, 2), segment(0x100, 3)];
        assert!(write(&memory, &pieces, b"abcd").is_some());
        assert!(write(&memory, &pieces, b"abcdef").is_none());
        assert!(write(&memory, &[segment(0xfff, 2)], b"ab").is_none());
        assert_eq!(read(&memory, &pieces, 4).as_deref(), Some(&b"abcd"[..]));
        assert_eq!((read(&memory, &pieces, 6), read(&memory, &[segment(0xfff, 2)], 2)), (None, None));
        let mut chain = Chain { head: 0, readable: pieces.to_vec(), writable: vec![] };
        assert_eq!(chain.read_head(&memory), Some(*b"abcd"));
        assert_eq!(chain.readable, [segment(0x102, 1)]);
        assert_eq!(chain.read_head::<2>(&memory), None);
        assert_eq!(chain.readable, [segment(0x102, 1)]);
    }
}
