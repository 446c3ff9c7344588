//! What a driver says of pages, checked: numbers and ranges to runs of whole pages. Key functions: [`runs`], [`whole`]. Pure.

use vm_memory::GuestAddress;

use super::super::chain::Segment;
use super::super::queue::RingFault;

/// Bytes of a page as the device counts them, whatever pages host and guest have (VIRTIO 1.3 §5.5.6).
pub(super) const PAGE: u64 = 1 << PAGE_SHIFT;
const PAGE_SHIFT: u32 = 12;
/// Bytes of a page number.
pub(super) const NUMBER_LEN: usize = 4;

/// Adjacent pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) address: GuestAddress,
    /// Bytes, a multiple of [`PAGE`] and not zero.
    pub(super) len: u64,
}

/// What a list of page numbers comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pages {
    /// In order; no two touch.
    pub(super) runs: Vec<Run>,
    /// How many pages they have.
    pub(super) count: u64,
    /// Whether a number was there twice, or is no page of memory, or there was half a number.
    pub(super) is_flawed: bool,
}

/// Makes runs of the page numbers in `bytes`, of those for which `is_memory` (asked by address).
pub(super) fn runs(bytes: &[u8], is_memory: impl Fn(GuestAddress) -> bool) -> Pages {
    let (numbers, rest) = bytes.as_chunks::<NUMBER_LEN>();
    let mut addresses: Vec<_> =
        numbers.iter().map(|&number| u64::from(u32::from_le_bytes(number)) << PAGE_SHIFT).collect();
    let said = addresses.len();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.retain(|&address| is_memory(GuestAddress(address)));
    let mut runs: Vec<Run> = Vec::new();
    for &address in &addresses {
        match runs.last_mut() {
            Some(run) if run.address.0 + run.len == address => run.len += PAGE,
            _ => runs.push(Run { address: GuestAddress(address), len: PAGE }),
        }
    }
    Pages { runs, count: addresses.len() as u64, is_flawed: addresses.len() < said || !rest.is_empty() }
}

/// The whole pages within a range, of at most `most` bytes; `None` if there are none. A range that passes the end of the
/// address space is no memory.
pub(super) fn whole(range: Segment, most: u64) -> Result<Option<Run>, RingFault> {
    let end = range.address.0.checked_add(range.len.into()).ok_or(RingFault::NotMemory)? & !(PAGE - 1);
    let start = range.address.0.checked_next_multiple_of(PAGE).ok_or(RingFault::NotMemory)?;
    let len = end.saturating_sub(start).min(most & !(PAGE - 1));
    Ok((len > 0).then_some(Run { address: GuestAddress(start), len }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn bytes(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn run(address: u64, len: u64) -> Run {
        Run { address: GuestAddress(address), len }
    }

    #[test]
    fn adjacent_pages_are_one_run_in_whatever_order_they_come() {
        let all = |_| true;
        let pages = runs(&bytes(&[7, 5, 6, 1]), all);
        assert_eq!(pages.runs, [run(0x1000, 0x1000), run(0x5000, 0x3000)]);
        assert_eq!((pages.count, pages.is_flawed), (4, false));
        let last = runs(&bytes(&[u32::MAX]), all);
        assert_eq!(last.runs, [run(0xfff_ffff_f000, 0x1000)]);
        assert_eq!(runs(&[], all), Pages::default());
    }

    #[test]
    fn what_is_no_page_or_was_said_before_is_a_flaw_and_costs_nothing_else() {
        let low = |address: GuestAddress| address.0 < 0x10_0000;
        for wrong in [&[1, 1][..], &[1, 0x100], &[u32::MAX, 1]] {
            let pages = runs(&bytes(wrong), low);
            assert_eq!((pages.runs.as_slice(), pages.count, pages.is_flawed), (&[run(0x1000, 0x1000)][..], 1, true));
        }
        let mut half = bytes(&[1]);
        half.push(0);
        assert!(runs(&half, low).is_flawed);
    }

    #[test]
    fn a_range_is_cut_to_whole_pages_and_to_the_bound() {
        let whole = |address, len, most| super::whole(Segment { address: GuestAddress(address), len }, most);
        assert_eq!(whole(0x1000, 0x2000, u64::MAX), Ok(Some(run(0x1000, 0x2000))));
        assert_eq!(whole(0x0fff, 0x2002, u64::MAX), Ok(Some(run(0x1000, 0x2000))));
        assert_eq!(whole(0x1001, 0x1fff, u64::MAX), Ok(Some(run(0x2000, 0x1000))));
        assert_eq!(whole(0x1001, 0x1ffe, u64::MAX), Ok(None));
        assert_eq!(whole(0x1001, 0x10, u64::MAX), Ok(None), "within a page");
        assert_eq!(whole(0x1000, 0x4000, 0x2fff), Ok(Some(run(0x1000, 0x2000))));
        assert_eq!(whole(u64::MAX - 0xfff, 0x1000, u64::MAX), Err(RingFault::NotMemory), "past the end");
        assert_eq!(whole(u64::MAX, 1, u64::MAX), Err(RingFault::NotMemory));
    }

    proptest! {
        #[test]
        fn runs_hold_just_the_pages_that_are_memory(
            numbers in proptest::collection::vec(0_u32..200, 0..300), hole in 0_u64..200,
        ) {
            let is_memory = |address: GuestAddress| address.0 >> PAGE_SHIFT != hole;
            let pages = runs(&bytes(&numbers), is_memory);
            let wanted: BTreeSet<u64> = numbers.iter().map(|&n| u64::from(n)).filter(|&n| n != hole).collect();
            let had: Vec<u64> = pages
                .runs
                .iter()
                .flat_map(|run| (run.address.0..run.address.0 + run.len).step_by(PAGE as usize))
                .map(|address| address >> PAGE_SHIFT)
                .collect();
            prop_assert_eq!(&had, &wanted.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(pages.count, wanted.len() as u64);
            prop_assert_eq!(pages.is_flawed, wanted.len() < numbers.len());
            prop_assert!(pages.runs.windows(2).all(|two| two[0].address.0 + two[0].len < two[1].address.0));
        }

        #[test]
        fn a_range_never_grows(address in any::<u64>(), len in any::<u32>(), most in any::<u64>()) {
            if let Ok(Some(run)) = super::whole(Segment { address: GuestAddress(address), len }, most) {
                prop_assert!(run.address.0 >= address && run.len <= most && run.len % PAGE == 0);
                prop_assert!(run.address.0 + run.len <= address + u64::from(len));
            }
        }
    }
}
