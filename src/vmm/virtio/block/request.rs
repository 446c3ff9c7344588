//! What a descriptor chain asks of a disk. Pure. Key types: [`Kind`], [`Refusal`]. Key function: [`parse`].
//!
//! ```text
//!   readable: [type u32 | reserved u32 | sector u64] [data to write …]        VIRTIO 1.2 §5.2.6
//!                                                    [sector u64 | sectors u32 | flags u32]  discard, write zeroes
//!   writable: [… data read] [status u8]
//! ```
//! Drivers may cut the bytes into descriptors as they like (VIRTIO 1.2 §2.7.4).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::GuestAddress;

use super::engine::Task;
use crate::vmm::virtio::chain::{self, Segment};

/// Bytes of a sector, whatever the image's own block size (VIRTIO 1.2 §5.2.4).
pub(super) const SECTOR_LEN: u64 = 512;
/// Bytes of the request header.
pub(super) const HEADER_LEN: usize = 16;
/// Bytes of the answer to `GET_ID`.
pub(super) const ID_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;
/// Most data of one request, in bytes: what the driver is told it may send (`seg_max` times `size_max`).
pub(super) const MAX_DATA_LEN: u64 = SEG_MAX as u64 * SIZE_MAX as u64;
/// Most data segments in one request; with header and status they fill a chain.
pub(super) const SEG_MAX: u32 = chain::MAX_CHAIN_LEN as u32 - 2;
/// Most bytes of one segment.
pub(super) const SIZE_MAX: u32 = 1 << 20;

/// Bytes of struct virtio_blk_discard_write_zeroes, of which a request has one.
pub(super) const RANGE_LEN: usize = 16;
/// Most sectors that one request discards or zeroes (1 GiB): bounds how long it takes.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 21;

/// The disk as requests see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Sectors of 512 bytes.
    pub(super) sectors: u64,
    /// Sectors of the smallest transfer, a power of two.
    pub(super) block_sectors: u64,
    /// Writes are refused.
    pub(super) is_read_only: bool,
    /// Ranges may be discarded.
    pub(super) can_discard: bool,
    /// A write is answered when it is on stable storage: the driver has no flush (VIRTIO 1.2 §5.2.5.2).
    pub(super) is_write_through: bool,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Something with the image.
    Io(Task),
    /// The serial number to `data`, at least [`ID_LEN`] bytes.
    Id { data: Vec<Segment> },
}

/// Why a request fails; the driver gets it as its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// `VIRTIO_BLK_S_IOERR`.
    IoError,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
}

/// Takes the status byte off the end of the writable part: where it is, and the data before it. `None` if there is
/// nothing writable, so that the driver cannot be answered.
pub(super) fn split_status(writable: &[Segment]) -> Option<(Vec<Segment>, GuestAddress)> {
    let (data, status) = chain::split(writable, chain::len(writable).checked_sub(1)?)?;
    Some((data, status.first()?.address))
}

/// Reads a request: its header, the range behind it if it has one ([`has_range`]), the readable data after that and
/// the writable data before the status byte.
pub(super) fn parse(
    header: [u8; HEADER_LEN],
    range: Option<[u8; RANGE_LEN]>,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    disk: Geometry,
) -> Result<Kind, Refusal> {
    let [.., a, b, c, d, e, f, g, h] = header;
    let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let is_durable = disk.is_write_through;
    match kind_of(header) {
        VIRTIO_BLK_T_IN if readable.is_empty() => {
            Ok(Kind::Io(Task::Read { offset: offset(sector, &writable, disk)?, data: writable }))
        }
        VIRTIO_BLK_T_OUT if disk.is_read_only || !writable.is_empty() => Err(Refusal::IoError),
        VIRTIO_BLK_T_OUT => {
            Ok(Kind::Io(Task::Write { offset: offset(sector, &readable, disk)?, data: readable, is_durable }))
        }
        VIRTIO_BLK_T_FLUSH => Ok(Kind::Io(Task::Flush)),
        VIRTIO_BLK_T_GET_ID if chain::len(&writable) >= ID_LEN as u64 => Ok(Kind::Id { data: writable }),
        kind @ (VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES) => {
            // More ranges than one were not on offer.
            let range = range.filter(|_| readable.is_empty() && writable.is_empty()).ok_or(Refusal::IoError)?;
            parse_range(kind, range, disk).map(Kind::Io)
        }
        VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID => Err(Refusal::IoError),
        _ => Err(Refusal::Unsupported),
    }
}

