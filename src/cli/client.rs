//! A gRPC connection to the daemon over TLS 1.3, with the caller's certificate. Key type: [`Client`].
//!
//! The TLS connector is the client's own, so that a refused certificate is told apart from a daemon that is not there.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status};
use tower::service_fn;

use crate::api::v1::decision_service_client::DecisionServiceClient;
use crate::api::v1::host_service_client::HostServiceClient;
use crate::api::v1::operation_service_client::OperationServiceClient;
use crate::api::v1::plugin_service_client::PluginServiceClient;
use crate::api::v1::tenant_service_client::TenantServiceClient;
use crate::api::v1::virtual_machine_service_client::VirtualMachineServiceClient;

use super::args::{GlobalArgs, Output};
use super::failure::{Exit, Failure, transport};
use super::identity::{Caller, Identity};

/// TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A quiet connection is probed this often, so that a watch notices a daemon that is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Longest answer, in bytes: a list of some ten thousand VMs.
const MAX_ANSWER_LEN: usize = 64 << 20;
/// When progress is first shown.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connected caller.
#[derive(Debug)]
pub(crate) struct Client {
    /// VMs.
    pub(crate) vms: VirtualMachineServiceClient<Channel>,
    /// Plugins.
    pub(crate) plugins: PluginServiceClient<Channel>,
    /// Decisions on record.
    pub(crate) decisions: DecisionServiceClient<Channel>,
    /// Tenants.
    pub(crate) tenants: TenantServiceClient<Channel>,
    /// What is under way.
    pub(crate) operations: OperationServiceClient<Channel>,
    /// The node.
    pub(crate) host: HostServiceClient<Channel>,
    /// Whom the certificate names.
    pub(crate) caller: Caller,
    /// How results are printed.
    pub(crate) output: Output,
}

impl Client {
    /// Reads the identity and connects.
    pub(crate) async fn connect(arguments: &GlobalArgs) -> Result<Self, Failure> {
        let endpoint = Address::parse(&arguments.endpoint)?;
        let identity = Identity::load(arguments)?;
        let caller = identity.caller.clone();
        let channel = channel(&endpoint, identity).await.map_err(|mut failure| {
            failure.message = format!("{}: {}", arguments.endpoint, failure.message);
            failure
        })?;
        Ok(Self {
            vms: VirtualMachineServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER_LEN),
            tenants: TenantServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER_LEN),
            operations: OperationServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER_LEN),
            host: HostServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER_LEN),
            decisions: DecisionServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER_LEN),
            plugins: PluginServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_LEN),
            caller,
            output: arguments.output,
        })
    }
}

/// Where the daemon listens.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// Reads `https://host:port`; the scheme may be left out.
    fn parse(text: &str) -> Result<Self, Failure> {
        let refuse = |why: &str| {
            Failure::new(Exit::Usage, format!("--endpoint {text:?} {why}")).hint("write https://127.0.0.1:7800")
        };
        if text.starts_with("http://") {
            return Err(refuse("is not encrypted: the daemon speaks TLS only"));
        }
        let rest = text.strip_prefix("https://").unwrap_or(text);
        let uri: Uri = format!("https://{rest}").parse().map_err(|_| refuse("is not an address"))?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| refuse("names no host"))?;
        let port = uri.port_u16().ok_or_else(|| refuse("names no port"))?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(refuse("has a path"));
        }
        Ok(Self { host: host.trim_matches(['[', ']']).to_owned(), port })
    }

    fn uri(&self, scheme: &str) -> Result<Uri, Failure> {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{scheme}://{host}:{}", self.port)
            .parse()
            .map_err(|_| Failure::new(Exit::Usage, format!("{host:?} is not a host name")))
    }
}

