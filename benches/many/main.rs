//! Starts ten guests at once, from the first request to the last one's power-off: Ostler's through daemon, policy and jail,
//! each peer's as bare processes.
//!
//! Runs where Linux guests boot (see `cargo xtask bench`), with the environment that `beside` names, and plugins. In time, not
//! in instructions: where ten guests take turns on a processor that counts them, one or another does not come to its end (`beside::stuck`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "the tests' harness fails by panicking")]

#[path = "../beside/mod.rs"]
mod beside;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use ostler::api::v1;
use ostler::api::v1::virtual_machine::State;

use beside::report::{Figure, Report, median};
use beside::{Contender, Guest, MEMORY_MIB, OSTLER, Running, VCPUS, in_directory, peers, stuck};
use support::{Host, vmm};

/// Guests.
const COUNT: usize = 10;

/// Rounds, in which all take turns. One more goes first to warm the page cache.
const ROUNDS: usize = 3;

/// Processor time that a guest gets: many times what its boot and its end take.
const GIVEN_UP: Duration = Duration::from_secs(60);

const NOTES: &str = "Ostler's guests go through daemon, policy and jail; a peer's are bare processes.";

fn main() -> Result<(), String> {
    let guest = Guest::plain(&beside::assets()?);
    let contenders = beside::contenders()?;
    let mut times: Vec<_> = contenders.iter().map(|_| Vec::new()).collect();
    for round in 0..=ROUNDS {
        for (contender, times) in contenders.iter().zip(&mut times) {
            eprint!("round {round} {COUNT} at once {:<16}", contender.name());
            let took = stuck::repeated(|| in_directory(|dir| run(&**contender, &guest, dir)));
            let took = took.map_err(|error| format!("{}: {error}", contender.name()))?.as_secs_f64();
            eprintln!(" power-off {took:>8.2} s{}", if round == 0 { "  (warm-up)" } else { "" });
            if round > 0 {
                times.push(took);
            }
        }
    }
    let medians: Vec<_> = times.into_iter().map(median).collect();
    let names: Vec<_> = contenders.iter().map(|contender| contender.name()).collect();
    let figures = vec![Figure::new("ten_at_once_to_power_off", "s", &names, &medians)];
    Report { names, figures, notes: NOTES }.publish()
}

/// From the first one's start to the last one's end, with files below `dir`.
fn run(contender: &dyn Contender, guest: &Guest, dir: &Path) -> io::Result<Duration> {
    if contender.name() == OSTLER { through_daemon(guest) } else { as_processes(contender, guest, dir) }
}

/// A daemon that has nothing but a policy: each client registers its VM, starts it, and all are seen to end.
fn through_daemon(guest: &Guest) -> io::Result<Duration> {
    let host = Host::with_guests();
    let names: Vec<_> = (0..COUNT).map(|number| format!("vm-{number}")).collect();
    let mut watch = host.operator().watch("").map_err(io::Error::other)?;
    let callers: Vec<_> = names.iter().map(|_| host.tenant("acme")).collect();
    let begin = Instant::now();
    let watches = std::thread::scope(|scope| {
        let starts = callers.iter().zip(&names).map(|(caller, name)| {
            scope.spawn(move || {
                caller.register(name, spec(guest)).map_err(io::Error::other)?;
                let vm = caller.start(name).map_err(io::Error::other)?;
                stuck::Watch::begin(vm.vmm_pid, GIVEN_UP)
            })
        });
        let starts: Vec<_> = starts.collect();
        starts.into_iter().map(joined).collect::<io::Result<Vec<_>>>()
    })?;
    let mut left = COUNT;
    let mut outcome = Ok(());
    while left > 0 {
        let vm = watch.next().virtual_machine.unwrap_or_default();
        match vm.state() {
            State::Stopped => left -= 1,
            State::Failed => {
                left -= 1;
                outcome = Err(io::Error::other(format!("{}: {}", vm.name, vm.failure)));
            }
            _ => {}
        }
    }
    let took = begin.elapsed();
    watches.into_iter().try_fold((), |(), watch| watch.end(Ok(())))?;
    outcome.map(|()| took)
}

fn spec(guest: &Guest) -> v1::VirtualMachineSpec {
    let image = |path: &Path| {
        let parts: Vec<_> = path.iter().rev().take(2).map(|part| part.to_string_lossy().into_owned()).collect();
        parts.into_iter().rev().collect::<Vec<_>>().join("/")
    };
    let boot = v1::BootSpec {
        kernel: image(&guest.kernel),
        initrd: guest.initrd.as_deref().map(image).unwrap_or_default(),
        cmdline: peers::cmdline(guest, "poweroff"),
    };
    v1::VirtualMachineSpec { vcpus: VCPUS, memory_mib: MEMORY_MIB, boot: Some(boot), ..Default::default() }
}

fn as_processes(contender: &dyn Contender, guest: &Guest, dir: &Path) -> io::Result<Duration> {
    let dirs: Vec<_> = (0..COUNT).map(|number| dir.join(format!("of-{number}"))).collect();
    dirs.iter().try_for_each(std::fs::create_dir_all)?;
    let ready = dirs.iter().map(|dir| contender.ready(guest, dir)).collect::<io::Result<Vec<_>>>()?;
    let begin = Instant::now();
    let running = ready.into_iter().map(|ready| ready.start()).collect::<io::Result<Vec<_>>>()?;
    let ended = std::thread::scope(|scope| {
        let waits: Vec<_> = running.into_iter().map(|running| scope.spawn(move || to_its_end(running))).collect();
        waits.into_iter().map(joined).collect::<io::Result<Vec<_>>>()
    });
    let took = begin.elapsed();
    dirs.iter().try_for_each(std::fs::remove_dir_all)?;
    ended.map(|_| took)
}

fn to_its_end(mut running: Running) -> io::Result<()> {
    let watch = stuck::Watch::begin(running.pid(), GIVEN_UP)?;
    watch.end(running.wait_for_end())
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, io::Result<T>>) -> io::Result<T> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
}
