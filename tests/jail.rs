//! What a VM's process has and can do: the jail as the kernel shows it, and as a hostile program finds it. Boots guests
//! (feature `lab`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::support::client::wait;
use crate::support::guest::{boot, disk, linux, nic};
use crate::support::wait::{SOON, until};
use crate::support::{Host, facts};
use ostler::api::v1;
use ostler::api::v1::virtual_machine::State;
use ostler::sys::confinement;
use ostler::vmm::confine::{Args, Kind};
use tonic::Code;

mod payload;

fn spec() -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec { disks: vec![disk("root", "hello.img", true)], nics: vec![nic("eth0")], ..linux() }
}

/// Files of the VM's cgroup by name.
fn cgroup(jail: &v1::VirtualMachineJail) -> BTreeMap<&str, &str> {
    jail.cgroup_files.iter().map(|file| (file.name.as_str(), file.value.as_str())).collect()
}

fn limit<'a>(jail: &'a v1::VirtualMachineJail, name: &str) -> &'a str {
    let limit = jail.limits.iter().find(|limit| limit.name == name).unwrap_or_else(|| panic!("no limit {name}"));
    assert_eq!(limit.soft, limit.hard, "{name} could be raised");
    &limit.soft
}

/// What each thread may call, as the kernel has it, is what its kind's table says, and nothing else.
fn may_call_what_its_table_says(jail: &v1::VirtualMachineJail) {
    let of_table = |kind: Kind, is_any: bool| -> BTreeSet<_> {
        let rows = kind.rows().filter(|row| matches!(row.args, Args::Any) == is_any);
        rows.map(|row| row.name.to_owned()).collect()
    };
    let named = |name: &str| jail.threads.iter().find(|thread| thread.name == name).unwrap();
    let first = jail.threads.iter().find(|thread| thread.id == jail.pid).unwrap();
    for (thread, kind) in [(named("vcpu0"), Kind::Vcpu), (named("vio-root"), Kind::Io), (first, Kind::Control)] {
        let [any, some] =
            [&thread.calls, &thread.calls_with_some_arguments].map(|calls| calls.iter().cloned().collect());
        assert_eq!((any, some), (of_table(kind, true), of_table(kind, false)), "{thread:?}");
    }
}

