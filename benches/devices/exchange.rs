//! Small packets between guest and host by UDP. The guest asks for them on a TCP connection, over the link in question.
//!
//! ```text
//!   request   0 kind   1..5 packets   5..7 the guest's UDP port             (little-endian, as all of it)
//!   answer    0..2 the host's UDP port; and after packets to the host: 0..4 how many came   4..12 in so many nanoseconds
//!   packet    0..4 its number, and as much more as the shortest Ethernet frame takes
//!   back      echo: the packet; else 0..4 for each 32nd packet: how many there are with it
//! ```
//! At most [`WINDOW`] packets are under way: what is counted is what a link carries, not what it drops.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Where the host listens.
const PORT: u16 = 5003;
/// 60 bytes of a frame without its checksum, less the headers of Ethernet, IPv4 and UDP.
const PACKET_LEN: usize = 60 - 14 - 20 - 8;
/// Packets that are not acknowledged, and per acknowledgement.
const WINDOW: u32 = 64;
const BATCH: u32 = 32;
/// After so long without an acknowledgement or an echo what is under way counts as lost; after so long without a packet, the
/// rest.
const SENDER_PATIENCE: Duration = Duration::from_millis(200);
const RECEIVER_PATIENCE: Duration = Duration::from_secs(2);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Each packet comes back.
    Echo,
    ToHost,
    FromHost,
}

/// What came of a number of packets.
#[derive(Debug, Clone, Copy)]
pub struct Arrived {
    pub packets: u32,
    /// From the first to the last.
    pub within: Duration,
}

impl Arrived {
    /// Packets per second.
    pub fn rate(self) -> f64 {
        f64::from(self.packets.saturating_sub(1)) / self.within.as_secs_f64()
    }
}

/// The guest's end of an exchange with `host`.
pub struct Exchange {
    host: TcpStream,
    packets: UdpSocket,
    count: u32,
}

impl Exchange {
    pub fn ask(host: Ipv4Addr, kind: Kind, count: u32) -> Result<Self> {
        let mut asked = TcpStream::connect((host, PORT))?;
        let packets = UdpSocket::bind((asked.local_addr()?.ip(), 0))?;
        let mut request = vec![kind as u8];
        request.extend(count.to_le_bytes());
        request.extend(packets.local_addr()?.port().to_le_bytes());
        asked.write_all(&request)?;
        let mut port = [0; 2];
        asked.read_exact(&mut port)?;
        packets.connect((host, u16::from_le_bytes(port)))?;
        Ok(Self { host: asked, packets, count })
    }

    /// How long each packet took to the host and back; those that did not come back are left out.
    pub fn round_trips(&self) -> Result<Vec<Duration>> {
        self.packets.set_read_timeout(Some(SENDER_PATIENCE))?;
        let mut took = Vec::new();
        for number in 0..self.count {
            let sent = Instant::now();
            self.packets.send(&packet(number))?;
            loop {
                match received(&self.packets)? {
                    Some(echo) if echo == number => break took.push(sent.elapsed()),
                    Some(_late) => {}
                    None => break,
                }
            }
        }
        Ok(took)
    }

    /// Sends the packets; what came is what the host says.
    pub fn deliver(mut self) -> Result<Arrived> {
        send(&self.packets, self.count)?;
        let (mut packets, mut nanos) = ([0; 4], [0; 8]);
        self.host.read_exact(&mut packets)?;
        self.host.read_exact(&mut nanos)?;
        let within = Duration::from_nanos(u64::from_le_bytes(nanos));
        Ok(Arrived { packets: u32::from_le_bytes(packets), within })
    }

    pub fn collect(&self) -> Result<Arrived> {
        receive(&self.packets, self.count)
    }
}

fn packet(number: u32) -> [u8; PACKET_LEN] {
    let mut packet = [0x5a; PACKET_LEN];
    packet[..4].copy_from_slice(&number.to_le_bytes());
    packet
}

/// The number in the next packet; `None`: none came in time.
fn received(socket: &UdpSocket) -> Result<Option<u32>> {
    let mut bytes = [0; PACKET_LEN];
    match socket.recv(&mut bytes) {
        Ok(4..) => Ok(Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))),
        Ok(_) => Err(Error::other("a packet without a number")),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
        Err(error) => Err(error),
    }
}

fn send(socket: &UdpSocket, count: u32) -> Result<()> {
    socket.set_read_timeout(Some(SENDER_PATIENCE))?;
    let mut acknowledged = 0;
    for number in 0..count {
        socket.send(&packet(number))?;
        while number + 1 - acknowledged >= WINDOW {
            acknowledged = received(socket)?.map_or(number + 1, |upto| acknowledged.max(upto.min(number + 1)));
        }
    }
    // Whoever closes its socket before the last acknowledgement has the other one's refused.
    while acknowledged < count - count % BATCH {
        let Some(upto) = received(socket)? else { break };
        acknowledged = acknowledged.max(upto);
    }
    Ok(())
}

fn receive(socket: &UdpSocket, count: u32) -> Result<Arrived> {
    socket.set_read_timeout(Some(RECEIVER_PATIENCE))?;
    let (mut packets, mut span) = (0, None);
    while let Some(number) = received(socket)? {
        let now = Instant::now();
        let (first, _) = span.unwrap_or((now, now));
        (packets, span) = (packets + 1, Some((first, now)));
        if (number + 1).is_multiple_of(BATCH) {
            socket.send(&(number + 1).to_le_bytes())?;
        }
        if number + 1 == count {
            break;
        }
    }
    Ok(Arrived { packets, within: span.map_or(Duration::ZERO, |(first, last)| last.duration_since(first)) })
}

/// Serves guests for as long as the program runs. An exchange that goes wrong is cut, which its guest says.
pub fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    std::thread::spawn(move || {
        for guest in listener.incoming() {
            if let Err(error) = guest.and_then(serve_one) {
                eprintln!("packets: {error}");
            }
        }
    });
    Ok(())
}

fn serve_one(mut guest: TcpStream) -> Result<()> {
    let mut request = [0; 7];
    guest.read_exact(&mut request)?;
    let [kind, count @ .., low, high] = request;
    let count = u32::from_le_bytes(count);
    let packets = UdpSocket::bind((guest.local_addr()?.ip(), 0))?;
    packets.connect(SocketAddr::new(guest.peer_addr()?.ip(), u16::from_le_bytes([low, high])))?;
    guest.write_all(&packets.local_addr()?.port().to_le_bytes())?;
    if kind == Kind::Echo as u8 {
        packets.set_read_timeout(Some(RECEIVER_PATIENCE))?;
        for _ in 0..count {
            let Some(number) = received(&packets)? else { break };
            packets.send(&packet(number))?;
        }
    } else if kind == Kind::ToHost as u8 {
        let arrived = receive(&packets, count)?;
        guest.write_all(&arrived.packets.to_le_bytes())?;
        guest.write_all(&(arrived.within.as_nanos() as u64).to_le_bytes())?;
    } else {
        send(&packets, count)?;
    }
    Ok(())
}
