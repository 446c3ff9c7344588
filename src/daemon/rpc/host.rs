//! `HostService`: decode, call, encode. Key type: [`HostRpc`].

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::audit::Audit;
use super::call::{caller, in_own_task};
use super::change::Changes;
use super::list::{Query, Window};
use super::{encode, status};
use crate::api::v1;
use crate::api::v1::host_service_server::HostService;
use crate::daemon::service::{DeviceView, SharedNode, VfLease};
use crate::model::{Bdf, BdfError, SpecError};

pub(super) struct HostRpc {
    node: SharedNode,
    changes: Changes,
}

impl HostRpc {
    pub(super) fn new(node: SharedNode, audit: Arc<Audit>) -> Self {
        Self { changes: Changes::new(Arc::clone(&node), audit), node }
    }
}

#[tonic::async_trait]
impl HostService for HostRpc {
    async fn list_host_devices(
        &self,
        request: Request<v1::ListHostDevicesRequest>,
    ) -> Result<Response<v1::ListHostDevicesResponse>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let window = Window::new(Query {
            method: "ListHostDevices",
            caller: &principal.to_string(),
            parent: "",
            filter: "",
            order_by: &request.order_by,
            page_size: request.page_size,
            page_token: &request.page_token,
        });
        let window = window.map_err(|error| status::bad_field(&error))?;
        let node = Arc::clone(&self.node);
        let devices = in_own_task(async move { node.list_devices(&principal).await }).await?;
        let address = |view: &DeviceView| view.pf.address.to_string();
        let (physical_functions, next_page_token) = window.page(devices, address, encode::physical_function);
        Ok(Response::new(v1::ListHostDevicesResponse { physical_functions, next_page_token }))
    }

    async fn release_host_device(
        &self,
        request: Request<v1::ReleaseHostDeviceRequest>,
    ) -> Result<Response<v1::ReleaseHostDeviceResponse>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let address: Bdf = request
            .address
            .parse()
            .map_err(|error: BdfError| status::bad_field(&SpecError::new("address", error.to_string())))?;
        let encode = |lease: &VfLease| v1::ReleaseHostDeviceResponse { lease: Some(encode::device_lease(lease)) };
        let make = self.changes.make(principal, request, address, encode, move |node, principal, terms| async move {
            node.release_device(&principal, address, &terms).await
        });
        make.await
    }
}
