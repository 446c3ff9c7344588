//! The pages that an NVMe controller answers Identify with, as values; pure. Sections are those of NVM Express Base 2.0,
//! and of its NVM Command Set 1.0 for namespaces. Key types: [`ControllerIdentity`], [`NamespaceIdentity`],
//! [`SecondaryController`].
//!
//! A controller is hardware that may be wrong: whatever bytes it gives, a page is read to its end and no further.

use super::PAGE_LEN;

/// Most secondary controllers that a list has (§5.17.2.15).
const MAX_SECONDARIES: usize = 127;
/// Most controllers that a list has (§4.5.1).
const MAX_CONTROLLERS: usize = 2047;
/// Smallest and largest block that is taken, as powers of two: 512 bytes to 64 KiB.
const BLOCK_SHIFTS: std::ops::RangeInclusive<u8> = 9..=16;

/// Where the formats of a namespace end: 64 of four bytes, from 128 on (NVM Command Set 1.0, figure 97).
const FORMATS_END: usize = 384;

/// Who a controller is and what it can do (figure 275).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerIdentity {
    /// Serial number, without the spaces around it. So are the next two.
    pub serial: String,
    /// Model.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// Its id in its subsystem.
    pub id: u16,
    /// What it supports.
    pub supports: Supports,
}

/// Commands that a controller knows (OACS, ONCS, FNA, SANICAP).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Supports {
    /// Namespace Management and Attachment; controllers are known that only attach.
    pub namespace_management: bool,
    /// Virtualization Management: it is a primary controller.
    pub virtualization_management: bool,
    /// Lockdown: it can forbid its secondaries commands.
    pub lockdown: bool,
    /// Format NVM.
    pub format: bool,
    /// A Format NVM or its erasure touches every namespace.
    pub formats_all: bool,
    /// Sanitize, by any method.
    pub sanitize: bool,
    /// Dataset Management: deallocation.
    pub deallocate: bool,
    /// Write Zeroes.
    pub write_zeroes: bool,
}

impl ControllerIdentity {
    /// Reads the page.
    pub fn parse(page: &[u8; PAGE_LEN]) -> Self {
        let (oacs, oncs, fna) = (u16_at(page, 256), u16_at(page, 520), page[524]);
        let has = |bits: u16, bit: u16| bits & 1 << bit != 0;
        Self {
            serial: text(&page[4..24]),
            model: text(&page[24..64]),
            firmware: text(&page[64..72]),
            id: u16_at(page, 78),
            supports: Supports {
                namespace_management: has(oacs, 3),
                virtualization_management: has(oacs, 7),
                lockdown: has(oacs, 10),
                format: has(oacs, 1),
                formats_all: fna & 0b11 != 0,
                sanitize: u32_at(page, 328) & 0b111 != 0,
                deallocate: has(oncs, 2),
                write_zeroes: has(oncs, 3),
            },
        }
    }
}

/// Size and format of a namespace (NVM Command Set 1.0, figure 97).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceIdentity {
    /// Number of logical blocks.
    pub blocks: u64,
    /// Bytes of data of a logical block, a power of two.
    pub block_bytes: u32,
    /// Bytes of metadata of a logical block.
    pub metadata_bytes: u16,
    /// What it can be formatted to: bytes of data and of metadata of a logical block.
    pub formats: Vec<(u32, u16)>,
    /// `FLBAS`: index of the format and how metadata is transferred.
    flbas: u8,
    /// `DPS`: end-to-end protection.
    dps: u8,
    /// `NGUID` and `EUI64`: which namespace of all that there are; zero where the controller does not say it.
    nguid: [u8; 16],
    eui64: [u8; 8],
}

impl NamespaceIdentity {
    /// Reads the page; `None` if the namespace does not exist or its blocks have a size that is none.
    pub fn parse(page: &[u8; PAGE_LEN]) -> Option<Self> {
        let blocks = u64::from_le_bytes(page[..8].try_into().ok()?);
        let (flbas, dps) = (page[26], page[29]);
        // Bits 0 to 3, and above them bits 5 and 6.
        let index = usize::from(flbas & 0xf | (flbas >> 5 & 3) << 4);
        let format = 128 + 4 * index;
        let shift = page[format + 2];
        if !BLOCK_SHIFTS.contains(&shift) || blocks == 0 || blocks.checked_mul(1 << shift).is_none() {
            return None;
        }
        let metadata_bytes = u16_at(page, format);
        // Their number less one; an entry without a size is not available.
        let formats = (0..=usize::from(page[25])).map(|index| 128 + 4 * index).take_while(|at| *at < FORMATS_END);
        let formats = formats.filter(|at| BLOCK_SHIFTS.contains(&page[*at + 2]));
        let formats = formats.map(|at| (1 << page[at + 2], u16_at(page, at))).collect();
        let (nguid, eui64) = (page[104..120].try_into().ok()?, page[120..128].try_into().ok()?);
        Some(Self { blocks, block_bytes: 1 << shift, metadata_bytes, formats, flbas, dps, nguid, eui64 })
    }

