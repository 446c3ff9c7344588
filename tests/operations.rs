//! Operations of work that needs no guest: which calls become one, who sees it, and what is left of it. Needs no guest;
//! `operations_guests` calls them off.

use std::fs;
use std::time::Duration;

use crate::support::client::wait;
use crate::support::guest::nic;
use crate::support::operations::{OPERATION, named};
use crate::support::{Host, facts, small};
use ostler::api::v1;
use ostler::api::v1::attach_device_request::Device;
use ostler::api::v1::operation::State;
use tonic::Code;

const ID: &str = "123e4567-e89b-42d3-a456-426614174000";

fn attach(id: &str, request_id: &str, validate_only: bool) -> v1::AttachDeviceRequest {
    v1::AttachDeviceRequest {
        name: "tenants/acme/vms/web".into(),
        device: Some(Device::Nic(nic(id))),
        request_id: request_id.into(),
        validate_only,
        ..Default::default()
    }
}

#[test]
fn a_call_that_comes_to_work_becomes_an_operation_and_no_other_does() {
    let host = Host::start();
    let (acme, globex, operator) = (host.tenant("acme"), host.tenant("globex"), host.operator());
    acme.register("web", small()).unwrap();
    let call = |request| wait(acme.vms.clone().attach_device(request));
    assert_eq!(named(&call(attach("eth0", "", true)).unwrap()), None, "only validated");
    let name = named(&call(attach("eth0", ID, false)).unwrap()).unwrap();
    assert_eq!(named(&call(attach("eth0", ID, false)).unwrap()), None, "answered from memory");
    let refused = call(attach("eth0", "", false)).unwrap_err();
    assert!(refused.metadata().get(OPERATION).is_none(), "{refused:?}");
    globex.destroy("tenants/acme/vms/web", true).unwrap_err();

    let listed = acme.operations("", "").unwrap();
    let [operation] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!((&operation.name, operation.state()), (&name, State::Succeeded));
    assert_eq!((operation.method.as_str(), operation.principal.as_str()), ("AttachDevice", "tenant/acme"));
    assert_eq!((operation.target.as_str(), operation.request_id.as_str()), ("tenants/acme/vms/web/devices/eth0", ID));
    assert!(!operation.call_id.is_empty() && !operation.is_cancellable && operation.error.is_none());
    assert!(operation.create_time.is_some() && operation.end_time.is_some(), "{operation:?}");
    assert_eq!(acme.wait_for(&name, Duration::from_secs(60)).unwrap(), *operation);

    let filter = format!("request_id = {ID} AND state = SUCCEEDED AND target : web");
    assert_eq!(acme.operations("", &filter).unwrap(), listed);
    assert_eq!(acme.operations("", "state = RUNNING").unwrap(), []);
    assert_eq!(operator.operations("tenants/acme", "").unwrap(), listed);
    assert_eq!(facts(&acme.operations("", "colour = red").unwrap_err()).reason, "BAD_FIELD");

    // Another tenant's is missing; what has ended cannot be called off.
    let missing = acme.operation("tenants/acme/operations/01M86QW9WBP2NZC87A485E1H8E").unwrap_err();
    for hidden in [globex.operation(&name), globex.cancel(&name), globex.wait_for(&name, Duration::ZERO)] {
        let hidden = hidden.unwrap_err();
        assert_eq!((hidden.code(), hidden.message()), (missing.code(), missing.message()));
    }
    let late = facts(&acme.cancel(&name).unwrap_err());
    assert_eq!((late.code, late.reason.as_str()), (Code::FailedPrecondition, "OPERATION_NOT_CANCELLABLE"));
    let audit = fs::read_to_string(host.data().join("audit.log")).unwrap();
    let line = audit.lines().last().unwrap();
    assert!(line.contains("CancelOperation") && line.contains(&name) && line.contains("FAILED_PRECONDITION"), "{line}");
}

