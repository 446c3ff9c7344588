//! Registers behind the slots' ACPI devices: what the guest is told of slots, and its word that one may go. Pure.
//! Key type: [`SlotRegisters`]. The other side is AML (`boot::acpi`).
//!
//! ```text
//!   offset  0  INSERTED  read: slots that hold something new        read clears
//!           4  ASKED     read: slots that the host wants back       read clears
//!           8  EJECT     write: slots that the guest lets go        counts only for those asked for
//! ```
//! One bit per slot. What was not read yet stays, so that the interrupt may be raised again for it.

/// Bytes of the registers.
pub const LEN: u16 = 12;

const INSERTED: u16 = 0;
const ASKED: u16 = 4;
const EJECT: u16 = 8;

/// What is under way with the slots of bus 0.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SlotRegisters {
    inserted: u32,
    /// Of those in `wanted`, what the guest has not read yet.
    asked: u32,
    /// Slots that the guest may let go.
    wanted: u32,
}

fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or(0)
}

impl SlotRegisters {
    /// Something new is in `slot`.
    pub fn insert(&mut self, slot: u8) {
        self.inserted |= bit(slot);
    }

    /// The host wants what is in `slot`. May be said again.
    pub fn ask(&mut self, slot: u8) {
        self.asked |= bit(slot);
        self.wanted |= bit(slot);
    }

    /// `slot` is empty: nothing that was said of it holds any more.
    pub fn clear(&mut self, slot: u8) {
        self.inserted &= !bit(slot);
        self.asked &= !bit(slot);
        self.wanted &= !bit(slot);
    }

    /// Whether there is anything that the guest has not read.
    pub fn has_news(&self) -> bool {
        self.inserted | self.asked != 0
    }

    /// A guest's read of 32 bits.
    pub fn read(&mut self, offset: u16) -> u32 {
        match offset {
            INSERTED => std::mem::take(&mut self.inserted),
            ASKED => std::mem::take(&mut self.asked),
            _ => 0,
        }
    }

    /// A guest's write of 32 bits; returns the slots that are to be emptied.
    pub fn write(&mut self, offset: u16, value: u32) -> u32 {
        if offset != EJECT {
            return 0;
        }
        let released = value & self.wanted;
        self.wanted &= !released;
        self.asked &= !released;
        released
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_guest_reads_each_piece_of_news_once_and_lets_go_only_what_was_asked_for() {
        let mut slots = SlotRegisters::default();
        slots.insert(3);
        slots.ask(31);
        assert!(slots.has_news());
        assert_eq!((slots.read(INSERTED), slots.read(INSERTED)), (8, 0));
        assert_eq!((slots.read(ASKED), slots.read(ASKED)), (1 << 31, 0));
        assert!(!slots.has_news());
        assert_eq!(slots.write(EJECT, u32::MAX), 1 << 31);
        assert_eq!(slots.write(EJECT, u32::MAX), 0);
        slots.ask(5);
        slots.clear(5);
        assert_eq!((slots.read(ASKED), slots.write(EJECT, u32::MAX)), (0, 0));
    }

    proptest! {
        /// Whatever a guest reads and writes: a slot goes at most once for each time that it was asked for.
        #[test]
        fn no_slot_goes_that_was_not_asked_for(
            steps in proptest::collection::vec((0u8..6, 0u8..40, any::<u16>(), any::<u32>()), 0..200),
        ) {
            let mut slots = SlotRegisters::default();
            let mut may_go = 0u32;
            for (step, slot, offset, value) in steps {
                match step {
                    0 => slots.insert(slot),
                    1 => { slots.ask(slot); may_go |= bit(slot); }
                    2 => { slots.clear(slot); may_go &= !bit(slot); }
                    3 => { slots.read(offset % 16); }
                    4 => {
                        let gone = slots.write(offset % 16, value);
                        prop_assert_eq!(gone & !may_go, 0);
                        prop_assert_eq!(gone & !value, 0);
                        may_go &= !gone;
                    }
                    _ => {
                        let asked = slots.read(ASKED);
                        prop_assert_eq!(asked & !may_go, 0);
                    }
                }
            }
        }
    }
}
