//! The daemon dies at every step of changes that need no guest, and nothing is lost, doubled or left behind (feature
//! `lab`, whose daemon can be told where to die). Guests: `crash_runs`; devices of the host: `crash_devices`.

use std::collections::BTreeSet;
use std::fs;

use crate::support::assets::plugin;
use crate::support::crash::{Call, DEVICES, Footprint, RECORDS, RUNS, assert_consistent, new_id};
use crate::support::guest::{disk, nic};
use crate::support::tally::{load_tally, until_tallied};
use crate::support::{Caller, Host, small};
use ostler::api::v1;
use ostler::api::v1::attach_device_request::Device;
use ostler::api::v1::end_plugin_canary_request::End;
use ostler::api::v1::load_plugin_request::{Header, Part};
use ostler::api::v1::plugin::Mode;
use ostler::api::v1::plugin_canary::State as Trial;
use ostler::api::v1::virtual_machine::State;
use ostler::daemon::crash::Point;

const WEB: &str = "tenants/acme/vms/web";
const OWN: &str = "tenants/acme/plugins/own";
const TALLY: &str = "operator/plugins/tally";
/// A component that nobody has loaded yet.
const OTHER: &str = "sriov-net";
const GROWN: u64 = 2 << 20;

/// A change that is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Register,
    Destroy,
    Attach,
    Detach,
    Resize,
    Load,
    RollBack,
    Demote,
    Promote,
    LoadCanary,
    PromoteCanary,
    LoadAlias,
    MoveAlias,
    Follow,
    Unload,
}

/// Which changes pass a point. Those of a daemon's start are tried for themselves.
fn changes(point: Point) -> &'static [Change] {
    use Change::{
        Attach, Demote, Destroy, Detach, Follow, Load, LoadAlias, LoadCanary, MoveAlias, Promote, PromoteCanary,
        Register, Resize, RollBack, Unload,
    };
    match point {
        // Of a plugin that remembers: tried for itself.
        Point::KvWritten => &[],
        // Of what observers are told: tried for themselves.
        Point::EventsWritten | Point::ObserverHeard => &[],
        Point::RequestBegun => &[Destroy, Attach, Detach, Resize],
        Point::RequestAnswered => &[
            Register,
            Destroy,
            Attach,
            Detach,
            Resize,
            Load,
            RollBack,
            Demote,
            Promote,
            LoadCanary,
            PromoteCanary,
            LoadAlias,
            MoveAlias,
            Follow,
            Unload,
        ],
        Point::RegisterDecided | Point::RegisterRecorded => &[Register],
        Point::PluginWritten => &[Load, LoadCanary, LoadAlias],
        Point::PluginRecorded => {
            &[Load, RollBack, Demote, Promote, LoadCanary, PromoteCanary, LoadAlias, MoveAlias, Follow]
        }
        // No call's: tried for itself.
        Point::CanaryRolledBack => &[],
        Point::PluginUnloaded => &[Unload],
        Point::DiskGrown => &[Resize],
        Point::EndDirectory
        | Point::EndCgroup
        | Point::EndReleased
        | Point::DestroyRecorded
        | Point::DestroyErased
        | Point::DestroyForgotten => &[Destroy],
        Point::AttachDecided | Point::AttachRecorded => &[Attach],
        Point::DetachDecided | Point::DetachRecorded => &[Detach],
        Point::BootDevices | Point::BootSwept | Point::BootResumed => &[],
        other => panic!("{} is not tried here", other.name()),
    }
}

/// A VM that is off, with a disk and a NIC.
fn spec() -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec { disks: vec![disk("root", "web.img", false)], nics: vec![nic("eth0")], ..small() }
}

fn load(caller: &Caller, component: &str, settings: &[(&str, &str)], id: &str) -> Call<v1::Plugin> {
    load_at(caller, component, settings, 0, id)
}

/// The same, for so many of 100 VMs.
fn load_at(
    caller: &Caller,
    component: &str,
    settings: &[(&str, &str)],
    canary_percent: u32,
    id: &str,
) -> Call<v1::Plugin> {
    load_component(caller, component, Header { canary_percent, ..header(settings, id) })
}

