//! Kernels that say [`SAYS`] at COM1 with their first instructions and halt: one that is nothing else ([`alone`]), and a
//! real one with a few bytes replaced where it is entered ([`in_place_of`]), so that loading it is the same work. Entries
//! are that of the ELF header and that of PVH (the notes of Xen, `XEN_ELFNOTE_PHYS32_ENTRY`).

use std::io;

/// What it says: one byte that nobody else does. Of several the later ones might gather on their way.
pub const SAYS: &str = "\x06";

const PT_LOAD: u64 = 1;
const PT_NOTE: u64 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u64 = 18;
/// Where the one that is nothing else lies in memory: the first address that hypervisors leave to a kernel.
const ADDRESS: u64 = 1 << 20;

/// One that is nothing else.
pub fn alone() -> Vec<u8> {
    const HEADERS_LEN: usize = 64 + 2 * 56;
    let note = [
        &[4u32, 8, XEN_ELFNOTE_PHYS32_ENTRY as u32].map(u32::to_le_bytes).concat()[..],
        b"Xen\0",
        &ADDRESS.to_le_bytes(),
    ];
    let (note, code) = (note.concat(), code());
    let segment = |kind: u64, at: usize, len: usize, align: u64| {
        let (at, len) = (at as u64, len as u64);
        // Readable, writable, executable.
        [kind | 7 << 32, at, ADDRESS, ADDRESS, len, len, align].map(u64::to_le_bytes).concat()
    };
    // 64 bits, little endian, an executable for x86-64; its program headers right behind; no sections.
    let header = [
        &b"\x7fELF\x02\x01\x01"[..],
        &[0; 9],
        &[2, 0, 62, 0, 1, 0, 0, 0],
        &ADDRESS.to_le_bytes(),
        &64u64.to_le_bytes(),
    ];
    let sizes = [0u16, 0, 0, 0, 0, 0, 64, 56, 2, 64, 0, 0].map(u16::to_le_bytes).concat();
    let segments =
        [segment(PT_LOAD, HEADERS_LEN + note.len(), code.len(), 1), segment(PT_NOTE, HEADERS_LEN, note.len(), 4)];
    [header.concat(), sizes, segments.concat(), note, code].concat()
}

/// One made of an ELF kernel.
pub fn in_place_of(mut kernel: Vec<u8>) -> io::Result<Vec<u8>> {
    let file = Elf(&kernel);
    let places = [file.number(24, 8), file.pvh_entry()];
    let places: Option<Vec<_>> = places.into_iter().map(|entry| file.place(entry?)).collect();
    let places = places.ok_or_else(|| io::Error::other("the kernel is no ELF file with a PVH entry"))?;
    let code = code();
    for place in places {
        let there = kernel.get_mut(place..place + code.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        there.copy_from_slice(&code);
    }
    Ok(kernel)
}

/// A 64-bit ELF file.
struct Elf<'a>(&'a [u8]);

impl Elf<'_> {
    /// `len` bytes at `at`, as a number.
    fn number(&self, at: usize, len: usize) -> Option<u64> {
        let bytes = self.0.get(at..at.checked_add(len)?)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// Where the program headers of a kind are.
    fn headers(&self, kind: u64) -> impl Iterator<Item = usize> {
        let table = self.number(32, 8).unwrap_or(0) as usize;
        let count = self.number(56, 2).unwrap_or(0) as usize;
        (0..count).map(move |number| table + number * 56).filter(move |at| self.number(*at, 4) == Some(kind))
    }

    /// What the note of PVH names.
    fn pvh_entry(&self) -> Option<u64> {
        let begin = self.headers(PT_NOTE).next().and_then(|header| self.number(header + 8, 8))? as usize;
        let mut at = begin;
        loop {
            let [name_len, len, kind] = [0, 4, 8].map(|field| self.number(at + field, 4));
            let (name_at, [name_len, len]) = (at + 12, [name_len? as usize, len? as usize]);
            let content = name_at + name_len.next_multiple_of(4);
            if kind? == XEN_ELFNOTE_PHYS32_ENTRY && self.0.get(name_at..name_at + 4)? == b"Xen\0" {
                return self.number(content, len.min(8));
            }
            at = content + len.next_multiple_of(4);
        }
    }

    /// Where in the file the byte is that is loaded to a physical address.
    fn place(&self, address: u64) -> Option<usize> {
        self.headers(PT_LOAD).find_map(|header| {
            let [offset, base, len] = [8, 24, 32].map(|field| self.number(header + field, 8));
            let inside = address.checked_sub(base?).filter(|inside| Some(*inside) < len)?;
            usize::try_from(offset? + inside).ok()
        })
    }
}

/// The same in 32 and in 64 bits: `mov edx, COM1`, then `mov al, …; out dx, al`, then `cli; hlt`, for ever.
fn code() -> Vec<u8> {
    let said = SAYS.bytes().flat_map(|character| [0xb0, character, 0xee]);
    [0xba, 0xf8, 0x03, 0, 0].into_iter().chain(said).chain([0xfa, 0xf4, 0xeb, 0xfd]).collect()
}
