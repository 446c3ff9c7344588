//! `VirtualMachineService`: decode, call, encode. Key type: [`VmRpc`].

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::audit::{Audit, Change};
use super::call::{audited, caller};
use super::{Ending, console, encode, ended, jail, status};
use crate::api::convert::{
    device_from_proto, device_id_from_proto, grace_from_proto, limits_from_proto, spec_from_proto,
    unplug_timeout_from_proto,
};
use crate::api::v1::virtual_machine_service_server::VirtualMachineService;
use crate::api::{Parent, VmRef, v1};
use crate::daemon::service::{ServiceError, SharedNode, Whose};
use crate::model::{DeviceId, IdError, SpecError};

/// Messages of a watch that wait for the client to read; behind them the store's own queue begins.
const WATCH_QUEUE_LEN: usize = 16;

/// A stream of responses.
pub(super) type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(super) struct VmRpc {
    node: SharedNode,
    audit: Arc<Audit>,
    ending: Ending,
}

impl VmRpc {
    pub(super) fn new(node: SharedNode, audit: Arc<Audit>, ending: Ending) -> Self {
        Self { node, audit, ending }
    }
}

#[tonic::async_trait]
impl VirtualMachineService for VmRpc {
    type WatchVirtualMachinesStream = Responses<v1::WatchVirtualMachinesResponse>;
    type ConsoleStream = Responses<v1::ConsoleResponse>;

    async fn register_virtual_machine(
        &self,
        request: Request<v1::RegisterVirtualMachineRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let (name, spec) = decode_registration(request.into_inner()).map_err(|error| status::bad_field(&error))?;
        let node = Arc::clone(&self.node);
        let change = Change::new(&principal, "RegisterVirtualMachine", &name);
        let work = async move { node.register_vm(&principal, name.tenant, name.vm, spec).await };
        let vm = audited(&self.audit, change, work).await?;
        Ok(Response::new(encode::vm(&vm)))
    }

    async fn get_virtual_machine(
        &self,
        request: Request<v1::GetVirtualMachineRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let name = vm_ref(&request.get_ref().name)?;
        let vm = self.node.get(&principal, &name.tenant, &name.vm).map_err(|error| status::of(&error))?;
        let memory_use = self.node.memory_use(&vm).await.map(encode::memory_use);
        Ok(Response::new(v1::VirtualMachine { memory_use, ..encode::vm(&vm) }))
    }

    async fn get_virtual_machine_stats(
        &self,
        request: Request<v1::GetVirtualMachineStatsRequest>,
    ) -> Result<Response<v1::VirtualMachineStats>, Status> {
        let principal = caller(request.extensions())?;
        let name = vm_ref(&request.get_ref().name)?;
        let stats = self.node.stats(&principal, &name.tenant, &name.vm).await;
        Ok(Response::new(encode::stats(stats.map_err(|error| status::of(&error))?)))
    }

    async fn list_virtual_machines(
        &self,
        request: Request<v1::ListVirtualMachinesRequest>,
    ) -> Result<Response<v1::ListVirtualMachinesResponse>, Status> {
        let principal = caller(request.extensions())?;
        let whose = whose(&request.get_ref().parent)?;
        let vms = self.node.list(&principal, &whose).map_err(|error| status::of(&error))?;
        let virtual_machines = vms.iter().map(|vm| encode::vm(vm)).collect();
        Ok(Response::new(v1::ListVirtualMachinesResponse { virtual_machines }))
    }

    async fn start_virtual_machine(
        &self,
        request: Request<v1::StartVirtualMachineRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let name = vm_ref(&request.get_ref().name)?;
        let node = Arc::clone(&self.node);
        let change = Change::new(&principal, "StartVirtualMachine", &name);
        let work = async move { node.start_vm(&principal, &name.tenant, &name.vm).await };
        let vm = audited(&self.audit, change, work).await?;
        Ok(Response::new(encode::vm(&vm)))
    }

    async fn stop_virtual_machine(
        &self,
        request: Request<v1::StopVirtualMachineRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let name = vm_ref(&request.get_ref().name)?;
        let grace = grace_from_proto(request.get_ref().grace).map_err(|error| status::bad_field(&error))?;
        let node = Arc::clone(&self.node);
        let change = Change::new(&principal, "StopVirtualMachine", &name);
        let work = async move { node.stop_vm(&principal, &name.tenant, &name.vm, grace).await };
        let vm = audited(&self.audit, change, work).await?;
        Ok(Response::new(encode::vm(&vm)))
    }

