//! Who may send how much on a connection (VIRTIO 1.3 §5.10.6.3). Pure. Key types: [`ToGuest`], [`FromGuest`].
//!
//! Counters are free-running and wrap. What the guest claims of its own can make it get less, and nothing else.

use super::WINDOW;

/// What the host may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ToGuest {
    sent: u32,
    room: u32,
    taken: u32,
}

impl ToGuest {
    /// The guest says what it has room for, and what it has taken.
    pub(super) fn learn(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        (self.room, self.taken) = (buf_alloc, fwd_cnt);
    }

    /// Bytes that may be sent now.
    pub(super) fn left(self) -> u32 {
        self.room.saturating_sub(self.sent.wrapping_sub(self.taken))
    }

    /// So many were.
    pub(super) fn send(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }
}

/// What the guest may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct FromGuest {
    received: u32,
    /// What the host's program has taken.
    taken: u32,
    /// What the guest was told of that.
    told: u32,
}

impl FromGuest {
    /// The guest sends so many bytes; false if it may not.
    pub(super) fn receive(&mut self, len: u32) -> bool {
        // Never more than a window apart.
        let waiting = self.received.wrapping_sub(self.taken);
        let is_allowed = len <= WINDOW - waiting.min(WINDOW);
        if is_allowed {
            self.received = self.received.wrapping_add(len);
        }
        is_allowed
    }

    /// The host's program has taken so many of them.
    pub(super) fn take(&mut self, len: u32) {
        self.taken = self.taken.wrapping_add(len);
    }

    /// What the guest is told with each packet: room, and what was taken.
    pub(super) fn tell(&mut self) -> (u32, u32) {
        self.told = self.taken;
        (WINDOW, self.taken)
    }

    /// Whether the guest believes that less than half of the window is left, and more is.
    pub(super) fn is_news(self) -> bool {
        let believed = self.received.wrapping_sub(self.told);
        believed > WINDOW / 2 && self.taken != self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_guest_is_told_before_it_runs_out() {
        let mut credit = FromGuest::default();
        assert!(credit.receive(WINDOW) && !credit.receive(1));
        assert!(!credit.is_news(), "nothing was taken");
        credit.take(10);
        assert!(credit.is_news());
        assert_eq!(credit.tell(), (WINDOW, 10));
        assert!(!credit.is_news());
        assert!(credit.receive(10) && !credit.receive(1));
    }

    #[test]
    fn counters_wrap() {
        let mut credit = ToGuest { sent: u32::MAX - 4, room: 100, taken: u32::MAX - 4 };
        credit.send(50);
        assert_eq!(credit.left(), 50);
        credit.learn(100, 45);
        assert_eq!(credit.left(), 100);
    }

    proptest! {
        #[test]
        fn no_claim_of_the_guest_gives_more_than_its_room(claims in proptest::collection::vec(any::<(u32, u32)>(), 1..20)) {
            let mut credit = ToGuest::default();
            for (room, taken) in claims {
                credit.learn(room, taken);
                prop_assert!(credit.left() <= room);
                credit.send(credit.left());
            }
        }

        #[test]
        fn what_waits_is_never_more_than_the_window(steps in proptest::collection::vec((0..80_000_u32, 0..80_000_u32), 1..40)) {
            let mut credit = FromGuest { received: u32::MAX - 9, taken: u32::MAX - 9, told: u32::MAX - 9 };
            let mut waiting = 0;
            for (send, take) in steps {
                if credit.receive(send) {
                    waiting += send;
                }
                prop_assert!(waiting <= WINDOW);
                let take = take.min(waiting);
                credit.take(take);
                waiting -= take;
            }
        }
    }
}