    /// Tells it from every other one, also from one that has its number after it: `nguid:` or `eui64:` and its digits.
    /// `None`: the controller does not say it.
    pub fn unique_id(&self) -> Option<String> {
        let named = |kind: &str, bytes: &[u8]| {
            let digits = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            bytes.iter().any(|byte| *byte != 0).then(|| format!("{kind}:{digits}"))
        };
        named("nguid", &self.nguid).or_else(|| named("eui64", &self.eui64))
    }

    /// Bytes that it holds.
    pub fn size_bytes(&self) -> u64 {
        // Checked when it was read.
        self.blocks.saturating_mul(self.block_bytes.into())
    }

    /// Double word 10 of the Format NVM that leaves its format as it is (§5.15).
    pub(super) fn format_bits(&self) -> u32 {
        let (flbas, dps) = (u32::from(self.flbas), u32::from(self.dps));
        let (low, has_extended, high) = (flbas & 0xf, flbas >> 4 & 1, flbas >> 5 & 3);
        let (kind, is_first) = (dps & 7, dps >> 3 & 1);
        low | has_extended << 4 | kind << 5 | is_first << 8 | high << 12
    }
}

/// What a primary controller can deal out (§5.17.2.14).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PrimaryCapabilities {
    /// Queue pairs.
    pub queues: Flexible,
    /// Interrupt vectors.
    pub interrupts: Flexible,
}

/// A flexible resource of a primary controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flexible {
    /// All of it.
    pub total: u32,
    /// What secondary controllers have.
    pub assigned: u32,
    /// What the primary controller has.
    pub of_primary: u16,
    /// Most that one secondary controller may have.
    pub max_each: u16,
}

impl PrimaryCapabilities {
    /// Reads the page.
    pub fn parse(page: &[u8; PAGE_LEN]) -> Self {
        let flexible = |at: usize| Flexible {
            total: u32_at(page, at),
            assigned: u32_at(page, at + 4),
            of_primary: u16_at(page, at + 8),
            max_each: u16_at(page, at + 12),
        };
        Self { queues: flexible(32), interrupts: flexible(64) }
    }
}

/// An entry of the list of secondary controllers (§5.17.2.15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecondaryController {
    /// Its id in the subsystem.
    pub id: u16,
    /// The id of its primary controller.
    pub primary: u16,
    /// It works; it does not while it has no resources or no virtual function.
    pub is_online: bool,
    /// Number of its virtual function, from 1; 0: it is not associated with one.
    pub vf_number: u16,
    /// Queue pairs that it has, the admin queue included.
    pub queues: u16,
    /// Interrupt vectors that it has.
    pub interrupts: u16,
}

pub(super) fn secondary_list(page: &[u8; PAGE_LEN]) -> Vec<SecondaryController> {
    let count = usize::from(page[0]).min(MAX_SECONDARIES);
    let entries = page[32..].chunks_exact(32).take(count);
    entries
        .map(|entry| SecondaryController {
            id: u16_at(entry, 0),
            primary: u16_at(entry, 2),
            is_online: entry[4] & 1 != 0,
            vf_number: u16_at(entry, 8),
            queues: u16_at(entry, 10),
            interrupts: u16_at(entry, 12),
        })
        .collect()
}

/// Ids in a namespace list: ascending, ended by 0 (§4.5.2).
pub(super) fn namespace_list(page: &[u8; PAGE_LEN]) -> Vec<u32> {
    (0..PAGE_LEN / 4).map(|index| u32_at(page, index * 4)).take_while(|id| *id != 0).collect()
}

