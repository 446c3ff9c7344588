//! `ostler vm resize-disk|limit|balloon`: devices change while their VM runs.

use std::time::Duration;

use serde::Serialize;

use crate::api::v1;

use super::super::args::{BalloonArgs, ChangeArgs, LimitArgs, Output, RateArgs, ResizeDiskArgs};
use super::super::client::{Client, patiently, within};
use super::super::failure::{Exit, Failure};
use super::super::show;
use super::super::view::{VmView, json, short};

/// The vmm answers within a second; what else there is to do is quick.
const CHANGE: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct ResizedView {
    size_bytes: u64,
}

pub(crate) async fn resize(mut client: Client, arguments: ResizeDiskArgs) -> Result<(), Failure> {
    let name = client.caller.vm(&arguments.name.name)?.to_string();
    let (shown, disk) = (short(&name), arguments.disk);
    let size_bytes = arguments.size.unwrap_or(0);
    let ChangeArgs { request_id, validate_only } = arguments.change;
    let request = v1::ResizeVirtualMachineDiskRequest {
        name,
        disk: disk.clone(),
        size_bytes,
        request_id,
        etag: arguments.etag.etag,
        validate_only,
    };
    let call = client.vms.resize_virtual_machine_disk(within(CHANGE, request));
    let size_bytes = patiently(format_args!("resizing {disk} of {shown}"), call)
        .await
        .map_err(|failure| {
            failure.about(&shown).hint_for(Exit::WrongState, || format!("ostler vm get {shown} shows its state"))
        })?
        .size_bytes;
    match client.output {
        Output::Table if validate_only => {
            show(&format!("{disk} of {shown} can have {size_bytes} bytes: nothing was changed\n"))
        }
        Output::Table => show(&format!("{disk} of {shown} has {size_bytes} bytes\n")),
        Output::Json => show(&json(&ResizedView { size_bytes }, false)?),
    }
}

pub(crate) async fn limit(mut client: Client, arguments: LimitArgs) -> Result<(), Failure> {
    let name = client.caller.vm(&arguments.name.name)?.to_string();
    let (shown, device) = (short(&name), arguments.device);
    let RateArgs { bandwidth, bandwidth_burst, iops, iops_burst, none: _ } = arguments.rates;
    let limits = v1::RateLimits {
        bytes_per_second: bandwidth.unwrap_or(0),
        bytes_burst: bandwidth_burst.unwrap_or(0),
        operations_per_second: iops.unwrap_or(0),
        operations_burst: iops_burst.unwrap_or(0),
    };
    let ChangeArgs { request_id, validate_only } = arguments.change;
    let request = v1::LimitVirtualMachineDeviceRequest {
        name,
        device: device.clone(),
        limits: Some(limits),
        request_id,
        etag: arguments.etag.etag,
        validate_only,
    };
    let call = client.vms.limit_virtual_machine_device(within(CHANGE, request));
    let vm = patiently(format_args!("limiting {device} of {shown}"), call).await.map_err(|failure| {
        failure.about(&shown).hint_for(Exit::WrongState, || format!("ostler vm get {shown} shows its state"))
    })?;
    match client.output {
        Output::Table if validate_only => show(&format!("{device} of {shown} can be limited: nothing was changed\n")),
        Output::Table => show(&VmView::from(vm).text()),
        Output::Json => show(&json(&VmView::from(vm), false)?),
    }
}

pub(crate) async fn balloon(mut client: Client, arguments: BalloonArgs) -> Result<(), Failure> {
    let name = client.caller.vm(&arguments.name.name)?.to_string();
    let shown = short(&name);
    let ChangeArgs { request_id, validate_only } = arguments.change;
    let request = v1::SetVirtualMachineBalloonRequest {
        name,
        keep_mib: arguments.keep.map_or(0, |keep| keep.0),
        request_id,
        etag: arguments.etag.etag,
        validate_only,
    };
    let call = client.vms.set_virtual_machine_balloon(within(CHANGE, request));
    let vm = patiently(format_args!("telling {shown} what to keep"), call).await.map_err(|failure| {
        failure.about(&shown).hint_for(Exit::WrongState, || format!("ostler vm get {shown} shows its state"))
    })?;
    match client.output {
        Output::Table if validate_only => show(&format!("the guest of {shown} can be told: nothing was changed\n")),
        Output::Table => show(&VmView::from(vm).text()),
        Output::Json => show(&json(&VmView::from(vm), false)?),
    }
}