    async fn resize_virtual_machine_disk(
        &self,
        request: Request<v1::ResizeVirtualMachineDiskRequest>,
    ) -> Result<Response<v1::ResizeVirtualMachineDiskResponse>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let name = vm_ref(&request.name)?;
        let disk = device_id("disk", &request.disk)?;
        let size = Some(request.size_bytes).filter(|&size| size != 0);
        let node = Arc::clone(&self.node);
        let change = Change::new(&principal, "ResizeVirtualMachineDisk", &name);
        let work = async move { node.resize_disk(&principal, &name.tenant, &name.vm, disk, size).await };
        let size_bytes = audited(&self.audit, change, work).await?;
        Ok(Response::new(v1::ResizeVirtualMachineDiskResponse { size_bytes }))
    }

    async fn limit_virtual_machine_device(
        &self,
        request: Request<v1::LimitVirtualMachineDeviceRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let name = vm_ref(&request.name)?;
        let device = device_id("device", &request.device)?;
        let limits = limits_from_proto("limits", request.limits).map_err(|error| status::bad_field(&error))?;
        let node = Arc::clone(&self.node);
        let change = Change::new(&principal, "LimitVirtualMachineDevice", &name);
        let work = async move { node.limit_device(&principal, &name.tenant, &name.vm, device, limits).await };
        let vm = audited(&self.audit, change, work).await?;
        Ok(Response::new(encode::vm(&vm)))
    }

    async fn reboot_virtual_machine(
        &self,
        request: Request<v1::RebootVirtualMachineRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let name = vm_ref(&request.get_ref().name)?;
        let grace = grace_from_proto(request.get_ref().grace).map_err(|error| status::bad_field(&error))?;
        let node = Arc::clone(&self.node);
        let change = Change::new(&principal, "RebootVirtualMachine", &name);
        let work = async move { node.reboot_vm(&principal, &name.tenant, &name.vm, grace).await };
        let vm = audited(&self.audit, change, work).await?;
        Ok(Response::new(encode::vm(&vm)))
    }

    async fn pause_virtual_machine(
        &self,
        request: Request<v1::PauseVirtualMachineRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let name = vm_ref(&request.get_ref().name)?;
        let node = Arc::clone(&self.node);
        let change = Change::new(&principal, "PauseVirtualMachine", &name);
        let work = async move { node.pause_vm(&principal, &name.tenant, &name.vm).await };
        let vm = audited(&self.audit, change, work).await?;
        Ok(Response::new(encode::vm(&vm)))
    }

    async fn resume_virtual_machine(
        &self,
        request: Request<v1::ResumeVirtualMachineRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let name = vm_ref(&request.get_ref().name)?;
        let node = Arc::clone(&self.node);
        let change = Change::new(&principal, "ResumeVirtualMachine", &name);
        let work = async move { node.resume_vm(&principal, &name.tenant, &name.vm).await };
        let vm = audited(&self.audit, change, work).await?;
        Ok(Response::new(encode::vm(&vm)))
    }

    async fn press_power_button(
        &self,
        request: Request<v1::PressPowerButtonRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let name = vm_ref(&request.get_ref().name)?;
        let node = Arc::clone(&self.node);
        let change = Change::new(&principal, "PressPowerButton", &name);
        let work = async move { node.press_power_button(&principal, &name.tenant, &name.vm).await };
        let vm = audited(&self.audit, change, work).await?;
        Ok(Response::new(encode::vm(&vm)))
    }

    async fn inject_nmi(&self, request: Request<v1::InjectNmiRequest>) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let name = vm_ref(&request.get_ref().name)?;
        let node = Arc::clone(&self.node);
        let change = Change::new(&principal, "InjectNmi", &name);
        let work = async move { node.inject_nmi(&principal, &name.tenant, &name.vm).await };
        let vm = audited(&self.audit, change, work).await?;
        Ok(Response::new(encode::vm(&vm)))
    }

    async fn inspect_virtual_machine_jail(
        &self,
        request: Request<v1::InspectVirtualMachineJailRequest>,
    ) -> Result<Response<v1::VirtualMachineJail>, Status> {
        let principal = caller(request.extensions())?;
        let name = vm_ref(&request.get_ref().name)?;
        let inspected = self.node.inspect_jail(&principal, &name.tenant, &name.vm).await;
        let (vm, confinement) = inspected.map_err(|error| status::of(&error))?;
        Ok(Response::new(jail::encode(&vm, confinement)))
    }

    async fn destroy_virtual_machine(
        &self,
        request: Request<v1::DestroyVirtualMachineRequest>,
    ) -> Result<Response<v1::DestroyVirtualMachineResponse>, Status> {
        let principal = caller(request.extensions())?;
        let name = vm_ref(&request.get_ref().name)?;
        let is_forced = request.get_ref().force;
        let node = Arc::clone(&self.node);
        let change = Change::new(&principal, "DestroyVirtualMachine", &name);
        let work = async move { node.destroy_vm(&principal, &name.tenant, &name.vm, is_forced).await };
        audited(&self.audit, change, work).await?;
        Ok(Response::new(v1::DestroyVirtualMachineResponse {}))
    }

    async fn attach_device(
        &self,
        request: Request<v1::AttachDeviceRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let name = vm_ref(&request.name)?;
        let device = device_from_proto(request.device).map_err(|error| status::bad_field(&error))?;
        let node = Arc::clone(&self.node);
        let change = Change::new(&principal, "AttachDevice", format!("{name}/devices/{}", device.id()));
        let work = async move { node.attach_device(&principal, &name.tenant, &name.vm, device).await };
        let vm = audited(&self.audit, change, work).await?;
        Ok(Response::new(encode::vm(&vm)))
    }

    async fn detach_device(
        &self,
        request: Request<v1::DetachDeviceRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let v1::DetachDeviceRequest { name, device_id, timeout, force } = request.into_inner();
        let name = vm_ref(&name)?;
        let id = device_id_from_proto(&device_id).map_err(|error| status::bad_field(&error))?;
        let timeout = unplug_timeout_from_proto(timeout).map_err(|error| status::bad_field(&error))?;
        let node = Arc::clone(&self.node);
        let change = Change::new(&principal, "DetachDevice", format!("{name}/devices/{id}"));
        let work = async move { node.detach_device(&principal, &name.tenant, &name.vm, id, timeout, force).await };
        let vm = audited(&self.audit, change, work).await?;
        Ok(Response::new(encode::vm(&vm)))
    }

    async fn watch_virtual_machines(
        &self,
        request: Request<v1::WatchVirtualMachinesRequest>,
    ) -> Result<Response<Self::WatchVirtualMachinesStream>, Status> {
        let principal = caller(request.extensions())?;
        let whose = whose(&request.get_ref().parent)?;
        let mut watch = self.node.watch_vms(&principal, &whose).map_err(|error| status::of(&error))?;
        let mut ending = self.ending.clone();
        let (responses, stream) = mpsc::channel(WATCH_QUEUE_LEN);
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    () = ended(&mut ending) => Err(ServiceError::Ending),
                    () = responses.closed() => return,
                    next = watch.next() => next,
                };
                let is_end = next.is_err();
                let response = next.map(|item| encode::watch_item(&item)).map_err(|error| status::of(&error));
                if responses.send(response).await.is_err() || is_end {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn console(
        &self,
        request: Request<Streaming<v1::ConsoleRequest>>,
    ) -> Result<Response<Self::ConsoleStream>, Status> {
        let principal = caller(request.extensions())?;
        let stream =
            console::open(&self.node, &self.audit, principal, request.into_inner(), self.ending.clone()).await?;
        Ok(Response::new(stream))
    }
}

