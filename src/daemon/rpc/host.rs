//! `HostService`: decode, call, encode. Key type: [`HostRpc`].

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::audit::Audit;
use super::call::{caller, in_own_task};
use super::change::Changes;
use super::{encode, status};
use crate::api::v1;
use crate::api::v1::host_service_server::HostService;
use crate::daemon::service::{SharedNode, VfLease};
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
        let node = Arc::clone(&self.node);
        let devices = in_own_task(async move { node.list_devices(&principal).await }).await?;
        let physical_functions = devices.iter().map(encode::physical_function).collect();
        Ok(Response::new(v1::ListHostDevicesResponse { physical_functions }))
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
