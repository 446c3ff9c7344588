//! The daemon dies at every step of lending and taking back a virtual function, a namespace and a controller, and of
//! making secondary controllers. Needs the lab's devices (feature `lab`); guests run, and need not come up.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::card::Card;
use crate::support::crash::{Call, DEVICES, Footprint, assert_consistent, new_id, until_erased};
use crate::support::drives::Drives;
use crate::support::guest::linux;
use crate::support::{Host, assets};
use ostler::api::convert::duration_to_proto;
use ostler::api::v1;
use ostler::api::v1::attach_device_request::Device;
use ostler::api::v1::nvme_spec::Kind;
use ostler::api::v1::virtual_machine::State;
use ostler::daemon::crash::Point;

const WEB: &str = "tenants/acme/vms/web";
const MIB: u64 = 1 << 20;

/// What a round does to a VM that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Stop,
    Destroy,
}

/// Steps of a virtual function's way to a VM, and back.
const VF_STARTS: [Point; 6] =
    [Point::VfClaimed, Point::VfSet, Point::VfBound, Point::VfReady, Point::VfPrepared, Point::VfAttached];
const VF_ENDS: [(Point, End); 6] = [
    (Point::VfReleasing, End::Stop),
    (Point::VfReset, End::Stop),
    (Point::VfUnbound, End::Destroy),
    (Point::VfRestored, End::Stop),
    (Point::VfFree, End::Destroy),
    (Point::VfFree, End::Stop),
];

/// The same of a namespace. It is erased on its way only when nobody had it before: that is the first round's.
const NVME_STARTS: [Point; 9] = [
    Point::NamespaceErased,
    Point::DataClaimed,
    Point::DataPrepared,
    Point::SecondaryClaimed,
    Point::SecondaryBound,
    Point::SecondaryConnected,
    Point::SecondaryPrepared,
    Point::NvmeAttached,
    Point::DataClaimed,
];
const NVME_ENDS: [(Point, End); 9] = [
    (Point::SecondaryReleasing, End::Stop),
    (Point::SecondaryUnbound, End::Stop),
    (Point::SecondaryEmptied, End::Stop),
    (Point::SecondaryFree, End::Stop),
    (Point::DataReleasing, End::Destroy),
    (Point::NamespaceTaken, End::Destroy),
    (Point::NamespaceErased, End::Destroy),
    (Point::NamespaceLeft, End::Destroy),
    (Point::DataFree, End::Destroy),
];

const PROVISIONS: [Point; 6] = [
    Point::ProvisionRecorded,
    Point::ProvisionCleared,
    Point::ProvisionReset,
    Point::ProvisionEnabled,
    Point::ProvisionOnline,
    Point::ProvisionDone,
];

fn with_vf() -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec { nics: vec![function()], ..linux() }
}

fn function() -> v1::NicSpec {
    v1::NicSpec { id: "vf".into(), sriov: Some(v1::SriovNic::default()), ..Default::default() }
}

fn with_nvme(kind: Kind) -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec { nvme: vec![v1::NvmeSpec { id: "data".into(), kind: Some(kind) }], ..linux() }
}

fn start(host: &Host, id: &str) -> Call<v1::VirtualMachine> {
    let mut vms = host.tenant("acme").vms;
    let request = v1::StartVirtualMachineRequest { name: WEB.into(), request_id: id.into(), ..Default::default() };
    Call::new(async move { vms.start_virtual_machine(request).await })
}

fn end(end: End, host: &Host, id: &str) -> Call<()> {
    let (mut vms, name, request_id) = (host.tenant("acme").vms, WEB.to_owned(), id.to_owned());
    match end {
        End::Stop => {
            let grace = Some(duration_to_proto(Duration::ZERO));
            let request = v1::StopVirtualMachineRequest { name, grace, request_id, ..Default::default() };
            Call::new(async move { vms.stop_virtual_machine(request).await.map(|answer| answer.map(drop)) })
        }
        End::Destroy => {
            let request = v1::DestroyVirtualMachineRequest { name, force: true, request_id, ..Default::default() };
            Call::new(async move { vms.destroy_virtual_machine(request).await.map(|answer| answer.map(drop)) })
        }
    }
}

