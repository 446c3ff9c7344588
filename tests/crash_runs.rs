//! The daemon dies at every step of a VM's start, stop and end, and of devices that come to a running guest and leave it.
//! Boots guests (feature `lab`).

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::time::Duration;

use crate::support::crash::{Call, Footprint, RUNS, assert_consistent, new_id};
use crate::support::guest::{boot, disk, linux, nic};
use crate::support::{Host, facts};
use ostler::api::convert::duration_to_proto;
use ostler::api::v1;
use ostler::api::v1::attach_device_request::Device;
use ostler::api::v1::virtual_machine::State;
use ostler::daemon::crash::Point;

const WEB: &str = "tenants/acme/vms/web";
/// Longer than what the guest's kernel needs to see a button, and short where it sees none.
const GRACE: Duration = Duration::from_secs(3);

/// Steps of a start, in their order.
const STARTS: [Point; 11] = [
    Point::StartRecorded,
    Point::LaunchDirectories,
    Point::LaunchSockets,
    Point::LaunchOpened,
    Point::LaunchFiles,
    Point::LaunchCgroup,
    Point::LaunchSpawned,
    Point::LaunchRecorded,
    Point::LaunchSent,
    Point::RunReady,
    Point::RunRecorded,
];

/// A change that ends a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Stop { grace: Duration },
    Destroy,
}

const BY_FORCE: Change = Change::Stop { grace: Duration::ZERO };

/// Steps of a run's end.
const ENDS: [(Point, Change); 13] = [
    (Point::StopRecorded, BY_FORCE),
    (Point::StopPressed, Change::Stop { grace: GRACE }),
    (Point::StopKilled, BY_FORCE),
    (Point::EndSeen, BY_FORCE),
    (Point::EndDirectory, BY_FORCE),
    (Point::EndCgroup, BY_FORCE),
    (Point::EndReleased, BY_FORCE),
    (Point::EndRecorded, BY_FORCE),
    (Point::DestroyRecorded, Change::Destroy),
    (Point::StopKilled, Change::Destroy),
    (Point::EndReleased, Change::Destroy),
    (Point::DestroyErased, Change::Destroy),
    (Point::DestroyForgotten, Change::Destroy),
];

const ATTACHES: [Point; 5] =
    [Point::AttachRecorded, Point::AttachOpened, Point::AttachSent, Point::AttachHeard, Point::AttachSettled];
const DETACHES: [Point; 4] = [Point::DetachRecorded, Point::DetachSent, Point::DetachHeard, Point::DetachSettled];

fn spec() -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec { disks: vec![disk("root", "hello.img", false)], nics: vec![nic("eth0")], ..linux() }
}

fn start(host: &Host, id: &str) -> Call<v1::VirtualMachine> {
    let mut vms = host.tenant("acme").vms;
    let request = v1::StartVirtualMachineRequest { name: WEB.into(), request_id: id.into(), ..Default::default() };
    Call::new(async move { vms.start_virtual_machine(request).await })
}

fn end(change: Change, host: &Host, id: &str) -> Call<()> {
    let (mut vms, request_id) = (host.tenant("acme").vms, id.to_owned());
    match change {
        Change::Stop { grace } => {
            let grace = Some(duration_to_proto(grace));
            let request = v1::StopVirtualMachineRequest { name: WEB.into(), grace, request_id, ..Default::default() };
            Call::new(async move { vms.stop_virtual_machine(request).await.map(|answer| answer.map(drop)) })
        }
        Change::Destroy => {
            let request =
                v1::DestroyVirtualMachineRequest { name: WEB.into(), force: true, request_id, ..Default::default() };
            Call::new(async move { vms.destroy_virtual_machine(request).await.map(|answer| answer.map(drop)) })
        }
    }
}

fn attach(host: &Host, id: &str) -> Call<v1::VirtualMachine> {
    let mut vms = host.tenant("acme").vms;
    let device = Some(Device::Nic(nic("eth1")));
    let request = v1::AttachDeviceRequest { name: WEB.into(), device, request_id: id.into(), ..Default::default() };
    Call::new(async move { vms.attach_device(request).await })
}

