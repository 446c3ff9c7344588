//! `VirtualMachineService`: decode, call, encode. Key type: [`VmRpc`].

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::audit::Audit;
use super::call::{caller, in_own_task};
use super::change::Changes;
use super::list::{Field, Filter, Kind, Query, Value, Window};
use super::{Ending, console, encode, ended, jail, status};
use crate::api::convert::{
    device_from_proto, device_id_from_proto, failure_to_proto, grace_from_proto, kept_from_proto, limits_from_proto,
    spec_from_proto, unplug_timeout_from_proto,
};
use crate::api::v1::virtual_machine_service_server::VirtualMachineService;
use crate::api::{Parent, VmRef, v1};
use crate::daemon::service::{Node, Principal, ServiceError, SharedNode, Unplug, VmRecord, Whose};
use crate::model::{DeviceId, IdError, SpecError, VmState};

/// Messages of a watch that wait for the client to read; behind them the store's own queue begins.
const WATCH_QUEUE_LEN: usize = 16;
/// Bytes of an encoded usage at most: a name of two labels, and numbers.
const USAGE_LEN: usize = 256;

/// A stream of responses.
pub(super) type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(super) struct VmRpc {
    node: SharedNode,
    audit: Arc<Audit>,
    changes: Changes,
    ending: Ending,
}

impl VmRpc {
    pub(super) fn new(node: SharedNode, audit: Arc<Audit>, ending: Ending) -> Self {
        let changes = Changes::new(Arc::clone(&node), Arc::clone(&audit));
        Self { node, audit, changes, ending }
    }
}

impl VmRpc {
    /// Gives a VM as its caller sees it when that is asked.
    fn seen(
        &self,
        principal: &Principal,
        name: &VmRef,
    ) -> impl FnOnce(&Node) -> Result<VmRecord, ServiceError> + Send + use<> {
        let (principal, name) = (principal.clone(), name.clone());
        move |node| node.get(&principal, &name.tenant, &name.vm).map(|vm| VmRecord::clone(&vm))
    }

    /// The VMs that a list is asked for, and the page of them.
    #[allow(clippy::result_large_err, reason = "tonic's error type, returned at once")]
    fn listed(&self, principal: &Principal, asked: Query<'_>) -> Result<(Window, Vec<Arc<VmRecord>>), Status> {
        let whose = whose(asked.parent)?;
        let window = Window::new(asked).map_err(|error| status::bad_field(&error))?;
        let filter = Filter::parse(asked.filter, FIELDS).map_err(|error| status::bad_field(&error))?;
        let vms = self.node.list(principal, &whose).map_err(|error| status::of(&error))?;
        Ok((window, vms.into_iter().filter(|vm| filter.matches(|name| field(vm, name))).collect()))
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
        let request = request.into_inner();
        let (name, spec) = decode_registration(request.virtual_machine.clone()).map_err(|e| status::bad_field(&e))?;
        let resource = name.to_string();
        let make = self.changes.make(principal, request, resource, encode::vm, |node, principal, terms| async move {
            node.register_vm(&principal, name.tenant, name.vm, spec, &terms).await
        });
        make.await
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
        let request = request.into_inner();
        let asked = Query {
            method: "ListVirtualMachines",
            caller: &principal.to_string(),
            parent: &request.parent,
            filter: &request.filter,
            order_by: &request.order_by,
            page_size: request.page_size,
            page_token: &request.page_token,
        };
        let (window, listed) = self.listed(&principal, asked)?;
        let (virtual_machines, next_page_token) = window.page(listed, |vm| encode::vm_name(vm), |vm| encode::vm(vm));
        Ok(Response::new(v1::ListVirtualMachinesResponse { virtual_machines, next_page_token }))
    }

