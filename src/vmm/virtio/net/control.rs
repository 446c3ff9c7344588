//! Commands of the control queue (VIRTIO 1.3 §5.1.6.5). Key function: [`answer`].

use std::io;

use virtio_bindings::virtio_net::{VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK};
use vm_memory::GuestMemoryMmap;

use crate::vmm::virtio::chain;
use crate::vmm::virtio::device::Fault;
use crate::vmm::virtio::queue::{Ring, RingFault};

/// Most readable bytes of a command that is understood: class, command, number of pairs.
const COMMAND_LEN: usize = 4;

/// What the driver wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    /// Frames on this many pairs, 1 to what there are.
    UsePairs(u16),
}

/// Answers commands to a device of `pairs` queue pairs, of which it uses as many as `use_pairs` is told. True if there
/// was such a command.
pub(super) fn answer(
    ring: &mut Ring,
    memory: &GuestMemoryMmap,
    pairs: u16,
    mut use_pairs: impl FnMut(u16) -> io::Result<()>,
) -> Result<bool, Fault> {
    let mut is_changed = false;
    for _ in 0..ring.size() {
        let Some(mut chain) = ring.pop(memory)? else {
            if ring.listen(memory)? {
                continue;
            }
            break;
        };
        let head = chain.head;
        let bytes = chain.read_head::<COMMAND_LEN>(memory).filter(|_| chain.readable.is_empty());
        let answer = match bytes.and_then(|bytes| parse(bytes, pairs)) {
            Some(Command::UsePairs(count)) => {
                use_pairs(count)?;
                is_changed = true;
                VIRTIO_NET_OK
            }
            None => {
                ring.count_offence();
                VIRTIO_NET_ERR
            }
        };
        chain::write(memory, &chain.writable, &[answer as u8]).ok_or(RingFault::NoAnswer)?;
        ring.complete(memory, head, 1)?;
    }
    ring.signal(memory)?;
    Ok(is_changed)
}

/// Reads a command for a device of `pairs` queue pairs; `None` is answered with `VIRTIO_NET_ERR`.
fn parse(bytes: [u8; COMMAND_LEN], pairs: u16) -> Option<Command> {
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
