//! `ostler host devices|release|nvme`: the node, for its operators.

use std::time::Duration;

use serde::Serialize;

use crate::api::v1;

use super::super::args::{ChangeArgs, HostReleaseArgs, NvmeProvisionArgs, Output};
use super::super::client::{Client, patiently, within};
use super::super::failure::{Exit, Failure};
use super::super::show;
use super::super::view::host::{LeaseView, PfView, device_tree};
use super::super::view::json;
use super::super::view::nvme::{NvmeControllerView, nvme_tree};

/// Reading the host.
const QUICK: Duration = Duration::from_secs(60);
/// A release waits for the device's reset; the daemon gives up sooner, except of a large namespace that it erases.
const RELEASE: Duration = Duration::from_secs(180);
const ERASE: Duration = Duration::from_secs(24 * 3600);

#[derive(Serialize)]
struct DevicesView {
    physical_functions: Vec<PfView>,
    nvme_controllers: Vec<NvmeControllerView>,
}

pub(crate) async fn devices(mut client: Client) -> Result<(), Failure> {
    // More cards than a page has are in no host.
    let request = v1::ListHostDevicesRequest { page_size: 1000, ..Default::default() };
    let call = client.host.list_host_devices(within(QUICK, request));
    let devices = patiently("asking", call).await?;
    let view = DevicesView {
        physical_functions: devices.physical_functions.into_iter().map(PfView::from).collect(),
        nvme_controllers: devices.nvme_controllers.into_iter().map(NvmeControllerView::from).collect(),
    };
    match client.output {
        Output::Table => show(&(device_tree(&view.physical_functions) + &nvme_tree(&view.nvme_controllers))),
        Output::Json => show(&json(&view, false)?),
    }
}

pub(crate) async fn release(mut client: Client, arguments: HostReleaseArgs) -> Result<(), Failure> {
    let HostReleaseArgs { address, namespace, change, etag, no_wait } = arguments;
    let request = v1::ReleaseHostDeviceRequest {
        address: address.clone(),
        namespace_id: namespace.unwrap_or(0),
        request_id: change.request_id,
        etag: etag.etag,
        validate_only: change.validate_only,
        no_wait,
    };
    let limit = if namespace.is_some() { ERASE } else { RELEASE };
    let what = namespace.map_or_else(|| address.clone(), |id| format!("namespace {id} of {address}"));
    let call = client.host.release_host_device(within(limit, request));
    let released = patiently(format_args!("releasing {what}"), call).await.map_err(|failure| {
        let hint = || "ostler host devices shows who has it".to_owned();
        failure.hint_for(Exit::WrongState, hint)
    })?;
    let lease = LeaseView::from(released.lease.unwrap_or_default());
    match client.output {
        Output::Table if change.validate_only => {
            show(&format!("{what} is {}, and can be released: nothing was changed\n", lease.text()))
        }
        Output::Table => show(&format!("{what} is {}\n", lease.text())),
        Output::Json => show(&json(&lease, false)?),
    }
}

pub(crate) async fn provision(mut client: Client, arguments: NvmeProvisionArgs) -> Result<(), Failure> {
    let NvmeProvisionArgs { address, vfs, change } = arguments;
    let ChangeArgs { request_id, validate_only } = change;
    let request = v1::ProvisionNvmeControllerRequest { address: address.clone(), vfs, request_id, validate_only };
    let call = client.host.provision_nvme_controller(within(RELEASE, request));
    let provisioned = patiently(format_args!("provisioning {address}"), call).await.map_err(|failure| {
        let hint = || "ostler host devices shows what uses it".to_owned();
        failure.hint_for(Exit::WrongState, hint)
    })?;
    let view = NvmeControllerView::from(provisioned.controller.unwrap_or_default());
    match client.output {
        Output::Table if validate_only => {
            show(&format!("{address} can have {vfs} virtual functions: nothing was changed\n"))
        }
        Output::Table => show(&nvme_tree(&[view])),
        Output::Json => show(&json(&view, false)?),
    }
}