fn header(settings: &[(&str, &str)], id: &str) -> Header {
    let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Header { name: OWN.into(), settings, request_id: id.into(), ..Default::default() }
}

/// Keeps another version as `next`.
fn load_next(caller: &Caller, id: &str) -> Call<v1::Plugin> {
    load_component(caller, "admission", Header { alias: "next".into(), ..header(&[("max-vcpus", "4")], id) })
}

/// Has `stable` name what `next` names.
fn move_alias(caller: &Caller, id: &str) -> Call<v1::Plugin> {
    let (alias, version, request_id) = ("stable".into(), "next".into(), id.into());
    let request = v1::SetPluginAliasRequest { name: OWN.into(), alias, version, request_id, ..Default::default() };
    let mut client = caller.plugins.clone();
    Call::new(async move { client.set_plugin_alias(request).await })
}

/// Has the plugin decide, or only be recorded.
fn set_mode(caller: &Caller, mode: Mode, id: &str) -> Call<v1::Plugin> {
    let (name, mode, request_id) = (OWN.into(), mode.into(), id.into());
    let request = v1::SetPluginModeRequest { name, mode, request_id, ..Default::default() };
    let mut client = caller.plugins.clone();
    Call::new(async move { client.set_plugin_mode(request).await })
}

fn without_answer<T: Send + 'static>(call: Call<T>) -> Call<()> {
    Call(Box::pin(async move { call.0.await.map(drop) }))
}

fn load_component(caller: &Caller, component: &str, header: Header) -> Call<v1::Plugin> {
    let bytes = plugin(component);
    let chunks = bytes.chunks(64 << 10).map(|chunk| Part::Chunk(chunk.to_vec()));
    let parts =
        std::iter::once(Part::Header(header)).chain(chunks).map(|part| v1::LoadPluginRequest { part: Some(part) });
    let (parts, mut client) = (tokio_stream::iter(parts.collect::<Vec<_>>()), caller.plugins.clone());
    Call::new(async move { client.load_plugin(parts).await })
}

impl Change {
    /// What is there before it.
    fn prepare(self, acme: &Caller) {
        match self {
            Self::Register => {}
            Self::Destroy | Self::Attach | Self::Resize => drop(acme.register("web", spec()).unwrap()),
            Self::Detach => {
                acme.register("web", spec()).unwrap();
                acme.attach("web", Device::Nic(nic("eth1"))).unwrap();
            }
            Self::Load => {}
            Self::Demote | Self::Unload => drop(load(acme, OTHER, &[], &new_id()).make().unwrap()),
            Self::Promote => {
                load(acme, OTHER, &[], &new_id()).make().unwrap();
                set_mode(acme, Mode::Shadow, &new_id()).make().unwrap();
            }
            Self::LoadCanary => drop(load(acme, "admission", &[], &new_id()).make().unwrap()),
            Self::PromoteCanary => {
                load(acme, "admission", &[], &new_id()).make().unwrap();
                load_at(acme, "admission", &[("max-vcpus", "3")], 40, &new_id()).make().unwrap();
            }
            Self::LoadAlias => drop(load(acme, "admission", &[("max-vcpus", "3")], &new_id()).make().unwrap()),
            Self::MoveAlias => {
                load(acme, "admission", &[("max-vcpus", "3")], &new_id()).make().unwrap();
                acme.alias(OWN, "stable", "").unwrap();
                acme.follow(OWN, "stable").unwrap();
                load_next(acme, &new_id()).make().unwrap();
            }
            Self::Follow => {
                load(acme, "admission", &[("max-vcpus", "3")], &new_id()).make().unwrap();
                load_next(acme, &new_id()).make().unwrap();
            }
            Self::RollBack => {
                load(acme, "admission", &[("max-vcpus", "3")], &new_id()).make().unwrap();
                load(acme, "admission", &[("max-vcpus", "4")], &new_id()).make().unwrap();
            }
        }
    }

