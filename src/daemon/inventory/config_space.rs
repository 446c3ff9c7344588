//! What a function's configuration space says of it (PCIe 6.0 §7): its interrupts, and what a bridge keeps apart. Key types:
//! [`ConfigSpace`], [`Acs`]. Pure, but for the reading.

use std::fs;
use std::path::Path;

/// Length without the extended capabilities, and with them.
const LEN: usize = 256;
const EXTENDED_LEN: usize = 4096;
/// Offset of the status register, and its bit that says there are capabilities; where they begin.
const STATUS: usize = 0x06;
const HAS_CAPABILITIES: u16 = 1 << 4;
const FIRST: usize = 0x34;
/// Ids of capabilities: MSI-X (§7.7.2), and of the extended ones Access Control Services (§7.7.11).
const MSIX: u8 = 0x11;
const ACS: u16 = 0x0d;
/// Most capabilities that a space has room for, so that a list without an end has one.
const MAX_CAPABILITIES: usize = (EXTENDED_LEN - LEN) / 4;
/// What the status of an absent function reads as; a virtual function's ids read so too (§9.3.4.1).
const NOTHING: u16 = 0xffff;

/// Controls of Access Control Services, by bit.
const CONTROLS: [&str; 7] = [
    "source-validation",
    "translation-blocking",
    "request-redirect",
    "completion-redirect",
    "upstream-forwarding",
    "egress-control",
    "direct-translated",
];

/// Bytes of a configuration space, as many as could be read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ConfigSpace(Vec<u8>);

/// Whether a bridge sends what its functions tell each other to the IOMMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acs {
    /// It has no such services, or could not be read: all below it is one IOMMU group.
    Absent,
    /// Names of the controls that are switched on.
    Present(Vec<&'static str>),
}

impl ConfigSpace {
    /// Of the function whose directory is `dir`; only root is shown more than the header.
    pub(super) fn read(dir: &Path) -> Self {
        Self(fs::read(dir.join("config")).unwrap_or_default())
    }

    fn u16(&self, at: usize) -> Option<u16> {
        Some(u16::from_le_bytes([*self.0.get(at)?, *self.0.get(at + 1)?]))
    }

    fn is_known(&self) -> bool {
        self.0.len() >= LEN && self.u16(STATUS) != Some(NOTHING)
    }

    /// MSI-X vectors that it has, 0 without the capability; `None` if that is not known.
    pub(super) fn msix_vectors(&self) -> Option<u16> {
        if !self.is_known() {
            return None;
        }
        match self.capability(MSIX) {
            // One less than there are, in bits 0 to 10.
            Some(at) => self.u16(at + 2).map(|control| (control & 0x7ff) + 1),
            None => Some(0),
        }
    }

    /// Its Access Control Services.
    pub(super) fn acs(&self) -> Acs {
        let control = self.extended(ACS).and_then(|at| self.u16(at + 6));
        let is_on = |control: u16, bit: usize| control & 1 << bit != 0;
        control.map_or(Acs::Absent, |control| {
            let on = CONTROLS.into_iter().enumerate().filter(|(bit, _)| is_on(control, *bit));
            Acs::Present(on.map(|(_, name)| name).collect())
        })
    }

    /// Where the capability lies.
    fn capability(&self, id: u8) -> Option<usize> {
        if self.u16(STATUS)? & HAS_CAPABILITIES == 0 {
            return None;
        }
        let mut at = usize::from(*self.0.get(FIRST)? & !3);
        for _ in 0..MAX_CAPABILITIES {
            if at == 0 {
                return None;
            }
            if *self.0.get(at)? == id {
                return Some(at);
            }
            at = usize::from(*self.0.get(at + 1)? & !3);
        }
        None
    }

    /// Where the extended capability lies: id, then where the next one is, in bits 4 to 15.
    fn extended(&self, id: u16) -> Option<usize> {
        let mut at = LEN;
        for _ in 0..MAX_CAPABILITIES {
            if self.u16(at)? == id {
                return Some(at);
            }
            at = usize::from(self.u16(at + 2)? >> 4);
            if at < LEN {
                return None;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A space with bytes at these offsets.
    pub(super) fn space<const N: usize>(len: usize, parts: [(usize, &[u8]); N]) -> ConfigSpace {
        let mut bytes = vec![0; len];
        for (at, part) in parts {
            bytes[at..at + part.len()].copy_from_slice(part);
        }
        ConfigSpace(bytes)
    }

    #[test]
    fn counts_the_vectors_of_what_has_msix_and_knows_what_has_not() {
        // A virtual function, without ids of its own: Express at 0x40, then MSI-X of ten vectors.
        let with = |list: &[u8]| space(LEN, [(0, &[0xff; 4]), (6, &[0x10]), (0x34, &[0x40]), (0x40, list)]);
        assert_eq!(with(&[0x10, 0x44, 0, 0, 0x11, 0, 9, 0x80]).msix_vectors(), Some(10));
        assert_eq!(with(&[0x10, 0x44, 0, 0, 0x05, 0, 0, 0]).msix_vectors(), Some(0), "MSI only");
        assert_eq!(with(&[0x10, 0x40]).msix_vectors(), Some(0), "a list without an end");
        assert_eq!(space(LEN, [(0, &[0x86, 0x80])]).msix_vectors(), Some(0));
        assert_eq!(space(64, [(0, &[0x86, 0x80])]).msix_vectors(), None, "not root");
        assert_eq!(ConfigSpace(vec![0xff; EXTENDED_LEN]).msix_vectors(), None, "gone");
        assert_eq!(ConfigSpace::read(Path::new("/nonexistent")).msix_vectors(), None);
    }

    #[test]
    fn names_what_a_bridge_keeps_apart() {
        // Advanced error reporting, then Access Control Services.
        let with = |control: u8| {
            space(EXTENDED_LEN, [(0x100, &[0x01, 0, 0x02, 0x14]), (0x140, &[0x0d, 0, 0x01, 0, 0x1f, 0, control, 0])])
        };
        let usual = ["source-validation", "request-redirect", "completion-redirect", "upstream-forwarding"];
        assert_eq!(with(0x1d).acs(), Acs::Present(usual.to_vec()));
        assert_eq!(with(0).acs(), Acs::Present(vec![]));
        assert_eq!(space(EXTENDED_LEN, []).acs(), Acs::Absent);
        assert_eq!(space(LEN, []).acs(), Acs::Absent);
        assert_eq!(space(EXTENDED_LEN, [(0x100, &[0x01, 0, 0x02, 0x10])]).acs(), Acs::Absent, "a list without an end");
    }

    proptest! {
        #[test]
        fn reads_whatever_a_function_says(bytes in proptest::collection::vec(any::<u8>(), 0..=EXTENDED_LEN)) {
            let space = ConfigSpace(bytes);
            prop_assert!(space.msix_vectors().is_none_or(|vectors| vectors <= 2048));
            space.acs();
        }
    }
}