/// A start that is cut off at one point and made again; then an end, in the same way.
fn round(host: &mut Host, spec: v1::VirtualMachineSpec, from: Point, (to, how): (Point, End)) {
    let uid = host.tenant("acme").register("web", spec).unwrap().uid;
    let what = format!("start at {}", from.name());
    let id = new_id();
    host.crash(from, |host| start(host, &id));
    assert_consistent(host, &what);
    let state = host.tenant("acme").get("web").unwrap().state();
    // Whose it was before is seen to by then: the same can be had again.
    until_erased(host);
    let running = start(host, &id).make().unwrap_or_else(|error| panic!("{what}: {error:?}"));
    println!("{what}: {state:?}, then {:?}", running.state());
    assert_eq!((running.state(), &running.uid), (State::Running, &uid), "{what}");
    assert_consistent(host, &what);

    let what = format!("{how:?} at {}", to.name());
    let id = new_id();
    host.crash(to, |host| end(how, host, &id));
    assert_consistent(host, &what);
    println!("{what}: {:?}", host.tenant("acme").get("web").ok().map(|vm| vm.state()));
    end(how, host, &id).make().unwrap_or_else(|error| panic!("{what}: {error:?}"));
    if how == End::Stop {
        assert_eq!(host.tenant("acme").get("web").unwrap().state(), State::Stopped, "{what}");
        host.tenant("acme").destroy("web", false).unwrap();
    }
    assert_eq!(host.tenant("acme").list("").unwrap(), [], "{what}");
}

/// A function comes to a VM that runs, and leaves it.
fn comes_and_goes(host: &mut Host) {
    host.tenant("acme").register("web", linux()).unwrap();
    let pid = host.tenant("acme").start("web").unwrap().vmm_pid;
    let attach = |host: &Host, id: &str| {
        let mut vms = host.tenant("acme").vms;
        let device = Some(Device::Nic(function()));
        let request = v1::AttachDeviceRequest { name: WEB.into(), device, request_id: id.into(), ..Default::default() };
        Call::new(async move { vms.attach_device(request).await })
    };
    let detach = |host: &Host, id: &str| {
        let mut vms = host.tenant("acme").vms;
        let request = v1::DetachDeviceRequest {
            name: WEB.into(),
            device_id: "vf".into(),
            force: true,
            request_id: id.into(),
            ..Default::default()
        };
        Call::new(async move { vms.detach_device(request).await })
    };
    let id = new_id();
    host.crash(Point::FunctionRecorded, |host| attach(host, &id));
    assert_consistent(host, "attach at function.recorded");
    let vm = attach(host, &id).make().unwrap();
    assert_eq!((vm.nics.len(), vm.vmm_pid), (1, pid));
    let id = new_id();
    host.crash(Point::FunctionReturned, |host| detach(host, &id));
    assert_consistent(host, "detach at function.returned");
    let vm = detach(host, &id).make().unwrap();
    assert_eq!((vm.nics.len(), vm.vmm_pid), (0, pid));
    host.tenant("acme").destroy("web", true).unwrap();
}

#[test]
fn a_virtual_function_is_lent_or_given_back_wherever_the_daemon_dies() {
    const NAME: &str = "a_virtual_function_is_lent_or_given_back_wherever_the_daemon_dies";
    let Some(card) = Card::with_vfs(1) else { return assets::skip(NAME, "an SR-IOV network card") };
    let shown = card.shown();
    let mut host = Host::with_guests();
    host.operator().load("operator/plugins/sriov-net", &assets::plugin("sriov-net"), &[]).unwrap();
    let before = Footprint::of_fresh(&mut host);
    for (from, to) in VF_STARTS.into_iter().zip(VF_ENDS) {
        round(&mut host, with_vf(), from, to);
        before.expect_again(&mut host, to.0.name());
        assert_eq!(card.shown(), shown, "{from:?} and {to:?}");
        card.assert_unbound(1);
    }
    comes_and_goes(&mut host);
    before.expect_again(&mut host, "attach and detach");
    assert_eq!(card.shown(), shown);
    card.assert_unbound(1);
}

