//! The control plane: decides, remembers, launches. Async; one task per VM.
//!
//! Key functions: [`serve`], the role's entry. Layers, each importing only what is below it:
//!
//! ```text
//!   rpc       gRPC and TLS: decode, call, encode
//!   metrics   the same numbers for a scraper
//!   service   use cases: the order of things, and who may
//!   authn · policy · inventory · hostdev · store · supervisor      know nothing of each other
//!   record · files · trace · operation · config · crash               the daemon's own vocabulary
//! ```

pub mod authn;
mod config;
pub mod crash;
pub mod files;
pub mod hostdev;
pub mod inventory;
mod metrics;
pub mod operation;
pub mod policy;
pub mod record;
mod rpc;
mod service;
mod store;
mod supervisor;
pub mod tenants;
mod trace;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

pub use config::{PlacesError, ServeConfig};
pub use inventory::{Network, NetworkError};
pub use rpc::{RpcError, TlsError};
pub use service::{BootError, JailConfig};

use crate::sys::heap;

/// Why a daemon does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its directories.
    #[error(transparent)]
    Places(#[from] PlacesError),
    /// Its certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// What it finds there.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Its address.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Its metrics.
    #[error(
        "metrics at {0} would show every tenant's VMs to whoever connects; choose a loopback address, or say \
         --metrics-public"
    )]
    PublicMetrics(SocketAddr),
    /// Its audit log.
    #[error("cannot open the audit log {path}")]
    Audit {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Signals.
    #[error("cannot receive signals")]
    Signals(#[source] io::Error),
    /// The server.
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

/// What holds for the process as a whole. To be called before its first thread.
pub fn prepare_process() {
    heap::keep_together();
}

/// Serves until SIGTERM or SIGINT; VMs keep running after it.
pub async fn serve(config: ServeConfig) -> Result<(), ServeError> {
    let (ending, is_ending) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("ending; VMs keep running");
        ending.send_replace(true);
    });
    serve_until(config, is_ending, |address| tracing::info!(%address, "serving")).await
}

/// Serves until `ending` becomes true. `ready` gets the address once clients can connect.
async fn serve_until(
    config: ServeConfig,
    ending: rpc::Ending,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let files = config.tls_files();
    let trust = rpc::Trust::load(&files)?;
    let (places, _lock) = config.claim()?;
    let path = places.data.join("audit.log");
    let audit = rpc::Audit::open(&path).map_err(|source| ServeError::Audit { path, source })?;
    let listen_error = |source| ServeError::Listen { address: config.listen, source };
    // Bound before VMs are taken over (a taken port is told at once), served after.
    let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
    let scraped = match config.metrics {
        None => None,
        Some(address) if !metrics::is_allowed(address, config.has_public_metrics) => {
            return Err(ServeError::PublicMetrics(address));
        }
        Some(address) => {
            let bound = TcpListener::bind(address).await;
            Some(bound.map_err(|source| ServeError::Listen { address, source })?)
        }
    };
    let node = Arc::new(service::Node::open(&places, config.network, config.jail.as_ref()).await?);
    ready(listener.local_addr().map_err(listen_error)?);
    let scraped = scraped.map(|listener| tokio::spawn(metrics::serve(Arc::clone(&node), listener)));
    let served = rpc::serve(Arc::clone(&node), listener, (files, trust), audit, config.trust_domain, ending).await;
    if let Some(task) = scraped {
        task.abort();
    }
    node.close().await;
    Ok(served?)
}

#[cfg(test)]
mod tests;
