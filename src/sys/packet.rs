//! Packets with descriptors over `SOCK_SEQPACKET` (unix(7), `SCM_RIGHTS`). Key types: [`Listener`], [`Connection`].
//!
//! Both ends use it: the daemon connects, the vmm listens on a socket that the daemon bound for it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// Most descriptors in one packet that is sent or received here.
pub const MAX_DESCRIPTORS: usize = 64;

/// Waiting connections before connect(2) is refused.
const BACKLOG: i32 = 4;

fn seqpacket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// A listening packet socket.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Binds `path` (at most 107 bytes) and listens.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let fd = seqpacket()?;
        rustix::net::bind(&fd, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&fd, BACKLOG)?;
        Ok(Self(fd))
    }

    /// Takes a socket that listens already.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Waits for the next connection.
    pub fn accept(&self) -> io::Result<Connection> {
        Ok(Connection(rustix::net::accept_with(&self.0, SocketFlags::CLOEXEC)?))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One end of a packet connection.
#[derive(Debug)]
pub struct Connection(OwnedFd);

/// What one receive gave.
#[derive(Debug)]
pub enum Received {
    /// A packet with its descriptors, in the order sent.
    Packet(Vec<u8>, Vec<OwnedFd>),
    /// The other end is gone.
    Closed,
}

impl Connection {
    /// Connects to the listener at `path`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd = seqpacket()?;
        rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
        Ok(Self(fd))
    }

    /// Two connected ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(a), Self(b)))
    }

    /// Takes a connected socket.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The socket itself, to register it with another event loop.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Sends one packet, whole or not at all; never raises `SIGPIPE`.
    pub fn send(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one packet"));
        }
        rustix::net::sendmsg(&self.0, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Receives one packet of at most `max_len` bytes. A longer one, or more descriptors than [`MAX_DESCRIPTORS`],
    /// is an error: nothing is ever cut silently.
    pub fn receive(&self, max_len: usize) -> io::Result<Received> {
        // Room for what is there, not for what might be: a zeroed buffer of the greatest length would be touched whole.
        let waiting = rustix::net::recvmsg(
            &self.0,
            &mut [],
            &mut RecvAncillaryBuffer::default(),
            RecvFlags::PEEK | RecvFlags::TRUNC,
        )?;
        let mut packet = vec![0; waiting.bytes.clamp(1, max_len.max(1))];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message =
            rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut packet)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let descriptors: Vec<OwnedFd> = control
            .drain()
            .flat_map(|ancillary| match ancillary {
                RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
                _ => Vec::new(),
            })
            .collect();
        if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "packet exceeds the limits of the control protocol",
            ));
        }
        if message.bytes == 0 {
            return Ok(Received::Closed);
        }
        packet.truncate(message.bytes);
        Ok(Received::Packet(packet, descriptors))
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    #[test]
    fn carries_descriptors_in_order() {
        let (a, b) = Connection::pair().unwrap();
        let mut files: Vec<_> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
        for (number, file) in files.iter_mut().enumerate() {
            write!(file, "{number}").unwrap();
            file.rewind().unwrap();
        }
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        a.send(b"hello", &fds).unwrap();
        let Received::Packet(packet, got) = b.receive(64).unwrap() else { panic!("closed") };
        assert_eq!(packet, b"hello");
        let texts: Vec<_> = got
            .into_iter()
            .map(|fd| {
                let mut text = String::new();
                std::fs::File::from(fd).read_to_string(&mut text).unwrap();
                text
            })
            .collect();
        assert_eq!(texts, ["0", "1", "2"]);
    }

    #[test]
    fn says_that_the_other_end_is_gone() {
        let (a, b) = Connection::pair().unwrap();
        drop(a);
        assert!(matches!(b.receive(64).unwrap(), Received::Closed));
        assert!(b.send(b"x", &[]).is_err());
    }

    #[test]
    fn refuses_a_packet_that_is_too_long_instead_of_cutting_it() {
        let (a, b) = Connection::pair().unwrap();
        a.send(&[7; 65], &[]).unwrap();
        assert_eq!(b.receive(64).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
