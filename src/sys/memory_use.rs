//! How much memory a process takes (proc_pid_smaps of proc(5)). Key type: [`MemoryUse`]. Key function: [`read`].

use std::io;

use super::guest_ram;
use super::proc_text::bytes;

/// A vmm's memory, in bytes. Pages that it shares with other processes count in proportion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Guest memory that was touched: huge pages included.
    pub guest: u64,
    /// Everything else: code, heap, stacks.
    pub overhead: u64,
}

/// Of the process `pid`. Walks its page tables: not for every second.
pub fn read(pid: u32) -> io::Result<MemoryUse> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/smaps"))?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected /proc/pid/smaps"))
}

fn parse(smaps: &str) -> Option<MemoryUse> {
    let mut sum = MemoryUse::default();
    for mapping in mappings(smaps) {
        // Huge pages of a pool are not part of Pss.
        let huge = ["Shared_Hugetlb", "Private_Hugetlb"].map(|name| bytes(mapping, name).unwrap_or(0));
        let whole = bytes(mapping, "Pss")? + huge.iter().sum::<u64>();
        let flags = mapping.lines().find_map(|line| line.strip_prefix("VmFlags:")).unwrap_or_default();
        let is_guest = flags.split_ascii_whitespace().any(|flag| flag == guest_ram::MARK);
        *if is_guest { &mut sum.guest } else { &mut sum.overhead } += whole;
    }
    (sum != MemoryUse::default()).then_some(sum)
}

/// The text of each mapping: a line of addresses and name, in lower case, then amounts, whose names are capitalised.
fn mappings(smaps: &str) -> impl Iterator<Item = &str> {
    let begins =
        |at: usize| smaps[at..].starts_with(|first: char| first.is_ascii_digit() || first.is_ascii_lowercase());
    let starts = std::iter::once(0).chain(smaps.match_indices('\n').map(|(at, _)| at + 1));
    let mut starts = starts.filter(move |at| begins(*at)).peekable();
    std::iter::from_fn(move || {
        let start = starts.next()?;
        smaps.get(start..starts.peek().copied().unwrap_or(smaps.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_told_by_its_mark() {
        let mapping = |name: &str, pss: u32, huge: u32, flags: &str| {
            format!(
                "7f00-7f10 rw-p 00000000 00:00 0  {name}\nSize: 9 kB\nPss: {pss} kB\nPss_Dirty: 1 kB\n\
                 Shared_Hugetlb: 0 kB\nPrivate_Hugetlb: {huge} kB\nVmFlags: rd wr {flags}\n"
            )
        };
        let smaps = [
            mapping("/usr/bin/ostler-vmm", 600, 0, "mr mw me"),
            mapping("", 7000, 0, "mr mw me dc ac nr hg"),
            mapping("", 0, 4096, "mr mw me dc de ht"),
            mapping("[heap]", 400, 0, "ac"),
        ];
        assert_eq!(parse(&smaps.concat()), Some(MemoryUse { guest: 11_096 << 10, overhead: 1_000 << 10 }));
        assert_eq!(parse("Rss: 1 kB\n"), None);
        assert!(read(std::process::id()).unwrap().overhead > 0);
    }
}
