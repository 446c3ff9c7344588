//! Clients with a certificate that do what no client should: each is refused with an error of its own, and a bystander is
//! served meanwhile. Needs no guest. The bystander's latencies are printed; no time is asserted.

use std::fs;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::support::certs::Identity;
use crate::support::client::{connect, spawn, tls, wait};
use crate::support::wait::{SOON, until};
use crate::support::{Caller, Host, facts, small};
use http_body::{Body as HttpBody, Frame};
use ostler::api::v1;
use prost::Message;
use rustls_pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codegen::http::Request;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::{Service, ServiceExt};

const GET: &str = "/ostler.v1.VirtualMachineService/GetVirtualMachine";
const LOAD: &str = "/ostler.v1.PluginService/LoadPlugin";
/// Of one identity, opened as fast as they come; the limit is 64 at a time.
const CONNECTIONS: usize = 10_000;
/// That many of them at once.
const AT_ONCE: usize = 200;
/// Connections on which nothing is said, at once: some times as many as may shake hands.
const SILENT: usize = 500;
/// Between two calls of the bystander: an identity may not call as fast as it can.
const PAUSE: Duration = Duration::from_millis(2);
/// Between two bytes of a slow writer.
const DRIP: Duration = Duration::from_millis(20);
/// Descriptors beside those of connections: the store's, the log's, what the daemon opens now and then.
const SLACK: usize = 16;

type Bytes = <Body as HttpBody>::Data;

/// A request's body, piece by piece; it ends with its sender.
struct Pieces(mpsc::Receiver<Vec<u8>>);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes.into()))))
    }
}

/// Sends `path` with whatever comes from `pieces`, and gives the error.
async fn raw(mut channel: Channel, path: &str, pieces: mpsc::Receiver<Vec<u8>>) -> Status {
    let request = Request::builder().method("POST").uri(path).header("content-type", "application/grpc");
    let request = request.header("te", "trailers").body(Body::new(Pieces(pieces))).unwrap();
    let response = channel.ready().await.unwrap().call(request).await.unwrap();
    Status::from_header_map(response.headers()).expect("it was not refused at once")
}

/// The same with one piece that is all there is.
fn sent(channel: &Channel, path: &str, bytes: Vec<u8>) -> Status {
    let (sender, pieces) = mpsc::channel(1);
    sender.try_send(bytes).unwrap();
    drop(sender);
    wait(raw(channel.clone(), path, pieces))
}

/// A gRPC frame: flag, length, message.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[0][..], &length.to_be_bytes(), message].concat()
}

fn channel(host: &Host, identity: &str) -> Channel {
    let identity = Identity::read(&host.certs().join(identity));
    connect(host.port(), &host.certs().join("ca.pem"), Some(identity)).unwrap()
}

/// Somebody else, who calls all the while.
struct Bystander {
    is_over: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<Vec<Duration>>,
}

impl Bystander {
    fn begin(host: &Host) -> Self {
        let globex = host.tenant("globex");
        globex.register("web", small()).unwrap();
        let (is_over, ends) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut took = Vec::new();
            loop {
                let begin = Instant::now();
                globex.get("web").unwrap();
                took.push(begin.elapsed());
                if ends.recv_timeout(PAUSE).is_ok() {
                    return took;
                }
            }
        });
        Self { is_over, thread }
    }

    /// Prints what it saw.
    fn end(self, meanwhile: &str) {
        self.is_over.send(()).expect("the bystander was not served");
        let mut took = self.thread.join().expect("the bystander was not served");
        took.sort();
        let at = |percent: usize| took[(took.len() - 1) * percent / 100];
        println!("while {meanwhile}: {} calls of another, p50 {:?}, p99 {:?}", took.len(), at(50), at(99));
    }
}

