//! `ostler vm register|start|stop|destroy|get|list`: one call each. See `watch` and `console` for the streams.

use std::time::Duration;

use serde::Serialize;

use crate::api::v1;

use super::super::args::{ChangeArgs, DestroyArgs, ListArgs, OnVmArgs, Output, RegisterArgs, StopArgs};
use super::super::client::{Client, patiently, within};
use super::super::failure::{Exit, Failure};
use super::super::view::{VmView, json, short, vm_table};
use super::super::{print, show};
use super::spec::spec;

/// For calls that only look at or write to the store.
pub(super) const QUICK: Duration = Duration::from_secs(60);
/// For a start: the daemon gives up sooner, with a better reason.
pub(super) const START: Duration = Duration::from_secs(180);
/// What a stop may take beyond the guest's grace.
pub(super) const STOP_MARGIN: Duration = Duration::from_secs(60);
/// VMs that are asked for at once.
pub(super) const PAGE_LEN: i32 = 1000;
/// The grace that the daemon gives when none is asked for.
pub(super) const DEFAULT_GRACE: Duration = Duration::from_secs(30);

#[derive(Serialize)]
struct ListView {
    virtual_machines: Vec<VmView>,
}

pub(crate) async fn register(mut client: Client, arguments: RegisterArgs) -> Result<(), Failure> {
    let name = client.caller.vm(&arguments.name.name)?.to_string();
    let asked = (arguments.spec.vcpus, arguments.spec.memory.0);
    let ChangeArgs { request_id, validate_only } = arguments.change.clone();
    let vm = v1::VirtualMachine { name: name.clone(), spec: Some(spec(arguments.spec)?), ..Default::default() };
    let request = v1::RegisterVirtualMachineRequest { virtual_machine: Some(vm), request_id, validate_only };
    let call = client.vms.register_virtual_machine(within(QUICK, request));
    let vm = patiently(format_args!("registering {}", short(&name)), call).await?;
    if client.output == Output::Json {
        return show(&json(&VmView::from(vm), false)?);
    }
    let got = vm.spec.as_ref().map(|spec| (spec.vcpus, spec.memory_mib));
    let view = VmView::from(vm);
    let mut facts = Vec::new();
    if let Some(admission) = &view.admission {
        facts.push(("admitted by", admission.text()));
    }
    if let Some((vcpus, memory_mib)) = got.filter(|got| *got != asked) {
        facts.push(("policy made it", format!("{vcpus} vCPUs, {memory_mib} MiB")));
    }
    let said = if validate_only { "could be registered: nothing was changed" } else { "is REGISTERED" };
    show(&format!("{} {said}\n{}", view.short_name(), print::facts(&facts)))
}

pub(crate) async fn start(mut client: Client, arguments: OnVmArgs) -> Result<(), Failure> {
    let name = client.caller.vm(&arguments.name.name)?.to_string();
    let shown = short(&name);
    let ChangeArgs { request_id, validate_only } = arguments.change;
    let request = v1::StartVirtualMachineRequest { name, request_id, etag: arguments.etag.etag, validate_only };
    let call = client.vms.start_virtual_machine(within(START, request));
    let vm = patiently(format_args!("starting {shown}"), call).await.map_err(|failure| {
        let failure = failure.about(&shown);
        let failure = failure.hint_for(Exit::WrongState, || format!("ostler vm get {shown} shows its state"));
        failure.hint_for(Exit::Refused, || format!("ostler vm console {shown} shows what it printed, if it ran at all"))
    })?;
    show_state(&client, vm, validate_only.then_some("can be started"))
}

