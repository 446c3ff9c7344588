//! `HostService`: decode, call, encode. Key type: [`HostRpc`].

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::audit::{Audit, Change};
use super::call::{audited, caller, in_own_task};
use super::{encode, nvme, status};
use crate::api::v1;
use crate::api::v1::host_service_server::HostService;
use crate::daemon::service::{Released, SharedNode};
use crate::model::{Bdf, BdfError, SpecError};

pub(super) struct HostRpc {
    node: SharedNode,
    audit: Arc<Audit>,
}

impl HostRpc {
    pub(super) fn new(node: SharedNode, audit: Arc<Audit>) -> Self {
        Self { node, audit }
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
        let read = async move { Ok((node.list_devices(&principal).await?, node.list_nvme(&principal).await?)) };
        let (devices, nvme) = in_own_task(read).await?;
        let physical_functions = devices.iter().map(encode::physical_function).collect();
        let nvme_controllers = nvme.iter().map(nvme::controller).collect();
        Ok(Response::new(v1::ListHostDevicesResponse { physical_functions, nvme_controllers }))
    }

    async fn release_host_device(
        &self,
        request: Request<v1::ReleaseHostDeviceRequest>,
    ) -> Result<Response<v1::ReleaseHostDeviceResponse>, Status> {
        let principal = caller(request.extensions())?;
        let address = address(&request.get_ref().address)?;
        let nsid = request.get_ref().namespace_id;
        let node = Arc::clone(&self.node);
        let change = Change::new(&principal, "ReleaseHostDevice", address);
        let work = async move { node.release_device(&principal, address, nsid).await };
        let lease = match audited(&self.audit, change, work).await? {
            Released::Vf(lease) => encode::device_lease(&lease),
            Released::Nvme(lease) => encode::device_lease(&lease),
        };
        Ok(Response::new(v1::ReleaseHostDeviceResponse { lease: Some(lease) }))
    }

    async fn provision_nvme_controller(
        &self,
        request: Request<v1::ProvisionNvmeControllerRequest>,
    ) -> Result<Response<v1::ProvisionNvmeControllerResponse>, Status> {
        let principal = caller(request.extensions())?;
        let address = address(&request.get_ref().address)?;
        let vfs = request.get_ref().vfs;
        let node = Arc::clone(&self.node);
        let change = Change::new(&principal, "ProvisionNvmeController", address);
        let work = async move { node.provision_nvme(&principal, address, vfs).await };
        let view = audited(&self.audit, change, work).await?;
        Ok(Response::new(v1::ProvisionNvmeControllerResponse { controller: Some(nvme::controller(&view)) }))
    }
}

fn address(text: &str) -> Result<Bdf, Status> {
    text.parse().map_err(|error: BdfError| status::bad_field(&SpecError::new("address", error.to_string())))
}
