//! The list of capabilities in configuration space. Key type: [`Capabilities`].
//!
//! ```text
//!   0x34 ─▶ [id | next ─▶ [id | next ─▶ [id | 0 | body]      each 4-byte aligned, in 0x40..0x100
//! ```

use super::ConfigSpace;

/// Header fields of the list (PCI Local Bus 3.0 §6.2.3, §6.7).
const STATUS: u16 = 0x06;
const STATUS_HAS_CAPABILITIES: u16 = 1 << 4;
const FIRST: u16 = 0x34;
/// Where capabilities may lie.
const START: u16 = 0x40;
const END: u16 = 0x100;

/// The capabilities do not fit into the 192 bytes that the header leaves them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no room for a capability of {len} bytes at configuration offset {offset:#x}")]
pub struct NoRoom {
    /// Length of the capability, with its two bytes of header.
    pub len: usize,
    /// Where it would have started.
    pub offset: u16,
}

/// Builds the list, in the order of the calls.
#[derive(Debug)]
pub struct Capabilities {
    link: u16,
    free: u16,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self { link: FIRST, free: START }
    }
}

impl Capabilities {
    /// Adds a capability: its id, and its `body` after the two bytes of id and link. Returns where it starts. The guest
    /// may change nothing of it until the caller declares bits writable.
    pub fn add(&mut self, config: &mut ConfigSpace, id: u8, body: &[u8]) -> Result<u16, NoRoom> {
        let offset = self.free;
        let len = 2 + body.len();
        let room = usize::from(END - offset);
        let (Ok(start), true) = (u8::try_from(offset), len <= room) else { return Err(NoRoom { len, offset }) };
        config.set(offset, &[id, 0]);
        config.set(offset + 2, body);
        config.set(self.link, &[start]);
        config.set(STATUS, &(config.u16(STATUS) | STATUS_HAS_CAPABILITIES).to_le_bytes());
        self.link = offset + 1;
        self.free = (offset + len as u16).next_multiple_of(4);
        Ok(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Identity;
    use super::*;

    fn space() -> ConfigSpace {
        let (vendor, device, revision, class) = (1, 2, 3, 4);
        ConfigSpace::new(Identity { vendor, device, revision, class, subsystem_vendor: 0, subsystem: 0 })
    }

    #[test]
    fn links_in_order_and_aligned() {
        let (mut config, mut caps) = (space(), Capabilities::default());
        assert_eq!(config.u16(STATUS), 0);
        assert_eq!(caps.add(&mut config, 0x09, &[3, 0xaa, 0xbb]), Ok(0x40));
        assert_eq!(caps.add(&mut config, 0x11, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), Ok(0x48));
        assert_eq!(config.u16(STATUS), STATUS_HAS_CAPABILITIES);
        assert_eq!(config.u8(FIRST), 0x40);
        assert_eq!(config.u32(0x40), 0xaa03_4809);
        assert_eq!(config.u16(0x48), 0x0011);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let (mut config, mut caps) = (space(), Capabilities::default());
        assert!(caps.add(&mut config, 9, &[0; 186]).is_ok());
        assert_eq!(caps.add(&mut config, 9, &[0; 3]), Err(NoRoom { len: 5, offset: 0xfc }));
        assert!(caps.add(&mut config, 9, &[0; 2]).is_ok());
        assert_eq!(caps.add(&mut config, 9, &[]), Err(NoRoom { len: 2, offset: 0x100 }));
    }
}
