//! `ostler host devices|release`: the node, for its operators.

use std::time::Duration;

use serde::Serialize;

use crate::api::v1;

use super::super::args::{HostReleaseArgs, Output};
use super::super::client::{Client, patiently, within};
use super::super::failure::{Exit, Failure};
use super::super::show;
use super::super::view::host::{LeaseView, PfView, device_tree};
use super::super::view::json;

/// Reading the host.
const QUICK: Duration = Duration::from_secs(60);
/// A release waits for the device's reset; the daemon gives up sooner.
const RELEASE: Duration = Duration::from_secs(180);

#[derive(Serialize)]
struct DevicesView {
    physical_functions: Vec<PfView>,
}

pub(crate) async fn devices(mut client: Client) -> Result<(), Failure> {
    // More cards than a page has are in no host.
    let request = v1::ListHostDevicesRequest { page_size: 1000, ..Default::default() };
    let call = client.host.list_host_devices(within(QUICK, request));
    let pfs = patiently("asking", call).await?.physical_functions;
    let view = DevicesView { physical_functions: pfs.into_iter().map(PfView::from).collect() };
    match client.output {
        Output::Table => show(&device_tree(&view.physical_functions)),
        Output::Json => show(&json(&view, false)?),
    }
}

pub(crate) async fn release(mut client: Client, arguments: HostReleaseArgs) -> Result<(), Failure> {
    let HostReleaseArgs { address, change, etag } = arguments;
    let request = v1::ReleaseHostDeviceRequest {
        address: address.clone(),
        request_id: change.request_id,
        etag: etag.etag,
        validate_only: change.validate_only,
    };
    let call = client.host.release_host_device(within(RELEASE, request));
    let released = patiently(format_args!("releasing {address}"), call).await.map_err(|failure| {
        let hint = || "ostler host devices shows who has it".to_owned();
        failure.hint_for(Exit::WrongState, hint)
    })?;
    let lease = LeaseView::from(released.lease.unwrap_or_default());
    match client.output {
        Output::Table if change.validate_only => {
            show(&format!("{address} is {}, and can be released: nothing was changed\n", lease.text()))
        }
        Output::Table => show(&format!("{address} is {}\n", lease.text())),
        Output::Json => show(&json(&lease, false)?),
    }
}