fn detach(host: &Host, id: &str) -> Call<v1::VirtualMachine> {
    let mut vms = host.tenant("acme").vms;
    let request = v1::DetachDeviceRequest {
        name: WEB.into(),
        device_id: "eth1".into(),
        timeout: Some(duration_to_proto(Duration::from_secs(60))),
        request_id: id.into(),
        ..Default::default()
    };
    Call::new(async move { vms.detach_device(request).await })
}

#[test]
fn a_start_or_an_end_that_is_cut_off_at_any_step_leaves_one_vm_and_nothing_else() {
    let mut host = Host::with_guests();
    let before = Footprint::of_fresh(&mut host);
    for (round, (end_point, change)) in ENDS.into_iter().enumerate() {
        let start_point = STARTS[round % STARTS.len()];
        let uid = host.tenant("acme").register("web", spec()).unwrap().uid;

        let what = format!("start at {}", start_point.name());
        let id = new_id();
        host.crash(start_point, |host| start(host, &id));
        assert_consistent(&host, &what);
        println!("{what}: {:?}", host.tenant("acme").get("web").unwrap().state());
        let running = start(&host, &id).make().unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!((running.state(), &running.uid), (State::Running, &uid), "{what}");
        assert_eq!(start(&host, &id).make().unwrap(), running, "{what}: the same answer");
        assert_consistent(&host, &what);

        let what = format!("{change:?} at {}", end_point.name());
        let id = new_id();
        host.crash(end_point, |host| end(change, host, &id));
        assert_consistent(&host, &what);
        let acme = host.tenant("acme");
        println!("{what}: {:?}", acme.get("web").ok().map(|vm| vm.state()));
        end(change, &host, &id).make().unwrap_or_else(|error| panic!("{what}: {error:?}"));
        match change {
            Change::Stop { .. } => {
                let vms = acme.list("").unwrap();
                assert!(matches!(&vms[..], [vm] if vm.uid == uid && vm.state() == State::Stopped), "{what}: {vms:?}");
                acme.destroy("web", false).unwrap();
            }
            Change::Destroy => assert_eq!(acme.list("").unwrap(), [], "{what}"),
        }
        before.expect_again(&mut host, &what);
    }
}

#[test]
fn a_device_that_is_coming_or_going_when_the_daemon_dies_is_there_once_or_not_at_all() {
    let mut host = Host::with_guests();
    let (mut console, _) = boot(&host, &host.tenant("acme"), "web", spec());
    console.run("true");
    drop(console);
    let pid = host.tenant("acme").get("web").unwrap().vmm_pid;
    let before = Footprint::of_fresh(&mut host);
    for (round, point) in ATTACHES.into_iter().enumerate() {
        let what = format!("attach at {}", point.name());
        let id = new_id();
        host.crash(point, |host| attach(host, &id));
        assert_consistent(&host, &what);
        println!("{what}: {} NICs", host.tenant("acme").get("web").unwrap().nics.len());
        let vm = attach(&host, &id).make().unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let ids: Vec<_> = vm.nics.iter().map(|nic| nic.id.as_str()).collect();
        assert_eq!((ids, vm.vmm_pid), (vec!["eth0", "eth1"], pid), "{what}");
        assert_consistent(&host, &what);

        let point = DETACHES[round % DETACHES.len()];
        let what = format!("detach at {}", point.name());
        let id = new_id();
        host.crash(point, |host| detach(host, &id));
        assert_consistent(&host, &what);
        println!("{what}: {} NICs", host.tenant("acme").get("web").unwrap().nics.len());
        let vm = detach(&host, &id).make().unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!((vm.nics.len(), vm.vmm_pid), (1, pid), "{what}");
        before.expect_again(&mut host, &what);
    }
    // The guest went on all the time.
    let mut console = host.console(&host.tenant("acme"), "web");
    // Its past is shown first, the end of the first command among it.
    console.type_line("echo again-$((70+7))");
    console.expect("again-77");
}

