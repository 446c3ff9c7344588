//! The same decision by a program beside the daemon: a call over gRPC on loopback, without TLS, whose server has the rules
//! as native code and the question already decoded. Less than that no policy server can take. Key type: [`Sidecar`].

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use ostler_policy::select_vf::SelectVfRequest;
use tonic::body::Body;
use tonic::codegen::http::{self, uri::PathAndQuery};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::beside::native;

/// Bytes as a message: the wrapper that Protocol Buffers has for them.
type Codec = ProstCodec<Vec<u8>, Vec<u8>>;

/// A client with its server.
pub struct Sidecar {
    client: tonic::client::Grpc<Channel>,
    /// As many bytes as the question has when it is encoded.
    question: Vec<u8>,
}

impl Sidecar {
    /// Starts both.
    pub async fn start(question: SelectVfRequest, encoded_len: usize) -> Result<Self, String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        tokio::spawn(Server::builder().add_service(Answers(question)).serve_with_incoming(incoming));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
        let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
        Ok(Self { client: tonic::client::Grpc::new(channel), question: vec![0x5a; encoded_len] })
    }

    /// Asks; the number of marks.
    pub async fn ask(&mut self) -> Result<usize, String> {
        self.client.ready().await.map_err(|error| error.to_string())?;
        let (question, path) = (Request::new(self.question.clone()), PathAndQuery::from_static("/bench.Policy/Decide"));
        let answer: Response<Vec<u8>> =
            self.client.unary(question, path, Codec::default()).await.map_err(|status| status.to_string())?;
        Ok(answer.into_inner().len() / 4)
    }
}

#[derive(Clone)]
struct Answers(SelectVfRequest);

impl NamedService for Answers {
    const NAME: &'static str = "bench.Policy";
}

impl Service<http::Request<Body>> for Answers {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answers = self.clone();
        Box::pin(async move { Ok(tonic::server::Grpc::new(Codec::default()).unary(answers, request).await) })
    }
}

impl UnaryService<Vec<u8>> for Answers {
    type Response = Vec<u8>;
    type Future = Ready<Result<Response<Vec<u8>>, Status>>;

    fn call(&mut self, _: Request<Vec<u8>>) -> Self::Future {
        ready(Ok(Response::new(vec![0; native(&self.0) * 4])))
    }
}
