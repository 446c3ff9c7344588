//! Boots the same kernel and initrd with Ostler's vmm and with its peers, alternately, and compares start-up and memory.
//!
//! Runs where Linux guests boot (see `cargo xtask bench`), with the environment that `beside` names. In the lab's counting
//! mode a nanosecond is an executed instruction, which is what the figures then are. A guest that is stuck is told by its
//! processor time, not by that clock, which jumps ahead whenever the machine is idle.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "the tests' harness fails by panicking")]

#[path = "../beside/mod.rs"]
mod beside;
mod memory;
#[path = "../../tests/support/mod.rs"]
mod support;
mod talker;

use std::io;
use std::path::Path;

use support::vmm;

use beside::report::{Figure, Report, median};
use beside::stuck::repeated;
use beside::{Contender, Guest, MEMORY_MIB, USERSPACE, in_directory};

/// Rounds that count; one more goes first to warm the page cache.
const ROUNDS: usize = 3;

const NOTES: &str = "Each kernel has the words of its own hypervisor. Ostler's images are prepared, as its daemon does it \
                     once for all VMs.";

/// What one boot gave, in nanoseconds and KiB.
#[derive(Debug, Clone)]
struct Sample {
    /// From exec to the first instruction of a guest that is hardly more than that one.
    first_instruction_ns: u64,
    /// The same with Linux and its initial RAM disk where they belong.
    first_of_linux_ns: u64,
    /// From exec to the first line of `/init`.
    userspace_ns: u64,
    /// From exec to the end of the process.
    power_off_ns: u64,
    /// Memory of the process, when userspace is there.
    memory: memory::Usage,
    /// Its anonymous pages, in KiB by mapping.
    anonymous: Vec<(String, u64)>,
}

fn main() -> Result<(), String> {
    // `cargo bench` and `cargo test` pass flags of their own.
    let plain = Guest::plain(&beside::assets()?);
    let contenders = beside::contenders()?;
    let samples = in_directory(|dir| compare(&contenders, &plain, dir)).map_err(|error| error.to_string())?;
    let names = contenders.iter().map(|contender| contender.name()).collect();
    report(names, &samples).publish()
}

/// The boots of each contender that count, in turn.
fn compare(contenders: &[Box<dyn Contender>], plain: &Guest, dir: &Path) -> io::Result<Vec<Vec<Sample>>> {
    let talkers = [
        Guest { kernel: dir.join("tiny"), initrd: None, ..plain.clone() },
        Guest { kernel: dir.join("talking"), ..plain.clone() },
    ];
    let [tiny, talking] = &talkers;
    std::fs::write(&tiny.kernel, talker::alone())?;
    std::fs::write(&talking.kernel, talker::in_place_of(std::fs::read(&plain.kernel)?)?)?;
    let mut samples: Vec<_> = contenders.iter().map(|_| Vec::new()).collect();
    for round in 0..=ROUNDS {
        for (contender, samples) in contenders.iter().zip(&mut samples) {
            eprint!("round {round} {:<18}", contender.name());
            let named = |error| io::Error::other(format!("{}: {error}", contender.name()));
            let sample = repeated(|| boot(&**contender, plain, &talkers, dir)).map_err(named)?;
            eprintln!(
                " first instruction {:>6.2} M, of Linux {:>6.2} M, userspace {:>8.1} M, power-off {:>8.1} M{}",
                sample.first_instruction_ns as f64 / 1e6,
                sample.first_of_linux_ns as f64 / 1e6,
                sample.userspace_ns as f64 / 1e6,
                sample.power_off_ns as f64 / 1e6,
                if round == 0 { "  (warm-up)" } else { "" }
            );
            if round > 0 {
                samples.push(sample);
            } else {
                let parts = sample.anonymous.iter().map(|(name, kib)| format!("{name} {kib}"));
                eprintln!("        anonymous memory, KiB: {}", parts.collect::<Vec<_>>().join(", "));
            }
        }
    }
    Ok(samples)
}

fn boot(contender: &dyn Contender, plain: &Guest, talkers: &[Guest; 2], dir: &Path) -> io::Result<Sample> {
    let first_word = |guest| {
        beside::started_in(dir, contender, guest, |mut running, started| {
            running.wait_for_word(talker::SAYS)?;
            Ok(started.elapsed().as_nanos() as u64)
        })
    };
    let [tiny, talking] = talkers;
    let (first_instruction_ns, first_of_linux_ns) = (first_word(tiny)?, first_word(talking)?);
    beside::started_in(dir, contender, plain, |mut running, started| {
        running.wait_for(USERSPACE)?;
        let userspace_ns = started.elapsed().as_nanos() as u64;
        let guest_kib = MEMORY_MIB << 10;
        let memory = memory::usage(running.pid(), guest_kib).map_err(io::Error::other)?;
        let anonymous = memory::profile(running.pid(), guest_kib).map_err(io::Error::other)?;
        running.wait_for_end()?;
        let power_off_ns = started.elapsed().as_nanos() as u64;
        Ok(Sample { first_instruction_ns, first_of_linux_ns, userspace_ns, power_off_ns, memory, anonymous })
    })
}

fn report(names: Vec<&'static str>, samples: &[Vec<Sample>]) -> Report {
    let figure = |name: &str, unit, scale: f64, value: fn(&Sample) -> u64| {
        let values = |samples: &Vec<Sample>| samples.iter().map(|sample| value(sample) as f64 / scale).collect();
        let medians: Vec<_> = samples.iter().map(|samples| median(values(samples))).collect();
        Figure::new(name, unit, &names, &medians)
    };
    let figures = vec![
        figure("exec_to_first_instruction", "M instructions", 1e6, |sample| sample.first_instruction_ns),
        figure("exec_to_first_instruction_of_linux", "M instructions", 1e6, |sample| sample.first_of_linux_ns),
        figure("exec_to_userspace", "M instructions", 1e6, |sample| sample.userspace_ns),
        figure("exec_to_power_off", "M instructions", 1e6, |sample| sample.power_off_ns),
        figure("vmm_anonymous_memory", "KiB", 1.0, |sample| sample.memory.anonymous_kib),
        figure("vmm_memory_besides_guest", "KiB", 1.0, |sample| sample.memory.resident_kib),
    ];
    Report { names, figures, notes: NOTES }
}
