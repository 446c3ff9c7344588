//! How much memory a process takes (proc_pid_smaps_rollup of proc(5)). Key type: [`MemoryUse`]. Key function: [`read`].

use std::io;

use super::proc_text::bytes;

/// A vmm's memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Pages of memfds that it has touched: guest memory, huge pages included.
    pub guest: u64,
    /// Everything else: code, heap, stacks; pages that it shares with other processes in proportion.
    pub overhead: u64,
}

/// Of the process `pid`. Walks its page tables: not for every second.
pub fn read(pid: u32) -> io::Result<MemoryUse> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected /proc/pid/smaps_rollup"))
}

fn parse(rollup: &str) -> Option<MemoryUse> {
    let (whole, shared) = (bytes(rollup, "Pss")?, bytes(rollup, "Pss_Shmem")?);
    // Not part of Pss.
    let huge = ["Shared_Hugetlb", "Private_Hugetlb"].map(|name| bytes(rollup, name).unwrap_or(0)).iter().sum::<u64>();
    Some(MemoryUse { guest: shared + huge, overhead: whole.saturating_sub(shared) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_what_is_shared_and_huge() {
        let rollup = "5-7 ---p 00000000 00:00 0 [rollup]\nRss:  9000 kB\nPss:   8000 kB\nPss_Dirty: 1 kB\n\
                      Pss_Shmem:  7000 kB\nShared_Hugetlb:  4096 kB\nPrivate_Hugetlb: 0 kB\n";
        assert_eq!(parse(rollup), Some(MemoryUse { guest: 11_096 << 10, overhead: 1_000 << 10 }));
        assert_eq!(parse("Rss: 1 kB\n"), None);
        assert!(read(std::process::id()).unwrap().overhead > 0);
    }
}
