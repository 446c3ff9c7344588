//! MSI-X: capability, vector table, pending bits. Key types: [`Msix`], [`MsixLayout`].
//!
//! ```text
//!   enabled ∧ ¬function mask ∧ ¬vector mask  ⇒  Vector.route = Some(message): the machine assigns an irqfd
//!   otherwise                                ⇒  route = None: signals stay in the eventfd, which is the pending bit
//! ```
//! Source: PCI Local Bus 3.0 §6.8.2. The owner calls [`Msix::sync`] after each write to configuration space.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Capabilities, ConfigSpace};
use crate::vmm::ports::{MsiMessage, Vector};

/// Capability id.
const ID: u8 = 0x11;
/// Offset of message control within the capability, and its bits.
const CONTROL: u16 = 2;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
/// A table entry: address low, address high, data, vector control.
const ENTRY_LEN: usize = 16;
const ENTRY_CONTROL: usize = 12;
const ENTRY_MASKED: u8 = 1;
/// Most vectors: the control register has 11 bits for the count less one.
const MAX_VECTORS: u16 = 2048;

/// Where table and pending bits lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixLayout {
    /// Number of vectors, 1 to 2048.
    pub vectors: u16,
    /// BAR of the table.
    pub table_bar: u8,
    /// Offset of the table in its BAR, a multiple of 8.
    pub table: u32,
    /// BAR of the pending bits.
    pub pending_bar: u8,
    /// Offset of the pending bits in their BAR, a multiple of 8.
    pub pending: u32,
}

/// The MSI-X state of one function.
#[derive(Debug)]
pub struct Msix {
    capability: u16,
    control: u16,
    entries: Vec<[u8; ENTRY_LEN]>,
    events: Vec<Arc<EventFd>>,
}

impl Msix {
    /// Adds the capability to `config`, with all vectors masked, and makes one eventfd per vector.
    pub fn new(config: &mut ConfigSpace, caps: &mut Capabilities, layout: MsixLayout) -> io::Result<Self> {
        let bad = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
        if !(1..=MAX_VECTORS).contains(&layout.vectors) {
            return Err(bad(format!("{} MSI-X vectors, 1 to {MAX_VECTORS} are possible", layout.vectors)));
        }
        if layout.table_bar.max(layout.pending_bar) > 5
            || !layout.table.is_multiple_of(8)
            || !layout.pending.is_multiple_of(8)
        {
            return Err(bad(format!("impossible MSI-X layout {layout:?}")));
        }
        let mut body = Vec::with_capacity(10);
        body.extend((layout.vectors - 1).to_le_bytes());
        body.extend((layout.table | u32::from(layout.table_bar)).to_le_bytes());
        body.extend((layout.pending | u32::from(layout.pending_bar)).to_le_bytes());
        let capability = caps.add(config, ID, &body).map_err(io::Error::other)?;
        config.set_writable(capability + CONTROL, &(CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_le_bytes());

        let event = |_| EventFd::new(EFD_NONBLOCK).map(Arc::new);
        let events = (0..layout.vectors).map(event).collect::<io::Result<_>>()?;
        let mut masked = [0; ENTRY_LEN];
        masked[ENTRY_CONTROL] = ENTRY_MASKED;
        let entries = vec![masked; layout.vectors.into()];
        Ok(Self { capability, control: config.u16(capability + CONTROL), entries, events })
    }

    /// The eventfds, by vector: the device writes them.
    pub fn events(&self) -> &[Arc<EventFd>] {
        &self.events
    }

    /// Length of the table in bytes.
    pub fn table_len(&self) -> u64 {
        (self.entries.len() * ENTRY_LEN) as u64
    }

    /// Length of the pending bits in bytes, a multiple of 8.
    pub fn pending_len(&self) -> u64 {
        self.entries.len().div_ceil(64) as u64 * 8
    }

    /// Whether the driver has switched MSI-X on.
    pub fn is_enabled(&self) -> bool {
        self.control & CONTROL_ENABLE != 0
    }

    /// Takes message control over from configuration space; true if a route changed.
    pub fn sync(&mut self, config: &ConfigSpace) -> bool {
        let control = config.u16(self.capability + CONTROL);
        if control == self.control {
            return false;
        }
        self.change(|msix| msix.control = control)
    }

    /// Reads the table; bytes beyond it read as ones.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.entries.as_flattened();
        for (at, byte) in (0_u64..).zip(data) {
            let place = offset.checked_add(at).and_then(|at| usize::try_from(at).ok());
            *byte = place.and_then(|at| bytes.get(at).copied()).unwrap_or(0xff);
        }
    }

