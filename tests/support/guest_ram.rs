//! A guest's memory in its vmm, as the kernel shows it. Key functions: [`smaps_of_guest`], [`resident_kib`],
//! [`numa_of_guest`].

use std::fs;

use ostler::sys::guest_ram::MARK;

/// Its largest mapping in `/proc/PID/smaps`, as lines.
pub fn smaps_of_guest(pid: u32) -> Vec<String> {
    mappings(pid).into_iter().max_by_key(|mapping| kib(mapping, "Size:")).expect("guest memory")
}

/// How much of it is there, in all its mappings.
pub fn resident_kib(pid: u32) -> u64 {
    mappings(pid).iter().map(|mapping| kib(mapping, "Rss:")).sum()
}

fn value<'a>(mapping: &'a [String], name: &str) -> &'a str {
    mapping.iter().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim()
}

fn kib(mapping: &[String], name: &str) -> u64 {
    value(mapping, name).trim_end_matches(" kB").parse().unwrap()
}

/// All its mappings.
fn mappings(pid: u32) -> Vec<Vec<String>> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut mappings: Vec<Vec<String>> = Vec::new();
    for line in smaps.lines() {
        // A range of addresses begins a mapping; amounts and flags have names in capitals.
        if !line.starts_with(|first: char| first.is_ascii_uppercase()) {
            mappings.push(Vec::new());
        }
        mappings.last_mut().unwrap().push(line.to_owned());
    }
    mappings.retain(|mapping| value(mapping, "VmFlags:").split(' ').any(|flag| flag == MARK));
    mappings
}

/// Its line in `/proc/PID/numa_maps`.
pub fn numa_of_guest(pid: u32) -> String {
    let mapping = smaps_of_guest(pid);
    let base = mapping[0].split('-').next().unwrap();
    let maps = fs::read_to_string(format!("/proc/{pid}/numa_maps")).unwrap();
    maps.lines()
        .find(|line| line.split(' ').next() == Some(base))
        .unwrap_or_else(|| panic!("{base}: {maps}"))
        .to_owned()
}
