//! `TenantService`: decode, call, encode. Key type: [`TenantRpc`].

use tonic::{Request, Response, Status};

use super::call::caller;
use super::encode::plugin_signer;
use super::list::{Field, Filter, Kind, Query, Value, Window};
use super::status;
use crate::api::v1;
use crate::api::v1::tenant_service_server::TenantService;
use crate::daemon::service::{SharedNode, TenantView};
use crate::model::{SpecError, TenantId};

pub(super) struct TenantRpc {
    node: SharedNode,
}

impl TenantRpc {
    pub(super) fn new(node: SharedNode) -> Self {
        Self { node }
    }
}

const FIELDS: &[Field] = &[Field { name: "name", kind: Kind::Text }];

#[tonic::async_trait]
impl TenantService for TenantRpc {
    async fn get_tenant(&self, request: Request<v1::GetTenantRequest>) -> Result<Response<v1::Tenant>, Status> {
        let principal = caller(request.extensions())?;
        let tenant = tenant_of(&request.get_ref().name).map_err(|error| status::bad_field(&error))?;
        let view = self.node.get_tenant(&principal, &tenant).map_err(|error| status::of(&error))?;
        Ok(Response::new(encode(&view)))
    }

    async fn list_tenants(
        &self,
        request: Request<v1::ListTenantsRequest>,
    ) -> Result<Response<v1::ListTenantsResponse>, Status> {
        let principal = caller(request.extensions())?;
        let request = request.into_inner();
        let window = Window::new(Query {
            method: "ListTenants",
            caller: &principal.to_string(),
            parent: "",
            filter: &request.filter,
            order_by: &request.order_by,
            page_size: request.page_size,
            page_token: &request.page_token,
        });
        let window = window.map_err(|error| status::bad_field(&error))?;
        let filter = Filter::parse(&request.filter, FIELDS).map_err(|error| status::bad_field(&error))?;
        let views = self.node.list_tenants(&principal);
        let listed = views.into_iter().filter(|view| filter.matches(|_| Some(Value::Text(name(view)))));
        let (tenants, next_page_token) = window.page(listed, name, encode);
        Ok(Response::new(v1::ListTenantsResponse { tenants, next_page_token }))
    }
}

fn name(view: &TenantView) -> String {
    format!("tenants/{}", view.tenant)
}

fn tenant_of(name: &str) -> Result<TenantId, SpecError> {
    let tenant = name.strip_prefix("tenants/").and_then(|tenant| tenant.parse().ok());
    tenant.ok_or_else(|| SpecError::new("name", "this is not of the form tenants/{tenant}"))
}

fn encode(view: &TenantView) -> v1::Tenant {
    let TenantView { quota, used, signers, .. } = view;
    v1::Tenant {
        name: name(view),
        quota: Some(v1::TenantQuota {
            vms: quota.vms,
            vcpus: quota.vcpus,
            memory_mib: quota.memory_mib,
            disks: quota.disks,
            devices: quota.devices,
            plugins: quota.plugins,
            plugin_memory_mib: Some(quota.plugin_memory_mib),
            plugin_size_mib: quota.plugin_size_mib,
        }),
        usage: Some(v1::TenantUsage {
            vms: used.vms,
            vcpus: used.vcpus,
            memory_mib: used.memory_mib,
            disks: used.disks,
            devices: used.devices,
            plugins: used.plugins,
            plugin_memory_mib: used.plugin_memory_mib,
        }),
        required_signers: signers.iter().map(|(name, key)| plugin_signer(key, Some(name))).collect(),
    }
}
