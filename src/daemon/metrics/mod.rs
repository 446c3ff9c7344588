//! Metrics of the node as Prometheus text over HTTP, for a scraper on the same host. Key function: [`serve`].
//!
//! One answer per connection, at most [`MAX_CONNECTIONS`] at a time, each within [`TIMEOUT`]. There is no authentication, so
//! the address is a loopback one unless the operator says otherwise.

mod exposition;
mod vms;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::daemon::service::SharedNode;

/// Scrapers at a time; others wait to be accepted.
const MAX_CONNECTIONS: usize = 4;
/// How long one may take, its reading included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest head of a request, in bytes.
const MAX_HEAD_LEN: usize = 8 << 10;
/// VMs that are told of; a node with more needs another way.
const MAX_VMS: usize = 1024;
/// What this version of the text is called (prometheus.io, exposition formats).
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether metrics may be served at `address`, which anybody who reaches it can read.
pub fn is_allowed(address: SocketAddr, is_public: bool) -> bool {
    is_public || address.ip().is_loopback()
}

/// Serves until it is dropped.
pub async fn serve(node: SharedNode, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a scraper");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            // One that is too slow, or gone, gets nothing.
            let _ = tokio::time::timeout(TIMEOUT, answer(&node, stream)).await;
            drop(place);
        });
    }
}

async fn answer(node: &SharedNode, mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > MAX_HEAD_LEN || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let response = match path(&head) {
        Some("/metrics") => whole("200 OK", &vms::text(&node.all_stats(MAX_VMS).await)),
        Some(_) => whole("404 Not Found", "metrics are at /metrics\n"),
        None => whole("405 Method Not Allowed", "only GET is understood\n"),
    };
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

/// What a GET asks for; `None` for another method (RFC 9112 §3).
fn path(head: &[u8]) -> Option<&str> {
    let line = head.split(|&byte| byte == b'\r').next()?;
    let (method, rest) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let target = rest.split(' ').next()?;
    (method == "GET").then(|| target.split('?').next().unwrap_or(target))
}

fn whole(status: &str, body: &str) -> String {
    let len = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_get_names_a_path() {
        assert_eq!(path(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), Some("/metrics"));
        assert_eq!(path(b"GET /metrics?x=1 HTTP/1.0\r\n\r\n"), Some("/metrics"));
        for head in [&b"POST /metrics HTTP/1.1\r\n\r\n"[..], b"\r\n\r\n", b"\xff \xff\r\n", b"GET"] {
            assert_eq!(path(head), None);
        }
    }

    #[test]
    fn only_a_loopback_address_is_served_unasked() {
        let allowed = |address: &str, is_public| is_allowed(address.parse().unwrap(), is_public);
        assert!(allowed("127.0.0.1:9464", false) && allowed("[::1]:9464", false));
        assert!(!allowed("0.0.0.0:9464", false) && !allowed("192.0.2.1:9464", false) && allowed("0.0.0.0:9464", true));
    }
}
