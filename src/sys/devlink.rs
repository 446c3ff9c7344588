//! How a card switches frames between its functions: devlink(8), linux/devlink.h, by generic netlink (linux/genetlink.h).
//! Key function: [`eswitch_mode`].

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

/// Numbers of linux/netlink.h, linux/genetlink.h and linux/devlink.h.
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const DEVLINK_CMD_ESWITCH_GET: u8 = 29;
const DEVLINK_ATTR_BUS_NAME: u16 = 1;
const DEVLINK_ATTR_DEV_NAME: u16 = 2;
const DEVLINK_ATTR_ESWITCH_MODE: u16 = 25;
/// Flags in an attribute's type (`NLA_TYPE_MASK` leaves them out).
const TYPE_MASK: u16 = 0x3fff;
/// Lengths of a message's header, of the generic one behind it, and of an attribute's.
const HEADER_LEN: usize = 16;
const GENERIC_LEN: usize = 4;
const ATTRIBUTE_LEN: usize = 4;

/// What a card does with frames between its functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EswitchMode {
    /// It forwards them by address and VLAN; the settings of virtual functions are the physical one's.
    Legacy,
    /// Rules of the host say, by an interface for each function, its representor.
    Switchdev,
    /// A mode that came later.
    Other(u16),
}

/// The mode of the device of that name on that bus (`pci`, `0000:01:00.0`); `None` if its driver knows of no such modes, or
/// the kernel of none. Needs `CAP_NET_ADMIN`.
pub fn eswitch_mode(bus: &str, device: &str) -> io::Result<Option<EswitchMode>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let family = match ask(&socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &[(CTRL_ATTR_FAMILY_NAME, "devlink")]) {
        Ok(answer) => attribute(&answer, CTRL_ATTR_FAMILY_ID).ok_or_else(|| invalid("no number of the family"))?,
        Err(error) => return if is_unknown(&error) { Ok(None) } else { Err(error) },
    };
    let of_device = [(DEVLINK_ATTR_BUS_NAME, bus), (DEVLINK_ATTR_DEV_NAME, device)];
    match ask(&socket, family, DEVLINK_CMD_ESWITCH_GET, &of_device) {
        Ok(answer) => Ok(attribute(&answer, DEVLINK_ATTR_ESWITCH_MODE).map(|mode| match mode {
            0 => EswitchMode::Legacy,
            1 => EswitchMode::Switchdev,
            other => EswitchMode::Other(other),
        })),
        Err(error) => {
            if is_unknown(&error) {
                Ok(None)
            } else {
                Err(error)
            }
        }
    }
}

/// No such family, device, or command of its driver.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP))
}

/// Sends one request and reads its answer: the attributes.
fn ask(socket: &Socket, kind: u16, command: u8, attributes: &[(u16, &str)]) -> io::Result<Vec<u8>> {
    socket.send(&request(kind, command, attributes), 0)?;
    let (bytes, _) = socket.recv_from_full()?;
    answer(&bytes)
}

fn request(kind: u16, command: u8, attributes: &[(u16, &str)]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    bytes.extend([command, 1, 0, 0]);
    for (kind, text) in attributes {
        // Names end with a zero byte, attributes on a multiple of four.
        let len = ATTRIBUTE_LEN + text.len() + 1;
        bytes.extend(u16::try_from(len).unwrap_or(u16::MAX).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(text.as_bytes());
        bytes.resize(bytes.len() + 1 + (len.next_multiple_of(4) - len), 0);
    }
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&len.to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    bytes
}

/// The attributes of an answer, or the error that it is.
fn answer(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let kind = u16_at(bytes, 4).ok_or_else(|| invalid("an answer that is too short"))?;
    if kind == NLMSG_ERROR {
        let code = bytes.get(HEADER_LEN..HEADER_LEN + 4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
        let code = code.ok_or_else(|| invalid("an error without a number"))?;
        return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
    }
    let len = bytes.get(..4).and_then(|len| len.try_into().ok()).map_or(0, u32::from_ne_bytes) as usize;
    let attributes = bytes.get(HEADER_LEN + GENERIC_LEN..len.min(bytes.len()));
    attributes.map(<[u8]>::to_vec).ok_or_else(|| invalid("an answer that is too short"))
}

/// The first attribute of that type, as a number of 16 bits.
fn attribute(attributes: &[u8], kind: u16) -> Option<u16> {
    let mut at = 0;
    loop {
        let (len, found) = (usize::from(u16_at(attributes, at)?), u16_at(attributes, at + 2)? & TYPE_MASK);
        if len < ATTRIBUTE_LEN {
            return None;
        }
        if found == kind {
            return (len >= ATTRIBUTE_LEN + 2).then(|| u16_at(attributes, at + ATTRIBUTE_LEN)).flatten();
        }
        at += len.next_multiple_of(4);
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_no_driver_knows_of_has_no_mode() {
        assert_eq!(eswitch_mode("pci", "ffff:ff:1f.7").unwrap(), None);
        // The kernel's own controller knows itself: requests and answers are as it has them.
        let mut socket = Socket::new(NETLINK_GENERIC).unwrap();
        socket.bind_auto().unwrap();
        socket.connect(&SocketAddr::new(0, 0)).unwrap();
        let own = ask(&socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &[(CTRL_ATTR_FAMILY_NAME, "nlctrl")]).unwrap();
        assert_eq!(attribute(&own, CTRL_ATTR_FAMILY_ID), Some(GENL_ID_CTRL));
        let none = ask(&socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &[(CTRL_ATTR_FAMILY_NAME, "ostler")]).unwrap_err();
        assert!(is_unknown(&none), "{none}");
    }

    #[test]
    fn reads_the_mode_behind_the_names() {
        // As mlx5 answers: bus, device, mode, inline mode.
        let mut bytes = request(30, DEVLINK_CMD_ESWITCH_GET, &[(1, "pci"), (2, "0000:01:00.0")]);
        for (kind, value) in [(DEVLINK_ATTR_ESWITCH_MODE, 1u16), (26, 0)] {
            bytes.extend(6u16.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value.to_ne_bytes());
            bytes.extend([0, 0]);
        }
        let len = bytes.len() as u32;
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        assert_eq!(attribute(&answer(&bytes).unwrap(), DEVLINK_ATTR_ESWITCH_MODE), Some(1));
    }

    proptest! {
        #[test]
        fn takes_any_answer(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            if let Ok(attributes) = answer(&bytes) {
                attribute(&attributes, DEVLINK_ATTR_ESWITCH_MODE);
            }
        }
    }
}
