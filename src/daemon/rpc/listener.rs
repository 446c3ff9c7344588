//! Accepts connections and shakes hands, without letting anybody hold up the others. Key type: [`Connection`].

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::tls::ALPN;
use super::trust::{Trusted, distrusted};
use super::{Ending, ended};
use crate::daemon::service::{AuthnError, Followed, Identity, Tenants, spiffe_id};

/// Handshakes at the same time, from anybody; for one more, the oldest is given up.
const MAX_HANDSHAKES: usize = 64;
/// How long one may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections at the same time.
const MAX_CONNECTIONS: usize = 256;
/// Connections beyond what one identity may have, from anybody, on which that is told …
const MAX_TOLD: usize = 16;
/// … for so long.
const TOLD_TIME: Duration = Duration::from_secs(2);
/// Between two lines of the log about connections that were refused: whoever opens thousands shall not fill it.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// Pause after accept(2) failed (out of descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who is at the other end, or why it is not served.
pub(super) type Caller = Result<Identity, Refusal>;

/// Why every call of a connection is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The certificate names nobody.
    Nobody(AuthnError),
    /// The identity has as many connections as it may.
    TooManyConnections {
        /// So many.
        limit: usize,
    },
}

/// A connection whose client certificate was verified, and is again whenever what the daemon believes changes.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    caller: Arc<Caller>,
    /// When the connection ends from this side; `None` once it has come true.
    cut: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    _place: OwnedSemaphorePermit,
    _share: Option<Share>,
    _told: Option<OwnedSemaphorePermit>,
}

/// What each request of a connection finds among its extensions.
#[derive(Debug, Clone)]
pub(super) struct Peer(pub(super) Arc<Caller>);

/// Accepts on `listener` until `ending`; the stream gives what shook hands.
pub(super) fn connections(
    listener: TcpListener,
    trusted: Trusted,
    trust_domain: String,
    tenants: &Followed,
    mut ending: Ending,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(1);
    let door = Arc::new(Door {
        trusted,
        trust_domain,
        tenants: tenants.tenants.clone(),
        places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        told: Arc::new(Semaphore::new(MAX_TOLD)),
        shares: Shares::default(),
    });
    let handshakes = Handshakes::default();
    let refused = Arc::new(Refused::default());
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = ended(&mut ending) => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, address)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let (door, ready, refused) = (Arc::clone(&door), ready.clone(), Arc::clone(&refused));
            let (place, given_up) = handshakes.begin();
            tokio::spawn(async move {
                let shaken = tokio::select! {
                    shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, door.shake_hands(stream)) => shaken,
                    _ = given_up => return refused.tell(address, &"oldest of too many handshakes"),
                };
                drop(place);
                match shaken {
                    // Nobody takes connections any more: the daemon ends.
                    Ok(Ok(connection)) => drop(ready.send(Ok(connection)).await),
                    Ok(Err(error)) => refused.tell(address, &error),
                    Err(_elapsed) => refused.tell(address, &"handshake takes too long"),
                }
            });
        }
    });
    ReceiverStream::new(connections)
}

/// Handshakes under way. A handle: clones share the table.
///
/// Who connects and says nothing holds a place only until others need it: a client that means it is done in
/// milliseconds, long before it is the oldest.
#[derive(Debug, Clone, Default)]
struct Handshakes {
    /// Rank: leaf. Held for an update only.
    going: Arc<Mutex<Going>>,
}

#[derive(Debug, Default)]
struct Going {
    next: u64,
    /// By number, so oldest first; one whose sender goes is given up.
    places: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A handshake's place, until it is dropped or given up.
struct Place {
    handshakes: Handshakes,
    number: u64,
}

impl Handshakes {
    /// A place for one more, and what resolves when it is given up.
    fn begin(&self) -> (Place, oneshot::Receiver<()>) {
        let (keep, given_up) = oneshot::channel();
        let mut going = self.going.lock().unwrap_or_else(PoisonError::into_inner);
        if going.places.len() >= MAX_HANDSHAKES {
            going.places.pop_first();
        }
        let number = going.next;
        going.next += 1;
        going.places.insert(number, keep);
        (Place { handshakes: self.clone(), number }, given_up)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.handshakes.going.lock().unwrap_or_else(PoisonError::into_inner).places.remove(&self.number);
    }
}

/// Connections that were refused, for the log.
#[derive(Debug, Default)]
struct Refused {
    /// Rank: leaf. When it was last told, and how many were not since; held for an update only.
    told: Mutex<(Option<Instant>, u64)>,
}

impl Refused {
    /// Logs a refusal, unless one has just been; the next line says how many were left out.
    fn tell(&self, address: SocketAddr, why: &dyn Display) {
        if let Some(unsaid) = self.take(Instant::now()) {
            tracing::info!(%address, %why, others = unsaid, "connection refused");
        }
    }

