//! Boots the same kernel and initrd with Ostler's vmm and with its peers, alternately, and compares start-up and memory.
//!
//! Runs where Linux guests boot (see `cargo xtask bench`). In the lab's counting mode a nanosecond is an executed
//! instruction, which is what the figures then are. Nothing here has a time limit: that clock jumps ahead whenever the
//! machine is idle. Who runs this has one.
//!
//! ```text
//!   OSTLER_BIN     the binary under test          QEMU           qemu-system-x86_64 (optional)
//!   OSTLER_ASSETS  images/ as in the tests        FIRECRACKER    firecracker (optional)
//!   OSTLER_OUT     where bench.json is written    CLOUD_HYPERVISOR  cloud-hypervisor (optional)
//! ```

mod memory;
mod ostler;
mod peers;
mod report;
#[path = "../../tests/support/vmm.rs"]
mod vmm;

use std::path::PathBuf;

/// vCPUs and memory of every contender's VM.
const VCPUS: u32 = 1;
const MEMORY_MIB: u64 = 256;
/// Rounds that count; one more goes first to warm the page cache.
const ROUNDS: usize = 3;
/// The guest's words on its command line, behind those that a hypervisor adds itself: say when userspace is there, then
/// power off.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 ostler.exec=poweroff";
/// What the initrd prints first.
const USERSPACE: &str = "ostler-guest: kernel";

/// What is booted.
struct Images {
    vmlinux: PathBuf,
    initrd: PathBuf,
}

/// What one boot gave, in nanoseconds and KiB.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// From exec to the first line of `/init`.
    userspace_ns: u64,
    /// From exec to the end of the process.
    power_off_ns: u64,
    /// Memory of the process, when userspace is there.
    memory: memory::Usage,
}

/// Something that boots a VM.
trait Contender {
    fn name(&self) -> &'static str;
    fn boot(&self, images: &Images) -> Result<Sample, String>;
}

fn main() -> Result<(), String> {
    // `cargo bench` and `cargo test` pass flags of their own.
    let assets =
        PathBuf::from(std::env::var("OSTLER_ASSETS").map_err(|_| "set OSTLER_ASSETS (see `cargo xtask bench`)")?);
    let images =
        Images { vmlinux: assets.join("images/linux-6.12/vmlinux"), initrd: assets.join("images/linux-6.12/initrd") };
    let mut contenders: Vec<Box<dyn Contender>> = vec![Box::new(ostler::Ostler::from_env()?)];
    contenders.extend(peers::from_env());

    let mut samples: Vec<Vec<Sample>> = contenders.iter().map(|_| Vec::new()).collect();
    for round in 0..=ROUNDS {
        for (contender, samples) in contenders.iter().zip(&mut samples) {
            eprint!("round {round} {:<18}", contender.name());
            let sample = contender.boot(&images).map_err(|error| format!("{}: {error}", contender.name()))?;
            eprintln!(
                " userspace {:>8.1} M, power-off {:>8.1} M{}",
                sample.userspace_ns as f64 / 1e6,
                sample.power_off_ns as f64 / 1e6,
                if round == 0 { "  (warm-up)" } else { "" }
            );
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    let names: Vec<_> = contenders.iter().map(|contender| contender.name()).collect();
    let report = report::Report::new(&names, &samples);
    print!("{report}");
    let out = std::env::var("OSTLER_OUT").map_or_else(|_| PathBuf::from("."), PathBuf::from);
    let path = out.join("bench.json");
    std::fs::write(&path, report.to_json()).map_err(|error| format!("{}: {error}", path.display()))
}
