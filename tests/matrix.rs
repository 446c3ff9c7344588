//! Every call of the API, for every role, on what is its own, another's and missing. Needs no guest; `tenancy` has those
//! who are not let in at all.
//!
//! `docs/access.md` is this table; after a change of it: `OSTLER_BLESS=1 cargo xtask test --program matrix`.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use crate::support::certs::{Authority, Wish};
use crate::support::client::{connect, wait};
use crate::support::{Caller, Host, small};
use ostler::api::v1;
use prost::Message;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// On what a call is tried: acme's, globex', and what nobody has.
const TARGETS: [(&str, &str); 3] = [("own", "acme"), ("another's", "globex"), ("missing", "nobody")];

/// Name in the table, SPIFFE id. Tenants' identities are acme's.
const IDENTITIES: [(&str, &str); 5] = [
    ("admin", "spiffe://ostler.local/tenant/acme"),
    ("admin, by tenants.toml", "spiffe://elsewhere.example/ci/build"),
    ("viewer", "spiffe://ostler.local/people/vera"),
    ("operator", "spiffe://ostler.local/operator/second"),
    ("operator, by tenants.toml", "spiffe://ostler.local/people/olga"),
];

const MEMBERS: &str = r#"
[[members]]
id = "spiffe://elsewhere.example/ci/build"
tenant = "acme"
role = "admin"
[[members]]
id = "spiffe://ostler.local/people/vera"
tenant = "acme"
role = "viewer"
[[members]]
id = "spiffe://ostler.local/people/olga"
role = "operator"
"#;

/// One call, tried on a tenant's resource.
type Try = fn(&Caller, tenant: &str) -> Result<(), Status>;

