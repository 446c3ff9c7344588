//! Files of proc(5) in which each line is a name and an amount: `MemTotal:  1000 kB`. Key function: [`bytes`].

/// The amount behind `name`, in bytes; `None` if there is no such line.
pub fn bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_line_of_just_that_name() {
        let text = "Pss_Shmem:\t 7 kB\nPss:   8 kB\nThreads: 5\nHuge: 99999999999999999999 kB\n";
        assert_eq!((bytes(text, "Pss"), bytes(text, "Pss_Shmem")), (Some(8 << 10), Some(7 << 10)));
        assert_eq!((bytes(text, "Rss"), bytes(text, "Threads"), bytes(text, "Huge")), (None, None, None));
    }
}
