//! What a vmm has of the host, as the kernel shows it. Key type: [`Holdings`].

#![allow(dead_code, unreachable_pub, reason = "each program uses another part")]

use std::fs;
use std::path::PathBuf;

/// Descriptors by kind, threads, mappings of rings and devices, memory that may be locked.
#[derive(Debug, PartialEq, Eq)]
pub struct Holdings {
    pub descriptors: Vec<String>,
    pub watched: usize,
    pub threads: usize,
    pub rings: usize,
    pub device_mappings: usize,
    pub lockable: String,
}

pub fn holdings(pid: u32) -> Holdings {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let mut watched = 0;
    let mut descriptors: Vec<_> = fs::read_dir(dir.join("fd"))
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let info = fs::read_to_string(dir.join("fdinfo").join(path.file_name().unwrap())).unwrap_or_default();
            watched += info.lines().filter(|line| line.starts_with("tfd:")).count();
            let target = fs::read_link(&path).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
            // Sockets and eventfds differ in number only.
            target.split(|c: char| c == ':' && !target.starts_with("anon")).next().unwrap().to_owned()
        })
        .collect();
    descriptors.sort();
    let kernel_workers = |name: &str| name.starts_with("iou-");
    let threads = fs::read_dir(dir.join("task")).unwrap().filter(|entry| {
        let name = fs::read_to_string(entry.as_ref().unwrap().path().join("comm")).unwrap_or_default();
        !kernel_workers(&name)
    });
    let maps = fs::read_to_string(dir.join("maps")).unwrap();
    let mappings = |of: &str| maps.lines().filter(|line| line.contains(of)).count();
    let limits = fs::read_to_string(dir.join("limits")).unwrap();
    let lockable = limits.lines().find(|line| line.starts_with("Max locked memory")).unwrap().to_owned();
    Holdings {
        descriptors,
        watched,
        threads: threads.count(),
        rings: mappings("io_uring"),
        device_mappings: mappings("vfio"),
        lockable,
    }
}
