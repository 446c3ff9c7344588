//! Gives every call its id: what the client says in `x-request-id`, or one of ours; the answer carries it too. Key type:
//! [`TraceLayer`].

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::codegen::http::{HeaderValue, Request, Response};
use tower::{Layer, Service};

use crate::daemon::trace::CallId;

/// Where it stands, in requests and answers.
const HEADER: &str = "x-request-id";

/// Puts [`Trace`] around a service.
#[derive(Debug, Clone, Copy)]
pub(super) struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace(inner)
    }
}

/// A service whose calls have ids.
#[derive(Debug, Clone)]
pub(super) struct Trace<S>(S);

impl<S, B, C> Service<Request<B>> for Trace<S>
where
    S: Service<Request<B>, Response = Response<C>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let id = CallId::new(request.headers().get(HEADER).and_then(|value| value.to_str().ok()));
        let answer = self.0.call(request);
        Box::pin(async move {
            let mut response = id.clone().scope(answer).await?;
            if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
                response.headers_mut().insert(HEADER, value);
            }
            Ok(response)
        })
    }
}
