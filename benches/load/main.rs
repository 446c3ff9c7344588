//! Load on a daemon over mutual TLS: how long calls take, how many are done, that decisions come out the same when they are
//! made again, and that no call leaves anything behind.
//!
//! The generator is a process of its own, beside the daemon on the same machine: what it costs is in the figures too. No
//! guest is booted, so it runs anywhere (see `cargo xtask bench --only load`).
//!
//! ```text
//!   OSTLER_BIN     the daemon under test          OSTLER_ASSETS  plugins/ as in the tests
//!   OSTLER_OUT     where load.json is written
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "the tests' harness fails by panicking")]

mod figures;
mod replay;
mod storm;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use figures::Figures;
use ostler::api::v1;
use support::client::wait;
use support::{Caller, Host, small};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tonic::Status;

/// VMs of the tenant: what List gives in one page.
const VMS: usize = 100;
/// Calls one after the other, for latency.
const ALONE: usize = 5_000;
/// Clients at once, for throughput, each on a connection of its own …
const CLIENTS: usize = 16;
/// … and what each calls.
const EACH: usize = 1_000;
/// Watches of one change.
const WATCHES: usize = 50;
/// Changes that they see.
const CHANGES: usize = 200;
/// Calls of the test for growth; the same number goes before, so that what is made once is there.
const GROWTH_CALLS: usize = 100_000;
/// What allocator and store may take and give back meanwhile, in KiB.
const GROWTH_KIB: u64 = 8 << 10;
/// Nobody is to be slowed down by what is measured elsewhere.
const TENANTS: &str = "[limits]\nrequests-per-second = 10000000\nburst = 10000000\n";

/// A call that is measured.
#[derive(Clone, Copy)]
enum Call {
    Get,
    List,
    Register,
}

impl Call {
    const ALL: [Self; 3] = [Self::Get, Self::List, Self::Register];

    fn name(self) -> &'static str {
        match self {
            Self::Get => "Get",
            Self::List => "List of 100",
            Self::Register => "Register, validate_only, one plugin",
        }
    }

    async fn make(self, caller: &Caller) -> Result<(), Status> {
        let mut vms = caller.vms.clone();
        match self {
            Self::Get => {
                vms.get_virtual_machine(v1::GetVirtualMachineRequest { name: caller.name("vm-0") }).await.map(drop)
            }
            Self::List => vms.list_virtual_machines(v1::ListVirtualMachinesRequest::default()).await.map(drop),
            Self::Register => {
                let vm = v1::VirtualMachine { name: caller.name("new"), spec: Some(small()), ..Default::default() };
                let virtual_machine = Some(vm);
                let request =
                    v1::RegisterVirtualMachineRequest { virtual_machine, validate_only: true, ..Default::default() };
                vms.register_virtual_machine(request).await.map(drop)
            }
        }
    }
}

/// So many calls, one after the other; how long each took.
async fn in_a_row(caller: Caller, call: Call, count: usize) -> Result<Vec<Duration>, Status> {
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        call.make(&caller).await?;
        took.push(begin.elapsed());
    }
    Ok(took)
}

/// The same by each of some callers at once.
async fn at_once(callers: &[Caller], call: Call, each: usize) -> Result<Figures, Status> {
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for caller in callers {
        tasks.spawn(in_a_row(caller.clone(), call, each));
    }
    let mut took = Vec::new();
    for rows in tasks.join_all().await {
        took.extend(rows?);
    }
    Ok(Figures::new(call.name(), callers.len(), took, begin.elapsed()))
}

