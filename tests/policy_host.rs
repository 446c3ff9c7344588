//! The process that runs plugins: what it has, and what becomes of decisions when it is lost. Needs no guest.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::support::assets::{binary, plugin, skip};
use crate::support::client::wait;
use crate::support::corpus::laborious;
use crate::support::wait::{SOON, until};
use crate::support::{Caller, Host, facts, small};
use ostler::daemon::policy::{Bound, HostProgram, Limits, LoadError, PolicyConfig, PolicyHost};
use ostler::model::{AdmitRequest, LimitUse, Outcome, PluginMode, PolicyScope};
use ostler::sys::confinement::{self, Confinement};
use rustix::process::{Pid, Signal, kill_process};
use tonic::{Code, Status};

/// The host's user: the one behind those of VMs.
const USER: u32 = 0x4f00_0000 + 0x1_0000;

fn present(host: &Host) -> u32 {
    until("a policy host", SOON, || host.policy_host_pid())
}

fn another(host: &Host, than: u32) -> u32 {
    until("another policy host", SOON, || host.policy_host_pid().filter(|pid| *pid != than))
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// Whether the process has ended, or all its threads are stopped (proc_pid_stat(5), field 3).
fn is_still(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    stats.all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 'Z', 'X'])))
}

fn code(refused: &Status) -> String {
    facts(refused).metadata.get("code").cloned().unwrap_or_default()
}

/// Nobody said no: the client is told to try again.
fn is_for_the_lost_host(refused: &Status) {
    let facts = facts(refused);
    assert_eq!((facts.code, facts.reason.as_str()), (Code::Unavailable, "POLICY_UNAVAILABLE"), "{facts:?}");
    assert_eq!(code(refused), "policy.host-lost");
}

/// Registers until it is allowed: meanwhile only the lost host is a reason.
fn admitted(caller: &Caller, vm: &str) {
    until("an admission", SOON, || match caller.register(vm, small()) {
        Ok(_) => Some(()),
        Err(refused) => {
            is_for_the_lost_host(&refused);
            None
        }
    });
}

fn has_nothing(found: &Confinement) {
    let own: Vec<_> = found.namespaces.iter().filter(|namespace| namespace.is_own).map(|space| space.kind).collect();
    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        assert!(own.contains(&kind), "{own:?}");
    }
    assert_eq!(found.own_pid, 1);
    assert_eq!((&found.uids, &found.gids, found.groups.len()), (&vec![USER; 4], &vec![USER; 4], 0));
    assert_eq!(found.capabilities, [0; 5]);
    assert!(!found.is_dumpable, "another process of its user could read its memory");
    assert!(found.root.is_empty(), "{:?}", found.root);
    let [root] = found.mounts.as_slice() else { panic!("more than a root: {:?}", found.mounts) };
    assert_eq!((root.path.as_str(), root.kind.as_str()), ("/", "tmpfs"));
}

/// Ends the work of other threads, even where the test fails.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn plugins_run_in_a_process_that_has_nothing() {
    let host = Host::start();
    host.tenant("acme").register("web", small()).unwrap();
    let found = confinement::read(present(&host)).unwrap();
    if rustix::process::geteuid().is_root() {
        has_nothing(&found);
    } else {
        skip("plugins_run_in_a_process_that_has_nothing", "root, for namespaces and a user of its own");
    }
    assert!(found.gains_no_privileges);
    assert_eq!(found.environment_bytes, 0);
    let names: Vec<_> = found.threads.iter().map(|thread| thread.name.as_str()).collect();
    for name in ["policy", "policy-load", "policy-clock"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(found.threads.iter().all(|thread| thread.seccomp_mode == 2), "{:?}", found.threads);
    for name in ["Max core file size", "Max file size", "Max locked memory", "Max processes"] {
        let limit = found.limits.iter().find(|limit| limit.name == name).unwrap();
        assert_eq!((limit.soft.as_str(), limit.hard.as_str()), ("0", "0"), "{name}");
    }
    // Sockets to the daemon, lanes are mapped and closed, the page map is its own: no device, no file, no key.
    for descriptor in &found.descriptors {
        let target = descriptor.target.as_str();
        let is_expected = target == "/dev/null"
            || target.starts_with("socket:")
            || target.starts_with("/memfd:lane")
            || target.ends_with("/pagemap");
        assert!(is_expected, "{descriptor:?}");
    }
    assert!(found.descriptors.iter().filter(|descriptor| descriptor.target.starts_with("socket:")).count() <= 3);
}

#[test]
fn the_daemon_has_no_machine_code_but_its_own() {
    let mut host = Host::start();
    host.tenant("acme").register("web", small()).unwrap();
    let daemon = host.daemon_pid().unwrap();
    let executable = |pid: u32| {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let lines = maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.contains('x')));
        // Without a file, and not the kernel's.
        let anonymous = |line: &&str| line.split_whitespace().nth(5).is_none();
        lines.filter(anonymous).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(executable(daemon), Vec::<String>::new());
    assert!(!executable(present(&host)).is_empty(), "the test looks for the wrong thing");
}

