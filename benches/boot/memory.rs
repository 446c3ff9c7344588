//! What a process holds in memory besides its guest's RAM, from `/proc/<pid>/smaps`.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use ostler::sys::guest_ram::MARK;

/// KiB of resident memory outside the guest's RAM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Anonymous pages: the process's own.
    pub anonymous_kib: u64,
    /// All resident pages, file pages that other processes share included.
    pub resident_kib: u64,
}

/// The anonymous pages of `pid` besides its guest's, in KiB by mapping, most first.
pub fn profile(pid: u32, guest_kib: u64) -> Result<Vec<(String, u64)>, String> {
    let mut by_name = BTreeMap::<String, u64>::new();
    for mapping in mappings(&smaps(pid)?).filter(|mapping| !mapping.is_guest(guest_kib)) {
        *by_name.entry(mapping.name.to_owned()).or_default() += mapping.kib("Anonymous:");
    }
    let mut parts: Vec<_> = by_name.into_iter().filter(|(_, kib)| *kib > 0).collect();
    parts.sort_by_key(|(_, kib)| Reverse(*kib));
    Ok(parts)
}

/// Reads the usage of `pid`; mappings of `guest_kib` and more, and those that are marked so, are the guest's RAM.
pub fn usage(pid: u32, guest_kib: u64) -> Result<Usage, String> {
    Ok(sum(&smaps(pid)?, guest_kib))
}

fn smaps(pid: u32) -> Result<String, String> {
    let path = format!("/proc/{pid}/smaps");
    std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))
}

fn sum(smaps: &str, guest_kib: u64) -> Usage {
    let mut usage = Usage::default();
    for mapping in mappings(smaps).filter(|mapping| !mapping.is_guest(guest_kib)) {
        usage.resident_kib += mapping.kib("Rss:");
        usage.anonymous_kib += mapping.kib("Anonymous:");
    }
    usage
}

/// One of a process's mappings.
struct Mapping<'a> {
    /// Its file, or `[heap]` and the like, or how it may be used if it has no name.
    name: &'a str,
    facts: Vec<&'a str>,
}

impl Mapping<'_> {
    fn kib(&self, key: &str) -> u64 {
        let value = self.facts.iter().find_map(|line| line.strip_prefix(key));
        value.and_then(|value| value.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
    }

    /// Ostler's vmm marks what it maps for its guest, which is more than one mapping.
    fn is_guest(&self, guest_kib: u64) -> bool {
        let flags = self.facts.iter().find_map(|line| line.strip_prefix("VmFlags:")).unwrap_or_default();
        self.kib("Size:") >= guest_kib || flags.split_ascii_whitespace().any(|flag| flag == MARK)
    }
}

/// Each begins with a line of its range of addresses (proc_pid_smaps(5)).
fn mappings(smaps: &str) -> impl Iterator<Item = Mapping<'_>> {
    let mut lines = smaps.lines().peekable();
    std::iter::from_fn(move || {
        let words: Vec<_> = lines.next()?.split_ascii_whitespace().collect();
        let name = words.get(5).or(words.get(1)).copied().unwrap_or_default();
        let mut facts = Vec::new();
        while let Some(line) = lines.next_if(|line| !is_range(line)) {
            facts.push(line);
        }
        Some(Mapping { name, facts })
    })
}

fn is_range(line: &str) -> bool {
    line.split_ascii_whitespace().next().is_some_and(|word| word.contains('-'))
}
