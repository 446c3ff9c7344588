//! Follows the file while the daemon serves. Key function: [`follow`].

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Tenants;

/// How often the file is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {path}: {reason}")]
pub struct TenantsFileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// What the file says now, and whether it could be read when last looked at.
#[derive(Debug, Clone)]
pub struct Followed {
    /// What is in force.
    pub tenants: watch::Receiver<Arc<Tenants>>,
    /// False while the file is not usable: what was in force before still is.
    pub is_usable: watch::Receiver<bool>,
}

/// Reads the file at `path`, which need not exist, and follows it for as long as somebody looks at the result. One that
/// cannot be used, or has gone, changes nothing.
pub fn follow(path: &Path) -> Result<Followed, TenantsFileError> {
    let mut seen = look(path);
    let first = match seen {
        None => Tenants::default(),
        Some(_) => read(path)?,
    };
    let (sender, tenants) = watch::channel(Arc::new(first));
    let (usable, is_usable) = watch::channel(true);
    let path = path.to_owned();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = sender.closed() => return,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            let now = look(&path);
            if now == seen {
                continue;
            }
            seen = now;
            match read(&path) {
                Ok(tenants) => {
                    tracing::info!("tenants were read anew");
                    sender.send_replace(Arc::new(tenants));
                    usable.send_replace(true);
                }
                Err(error) => {
                    tracing::error!(%error, "the tenants' file changed and is not usable; what was in force before stays");
                    usable.send_replace(false);
                }
            }
        }
    });
    Ok(Followed { tenants, is_usable })
}

fn read(path: &Path) -> Result<Tenants, TenantsFileError> {
    let unusable = |reason: String| TenantsFileError { path: path.to_owned(), reason };
    // A few kilobytes, once per change: not worth a thread of its own.
    let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    Tenants::parse(&text).map_err(unusable)
}

/// Tells one state of the file from another; `None`: it is not there.
fn look(path: &Path) -> Option<(u64, u64, i64, i64)> {
    let found: io::Result<_> = std::fs::metadata(path);
    found.ok().map(|found| (found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}