#[test]
fn a_killed_host_is_replaced_and_decisions_meanwhile_are_denied() {
    let host = Host::start();
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    let is_over = AtomicBool::new(false);
    let lost = std::thread::scope(|scope| {
        let load = |caller: Caller| {
            let is_over = &is_over;
            move || {
                let (mut lost, mut allowed) = (0, 0);
                while !is_over.load(Ordering::Relaxed) {
                    match caller.register("web", small()) {
                        Ok(_) => {
                            allowed += 1;
                            // Releases ask nobody: they never fail for want of a host.
                            caller.destroy("web", false).unwrap();
                        }
                        Err(refused) => {
                            is_for_the_lost_host(&refused);
                            lost += 1;
                        }
                    }
                }
                (lost, allowed)
            }
        };
        let over = OnDrop(&is_over);
        let workers = [scope.spawn(load(acme)), scope.spawn(load(globex))];
        let mut pid = present(&host);
        for _ in 0..3 {
            signal(pid, Signal::KILL);
            pid = another(&host, pid);
            admitted(&host.tenant("acme"), "sign-of-life");
            host.tenant("acme").destroy("sign-of-life", false).unwrap();
        }
        drop(over);
        let counts = workers.map(|worker| worker.join().unwrap());
        assert!(counts.iter().all(|(_, allowed)| *allowed > 0), "{counts:?}");
        counts.iter().map(|(lost, _)| lost).sum::<u32>()
    });
    println!("{lost} decisions were denied meanwhile\n{}", host.daemon_log());
    assert!(lost > 0);
    admitted(&host.tenant("globex"), "after");
    // What was denied is on record like any denial.
    let records = host.tenant("acme").decisions(ostler::api::v1::ListDecisionsRequest::default()).unwrap();
    assert!(records.iter().all(|record| record.code.is_empty() || record.code == "policy.host-lost"));
}

#[test]
fn a_host_that_hangs_is_replaced_and_what_it_was_asked_is_denied() {
    let host = Host::start();
    let acme = host.tenant("acme");
    acme.register("old", small()).unwrap();
    let pid = present(&host);
    signal(pid, Signal::STOP);
    // A release asks nobody, whatever the host does.
    acme.destroy("old", false).unwrap();
    is_for_the_lost_host(&acme.register("web", small()).unwrap_err());
    let next = another(&host, pid);
    admitted(&acme, "web");
    assert_eq!(present(&host), next, "one was enough");
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap(), "the one that hung is gone");
    println!("{}", host.daemon_log());
}

/// Has decisions made without a pause while the host is lost: all are denied for that reason, until one is made again.
fn replaced(signal: Signal) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let process = HostProgram { program: binary(), user: USER, is_lenient: true, cgroup: None };
    let host = PolicyHost::start(PolicyConfig { host: Some(process), ..PolicyConfig::default() }).unwrap();
    let plugin = runtime.block_on(host.load(plugin("admission"), BTreeMap::new())).unwrap();
    let (name, scope, mode) = ("admission".to_owned(), PolicyScope::Operator, PluginMode::Enforced);
    let chain: Arc<[_]> = [Bound { name, scope, plugin, mode, weight: Default::default() }].into();
    let decide = || {
        let request = AdmitRequest {
            tenant: "acme".parse().unwrap(),
            vm: "web".parse().unwrap(),
            vcpus: 1,
            memory_mib: 128,
            disks: 0,
            nics: 0,
            in_use: LimitUse::default(),
            labels: None,
            images: None,
        };
        runtime.block_on(host.admit(Arc::clone(&chain), request)).dry_run().outcome
    };
    assert_eq!(decide(), Outcome::Allow(Vec::new()));
    let pid = host.process_id().unwrap();
    let lost = Instant::now();
    self::signal(pid, signal);
    until("its last instruction", SOON, || is_still(pid).then_some(()));
    // Without a pause: one loss is one failure, so that no breaker opens, however many ask meanwhile.
    while let Outcome::Deny { code, .. } = decide() {
        assert_eq!(code, "policy.host-lost");
        assert!(lost.elapsed() < SOON, "no decision is made any more");
    }
    println!("{signal:?}: decisions again after {:?}", lost.elapsed());
    assert_ne!(host.process_id().unwrap(), pid);
}

#[test]
fn one_loss_is_one_failure_however_many_decisions_it_denies() {
    replaced(Signal::KILL);
    replaced(Signal::STOP);
}

#[test]
fn loads_and_replays_survive_the_loss_of_a_host_and_it_ends_with_the_daemon() {
    let mut host = Host::start();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    acme.register("web", small()).unwrap();
    signal(present(&host), Signal::KILL);
    operator.load("operator/plugins/second", &plugin("admission"), &[("max-vcpus", "1")]).unwrap();
    admitted(&acme, "next");
    let big = ostler::api::v1::VirtualMachineSpec { vcpus: 2, ..small() };
    assert_eq!(code(&acme.register("big", big).unwrap_err()), "limit.vcpus");
    let pid = present(&host);
    host.kill_daemon();
    until("the end of the policy host", SOON, || (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(()));
}

/// What becomes of a component when its compiler has other limits.
fn compiled(component: &[u8], change: impl FnOnce(&mut Limits)) -> Result<(), LoadError> {
    let mut config = PolicyConfig::for_author(&binary());
    change(&mut config.limits);
    let host = PolicyHost::start(config).unwrap();
    wait(host.load(component.to_vec(), BTreeMap::new())).map(drop)
}

#[test]
fn a_compiler_at_its_limit_says_at_which() {
    // More than a second of work, and more than what is left of the address space.
    let component = laborious(2_000);
    let late = compiled(&component, |limits| limits.compiler_seconds = 1).unwrap_err();
    assert!(matches!(late, LoadError::CompilerTime { seconds: 1 }), "{late:?}");
    let limit = 480 << 20;
    let large = compiled(&component, |limits| limits.compiler_bytes = limit).unwrap_err();
    assert!(matches!(large, LoadError::CompilerMemory { limit_bytes } if limit_bytes == limit), "{large:?}");
    compiled(&component, |_| ()).unwrap();
}
