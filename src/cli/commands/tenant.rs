//! `ostler tenant get|list`: what tenants may have and have.

use std::time::Duration;

use serde::Serialize;

use crate::api::v1;

use super::super::args::{Output, TenantGetArgs};
use super::super::client::{Client, patiently, within};
use super::super::failure::{Exit, Failure};
use super::super::identity::Caller;
use super::super::view::json;
use super::super::view::plugin::SignerView;
use super::super::{print, show};

const QUICK: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct ListView {
    tenants: Vec<TenantView>,
}

#[derive(Serialize)]
struct TenantView {
    name: String,
    quota: QuotaView,
    usage: UsageView,
    /// Whose signatures its own plugins must bear.
    required_signers: Vec<SignerView>,
}

/// `null` is no limit.
#[derive(Serialize)]
struct QuotaView {
    vms: Option<u64>,
    vcpus: Option<u64>,
    memory_mib: Option<u64>,
    disks: Option<u64>,
    devices: Option<u64>,
    plugins: Option<u64>,
    plugin_memory_mib: Option<u64>,
    /// Of each; else the node's own limit.
    plugin_size_mib: Option<u64>,
}

#[derive(Serialize)]
struct UsageView {
    vms: u64,
    vcpus: u64,
    memory_mib: u64,
    disks: u64,
    devices: u64,
    plugins: u64,
    plugin_memory_mib: u64,
}

impl From<v1::Tenant> for TenantView {
    fn from(tenant: v1::Tenant) -> Self {
        let v1::TenantQuota { vms, vcpus, memory_mib, disks, devices, plugins, plugin_memory_mib, plugin_size_mib } =
            tenant.quota.unwrap_or_default();
        let quota = QuotaView { vms, vcpus, memory_mib, disks, devices, plugins, plugin_memory_mib, plugin_size_mib };
        let v1::TenantUsage { vms, vcpus, memory_mib, disks, devices, plugins, plugin_memory_mib } =
            tenant.usage.unwrap_or_default();
        let usage = UsageView { vms, vcpus, memory_mib, disks, devices, plugins, plugin_memory_mib };
        let required_signers = tenant.required_signers.into_iter().map(SignerView::from).collect();
        Self { name: tenant.name, quota, usage, required_signers }
    }
}

pub(crate) async fn get(mut client: Client, arguments: TenantGetArgs) -> Result<(), Failure> {
    let tenant = match (arguments.tenant, &client.caller) {
        (Some(tenant), _) => tenant,
        (None, Caller::Tenant(own)) => own.to_string(),
        (None, Caller::Operator(_)) => {
            return Err(Failure::new(Exit::Usage, "which tenant?").hint("ostler tenant list shows all"));
        }
    };
    let request = v1::GetTenantRequest { name: format!("tenants/{}", tenant.trim_start_matches("tenants/")) };
    let call = client.tenants.get_tenant(within(QUICK, request));
    let view = TenantView::from(patiently("asking", call).await.map_err(|failure| failure.about(&tenant))?);
    match client.output {
        Output::Table => show(&table(&[view])),
        Output::Json => show(&json(&view, false)?),
    }
}

pub(crate) async fn list(mut client: Client) -> Result<(), Failure> {
    let mut request = v1::ListTenantsRequest { page_size: 1000, ..Default::default() };
    let mut tenants = Vec::new();
    loop {
        let page = patiently("asking", client.tenants.list_tenants(within(QUICK, request.clone()))).await?;
        tenants.extend(page.tenants.into_iter().map(TenantView::from));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    match client.output {
        Output::Table => show(&table(&tenants)),
        Output::Json => show(&json(&ListView { tenants }, false)?),
    }
}

/// In use and allowed, such as `3/10`.
fn table(tenants: &[TenantView]) -> String {
    let of = |used: u64, limit: Option<u64>| limit.map_or_else(|| used.to_string(), |limit| format!("{used}/{limit}"));
    let rows: Vec<_> = tenants
        .iter()
        .map(|TenantView { name, quota, usage, required_signers }| {
            [
                name.trim_start_matches("tenants/").to_owned(),
                of(usage.vms, quota.vms),
                of(usage.vcpus, quota.vcpus),
                of(usage.memory_mib, quota.memory_mib),
                of(usage.disks, quota.disks),
                of(usage.devices, quota.devices),
                of(usage.plugins, quota.plugins),
                of(usage.plugin_memory_mib, quota.plugin_memory_mib),
                SignerView::cell(required_signers, ""),
            ]
        })
        .collect();
    print::table(
        ["TENANT", "VMS", "VCPUS", "MEMORY MIB", "DISKS", "DEVICES", "PLUGINS", "PLUGIN MIB", "SIGNERS"],
        &rows,
    )
}