fn descriptors(host: &mut Host) -> usize {
    let pid = host.daemon_pid().expect("the daemon has ended");
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn requests_that_are_no_messages_are_each_refused_with_their_reason() {
    let mut host = Host::start();
    let pid = host.daemon_pid();
    let bystander = Bystander::begin(&host);
    let channel = channel(&host, "tenant-acme");
    // Field 1 of GetVirtualMachineRequest.
    let name = |bytes: &[u8]| [&[0x0a][..], &varint(bytes.len()), bytes].concat();
    let claimed = |length: u32| [&[0][..], &length.to_be_bytes(), &[0; 1000]].concat();
    let groups = [[0xfb, 0x7f].repeat(10_000), [0xfc, 0x7f].repeat(10_000)].concat();
    let cases: Vec<(&str, &str, Vec<u8>, &str)> = vec![
        ("a name of 1 MiB", GET, framed(&name(&[b'a'; 1 << 20])), "MESSAGE_TOO_LONG"),
        ("a name of 200 KiB", GET, framed(&name(&[b'a'; 200 << 10])), "BAD_FIELD"),
        ("a message of 100 MiB", GET, claimed(100 << 20), "MESSAGE_TOO_LONG"),
        ("a message of 4 GiB", GET, claimed(u32::MAX), "MESSAGE_TOO_LONG"),
        ("an upload's message of 100 MiB", LOAD, claimed(100 << 20), "MESSAGE_TOO_LONG"),
        ("bytes that are no UTF-8", GET, framed(&name(&[0xff, 0xfe])), "BAD_MESSAGE"),
        ("10,000 groups in one another", GET, framed(&groups), "BAD_MESSAGE"),
        ("a length beyond the message", GET, framed(&[0x0a, 0x7f]), "BAD_MESSAGE"),
        ("half a message", GET, framed(&name(b"tenants/acme/vms/web"))[..10].to_vec(), "BAD_MESSAGE"),
        ("a flag of no meaning", GET, [&[7][..], &framed(b"")[1..]].concat(), "BAD_MESSAGE"),
        ("compression that was not agreed on", GET, [&[1][..], &framed(b"")[1..]].concat(), "BAD_MESSAGE"),
        ("no message", GET, vec![], "BAD_MESSAGE"),
        ("a call that is none", "/ostler.v1.VirtualMachineService/Melt", framed(b""), "NO_SUCH_CALL"),
        ("a service that is none", "/ostler.v2.Oven/Melt", framed(b""), "NO_SUCH_CALL"),
    ];
    for (what, path, bytes, reason) in cases {
        let told = facts(&sent(&channel, path, bytes));
        assert_eq!(told.reason, reason, "{what}: {told:?}");
        let is_callers = matches!(told.code, Code::InvalidArgument | Code::Unimplemented);
        assert!(is_callers && told.message.len() < 600, "{what}: {told:?}");
    }
    bystander.end("requests came that are no messages");
    assert_eq!(host.daemon_pid(), pid);
}

/// As protocol buffers write a length.
fn varint(value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(value as u64, &mut bytes);
    bytes
}

#[test]
fn values_that_an_enum_does_not_have_are_refused() {
    let host = Host::start();
    let acme = host.tenant("acme");
    let memory = v1::MemorySpec { hugepages: 99, ..Default::default() };
    let refused = acme.register("web", v1::VirtualMachineSpec { memory: Some(memory), ..small() }).unwrap_err();
    assert_eq!(facts(&refused).metadata["field"], "spec.memory.hugepages");
    let request = v1::ListDecisionsRequest { outcome: -1, ..Default::default() };
    assert_eq!(facts(&acme.decisions(request).unwrap_err()).metadata["field"], "outcome");
    assert_eq!(acme.list("").unwrap(), vec![]);
}

#[test]
fn streams_that_are_left_open_end_and_others_go_on() {
    let mut host = Host::start();
    let bystander = Bystander::begin(&host);
    let channel = channel(&host, "tenant-acme");
    let header = v1::load_plugin_request::Header { name: "tenants/acme/plugins/own".into(), ..Default::default() };
    let part = Some(v1::load_plugin_request::Part::Header(header));
    let upload = framed(&v1::LoadPluginRequest { part }.encode_to_vec());
    let begun = framed(&v1::GetVirtualMachineRequest { name: "tenants/acme/vms/web".into() }.encode_to_vec());
    // As many as one connection may have, of three kinds; nobody ever goes on.
    let cases = [(GET, vec![]), (GET, begun[..12].to_vec()), (LOAD, upload)];
    let calls: Vec<_> = (0..63)
        .map(|at: usize| {
            let (path, bytes) = cases[at % cases.len()].clone();
            let (sender, pieces) = mpsc::channel(1);
            sender.try_send(bytes).unwrap();
            let (channel, (told, result)) = (channel.clone(), std::sync::mpsc::channel());
            spawn(async move {
                let status = raw(channel, path, pieces).await;
                drop(sender);
                told.send(status).unwrap();
            });
            result
        })
        .collect();
    for call in calls {
        let told = facts(&call.recv_timeout(SOON * 3).expect("a stream stays open"));
        assert_eq!((told.code, told.reason.as_str()), (Code::DeadlineExceeded, "REQUEST_STALLED"), "{told:?}");
    }
    // The connection itself is as good as before.
    assert_eq!(Caller::new(channel, "acme").list("").unwrap(), vec![]);
    bystander.end("63 streams of one connection did not go on");
    assert!(host.daemon_pid().is_some());
}

#[test]
fn slow_writers_are_served_and_slow_readers_hold_up_nobody() {
    let mut host = Host::start();
    let bystander = Bystander::begin(&host);
    let acme = host.tenant("acme");
    acme.register("web", small()).unwrap();
    // Streams that nobody reads from.
    let slow = Caller::new(channel(&host, "tenant-acme"), "acme");
    let unread: Vec<_> = (0..50).map(|_| slow.watch("").unwrap()).collect();
    let drip = framed(&v1::GetVirtualMachineRequest { name: "tenants/acme/vms/none".into() }.encode_to_vec());
    let (sender, pieces) = mpsc::channel(1);
    spawn(async move {
        let mut drops = tokio::time::interval(DRIP);
        for byte in drip {
            drops.tick().await;
            let _ = sender.send(vec![byte]).await;
        }
    });
    for _ in 0..100 {
        acme.register("churn", small()).unwrap();
        acme.destroy("churn", false).unwrap();
    }
    let told = facts(&wait(raw(channel(&host, "tenant-acme"), GET, pieces)));
    assert_eq!(told.reason, "VM_NOT_FOUND", "{told:?}");
    bystander.end("50 watches were not read and a request came byte by byte");
    drop(unread);
    assert!(host.daemon_pid().is_some());
}

/// Opens a connection and waits for the daemon's first words; none if it was cut before.
async fn open(connector: tokio_rustls::TlsConnector, port: u16) -> Option<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.ok()?;
    matches!(stream.read(&mut [0; 64]).await, Ok(1..)).then_some(stream)
}