#[test]
fn what_is_done_to_the_host_is_seen_by_operators_only() {
    let host = Host::start();
    let (acme, operator) = (host.tenant("acme"), host.operator());
    operator.repair_host("").unwrap();
    let listed = operator.operations("", "").unwrap();
    let [operation] = &listed[..] else { panic!("{listed:?}") };
    assert!(operation.name.starts_with("operations/"), "{operation:?}");
    assert_eq!((operation.method.as_str(), operation.state()), ("RepairHost", State::Succeeded));
    let steps: Vec<_> = operation.steps.iter().map(|step| step.step.as_str()).collect();
    assert_eq!(steps, ["waiting for another repair of the host", "looking for what store and host do not agree about"]);
    assert!(operation.steps.iter().all(|step| step.start_time.is_some() && step.duration.is_some()), "{operation:?}");
    assert_eq!(operation.progress.as_ref().unwrap().step, steps[1]);
    assert_eq!(operator.operation(&operation.name).unwrap(), *operation);
    assert_eq!(operator.operations("tenants/-", "").unwrap(), []);
    assert_eq!(acme.operations("", "").unwrap(), []);
    assert_eq!(facts(&acme.operation(&operation.name).unwrap_err()).reason, "OPERATION_NOT_FOUND");
}

#[test]
fn the_command_line_shows_them() {
    let host = Host::start();
    let acme = host.tenant("acme");
    acme.register("web", small()).unwrap();
    acme.attach("web", Device::Nic(nic("eth0"))).unwrap();
    let run = |arguments: &[&str]| {
        let output = host.command("tenant-acme").arg("operation").args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let (code, table, error) = run(&["list"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(table.starts_with("OPERATION") && table.contains("acme/vms/web/devices/eth0  SUCCEEDED"), "{table}");
    let listed: serde_json::Value = serde_json::from_str(&run(&["list", "-o", "json"]).1).unwrap();
    let name = listed["operations"][0]["name"].as_str().unwrap().to_owned();
    let id = name.rsplit('/').next().unwrap();
    assert_eq!(listed["operations"][0]["state"], "SUCCEEDED");
    for written in [id, &format!("acme/{id}"), &name] {
        assert!(run(&["get", written]).1.contains("state:"), "{written}");
    }
    assert_eq!(run(&["wait", id]).0, 0);
    let (code, _, error) = run(&["cancel", id]);
    assert!(code == 6 && error.contains("has ended: it is SUCCEEDED"), "{error}");
    let (code, _, error) = run(&["get", "01M86QW9WBP2NZC87A485E1H8E"]);
    assert!(code == 4 && error.contains("ostler operation list"), "{error}");
    assert_eq!(run(&["get", "not-an-id"]).0, 2);
}

/// Unknown is never failed.
#[cfg(feature = "crash-points")]
#[test]
fn what_a_daemon_s_end_cut_off_is_listed_as_that_until_its_request_is_repeated() {
    use crate::support::crash::Call;
    use ostler::daemon::crash::Point;

    let mut host = Host::start();
    host.tenant("acme").register("web", small()).unwrap();
    host.tenant("acme").attach("web", Device::Nic(nic("eth0"))).unwrap();
    let call = |host: &Host| {
        let mut vms = host.tenant("acme").vms;
        Call::new(async move { vms.attach_device(attach("eth1", ID, false)).await })
    };
    host.crash(Point::AttachRecorded, call);
    let acme = host.tenant("acme");
    let listed = acme.operations("", "").unwrap();
    let [operation] = &listed[..] else { panic!("what had ended is forgotten: {listed:?}") };
    assert_eq!((operation.state(), operation.method.as_str()), (State::Interrupted, "AttachDevice"));
    assert_eq!((operation.request_id.as_str(), operation.is_cancellable), (ID, false));
    let error = operation.error.clone().unwrap();
    assert_eq!((error.code, error.reason.as_str()), (2, "OPERATION_INTERRUPTED"));
    assert!(error.message.contains("repeat the request under its request_id"), "{error:?}");
    assert_eq!(facts(&acme.cancel(&operation.name).unwrap_err()).reason, "OPERATION_NOT_CANCELLABLE");
    call(&host).make().unwrap();
    host.kill_daemon();
    host.start_daemon();
    assert_eq!(host.tenant("acme").operations("", "").unwrap(), [], "it was answered");
}
