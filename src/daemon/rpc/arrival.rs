//! Requests that do not arrive, or not as messages: each has its own reason. Key type: [`ArrivalLayer`].
//!
//! A request that begins and does not end would hold its stream for as long as its client answers pings; one that cannot
//! be decoded is refused below our own code, with a code that blames the daemon and no details. Both are put right here.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::{MAX_REQUEST_LEN, status};

/// How long a request may take to arrive.
const LIMITS: Limits = Limits { silence: Duration::from_secs(20), whole: Duration::from_secs(120) };

/// Calls whose clients may be silent for as long as they like: they speak when somebody types, or asks.
const CONVERSATIONS: [&str; 2] = ["/ostler.v1.VirtualMachineService/Console", "/grpc.reflection."];

/// gRPC's field for what an error carries (google.rpc.Status): ours all have it.
const DETAILS: &str = "grpc-status-details-bin";

/// Puts [`Arrival`] around a service.
#[derive(Debug, Clone, Copy)]
pub(super) struct ArrivalLayer;

impl<S> Layer<S> for ArrivalLayer {
    type Service = Arrival<S>;

    fn layer(&self, inner: S) -> Arrival<S> {
        Arrival(inner)
    }
}

/// A service whose requests arrive in time or not at all.
#[derive(Debug, Clone)]
pub(super) struct Arrival<S>(S);

impl<S, C> Service<Request<Body>> for Arrival<S>
where
    S: Service<Request<Body>, Response = Response<C>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_conversation = CONVERSATIONS.iter().any(|call| request.uri().path().starts_with(call));
        let request = if is_conversation { request } else { request.map(|body| Body::new(Awaited::new(body, LIMITS))) };
        let answer = self.0.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            if let Some(explained) = Status::from_header_map(response.headers()).and_then(|status| explained(&status))
                && !response.headers().contains_key(DETAILS)
            {
                // A status without details fits into any header, this one's too.
                let _ = explained.add_header(response.headers_mut());
            }
            Ok(response)
        })
    }
}

/// What an error that comes without details means: the server's own library judged the request.
fn explained(status: &Status) -> Option<Status> {
    match status.code() {
        Code::OutOfRange => Some(status::too_long_message(MAX_REQUEST_LEN)),
        Code::Internal => Some(status::no_message(status.message())),
        Code::Unimplemented => Some(status::no_such_call()),
        _ => None,
    }
}

/// Longest silence within a request, and longest that all of it may take.
#[derive(Debug, Clone, Copy)]
struct Limits {
    silence: Duration,
    whole: Duration,
}

/// A request's body that ends with an error when its client does not go on.
struct Awaited {
    body: Body,
    limits: Limits,
    /// Made when the body is first waited for: most are there at once.
    waiting: Option<Waiting>,
}

struct Waiting {
    silence: Pin<Box<Sleep>>,
    end: Instant,
}

impl Awaited {
    fn new(body: Body, limits: Limits) -> Self {
        Self { body, limits, waiting: None }
    }
}

impl HttpBody for Awaited {
    type Data = <Body as HttpBody>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        let Self { body, limits, waiting } = &mut *self;
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(context) {
            if let Some(Waiting { silence, end }) = waiting {
                silence.as_mut().reset((Instant::now() + limits.silence).min(*end));
            }
            return Poll::Ready(frame);
        }
        let Waiting { silence, end } = waiting.get_or_insert_with(|| {
            let now = Instant::now();
            Waiting { silence: Box::pin(tokio::time::sleep_until(now + limits.silence)), end: now + limits.whole }
        });
        ready!(silence.as_mut().poll(context));
        let limit = if Instant::now() >= *end { limits.whole } else { limits.silence };
        Poll::Ready(Some(Err(status::stalled(limit))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::StatusExt;

    fn reason(status: &Status) -> String {
        status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
    }

    #[test]
    fn what_the_library_refuses_is_the_callers_fault_and_says_why() {
        let explained = |status: Status| explained(&status).map(|status| (status.code(), reason(&status)));
        let undecoded = explained(Status::internal("failed to decode"));
        assert_eq!(undecoded, Some((Code::InvalidArgument, "BAD_MESSAGE".to_owned())));
        let long = explained(Status::out_of_range("too large"));
        assert_eq!(long, Some((Code::InvalidArgument, "MESSAGE_TOO_LONG".to_owned())));
        assert_eq!(explained(Status::unimplemented("")), Some((Code::Unimplemented, "NO_SUCH_CALL".to_owned())));
        assert_eq!(explained(Status::not_found("")), None);
    }

    /// A body of which nothing comes, or a frame each time it is asked again after `every`.
    struct Slow {
        every: Option<Duration>,
        next: Option<Pin<Box<Sleep>>>,
    }

    impl HttpBody for Slow {
        type Data = <Body as HttpBody>::Data;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
            let Some(every) = self.every else { return Poll::Pending };
            let next = self.next.get_or_insert_with(|| Box::pin(tokio::time::sleep(every)));
            ready!(next.as_mut().poll(context));
            self.next = None;
            Poll::Ready(Some(Ok(Frame::data(Default::default()))))
        }
    }

    /// With what a body ends.
    fn end(every: Option<Duration>, limits: Limits) -> (Code, String) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut body = Awaited::new(Body::new(Slow { every, next: None }), limits);
            loop {
                let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
                if let Err(status) = frame.expect("it has no end") {
                    return (status.code(), reason(&status));
                }
            }
        })
    }

    #[test]
    fn silence_ends_a_request_and_so_does_dripping() {
        let (short, never) = (Duration::from_millis(20), Duration::from_secs(3600));
        let stalled = (Code::DeadlineExceeded, "REQUEST_STALLED".to_owned());
        assert_eq!(end(None, Limits { silence: short, whole: never }), stalled);
        let drop = Some(Duration::from_millis(1));
        assert_eq!(end(drop, Limits { silence: never, whole: short }), stalled);
    }
}