#[test]
fn vms_that_die_with_the_daemon_leave_nothing_and_can_be_started_again() {
    let mut host = Host::with_guests();
    let before = Footprint::of_fresh(&mut host);
    let register = |host: &Host| drop(host.tenant("acme").register("web", spec()).unwrap());
    let start = |host: &Host| start(host, &new_id());
    let assert_over = |host: &Host, what: &str| {
        assert_consistent(host, what);
        let vm = host.tenant("acme").get("web").unwrap();
        println!("{what}: {:?} {}", vm.state(), vm.failure);
        assert!(!matches!(vm.state(), State::Running | State::Paused), "{what}: {vm:?}");
    };
    let nics = |host: &Host| -> Vec<_> {
        host.tenant("acme").get("web").unwrap().nics.into_iter().map(|nic| nic.id).collect()
    };
    for point in STARTS {
        let what = format!("all die in a start at {}", point.name());
        register(&host);
        host.crash_with_vmms(point, start);
        assert_over(&host, &what);
        host.tenant("acme").destroy("web", false).unwrap();
        before.expect_again(&mut host, &what);
    }
    register(&host);
    start(&host).make().unwrap();
    host.crash_with_vmms(Point::AttachSent, |host| attach(host, &new_id()));
    assert_over(&host, "all die in an attach");
    assert_eq!(nics(&host), ["eth0"], "no guest was told of it");
    attach(&host, &new_id()).make().unwrap();
    start(&host).make().unwrap();
    host.crash_with_vmms(Point::DetachSent, |host| detach(host, &new_id()));
    assert_over(&host, "all die in a detach");
    assert_eq!(nics(&host), ["eth0"], "no guest has it any more");
    start(&host).make().unwrap();
    host.crash_with_vmms(Point::StopPressed, |host| end(Change::Stop { grace: GRACE }, host, &new_id()));
    assert_over(&host, "all die in a stop");
    host.tenant("acme").destroy("web", false).unwrap();
    before.expect_again(&mut host, "in the end");
}

#[test]
fn a_full_disk_refuses_what_it_cannot_keep_and_harms_no_guest() {
    let mut host = Host::with_guests_on(32);
    let (mut console, _) = boot(&host, &host.tenant("acme"), "web", spec());
    let acme = host.tenant("acme");
    let pid = acme.get("web").unwrap().vmm_pid;
    let mut registered = vec!["first".to_owned(), "second".to_owned()];
    for name in &registered {
        acme.register(name, linux()).unwrap();
    }
    let filler = host.data().join("filler");
    let fill = || {
        let mut file = fs::File::options().create(true).append(true).open(&filler).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    };
    fill();
    // The store's file may have some room left.
    let refused = (0..10_000).find_map(|number| {
        let name = format!("vm{number}");
        let refused = acme.register(&name, linux()).err();
        if refused.is_none() {
            registered.push(name);
        }
        refused
    });
    let refused = facts(&refused.expect("the disk is not full"));
    assert_eq!(refused.reason, "STORE_FAILED", "{refused:?}");
    assert_eq!(acme.list("").unwrap().len(), registered.len() + 1);
    // What cannot be recorded is not begun; who runs goes on.
    assert!(acme.start(&registered[0]).is_err());
    assert!(acme.attach("web", Device::Nic(nic("eth1"))).is_err());
    let stays = acme.destroy(&registered[1], false).is_err();
    assert_eq!(acme.get(&registered[1]).is_ok(), stays, "it is gone exactly if that was answered");
    assert_eq!(acme.get("web").unwrap().vmm_pid, pid);
    assert!(console.run("echo alive").contains("alive"));
    println!("{} registered before it was full; a destroy is refused: {stays}", registered.len());

    // With room again it is of use, without a restart; and the file holds what was answered.
    fs::remove_file(&filler).unwrap();
    acme.register("later", linux()).unwrap();
    acme.attach("web", Device::Nic(nic("eth1"))).unwrap();
    let names = |host: &Host| host.tenant("acme").list("").unwrap().into_iter().map(|vm| vm.name).collect::<Vec<_>>();
    let known = names(&host);
    host.kill_daemon();
    host.start_daemon();
    assert_eq!(names(&host), known);
    assert_consistent(&host, "after a full disk");
    assert_eq!(host.tenant("acme").get("web").unwrap().vmm_pid, pid);
}

#[test]
fn every_step_of_a_run_is_tried() {
    let ends = ENDS.into_iter().map(|(point, _)| point);
    let tried: BTreeSet<_> = STARTS.into_iter().chain(ends).chain(ATTACHES).chain(DETACHES).collect();
    assert_eq!(tried, RUNS.iter().copied().collect::<BTreeSet<_>>());
}