/// Whether a request with this header has a range behind it.
pub(super) fn has_range(header: [u8; HEADER_LEN]) -> bool {
    matches!(kind_of(header), VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES)
}

fn kind_of([a, b, c, d, ..]: [u8; HEADER_LEN]) -> u32 {
    u32::from_le_bytes([a, b, c, d])
}

/// Flags are judged first: an unknown one is unsupported whatever the range (VIRTIO 1.2 §5.2.6.2).
fn parse_range(kind: u32, range: [u8; RANGE_LEN], disk: Geometry) -> Result<Task, Refusal> {
    let [a, b, c, d, e, f, g, h, s, t, u, v, w, x, y, z] = range;
    let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let (sectors, flags) = (u32::from_le_bytes([s, t, u, v]), u32::from_le_bytes([w, x, y, z]));
    let allowed = if kind == VIRTIO_BLK_T_DISCARD { 0 } else { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP };
    if flags & !allowed != 0 || (kind == VIRTIO_BLK_T_DISCARD && !disk.can_discard && !disk.is_read_only) {
        return Err(Refusal::Unsupported);
    }
    if disk.is_read_only || sectors > MAX_RANGE_SECTORS {
        return Err(Refusal::IoError);
    }
    let offset = within(sector, sectors.into(), disk)?;
    let len = u64::from(sectors) * SECTOR_LEN;
    if kind == VIRTIO_BLK_T_DISCARD {
        return Ok(Task::Discard { offset, len });
    }
    let may_unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    Ok(Task::Zero { offset, len, may_unmap, is_durable: disk.is_write_through })
}

/// Byte offset of `data` on the disk, if it is whole blocks within it.
fn offset(sector: u64, data: &[Segment], disk: Geometry) -> Result<u64, Refusal> {
    let len = chain::len(data);
    if !len.is_multiple_of(SECTOR_LEN) || len > MAX_DATA_LEN {
        return Err(Refusal::IoError);
    }
    within(sector, len / SECTOR_LEN, disk)
}

