//! Certificates, authorities and revocations, followed while the daemon serves. Key functions: [`follow`],
//! [`distrusted`].
//!
//! ```text
//!   files ── looked at each second ──▶ Trust ──▶ new handshakes
//!                                        └────▶ every open connection checks its client again, and is cut if it fails
//! ```
//!
//! Files that do not fit together change nothing: what was believed before stays, and the health service says
//! NOT_SERVING for [`HEALTH`] until they do.

use std::future::pending;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::tls::{TlsFiles, Trust};
use super::{Ending, ended};

/// How often the files are looked at. A connection of a revoked client is cut within it.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How often a connection's client is checked without a change: certificates and revocation lists expire.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// Under this name the health service tells whether the files were usable when last looked at.
pub(super) const HEALTH: &str = "ostler.certificates";

/// What is believed now, and when that changes.
pub(super) type Trusted = watch::Receiver<Arc<Trust>>;

/// Follows `files` until the daemon ends.
pub(super) fn follow(files: TlsFiles, first: Trust, health: HealthReporter, mut ending: Ending) -> Trusted {
    let (sender, trusted) = watch::channel(Arc::new(first));
    tokio::spawn(async move {
        health.set_service_status(HEALTH, ServingStatus::Serving).await;
        let mut seen = look(&files).await;
        loop {
            tokio::select! {
                () = ended(&mut ending) => return,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            let now = look(&files).await;
            if now == seen {
                continue;
            }
            seen = now;
            let had_revocations = sender.borrow().checks_revocation;
            let status = match load(&files, had_revocations).await {
                Ok(trust) => {
                    tracing::info!("certificates were read anew");
                    sender.send_replace(Arc::new(trust));
                    ServingStatus::Serving
                }
                Err(error) => {
                    tracing::error!(error, "certificates changed and are not usable; those from before stay in use");
                    ServingStatus::NotServing
                }
            };
            health.set_service_status(HEALTH, status).await;
        }
    });
    trusted
}

/// Returns when the client that showed `chain` would not get in any more.
pub(super) async fn distrusted(chain: Vec<CertificateDer<'static>>, mut trusted: Trusted) {
    loop {
        tokio::select! {
            changed = trusted.changed() => if changed.is_err() {
                // Nobody follows the files any more: the daemon ends.
                return pending().await;
            },
            () = tokio::time::sleep(CHECK_INTERVAL) => {}
        }
        let trust = Arc::clone(&trusted.borrow_and_update());
        if let Err(error) = trust.check(&chain) {
            tracing::info!(%error, "connection cut: its client is not trusted any more");
            return;
        }
    }
}

async fn load(files: &TlsFiles, had_revocations: bool) -> Result<Trust, String> {
    let files = files.clone();
    let loaded = tokio::task::spawn_blocking(move || Trust::load(&files)).await;
    let trust =
        loaded.map_err(|error| error.to_string())?.map_err(|error| match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        })?;
    if had_revocations && !trust.checks_revocation {
        return Err("the revocation list is gone; restart the daemon if nothing is revoked any more".into());
    }
    Ok(trust)
}

/// Tells one state of the files from another: a file that is replaced gets another inode, one that is written another
/// time or length.
type Seen = Vec<Option<(u64, u64, i64, i64)>>;

async fn look(files: &TlsFiles) -> Seen {
    let files = files.clone();
    let file = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
    };
    let seen = tokio::task::spawn_blocking(move || files.all().iter().map(|(_, path)| file(path)).collect()).await;
    seen.unwrap_or_default()
}
