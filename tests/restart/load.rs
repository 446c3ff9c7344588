//! A daemon that is killed and started again while guests run, a thousand more VMs are known, and clients call a hundred
//! times a second.
//!
//! With `OSTLER_GUESTS=all` as many guests run as the host's memory holds, with `OSTLER_GUESTS=<number>` so many.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ostler::api::v1;
use ostler::api::v1::virtual_machine::State;
use tokio::sync::mpsc;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::client::{spawn, wait};
use crate::support::crash::new_id;
use crate::support::guest::{linux, linux_with};
use crate::support::wait::{BOOT, SOON, until};
use crate::support::{Caller, Host};

/// Guests, unless the environment says otherwise: each takes seconds to boot on an emulated processor.
const GUESTS: usize = 2;
/// What a guest takes of the host's memory, generously, in KiB; as much stays free for everything else.
const GUEST_KIB: u64 = 256 << 10;
/// VMs that are only known.
const REGISTERED: usize = 1000;
/// Of those, registered at the same time.
const AT_ONCE: usize = 8;
/// Between two calls.
const PACE: Duration = Duration::from_millis(10);
/// Calls that are answered before the daemon dies, and further ones after it is back.
const CALLS: usize = 200;
/// Before a call that has to be made is made again.
const PAUSE: Duration = Duration::from_millis(50);
/// What the daemon may hold in memory at any time, in KiB.
const RESIDENT_LIMIT_KIB: u64 = 40 << 10;

fn available_kib() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Whether there is to be one more guest.
fn is_room_for(guests: usize) -> bool {
    match std::env::var("OSTLER_GUESTS") {
        Ok(all) if all == "all" => available_kib() > 2 * GUEST_KIB,
        Ok(number) => guests < number.parse().expect("OSTLER_GUESTS is no number"),
        Err(_) => guests < GUESTS,
    }
}

/// Boots guests that count; gives their names.
fn boot_guests(host: &Host, caller: &Caller) -> Vec<String> {
    let mut names = Vec::new();
    while is_room_for(names.len()) {
        let name = format!("guest-{}", names.len());
        caller.register(&name, linux_with("ostler.count")).unwrap();
        caller.start(&name).unwrap();
        host.console(caller, &name).expect("ostler-guest: count 3");
        names.push(name);
    }
    names
}

fn register_many(caller: &Caller) {
    let register = |caller: Caller, from: usize| async move {
        for at in (from..REGISTERED).step_by(AT_ONCE) {
            caller.vms.clone().register_virtual_machine(registration(&caller, &format!("idle-{at}"))).await?;
        }
        Ok::<_, Status>(())
    };
    wait(async {
        let mut all = tokio::task::JoinSet::new();
        (0..AT_ONCE).for_each(|from| drop(all.spawn(register(caller.clone(), from))));
        all.join_all().await.into_iter().collect::<Result<(), _>>()
    })
    .unwrap();
}

fn registration(caller: &Caller, name: &str) -> v1::RegisterVirtualMachineRequest {
    let vm = v1::VirtualMachine { name: caller.name(name), spec: Some(linux()), ..Default::default() };
    v1::RegisterVirtualMachineRequest { virtual_machine: Some(vm), request_id: new_id(), ..Default::default() }
}

/// What came of one call.
struct Outcome {
    call: &'static str,
    began: Instant,
    result: Result<(), Status>,
}

/// Calls of several kinds, [`PACE`] apart, until told to end.
struct Load {
    is_over: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
}

impl Load {
    fn begin(caller: &Caller, guests: &[String]) -> Self {
        let (is_over, (told, outcomes)) = (Arc::new(AtomicBool::new(false)), mpsc::unbounded_channel());
        let answered = Arc::new(AtomicUsize::new(0));
        let (ends, counted, caller, guests) = (is_over.clone(), answered.clone(), caller.clone(), guests.to_vec());
        spawn(async move {
            let mut ticks = tokio::time::interval(PACE);
            for at in 0.. {
                ticks.tick().await;
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                let (caller, told, counted) = (caller.clone(), told.clone(), counted.clone());
                let guest = guests[at % guests.len()].clone();
                tokio::spawn(async move {
                    let began = Instant::now();
                    let (call, result) = make(&caller, at, &guest).await;
                    counted.fetch_add(usize::from(result.is_ok()), Ordering::Relaxed);
                    let _ = told.send(Outcome { call, began, result });
                });
            }
        });
        Self { is_over, answered, outcomes }
    }

    /// Waits until so many more calls are answered.
    fn go_on(&self, calls: usize) {
        let enough = self.answered.load(Ordering::Relaxed) + calls;
        until("enough calls", BOOT, || (self.answered.load(Ordering::Relaxed) >= enough).then_some(()));
    }

    /// Lets the calls that are under way end, and gives what came of all.
    fn end(mut self) -> Vec<Outcome> {
        self.is_over.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        wait(async {
            while let Some(outcome) = self.outcomes.recv().await {
                all.push(outcome);
            }
        });
        all
    }
}

