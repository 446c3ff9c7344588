//! A kernel of a few instructions, to see when a guest's first one runs: an ELF file with a PVH entry (the notes of Xen,
//! `XEN_ELFNOTE_PHYS32_ENTRY`), which says [`SAYS`] at COM1 and halts.

/// What it says, in a line.
pub const SAYS: &str = "@@";

const ENTRY: u64 = 0x10_0000;
const HEADERS_LEN: u64 = 64 + 2 * 56;
const NOTE_LEN: u64 = 24;
/// Where the code lies in the file; loaded segments begin at pages.
const CODE_AT: u64 = 0x1000;

/// The file.
pub fn image() -> Vec<u8> {
    let code = code();
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // ET_EXEC, EM_X86_64, EV_CURRENT.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for field in [ENTRY, 64, 0] {
        file.extend(field.to_le_bytes());
    }
    // No flags; sizes of this header and of the two that follow; no sections.
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
    // PT_LOAD, readable and executable; PT_NOTE, readable.
    segment(&mut file, [1, 5], CODE_AT, ENTRY, code.len() as u64, 0x1000);
    segment(&mut file, [4, 4], HEADERS_LEN, 0, NOTE_LEN, 4);
    for word in [4_u32, 8, 18] {
        file.extend(word.to_le_bytes());
    }
    file.extend(b"Xen\0");
    file.extend(ENTRY.to_le_bytes());
    file.resize(CODE_AT as usize, 0);
    file.extend(code);
    file
}

fn segment(file: &mut Vec<u8>, [kind, flags]: [u32; 2], at: u64, address: u64, len: u64, alignment: u64) {
    file.extend(kind.to_le_bytes());
    file.extend(flags.to_le_bytes());
    for field in [at, address, address, len, len, alignment] {
        file.extend(field.to_le_bytes());
    }
}

/// 32-bit code: `mov edx, COM1`, then `mov al, …; out dx, al` for each character, then `cli; hlt`, for ever.
fn code() -> Vec<u8> {
    let said = SAYS.bytes().chain([b'\n']).flat_map(|character| [0xb0, character, 0xee]);
    [0xba, 0xf8, 0x03, 0, 0].into_iter().chain(said).chain([0xfa, 0xf4, 0xeb, 0xfd]).collect()
}
