//! Operations with guests: seen by others while they are under way, and called off. Boots guests (feature `lab`).

use std::fs;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use crate::support::client::{spawn, wait};
use crate::support::guest::{appears, boot, disk, linux_with};
use crate::support::operations::named;
use crate::support::wait::{SOON, until};
use crate::support::{Caller, Host, facts};
use ostler::api::convert::duration_to_proto;
use ostler::api::v1;
use ostler::api::v1::device_status::State as DeviceState;
use ostler::api::v1::operation::State;
use ostler::api::v1::virtual_machine::State as VmState;
use tokio::sync::oneshot;
use tonic::{Code, Response, Status};

const ID: &str = "123e4567-e89b-42d3-a456-426614174000";
const IMAGE_LEN: u64 = 16 << 20;

type Answer = Result<Response<v1::VirtualMachine>, Status>;

/// Makes a call beside the test; its answer comes later.
fn aside(call: impl Future<Output = Answer> + Send + 'static) -> oneshot::Receiver<Answer> {
    let (answer, answered) = oneshot::channel();
    spawn(async move { drop(answer.send(call.await)) });
    answered
}

/// A stop with a grace of a minute.
fn stop(no_wait: bool) -> v1::StopVirtualMachineRequest {
    let grace = Some(duration_to_proto(Duration::from_secs(60)));
    let (name, request_id) = ("tenants/acme/vms/web".to_owned(), ID.to_owned());
    v1::StopVirtualMachineRequest { name, grace, request_id, no_wait, ..Default::default() }
}

/// The only operation that is under way, once it has told what it does.
fn under_way(caller: &Caller) -> v1::Operation {
    until("an operation", SOON, || {
        let mut listed = caller.operations("tenants/acme", "state = RUNNING").unwrap();
        assert!(listed.len() <= 1, "{listed:?}");
        listed.pop().filter(|operation| operation.progress.is_some())
    })
}

/// Calls it off, and gives what its call was answered.
fn called_off(caller: &Caller, operation: &v1::Operation, answer: oneshot::Receiver<Answer>) -> Status {
    let seconds = |moment: Option<prost_types::Timestamp>| moment.unwrap().seconds;
    let waits = seconds(operation.progress.as_ref().unwrap().deadline) - seconds(operation.create_time);
    // The minute begins with the work, which is some moments behind the call.
    assert!(operation.is_cancellable && (59..=90).contains(&waits), "{operation:?}");
    let cancelled = caller.cancel(&operation.name).unwrap();
    assert_eq!(cancelled.state(), State::Cancelled);
    assert_eq!(cancelled.error.unwrap().reason, "OPERATION_CANCELLED");
    let told = wait(answer).unwrap().unwrap_err();
    assert_eq!((told.code(), facts(&told).reason.as_str()), (Code::Cancelled, "OPERATION_CANCELLED"));
    told
}

#[test]
fn a_stop_and_a_detachment_are_seen_by_others_and_called_off_and_the_guest_goes_on() {
    let host = Host::with_guests();
    let (acme, operator) = (host.tenant("acme"), host.operator());
    fs::File::create(host.volume("acme", "data.img")).unwrap().set_len(IMAGE_LEN).unwrap();
    let spec =
        v1::VirtualMachineSpec { disks: vec![disk("data", "data.img", false)], ..linux_with("acpiphp.disable=1") };
    let (mut console, _) = boot(&host, &acme, "web", spec);
    // Without its driver the button does nothing; and without one for its slots the guest lets no device go.
    console.run("for b in /sys/bus/*/drivers/*button*/*:*; do echo ${b##*/} > ${b%/*}/unbind; done");
    appears(&mut console, "/dev/vda");

    let mut vms = acme.vms.clone();
    let stopping = aside(async move { vms.stop_virtual_machine(stop(false)).await });
    let operation = under_way(&operator);
    assert_eq!((operation.method.as_str(), operation.request_id.as_str()), ("StopVirtualMachine", ID));
    assert_eq!(acme.get("web").unwrap().state(), VmState::Stopping);
    assert_eq!(acme.wait_for(&operation.name, Duration::ZERO).unwrap().state(), State::Running);
    let told = called_off(&operator, &operation, stopping);
    assert!(told.message().contains("the VM goes on"), "{told:?}");
    assert_eq!(acme.get("web").unwrap().state(), VmState::Running);
    assert!(console.run("echo to-$((40+2))").contains("to-42"));

    // A request that was called off is not remembered: under its id it is made anew, and this time nobody waits.
    let begun = wait(acme.vms.clone().stop_virtual_machine(stop(true))).unwrap();
    let name = named(&begun).unwrap();
    assert_eq!(begun.into_inner().state(), VmState::Stopping);
    // A repetition that wants to wait is called off with it; one that does not is told of the same operation.
    let mut vms = acme.vms.clone();
    let mut repeated = Box::pin(async move { vms.stop_virtual_machine(stop(false)).await });
    // Sent before the next one, on the same connection.
    assert!(wait(poll_fn(|context| Poll::Ready(repeated.as_mut().poll(context).is_pending()))));
    assert_eq!(named(&wait(acme.vms.clone().stop_virtual_machine(stop(true))).unwrap()), Some(name.clone()));
    assert_eq!(acme.cancel(&name).unwrap().state(), State::Cancelled);
    assert_eq!(facts(&wait(repeated).unwrap_err()).reason, "OPERATION_CANCELLED");
    assert_eq!(acme.get("web").unwrap().state(), VmState::Running);
    assert_eq!(acme.operations("", "state = RUNNING").unwrap(), []);

    let request = v1::DetachDeviceRequest {
        name: acme.name("web"),
        device_id: "data".into(),
        timeout: Some(duration_to_proto(Duration::from_secs(60))),
        ..Default::default()
    };
    let mut vms = acme.vms.clone();
    let detaching = aside(async move { vms.detach_device(request).await });
    let operation = under_way(&acme);
    assert_eq!(operation.target, "tenants/acme/vms/web/devices/data");
    called_off(&acme, &operation, detaching);
    let state = |vm: v1::VirtualMachine| vm.devices.iter().find(|device| device.id == "data").unwrap().state();
    assert_eq!(state(acme.get("web").unwrap()), DeviceState::Attached);
    console
        .run("dd if=/dev/zero of=/dev/vda bs=64k count=16 conv=fsync && dd if=/dev/vda of=/dev/null bs=64k count=16");

    assert_eq!(acme.stop("web", Some(0)).unwrap().state(), VmState::Stopped);
    let states: Vec<_> = acme.operations("", "method != StartVirtualMachine").unwrap();
    let states: Vec<_> = states.iter().map(v1::Operation::state).collect();
    assert_eq!(states, [State::Cancelled, State::Cancelled, State::Cancelled, State::Succeeded]);
}
