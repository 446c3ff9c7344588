//! What every call has in common: its caller, how many there may be, and a task of its own. Key function: [`admit`].

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tonic::{Extensions, Request, Status};

use super::listener::Peer;
use super::rate::Rates;
use super::status;
use crate::daemon::service::{Identity, ServiceError, Tenants};
use crate::daemon::trace;

/// Longest that a call which only reads may take.
const READ_LIMIT: Duration = Duration::from_secs(60);

/// Refuses every call, of whatever service, whose connection has no caller, or whose caller has made too many.
#[allow(clippy::result_large_err, reason = "the interceptor's signature")]
pub(super) fn admit(
    request: Request<()>,
    rates: &Rates,
    tenants: &watch::Receiver<Arc<Tenants>>,
) -> Result<Request<()>, Status> {
    let identity = caller(request.extensions())?;
    let limits = tenants.borrow().limits;
    rates.take(&identity, limits, Instant::now()).map_err(|wait| status::too_fast(limits, wait))?;
    Ok(request)
}

/// Who calls.
#[allow(clippy::result_large_err, reason = "tonic's error type, returned at once")]
pub(super) fn caller(extensions: &Extensions) -> Result<Identity, Status> {
    let Some(Peer(caller)) = extensions.get::<Peer>() else { return Err(status::nobody()) };
    caller.as_ref().clone().map_err(|refusal| status::refused(&refusal))
}

/// Runs a use case that reads in a task of its own: a panic in it ends nothing but this call.
pub(super) async fn in_own_task<T: Send + 'static>(
    work: impl Future<Output = Result<T, ServiceError>> + Send + 'static,
) -> Result<T, Status> {
    within(READ_LIMIT, async { finished(trace::spawn(work).await) }).await
}

/// What came of a use case's own task.
#[allow(clippy::result_large_err, reason = "tonic's error type, returned at once")]
pub(super) fn finished<T>(ended: Result<Result<T, ServiceError>, tokio::task::JoinError>) -> Result<T, Status> {
    match ended {
        Ok(result) => result.map_err(|error| status::of(&error)),
        Err(ended) if ended.is_panic() => Err(status::panicked()),
        Err(_cancelled) => Err(status::of(&ServiceError::Ending)),
    }
}

/// The answer, or what is said if there is none within `limit`.
pub(super) async fn within<T>(limit: Duration, answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(limit, answer).await.unwrap_or_else(|_elapsed| Err(status::too_long(limit)))
}