#[test]
fn a_running_guest_s_process_has_only_what_it_needs() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let (mut console, _) = boot(&host, &acme, "web", spec());
    console.run("dd if=/dev/vda of=/dev/null bs=64k count=16");
    let vm = acme.get("web").unwrap();
    let jail = acme.inspect_jail("web").unwrap();
    println!("{}", String::from_utf8_lossy(&inspect(&host, &["vm", "inspect-jail", "web"])));

    assert_eq!((jail.pid, jail.own_pid), (vm.vmm_pid, 1));
    let kinds: Vec<_> = jail.namespaces.iter().map(|namespace| namespace.kind.as_str()).collect();
    assert_eq!(kinds, ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"]);
    assert!(jail.namespaces.iter().all(|namespace| namespace.own), "{:?}", jail.namespaces);
    let user = jail.uids[0];
    assert!(user >= 0x4f00_0000 && jail.uids == [user; 4] && jail.gids == [user; 4] && jail.groups.is_empty());
    assert_eq!(jail.capability_sets.len(), 5);
    assert!(jail.capability_sets.iter().all(|set| set.bits == 0), "{:?}", jail.capability_sets);
    assert!(jail.no_new_privileges && !jail.dumpable);
    assert_eq!(jail.environment_bytes, 0);

    let names: Vec<_> = jail.threads.iter().map(|thread| thread.name.as_str()).collect();
    for name in ["vcpu0", "vio-root", "vio-eth0", "vio-rng"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(jail.threads.iter().all(|thread| thread.seccomp_mode == 2), "{:?}", jail.threads);
    may_call_what_its_table_says(&jail);

    assert!(jail.root.is_empty(), "{:?}", jail.root);
    let [root] = jail.mounts.as_slice() else { panic!("more than a root: {:?}", jail.mounts) };
    assert_eq!((root.path.as_str(), root.kind.as_str()), ("/", "tmpfs"));
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(root.options.split(',').any(|had| had == option), "{root:?}");
    }

    assert_eq!(limit(&jail, "Max core file size"), "0");
    assert_eq!(limit(&jail, "Max locked memory"), "0");
    // Its memory is no file, and its disk is small.
    assert_eq!(limit(&jail, "Max file size"), (64u64 << 20).to_string());
    assert!(limit(&jail, "Max open files").parse::<usize>().unwrap() > jail.descriptors.len());
    assert!(limit(&jail, "Max processes").parse::<usize>().unwrap() >= jail.threads.len());

    assert!(jail.cgroup.ends_with(&format!("/vms/{}", vm.uid)), "{}", jail.cgroup);
    let files = cgroup(&jail);
    let memory: u64 = files["memory.max"].parse().unwrap();
    assert!(memory > 256 << 20 && memory < 384 << 20, "{memory}");
    assert_eq!((files["cpu.max"], files["cpu.weight"]), ("200000 100000", "100"));
    assert!(files["pids.max"].parse::<usize>().unwrap() >= jail.threads.len());

    // The daemon's directories, sockets and keys are not among what it holds.
    let data = host.data().to_string_lossy().into_owned();
    let held = jail.descriptors.iter().filter(|descriptor| descriptor.target.starts_with(&data));
    let held: Vec<_> = held.map(|held| held.target.rsplit('/').next().unwrap()).collect();
    let is_expected =
        |name: &&str| ["vmm.log", "console.ring", "counters", "hello.img"].contains(name) || name.starts_with("exit-");
    assert!(held.iter().all(is_expected), "{held:?}");

    // Who may look: its tenant and operators, while there is something to look at.
    assert_eq!(host.operator().inspect_jail("web").unwrap().pid, vm.vmm_pid);
    assert_eq!(host.tenant("globex").inspect_jail("tenants/acme/vms/web").unwrap_err().code(), Code::NotFound);
    let json = inspect(&host, &["vm", "inspect-jail", "web", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["uids"][0], user);
    acme.stop("web", Some(0)).unwrap();
    let refused = acme.inspect_jail("web").unwrap_err();
    assert_eq!((facts(&refused).code, facts(&refused).reason.as_str()), (Code::FailedPrecondition, "WRONG_STATE"));
    until("the cgroup's end", SOON, || host.cgroups().is_empty().then_some(()));
}

fn inspect(host: &Host, arguments: &[&str]) -> Vec<u8> {
    let output = host.command("tenant-acme").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn the_process_that_runs_plugins_has_a_group_of_its_own() {
    let host = Host::with_guests();
    let pid = until("a policy host", SOON, || host.policy_host_pid());
    let found = confinement::read(pid).unwrap();
    assert_eq!((found.own_pid, &found.uids), (1, &vec![0x4f01_0000; 4]), "the user behind those of VMs");
    assert!(found.cgroup.ends_with("policy"), "{:?}", found.cgroup);
    let files: BTreeMap<_, _> = found.cgroup_files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    assert_eq!(files["memory.max"].parse::<u64>().unwrap(), (2 << 30) + (64 << 20));
    assert_eq!((files["cpu.max"], files["cpu.weight"]), ("200000 100000", "100"));
    assert_eq!(files["pids.max"].parse::<usize>().unwrap(), 2 * found.threads.len());
}

#[test]
fn two_guests_have_two_users_and_keep_them_over_a_restart() {
    let mut host = Host::with_guests();
    let acme = host.tenant("acme");
    for name in ["one", "two"] {
        acme.register(name, linux()).unwrap();
        acme.start(name).unwrap();
    }
    let user = |host: &Host, name| host.tenant("acme").inspect_jail(name).unwrap().uids[0];
    let users = [user(&host, "one"), user(&host, "two")];
    assert_ne!(users[0], users[1]);
    host.kill_daemon();
    host.start_daemon();
    assert_eq!([user(&host, "one"), user(&host, "two")], users, "the very processes, taken over");
    // A new run keeps the user; a VM that is gone gives it back, and nobody else's.
    let acme = host.tenant("acme");
    acme.stop("one", Some(0)).unwrap();
    acme.start("one").unwrap();
    assert_eq!(user(&host, "one"), users[0]);
    acme.destroy("one", true).unwrap();
    acme.register("three", linux()).unwrap();
    acme.start("three").unwrap();
    assert_eq!(user(&host, "three"), users[0]);
}

#[test]
fn a_killed_daemon_leaves_no_cgroup_that_the_next_one_does_not_remove() {
    let mut host = Host::with_guests();
    let acme = host.tenant("acme");
    acme.register("web", linux()).unwrap();
    acme.start("web").unwrap();
    let [cgroup] = host.cgroups().try_into().expect("one VM, one cgroup");
    // Of a VM that was being registered or destroyed: nobody knows it.
    let unknown = cgroup.with_file_name(ostler::model::VmId::new().to_string());
    host.kill_daemon();
    std::fs::create_dir(&unknown).unwrap();
    let stray = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    std::fs::write(unknown.join("cgroup.procs"), stray.id().to_string()).unwrap();
    // The VM dies while nobody looks.
    std::fs::write(cgroup.join("cgroup.kill"), "1").unwrap();
    until("the process' end", SOON, || host.vmm_processes().is_empty().then_some(()));
    host.start_daemon();
    assert_eq!(host.tenant("acme").get("web").unwrap().state(), State::Failed);
    until("both cgroups' end", SOON, || host.cgroups().is_empty().then_some(()));
    let mut stray = stray;
    assert!(!stray.wait().unwrap().success(), "what ran in it was killed");
    // A new run makes its own again.
    let acme = host.tenant("acme");
    acme.start("web").unwrap();
    assert_eq!(host.cgroups(), [cgroup]);
    acme.destroy("web", true).unwrap();
    until("the cgroup's end", SOON, || host.cgroups().is_empty().then_some(()));
}

#[test]
fn a_jail_that_cannot_be_built_is_a_failed_start_that_says_why() {
    let host = Host::with_guests();
    let acme = host.tenant("acme");
    let uid = acme.register("web", linux()).unwrap().uid;
    let start = |id: &str| {
        let name = acme.name("web");
        let mut call = tonic::Request::new(v1::StartVirtualMachineRequest { name, ..Default::default() });
        call.metadata_mut().insert("x-request-id", id.parse().unwrap());
        wait(acme.vms.clone().start_virtual_machine(call))
    };
    let knob = Path::new("/proc/sys/user/max_user_namespaces");
    let before = std::fs::read_to_string(knob).unwrap();
    std::fs::write(knob, "0").unwrap();
    let refused = start("night-shift-1");
    std::fs::write(knob, before).unwrap();
    let refused = refused.unwrap_err();
    assert_eq!(facts(&refused).code, Code::FailedPrecondition);
    assert!(refused.message().contains("cannot enter a user namespace"), "{refused:?}");
    assert!(refused.message().contains("user.max_user_namespaces"), "{refused:?}");
    assert!(host.cgroups().is_empty(), "{:?}", host.cgroups());
    // What jail, process and daemon have done about a call is found by the call's id.
    let read = |name: &str| std::fs::read_to_string(host.data().join(name)).unwrap();
    let of_process = || read(&format!("vms/{uid}/vmm.log"));
    let jail = of_process();
    assert!(jail.lines().any(|line| line.starts_with("jail: ") && line.contains("night-shift-1")), "{jail}");
    start("night-shift-2").unwrap();
    until("the process' word", SOON, || of_process().contains("night-shift-2").then_some(()));
    let mut call = tonic::Request::new(v1::PauseVirtualMachineRequest { name: acme.name("web"), ..Default::default() });
    call.metadata_mut().insert("x-request-id", "night-shift-3".parse().unwrap());
    wait(acme.vms.clone().pause_virtual_machine(call)).unwrap();
    let log = of_process();
    assert!(log.lines().any(|line| line.contains("stand still") && line.contains("night-shift-3")), "{log}");
    for log in [read("audit.log"), host.daemon_log()] {
        assert!(["night-shift-1", "night-shift-2"].iter().all(|id| log.contains(id)), "{log}");
    }
}

#[test]
fn a_daemon_on_a_host_without_cgroups_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let made = std::process::Command::new(crate::support::assets::binary())
        .args(["certs", "init", "--dir"])
        .arg(path("data/certs"))
        .output()
        .unwrap();
    assert!(made.status.success());
    let output = std::process::Command::new(crate::support::assets::binary())
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(path("data"))
        .arg("--run-dir")
        .arg(path("run"))
        .arg("--cgroup")
        .arg(path("no-cgroup"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("no-cgroup does not lie in a cgroup v2 file system") && said.contains("--cgroup"), "{said}");
}
