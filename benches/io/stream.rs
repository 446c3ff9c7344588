//! Streams between guest and host: the guest connects, says what it wants in one message, and then one of them sends pages.
//!
//! ```text
//!   request   0 direction   1 check all of it   2..10 bytes, little-endian
//!   end       one byte, from the host if the guest sent, and else from the guest
//! ```

use std::io::{Error, Read, Result, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use super::pattern::{Buffer, PAGE, is_noise, is_stamped, stamp};

/// Bytes of a stream that counts.
pub const STREAM_LEN: u64 = 16 << 20;
/// Where the host listens.
pub const PORT: u16 = 5001;
/// Bytes per call.
const PIECE: usize = 64 << 10;

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToHost,
    FromHost,
}

/// The host's end of the link of a NIC.
pub fn host(nic: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 31, nic, 1)
}

/// The guest's.
pub fn guest(nic: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 31, nic, 2)
}

/// The guest's request.
pub fn ask(host: &mut TcpStream, direction: Direction, len: u64, is_checked: bool) -> Result<()> {
    let mut request = vec![direction as u8, u8::from(is_checked)];
    request.extend(len.to_le_bytes());
    host.write_all(&request)
}

/// Sends so many bytes, whole pieces.
pub fn send(peer: &mut TcpStream, len: u64) -> Result<()> {
    let mut piece = Buffer::new(PIECE);
    for at in (0..len).step_by(PIECE) {
        piece.stamp(3, at / PAGE as u64);
        peer.write_all(piece.bytes())?;
    }
    Ok(())
}

/// Receives so many bytes, and looks at the stamps, or at everything.
pub fn receive(peer: &mut TcpStream, len: u64, is_checked: bool) -> Result<()> {
    let (mut piece, noise) = (Buffer::new(PIECE), Buffer::new(PAGE));
    for at in (0..len).step_by(PIECE) {
        peer.read_exact(piece.bytes_mut())?;
        let is_right = is_stamped(piece.bytes(), (at / PAGE as u64..).map(|page| stamp(3, page)));
        if !is_right || is_checked && !is_noise(piece.bytes(), &noise) {
            return Err(Error::other(format!("other bytes than were sent, from {at} on")));
        }
    }
    Ok(())
}

/// Serves guests, one stream after the other, for as long as the program runs. A stream that goes wrong is cut, which its
/// guest says.
pub fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    std::thread::spawn(move || {
        for guest in listener.incoming() {
            if let Err(error) = guest.and_then(serve_one) {
                eprintln!("stream: {error}");
            }
        }
    });
    Ok(())
}

fn serve_one(mut guest: TcpStream) -> Result<()> {
    let mut request = [0; 10];
    guest.read_exact(&mut request)?;
    let [direction, is_checked, len @ ..] = request;
    let len = u64::from_le_bytes(len);
    if direction == Direction::ToHost as u8 {
        receive(&mut guest, len, is_checked != 0)?;
        guest.write_all(&[0])
    } else {
        send(&mut guest, len)?;
        guest.read_exact(&mut [0])
    }
}