fn provision(host: &Host, drives: &Drives, vfs: u32, id: &str) -> Call<()> {
    let mut client = host.operator().host;
    let address = drives.lab.clone();
    let request = v1::ProvisionNvmeControllerRequest { address, vfs, request_id: id.into(), ..Default::default() };
    Call::new(async move { client.provision_nvme_controller(request).await.map(|answer| answer.map(drop)) })
}

/// Secondary controllers that a namespace could be given with.
fn ready(host: &Host, drives: &Drives) -> usize {
    let all = host.operator().nvme_controllers().unwrap();
    let lab = all.into_iter().find(|controller| controller.address == drives.lab).unwrap();
    let attached: BTreeSet<_> = lab.namespaces.iter().flat_map(|namespace| namespace.controllers.clone()).collect();
    lab.secondaries.iter().filter(|one| one.online && !attached.contains(&one.controller_id)).count()
}

#[test]
fn secondary_controllers_are_made_by_the_next_daemon_wherever_the_first_one_dies() {
    const NAME: &str = "secondary_controllers_are_made_by_the_next_daemon_wherever_the_first_one_dies";
    let Some(drives) = Drives::find() else { return assets::skip(NAME, "an SR-IOV NVMe controller") };
    let shown = drives.shown();
    let mut host = Host::with_guests();
    for point in PROVISIONS {
        let id = new_id();
        host.crash(point, |host| provision(host, &drives, 1, &id));
        // Whether or not it is asked for again.
        assert_eq!(ready(&host, &drives), 1, "{}", point.name());
        provision(&host, &drives, 1, &id).make().unwrap();
        assert_eq!(ready(&host, &drives), 1, "{}", point.name());
        provision(&host, &drives, 0, &new_id()).make().unwrap();
        drives.expect_shown(&shown);
    }
}

#[test]
fn nvme_is_lent_or_given_back_wherever_the_daemon_dies() {
    const NAME: &str = "nvme_is_lent_or_given_back_wherever_the_daemon_dies";
    let Some(drives) = Drives::find() else { return assets::skip(NAME, "an SR-IOV NVMe controller") };
    let mut host = Host::with_guests();
    host.operator().load("operator/plugins/nvme", &assets::plugin("nvme"), &[("whole", "ALONE")]).unwrap();
    provision(&host, &drives, 1, "").make().unwrap();
    let shown = drives.shown();
    let before = Footprint::of_fresh(&mut host);
    let namespace = || with_nvme(Kind::Namespace(v1::NvmeNamespace { min_bytes: 16 * MIB }));
    for (from, to) in NVME_STARTS.into_iter().zip(NVME_ENDS) {
        round(&mut host, namespace(), from, to);
        before.expect_again(&mut host, to.0.name());
        drives.expect_shown(&shown);
        assert_eq!(ready(&host, &drives), 1);
    }
    let whole = with_nvme(Kind::Controller(v1::NvmeController {}));
    round(&mut host, whole, Point::ControllerLent, (Point::ControllerReturned, End::Destroy));
    before.expect_again(&mut host, "a whole controller");
    drives.expect_shown(&shown);
}

#[test]
fn every_step_of_devices_is_tried() {
    let ends = VF_ENDS.into_iter().chain(NVME_ENDS).map(|(point, _)| point);
    let starts = VF_STARTS.into_iter().chain(NVME_STARTS).chain(PROVISIONS);
    let rest = [Point::FunctionRecorded, Point::FunctionReturned, Point::ControllerLent, Point::ControllerReturned];
    let tried: BTreeSet<_> = starts.chain(ends).chain(rest).collect();
    assert_eq!(tried, DEVICES.iter().copied().collect::<BTreeSet<_>>());
}