    /// The call, under a request id.
    fn call(self, host: &Host, id: &str) -> Call<()> {
        let acme = host.tenant("acme");
        let (mut vms, mut plugins, id) = (acme.vms.clone(), acme.plugins.clone(), id.to_owned());
        match self {
            Self::Register => {
                let vm = v1::VirtualMachine { name: WEB.into(), spec: Some(spec()), ..Default::default() };
                let request = v1::RegisterVirtualMachineRequest {
                    virtual_machine: Some(vm),
                    request_id: id,
                    ..Default::default()
                };
                Call::new(async move { vms.register_virtual_machine(request).await.map(|answer| answer.map(drop)) })
            }
            Self::Destroy => {
                let request =
                    v1::DestroyVirtualMachineRequest { name: WEB.into(), request_id: id, ..Default::default() };
                Call::new(async move { vms.destroy_virtual_machine(request).await.map(|answer| answer.map(drop)) })
            }
            Self::Attach => {
                let device = Some(Device::Nic(nic("eth1")));
                let request =
                    v1::AttachDeviceRequest { name: WEB.into(), device, request_id: id, ..Default::default() };
                Call::new(async move { vms.attach_device(request).await.map(|answer| answer.map(drop)) })
            }
            Self::Detach => {
                let device_id = "eth1".to_owned();
                let request =
                    v1::DetachDeviceRequest { name: WEB.into(), device_id, request_id: id, ..Default::default() };
                Call::new(async move { vms.detach_device(request).await.map(|answer| answer.map(drop)) })
            }
            Self::Resize => {
                let mut vms = host.operator().vms;
                let request = v1::ResizeVirtualMachineDiskRequest {
                    name: WEB.into(),
                    disk: "root".into(),
                    size_bytes: GROWN,
                    request_id: id,
                    ..Default::default()
                };
                Call::new(async move { vms.resize_virtual_machine_disk(request).await.map(|answer| answer.map(drop)) })
            }
            Self::Load => without_answer(load(&acme, OTHER, &[], &id)),
            Self::RollBack => {
                let request = v1::RollBackPluginRequest { name: OWN.into(), request_id: id, ..Default::default() };
                Call::new(async move { plugins.roll_back_plugin(request).await.map(|answer| answer.map(drop)) })
            }
            Self::Demote => without_answer(set_mode(&acme, Mode::Shadow, &id)),
            Self::Promote => without_answer(set_mode(&acme, Mode::Enforced, &id)),
            Self::LoadCanary => without_answer(load_at(&acme, "admission", &[("max-vcpus", "3")], 40, &id)),
            Self::PromoteCanary => {
                let end = End::Promote.into();
                let request =
                    v1::EndPluginCanaryRequest { name: OWN.into(), end, request_id: id, ..Default::default() };
                Call::new(async move { plugins.end_plugin_canary(request).await.map(|answer| answer.map(drop)) })
            }
            Self::LoadAlias => without_answer(load_next(&acme, &id)),
            Self::MoveAlias => without_answer(move_alias(&acme, &id)),
            Self::Follow => {
                let (name, alias) = (OWN.to_owned(), "next".to_owned());
                let request = v1::FollowPluginAliasRequest { name, alias, request_id: id, ..Default::default() };
                Call::new(async move { plugins.follow_plugin_alias(request).await.map(|answer| answer.map(drop)) })
            }
            Self::Unload => {
                let request = v1::UnloadPluginRequest { name: OWN.into(), request_id: id, ..Default::default() };
                Call::new(async move { plugins.unload_plugin(request).await.map(|answer| answer.map(drop)) })
            }
        }
    }