pub(crate) async fn stop(mut client: Client, arguments: StopArgs) -> Result<(), Failure> {
    let name = client.caller.vm(&arguments.name.name)?.to_string();
    let shown = short(&name);
    let grace = if arguments.force { Some(Duration::ZERO) } else { arguments.grace };
    let limit = grace.unwrap_or(DEFAULT_GRACE) + STOP_MARGIN;
    let ChangeArgs { request_id, validate_only } = arguments.change;
    let grace = grace.map(crate::api::convert::duration_to_proto);
    let (etag, no_wait) = (arguments.etag.etag, arguments.no_wait);
    let request = v1::StopVirtualMachineRequest { name, grace, request_id, etag, validate_only, no_wait };
    let call = client.vms.stop_virtual_machine(within(limit, request));
    let vm = patiently(format_args!("stopping {shown}"), call).await.map_err(|failure| {
        failure.about(&shown).hint_for(Exit::WrongState, || format!("ostler vm get {shown} shows its state"))
    })?;
    show_state(&client, vm, validate_only.then_some("can be stopped"))
}

pub(crate) async fn destroy(mut client: Client, arguments: DestroyArgs) -> Result<(), Failure> {
    let name = client.caller.vm(&arguments.name.name)?.to_string();
    let shown = short(&name);
    let ChangeArgs { request_id, validate_only } = arguments.change;
    let (force, etag) = (arguments.force, arguments.etag.etag);
    let request = v1::DestroyVirtualMachineRequest { name, force, request_id, etag, validate_only };
    let call = client.vms.destroy_virtual_machine(within(QUICK, request));
    patiently(format_args!("destroying {shown}"), call).await.map_err(|failure| {
        failure.about(&shown).hint_for(Exit::WrongState, || {
            format!("stop it first with ostler vm stop {shown}, or add --force to kill it")
        })
    })?;
    match client.output {
        Output::Table if validate_only => show(&format!("{shown} can be destroyed: nothing was changed\n")),
        Output::Table => show(&format!("{shown} is DESTROYED\n")),
        Output::Json => show("{}\n"),
    }
}

pub(crate) async fn get(mut client: Client, name: &str) -> Result<(), Failure> {
    let name = client.caller.vm(name)?.to_string();
    let shown = short(&name);
    let call = client.vms.get_virtual_machine(within(QUICK, v1::GetVirtualMachineRequest { name }));
    let view = VmView::from(patiently("asking", call).await.map_err(|failure| failure.about(&shown))?);
    match client.output {
        Output::Table => show(&view.text()),
        Output::Json => show(&json(&view, false)?),
    }
}

pub(crate) async fn list(mut client: Client, arguments: ListArgs) -> Result<(), Failure> {
    let request = v1::ListVirtualMachinesRequest {
        parent: client.caller.parent(arguments.tenant.as_deref())?.to_string(),
        page_size: PAGE_LEN,
        filter: arguments.filter.unwrap_or_default(),
        ..Default::default()
    };
    let vms = all(&mut client, request).await?;
    let view = ListView { virtual_machines: vms.into_iter().map(VmView::from).collect() };
    match client.output {
        Output::Table => show(&vm_table(&view.virtual_machines)),
        Output::Json => show(&json(&view, false)?),
    }
}

/// All pages of a list.
pub(super) async fn all(
    client: &mut Client,
    mut request: v1::ListVirtualMachinesRequest,
) -> Result<Vec<v1::VirtualMachine>, Failure> {
    let mut vms = Vec::new();
    loop {
        let call = client.vms.list_virtual_machines(within(QUICK, request.clone()));
        let page = patiently("asking", call).await?;
        vms.extend(page.virtual_machines);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return Ok(vms);
        }
    }
}

/// Prints the state; `validated`: what was only found to be possible.
pub(super) fn show_state(client: &Client, vm: v1::VirtualMachine, validated: Option<&str>) -> Result<(), Failure> {
    let view = VmView::from(vm);
    match (client.output, validated) {
        (Output::Table, Some(can)) => {
            let place = view.tried_place().map(|place| format!(" on {place}")).unwrap_or_default();
            show(&format!("{} is {}, and {can}{place}: nothing was changed\n", view.short_name(), view.state_text()))
        }
        (Output::Table, None) => show(&format!("{} is {}\n", view.short_name(), view.state_text())),
        (Output::Json, _) => show(&json(&view, false)?),
    }
}
