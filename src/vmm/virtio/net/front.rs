//! What a driver sees of a NIC on a tap, whoever moves its frames. Pure. Key types: [`Front`], [`Role`].

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use super::offload::{self, has};
use crate::model::{DeviceId, MacAddr};
use crate::sys::tap::Offloads;
use crate::vmm::virtio::device::Identity;

const QUEUE_SIZE: u16 = 256;
/// Entries of the control queue: a driver sends one command and waits.
const CONTROL_SIZE: u16 = 64;
/// Ethernet controller.
const CLASS: u32 = 0x02_00_00;

/// What a NIC is to its driver.
#[derive(Debug)]
pub(super) struct Front {
    pub(super) id: DeviceId,
    pub(super) mac: MacAddr,
    /// Pairs of queues, at least 1; at most a few, as the launch says.
    pub(super) pairs: u16,
    /// What the tap can do.
    pub(super) known: Offloads,
}

/// What a queue is for (VIRTIO 1.3 §5.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Receive(usize),
    Transmit(usize),
    Control,
}

impl Front {
    pub(super) fn identity(&self) -> Identity {
        // struct virtio_net_config (VIRTIO 1.3 §5.1.4) up to max_virtqueue_pairs.
        let mut config = self.mac.0.to_vec();
        config.extend((VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        config.extend(self.pairs.to_le_bytes());
        let mut features = offload::offer(self.known) | 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS;
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * usize::from(self.pairs)];
        if self.pairs > 1 {
            features |= 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
            queue_sizes.push(CONTROL_SIZE);
        }
        Identity {
            id: self.id.to_string(),
            device_type: VIRTIO_ID_NET as u16,
            class: CLASS,
            features,
            config,
            queue_sizes,
        }
    }

    /// What queue `number` is for under these features: the control queue is behind the pairs that the driver knows of.
    pub(super) fn role(&self, number: usize, features: u64) -> Option<Role> {
        let pairs = if has(features, VIRTIO_NET_F_MQ) { usize::from(self.pairs) } else { 1 };
        match (number / 2, number % 2) {
            (pair, 0) if pair < pairs => Some(Role::Receive(pair)),
            (pair, _) if pair < pairs => Some(Role::Transmit(pair)),
            (pair, 0) if pair == pairs && has(features, VIRTIO_NET_F_CTRL_VQ) => Some(Role::Control),
            _ => None,
        }
    }

    /// Whether queue `number` is the control queue of some driver or other.
    pub(super) fn may_be_control(&self, number: usize) -> bool {
        let ctrl = 1 << VIRTIO_NET_F_CTRL_VQ;
        self.pairs > 1
            && [ctrl, ctrl | 1 << VIRTIO_NET_F_MQ]
                .into_iter()
                .any(|features| self.role(number, features) == Some(Role::Control))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn front(pairs: u16) -> Front {
        Front { id: "net".parse().unwrap(), mac: MacAddr([2, 0, 0, 0, 0, 1]), pairs, known: Offloads::NONE }
    }

    #[test]
    fn the_control_queue_is_behind_the_pairs_that_the_driver_knows_of() {
        let (ctrl, both) = (1 << VIRTIO_NET_F_CTRL_VQ, 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ);
        let nic = front(3);
        assert_eq!(nic.role(2, both), Some(Role::Receive(1)));
        assert_eq!(nic.role(6, both), Some(Role::Control));
        assert_eq!(nic.role(2, ctrl), Some(Role::Control), "one pair is all that a driver without MQ knows");
        assert_eq!((nic.role(3, ctrl), nic.role(2, 0)), (None, None));
        let possible = |pairs| (0..8).filter(|number| front(pairs).may_be_control(*number)).collect::<Vec<_>>();
        assert_eq!((possible(1), possible(2), possible(3)), (vec![], vec![2, 4], vec![2, 6]));
    }
}