/// From asking for a change until every watch has told it.
async fn fan_out(callers: &[Caller], changer: Caller) -> Result<Figures, Status> {
    // All watches and the changer meet after each change.
    let round = Arc::new(Barrier::new(WATCHES + 1));
    let mut watches = JoinSet::new();
    for at in 0..WATCHES {
        let (caller, round) = (callers[at % callers.len()].clone(), Arc::clone(&round));
        watches.spawn(async move {
            let request = v1::WatchVirtualMachinesRequest::default();
            let mut stream = caller.vms.clone().watch_virtual_machines(request).await?.into_inner();
            // The snapshot.
            while !stream.message().await?.is_some_and(|message| message.bookmark) {}
            round.wait().await;
            for _ in 0..CHANGES {
                let is_told = |message: Option<v1::WatchVirtualMachinesResponse>| {
                    message.and_then(|message| message.virtual_machine).is_some_and(|vm| vm.name.ends_with("/changing"))
                };
                while !is_told(stream.message().await?) {}
                round.wait().await;
                // Further states of the same VM are passed over between rounds.
                while !stream.message().await?.is_some_and(|message| {
                    message.virtual_machine.is_some_and(|vm| vm.state() == v1::virtual_machine::State::Destroyed)
                }) {}
                round.wait().await;
            }
            Ok::<_, Status>(())
        });
    }
    round.wait().await;
    let (begin, mut took) = (Instant::now(), Vec::with_capacity(CHANGES));
    for _ in 0..CHANGES {
        let vm = v1::VirtualMachine { name: changer.name("changing"), spec: Some(small()), ..Default::default() };
        let request = v1::RegisterVirtualMachineRequest { virtual_machine: Some(vm), ..Default::default() };
        let asked = Instant::now();
        changer.vms.clone().register_virtual_machine(request).await?;
        round.wait().await;
        took.push(asked.elapsed());
        let request = v1::DestroyVirtualMachineRequest { name: changer.name("changing"), ..Default::default() };
        changer.vms.clone().destroy_virtual_machine(request).await?;
        round.wait().await;
    }
    let all = begin.elapsed();
    for watch in watches.join_all().await {
        watch?;
    }
    Ok(Figures::new("Register until 50 watches told it", 1, took, all))
}

/// What the daemon holds: resident memory in KiB, open descriptors.
fn holds(host: &mut Host) -> Result<(u64, usize), String> {
    let pid = host.daemon_pid().ok_or("the daemon has ended")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|error| error.to_string())?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let resident = resident.trim().trim_end_matches(" kB").parse().map_err(|_| "VmRSS is no number")?;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).map_err(|error| error.to_string())?.count();
    Ok((resident, descriptors))
}

/// Calls of all kinds, mostly Get: as many as a hundred thousand, after as many; what the daemon holds before and after.
fn growth(host: &mut Host, callers: &[Caller]) -> Result<[(u64, usize); 2], String> {
    let calls = |count: usize| {
        wait(async {
            at_once(callers, Call::Get, count * 8 / 10 / CLIENTS).await?;
            at_once(callers, Call::List, count / 10 / CLIENTS).await?;
            at_once(callers, Call::Register, count / 10 / CLIENTS).await
        })
        .map_err(|status| status.to_string())
    };
    calls(GROWTH_CALLS)?;
    let before = holds(host)?;
    calls(GROWTH_CALLS)?;
    Ok([before, holds(host)?])
}

fn run() -> Result<bool, String> {
    let mut host = Host::start_with_tenants(TENANTS);
    let callers: Vec<_> = (0..CLIENTS).map(|_| host.tenant("acme")).collect();
    let alone = callers.first().ok_or("no caller")?;
    for at in 0..VMS {
        alone.register(&format!("vm-{at}"), small()).map_err(|status| status.to_string())?;
    }
    let mut all = Vec::new();
    for call in Call::ALL {
        for callers in [&callers[..1], &callers[..]] {
            let each = if callers.len() == 1 { ALONE } else { EACH };
            let figures = wait(at_once(callers, call, each)).map_err(|status| status.to_string())?;
            println!("{figures}");
            all.push(figures);
        }
    }
    let figures = wait(fan_out(&callers, host.tenant("acme"))).map_err(|status| status.to_string())?;
    println!("{figures}");
    all.push(figures);
    for figures in storm::measure(&host)? {
        println!("{figures}");
        all.push(figures);
    }
    println!("{}", replay::measure()?);
    let [before, after] = growth(&mut host, &callers)?;
    println!(
        "over {GROWTH_CALLS} calls: {} KiB to {} KiB resident, {} descriptors to {}",
        before.0, after.0, before.1, after.1
    );
    let is_level = after.1 <= before.1 && after.0 <= before.0 + GROWTH_KIB;
    if let Some(out) = std::env::var_os("OSTLER_OUT").map(PathBuf::from) {
        let text = figures::json(&all, before, after);
        fs::write(out.join("load.json"), text).map_err(|error| error.to_string())?;
    }
    Ok(is_level)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("error: the daemon keeps something of each call");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
