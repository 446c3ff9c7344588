//! Tap interfaces of the host (linux/if_tun.h, netdevice(7)). Key functions: [`open`], called by `daemon/supervisor`;
//! [`set_offloads`] and [`set_queue`], called by the vmm's NICs. Key type: [`Offloads`].
#![allow(unsafe_code, reason = "network ioctls that rustix lacks")]

use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Longest interface name, in bytes without the final NUL (`IFNAMSIZ` - 1).
pub const MAX_NAME_LEN: usize = libc::IFNAMSIZ - 1;

/// Size of the header before each frame: `struct virtio_net_hdr_v1` (VIRTIO 1.3 §5.1.6).
static VNET_HEADER_LEN: libc::c_int = 12;

/// Work that host and guest may leave to each other (`TUN_F_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads(u32);

impl Offloads {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Checksums of TCP and UDP.
    pub const CHECKSUM: Self = Self(libc::TUN_F_CSUM);
    /// Segmentation of TCP over IPv4.
    pub const TCP4: Self = Self(libc::TUN_F_TSO4);
    /// Segmentation of TCP over IPv6.
    pub const TCP6: Self = Self(libc::TUN_F_TSO6);
    /// Segmentation of UDP over IPv4; goes with that over IPv6.
    pub const UDP4: Self = Self(libc::TUN_F_USO4);
    /// Segmentation of UDP over IPv6.
    pub const UDP6: Self = Self(libc::TUN_F_USO6);
    /// Everything known here.
    pub const ALL: Self = Self::CHECKSUM.with(Self::TCP4).with(Self::TCP6).with(Self::UDP4).with(Self::UDP6);

    /// Both.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is not in `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` is in it.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What the kernel of this host can do for a tap; the tap does nothing of it afterwards. UDP came with Linux 6.2.
pub fn known_offloads(tap: BorrowedFd<'_>) -> Offloads {
    let tried = [Offloads::ALL, Offloads::ALL.without(Offloads::UDP4).without(Offloads::UDP6), Offloads::CHECKSUM];
    let known = tried.into_iter().find(|offloads| set_offloads(tap, *offloads).is_ok());
    let is_reset = set_offloads(tap, Offloads::NONE).is_ok();
    known.filter(|_| is_reset).unwrap_or(Offloads::NONE)
}

/// Says what the kernel may leave to whoever reads from the tap; for all of its queues.
pub fn set_offloads(tap: BorrowedFd<'_>, offloads: Offloads) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes an integer.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(offloads.0)) })
}

/// Attaches this queue of a tap, or detaches it: then no frames come by it, and none go.
pub fn set_queue(tap: BorrowedFd<'_>, is_attached: bool) -> io::Result<()> {
    let mut request = no_request();
    request.ifr_ifru.ifru_flags = flags(if is_attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE });
    // SAFETY: TUNSETQUEUE reads one `ifreq`, which `request` is, alive for the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETQUEUE as _, &raw const request) })
}

/// Opens a new tap `name` (1 to 15 bytes) with `queues` (at least 1) queues, gives the host side `address`/`prefix_len`
/// and sets it up. A descriptor for each queue, all attached.
///
/// The tap is not persistent: it vanishes with its last descriptor. Reads and writes do not block and carry a
/// `virtio_net_hdr_v1`. Needs `CAP_NET_ADMIN`; a name that is in use is `ResourceBusy`.
pub fn open(name: &str, address: Ipv4Addr, prefix_len: u8, queues: u16) -> io::Result<Vec<File>> {
    // Only the first one makes the interface, and must: one of that name would be somebody else's.
    let kind = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let taps =
        (0..queues.max(1)).map(|number| open_queue(name, kind | if number == 0 { libc::IFF_TUN_EXCL } else { 0 }));
    let taps = taps.collect::<io::Result<Vec<_>>>()?;
    no_ipv6(name);
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    set_address(&socket, libc::SIOCSIFADDR as _, name, address)?;
    set_address(&socket, libc::SIOCSIFNETMASK as _, name, netmask(prefix_len))?;
    bring_up(&socket, name)?;
    Ok(taps)
}

/// A tap of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its name.
    pub name: String,
    /// It has the properties that [`open`] gives.
    pub is_alike: bool,
    /// Some process has it open, as far as can be told: a tap that is down does not say.
    pub is_held: bool,
}

/// All taps of the host whose names begin with `prefix`.
pub fn list(prefix: &str) -> io::Result<Vec<Shown>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/class/net")? {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().filter(|name| name.starts_with(prefix)).map(str::to_owned) else {
            continue;
        };
        // Only what the tun driver made has this file.
        let Ok(text) = std::fs::read_to_string(entry.path().join("tun_flags")) else { continue };
        let flags = libc::c_int::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap_or(0);
        let alike = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let carrier = std::fs::read_to_string(entry.path().join("carrier")).unwrap_or_default();
        found.push(Shown { name, is_alike: flags & alike == alike, is_held: carrier.trim() == "1" });
    }
    Ok(found)
}

/// Does away with a tap that no process has open; one that some process has is `ResourceBusy`. It goes with our own
/// descriptor, which is the only one then.
pub fn remove(name: &str) -> io::Result<()> {
    let tap = open_queue(name, 0)?;
    // SAFETY: TUNSETPERSIST takes an integer.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST as _, libc::c_ulong::from(false)) })
}