    /// What it has brought about, once.
    fn assert_done(self, host: &Host, what: &str) {
        let acme = host.tenant("acme");
        let vms = acme.list("").unwrap();
        let own: Vec<_> =
            acme.plugins("tenants/acme").unwrap().into_iter().filter(|plugin| plugin.name == OWN).collect();
        let nics = |vm: &v1::VirtualMachine| vm.nics.iter().map(|nic| nic.id.clone()).collect::<Vec<_>>();
        match self {
            Self::Register | Self::Resize => assert!(
                matches!(&vms[..], [vm] if vm.state() == State::Registered && nics(vm) == ["eth0"]),
                "{what}: {vms:?}"
            ),
            Self::Destroy => assert!(vms.is_empty(), "{what}: {vms:?}"),
            Self::Attach => assert!(matches!(&vms[..], [vm] if nics(vm) == ["eth0", "eth1"]), "{what}: {vms:?}"),
            Self::Detach => assert!(matches!(&vms[..], [vm] if nics(vm) == ["eth0"]), "{what}: {vms:?}"),
            Self::Load => assert_eq!(own.len(), 1, "{what}"),
            Self::RollBack => assert_eq!(own[0].settings["max-vcpus"], "3", "{what}"),
            Self::Demote => assert_eq!(own[0].mode(), Mode::Shadow, "{what}"),
            Self::Promote => assert_eq!(own[0].mode(), Mode::Enforced, "{what}"),
            Self::LoadCanary => {
                let canary = own[0].canary.as_ref().unwrap();
                assert_eq!((canary.state(), canary.percent, &own[0].settings.len()), (Trial::Active, 40, &0), "{what}");
                assert_eq!(canary.version.as_ref().unwrap().settings["max-vcpus"], "3", "{what}");
            }
            Self::PromoteCanary => {
                assert_eq!((&own[0].canary, own[0].previous.len()), (&None, 1), "{what}");
                assert_eq!(own[0].settings["max-vcpus"], "3", "{what}");
            }
            Self::LoadAlias => {
                assert_eq!((&*own[0].settings["max-vcpus"], &own[0].previous.len()), ("3", &0), "{what}");
                let named = own[0].aliases[0].version.as_ref().unwrap();
                assert_eq!((&*own[0].aliases[0].name, &*named.settings["max-vcpus"]), ("next", "4"), "{what}");
            }
            Self::MoveAlias => {
                assert_eq!((&*own[0].settings["max-vcpus"], &own[0].previous.len()), ("4", &1), "{what}");
                let names = own[0].aliases.iter().map(|alias| &alias.version.as_ref().unwrap().settings["max-vcpus"]);
                assert!(own[0].follows == "stable" && names.eq(["4", "4"]), "{what}: {:?}", own[0]);
            }
            Self::Follow => {
                assert_eq!((&*own[0].settings["max-vcpus"], &own[0].previous.len()), ("4", &1), "{what}");
                assert_eq!((&*own[0].follows, own[0].aliases.len()), ("next", 1), "{what}");
            }
            Self::Unload => assert!(own.is_empty(), "{what}: {own:?}"),
        }
        if self == Self::Resize {
            assert_eq!(fs::metadata(host.volume("acme", "web.img")).unwrap().len(), GROWN, "{what}");
        }
    }

    /// Takes away what is left of it.
    fn undo(self, host: &Host) {
        let acme = host.tenant("acme");
        match self {
            Self::Register | Self::Attach | Self::Detach | Self::Resize => acme.destroy("web", false).unwrap(),
            Self::Load
            | Self::RollBack
            | Self::Demote
            | Self::Promote
            | Self::LoadCanary
            | Self::PromoteCanary
            | Self::LoadAlias
            | Self::MoveAlias
            | Self::Follow => acme.unload(OWN, false).unwrap(),
            Self::Destroy | Self::Unload => {}
        }
    }
}

/// A node with the VM of another tenant, which nothing here may touch.
fn host() -> Host {
    let host = Host::start();
    host.tenant("globex").register("other", small()).unwrap();
    host
}

fn other(host: &Host) -> v1::VirtualMachine {
    host.tenant("globex").get("other").unwrap()
}