/// A call with what comes of it for admin, viewer and operator, in the order of [`TARGETS`].
struct Row {
    method: &'static str,
    tried: Try,
    outcomes: [[&'static str; 3]; 3],
}

const OK: &str = "OK";
const DENIED: &str = "PERMISSION_DENIED NOT_ALLOWED";
const VIEWS: &str = "PERMISSION_DENIED ROLE_DENIED";
const NO_VM: &str = "NOT_FOUND VM_NOT_FOUND";
const STATE: &str = "FAILED_PRECONDITION WRONG_STATE";
const DEVICE: &str = "NOT_FOUND DEVICE_NOT_FOUND";
const QUIET: &str = "FAILED_PRECONDITION NO_PROCESS";
const TAKEN: &str = "ALREADY_EXISTS VM_EXISTS";
const NO_PLUGIN: &str = "NOT_FOUND PLUGIN_NOT_FOUND";
const NO_DECISION: &str = "NOT_FOUND DECISION_NOT_FOUND";
const NO_DEVICE: &str = "NOT_FOUND NO_SUCH_DEVICE";
const FIELD: &str = "INVALID_ARGUMENT BAD_FIELD";
/// Of a device: the VM has no balloon.
const UNCHANGED: &str = "FAILED_PRECONDITION CHANGE_FAILED";
const NO_OPERATION: &str = "NOT_FOUND OPERATION_NOT_FOUND";
const ENDED: &str = "FAILED_PRECONDITION OPERATION_NOT_CANCELLABLE";
const NO_TENANT: &str = "NOT_FOUND TENANT_NOT_FOUND";

/// The VM that acme and globex have and nobody has not.
fn vm(tenant: &str) -> String {
    format!("tenants/{tenant}/vms/web")
}

/// The one that admitted it.
fn decision(tenant: &str) -> String {
    format!("tenants/{tenant}/decisions/0")
}

/// An operation of acme's, one of globex', and one that nobody has.
static OPERATIONS: OnceLock<[String; 3]> = OnceLock::new();

fn operation(tenant: &str) -> String {
    let at = TARGETS.iter().position(|(_, known)| *known == tenant).unwrap();
    OPERATIONS.get().unwrap()[at].clone()
}

/// Leaves a VM of `tenant`, and the name of an operation that had to do with it.
fn prepare(host: &Host, tenant: &str) -> String {
    let caller = host.tenant(tenant);
    caller.register("web", small()).unwrap();
    let nic = v1::NicSpec { id: "eth9".into(), ..Default::default() };
    caller.attach("web", v1::attach_device_request::Device::Nic(nic)).unwrap();
    caller.detach("web", "eth9", None, false).unwrap();
    caller.operations("", "").unwrap()[0].name.clone()
}

fn done<T>(answer: Result<tonic::Response<T>, Status>) -> Result<(), Status> {
    answer.map(drop)
}

/// Calls that change something are only validated, so that each finds what the one before it found.
const ROWS: &[Row] = &[
    Row {
        method: "DecisionService/ExplainDecision",
        tried: |caller, tenant| caller.explain(&decision(tenant)).map(drop),
        outcomes: [[OK, NO_DECISION, NO_DECISION], [OK, NO_DECISION, NO_DECISION], [OK, OK, NO_DECISION]],
    },
    Row {
        method: "DecisionService/ExportDecisions",
        tried: |caller, tenant| caller.export(&format!("tenants/{tenant}")).map(drop),
        outcomes: [[OK, DENIED, DENIED], [OK, DENIED, DENIED], [OK; 3]],
    },
    Row {
        method: "DecisionService/GetDecision",
        tried: |caller, tenant| caller.decision(&decision(tenant)).map(drop),
        outcomes: [[OK, NO_DECISION, NO_DECISION], [OK, NO_DECISION, NO_DECISION], [OK, OK, NO_DECISION]],
    },
    Row {
        method: "DecisionService/ListDecisions",
        tried: |caller, tenant| {
            let parent = format!("tenants/{tenant}");
            caller.decisions(v1::ListDecisionsRequest { parent, ..Default::default() }).map(drop)
        },
        outcomes: [[OK, DENIED, DENIED], [OK, DENIED, DENIED], [OK; 3]],
    },
    Row {
        method: "DecisionService/ReplayDecisions",
        tried: |caller, tenant| {
            use v1::replay_decisions_request::{Header, Part};
            let header = Header { plugin: format!("tenants/{tenant}/plugins/own"), ..Default::default() };
            let request = v1::ReplayDecisionsRequest { part: Some(Part::Header(header)) };
            done(wait(caller.decisions.clone().replay_decisions(tokio_stream::once(request))))
        },
        outcomes: [[NO_PLUGIN, DENIED, DENIED], [VIEWS; 3], [NO_PLUGIN; 3]],
    },
    Row {
        method: "DecisionService/VerifyDecisions",
        tried: |caller, tenant| caller.verify(&format!("tenants/{tenant}")).map(drop),
        outcomes: [[OK, DENIED, DENIED], [OK, DENIED, DENIED], [OK; 3]],
    },
    Row {
        method: "HostService/CheckHost",
        tried: |caller, _| done(wait(caller.host.clone().check_host(v1::CheckHostRequest {}))),
        outcomes: [[DENIED; 3], [DENIED; 3], [OK; 3]],
    },
    Row {
        method: "HostService/GetHostUsage",
        tried: |caller, _| done(wait(caller.host.clone().get_host_usage(v1::GetHostUsageRequest {}))),
        outcomes: [[DENIED; 3], [DENIED; 3], [OK; 3]],
    },
    Row {
        method: "HostService/ListHostDevices",
        tried: |caller, _| caller.devices().map(drop),
        outcomes: [[DENIED; 3], [DENIED; 3], [OK; 3]],
    },
    Row {
        method: "HostService/ProvisionNvmeController",
        tried: |caller, _| {
            let address = "0000:ff:1f.7".into();
            let request =
                v1::ProvisionNvmeControllerRequest { address, vfs: 1, validate_only: true, ..Default::default() };
            done(wait(caller.host.clone().provision_nvme_controller(request)))
        },
        outcomes: [[DENIED; 3], [VIEWS; 3], [DEVICE; 3]],
    },
    Row {
        method: "HostService/ReleaseHostDevice",
        tried: |caller, _| {
            let address = "0000:ff:1f.7".into();
            let request = v1::ReleaseHostDeviceRequest { address, validate_only: true, ..Default::default() };
            done(wait(caller.host.clone().release_host_device(request)))
        },
        outcomes: [[DENIED; 3], [VIEWS; 3], [DEVICE; 3]],
    },
    Row {
        method: "HostService/RepairHost",
        tried: |caller, _| {
            let request = v1::RepairHostRequest { validate_only: true, ..Default::default() };
            done(wait(caller.host.clone().repair_host(request)))
        },
        outcomes: [[DENIED; 3], [VIEWS; 3], [OK; 3]],
    },
    Row {
        method: "OperationService/CancelOperation",
        tried: |caller, tenant| caller.cancel(&operation(tenant)).map(drop),
        outcomes: [[ENDED, NO_OPERATION, NO_OPERATION], [VIEWS; 3], [ENDED, ENDED, NO_OPERATION]],
    },
    Row {
        method: "OperationService/GetOperation",
        tried: |caller, tenant| caller.operation(&operation(tenant)).map(drop),
        outcomes: [[OK, NO_OPERATION, NO_OPERATION], [OK, NO_OPERATION, NO_OPERATION], [OK, OK, NO_OPERATION]],
    },
    Row {
        method: "OperationService/ListOperations",
        tried: |caller, tenant| caller.operations(&format!("tenants/{tenant}"), "").map(drop),
        outcomes: [[OK, DENIED, DENIED], [OK, DENIED, DENIED], [OK; 3]],
    },
    Row {
        method: "OperationService/WaitOperation",
        tried: |caller, tenant| caller.wait_for(&operation(tenant), Duration::ZERO).map(drop),
        outcomes: [[OK, NO_OPERATION, NO_OPERATION], [OK, NO_OPERATION, NO_OPERATION], [OK, OK, NO_OPERATION]],
    },
    Row {
        method: "PluginService/ClearPluginKv",
        tried: |caller, tenant| {
            let name = format!("tenants/{tenant}/plugins/own");
            let request = v1::ClearPluginKvRequest { name, validate_only: true, ..Default::default() };
            done(wait(caller.plugins.clone().clear_plugin_kv(request)))
        },
        outcomes: [[NO_PLUGIN, DENIED, DENIED], [VIEWS; 3], [NO_PLUGIN; 3]],
    },
    Row {
        method: "PluginService/DeletePluginAlias",
        tried: |caller, tenant| {
            let name = format!("tenants/{tenant}/plugins/own");
            let alias = "stable".to_owned();
            let request = v1::DeletePluginAliasRequest { name, alias, validate_only: true, ..Default::default() };
            done(wait(caller.plugins.clone().delete_plugin_alias(request)))
        },
        outcomes: [[NO_PLUGIN, DENIED, DENIED], [VIEWS; 3], [NO_PLUGIN; 3]],
    },
    Row {
        method: "PluginService/EndPluginCanary",
        tried: |caller, tenant| {
            let (name, end) =
                (format!("tenants/{tenant}/plugins/own"), v1::end_plugin_canary_request::End::Drop.into());
            let request = v1::EndPluginCanaryRequest { name, end, validate_only: true, ..Default::default() };
            done(wait(caller.plugins.clone().end_plugin_canary(request)))
        },
        outcomes: [[NO_PLUGIN, DENIED, DENIED], [VIEWS; 3], [NO_PLUGIN; 3]],
    },
    Row {
        method: "PluginService/FollowPluginAlias",
        tried: |caller, tenant| {
            let name = format!("tenants/{tenant}/plugins/own");
            let alias = "stable".to_owned();
            let request = v1::FollowPluginAliasRequest { name, alias, validate_only: true, ..Default::default() };
            done(wait(caller.plugins.clone().follow_plugin_alias(request)))
        },
        outcomes: [[NO_PLUGIN, DENIED, DENIED], [VIEWS; 3], [NO_PLUGIN; 3]],
    },
    Row {
        method: "PluginService/GetPluginKv",
        tried: |caller, tenant| {
            let name = format!("tenants/{tenant}/plugins/own");
            done(wait(caller.plugins.clone().get_plugin_kv(v1::GetPluginKvRequest { name, ..Default::default() })))
        },
        outcomes: [[NO_PLUGIN, DENIED, DENIED], [NO_PLUGIN, DENIED, DENIED], [NO_PLUGIN; 3]],
    },
    Row {
        method: "PluginService/ListPlugins",
        tried: |caller, tenant| caller.plugins(&format!("tenants/{tenant}")).map(drop),
        outcomes: [[OK, DENIED, DENIED], [OK, DENIED, DENIED], [OK; 3]],
    },
    Row {
        method: "PluginService/LoadPlugin",
        tried: |caller, tenant| {
            use v1::load_plugin_request::{Header, Part};
            let name = format!("tenants/{tenant}/plugins/own");
            let header = Header { name, validate_only: true, ..Default::default() };
            let component = crate::support::assets::plugin("admission");
            let chunks = component.chunks(64 << 10).map(|chunk| Part::Chunk(chunk.to_vec()));
            caller.load_parts(std::iter::once(Part::Header(header)).chain(chunks).collect()).map(drop)
        },
        outcomes: [[OK, DENIED, DENIED], [VIEWS; 3], [OK; 3]],
    },
    Row {
        method: "PluginService/RollBackPlugin",
        tried: |caller, tenant| {
            let name = format!("tenants/{tenant}/plugins/own");
            let request = v1::RollBackPluginRequest { name, validate_only: true, ..Default::default() };
            done(wait(caller.plugins.clone().roll_back_plugin(request)))
        },
        outcomes: [[NO_PLUGIN, DENIED, DENIED], [VIEWS; 3], [NO_PLUGIN; 3]],
    },
    Row {
        method: "PluginService/SetPluginAlias",
        tried: |caller, tenant| {
            let name = format!("tenants/{tenant}/plugins/own");
            let alias = "stable".to_owned();
            let request = v1::SetPluginAliasRequest { name, alias, validate_only: true, ..Default::default() };
            done(wait(caller.plugins.clone().set_plugin_alias(request)))
        },
        outcomes: [[NO_PLUGIN, DENIED, DENIED], [VIEWS; 3], [NO_PLUGIN; 3]],
    },
    Row {
        method: "PluginService/SetPluginMode",
        tried: |caller, tenant| {
            let name = format!("tenants/{tenant}/plugins/own");
            let request = v1::SetPluginModeRequest { name, validate_only: true, ..Default::default() };
            done(wait(caller.plugins.clone().set_plugin_mode(request)))
        },
        outcomes: [[NO_PLUGIN, DENIED, DENIED], [VIEWS; 3], [NO_PLUGIN; 3]],
    },
    Row {
        method: "PluginService/UnloadPlugin",
        tried: |caller, tenant| {
            let name = format!("tenants/{tenant}/plugins/own");
            let request = v1::UnloadPluginRequest { name, validate_only: true, ..Default::default() };
            done(wait(caller.plugins.clone().unload_plugin(request)))
        },
        outcomes: [[NO_PLUGIN, DENIED, DENIED], [VIEWS; 3], [NO_PLUGIN; 3]],
    },
    Row {
        method: "TenantService/GetTenant",
        tried: |caller, tenant| caller.tenant(tenant).map(drop),
        outcomes: [[OK, NO_TENANT, NO_TENANT], [OK, NO_TENANT, NO_TENANT], [OK, OK, NO_TENANT]],
    },
    Row {
        method: "TenantService/ListTenants",
        tried: |caller, _| done(wait(caller.tenants.clone().list_tenants(v1::ListTenantsRequest::default()))),
        outcomes: [[OK; 3]; 3],
    },
    Row {
        method: "VirtualMachineService/AttachDevice",
        tried: |caller, tenant| {
            let disk = v1::DiskSpec { id: "data".into(), volume: "missing.img".into(), ..Default::default() };
            let request = v1::AttachDeviceRequest {
                name: vm(tenant),
                device: Some(v1::attach_device_request::Device::Disk(disk)),
                validate_only: true,
                ..Default::default()
            };
            done(wait(caller.vms.clone().attach_device(request)))
        },
        outcomes: [[FIELD, NO_VM, NO_VM], [VIEWS; 3], [FIELD, FIELD, NO_VM]],
    },
    Row {
        method: "VirtualMachineService/Console",
        tried: |caller, tenant| crate::support::console::Console::attach(caller, &vm(tenant)).end().1,
        outcomes: [[QUIET, NO_VM, NO_VM], [QUIET, NO_VM, NO_VM], [QUIET, QUIET, NO_VM]],
    },
    Row {
        method: "VirtualMachineService/DestroyVirtualMachine",
        tried: |caller, tenant| {
            let request =
                v1::DestroyVirtualMachineRequest { name: vm(tenant), validate_only: true, ..Default::default() };
            done(wait(caller.vms.clone().destroy_virtual_machine(request)))
        },
        outcomes: [[OK, NO_VM, NO_VM], [VIEWS; 3], [OK, OK, NO_VM]],
    },
    Row {
        method: "VirtualMachineService/DetachDevice",
        tried: |caller, tenant| {
            let (name, device_id) = (vm(tenant), "missing".into());
            let request = v1::DetachDeviceRequest { name, device_id, validate_only: true, ..Default::default() };
            done(wait(caller.vms.clone().detach_device(request)))
        },
        outcomes: [[NO_DEVICE, NO_VM, NO_VM], [VIEWS; 3], [NO_DEVICE, NO_DEVICE, NO_VM]],
    },
    Row {
        method: "VirtualMachineService/GetVirtualMachine",
        tried: |caller, tenant| caller.get(&vm(tenant)).map(drop),
        outcomes: [[OK, NO_VM, NO_VM], [OK, NO_VM, NO_VM], [OK, OK, NO_VM]],
    },
    Row {
        method: "VirtualMachineService/GetVirtualMachineStats",
        tried: |caller, tenant| caller.stats(&vm(tenant)).map(drop),
        outcomes: [[OK, NO_VM, NO_VM], [OK, NO_VM, NO_VM], [OK, OK, NO_VM]],
    },
    Row {
        method: "VirtualMachineService/InjectNmi",
        tried: |caller, tenant| {
            let request = v1::InjectNmiRequest { name: vm(tenant), validate_only: true, ..Default::default() };
            done(wait(caller.vms.clone().inject_nmi(request)))
        },
        outcomes: [[STATE, NO_VM, NO_VM], [VIEWS; 3], [STATE, STATE, NO_VM]],
    },
    Row {
        method: "VirtualMachineService/InspectVirtualMachineJail",
        tried: |caller, tenant| caller.inspect_jail(&vm(tenant)).map(drop),
        outcomes: [[STATE, NO_VM, NO_VM], [STATE, NO_VM, NO_VM], [STATE, STATE, NO_VM]],
    },
    Row {
        method: "VirtualMachineService/LimitVirtualMachineDevice",
        tried: |caller, tenant| {
            let request = v1::LimitVirtualMachineDeviceRequest {
                name: vm(tenant),
                device: "missing".into(),
                validate_only: true,
                ..Default::default()
            };
            done(wait(caller.vms.clone().limit_virtual_machine_device(request)))
        },
        outcomes: [[FIELD, NO_VM, NO_VM], [VIEWS; 3], [FIELD, FIELD, NO_VM]],
    },
    Row {
        method: "VirtualMachineService/ListVirtualMachineUsages",
        tried: |caller, tenant| caller.usages(&format!("tenants/{tenant}")).map(drop),
        outcomes: [[OK, DENIED, DENIED], [OK, DENIED, DENIED], [OK; 3]],
    },
    Row {
        method: "VirtualMachineService/ListVirtualMachines",
        tried: |caller, tenant| caller.list(&format!("tenants/{tenant}")).map(drop),
        outcomes: [[OK, DENIED, DENIED], [OK, DENIED, DENIED], [OK; 3]],
    },
    Row {
        method: "VirtualMachineService/PauseVirtualMachine",
        tried: |caller, tenant| {
            let request =
                v1::PauseVirtualMachineRequest { name: vm(tenant), validate_only: true, ..Default::default() };
            done(wait(caller.vms.clone().pause_virtual_machine(request)))
        },
        outcomes: [[STATE, NO_VM, NO_VM], [VIEWS; 3], [STATE, STATE, NO_VM]],
    },
    Row {
        method: "VirtualMachineService/PressPowerButton",
        tried: |caller, tenant| {
            let request = v1::PressPowerButtonRequest { name: vm(tenant), validate_only: true, ..Default::default() };
            done(wait(caller.vms.clone().press_power_button(request)))
        },
        outcomes: [[STATE, NO_VM, NO_VM], [VIEWS; 3], [STATE, STATE, NO_VM]],
    },
    Row {
        method: "VirtualMachineService/RebootVirtualMachine",
        tried: |caller, tenant| {
            let request =
                v1::RebootVirtualMachineRequest { name: vm(tenant), validate_only: true, ..Default::default() };
            done(wait(caller.vms.clone().reboot_virtual_machine(request)))
        },
        outcomes: [[STATE, NO_VM, NO_VM], [VIEWS; 3], [STATE, STATE, NO_VM]],
    },
    Row {
        method: "VirtualMachineService/RegisterVirtualMachine",
        tried: |caller, tenant| {
            let vm = v1::VirtualMachine { name: vm(tenant), spec: Some(small()), ..Default::default() };
            let virtual_machine = Some(vm);
            let request =
                v1::RegisterVirtualMachineRequest { virtual_machine, validate_only: true, ..Default::default() };
            done(wait(caller.vms.clone().register_virtual_machine(request)))
        },
        outcomes: [[TAKEN, DENIED, DENIED], [VIEWS; 3], [TAKEN, TAKEN, OK]],
    },
    Row {
        method: "VirtualMachineService/ResizeVirtualMachineDisk",
        tried: |caller, tenant| {
            let request = v1::ResizeVirtualMachineDiskRequest {
                name: vm(tenant),
                disk: "missing".into(),
                validate_only: true,
                ..Default::default()
            };
            done(wait(caller.vms.clone().resize_virtual_machine_disk(request)))
        },
        outcomes: [[FIELD, NO_VM, NO_VM], [VIEWS; 3], [FIELD, FIELD, NO_VM]],
    },
    Row {
        method: "VirtualMachineService/ResumeVirtualMachine",
        tried: |caller, tenant| {
            let request =
                v1::ResumeVirtualMachineRequest { name: vm(tenant), validate_only: true, ..Default::default() };
            done(wait(caller.vms.clone().resume_virtual_machine(request)))
        },
        outcomes: [[STATE, NO_VM, NO_VM], [VIEWS; 3], [STATE, STATE, NO_VM]],
    },
    Row {
        method: "VirtualMachineService/SetVirtualMachineBalloon",
        tried: |caller, tenant| {
            let request = v1::SetVirtualMachineBalloonRequest {
                name: vm(tenant),
                keep_mib: 128,
                validate_only: true,
                ..Default::default()
            };
            done(wait(caller.vms.clone().set_virtual_machine_balloon(request)))
        },
        outcomes: [[UNCHANGED, NO_VM, NO_VM], [VIEWS; 3], [UNCHANGED, UNCHANGED, NO_VM]],
    },
    Row {
        method: "VirtualMachineService/StartVirtualMachine",
        tried: |caller, tenant| {
            let request =
                v1::StartVirtualMachineRequest { name: vm(tenant), validate_only: true, ..Default::default() };
            done(wait(caller.vms.clone().start_virtual_machine(request)))
        },
        outcomes: [[OK, NO_VM, NO_VM], [VIEWS; 3], [OK, OK, NO_VM]],
    },
    Row {
        method: "VirtualMachineService/StopVirtualMachine",
        tried: |caller, tenant| {
            let request = v1::StopVirtualMachineRequest { name: vm(tenant), validate_only: true, ..Default::default() };
            done(wait(caller.vms.clone().stop_virtual_machine(request)))
        },
        outcomes: [[STATE, NO_VM, NO_VM], [VIEWS; 3], [STATE, STATE, NO_VM]],
    },
    Row {
        method: "VirtualMachineService/WatchVirtualMachines",
        tried: |caller, tenant| caller.watch(&format!("tenants/{tenant}")).map(drop),
        outcomes: [[OK, DENIED, DENIED], [OK, DENIED, DENIED], [OK; 3]],
    },
];

/// `OK`, or code and reason as the API names them.
fn shown(outcome: Result<(), Status>) -> String {
    let Err(status) = outcome else { return OK.to_owned() };
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    let code = match status.code() {
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        other => return format!("{other:?} {reason}: {}", status.message()),
    };
    format!("{code} {reason}")
}

/// The outcomes of a row for an identity of the table.
fn expected(row: &Row, identity: &str) -> [&'static str; 3] {
    let [admin, viewer, operator] = row.outcomes;
    match identity.split(',').next() {
        Some("admin") => admin,
        Some("viewer") => viewer,
        _ => operator,
    }
}

#[test]
fn every_call_is_in_the_table() {
    let described = prost_types::FileDescriptorSet::decode(v1::DESCRIPTORS).unwrap();
    let services = described.file.iter().filter(|file| file.package() == "ostler.v1").flat_map(|file| &file.service);
    let methods: BTreeSet<_> = services
        .flat_map(|service| service.method.iter().map(move |method| format!("{}/{}", service.name(), method.name())))
        .collect();
    let rows: BTreeSet<_> = ROWS.iter().map(|row| row.method.to_owned()).collect();
    assert_eq!(methods, rows, "left: proto/ostler/v1, right: ROWS of tests/matrix.rs");
}

#[test]
fn every_role_gets_what_the_table_says_on_own_anothers_and_missing() {
    let host = Host::start_with_tenants(MEMBERS);
    let missing = "tenants/nobody/operations/01M86QW9WBP2NZC87A485E1H8E".to_owned();
    OPERATIONS.set([prepare(&host, "acme"), prepare(&host, "globex"), missing]).unwrap();
    let ours = Authority::of(&host.certs());
    let mut wrong = Vec::new();
    for (name, id) in IDENTITIES {
        let identity = ours.issue(&Wish::for_uris(&[id]));
        let caller = Caller::new(connect(host.port(), &host.certs().join("ca.pem"), Some(identity)).unwrap(), "acme");
        for row in ROWS {
            for ((target, tenant), expected) in TARGETS.into_iter().zip(expected(row, name)) {
                let found = shown((row.tried)(&caller, tenant));
                if found != expected {
                    wrong.push(format!("{name} on {target}: {} gives {found}, not {expected}", row.method));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(host.operator().list("").unwrap().len(), 2, "something was changed");
}

#[test]
fn the_table_is_in_the_docs() {
    let mut text = String::from(
        "# Who may do what\n\nMade by `tests/matrix.rs`, which tries each of these calls; `cargo xtask test --program matrix` with\n\
         `OSTLER_BLESS=1` writes it anew. Identities of a tenant are those of one tenant; \"another's\" is a second one's,\n\
         \"missing\" what nobody has. Whoever has no certificate that names somebody gets UNAUTHENTICATED, or no connection.\n\n\
         | call | role | own | another's | missing |\n| --- | --- | --- | --- | --- |\n",
    );
    for row in ROWS {
        for (role, outcomes) in ["admin", "viewer", "operator"].into_iter().zip(row.outcomes) {
            let [own, anothers, missing] = outcomes;
            writeln!(text, "| {} | {role} | {own} | {anothers} | {missing} |", row.method).unwrap();
        }
    }
    is_in_docs("access.md", &text);
}

#[test]
fn the_reasons_of_errors_are_in_the_docs() {
    let mut text = String::from(
        "# Errors\n\nEvery error has a gRPC code and, in its details, `google.rpc.ErrorInfo` with the domain `ostler` and one of these\n\
         reasons, which stay as they are; `google.rpc.Help` says what to do. What varies stands in the metadata too. Made\n\
         from `src/api/reasons.rs` by `tests/matrix.rs`.\n\n| reason | code | when | what to do |\n| --- | --- | --- | --- |\n",
    );
    for reason in ostler::api::reasons::REASONS {
        writeln!(text, "| {} | {} | {} | {} |", reason.name, reason.codes, reason.meaning, reason.advice).unwrap();
    }
    is_in_docs("errors.md", &text);
}

/// Compares with the file in `docs/`, or writes it if that is asked for.
fn is_in_docs(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    if std::env::var_os("OSTLER_BLESS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, text, "{} is old: run this test with OSTLER_BLESS=1", path.display());
}