#[test]
fn ten_thousand_connections_of_one_identity_leave_room_for_others() {
    let mut host = Host::start();
    let pid = host.daemon_pid();
    let before = descriptors(&mut host);
    let bystander = Bystander::begin(&host);
    let connector = tls(&host.certs().join("ca.pem"), Some(Identity::read(&host.certs().join("tenant-acme"))));
    let (port, tried, held) = (host.port(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (give, mut kept) = mpsc::unbounded_channel();
    for _ in 0..AT_ONCE {
        let (connector, tried, held, give) = (connector.clone(), Arc::clone(&tried), Arc::clone(&held), give.clone());
        spawn(async move {
            while tried.fetch_add(1, Ordering::Relaxed) < CONNECTIONS {
                if let Some(stream) = open(connector.clone(), port).await {
                    held.fetch_add(1, Ordering::Relaxed);
                    give.send(stream).unwrap();
                }
            }
        });
    }
    drop(give);
    let mut streams = Vec::new();
    wait(async {
        while let Some(stream) = kept.recv().await {
            streams.push(stream);
        }
    });
    // Those that were told, and cut after it, among them.
    println!("{} of {CONNECTIONS} connections were not cut at once", held.load(Ordering::Relaxed));
    let most = descriptors(&mut host);
    assert!(most <= before + 64 + 16 + 64 + SLACK, "{most} descriptors, {before} before");
    // One more is told what is wrong, in the protocol's own words.
    until("a connection is told", SOON, || {
        let refused = Caller::new(
            connect(port, &host.certs().join("ca.pem"), Some(Identity::read(&host.certs().join("tenant-acme"))))
                .ok()?,
            "acme",
        );
        // Others may be told just now: then it is cut without a word.
        let told = refused.list("").expect_err("one too many is served").get_details_error_info()?;
        (told.reason == "TOO_MANY_CONNECTIONS").then_some(())
    });
    bystander.end("10,000 connections of one identity came");
    drop(streams);
    until("the identity is let in again", SOON, || {
        let identity = Identity::read(&host.certs().join("tenant-acme"));
        let channel = connect(port, &host.certs().join("ca.pem"), Some(identity)).ok()?;
        Caller::new(channel, "acme").list("").ok()
    });
    until("descriptors are given back", SOON, || (descriptors(&mut host) <= before + SLACK).then_some(()));
    assert_eq!(host.daemon_pid(), pid);
}

#[test]
fn connections_that_say_nothing_keep_nobody_from_connecting() {
    let host = Host::start();
    host.tenant("acme").register("web", small()).unwrap();
    let port = host.port();
    let (open, mut opened) = mpsc::channel(1);
    spawn(async move {
        // Each in the place of an older one, if that is how the daemon gets rid of them.
        let mut silent = std::collections::VecDeque::new();
        for at in 0.. {
            silent.push_back(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
            if at == SILENT && open.send(()).await.is_err() || at > SILENT && open.is_closed() {
                return;
            }
            if at >= SILENT {
                silent.pop_front();
                tokio::time::sleep(PAUSE).await;
            }
        }
    });
    wait(opened.recv()).unwrap();
    for _ in 0..20 {
        assert_eq!(host.tenant("acme").get("web").unwrap().name, "tenants/acme/vms/web");
    }
    drop(opened);
    // Nobody had to wait for their time to be over.
    assert!(host.last_logged("oldest of too many handshakes").is_some());
    assert_eq!(host.last_logged("handshake takes too long"), None);
}
