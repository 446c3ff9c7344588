//! The daemon's door: gRPC over mutual TLS. Decodes, calls `service`, encodes; decides nothing.
//!
//! ```text
//!   listener ── accept ──▶ handshake (5 s, own task, capped) ──▶ Connection{caller} ──▶ tonic
//!   each call: caller from the connection ── own task (survives a client that hangs up; may panic alone) ──▶ service
//! ```

mod arrival;
mod audit;
mod call;
mod change;
mod console;
mod decision;
mod encode;
mod findings;
mod host;
mod jail;
mod list;
mod listener;
mod nvme;
mod operation;
mod plugin;
mod rate;
mod replay;
mod status;
mod tenant;
mod tls;
mod trace;
mod trust;
mod vm;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::InterceptorLayer;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::api::v1;
use crate::api::v1::decision_service_server::DecisionServiceServer;
use crate::api::v1::host_service_server::HostServiceServer;
use crate::api::v1::operation_service_server::OperationServiceServer;
use crate::api::v1::plugin_service_server::PluginServiceServer;
use crate::api::v1::tenant_service_server::TenantServiceServer;
use crate::api::v1::virtual_machine_service_server::VirtualMachineServiceServer;
use crate::daemon::service::SharedNode;
pub use audit::Audit;
use rate::Rates;
pub use tls::{TlsError, TlsFiles, Trust};

/// Longest request, in bytes: a spec is some kilobytes, a chunk of a plugin 64 KiB.
const MAX_REQUEST_LEN: usize = 256 << 10;
/// Longest response, in bytes: a list of some thousand VMs.
const MAX_RESPONSE_LEN: usize = 8 << 20;
/// Calls at the same time in one connection.
const MAX_STREAMS: u32 = 64;
/// Headers of one call, in bytes.
const MAX_HEADERS_LEN: u32 = 16 << 10;
/// A client that does not answer a ping of this interval …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// … within this time is gone.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long calls under way may take when the daemon ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Becomes true when the daemon shall end.
pub type Ending = watch::Receiver<bool>;

/// Why serving stopped or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// The HTTP/2 server.
    #[error("gRPC server failed")]
    Transport(#[from] tonic::transport::Error),
    /// The generated descriptors.
    #[error("cannot build the reflection service")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A service whose messages have their longest lengths.
macro_rules! bounded {
    ($server:ident, $service:expr) => {
        $server::new($service).max_decoding_message_size(MAX_REQUEST_LEN).max_encoding_message_size(MAX_RESPONSE_LEN)
    };
}

/// Serves `node` on `listener` until `ending`, then lets calls under way finish for some seconds. Begins with `trust`,
/// and follows the files that it comes from.
pub async fn serve(
    node: SharedNode,
    listener: TcpListener,
    (files, trust): (TlsFiles, Trust),
    audit: Audit,
    trust_domain: String,
    mut ending: Ending,
) -> Result<(), RpcError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<VirtualMachineServiceServer<vm::VmRpc>>().await;
    health.set_serving::<PluginServiceServer<plugin::PluginRpc>>().await;
    health.set_serving::<HostServiceServer<host::HostRpc>>().await;
    health.set_serving::<DecisionServiceServer<decision::DecisionRpc>>().await;
    health.set_serving::<TenantServiceServer<tenant::TenantRpc>>().await;
    health.set_serving::<OperationServiceServer<operation::OperationRpc>>().await;
    tokio::spawn(tell_usable(health.clone(), node.tenants().is_usable.clone()));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let audit = Arc::new(audit);
    let vms = vm::VmRpc::new(Arc::clone(&node), Arc::clone(&audit), ending.clone());
    let vms = bounded!(VirtualMachineServiceServer, vms);
    let hosts = bounded!(HostServiceServer, host::HostRpc::new(Arc::clone(&node), Arc::clone(&audit)));
    let decisions = bounded!(DecisionServiceServer, decision::DecisionRpc::new(Arc::clone(&node)));
    let tenants = bounded!(TenantServiceServer, tenant::TenantRpc::new(Arc::clone(&node)));
    let operations = operation::OperationRpc::new(Arc::clone(&node), Arc::clone(&audit));
    let operations = bounded!(OperationServiceServer, operations);
    let followed = node.tenants().clone();
    let plugins = bounded!(PluginServiceServer, plugin::PluginRpc::new(node, audit));

    let trusted = trust::follow(files, trust, health, ending.clone());
    let connections = listener::connections(listener, trusted, trust_domain, &followed, ending.clone());
    let rates = Arc::new(Rates::default());
    let mut drained = ending.clone();
    let server = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADERS_LEN)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(trace::TraceLayer)
        .layer(arrival::ArrivalLayer)
        .layer(InterceptorLayer::new(move |request| call::admit(request, &rates, &followed.tenants)))
        .add_service(vms)
        .add_service(plugins)
        .add_service(hosts)
        .add_service(decisions)
        .add_service(tenants)
        .add_service(operations)
        .add_service(health_service)
        .add_service(reflection)
        .serve_with_incoming_shutdown(connections, async move { ended(&mut ending).await });
    tokio::select! {
        result = server => Ok(result?),
        () = async {
            ended(&mut drained).await;
            tokio::time::sleep(DRAIN_TIMEOUT).await;
        } => {
            tracing::warn!("calls under way were cut off");
            Ok(())
        }
    }
}

/// Under this name the health service tells whether the tenants' file was usable when last looked at.
const TENANTS_HEALTH: &str = "ostler.tenants";

async fn tell_usable(health: HealthReporter, mut is_usable: watch::Receiver<bool>) {
    loop {
        let is_usable_now = *is_usable.borrow_and_update();
        let status = if is_usable_now { ServingStatus::Serving } else { ServingStatus::NotServing };
        health.set_service_status(TENANTS_HEALTH, status).await;
        if is_usable.changed().await.is_err() {
            return;
        }
    }
}

/// Returns when the daemon shall end.
async fn ended(ending: &mut Ending) {
    // A sender that is gone means the end too.
    let _ = ending.wait_for(|is_ending| *is_ending).await;
}
