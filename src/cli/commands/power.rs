//! `ostler vm reboot|pause|resume|power-button|nmi`: one call each on a VM that runs.

use std::time::Duration;

use tonic::{Response, Status};

use crate::api::v1;

use super::super::args::{ChangeArgs, OnVmArgs, Output, StopArgs};
use super::super::client::{Client, patiently, within};
use super::super::failure::{Exit, Failure};
use super::super::show;
use super::super::view::short;
use super::vm::{DEFAULT_GRACE, QUICK, START, STOP_MARGIN, show_state};

pub(crate) async fn reboot(mut client: Client, arguments: StopArgs) -> Result<(), Failure> {
    let name = client.caller.vm(&arguments.name.name)?.to_string();
    let shown = short(&name);
    let grace = if arguments.force { Some(Duration::ZERO) } else { arguments.grace };
    let limit = grace.unwrap_or(DEFAULT_GRACE) + STOP_MARGIN + START;
    let ChangeArgs { request_id, validate_only } = arguments.change;
    let (grace, etag) = (grace.map(crate::api::convert::duration_to_proto), arguments.etag.etag);
    let no_wait = arguments.no_wait;
    let request = v1::RebootVirtualMachineRequest { name, grace, request_id, etag, validate_only, no_wait };
    let call = client.vms.reboot_virtual_machine(within(limit, request));
    let vm = told(&shown, format_args!("rebooting {shown}"), call).await?;
    show_state(&client, vm, validate_only.then_some("can be rebooted"))
}

pub(crate) async fn pause(mut client: Client, arguments: OnVmArgs) -> Result<(), Failure> {
    let name = client.caller.vm(&arguments.name.name)?.to_string();
    let shown = short(&name);
    let ChangeArgs { request_id, validate_only } = arguments.change;
    let request = v1::PauseVirtualMachineRequest { name, request_id, etag: arguments.etag.etag, validate_only };
    let call = client.vms.pause_virtual_machine(within(QUICK, request));
    let vm = told(&shown, format_args!("pausing {shown}"), call).await?;
    show_state(&client, vm, validate_only.then_some("can be paused"))
}

pub(crate) async fn resume(mut client: Client, arguments: OnVmArgs) -> Result<(), Failure> {
    let name = client.caller.vm(&arguments.name.name)?.to_string();
    let shown = short(&name);
    let ChangeArgs { request_id, validate_only } = arguments.change;
    let request = v1::ResumeVirtualMachineRequest { name, request_id, etag: arguments.etag.etag, validate_only };
    let call = client.vms.resume_virtual_machine(within(QUICK, request));
    let vm = told(&shown, format_args!("resuming {shown}"), call).await?;
    show_state(&client, vm, validate_only.then_some("can be resumed"))
}

pub(crate) async fn press_button(mut client: Client, arguments: OnVmArgs) -> Result<(), Failure> {
    let name = client.caller.vm(&arguments.name.name)?.to_string();
    let shown = short(&name);
    let ChangeArgs { request_id, validate_only } = arguments.change;
    let request = v1::PressPowerButtonRequest { name, request_id, etag: arguments.etag.etag, validate_only };
    let call = client.vms.press_power_button(within(QUICK, request));
    let vm = told(&shown, format_args!("pressing the power button of {shown}"), call).await?;
    match client.output {
        Output::Table if !validate_only => show(&format!("{shown}: pressed\n")),
        Output::Table | Output::Json => show_state(&client, vm, validate_only.then_some("has a button to press")),
    }
}

pub(crate) async fn nmi(mut client: Client, arguments: OnVmArgs) -> Result<(), Failure> {
    let name = client.caller.vm(&arguments.name.name)?.to_string();
    let shown = short(&name);
    let ChangeArgs { request_id, validate_only } = arguments.change;
    let request = v1::InjectNmiRequest { name, request_id, etag: arguments.etag.etag, validate_only };
    let call = client.vms.inject_nmi(within(QUICK, request));
    let vm = told(&shown, format_args!("interrupting {shown}"), call).await?;
    match client.output {
        Output::Table if !validate_only => show(&format!("{shown}: interrupted\n")),
        Output::Table | Output::Json => show_state(&client, vm, validate_only.then_some("can be interrupted")),
    }
}

/// The answer; a failure names the VM, and where its state is shown.
async fn told(
    shown: &str,
    doing: std::fmt::Arguments<'_>,
    call: impl Future<Output = Result<Response<v1::VirtualMachine>, Status>>,
) -> Result<v1::VirtualMachine, Failure> {
    patiently(doing, call).await.map_err(|failure| {
        failure.about(shown).hint_for(Exit::WrongState, || format!("ostler vm get {shown} shows its state"))
    })
}
