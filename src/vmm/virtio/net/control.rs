//! Commands of the control queue (VIRTIO 1.3 §5.1.6.5). Pure. Key function: [`parse`].

use virtio_bindings::virtio_net::{VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET};

/// Most readable bytes of a command that is understood: class, command, number of pairs.
pub(super) const COMMAND_LEN: usize = 4;

/// What the driver wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// Frames on this many pairs, 1 to what there are.
    UsePairs(u16),
}

/// Reads a command for a device of `pairs` queue pairs; `None` is answered with `VIRTIO_NET_ERR`.
pub(super) fn parse(bytes: [u8; COMMAND_LEN], pairs: u16) -> Option<Command> {
    let [class, command, low, high] = bytes;
    if (u32::from(class), u32::from(command)) != (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) {
        return None;
    }
    let wanted = u16::from_le_bytes([low, high]);
    (1..=pairs).contains(&wanted).then_some(Command::UsePairs(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn only_pairs_that_exist_are_used(bytes in any::<[u8; COMMAND_LEN]>(), class in 0_u8..6, pairs in 1_u16..9) {
            for bytes in [bytes, [class, 0, bytes[2] % 12, 0]] {
                match parse(bytes, pairs) {
                    Some(Command::UsePairs(wanted)) => {
                        prop_assert!(wanted >= 1 && wanted <= pairs && bytes[..2] == [4, 0]);
                    }
                    None => prop_assert!(bytes[..2] != [4, 0] || !(1..=pairs).contains(&u16::from_le_bytes([bytes[2], bytes[3]]))),
                }
            }
        }
    }
}