fn decode_registration(request: v1::RegisterVirtualMachineRequest) -> Result<(VmRef, crate::model::VmSpec), SpecError> {
    let vm = request.virtual_machine.ok_or_else(|| SpecError::new("virtual_machine", "is missing"))?;
    let name = VmRef::parse(&vm.name)?;
    let spec = vm.spec.ok_or_else(|| SpecError::new("spec", "is missing"))?;
    Ok((name, spec_from_proto(spec)?))
}

/// The VM that a request names.
#[allow(clippy::result_large_err, reason = "tonic's error type, returned at once")]
pub(super) fn vm_ref(name: &str) -> Result<VmRef, Status> {
    VmRef::parse(name).map_err(|error| status::bad_field(&error))
}

#[allow(clippy::result_large_err, reason = "tonic's error type, returned at once")]
fn device_id(field: &str, text: &str) -> Result<DeviceId, Status> {
    text.parse().map_err(|error: IdError| status::bad_field(&SpecError::new(field, error.to_string())))
}

#[allow(clippy::result_large_err, reason = "tonic's error type, returned at once")]
pub(super) fn whose(parent: &str) -> Result<Whose, Status> {
    match Parent::parse(parent) {
        Ok(Parent::Own) => Ok(Whose::Own),
        Ok(Parent::All) => Ok(Whose::All),
        Ok(Parent::Tenant(tenant)) => Ok(Whose::Tenant(tenant)),
        Ok(Parent::Operator) => Err(status::bad_field(&SpecError::new(
            "parent",
            "the operator has no VMs; say tenants/{tenant} or tenants/-",
        ))),
        Err(error) => Err(status::bad_field(&error)),
    }
}
