//! Moves the same data through disks and NICs of the same guest under Ostler's vmm and under its peers, alternately, and
//! compares what a KiB costs the whole machine, guest and host.
//!
//! Runs where Linux guests boot (see `cargo xtask bench`), with the environment that `beside` names. In the lab's counting
//! mode a nanosecond is an executed instruction, and that is the unit. The guest measures by its own clock, which the host
//! compares with its own. Every page that moves is looked at, and everything once per boot.
//!
//! ```text
//!   block_cached, block_direct   a raw image on ext4, by the host's page cache or past it (O_DIRECT); io_uring everywhere
//!   write, read                  16 MiB in pieces of 1 MiB       random_…   512 pages, four at once
//!   net_tap, net_vhost           16 MiB by TCP; frames are moved by the hypervisor or by the host's kernel
//! ```

mod backing;
#[path = "../beside/mod.rs"]
mod beside;
mod guest;
mod pattern;
mod stream;
#[path = "../../tests/support/vmm.rs"]
mod vmm;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use backing::{FileSystem, Taps};
use beside::report::{Figure, Report, median};
use beside::stuck::repeated;
use beside::{Contender, Guest, Running, in_directory};

/// Rounds that count.
const ROUNDS: usize = 3;
/// Name of this program in the guest.
const IN_GUEST: &str = "io";
/// How far the guest's clock may be from the host's: parts of a hundred.
const CLOCK_PERCENT: u128 = 2;
/// For NICs: the best way of each contender.
const DIRECTIONS: [&str; 2] = ["to_host", "from_host"];

/// Figures of one run, in nanoseconds per KiB.
type Costs = BTreeMap<String, f64>;

fn main() -> Result<(), String> {
    if std::process::id() != 1 && std::env::args().next().is_some_and(|name| name == format!("/bin/{IN_GUEST}")) {
        return guest::run().map_err(|error| {
            println!("io: over: {error}");
            error.to_string()
        });
    }
    let plain = Guest::plain(&beside::assets()?);
    let contenders: Vec<_> =
        beside::contenders()?.into_iter().filter(|contender| contender.has_disk(beside::Cache::Used)).collect();
    let samples = in_directory(|dir| compare(&contenders, &plain, dir)).map_err(|error| error.to_string())?;
    report(&contenders, &samples).publish()
}

/// The runs of each contender, in turn.
fn compare(contenders: &[Box<dyn Contender>], plain: &Guest, dir: &Path) -> io::Result<Vec<Vec<Costs>>> {
    stream::serve()?;
    let disks = FileSystem::mount(dir)?;
    let initrd = backing::initrd(plain, dir)?;
    let mut samples: Vec<_> = contenders.iter().map(|_| Vec::new()).collect();
    for round in 1..=ROUNDS {
        for (contender, samples) in contenders.iter().zip(&mut samples) {
            eprint!("round {round} {:<18}", contender.name());
            let costs = repeated(|| run(&**contender, &backing::guest(plain, &initrd, &**contender, &disks)?, dir));
            let costs = costs.map_err(|error| io::Error::other(format!("{}: {error}", contender.name())))?;
            let told: Vec<_> = costs.iter().map(|(name, cost)| format!("{name} {cost:.0}")).collect();
            eprintln!(" {}", told.join(", "));
            samples.push(costs);
        }
    }
    Ok(samples)
}

fn run(contender: &dyn Contender, guest: &Guest, dir: &Path) -> io::Result<Costs> {
    let _taps = if contender.makes_taps() { None } else { Some(Taps::make(&guest.nics)?) };
    let costs = beside::started_in(dir, contender, guest, |mut running, _| {
        let costs = measured(&mut running)?;
        running.wait_for_end()?;
        Ok(costs)
    })?;
    guest.disks.iter().try_for_each(backing::verify)?;
    Ok(costs)
}

/// What the guest says of itself, to its end.
fn measured(running: &mut Running) -> io::Result<Costs> {
    running.wait_for("io: begins")?;
    let (started, mut costs) = (Instant::now(), Costs::new());
    loop {
        let line = running.wait_for("io: ")?;
        let words: Vec<_> = line.split_ascii_whitespace().skip(1).collect();
        let number = |word: &str| word.parse::<u64>().map_err(|_| io::Error::other(line.clone()));
        match words.as_slice() {
            ["over", total] => {
                agrees(Duration::from_nanos(number(total)?), started.elapsed())?;
                return Ok(costs);
            }
            [figure, bytes, ns] => {
                costs.insert((*figure).to_owned(), number(ns)? as f64 * 1024.0 / number(bytes)? as f64);
            }
            _ => return Err(io::Error::other(line)),
        }
    }
}

/// A guest's clock that ran slow would flatter its hypervisor.
fn agrees(guest: Duration, host: Duration) -> io::Result<()> {
    if guest.abs_diff(host).as_nanos() * 100 <= host.as_nanos() * CLOCK_PERCENT {
        return Ok(());
    }
    Err(io::Error::other(format!("the guest's clock says {guest:?}, the host's {host:?}")))
}

fn report(contenders: &[Box<dyn Contender>], samples: &[Vec<Costs>]) -> Report {
    let names: Vec<_> = contenders.iter().map(|contender| contender.name()).collect();
    let known: std::collections::BTreeSet<_> = samples.iter().flatten().flat_map(Costs::keys).collect();
    let medians = |figure: &str| -> Vec<Option<f64>> {
        let of = |samples: &Vec<Costs>| median(samples.iter().filter_map(|costs| costs.get(figure).copied()).collect());
        samples.iter().map(of).collect()
    };
    let mut figures: Vec<_> =
        known.iter().map(|name| Figure::new(name.as_str(), "instructions/KiB", &names, &medians(name))).collect();
    for direction in DIRECTIONS {
        let ways = ["tap", "vhost"].map(|way| medians(&format!("net_{way}_{direction}")));
        let best: Vec<_> = (0..names.len())
            .map(|at| ways.iter().filter_map(|way| way.get(at).copied().flatten()).min_by(f64::total_cmp))
            .collect();
        figures.push(Figure::new(format!("net_best_{direction}"), "instructions/KiB", &names, &best));
    }
    Report {
        names,
        figures,
        notes: "Instructions are the whole machine's, guest and host: throughput is their inverse.",
    }
}
