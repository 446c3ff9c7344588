//! Tap interfaces of the host (linux/if_tun.h, netdevice(7)). Key function: [`open`]. Called by `daemon/supervisor`.
#![allow(unsafe_code, reason = "network ioctls that rustix lacks")]

use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Longest interface name, in bytes without the final NUL (`IFNAMSIZ` - 1).
pub const MAX_NAME_LEN: usize = libc::IFNAMSIZ - 1;

/// Size of the header before each frame: `struct virtio_net_hdr_v1` (VIRTIO 1.3 §5.1.6).
static VNET_HEADER_LEN: libc::c_int = 12;

/// Opens a new tap `name` (1 to 15 bytes), gives the host side `address`/`prefix_len` and sets it up.
///
/// The tap is not persistent: it vanishes with its last descriptor. Reads and writes do not block and carry a
/// `virtio_net_hdr_v1`. Needs `CAP_NET_ADMIN`; a name that is in use is `ResourceBusy`.
pub fn open(name: &str, address: Ipv4Addr, prefix_len: u8) -> io::Result<File> {
    let tap = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = flags(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is, alive for the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    // SAFETY: TUNSETVNETHDRSZ reads one `int`.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const VNET_HEADER_LEN) })?;
    no_ipv6(name);
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    set_address(&socket, libc::SIOCSIFADDR as _, name, address)?;
    set_address(&socket, libc::SIOCSIFNETMASK as _, name, netmask(prefix_len))?;
    bring_up(&socket, name)?;
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
    // SAFETY: `ifreq` is plain data of integers and byte arrays, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
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
    use super::*;

    #[test]
    fn knows_netmasks() {
        assert_eq!(netmask(30), Ipv4Addr::new(255, 255, 255, 252));
        assert_eq!(netmask(0), Ipv4Addr::UNSPECIFIED);
        assert_eq!(netmask(32), Ipv4Addr::BROADCAST);
    }

    #[test]
    fn refuses_names_that_are_no_interface() {
        for name in ["", "a/b", "0123456789abcdef"] {
            assert_eq!(open(name, Ipv4Addr::LOCALHOST, 30).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
        }
    }

    #[test]
    fn makes_a_tap_that_vanishes_with_its_descriptor() {
        let tap = match open("osttest0", Ipv4Addr::new(172, 30, 255, 253), 30) {
            Ok(tap) => tap,
            Err(error) => return println!("skipped: needs CAP_NET_ADMIN and /dev/net/tun ({error})"),
        };
        let net = std::path::Path::new("/sys/class/net/osttest0");
        let read = |file: &str| std::fs::read_to_string(net.join(file)).unwrap();
        assert_eq!(u32::from_str_radix(read("flags").trim().trim_start_matches("0x"), 16).unwrap() & 1, 1);
        let twice = open("osttest0", Ipv4Addr::new(172, 30, 255, 253), 30).unwrap_err();
        assert_eq!(twice.kind(), io::ErrorKind::ResourceBusy);
        drop(tap);
        assert!(!net.exists());
    }
}