async fn make(caller: &Caller, at: usize, guest: &str) -> (&'static str, Result<(), Status>) {
    let (mut vms, name) = (caller.vms.clone(), caller.name(guest));
    match at % 5 {
        0 => ("Get", vms.get_virtual_machine(v1::GetVirtualMachineRequest { name }).await.map(drop)),
        1 => {
            let request = v1::ListVirtualMachinesRequest { page_size: 20, ..Default::default() };
            ("List", vms.list_virtual_machines(request).await.map(drop))
        }
        2 => {
            let request = v1::GetVirtualMachineStatsRequest { name };
            ("Stats", vms.get_virtual_machine_stats(request).await.map(drop))
        }
        3 => {
            let request = v1::RegisterVirtualMachineRequest {
                validate_only: true,
                ..registration(caller, &format!("tried-{at}"))
            };
            ("validate_only", vms.register_virtual_machine(request).await.map(drop))
        }
        _ => ("Register", registered_at_last(caller, &format!("made-{at}")).await),
    }
}

/// Registers and, where that fails because of the restart, repeats the same request until it does not.
async fn registered_at_last(caller: &Caller, name: &str) -> Result<(), Status> {
    let request = registration(caller, name);
    loop {
        match caller.vms.clone().register_virtual_machine(request.clone()).await {
            Err(status) if is_retryable(&status) => tokio::time::sleep(PAUSE).await,
            other => return other.map(drop),
        }
    }
}

/// Whether a client's library or the daemon itself says: not now.
fn is_retryable(status: &Status) -> bool {
    let is_daemons = status.get_details_error_info().is_some();
    match status.code() {
        Code::Unavailable => true,
        // The connection broke under the call; the daemon said nothing.
        Code::Unknown | Code::Cancelled | Code::Internal => !is_daemons,
        _ => false,
    }
}

/// The numbers that a guest has counted, as far as its console is kept.
fn counted(host: &Host, caller: &Caller, guest: &str, beyond: u64) -> Vec<u64> {
    let mut console = host.console(caller, guest);
    let mut numbers = Vec::new();
    while numbers.last().is_none_or(|last| *last <= beyond) {
        let printed = console.expect("ostler-guest: count ");
        let number = printed.rsplit("ostler-guest: count ").next().unwrap();
        numbers.push(number.trim().parse().unwrap_or_else(|_| panic!("no number in {number:?}")));
    }
    numbers
}

fn count_of_vms(caller: &Caller) -> usize {
    let (mut count, mut request) = (0, v1::ListVirtualMachinesRequest { page_size: 500, ..Default::default() });
    loop {
        let page = wait(caller.vms.clone().list_virtual_machines(request.clone())).unwrap().into_inner();
        count += page.virtual_machines.len();
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return count;
        }
    }
}

/// The most that the daemon has held in memory, in KiB.
fn peak_kib(host: &mut Host) -> u64 {
    let pid = host.daemon_pid().expect("the daemon has ended");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_restart_under_load_is_noticed_by_no_guest_and_loses_no_call() {
    let mut host = Host::with_guests();
    let acme = host.tenant("acme");
    register_many(&acme);
    let guests = boot_guests(&host, &acme);
    let before: Vec<_> = guests.iter().map(|guest| acme.get(guest).unwrap()).collect();
    let mut counts: Vec<_> = guests.iter().map(|guest| *counted(&host, &acme, guest, 0).last().unwrap()).collect();
    let peak = peak_kib(&mut host);

    let load = Load::begin(&acme, &guests);
    load.go_on(CALLS);
    let died = Instant::now();
    host.kill_daemon();
    host.start_daemon();
    let back = Instant::now();
    // The very first answer knows them all.
    let acme = host.tenant("acme");
    for vm in &before {
        let now = acme.get(&vm.name).unwrap();
        assert_eq!((now.state(), now.vmm_pid, &now.uid), (State::Running, vm.vmm_pid, &vm.uid));
    }
    load.go_on(CALLS);
    let outcomes = load.end();
    let peaks = [peak, peak_kib(&mut host)];

    let failed: Vec<_> = outcomes.iter().filter_map(|it| Some((it, it.result.as_ref().err()?))).collect();
    for (outcome, status) in &failed {
        assert!(is_retryable(status), "{}: {status:?}", outcome.call);
        assert!(outcome.began < back, "{} failed after the restart: {status:?}", outcome.call);
    }
    let calls: BTreeSet<_> = outcomes.iter().map(|outcome| outcome.call).collect();
    assert!(calls.len() == 5 && outcomes.iter().any(|it| it.began > back && it.result.is_ok()), "{calls:?}");
    // What was asked for is there once: a name cannot be taken twice, so a doubled one would have failed.
    let made = outcomes.iter().filter(|outcome| outcome.call == "Register").count();
    assert_eq!(count_of_vms(&acme), REGISTERED + guests.len() + made);
    for (guest, count) in guests.iter().zip(&mut counts) {
        let numbers = counted(&host, &acme, guest, *count + 10);
        assert!(numbers.is_sorted_by(|a, b| *b == *a + 1), "{guest} started anew or lost lines: {numbers:?}");
    }
    let taken = host.last_logged("VMs taken over").expect("it does not say so");
    println!(
        "{} guests and {REGISTERED} more VMs; {} calls, {} failed for a retry; answering {:?} after its death; peak of \
         memory {peaks:?} KiB\n{taken}",
        guests.len(),
        outcomes.len(),
        failed.len(),
        back - died
    );
    assert!(peaks.iter().all(|peak| *peak <= RESIDENT_LIMIT_KIB), "{peaks:?} KiB");

    for guest in &guests {
        acme.destroy(guest, true).unwrap();
    }
    until("the vmms' end", SOON, || host.vmm_processes().is_empty().then_some(()));
}
