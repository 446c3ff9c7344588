//! `ostler vm attach|detach`: devices of a VM that come and go.

use std::time::Duration;

use crate::api::convert::{DEFAULT_UNPLUG, duration_to_proto};
use crate::api::v1;
use crate::api::v1::attach_device_request::Device;

use super::super::args::{AttachArgs, ChangeArgs, DetachArgs};
use super::super::client::{Client, patiently, within};
use super::super::failure::{Exit, Failure};
use super::super::view::short;
use super::spec::{disk, nic, nvme};
use super::vm::show_state;

/// For the host to open, lend and take back what is behind a device, and the guest's share in a detachment that asks
/// nobody. A function may take a minute to come back from its reset.
const MARGIN: Duration = Duration::from_secs(120);

pub(crate) async fn attach(mut client: Client, arguments: AttachArgs) -> Result<(), Failure> {
    let name = client.caller.vm(&arguments.name.name)?.to_string();
    let shown = short(&name);
    let device = arguments.disk.map(disk).map(Device::Disk).or(arguments.nic.map(nic).map(Device::Nic));
    let device = device.or(arguments.nvme.map(nvme).map(Device::Nvme));
    let ChangeArgs { request_id, validate_only } = arguments.change;
    let request = v1::AttachDeviceRequest { name, device, request_id, etag: arguments.etag.etag, validate_only };
    let call = client.vms.attach_device(within(MARGIN, request));
    let vm = patiently(format_args!("attaching to {shown}"), call).await.map_err(|failure| {
        failure.about(&shown).hint_for(Exit::WrongState, || format!("ostler vm get {shown} shows its state"))
    })?;
    show_state(&client, vm, validate_only.then_some("can be attached to"))
}

pub(crate) async fn detach(mut client: Client, arguments: DetachArgs) -> Result<(), Failure> {
    let name = client.caller.vm(&arguments.name.name)?.to_string();
    let (shown, device_id) = (short(&name), arguments.device);
    let limit = arguments.timeout.unwrap_or(DEFAULT_UNPLUG) + MARGIN;
    let retry = format!("ostler vm detach {shown} {device_id} --force takes it without the guest's word");
    let timeout = arguments.timeout.map(duration_to_proto);
    let ChangeArgs { request_id, validate_only } = arguments.change;
    let (etag, force, no_wait) = (arguments.etag.etag, arguments.force, arguments.no_wait);
    let request = v1::DetachDeviceRequest { name, device_id, timeout, force, request_id, etag, validate_only, no_wait };
    let call = client.vms.detach_device(within(limit, request));
    let vm = patiently(format_args!("detaching from {shown}"), call).await.map_err(|failure| {
        let failure = failure.about(&shown).hint_for(Exit::TimedOut, || retry);
        failure.hint_for(Exit::WrongState, || format!("ostler vm get {shown} shows its state"))
    })?;
    show_state(&client, vm, validate_only.then_some("can be detached from"))
}