#[test]
fn a_change_that_is_cut_off_at_any_step_is_done_once_when_it_is_repeated() {
    let mut host = host();
    let bystander = other(&host);
    host.add_volume("acme", "web.img", &[1; 4096]);
    let before = Footprint::of_fresh(&mut host);
    let mut tried = BTreeSet::new();
    for point in RECORDS.iter().copied() {
        for change in changes(point) {
            let what = format!("{change:?} at {}", point.name());
            host.add_volume("acme", "web.img", &[1; 4096]);
            change.prepare(&host.tenant("acme"));
            let id = new_id();
            host.crash(point, |host| change.call(host, &id));
            assert_consistent(&host, &what);
            assert_eq!(other(&host), bystander, "{what}");
            change.call(&host, &id).make().unwrap_or_else(|error| panic!("{what}: {error:?}"));
            change.assert_done(&host, &what);
            // And again: the answer of then, and nothing else.
            change.call(&host, &id).make().unwrap_or_else(|error| panic!("{what}: {error:?}"));
            change.assert_done(&host, &what);
            change.undo(&host);
            before.expect_again(&mut host, &what);
            tried.insert(point);
        }
    }
    tried.extend([Point::BootDevices, Point::BootSwept, Point::BootResumed, Point::CanaryRolledBack, Point::KvWritten]);
    tried.extend([Point::EventsWritten, Point::ObserverHeard]);
    assert_eq!(tried, RECORDS.iter().copied().collect::<BTreeSet<_>>(), "not every point was tried");
}

/// A new point belongs to one of the lists, and so to a program that must come to it.
#[test]
fn every_point_is_tried_by_a_program() {
    let tried: BTreeSet<_> = [RECORDS, RUNS, DEVICES].into_iter().flatten().collect();
    let all: BTreeSet<_> = Point::ALL.iter().collect();
    assert_eq!(tried, all);
}

/// Whoever does not repeat the call finds it done, or nothing of it.
#[test]
fn a_destroy_that_is_cut_off_is_finished_by_the_next_daemon_whatever_happens_to_that() {
    let mut host = host();
    let bystander = other(&host);
    let acme = host.tenant("acme");
    host.add_volume("acme", "web.img", &[1; 4096]);
    let before = Footprint::of_fresh(&mut host);
    drop(acme);
    for point in [
        Point::BootDevices,
        Point::BootSwept,
        Point::BootResumed,
        Point::EndDirectory,
        Point::EndReleased,
        Point::DestroyErased,
        Point::DestroyForgotten,
    ] {
        let what = format!("destroyed, and the next daemon dies at {}", point.name());
        host.tenant("acme").register("web", spec()).unwrap();
        host.kill_daemon();
        host.start_daemon_armed(Point::DestroyRecorded);
        let call = Change::Destroy.call(&host, &new_id());
        crate::support::client::spawn(async move { drop(call.0.await) });
        host.await_crash(Point::DestroyRecorded);
        host.boot_daemon_armed(point);
        host.start_daemon();
        assert_consistent(&host, &what);
        assert_eq!(host.tenant("acme").list("").unwrap(), [], "{what}");
        assert_eq!(other(&host), bystander, "{what}");
        before.expect_again(&mut host, &what);
    }
}

/// No client asks for it: the daemon rolls a canary back by itself, and dies when that is on record and not believed yet.
#[test]
fn a_roll_back_of_a_canary_that_is_cut_off_is_complete() {
    let mut host = host();
    let acme = host.tenant("acme");
    load(&acme, "hostile/abstain", &[], &new_id()).make().unwrap();
    load_at(&acme, "hostile/trap", &[], 99, &new_id()).make().unwrap();
    host.kill_daemon();
    host.start_daemon_armed(Point::CanaryRolledBack);
    let acme = host.tenant("acme");
    // One may be the stable version's; five failures in a row open a breaker.
    (0..8).for_each(|at| drop(acme.register(&format!("vm-{at}"), small())));
    host.await_crash(Point::CanaryRolledBack);
    host.start_daemon();
    assert_consistent(&host, "rolled back");
    let acme = host.tenant("acme");
    let own = acme.plugins("tenants/acme").unwrap().into_iter().find(|plugin| plugin.name == OWN).unwrap();
    let canary = own.canary.unwrap();
    assert_eq!((canary.state(), canary.code.as_str()), (Trial::RolledBack, "canary.breaker-open"));
    (0..8).for_each(|at| drop(acme.register(&format!("new-{at}"), small()).unwrap()));
}

const RATE: &str = "operator/plugins/rate";