fn open_queue(name: &str, kind: libc::c_int) -> io::Result<File> {
    let tap = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = flags(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | kind);
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is, alive for the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    // SAFETY: TUNSETVNETHDRSZ reads one `int`.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const VNET_HEADER_LEN) })?;
    Ok(tap)
}

/// The netmask of a prefix length, 0 to 32.
pub fn netmask(prefix_len: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32))).unwrap_or(0))
}

fn set_address(socket: &OwnedFd, ioctl: u32, name: &str, address: Ipv4Addr) -> io::Result<()> {
    let mut request = request(name)?;
    let octets = address.octets().map(u8::cast_signed);
    // `sockaddr_in` laid over `sockaddr`: two bytes of port, then the address (ip(7)).
    let mut data = [0; 14];
    data[2..6].copy_from_slice(&octets);
    request.ifr_ifru.ifru_addr = libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data };
    // SAFETY: these requests read one `ifreq`, which `request` is, alive for the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), ioctl as _, &raw const request) })
}

fn bring_up(socket: &OwnedFd, name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = flags(libc::IFF_UP | libc::IFF_RUNNING);
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which `request` is, alive for the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) })
}

/// The link carries IPv4 only: without this the host would answer the guest on its link-local address.
fn no_ipv6(name: &str) {
    // Absent on a kernel without IPv6, and then there is nothing to switch off.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    let is_valid = (1..=MAX_NAME_LEN).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric());
    if !is_valid {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an interface name"));
    }
    let mut request = no_request();
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn no_request() -> libc::ifreq {
    // SAFETY: `ifreq` is plain data of integers and byte arrays, for which all zeroes is a value.
    unsafe { std::mem::zeroed() }
}

fn flags(bits: libc::c_int) -> libc::c_short {
    // All of IFF_* fits 16 bits; the field is signed by accident.
    (bits & 0xffff) as u16 as libc::c_short
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::absence::skip;

    #[test]
    fn knows_netmasks() {
        assert_eq!(netmask(30), Ipv4Addr::new(255, 255, 255, 252));
        assert_eq!(netmask(0), Ipv4Addr::UNSPECIFIED);
        assert_eq!(netmask(32), Ipv4Addr::BROADCAST);
    }

    #[test]
    fn refuses_names_that_are_no_interface() {
        for name in ["", "a/b", "0123456789abcdef"] {
            assert_eq!(
                open(name, Ipv4Addr::LOCALHOST, 30, 1).unwrap_err().kind(),
                io::ErrorKind::InvalidInput,
                "{name}"
            );
        }
    }

    #[test]
    fn makes_a_tap_that_vanishes_with_its_descriptor() {
        let tap = match open("osttest0", Ipv4Addr::new(172, 30, 255, 253), 30, 1) {
            Ok(tap) => tap,
            Err(error) => return skip(&format!("CAP_NET_ADMIN and /dev/net/tun ({error})")),
        };
        let net = std::path::Path::new("/sys/class/net/osttest0");
        let read = |file: &str| std::fs::read_to_string(net.join(file)).unwrap();
        assert_eq!(u32::from_str_radix(read("flags").trim().trim_start_matches("0x"), 16).unwrap() & 1, 1);
        let twice = open("osttest0", Ipv4Addr::new(172, 30, 255, 253), 30, 1).unwrap_err();
        assert_eq!(twice.kind(), io::ErrorKind::ResourceBusy);
        let shown = || list("osttest0").unwrap();
        assert_eq!(shown(), [Shown { name: "osttest0".into(), is_alike: true, is_held: true }]);
        assert_eq!(remove("osttest0").unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(tap);
        assert!(!net.exists());
        assert_eq!(shown(), []);
    }

    #[test]
    fn queues_of_one_tap_come_and_go_and_offloads_are_set_for_all() {
        let taps = match open("osttest1", Ipv4Addr::new(172, 30, 255, 249), 30, 3) {
            Ok(taps) => taps,
            Err(error) => return skip(&format!("CAP_NET_ADMIN and /dev/net/tun ({error})")),
        };
        assert_eq!(taps.len(), 3);
        let queues = || std::fs::read_dir("/sys/class/net/osttest1/queues").unwrap().count();
        // Of each kind.
        assert_eq!(queues(), 6);
        let twice = open("osttest1", Ipv4Addr::new(172, 30, 255, 249), 30, 3).unwrap_err();
        assert_eq!(twice.kind(), io::ErrorKind::ResourceBusy, "nobody joins another one's tap");
        set_queue(taps[2].as_fd(), false).unwrap();
        assert_eq!(queues(), 4);
        set_queue(taps[2].as_fd(), true).unwrap();
        assert_eq!(queues(), 6);
        let known = known_offloads(taps[1].as_fd());
        assert!(known.contains(Offloads::CHECKSUM.with(Offloads::TCP4).with(Offloads::TCP6)), "{known:?}");
        set_offloads(taps[0].as_fd(), known).unwrap();
        assert!(set_offloads(taps[0].as_fd(), Offloads::TCP4).is_err(), "segments without checksums");
    }
}
