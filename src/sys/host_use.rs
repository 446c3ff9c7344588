//! What the whole host takes and has (proc_stat(5), proc_meminfo(5)). Key type: [`HostUse`]. Key function: [`read`].

use std::io;
use std::time::Duration;

use super::proc_text::bytes;

/// CPUs and memory of the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostUse {
    /// CPUs that are online.
    pub cpus: u32,
    /// What they have worked since boot, all together: everything but idling and waiting for disks.
    pub cpu_time: Duration,
    /// All memory, in bytes.
    pub memory_bytes: u64,
    /// What of it new processes can have without swapping, as the kernel estimates.
    pub memory_available_bytes: u64,
}

/// As it is now.
pub fn read() -> io::Result<HostUse> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    parse(&stat, &meminfo, rustix::param::clock_ticks_per_second())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected /proc/stat or /proc/meminfo"))
}

fn parse(stat: &str, meminfo: &str, ticks_per_second: u64) -> Option<HostUse> {
    let (mut cpus, mut ticks) = (0, None);
    for line in stat.lines().filter_map(|line| line.strip_prefix("cpu")) {
        if let Some(all) = line.strip_prefix(' ') {
            // user nice system idle iowait irq softirq steal; what follows is part of the first two.
            let fields = all.split_whitespace().map(|field| field.parse::<u64>().ok()).collect::<Option<Vec<_>>>()?;
            let busy = [0, 1, 2, 5, 6, 7].map(|at| fields.get(at).copied().unwrap_or(0));
            ticks = Some(busy.into_iter().fold(0u64, u64::saturating_add));
        } else {
            cpus += 1;
        }
    }
    Some(HostUse {
        cpus,
        cpu_time: Duration::from_millis(ticks?.saturating_mul(1000) / ticks_per_second.max(1)),
        memory_bytes: bytes(meminfo, "MemTotal")?,
        memory_available_bytes: bytes(meminfo, "MemAvailable")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idling_and_waiting_is_no_work() {
        let stat = "cpu  100 10 50 9000 800 4 3 2 70 0\ncpu0 1 2 3 4\ncpu3 1 2 3 4\nintr 5 6\n";
        let meminfo = "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:   600 kB\n";
        let expected = HostUse {
            cpus: 2,
            cpu_time: Duration::from_millis(1690),
            memory_bytes: 1000 << 10,
            memory_available_bytes: 600 << 10,
        };
        assert_eq!(parse(stat, meminfo, 100), Some(expected));
        assert_eq!(parse("intr 5\n", meminfo, 100), None);
        assert_eq!(parse(stat, "MemTotal: 5 kB\n", 100), None);
        let here = read().unwrap();
        assert!(here.cpus > 0 && here.memory_available_bytes <= here.memory_bytes && !here.cpu_time.is_zero());
    }
}