/// Loads the plugin that counts requests, without a limit that would be met.
fn rate(operator: &Caller) {
    let settings = [("max-requests", "1000"), ("window-s", "31536000")].map(|(key, value)| (key.into(), value.into()));
    let header =
        Header { name: RATE.into(), settings: settings.into(), grants: vec!["kv".into()], ..Default::default() };
    let component = plugin("rate");
    let chunks = component.chunks(64 << 10).map(|chunk| Part::Chunk(chunk.to_vec()));
    operator.load_parts(std::iter::once(Part::Header(header)).chain(chunks).collect()).unwrap();
}

/// What it remembers to have counted.
fn count(host: &Host) -> u64 {
    let request = v1::GetPluginKvRequest { name: RATE.into(), tenant: "tenants/acme".into() };
    let kv = crate::support::client::wait(host.operator().plugins.get_plugin_kv(request)).unwrap().into_inner();
    let count = kv.entries.into_iter().find(|entry| entry.key == "count");
    count.map_or(0, |count| String::from_utf8(count.value).unwrap().parse().unwrap())
}

/// The daemon dies when record and memory are written and the transaction has not ended: neither is there. And when it has:
/// both are.
#[test]
fn a_daemon_that_dies_leaves_record_and_memory_as_they_were_or_both_as_they_are() {
    let mut host = Host::start();
    rate(&host.operator());
    host.tenant("acme").register("first", small()).unwrap();
    let decided = |host: &Host| {
        let records = host.tenant("acme").decisions(v1::ListDecisionsRequest::default()).unwrap();
        records.iter().filter(|record| record.links.iter().any(|link| !link.kv_wrote.is_empty())).count() as u64
    };
    for (point, more) in [(Point::KvWritten, 0), (Point::RegisterDecided, 1)] {
        let before = decided(&host);
        assert_eq!(count(&host), before);
        host.kill_daemon();
        host.start_daemon_armed(point);
        let caller = host.tenant("acme");
        let name = point.name().replace('.', "-");
        std::thread::spawn(move || drop(caller.register(&name, small())));
        host.await_crash(point);
        host.start_daemon();
        assert_consistent(&host, point.name());
        assert_eq!((decided(&host), count(&host)), (before + more, before + more), "{}", point.name());
        // The same call again is decided anew, and counts.
        host.tenant("acme").register(&point.name().replace('.', "-"), small()).unwrap();
        assert_eq!((decided(&host), count(&host)), (before + more + 1, before + more + 1), "{}", point.name());
    }
    assert!(host.tenant("acme").verify("").unwrap().iter().all(|chain| chain.fault.is_empty()));
}

/// The daemon dies when an event and its change are written and the transaction has not ended: neither is there. And when an
/// observer has heard it and that is not on record: it hears it again, and counts it once.
#[test]
fn whenever_a_daemon_dies_an_observer_counts_each_event_once() {
    let mut host = Host::start();
    load_tally(&host.operator(), TALLY);
    host.tenant("acme").register("first", small()).unwrap();
    assert_eq!(until_tallied(&host.operator(), TALLY, "acme")["registered"], 1);
    for (point, is_there) in [(Point::EventsWritten, false), (Point::ObserverHeard, true)] {
        host.kill_daemon();
        host.start_daemon_armed(point);
        let (caller, name) = (host.tenant("acme"), point.name().replace('.', "-"));
        let registered = name.clone();
        std::thread::spawn(move || drop(caller.register(&registered, small())));
        host.await_crash(point);
        host.start_daemon();
        assert_consistent(&host, point.name());
        let acme = host.tenant("acme");
        assert_eq!(acme.get(&name).is_ok(), is_there, "{}", point.name());
        if !is_there {
            acme.register(&name, small()).unwrap();
        }
        let vms = acme.list("").unwrap().len() as u64;
        let told = until_tallied(&host.operator(), TALLY, "acme");
        assert_eq!((told.len(), told["registered"]), (1, vms), "{}", point.name());
    }
    assert!(host.tenant("acme").verify("").unwrap().iter().all(|chain| chain.fault.is_empty()));
}