async fn channel(address: &Address, identity: Identity) -> Result<Channel, Failure> {
    let tls = TlsConnector::from(Arc::new(tls_config(identity)?));
    let name = ServerName::try_from(address.host.clone())
        .map_err(|_| Failure::new(Exit::Usage, format!("{:?} is not a host name", address.host)))?;
    let target = (address.host.clone(), address.port);
    // tonic sees a plain connection: encryption happens in the connector below it.
    let endpoint = Endpoint::from(address.uri("http")?)
        .origin(address.uri("https")?)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let connector = service_fn(move |_: Uri| {
        let (tls, name, target) = (tls.clone(), name.clone(), target.clone());
        async move {
            let handshake = async {
                let stream = TcpStream::connect(target).await?;
                stream.set_nodelay(true)?;
                let mut stream = tls.connect(name, stream).await?;
                await_verdict(&mut stream).await?;
                Ok::<_, io::Error>(stream)
            };
            tokio::time::timeout(CONNECT_TIMEOUT, handshake).await?.map(TokioIo::new)
        }
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| transport(&error))
}

/// Waits until the daemon has spoken. In TLS 1.3 a client's handshake ends before the daemon has judged its certificate
/// (RFC 8446 §2); what comes next is HTTP/2's SETTINGS (RFC 9113 §3.4), or the alert that says what is wrong with it.
async fn await_verdict(stream: &mut TlsStream<TcpStream>) -> io::Result<()> {
    let (tcp, tls) = stream.get_mut();
    loop {
        tcp.readable().await?;
        match tls.read_tls(&mut Ready(tcp)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        let state = tls.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if state.plaintext_bytes_to_read() > 0 {
            return Ok(());
        }
        if state.peer_has_closed() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// What has arrived on a socket, for rustls.
struct Ready<'a>(&'a TcpStream);

impl io::Read for Ready<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

pub(crate) fn tls_config(identity: Identity) -> Result<rustls::ClientConfig, Failure> {
    let bad = |error: rustls::Error| {
        Failure::new(Exit::Usage, format!("identity is not usable: {error}"))
            .hint("do PREFIX.pem and PREFIX.key of --identity belong together?")
    };
    let mut roots = rustls::RootCertStore::empty();
    for root in identity.roots {
        roots.add(root).map_err(bad)?;
    }
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(bad)?
        .with_root_certificates(roots)
        .with_client_auth_cert(identity.chain, identity.key)
        .map_err(bad)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// A request with a deadline that the daemon sees too.
pub(crate) fn within<T>(limit: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

/// Awaits a call's answer; from [`PATIENCE`] on a line on stderr says what is being waited for, if people read it.
pub(crate) async fn patiently<T>(
    doing: impl Display,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failure> {
    let begin = tokio::time::Instant::now();
    let is_shown = std::io::stderr().is_terminal();
    let mut ticks = tokio::time::interval_at(begin + PATIENCE, Duration::from_secs(1));
    let mut call = std::pin::pin!(call);
    let answer = loop {
        tokio::select! {
            answer = &mut call => break answer,
            _ = ticks.tick(), if is_shown => {
                let _ = write!(std::io::stderr(), "\r{doing} … {} s", begin.elapsed().as_secs());
            }
        }
    };
    if is_shown && begin.elapsed() >= PATIENCE {
        // CSI K (ECMA-48 §8.3.41) erases the progress line.
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    Ok(answer?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_endpoints_with_or_without_their_scheme() {
        let address = |host: &str, port| Address { host: host.to_owned(), port };
        assert_eq!(Address::parse("https://127.0.0.1:7800").unwrap(), address("127.0.0.1", 7800));
        assert_eq!(Address::parse("node-1.example:443/").unwrap(), address("node-1.example", 443));
        let v6 = Address::parse("https://[::1]:7800").unwrap();
        assert_eq!(v6, address("::1", 7800));
        assert_eq!(v6.uri("https").unwrap().to_string(), "https://[::1]:7800/");
    }

    #[test]
    fn refuses_endpoints_that_are_not_encrypted_or_incomplete() {
        for text in ["http://127.0.0.1:7800", "", "https://", "https://host", "host:99999", "https://h:1/path", "a b:1"]
        {
            let failure = Address::parse(text).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage, "{text}");
            assert!(failure.hint.is_some());
        }
    }
}
