//! What a process holds in memory besides its guest's RAM, from `/proc/<pid>/smaps`.

/// KiB of resident memory outside the guest's RAM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Anonymous pages: the process's own.
    pub anonymous_kib: u64,
    /// All resident pages, file pages that other processes share included.
    pub resident_kib: u64,
}

/// Reads the usage of `pid`; mappings of `guest_kib` and more are the guest's RAM, as are those that say so by name.
pub fn usage(pid: u32, guest_kib: u64) -> Result<Usage, String> {
    let path = format!("/proc/{pid}/smaps");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    Ok(sum(&text, guest_kib))
}

fn sum(smaps: &str, guest_kib: u64) -> Usage {
    let mut usage = Usage::default();
    let [mut is_guest, mut is_named] = [false; 2];
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else { continue };
        let kib = || value.parse::<u64>().unwrap_or(0);
        if key.contains('-') {
            is_named = line.contains("guest-");
        }
        match key {
            "Size:" => is_guest = is_named || kib() >= guest_kib,
            "Rss:" if !is_guest => usage.resident_kib += kib(),
            "Anonymous:" if !is_guest => usage.anonymous_kib += kib(),
            _ => {}
        }
    }
    usage
}
