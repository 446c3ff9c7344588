//! What a descriptor chain asks of a disk. Pure. Key types: [`Request`], [`Kind`], [`Refusal`].
//!
//! ```text
//!   readable: [type u32 | reserved u32 | sector u64] [data to write …]        VIRTIO 1.2 §5.2.6
//!   writable: [… data read] [status u8]
//! ```
//! Drivers may cut the bytes into descriptors as they like (VIRTIO 1.2 §2.7.4).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::GuestAddress;

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

/// The disk as requests see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Sectors of 512 bytes.
    pub(super) sectors: u64,
    /// Writes are refused.
    pub(super) is_read_only: bool,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// From the image at byte `offset` to `data`.
    Read { offset: u64, data: Vec<Segment> },
    /// From `data` to the image at byte `offset`.
    Write { offset: u64, data: Vec<Segment> },
    /// Everything written so far to stable storage.
    Flush,
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

/// Reads a request: its header, the readable data after it and the writable data before the status byte.
pub(super) fn parse(
    header: [u8; HEADER_LEN],
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    disk: Geometry,
) -> Result<Kind, Refusal> {
    let [a, b, c, d, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    match u32::from_le_bytes([a, b, c, d]) {
        VIRTIO_BLK_T_IN if readable.is_empty() => {
            Ok(Kind::Read { offset: offset(sector, &writable, disk)?, data: writable })
        }
        VIRTIO_BLK_T_OUT if disk.is_read_only || !writable.is_empty() => Err(Refusal::IoError),
        VIRTIO_BLK_T_OUT => Ok(Kind::Write { offset: offset(sector, &readable, disk)?, data: readable }),
        VIRTIO_BLK_T_FLUSH => Ok(Kind::Flush),
        VIRTIO_BLK_T_GET_ID if chain::len(&writable) >= ID_LEN as u64 => Ok(Kind::Id { data: writable }),
        VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID => Err(Refusal::IoError),
        _ => Err(Refusal::Unsupported),
    }
}

/// Byte offset of `data` on the disk, if it is whole sectors within it.
fn offset(sector: u64, data: &[Segment], disk: Geometry) -> Result<u64, Refusal> {
    let len = chain::len(data);
    if len == 0 || !len.is_multiple_of(SECTOR_LEN) || len > MAX_DATA_LEN {
        return Err(Refusal::IoError);
    }
    let end = sector.checked_add(len / SECTOR_LEN).ok_or(Refusal::IoError)?;
    if end > disk.sectors {
        return Err(Refusal::IoError);
    }
    // The disk's length in bytes fits into 64 bits, hence every offset within it.
    sector.checked_mul(SECTOR_LEN).ok_or(Refusal::IoError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISK: Geometry = Geometry { sectors: 100, is_read_only: false };

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
        let read = |sector, lens: &[u32]| parse(header(0, sector), vec![], data(lens), DISK);
        assert_eq!(read(99, &[512]), Ok(Kind::Read { offset: 99 * 512, data: data(&[512]) }));
        assert_eq!(read(0, &[100, 412]), Ok(Kind::Read { offset: 0, data: data(&[100, 412]) }));
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
        let write = parse(header(1, 5), data(&[512]), vec![], DISK);
        assert_eq!(write, Ok(Kind::Write { offset: 5 * 512, data: data(&[512]) }));
    }

    #[test]
    fn refuses_to_write_a_read_only_disk() {
        let disk = Geometry { is_read_only: true, ..DISK };
        assert_eq!(parse(header(1, 0), data(&[512]), vec![], disk), Err(Refusal::IoError));
    }

    #[test]
    fn refuses_mixed_directions_and_unknown_kinds() {
        assert_eq!(parse(header(0, 0), data(&[512]), data(&[512]), DISK), Err(Refusal::IoError));
        assert_eq!(parse(header(1, 0), data(&[512]), data(&[512]), DISK), Err(Refusal::IoError));
        assert_eq!(parse(header(8, 0), vec![], data(&[19]), DISK), Err(Refusal::IoError));
        for kind in [2, 3, 11, 13, u32::MAX] {
            assert_eq!(parse(header(kind, 0), vec![], data(&[512]), DISK), Err(Refusal::Unsupported));
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
            is_read_only in any::<bool>(), readable in pieces(), writable in pieces(),
        ) {
            let header = if is_known { header(kind, sector) } else { bytes };
            let disk = Geometry { sectors, is_read_only };
            match parse(header, data(&readable), data(&writable), disk) {
                Ok(Kind::Read { offset, data } | Kind::Write { offset, data }) => {
                    let len = chain::len(&data);
                    prop_assert!(len > 0 && len <= MAX_DATA_LEN && len.is_multiple_of(512) && offset.is_multiple_of(512));
                    prop_assert!(offset + len <= sectors * 512);
                }
                Ok(Kind::Id { data }) => prop_assert!(chain::len(&data) >= 20),
                Ok(Kind::Flush) | Err(_) => {}
            }
        }
    }
}