    async fn list_virtual_machine_usages(
        &self,
        request: Request<v1::ListVirtualMachineUsagesRequest>,
    ) -> Result<Response<v1::ListVirtualMachineUsagesResponse>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let asked = Query {
            method: "ListVirtualMachineUsages",
            caller: &principal.to_string(),
            parent: &request.parent,
            filter: &request.filter,
            order_by: &request.order_by,
            page_size: request.page_size,
            page_token: &request.page_token,
        };
        let (window, listed) = self.listed(&principal, asked)?;
        let with_process = listed.into_iter().filter(|vm| vm.run.as_ref().is_some_and(|run| run.process.is_some()));
        let (page, next_page_token) = window.cut(with_process, |vm| encode::vm_name(vm), |_| USAGE_LEN);
        let usages = self.node.usages(page).await.into_iter().map(encode::usage).collect();
        Ok(Response::new(v1::ListVirtualMachineUsagesResponse { usages, next_page_token }))
    }

    async fn start_virtual_machine(
        &self,
        request: Request<v1::StartVirtualMachineRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let name = vm_ref(&request.name)?;
        let make =
            self.changes.make(principal, request, name.to_string(), encode::vm, |node, principal, terms| async move {
                node.start_vm(&principal, &name.tenant, &name.vm, &terms).await
            });
        make.await
    }

    async fn stop_virtual_machine(
        &self,
        request: Request<v1::StopVirtualMachineRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let name = vm_ref(&request.name)?;
        let grace = grace_from_proto(request.grace).map_err(|error| status::bad_field(&error))?;
        let now = self.seen(&principal, &name);
        let make = self.changes.make_or_begin(
            principal,
            request,
            name.to_string(),
            encode::vm,
            now,
            move |node, principal, terms| async move {
                node.stop_vm(&principal, &name.tenant, &name.vm, grace, &terms).await
            },
        );
        make.await
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
        let encode = |size: &u64| v1::ResizeVirtualMachineDiskResponse { size_bytes: *size };
        let make =
            self.changes.make(principal, request, name.to_string(), encode, move |node, principal, terms| async move {
                node.resize_disk(&principal, &name.tenant, &name.vm, disk, size, &terms).await
            });
        make.await
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
        let make = self.changes.make(
            principal,
            request,
            name.to_string(),
            encode::vm,
            move |node, principal, terms| async move {
                node.limit_device(&principal, &name.tenant, &name.vm, device, limits, &terms).await
            },
        );
        make.await
    }

    async fn set_virtual_machine_balloon(
        &self,
        request: Request<v1::SetVirtualMachineBalloonRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let name = vm_ref(&request.name)?;
        let keep_mib = kept_from_proto(request.keep_mib);
        let make = self.changes.make(
            principal,
            request,
            name.to_string(),
            encode::vm,
            move |node, principal, terms| async move {
                node.set_balloon(&principal, &name.tenant, &name.vm, keep_mib, &terms).await
            },
        );
        make.await
    }

    async fn reboot_virtual_machine(
        &self,
        request: Request<v1::RebootVirtualMachineRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let name = vm_ref(&request.name)?;
        let grace = grace_from_proto(request.grace).map_err(|error| status::bad_field(&error))?;
        let now = self.seen(&principal, &name);
        let make = self.changes.make_or_begin(
            principal,
            request,
            name.to_string(),
            encode::vm,
            now,
            move |node, principal, terms| async move {
                node.reboot_vm(&principal, &name.tenant, &name.vm, grace, &terms).await
            },
        );
        make.await
    }

    async fn pause_virtual_machine(
        &self,
        request: Request<v1::PauseVirtualMachineRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let name = vm_ref(&request.name)?;
        let make =
            self.changes.make(principal, request, name.to_string(), encode::vm, |node, principal, terms| async move {
                node.pause_vm(&principal, &name.tenant, &name.vm, &terms).await
            });
        make.await
    }

    async fn resume_virtual_machine(
        &self,
        request: Request<v1::ResumeVirtualMachineRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let name = vm_ref(&request.name)?;
        let make =
            self.changes.make(principal, request, name.to_string(), encode::vm, |node, principal, terms| async move {
                node.resume_vm(&principal, &name.tenant, &name.vm, &terms).await
            });
        make.await
    }

    async fn press_power_button(
        &self,
        request: Request<v1::PressPowerButtonRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let name = vm_ref(&request.name)?;
        let make =
            self.changes.make(principal, request, name.to_string(), encode::vm, |node, principal, terms| async move {
                node.press_power_button(&principal, &name.tenant, &name.vm, &terms).await
            });
        make.await
    }

    async fn inject_nmi(&self, request: Request<v1::InjectNmiRequest>) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let name = vm_ref(&request.name)?;
        let make =
            self.changes.make(principal, request, name.to_string(), encode::vm, |node, principal, terms| async move {
                node.inject_nmi(&principal, &name.tenant, &name.vm, &terms).await
            });
        make.await
    }

    async fn inspect_virtual_machine_jail(
        &self,
        request: Request<v1::InspectVirtualMachineJailRequest>,
    ) -> Result<Response<v1::VirtualMachineJail>, Status> {
        let principal = caller(request.extensions())?;
        let name = vm_ref(&request.get_ref().name)?;
        let node = Arc::clone(&self.node);
        let inspect = async move { node.inspect_jail(&principal, &name.tenant, &name.vm).await };
        let (vm, confinement) = in_own_task(inspect).await?;
        Ok(Response::new(jail::encode(&vm, confinement)))
    }

    async fn destroy_virtual_machine(
        &self,
        request: Request<v1::DestroyVirtualMachineRequest>,
    ) -> Result<Response<v1::DestroyVirtualMachineResponse>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let name = vm_ref(&request.name)?;
        let is_forced = request.force;
        let encode = |(): &()| v1::DestroyVirtualMachineResponse {};
        let make =
            self.changes.make(principal, request, name.to_string(), encode, move |node, principal, terms| async move {
                node.destroy_vm(&principal, &name.tenant, &name.vm, is_forced, &terms).await
            });
        make.await
    }

    async fn attach_device(
        &self,
        request: Request<v1::AttachDeviceRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let name = vm_ref(&request.name)?;
        let device = device_from_proto(request.device.clone()).map_err(|error| status::bad_field(&error))?;
        let resource = format!("{name}/devices/{}", device.id());
        let make =
            self.changes.make(principal, request, resource, encode::vm, move |node, principal, terms| async move {
                node.attach_device(&principal, &name.tenant, &name.vm, device, &terms).await
            });
        make.await
    }

    async fn detach_device(
        &self,
        request: Request<v1::DetachDeviceRequest>,
    ) -> Result<Response<v1::VirtualMachine>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let name = vm_ref(&request.name)?;
        let id = device_id_from_proto(&request.device_id).map_err(|error| status::bad_field(&error))?;
        let timeout = unplug_timeout_from_proto(request.timeout).map_err(|error| status::bad_field(&error))?;
        let (resource, manner) = (format!("{name}/devices/{id}"), Unplug { timeout, is_forced: request.force });
        let now = self.seen(&principal, &name);
        let make = self.changes.make_or_begin(
            principal,
            request,
            resource,
            encode::vm,
            now,
            move |node, principal, terms| async move {
                node.detach_device(&principal, &name.tenant, &name.vm, id, manner, &terms).await
            },
        );
        make.await
    }

    async fn watch_virtual_machines(
        &self,
        request: Request<v1::WatchVirtualMachinesRequest>,
    ) -> Result<Response<Self::WatchVirtualMachinesStream>, Status> {
        let principal = caller(request.extensions())?;
        let whose = whose(&request.get_ref().parent)?;
        let resumed = encode::resume_point(&request.get_ref().resume_token).map_err(|e| status::bad_field(&e))?;
        let mut watch = self.node.watch_vms(&principal, &whose, resumed).map_err(|error| status::of(&error))?;
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

fn decode_registration(vm: Option<v1::VirtualMachine>) -> Result<(VmRef, crate::model::VmSpec), SpecError> {
    let vm = vm.ok_or_else(|| SpecError::new("virtual_machine", "is missing"))?;
    let name = VmRef::parse(&vm.name)?;
    let spec = vm.spec.ok_or_else(|| SpecError::new("spec", "is missing"))?;
    Ok((name, spec_from_proto(spec)?))
}

/// In filters.
const LABELS: &str = "labels";

/// What a filter of VMs may ask about.
const FIELDS: &[Field] = &[
    Field { name: "name", kind: Kind::Text },
    Field { name: "tenant", kind: Kind::Text },
    Field { name: "uid", kind: Kind::Text },
    Field { name: "state", kind: Kind::Choice(&VmState::NAMES) },
    Field { name: "failure", kind: Kind::Text },
    Field { name: "kernel", kind: Kind::Text },
    Field { name: "vcpus", kind: Kind::Number },
    Field { name: "memory_mib", kind: Kind::Number },
    Field { name: LABELS, kind: Kind::Map },
];

fn field(vm: &VmRecord, name: &str) -> Option<Value> {
    Some(match name {
        "name" => Value::Text(encode::vm_name(vm)),
        "tenant" => Value::Text(vm.tenant.to_string()),
        "uid" => Value::Text(vm.uid.to_string()),
        "state" => Value::Text(vm.state.name().to_owned()),
        "failure" => Value::Text(failure_to_proto(&vm.state)),
        "kernel" => Value::Text(vm.spec.boot().kernel.to_string()),
        "vcpus" => Value::Number(vm.spec.vcpus().into()),
        "memory_mib" => Value::Number(vm.spec.memory_mib()),
        _ => {
            let key = name.strip_prefix(LABELS)?.strip_prefix('.')?;
            Value::Text(vm.spec.labels().get(key)?.to_owned())
        }
    })
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
