//! What host and guest leave to each other: checksums and segmentation (VIRTIO 1.3 §5.1.3, §5.1.6). Pure.
//! Key functions: [`offer`], [`host_flags`], [`transmit_header`], [`receive_header`].
//!
//! ```text
//!   struct virtio_net_hdr_v1: flags u8 | gso_type u8 | hdr_len u16 | gso_size u16 | csum_start u16 | csum_offset u16 | num_buffers u16
//! ```

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
};

use crate::sys::tap::Offloads;

/// Bytes of the header.
pub(super) const HEADER_LEN: usize = 12;
/// A header that says nothing.
pub(super) const NO_HEADER: [u8; HEADER_LEN] = [0; HEADER_LEN];
/// Longest frame: what fits into an IP packet, with Ethernet and VLAN headers.
pub(super) const MAX_FRAME_LEN: u64 = 65_535 + 18;
/// Longest frame that nobody segments: MTU 1500 with its Ethernet header. Drivers give as much room (§5.1.6.3.1).
const MAX_PLAIN_LEN: u64 = 1500 + 14;

/// Whether the feature bit is in `features`.
pub(super) fn has(features: u64, bit: u32) -> bool {
    features & 1 << bit != 0
}

/// Offloads with their bits, in the direction host to guest: each is the tap's once the guest takes it.
const TO_GUEST: [(u32, Offloads); 5] = [
    (VIRTIO_NET_F_GUEST_CSUM, Offloads::CHECKSUM),
    (VIRTIO_NET_F_GUEST_TSO4, Offloads::TCP4),
    (VIRTIO_NET_F_GUEST_TSO6, Offloads::TCP6),
    (VIRTIO_NET_F_GUEST_USO4, Offloads::UDP4),
    (VIRTIO_NET_F_GUEST_USO6, Offloads::UDP6),
];

/// The same in the other direction: the tap takes them at any time, if it knows them.
const TO_HOST: [(u32, Offloads); 4] = [
    (VIRTIO_NET_F_CSUM, Offloads::CHECKSUM),
    (VIRTIO_NET_F_HOST_TSO4, Offloads::TCP4),
    (VIRTIO_NET_F_HOST_TSO6, Offloads::TCP6),
    (VIRTIO_NET_F_HOST_USO, Offloads::UDP4),
];

/// Features to offer on a tap that can do `known`.
pub(super) fn offer(known: Offloads) -> u64 {
    let possible = TO_GUEST.iter().chain(&TO_HOST).filter(|(_, offload)| known.contains(*offload));
    possible.fold(1 << VIRTIO_NET_F_MRG_RXBUF, |features, (bit, _)| features | 1 << bit)
}

/// What the tap may leave to a guest that took `features`. Segmentation is nothing without checksums (§5.1.3.1).
pub(super) fn host_flags(features: u64) -> Offloads {
    if !has(features, VIRTIO_NET_F_GUEST_CSUM) {
        return Offloads::NONE;
    }
    let taken = TO_GUEST.iter().filter(|(bit, _)| has(features, *bit));
    let flags = taken.fold(Offloads::NONE, |flags, (_, offload)| flags.with(*offload));
    // A tap takes both or none.
    match flags.contains(Offloads::UDP4) && flags.contains(Offloads::UDP6) {
        true => flags,
        false => flags.without(Offloads::UDP4).without(Offloads::UDP6),
    }
}

/// Longest frame that the tap gives with `flags`.
pub(super) fn longest_frame(flags: Offloads) -> u64 {
    if flags.without(Offloads::CHECKSUM) == Offloads::NONE { MAX_PLAIN_LEN } else { MAX_FRAME_LEN }
}

