//! The header of a packet, decoded and encoded (VIRTIO 1.3 §5.10.6). Pure. Key types: [`Header`], [`Op`].

/// Bytes of a header (struct virtio_vsock_hdr).
pub(super) const HEADER_LEN: usize = 44;
/// The host's context id (VIRTIO 1.3 §5.10.4).
pub(super) const HOST_CID: u64 = 2;
/// Most bytes of data in one packet: what Linux takes.
pub(super) const MAX_DATA_LEN: u64 = 64 << 10;

/// VIRTIO_VSOCK_TYPE_STREAM.
pub(super) const STREAM: u16 = 1;
/// Flags of a SHUTDOWN: its sender takes no more, its sender sends no more.
pub(super) const NO_RECEIVE: u32 = 1;
pub(super) const NO_SEND: u32 = 2;
pub(super) const NEITHER: u32 = NO_RECEIVE | NO_SEND;

/// What a packet is for (enum virtio_vsock_op).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
}

impl Op {
    const ALL: [(Self, u16); 7] = [
        (Self::Request, 1),
        (Self::Response, 2),
        (Self::Reset, 3),
        (Self::Shutdown, 4),
        (Self::Data, 5),
        (Self::CreditUpdate, 6),
        (Self::CreditRequest, 7),
    ];

    /// `None` for a number that no operation has.
    pub(super) fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, known)| *known == number).map(|(op, _)| op)
    }

    pub(super) fn number(self) -> u16 {
        Self::ALL.into_iter().find(|(op, _)| *op == self).map_or(0, |(_, number)| number)
    }
}

/// The ports of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// struct virtio_vsock_hdr; all of it is the sender's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of data that follow.
    pub(super) len: u32,
    /// [`STREAM`], or a kind that is not offered.
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// Room that the sender has for this connection, in bytes.
    pub(super) buf_alloc: u32,
    /// Bytes of this connection that the sender's program has taken so far, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn decode(bytes: [u8; HEADER_LEN]) -> Self {
        let mut rest = &bytes[..];
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend(self.src_cid.to_le_bytes());
        bytes.extend(self.dst_cid.to_le_bytes());
        bytes.extend(self.src_port.to_le_bytes());
        bytes.extend(self.dst_port.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The ports, if the guest sent it.
    pub(super) fn ports(&self) -> Ports {
        Ports { host: self.dst_port, guest: self.src_port }
    }

    /// The refusal of this packet, to whom and from whom it claims to be.
    pub(super) fn refusal(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Reset.number(),
            ..Self::default()
        }
    }
}

/// The first `N` bytes, which are taken off; zeroes where there are fewer.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (first, after) = rest.split_first_chunk().unwrap_or((&[0; N], &[]));
    *rest = after;
    *first
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_header_lies_as_the_specification_has_it() {
        let header = Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 0x1000,
            dst_port: 0x2000,
            len: 5,
            kind: STREAM,
            op: Op::Data.number(),
            flags: 3,
            buf_alloc: 0x4_0000,
            fwd_cnt: 7,
        };
        let bytes = header.encode();
        assert_eq!((bytes.len(), bytes[0], bytes[8], bytes[17], bytes[21]), (HEADER_LEN, 3, 2, 0x10, 0x20));
        assert_eq!((bytes[24], bytes[28], bytes[30], bytes[32], bytes[38], bytes[40]), (5, 1, 5, 3, 4, 7));
        let refusal = header.refusal();
        assert_eq!((refusal.src_port, refusal.dst_port, refusal.op, refusal.len), (0x2000, 0x1000, 3, 0));
        assert_eq!((refusal.src_cid, refusal.dst_cid), (2, 3));
    }

    #[test]
    fn operations_are_1_to_7() {
        for number in 1..=7 {
            assert_eq!(Op::from_number(number).map(Op::number), Some(number));
        }
        assert_eq!((Op::from_number(0), Op::from_number(8)), (None, None));
    }

    proptest! {
        #[test]
        fn every_header_round_trips(bytes in proptest::collection::vec(any::<u8>(), HEADER_LEN)) {
            let array: [u8; HEADER_LEN] = bytes.clone().try_into().unwrap();
            prop_assert_eq!(Header::decode(array).encode(), bytes);
        }
    }
}
