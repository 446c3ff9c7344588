//! The daemon's end of a vmm's control socket. Key type: [`Link`]. Used by `vm_task` and `reconcile`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::daemon::trace::CallId;
use crate::model::{DeviceId, InstanceId, VmId};
use crate::sys::packet::{Connection, Received};
use crate::wire::{FromVmm, MAX_PACKET_LEN, ToVmm, WireError};

/// How long a vmm may take to say who it is to a daemon that was restarted.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the link is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the vmm closed its control socket")]
    Closed,
    #[error("control socket")]
    Io(#[from] io::Error),
    #[error("the vmm does not keep to the control protocol")]
    Wire(#[from] WireError),
    #[error("the vmm does not answer")]
    Timeout,
}

/// Who a vmm says that it is, and what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) vm: VmId,
    pub(super) instance: InstanceId,
    /// It stands still.
    pub(super) is_paused: bool,
    pub(super) devices: Vec<DeviceId>,
}

#[derive(Debug)]
pub(super) struct Link(AsyncFd<Socket>);

#[derive(Debug)]
struct Socket(Connection);

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Link {
    /// Connects to the vmm that listens at `path`. Does not wait for it to accept.
    pub(super) fn connect(path: &Path) -> Result<Self, LinkError> {
        let connection = Connection::connect(path)?;
        rustix::io::ioctl_fionbio(connection.as_fd(), true).map_err(io::Error::from)?;
        Ok(Self(watch(Socket(connection))?))
    }

    /// Sends a message; a full socket, which a healthy vmm never leaves, is an error.
    pub(super) fn send(&self, message: &ToVmm, descriptors: &[OwnedFd]) -> Result<(), LinkError> {
        let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        let call = CallId::current().map(|id| id.to_string()).unwrap_or_default();
        Ok(self.0.get_ref().0.send(&message.encode_for(call), &descriptors)?)
    }

    /// The next message. Safe to cancel: a message is taken whole or not at all.
    pub(super) async fn receive(&self) -> Result<FromVmm, LinkError> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|socket| receive(&socket.get_ref().0)) {
                Ok(received) => return decode(received?),
                Err(_would_block) => {}
            }
        }
    }

    /// The next message if it has come already.
    pub(super) fn try_receive(&self) -> Option<FromVmm> {
        receive(&self.0.get_ref().0).ok().and_then(|received| decode(received).ok())
    }

    /// Waits for the vmm's Hello, within [`HELLO_TIMEOUT`].
    pub(super) async fn hello(&self) -> Result<Greeting, LinkError> {
        match tokio::time::timeout(HELLO_TIMEOUT, self.receive()).await {
            Ok(Ok(FromVmm::Hello { vm, instance, is_paused, devices })) => {
                Ok(Greeting { vm, instance, is_paused, devices })
            }
            Ok(Ok(_)) => Err(LinkError::Wire(WireError::Malformed("no Hello"))),
            Ok(Err(error)) => Err(error),
            Err(_elapsed) => Err(LinkError::Timeout),
        }
    }
}

/// Registers a descriptor with the runtime, for reading.
#[allow(
    deprecated,
    reason = "its successor is unsafe: the descriptor must stay open and the same. `inner` owns it, \
    and both types that come here give out the one that they own"
)]
pub(super) fn watch<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(inner, Interest::READABLE)
}

fn receive(connection: &Connection) -> io::Result<Received> {
    loop {
        match connection.receive(MAX_PACKET_LEN) {
            // Says once that the other end left something of ours unread; what it sent itself is still to be read.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn decode(received: Received) -> Result<FromVmm, LinkError> {
    match received {
        // Descriptors that a vmm sends are not asked for: dropped.
        Received::Packet(packet, _) => Ok(FromVmm::decode(&packet)?),
        Received::Closed => Err(LinkError::Closed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::VmExit;
    use crate::sys::packet::Listener;

    #[tokio::test]
    async fn reads_what_was_sent_before_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let listener = Listener::bind(&path).unwrap();
        let link = Link::connect(&path).unwrap();
        link.send(&ToVmm::PowerButton, &[]).unwrap();
        let vmm = listener.accept().unwrap();
        vmm.send(&FromVmm::Ready { build_ns: 1 }.encode(), &[]).unwrap();
        vmm.send(&FromVmm::Ended(VmExit::PowerOff).encode(), &[]).unwrap();
        drop(vmm); // with the power button unread
        assert_eq!(link.receive().await.unwrap(), FromVmm::Ready { build_ns: 1 });
        assert_eq!(link.try_receive(), Some(FromVmm::Ended(VmExit::PowerOff)));
        assert!(matches!(link.receive().await, Err(LinkError::Closed)));
        drop(listener);
        assert!(Link::connect(&path).is_err());
    }

    #[tokio::test]
    async fn says_who_answers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let listener = Listener::bind(&path).unwrap();
        let link = Link::connect(&path).unwrap();
        let (vm, instance) = (VmId::new(), InstanceId::new());
        let devices: Vec<DeviceId> = vec!["rng".parse().unwrap()];
        let hello = FromVmm::Hello { vm, instance, is_paused: true, devices: devices.clone() };
        listener.accept().unwrap().send(&hello.encode(), &[]).unwrap();
        assert_eq!(link.hello().await.unwrap(), Greeting { vm, instance, is_paused: true, devices });
    }
}
