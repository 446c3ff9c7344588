//! `HostService`: decode, call, encode. Key type: [`HostRpc`].

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::audit::Audit;
use super::call::{caller, in_own_task};
use super::change::Changes;
use super::list::{Query, Window};
use super::{encode, findings, nvme, status};
use crate::api::v1;
use crate::api::v1::host_service_server::HostService;
use crate::daemon::service::{DeviceView, Finding, Node, NvmeView, Released, SharedNode};
use crate::model::{Bdf, BdfError, SpecError};

pub(super) struct HostRpc {
    node: SharedNode,
    changes: Changes,
    audit: Arc<Audit>,
}

impl HostRpc {
    pub(super) fn new(node: SharedNode, audit: Arc<Audit>) -> Self {
        Self { changes: Changes::new(Arc::clone(&node), Arc::clone(&audit)), audit, node }
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
        let read = async move { Ok((node.list_devices(&principal).await?, node.list_nvme(&principal).await?)) };
        let (devices, nvme) = in_own_task(read).await?;
        let address = |view: &DeviceView| view.pf.address.to_string();
        let (physical_functions, next_page_token) = window.page(devices, address, encode::physical_function);
        // Few, and each much: all of them with the first page.
        let is_first = request.page_token.is_empty();
        let nvme_controllers = nvme.iter().filter(|_| is_first).map(nvme::controller).collect();
        Ok(Response::new(v1::ListHostDevicesResponse { physical_functions, nvme_controllers, next_page_token }))
    }

    async fn get_host_usage(
        &self,
        request: Request<v1::GetHostUsageRequest>,
    ) -> Result<Response<v1::HostUsage>, Status> {
        let principal = caller(request.extensions())?;
        let usage = self.node.host_use(&principal).await.map_err(|error| status::of(&error))?;
        Ok(Response::new(encode::host_use(usage)))
    }

    async fn release_host_device(
        &self,
        request: Request<v1::ReleaseHostDeviceRequest>,
    ) -> Result<Response<v1::ReleaseHostDeviceResponse>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let (address, nsid) = (address(&request.address)?, request.namespace_id);
        let encode = |released: &Released| {
            let lease = match released {
                Released::Vf(lease) => encode::device_lease(lease),
                Released::Nvme(lease) => encode::device_lease(lease),
            };
            v1::ReleaseHostDeviceResponse { lease: Some(lease) }
        };
        let now = move |node: &Node| node.released_so_far(address, nsid);
        let make = self.changes.make_or_begin(
            principal,
            request,
            address,
            encode,
            now,
            move |node, principal, terms| async move { node.release_device(&principal, address, nsid, &terms).await },
        );
        make.await
    }

    async fn provision_nvme_controller(
        &self,
        request: Request<v1::ProvisionNvmeControllerRequest>,
    ) -> Result<Response<v1::ProvisionNvmeControllerResponse>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let (address, vfs) = (address(&request.address)?, request.vfs);
        let encode = |view: &NvmeView| v1::ProvisionNvmeControllerResponse { controller: Some(nvme::controller(view)) };
        let make = self.changes.make(principal, request, address, encode, move |node, principal, terms| async move {
            node.provision_nvme(&principal, address, vfs, &terms).await
        });
        make.await
    }

    async fn check_host(
        &self,
        request: Request<v1::CheckHostRequest>,
    ) -> Result<Response<v1::CheckHostResponse>, Status> {
        let principal = caller(request.extensions())?;
        let node = Arc::clone(&self.node);
        let found = in_own_task(async move { node.examine_host(&principal).await }).await?;
        let (findings, omitted) = findings::told(&found);
        Ok(Response::new(v1::CheckHostResponse { findings, omitted }))
    }

    async fn repair_host(
        &self,
        request: Request<v1::RepairHostRequest>,
    ) -> Result<Response<v1::RepairHostResponse>, Status> {
        let principal = caller(request.extensions())?;
        let (request, audit) = (request.into_inner(), Arc::clone(&self.audit));
        let encode = |found: &Vec<Finding>| {
            let (findings, omitted) = findings::told(found);
            v1::RepairHostResponse { findings, omitted }
        };
        let make = self.changes.make(principal, request, "host", encode, move |node, principal, terms| async move {
            let found = node.repair_host(&principal, &terms).await?;
            findings::audit(&audit, &principal, &found);
            Ok(found)
        });
        make.await
    }
}

fn address(text: &str) -> Result<Bdf, Status> {
    text.parse().map_err(|error: BdfError| status::bad_field(&SpecError::new("address", error.to_string())))
}
