//! Network links of the host and the virtual functions behind them (rtnetlink(7), linux/if_link.h). Key types:
//! [`Rtnl`], [`Link`], [`VfConfig`].
//!
//! `daemon/inventory` reads with it, `daemon/hostdev` writes. Encoding is the `netlink-packet-route` crate's. Each
//! request is answered by the kernel before the next: calls block for as long as the driver works, and need
//! `CAP_NET_ADMIN` to write.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage, LinkVfInfo, VfInfo, VfInfoLinkState, VfInfoMac, VfInfoRate,
    VfInfoSpoofCheck, VfInfoTrust, VfLinkState, VfVlan, VfVlanInfo, VlanProtocol,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Messages of one answer that are not it (late answers, notifications) and are skipped, at most.
const MAX_SKIPPED: usize = 64;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// `IFLA_IFNAME`.
    pub name: String,
    /// Its number, which names it in requests.
    pub index: u32,
    /// The address that it was made with (`IFLA_PERM_ADDRESS`), else the one that it has.
    pub permanent_mac: Option<[u8; 6]>,
    /// The address that it has now.
    pub mac: Option<[u8; 6]>,
    /// It is switched on (`IFF_UP`).
    pub is_up: bool,
    /// It has a peer (`IFF_LOWER_UP`).
    pub has_carrier: bool,
    /// Its virtual functions; the position is the number.
    pub vfs: Vec<VfConfig>,
}

/// What a physical function's driver does for one of its virtual functions (`IFLA_VF_INFO`).
///
/// A driver that knows nothing of a property reports it as off or zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VfConfig {
    /// All zeroes: the virtual function's own driver chooses.
    pub mac: [u8; 6],
    /// The port VLAN.
    pub vlan: VfVlanConfig,
    /// Lowest and highest transmit rate in Mbit/s; 0: no limit.
    pub min_tx_mbps: u32,
    /// See `min_tx_mbps`.
    pub max_tx_mbps: u32,
    /// Frames with another source address are dropped.
    pub checks_spoofing: bool,
    /// It may change its address and listen to all.
    pub is_trusted: bool,
    /// What it sees of the link.
    pub link_state: LinkState,
}

/// A port VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VfVlanConfig {
    /// 0: none.
    pub id: u16,
    /// Priority, 0 to 7.
    pub qos: u8,
    /// The outer tag of 802.1ad instead of an 802.1Q tag.
    pub is_service_tag: bool,
}

/// What a virtual function sees of the link (`IFLA_VF_LINK_STATE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinkState {
    /// The physical function's.
    #[default]
    Auto,
    /// Always up.
    Enable,
    /// Always down.
    Disable,
}

/// One setting of a virtual function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VfChange {
    /// See [`VfConfig::mac`].
    Mac([u8; 6]),
    /// See [`VfConfig::vlan`].
    Vlan(VfVlanConfig),
    /// See [`VfConfig::min_tx_mbps`] and [`VfConfig::max_tx_mbps`].
    Rate {
        /// Mbit/s; 0: none.
        min_tx_mbps: u32,
        /// Mbit/s; 0: no limit.
        max_tx_mbps: u32,
    },
    /// See [`VfConfig::checks_spoofing`].
    SpoofCheck(bool),
    /// See [`VfConfig::is_trusted`].
    Trust(bool),
    /// See [`VfConfig::link_state`].
    LinkState(LinkState),
}

/// A connection to the kernel's link table.
#[derive(Debug)]
pub struct Rtnl {
    socket: Socket,
    sequence: u32,
}

impl Rtnl {
    /// Opens a connection.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The interface `name` (1 to 15 bytes); `NotFound` if there is none.
    pub fn link(&mut self, name: &str) -> io::Result<Link> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Vf, LinkExtentMask::SkipStats]));
        let answer = self.ask(RouteNetlinkMessage::GetLink(message), 0).map_err(|error| {
            // ENODEV has no kind of its own.
            let is_absent = error.raw_os_error() == Some(libc::ENODEV);
            if is_absent { io::Error::new(io::ErrorKind::NotFound, error) } else { error }
        })?;
        answer.map(decode).ok_or_else(|| invalid("the kernel acknowledged a question about a link, without an answer"))
    }

    /// Switches an interface on.
    pub fn set_up(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.ask(RouteNetlinkMessage::SetLink(message), NLM_F_ACK).map(drop)
    }

    /// Changes one setting of virtual function `vf` of the physical function `index`.
    pub fn set_vf(&mut self, index: u32, vf: u32, change: VfChange) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![encode(vf, change)])]));
        self.ask(RouteNetlinkMessage::SetLink(message), NLM_F_ACK).map(drop)
    }

    /// Sends a request and reads its answer: a link, nothing but an acknowledgement, or the error.
    fn ask(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<Option<LinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        for _ in 0..MAX_SKIPPED {
            let (bytes, _) = self.socket.recv_from_full()?;
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).map_err(invalid)?;
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            return match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link)),
                NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
                NetlinkPayload::Error(_) => Ok(None),
                other => Err(invalid(format!("unexpected message of type {}", other.message_type()))),
            };
        }
        Err(invalid("no answer among many messages"))
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn encode(vf: u32, change: VfChange) -> VfInfo {
    match change {
        VfChange::Mac(mac) => VfInfo::Mac(VfInfoMac::new(vf, &mac)),
        VfChange::Vlan(vlan) => {
            let protocol = if vlan.is_service_tag { VlanProtocol::Ieee8021Ad } else { VlanProtocol::Ieee8021Q };
            VfInfo::VlanList(vec![VfVlan::Info(VfVlanInfo::new(vf, vlan.id.into(), vlan.qos.into(), protocol))])
        }
        VfChange::Rate { min_tx_mbps, max_tx_mbps } => VfInfo::Rate(VfInfoRate::new(vf, min_tx_mbps, max_tx_mbps)),
        VfChange::SpoofCheck(is_on) => VfInfo::SpoofCheck(VfInfoSpoofCheck::new(vf, is_on)),
        VfChange::Trust(is_on) => VfInfo::Trust(VfInfoTrust::new(vf, is_on)),
        VfChange::LinkState(state) => VfInfo::LinkState(VfInfoLinkState::new(
            vf,
            match state {
                LinkState::Auto => VfLinkState::Auto,
                LinkState::Enable => VfLinkState::Enable,
                LinkState::Disable => VfLinkState::Disable,
            },
        )),
    }
}