    /// Writes the table, ignoring what lies beyond it; true if a route changed.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> bool {
        let Ok(offset) = usize::try_from(offset) else { return false };
        if offset >= self.entries.as_flattened().len() {
            return false;
        }
        self.change(|msix| {
            for (old, &byte) in msix.entries.as_flattened_mut().iter_mut().skip(offset).zip(data) {
                *old = byte;
            }
            for entry in &mut msix.entries {
                // The low two address bits and all control bits but the mask are reserved.
                entry[0] &= !0b11;
                let control = [entry[ENTRY_CONTROL] & ENTRY_MASKED, 0, 0, 0];
                entry[ENTRY_CONTROL..].copy_from_slice(&control);
            }
        })
    }

    /// Reads the pending bits: a masked vector is pending while its eventfd holds a signal.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let mut bits = vec![0_u8; self.entries.len().div_ceil(64) * 8];
        for (number, event) in self.events.iter().enumerate() {
            // With a route, KVM has the signal: what the counter shows is history.
            if self.route(number).is_none()
                && has_signal(event)
                && let Some(byte) = bits.get_mut(number / 8)
            {
                *byte |= 1 << (number % 8);
            }
        }
        for (at, byte) in (0_u64..).zip(data) {
            let place = offset.checked_add(at).and_then(|at| usize::try_from(at).ok());
            *byte = place.and_then(|at| bits.get(at).copied()).unwrap_or(0xff);
        }
    }

    /// All vectors as they are routed now.
    pub fn vectors(&self) -> Vec<Vector> {
        let vector =
            |(number, event): (usize, &Arc<EventFd>)| Vector { event: event.clone(), route: self.route(number) };
        self.events.iter().enumerate().map(vector).collect()
    }

    fn route(&self, number: usize) -> Option<MsiMessage> {
        let entry = self.entries.get(number)?;
        let is_on = self.is_enabled() && self.control & CONTROL_FUNCTION_MASK == 0;
        if !is_on || entry[ENTRY_CONTROL] & ENTRY_MASKED != 0 {
            return None;
        }
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = *entry;
        let address = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        Some(MsiMessage { address, data: u32::from_le_bytes([i, j, k, l]) })
    }

    /// Makes a change and says whether a route changed with it. A vector that loses its route starts with nothing
    /// pending: its signals so far went through the irqfd, although KVM leaves one that it found when the irqfd was
    /// assigned in the counter (linux/virt/kvm/eventfd.c).
    fn change(&mut self, make: impl FnOnce(&mut Self)) -> bool {
        let routes = |msix: &Self| (0..msix.entries.len()).map(|number| msix.route(number)).collect::<Vec<_>>();
        let before = routes(self);
        make(self);
        let after = routes(self);
        for ((old, new), event) in before.iter().zip(&after).zip(&self.events) {
            if old.is_some() && new.is_none() {
                // Non-blocking; an empty counter is the usual case.
                let _ = event.read();
            }
        }
        before != after
    }
}

/// Whether the eventfd, which does not block, holds a signal. A vCPU asks, whose thread may only read and write: what it
/// takes it puts back, and whoever is to have it meanwhile gets it then.
fn has_signal(event: &EventFd) -> bool {
    event.read().is_ok_and(|count| event.write(count).is_ok())
}

#[cfg(test)]
mod tests {
    use super::super::Identity;
    use super::*;
    use proptest::prelude::*;

    const LAYOUT: MsixLayout = MsixLayout { vectors: 3, table_bar: 0, table: 0x4000, pending_bar: 0, pending: 0x5000 };

    fn msix() -> (ConfigSpace, Msix) {
        let (vendor, device, revision, class) = (1, 2, 3, 4);
        let identity = Identity { vendor, device, revision, class, subsystem_vendor: 0, subsystem: 0 };
        let mut config = ConfigSpace::new(identity);
        let msix = Msix::new(&mut config, &mut Capabilities::default(), LAYOUT).unwrap();
        (config, msix)
    }

