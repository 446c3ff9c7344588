//! Ten guests at once, from the first request to the last one's power-off: Ostler's through daemon, policy and jail, each
//! peer's as bare processes.

use std::io;
use std::path::Path;
use std::time::Instant;

use ostler::api::v1;
use ostler::api::v1::virtual_machine::State;

use super::beside::{Contender, Guest, MEMORY_MIB, OSTLER, Running, VCPUS, peers, stuck};
use super::support::Host;

/// Guests.
pub const COUNT: usize = 10;

/// From the first one's start to the last one's end, in nanoseconds, with files below `dir`.
pub fn run(contender: &dyn Contender, guest: &Guest, dir: &Path) -> io::Result<u64> {
    if contender.name() == OSTLER { through_daemon(guest) } else { as_processes(contender, guest, dir) }
}

/// A daemon that has nothing but a policy: each client registers its VM, starts it, and all are seen to end.
fn through_daemon(guest: &Guest) -> io::Result<u64> {
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
                stuck::Watch::begin(vm.vmm_pid)
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
    let took = begin.elapsed().as_nanos() as u64;
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
        initrd: image(&guest.initrd),
        cmdline: peers::cmdline(guest, "poweroff"),
    };
    v1::VirtualMachineSpec { vcpus: VCPUS, memory_mib: MEMORY_MIB, boot: Some(boot), ..Default::default() }
}

fn as_processes(contender: &dyn Contender, guest: &Guest, dir: &Path) -> io::Result<u64> {
    let dirs: Vec<_> = (0..COUNT).map(|number| dir.join(format!("of-{number}"))).collect();
    dirs.iter().try_for_each(std::fs::create_dir_all)?;
    let ready = dirs.iter().map(|dir| contender.ready(guest, dir)).collect::<io::Result<Vec<_>>>()?;
    let begin = Instant::now();
    let running = ready.into_iter().map(|ready| ready.start()).collect::<io::Result<Vec<_>>>()?;
    let ended = std::thread::scope(|scope| {
        let waits: Vec<_> = running.into_iter().map(|running| scope.spawn(move || to_its_end(running))).collect();
        waits.into_iter().map(joined).collect::<io::Result<Vec<_>>>()
    });
    let took = begin.elapsed().as_nanos() as u64;
    dirs.iter().try_for_each(std::fs::remove_dir_all)?;
    ended.map(|_| took)
}

fn to_its_end(mut running: Running) -> io::Result<()> {
    let watch = stuck::Watch::begin(running.pid())?;
    watch.end(running.wait_for_end())
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, io::Result<T>>) -> io::Result<T> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
}