fn decode(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        name: String::new(),
        index: message.header.index,
        permanent_mac: None,
        mac: None,
        is_up: flags.contains(LinkFlags::Up),
        has_carrier: flags.contains(LinkFlags::LowerUp),
        vfs: Vec::new(),
    };
    let ethernet = |bytes: Vec<u8>| <[u8; 6]>::try_from(bytes).ok();
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(address) => link.mac = ethernet(address),
            LinkAttribute::PermAddress(address) => link.permanent_mac = ethernet(address),
            LinkAttribute::VfInfoList(vfs) => link.vfs = vfs.into_iter().map(decode_vf).collect(),
            _ => {}
        }
    }
    link.permanent_mac = link.permanent_mac.or(link.mac);
    link
}

fn decode_vf(info: LinkVfInfo) -> VfConfig {
    let mut config = VfConfig::default();
    for property in info.0 {
        match property {
            VfInfo::Mac(mac) => config.mac = mac.mac.first_chunk().copied().unwrap_or_default(),
            VfInfo::VlanList(list) => {
                if let Some(VfVlan::Info(vlan)) = list.first() {
                    config.vlan = VfVlanConfig {
                        id: u16::try_from(vlan.vlan_id).unwrap_or(0),
                        qos: u8::try_from(vlan.qos).unwrap_or(0),
                        is_service_tag: vlan.vlan_id != 0 && vlan.protocol == VlanProtocol::Ieee8021Ad,
                    };
                }
            }
            VfInfo::Rate(rate) => (config.min_tx_mbps, config.max_tx_mbps) = (rate.min_tx_rate, rate.max_tx_rate),
            VfInfo::SpoofCheck(check) => config.checks_spoofing = check.enabled,
            VfInfo::Trust(trust) => config.is_trusted = trust.enabled,
            VfInfo::LinkState(state) => {
                config.link_state = match state.state {
                    VfLinkState::Enable => LinkState::Enable,
                    VfLinkState::Disable => LinkState::Disable,
                    _ => LinkState::Auto,
                }
            }
            _ => {}
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_loopback_interface_and_knows_what_is_not_there() {
        let mut rtnl = Rtnl::open().unwrap();
        let link = rtnl.link("lo").unwrap();
        assert_eq!((link.name.as_str(), link.mac, link.vfs.len()), ("lo", Some([0; 6]), 0));
        assert!(link.index > 0);
        assert_eq!(rtnl.link("ost-none").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(rtnl.set_vf(link.index, 0, VfChange::Trust(true)).is_err());
        assert_eq!(rtnl.link("lo").unwrap().index, link.index, "the connection goes on after an error");
    }

    #[test]
    fn reads_the_settings_that_it_writes() {
        let changes = [
            VfChange::Mac([2, 0, 0, 0, 0, 9]),
            VfChange::Vlan(VfVlanConfig { id: 100, qos: 3, is_service_tag: true }),
            VfChange::Rate { min_tx_mbps: 1, max_tx_mbps: 500 },
            VfChange::SpoofCheck(true),
            VfChange::Trust(true),
            VfChange::LinkState(LinkState::Enable),
        ];
        let config = decode_vf(LinkVfInfo(changes.into_iter().map(|change| encode(7, change)).collect()));
        let expected = VfConfig {
            mac: [2, 0, 0, 0, 0, 9],
            vlan: VfVlanConfig { id: 100, qos: 3, is_service_tag: true },
            min_tx_mbps: 1,
            max_tx_mbps: 500,
            checks_spoofing: true,
            is_trusted: true,
            link_state: LinkState::Enable,
        };
        assert_eq!(config, expected);
    }
}