    fn enable(config: &mut ConfigSpace, msix: &mut Msix, control: u16) -> bool {
        config.write(0x42, &control.to_le_bytes());
        msix.sync(config)
    }

    fn pending(msix: &Msix) -> u64 {
        let mut data = [0; 8];
        msix.read_pending(0, &mut data);
        u64::from_le_bytes(data)
    }

    /// Address 0xfee0_1000, data 0x31, unmasked.
    fn program(msix: &mut Msix, number: u64) -> bool {
        let mut entry = [0; 16];
        entry[..4].copy_from_slice(&0xfee0_1000_u32.to_le_bytes());
        entry[8] = 0x31;
        msix.write_table(number * 16, &entry)
    }

    #[test]
    fn capability_says_where_table_and_pending_bits_are() {
        let (config, _) = msix();
        assert_eq!((config.u8(0x40), config.u16(0x42)), (ID, 2));
        assert_eq!((config.u32(0x44), config.u32(0x48)), (0x4000, 0x5000));
    }

    #[test]
    fn routes_only_what_is_enabled_and_unmasked() {
        let (mut config, mut msix) = msix();
        assert!(!program(&mut msix, 1), "off: nothing changes for the machine");
        assert!(enable(&mut config, &mut msix, 0x8000));
        let routes: Vec<_> = msix.vectors().iter().map(|vector| vector.route).collect();
        assert_eq!(routes, [None, Some(MsiMessage { address: 0xfee0_1000, data: 0x31 }), None]);
        assert!(enable(&mut config, &mut msix, 0xc000), "function mask");
        assert!(msix.vectors().iter().all(|vector| vector.route.is_none()));
        assert!(enable(&mut config, &mut msix, 0x8000));
        assert!(msix.write_table(16 + 12, &[1]));
        assert!(msix.vectors()[1].route.is_none());
        assert!(!msix.write_table(16 + 12, &[0xff; 4]), "reserved bits do nothing");
    }

    #[test]
    fn a_signal_while_masked_is_the_pending_bit() {
        let (mut config, mut msix) = msix();
        enable(&mut config, &mut msix, 0x8000);
        assert_eq!(pending(&msix), 0);
        msix.events()[2].write(1).unwrap();
        assert_eq!(pending(&msix), 0b100);
        assert_eq!(pending(&msix), 0b100, "reading does not take it");
        program(&mut msix, 2);
        assert_eq!(pending(&msix), 0, "unmasked: KVM has it");
        msix.write_table(32 + 12, &[1]);
        assert_eq!(pending(&msix), 0, "what KVM delivered does not pend again");
        msix.events()[2].write(1).unwrap();
        assert_eq!(pending(&msix), 0b100);
    }

    #[test]
    fn refuses_an_impossible_layout() {
        let (mut config, _) = msix();
        for layout in [
            MsixLayout { vectors: 0, ..LAYOUT },
            MsixLayout { vectors: 2049, ..LAYOUT },
            MsixLayout { table_bar: 6, ..LAYOUT },
            MsixLayout { pending_bar: 6, ..LAYOUT },
            MsixLayout { table: 4, ..LAYOUT },
        ] {
            assert!(Msix::new(&mut config, &mut Capabilities::default(), layout).is_err(), "{layout:?}");
        }
    }

    proptest! {
        #[test]
        fn takes_any_access(
            accesses in proptest::collection::vec(
                (prop_oneof![0_u64..80, any::<u64>()], proptest::collection::vec(any::<u8>(), 0..17)), 0..32),
            control in any::<u16>(),
        ) {
            let (mut config, mut msix) = msix();
            enable(&mut config, &mut msix, control);
            for (offset, data) in accesses {
                let before = msix.vectors().iter().map(|vector| vector.route).collect::<Vec<_>>();
                let is_changed = msix.write_table(offset, &data);
                let after = msix.vectors().iter().map(|vector| vector.route).collect::<Vec<_>>();
                prop_assert_eq!(is_changed, before != after);
                let mut buffer = data.clone();
                msix.read_table(offset, &mut buffer);
                msix.read_pending(offset, &mut buffer);
            }
            prop_assert_eq!(config.u16(0x42) & 0x3fff, 2);
        }
    }
}