    /// How many were left out, if one is to be told now.
    fn take(&self, now: Instant) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.0.is_some_and(|last| now.saturating_duration_since(last) < REFUSED_PAUSE) {
            told.1 += 1;
            return None;
        }
        told.0 = Some(now);
        Some(std::mem::take(&mut told.1))
    }
}

struct Door {
    trusted: Trusted,
    trust_domain: String,
    tenants: watch::Receiver<Arc<Tenants>>,
    places: Arc<Semaphore>,
    told: Arc<Semaphore>,
    shares: Shares,
}

impl Door {
    async fn shake_hands(&self, stream: TcpStream) -> io::Result<Connection> {
        let refuse = |why: &str| Err(io::Error::other(why));
        stream.set_nodelay(true)?;
        // Taken before the handshake, so that a change during it is not missed.
        let mut trusted = self.trusted.clone();
        let config = Arc::clone(&trusted.borrow_and_update().config);
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(ALPN) {
            return refuse("client does not speak HTTP/2");
        }
        let Some(chain @ [leaf, ..]) = session.peer_certificates() else {
            return refuse("client shows no certificate");
        };
        let mut tenants = self.tenants.clone();
        let (id, now) = (spiffe_id(leaf), Arc::clone(&tenants.borrow_and_update()));
        let named = id.clone().and_then(|id| now.identify(&id, &self.trust_domain));
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return refuse("too many connections");
        };
        let limit = now.limits.connections;
        let (caller, share, told) = match named.clone() {
            Ok(identity) => match (self.shares.take(&identity, limit), Arc::clone(&self.told).try_acquire_owned()) {
                (Some(share), _) => (Ok(identity), Some(share), None),
                (None, Ok(told)) => (Err(Refusal::TooManyConnections { limit }), None, Some(told)),
                (None, Err(_)) => return refuse("too many connections of one caller"),
            },
            // Kept, to tell the client in its own protocol what is wrong with its certificate.
            Err(error) => (Err(Refusal::Nobody(error)), None, None),
        };
        let (is_told, trust_domain) = (told.is_some(), self.trust_domain.clone());
        let cut = async move {
            tokio::select! {
                () = distrusted(chain, trusted) => {}
                () = renamed(id, named, tenants, trust_domain) => {}
                () = tokio::time::sleep(TOLD_TIME), if is_told => {}
            }
        };
        let cut = Some(Box::pin(cut) as Pin<Box<_>>);
        Ok(Connection { stream, caller: Arc::new(caller), cut, _place: place, _share: share, _told: told })
    }
}

/// Returns when the id names another one than it `named`.
async fn renamed(
    id: Result<String, AuthnError>,
    named: Result<Identity, AuthnError>,
    mut tenants: watch::Receiver<Arc<Tenants>>,
    trust_domain: String,
) {
    let Ok(id) = id else { return std::future::pending().await };
    while tenants.changed().await.is_ok() {
        let now = tenants.borrow_and_update().identify(&id, &trust_domain);
        if now != named {
            tracing::info!(id, "connection cut: its client has become somebody else");
            return;
        }
    }
    // Nobody follows the file any more: the daemon ends.
    std::future::pending().await
}

/// Connections by caller. A handle: clones share the table.
#[derive(Debug, Clone, Default)]
struct Shares {
    /// Rank: leaf. Guards the counts; held for an update only.
    counts: Arc<Mutex<HashMap<Identity, usize>>>,
}

/// One connection's part in its caller's count.
struct Share {
    shares: Shares,
    identity: Identity,
}

impl Shares {
    fn take(&self, identity: &Identity, limit: usize) -> Option<Share> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(identity.clone()).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Share { shares: self.clone(), identity: identity.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.shares.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.identity) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.identity);
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer(Arc::clone(&self.caller))
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // HTTP/2 reads at all times, so that this is noticed whether or not anything is sent.
        let is_cut = match &mut self.cut {
            Some(cut) => cut.as_mut().poll(cx).is_ready(),
            None => true,
        };
        if is_cut {
            self.cut = None;
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::ConnectionAborted)));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot::error::TryRecvError;

    #[test]
    fn for_one_handshake_too_many_the_oldest_is_given_up() {
        let handshakes = Handshakes::default();
        let mut begun: Vec<_> = (0..MAX_HANDSHAKES).map(|_| handshakes.begin()).collect();
        let is_given_up = |it: &mut (Place, oneshot::Receiver<()>)| it.1.try_recv() == Err(TryRecvError::Closed);
        assert!(!begun.iter_mut().any(is_given_up));
        // One that has ended makes room for one.
        drop(begun.remove(7));
        begun.push(handshakes.begin());
        assert!(!begun.iter_mut().any(is_given_up));
        begun.push(handshakes.begin());
        let gone: Vec<_> = begun.iter_mut().map(is_given_up).collect();
        assert_eq!(gone.iter().position(|it| *it), Some(0));
        assert_eq!(gone.iter().filter(|it| **it).count(), 1);
    }
}