/// The header for the tap from the one that a guest that took `features` wrote before a frame of `frame_len` bytes.
/// `None` if it asks for what was not agreed upon, or points out of the frame.
pub(super) fn transmit_header(header: [u8; HEADER_LEN], features: u64, frame_len: u64) -> Option<[u8; HEADER_LEN]> {
    if !has(features, VIRTIO_NET_F_CSUM) {
        // Bits that mean nothing are ignored (§5.1.6.2.2).
        return Some(NO_HEADER);
    }
    let [flags, gso_type, a, b, c, d, e, f, g, h, _, _] = header;
    let word = |low, high| u64::from(u16::from_le_bytes([low, high]));
    let needs_checksum = u32::from(flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
    if needs_checksum && word(e, f) + word(g, h) + 2 > frame_len {
        return None;
    }
    let gso_bit = match u32::from(gso_type) {
        VIRTIO_NET_HDR_GSO_NONE => None,
        VIRTIO_NET_HDR_GSO_TCPV4 => Some(VIRTIO_NET_F_HOST_TSO4),
        VIRTIO_NET_HDR_GSO_TCPV6 => Some(VIRTIO_NET_F_HOST_TSO6),
        VIRTIO_NET_HDR_GSO_UDP_L4 => Some(VIRTIO_NET_F_HOST_USO),
        _ => return None,
    };
    let Some(gso_bit) = gso_bit else {
        let flags = flags & VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
        return Some(if needs_checksum { [flags, 0, 0, 0, 0, 0, e, f, g, h, 0, 0] } else { NO_HEADER });
    };
    if !has(features, gso_bit) || !needs_checksum || word(c, d) == 0 || word(a, b) > frame_len {
        return None;
    }
    Some([VIRTIO_NET_HDR_F_NEEDS_CSUM as u8, gso_type, a, b, c, d, e, f, g, h, 0, 0])
}

/// The header for a guest that took `features` from the tap's, for a frame in `buffers` buffers.
pub(super) fn receive_header(header: [u8; HEADER_LEN], features: u64, buffers: u16) -> [u8; HEADER_LEN] {
    let mut shown = if has(features, VIRTIO_NET_F_GUEST_CSUM) { header } else { NO_HEADER };
    if let Some(count) = shown.last_chunk_mut() {
        *count = buffers.to_le_bytes();
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: Offloads = Offloads::ALL;

    #[test]
    fn offers_what_the_tap_can_and_no_more() {
        assert_eq!(offer(Offloads::NONE), 1 << 15);
        let tcp = Offloads::CHECKSUM.with(Offloads::TCP4).with(Offloads::TCP6);
        let expected = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12 | 1 << 15;
        assert_eq!(offer(tcp), expected);
        assert_eq!(offer(ALL), expected | 1 << 54 | 1 << 55 | 1 << 56);
    }

    #[test]
    fn the_tap_keeps_to_what_the_guest_took() {
        assert_eq!(host_flags(offer(ALL)), ALL);
        assert_eq!(host_flags(0), Offloads::NONE);
        assert_eq!(host_flags(1 << 7 | 1 << 8), Offloads::NONE, "no segments without checksums");
        assert_eq!(host_flags(1 << 1 | 1 << 7), Offloads::CHECKSUM.with(Offloads::TCP4));
        assert_eq!(host_flags(1 << 1 | 1 << 54), Offloads::CHECKSUM, "one half of UDP is none");
        assert!(longest_frame(Offloads::CHECKSUM) < 1600 && longest_frame(ALL) > 65_535);
    }

    fn header(flags: u8, gso: u8, hdr_len: u16, size: u16, start: u16, offset: u16) -> [u8; HEADER_LEN] {
        let mut bytes = [flags, gso, 0, 0, 0, 0, 0, 0, 0, 0, 0xee, 0xee];
        for (at, value) in [(2, hdr_len), (4, size), (6, start), (8, offset)] {
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn takes_good_headers_apart_from_what_means_nothing() {
        let features = offer(ALL);
        let good = header(1, 1, 66, 1448, 34, 16);
        assert_eq!(transmit_header(good, features, 3000).unwrap()[..10], good[..10]);
        assert_eq!(transmit_header(good, features, 3000).unwrap()[10..], [0, 0]);
        let plain = header(0, 0, 9, 9, 9, 9);
        assert_eq!(transmit_header(plain, features, 60), Some(NO_HEADER));
        assert_eq!(transmit_header(header(0xff, 0x81, 1, 1, 1, 1), 0, 60), Some(NO_HEADER), "nothing was agreed upon");
        let unknown_flags = header(0xff, 0, 0, 0, 34, 16);
        assert_eq!(transmit_header(unknown_flags, features, 60).unwrap()[0], 1);
    }

    #[test]
    fn refuses_headers_that_lie() {
        let features = offer(ALL);
        for (bad, frame_len, why) in [
            (header(1, 0, 0, 0, 59, 0), 60, "a checksum behind the end"),
            (header(1, 0, 0, 0, u16::MAX, u16::MAX), 60, "far behind"),
            (header(1, 1, 66, 0, 34, 16), 3000, "segments without a size"),
            (header(0, 1, 66, 1448, 34, 16), 3000, "segments without checksums"),
            (header(1, 1, 3001, 1448, 34, 16), 3000, "headers longer than the frame"),
            (header(1, 2, 66, 1448, 34, 16), 3000, "an unknown kind"),
            (header(1, 0x81, 66, 1448, 34, 16), 3000, "ECN, which was not offered"),
            (header(1, 3, 66, 1448, 34, 16), 3000, "UDP fragmentation, which was not offered"),
        ] {
            assert_eq!(transmit_header(bad, features, frame_len), None, "{why}");
        }
        let without_tso6 = features & !(1 << 12);
        assert_eq!(transmit_header(header(1, 4, 66, 1448, 54, 16), without_tso6, 3000), None);
    }

    proptest! {
        #[test]
        fn what_passes_was_agreed_upon_and_stays_in_the_frame(
            header in any::<[u8; HEADER_LEN]>(), gso in 0_u8..6, is_known in any::<bool>(), features in any::<u64>(),
            frame_len in 0_u64..70_000,
        ) {
            let mut header = header;
            if is_known {
                header[..2].copy_from_slice(&[1, gso]);
            }
            if let Some(passed) = transmit_header(header, features, frame_len) {
                let word = |at: usize| u64::from(u16::from_le_bytes([passed[at], passed[at + 1]]));
                prop_assert!(passed[0] <= 1 && passed[10..] == [0, 0]);
                if passed[0] == 1 {
                    prop_assert!(has(features, VIRTIO_NET_F_CSUM) && word(6) + word(8) + 2 <= frame_len);
                }
                match passed[1] {
                    0 => prop_assert_eq!(word(4), 0),
                    kind => {
                        let bit = match kind { 1 => 11, 4 => 12, 5 => 56, _ => unreachable!("{}", kind) };
                        prop_assert!(has(features, bit) && passed[0] == 1 && word(4) > 0 && word(2) <= frame_len);
                    }
                }
            }
            let shown = receive_header(header, features, 7);
            prop_assert_eq!(&shown[10..], &[7, 0]);
            prop_assert!(has(features, VIRTIO_NET_F_GUEST_CSUM) || shown[..10] == [0; 10]);
        }
    }
}