/// Ids in a controller list: their number, then they (§4.5.1).
pub(super) fn controller_list(page: &[u8; PAGE_LEN]) -> Vec<u16> {
    let count = usize::from(u16_at(page, 0)).min(MAX_CONTROLLERS);
    (1..=count).map(|index| u16_at(page, index * 2)).collect()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// ASCII padded with spaces (§1.4.2); what is not printable becomes `?`.
fn text(bytes: &[u8]) -> String {
    let shown = |byte: u8| if matches!(byte, b' '..=b'~') { char::from(byte) } else { '?' };
    let text: String = bytes.iter().take_while(|byte| **byte != 0).map(|byte| shown(*byte)).collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page<const N: usize>(parts: [(usize, &[u8]); N]) -> [u8; PAGE_LEN] {
        let mut page = [0; PAGE_LEN];
        for (at, bytes) in parts {
            page[at..at + bytes.len()].copy_from_slice(bytes);
        }
        page
    }

    // The bytes are what the lab's controller answers.
    #[test]
    fn reads_a_controller() {
        let page = page([
            (0, &[0x36, 0x1b, 0xf4, 0x1a]),
            (4, b"LAB                 QEMU NVMe Ctrl                          10.0.2  "),
            (76, &[2, 7, 5, 0]),
            (256, &[0xaa, 0x01]),
            (520, &[0x5d, 0x07]),
        ]);
        let controller = ControllerIdentity::parse(&page);
        let names = (controller.serial.as_str(), controller.model.as_str(), controller.firmware.as_str());
        assert_eq!((names, controller.id), (("LAB", "QEMU NVMe Ctrl", "10.0.2"), 5));
        let expected = Supports {
            namespace_management: true,
            virtualization_management: true,
            format: true,
            deallocate: true,
            write_zeroes: true,
            ..Supports::default()
        };
        assert_eq!(controller.supports, expected);
    }

    #[test]
    fn reads_a_namespace_and_formats_it_as_it_is() {
        let mut page = page([(0, &[0, 0, 2]), (128, &[0, 0, 9, 0]), (132, &[8, 0, 9, 0]), (144, &[0, 0, 12, 0])]);
        let namespace = NamespaceIdentity::parse(&page).unwrap();
        assert_eq!((namespace.size_bytes(), namespace.block_bytes), (64 << 20, 512));
        assert_eq!((namespace.format_bits(), namespace.unique_id()), (0, None));
        assert_eq!(namespace.formats, [(512, 0)]);
        page[25] = 4;
        assert_eq!(NamespaceIdentity::parse(&page).unwrap().formats, [(512, 0), (512, 8), (4096, 0)]);
        page[127] = 7;
        let unique_id = |page: &_| NamespaceIdentity::parse(page).unwrap().unique_id().unwrap();
        assert_eq!(unique_id(&page), "eui64:0000000000000007");
        page[104] = 0xab;
        assert_eq!(unique_id(&page), format!("nguid:ab{}", "0".repeat(30)));
        page[26] = 0x11;
        page[29] = 0b1010;
        let namespace = NamespaceIdentity::parse(&page).unwrap();
        assert_eq!((namespace.block_bytes, namespace.metadata_bytes), (512, 8));
        assert_eq!(namespace.format_bits(), 1 | 1 << 4 | 2 << 5 | 1 << 8);
        page[26] = 4;
        assert_eq!(NamespaceIdentity::parse(&page).unwrap().size_bytes(), 512 << 20);
        page[26] = 5;
        assert_eq!(NamespaceIdentity::parse(&page), None, "a format without a size");
    }

    #[test]
    fn reads_resources_and_secondaries() {
        let page14 = page([(32, &[8, 0, 0, 0, 4, 0, 0, 0, 1, 0, 9, 0, 2, 0, 1, 0]), (64, &[4]), (76, &[1])]);
        let capabilities = PrimaryCapabilities::parse(&page14);
        assert_eq!(capabilities.queues, Flexible { total: 8, assigned: 4, of_primary: 1, max_each: 2 });
        assert_eq!((capabilities.interrupts.total, capabilities.interrupts.max_each), (4, 1));
        let page15 = page([(0, &[2]), (32, &[1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 2, 0, 1]), (64, &[2, 0]), (96, &[9])]);
        let secondaries = secondary_list(&page15);
        let first = SecondaryController { id: 1, primary: 0, is_online: true, vf_number: 1, queues: 2, interrupts: 1 };
        assert_eq!((secondaries.len(), secondaries[0]), (2, first));
        assert!(!secondaries[1].is_online);
        assert_eq!(namespace_list(&page([(0, &[1, 0, 0, 0, 7])])), [1, 7]);
        assert_eq!(controller_list(&page([(0, &[2, 0, 0, 0, 5])])), [0, 5]);
    }

    proptest! {
        #[test]
        fn reads_whatever_a_controller_says(
            bytes in proptest::collection::vec((0..PAGE_LEN, any::<u8>()), 0..64),
            fill in any::<u8>(),
        ) {
            let mut page = [fill; PAGE_LEN];
            for (at, byte) in bytes {
                page[at] = byte;
            }
            let controller = ControllerIdentity::parse(&page);
            prop_assert!(controller.serial.len() <= 20 && controller.serial.bytes().all(|b| (0x20..0x7f).contains(&b)));
            if let Some(namespace) = NamespaceIdentity::parse(&page) {
                prop_assert!(namespace.block_bytes.is_power_of_two());
                prop_assert_eq!(namespace.size_bytes() / u64::from(namespace.block_bytes), namespace.blocks);
                prop_assert!(namespace.format_bits() < 1 << 14);
            }
            prop_assert!(secondary_list(&page).len() <= MAX_SECONDARIES);
            prop_assert!(controller_list(&page).len() <= MAX_CONTROLLERS);
            prop_assert!(namespace_list(&page).iter().all(|id| *id != 0));
            PrimaryCapabilities::parse(&page);
        }
    }
}
