//! What every call has in common: its caller, and a task of its own.

use std::future::Future;

use tonic::{Extensions, Request, Status};

use super::listener::Peer;
use super::status;
use crate::daemon::service::{Principal, ServiceError};

/// Refuses every call, of whatever service, whose connection has no caller.
#[allow(clippy::result_large_err, reason = "the interceptor's signature")]
pub(super) fn require_caller(request: Request<()>) -> Result<Request<()>, Status> {
    caller(request.extensions())?;
    Ok(request)
}

/// Who calls.
#[allow(clippy::result_large_err, reason = "tonic's error type, returned at once")]
pub(super) fn caller(extensions: &Extensions) -> Result<Principal, Status> {
    let Some(Peer(caller)) = extensions.get::<Peer>() else { return Err(status::nobody()) };
    caller.as_ref().clone().map_err(|error| status::unauthenticated(&error))
}

/// Runs a use case in a task of its own: it is done to its end even if the client hangs up, and a panic in it ends
/// nothing but this call.
pub(super) async fn in_own_task<T: Send + 'static>(
    work: impl Future<Output = Result<T, ServiceError>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(|error| status::of(&error)),
        Err(ended) if ended.is_panic() => Err(status::panicked()),
        Err(_cancelled) => Err(status::of(&ServiceError::Ending)),
    }
}
