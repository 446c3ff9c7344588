//! A kernel that says [`SAYS`] at COM1 with its first instructions and halts: the real one, with a few bytes of it replaced
//! where it is entered, so that loading it is the same work. Its entries are that of its ELF header and that of PVH (the
//! notes of Xen, `XEN_ELFNOTE_PHYS32_ENTRY`).

use std::io;

/// What it says, in a line.
pub const SAYS: &str = "@@";

const PT_LOAD: u64 = 1;
const PT_NOTE: u64 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u64 = 18;

/// Makes it of an ELF kernel.
pub fn image(mut kernel: Vec<u8>) -> io::Result<Vec<u8>> {
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

/// The same in 32 and in 64 bits: `mov edx, COM1`, then `mov al, …; out dx, al` for each character, then `cli; hlt`, for ever.
fn code() -> Vec<u8> {
    let said = SAYS.bytes().chain([b'\n']).flat_map(|character| [0xb0, character, 0xee]);
    [0xba, 0xf8, 0x03, 0, 0].into_iter().chain(said).chain([0xfa, 0xf4, 0xeb, 0xfd]).collect()
}