/// Byte offset of `sectors` (at least one) from `sector` on, if they are whole blocks of the disk.
fn within(sector: u64, sectors: u64, disk: Geometry) -> Result<u64, Refusal> {
    let end = sector.checked_add(sectors).ok_or(Refusal::IoError)?;
    let is_whole = sector.is_multiple_of(disk.block_sectors) && sectors.is_multiple_of(disk.block_sectors);
    if sectors == 0 || !is_whole || end > disk.sectors {
        return Err(Refusal::IoError);
    }
    // The disk's length in bytes fits into 64 bits, hence every offset within it.
    sector.checked_mul(SECTOR_LEN).ok_or(Refusal::IoError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISK: Geometry =
        Geometry { sectors: 100, block_sectors: 1, is_read_only: false, can_discard: true, is_write_through: false };

    fn range(sector: u64, sectors: u32, flags: u32) -> [u8; RANGE_LEN] {
        let mut bytes = [0; RANGE_LEN];
        bytes[..8].copy_from_slice(&sector.to_le_bytes());
        bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
        bytes[12..].copy_from_slice(&flags.to_le_bytes());
        bytes
    }

    fn read_task(offset: u64, lens: &[u32]) -> Result<Kind, Refusal> {
        Ok(Kind::Io(Task::Read { offset, data: data(lens) }))
    }

    fn header(kind: u32, sector: u64) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        bytes
    }

    fn data(lens: &[u32]) -> Vec<Segment> {
        lens.iter().map(|&len| Segment { address: GuestAddress(0x1000), len }).collect()
    }

    #[test]
    fn reads_and_writes_whole_sectors_within_the_disk() {
        let read = |sector, lens: &[u32]| parse(header(0, sector), None, vec![], data(lens), DISK);
        assert_eq!(read(99, &[512]), read_task(99 * 512, &[512]));
        assert_eq!(read(0, &[100, 412]), read_task(0, &[100, 412]));
        for (sector, lens) in [
            (100, &[512][..]),
            (99, &[1024]),
            (0, &[513]),
            (0, &[]),
            (u64::MAX, &[512]),
            (u64::MAX / 512, &[512]),
            (0, &[u32::MAX]),
        ] {
            assert_eq!(read(sector, lens), Err(Refusal::IoError), "{sector} {lens:?}");
        }
        for is_durable in [false, true] {
            let disk = Geometry { is_write_through: is_durable, ..DISK };
            let write = parse(header(1, 5), None, data(&[512]), vec![], disk);
            assert_eq!(write, Ok(Kind::Io(Task::Write { offset: 5 * 512, data: data(&[512]), is_durable })));
        }
    }

    #[test]
    fn a_disk_of_larger_blocks_takes_whole_ones_only() {
        let disk = Geometry { block_sectors: 8, sectors: 96, ..DISK };
        let read = |sector, lens: &[u32]| parse(header(0, sector), None, vec![], data(lens), disk);
        assert_eq!(read(8, &[4096]), read_task(4096, &[4096]));
        for (sector, len) in [(1, 4096), (8, 512), (96, 4096), (92, 4096)] {
            assert_eq!(read(sector, &[len]), Err(Refusal::IoError), "{sector} {len}");
        }
        let discard = parse(header(11, 0), Some(range(4, 8, 0)), vec![], vec![], disk);
        assert_eq!(discard, Err(Refusal::IoError));
    }

    #[test]
    fn discards_and_zeroes_one_range_within_the_disk() {
        let ask = |kind, range, disk| parse(header(kind, 0), range, vec![], vec![], disk);
        let (discard, zero) = (11, 13);
        let whole = Some(range(0, 100, 0));
        assert_eq!(ask(discard, whole, DISK), Ok(Kind::Io(Task::Discard { offset: 0, len: 51_200 })));
        for (flags, may_unmap) in [(0, false), (1, true)] {
            let expected = Task::Zero { offset: 512, len: 1024, may_unmap, is_durable: false };
            assert_eq!(ask(zero, Some(range(1, 2, flags)), DISK), Ok(Kind::Io(expected)));
        }
        for bad in [range(100, 1, 0), range(99, 2, 0), range(u64::MAX, 1, 0), range(0, u32::MAX, 0), range(0, 0, 0)] {
            assert_eq!(ask(discard, Some(bad), DISK), Err(Refusal::IoError), "{bad:?}");
            assert_eq!(ask(zero, Some(bad), DISK), Err(Refusal::IoError), "{bad:?}");
        }
        assert_eq!(ask(discard, None, DISK), Err(Refusal::IoError), "no range");
        let two = parse(header(discard, 0), whole, data(&[16]), vec![], DISK);
        assert_eq!(two, Err(Refusal::IoError), "two ranges");
        let answered = parse(header(zero, 0), whole, vec![], data(&[512]), DISK);
        assert_eq!(answered, Err(Refusal::IoError), "data to be written by the device");
        for (kind, flags) in [(discard, 1), (discard, 2), (zero, 2), (zero, u32::MAX), (zero, 1 << 31)] {
            let refused = ask(kind, Some(range(u64::MAX, 1, flags)), DISK);
            assert_eq!(refused, Err(Refusal::Unsupported), "{kind} {flags:#x}");
        }
        let read_only = Geometry { is_read_only: true, can_discard: false, ..DISK };
        assert_eq!(ask(discard, whole, read_only), Err(Refusal::IoError));
        assert_eq!(ask(zero, whole, read_only), Err(Refusal::IoError));
        let without = Geometry { can_discard: false, ..DISK };
        assert_eq!(ask(discard, whole, without), Err(Refusal::Unsupported));
        assert!(ask(zero, whole, without).is_ok());
    }

    #[test]
    fn refuses_to_write_a_read_only_disk() {
        let disk = Geometry { is_read_only: true, ..DISK };
        assert_eq!(parse(header(1, 0), None, data(&[512]), vec![], disk), Err(Refusal::IoError));
    }

    #[test]
    fn refuses_mixed_directions_and_unknown_kinds() {
        assert_eq!(parse(header(0, 0), None, data(&[512]), data(&[512]), DISK), Err(Refusal::IoError));
        assert_eq!(parse(header(1, 0), None, data(&[512]), data(&[512]), DISK), Err(Refusal::IoError));
        assert_eq!(parse(header(8, 0), None, vec![], data(&[19]), DISK), Err(Refusal::IoError));
        for kind in [2, 3, 12, 14, u32::MAX] {
            assert_eq!(parse(header(kind, 0), None, vec![], data(&[512]), DISK), Err(Refusal::Unsupported));
        }
    }

    #[test]
    fn finds_the_status_byte_at_the_very_end() {
        let cut = |lens: &[u32]| split_status(&data(lens));
        assert_eq!(cut(&[]), None);
        assert_eq!(cut(&[1]), Some((vec![], GuestAddress(0x1000))));
        assert_eq!(cut(&[512, 1]), Some((data(&[512]), GuestAddress(0x1000))));
        assert_eq!(cut(&[513]), Some((data(&[512]), GuestAddress(0x1000 + 512))));
        assert_eq!(cut(&[512, 4097]), Some((data(&[512, 4096]), GuestAddress(0x1000 + 4096))));
    }

    fn pieces() -> impl Strategy<Value = Vec<u32>> {
        let len = prop_oneof![4 => Just(512_u32), 4 => Just(4096), 1 => any::<u32>()];
        prop_oneof![Just(vec![]), proptest::collection::vec(len, 0..5)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn whatever_is_accepted_lies_within_the_disk(
            bytes in any::<[u8; HEADER_LEN]>(), kind in prop_oneof![0_u32..2, 0_u32..14], is_known in any::<bool>(),
            sectors in prop_oneof![0_u64..200, 0_u64..1 << 55], sector in prop_oneof![0_u64..200, any::<u64>()],
            (block_shift, is_read_only, can_discard, is_write_through) in (0_u32..4, any::<bool>(), any::<bool>(), any::<bool>()),
            range_of in prop::option::of((prop_oneof![0_u64..200, any::<u64>()], prop_oneof![0_u32..200, any::<u32>()], prop_oneof![0_u32..3, any::<u32>()])),
            readable in pieces(), writable in pieces(),
        ) {
            let header = if is_known { header(kind, sector) } else { bytes };
            let block_sectors = 1 << block_shift;
            let disk = Geometry { sectors, block_sectors, is_read_only, can_discard, is_write_through };
            let range = range_of.map(|(sector, sectors, flags)| range(sector, sectors, flags));
            let (offset, len, is_change) = match parse(header, range, data(&readable), data(&writable), disk) {
                Ok(Kind::Io(Task::Read { offset, data })) => (offset, chain::len(&data), false),
                Ok(Kind::Io(Task::Write { offset, data, is_durable })) => {
                    prop_assert_eq!(is_durable, is_write_through);
                    (offset, chain::len(&data), true)
                }
                Ok(Kind::Io(Task::Discard { offset, len })) => {
                    prop_assert!(can_discard);
                    (offset, len, true)
                }
                Ok(Kind::Io(Task::Zero { offset, len, .. })) => (offset, len, true),
                Ok(Kind::Id { data }) => return { prop_assert!(chain::len(&data) >= 20); Ok(()) },
                Ok(Kind::Io(Task::Flush)) | Err(_) => return Ok(()),
            };
            prop_assert!(len > 0 && len <= MAX_DATA_LEN.max(u64::from(MAX_RANGE_SECTORS) * 512));
            prop_assert!(len.is_multiple_of(512 * block_sectors) && offset.is_multiple_of(512 * block_sectors));
            prop_assert!(offset + len <= sectors * 512);
            prop_assert!(!(is_change && is_read_only));
        }
    }
}
