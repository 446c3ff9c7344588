//! One virtual function from the host to a guest and back. Key functions: [`prepare`], [`release`].
//!
//! The order of settings is the one that drivers of several vendors take: VLAN, address, rate, spoof check, trust, link
//! state; back in reverse. Only what differs is written: a driver that does not know a property shows it as off.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use super::HostdevError;
use super::bind::{BINDING, PciBus, UNBINDING};
use super::reset::{RESETTING, reset};
use crate::daemon::crash::{self, Point};
use crate::daemon::operation::{Step, Underway};
use crate::model::{Bdf, MacAddr};
use crate::sys::rtnl::{Link, Rtnl, VfChange, VfConfig};

/// How long a card may take from being switched on to its carrier: auto-negotiation takes some seconds.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(10);
/// Rounds of writing what differs and reading it back, and the time between them: a card that is resetting a virtual
/// function is busy for some tenths of a second.
const SETTLE_ROUNDS: u32 = 30;
const PAUSE: Duration = Duration::from_millis(100);

/// What is told of them, there and back.
const SETTING: &str = "writing the virtual function's settings";

/// Where a virtual function is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfPlace {
    /// Its card's network interface.
    pub pf_interface: String,
    /// Its number on the card.
    pub index: u16,
    /// Its address.
    pub address: Bdf,
}

/// Makes a virtual function ready for a guest: the card up and with carrier, settings as `wanted`, vfio-pci bound,
/// reset. Blocks for up to some 20 s. On an error it may be anywhere in between: [`release`] it. `operation` is told what
/// is done.
pub fn prepare(place: &VfPlace, wanted: &VfConfig, operation: &Underway) -> Result<(), HostdevError> {
    let bus = PciBus::of_host();
    let mut card = Card::open(place)?;
    operation.tell(Step::new("waiting for the network card's carrier"));
    card.wait_for_carrier()?;
    operation.tell(Step::new(SETTING));
    settle(&mut card, wanted, Direction::There)?;
    crash::reach(Point::VfSet);
    operation.tell(Step::new(BINDING));
    bus.bind_to_vfio(place.address)?;
    crash::reach(Point::VfBound);
    operation.tell(Step::new(RESETTING));
    reset(&bus.dir(place.address), place.address)?;
    // Some cards forget part of it in a reset; and what is shown now is what the guest gets.
    operation.tell(Step::new("checking the virtual function's settings"));
    settle(&mut card, wanted, Direction::There)?;
    crash::reach(Point::VfReady);
    Ok(())
}

/// Cleans a virtual function: reset, unbound from vfio-pci, settings as `original`. It stays without a driver. Blocks
/// for up to some 10 s; can be repeated. `operation` is told what is done.
pub fn release(place: &VfPlace, original: &VfConfig, operation: &Underway) -> Result<(), HostdevError> {
    let bus = PciBus::of_host();
    let mut card = Card::open(place)?;
    operation.tell(Step::new(RESETTING));
    reset(&bus.dir(place.address), place.address)?;
    crash::reach(Point::VfReset);
    operation.tell(Step::new(UNBINDING));
    bus.leave_vfio(place.address)?;
    crash::reach(Point::VfUnbound);
    operation.tell(Step::new(SETTING));
    settle(&mut card, original, Direction::Back)?;
    crash::reach(Point::VfRestored);
    Ok(())
}

/// Which way settings go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    There,
    Back,
}

/// What has to be written for `shown` to become `wanted`, in order.
fn changes(shown: &VfConfig, wanted: &VfConfig, direction: Direction) -> Vec<VfChange> {
    let rate = |config: &VfConfig| (config.min_tx_mbps, config.max_tx_mbps);
    let (min_tx_mbps, max_tx_mbps) = rate(wanted);
    let mut changes: Vec<_> = [
        (shown.vlan != wanted.vlan).then_some(VfChange::Vlan(wanted.vlan)),
        (shown.mac != wanted.mac).then_some(VfChange::Mac(wanted.mac)),
        (rate(shown) != rate(wanted)).then_some(VfChange::Rate { min_tx_mbps, max_tx_mbps }),
        (shown.checks_spoofing != wanted.checks_spoofing).then_some(VfChange::SpoofCheck(wanted.checks_spoofing)),
        (shown.is_trusted != wanted.is_trusted).then_some(VfChange::Trust(wanted.is_trusted)),
        (shown.link_state != wanted.link_state).then_some(VfChange::LinkState(wanted.link_state)),
    ]
    .into_iter()
    .flatten()
    .collect();
    if direction == Direction::Back {
        changes.reverse();
    }
    changes
}

/// A setting as people read it.
struct Shown(VfChange);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on_off = |is_on| if is_on { "on" } else { "off" };
        match self.0 {
            VfChange::Mac(mac) => write!(f, "address {}", MacAddr(mac)),
            VfChange::Vlan(vlan) => write!(f, "VLAN {} (priority {})", vlan.id, vlan.qos),
            VfChange::Rate { min_tx_mbps, max_tx_mbps } => write!(f, "rate {min_tx_mbps} to {max_tx_mbps} Mbit/s"),
            VfChange::SpoofCheck(is_on) => write!(f, "spoof check {}", on_off(is_on)),
            VfChange::Trust(is_on) => write!(f, "trust {}", on_off(is_on)),
            VfChange::LinkState(state) => write!(f, "link state {state:?}"),
        }
    }
}

/// A connection to the card of one virtual function.
struct Card<'a> {
    place: &'a VfPlace,
    rtnl: Rtnl,
}

impl<'a> Card<'a> {
    fn open(place: &'a VfPlace) -> Result<Self, HostdevError> {
        let rtnl = Rtnl::open();
        rtnl.map(|rtnl| Self { place, rtnl })
            .map_err(|source| HostdevError::Link { interface: place.pf_interface.clone(), source })
    }

    fn link(&mut self) -> Result<Link, HostdevError> {
        let interface = &self.place.pf_interface;
        self.rtnl.link(interface).map_err(|source| HostdevError::Link { interface: interface.clone(), source })
    }

    fn wait_for_carrier(&mut self) -> Result<(), HostdevError> {
        let mut link = self.link()?;
        if !link.is_up {
            let interface = self.place.pf_interface.clone();
            self.rtnl.set_up(link.index).map_err(|source| HostdevError::Link { interface, source })?;
        }
        let start = Instant::now();
        while !link.has_carrier {
            if start.elapsed() > CARRIER_TIMEOUT {
                let interface = self.place.pf_interface.clone();
                return Err(HostdevError::NoCarrier { interface, seconds: CARRIER_TIMEOUT.as_secs() });
            }
            std::thread::sleep(PAUSE);
            link = self.link()?;
        }
        Ok(())
    }
}

/// What shows the settings of one virtual function, and takes them.
trait Settings {
    fn place(&self) -> &VfPlace;
    fn shown(&mut self) -> Result<VfConfig, HostdevError>;
    fn set(&mut self, change: VfChange) -> io::Result<()>;
}

impl Settings for Card<'_> {
    fn place(&self) -> &VfPlace {
        self.place
    }

    fn shown(&mut self) -> Result<VfConfig, HostdevError> {
        let link = self.link()?;
        link.vfs.get(usize::from(self.place.index)).copied().ok_or_else(|| {
            let source = io::Error::new(io::ErrorKind::NotFound, "it has no virtual function of that number");
            HostdevError::Link { interface: self.place.pf_interface.clone(), source }
        })
    }

    fn set(&mut self, change: VfChange) -> io::Result<()> {
        let index = self.rtnl.link(&self.place.pf_interface)?.index;
        self.rtnl.set_vf(index, self.place.index.into(), change)
    }
}

/// Writes what differs and reads it back until nothing does.
fn settle(card: &mut impl Settings, wanted: &VfConfig, direction: Direction) -> Result<(), HostdevError> {
    let (interface, vf) = (card.place().pf_interface.clone(), card.place().address);
    let mut differing = Vec::new();
    for round in 0..SETTLE_ROUNDS {
        if round > 0 {
            std::thread::sleep(PAUSE);
        }
        differing = changes(&card.shown()?, wanted, direction);
        if differing.is_empty() {
            return Ok(());
        }
        for change in &differing {
            match card.set(*change) {
                Ok(()) => {}
                // The card is at work on this very virtual function: the next round tries again.
                Err(error) if is_passing(&error) && round + 1 < SETTLE_ROUNDS => break,
                Err(source) => {
                    let setting = Shown(*change).to_string();
                    return Err(HostdevError::Setting { interface, vf, setting, source });
                }
            }
        }
    }
    let settings = differing.into_iter().map(|change| Shown(change).to_string()).collect::<Vec<_>>().join(", ");
    Err(HostdevError::NotTaken { interface, vf, settings })
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::rtnl::{LinkState, VfVlanConfig};
    use proptest::prelude::*;

    fn any_config() -> impl Strategy<Value = VfConfig> {
        let vlan = (0u16..3, 0u8..2).prop_map(|(id, qos)| VfVlanConfig { id, qos, is_service_tag: false });
        let state = prop_oneof![Just(LinkState::Auto), Just(LinkState::Enable)];
        (any::<bool>(), vlan, 0u32..2, any::<bool>(), any::<bool>(), state).prop_map(
            |(has_mac, vlan, max_tx_mbps, checks_spoofing, is_trusted, link_state)| VfConfig {
                mac: if has_mac { [2, 0, 0, 0, 0, 1] } else { [0; 6] },
                vlan,
                min_tx_mbps: 0,
                max_tx_mbps,
                checks_spoofing,
                is_trusted,
                link_state,
            },
        )
    }

    fn apply(config: &mut VfConfig, change: VfChange) {
        match change {
            VfChange::Mac(mac) => config.mac = mac,
            VfChange::Vlan(vlan) => config.vlan = vlan,
            VfChange::Rate { min_tx_mbps, max_tx_mbps } => {
                (config.min_tx_mbps, config.max_tx_mbps) = (min_tx_mbps, max_tx_mbps);
            }
            VfChange::SpoofCheck(is_on) => config.checks_spoofing = is_on,
            VfChange::Trust(is_on) => config.is_trusted = is_on,
            VfChange::LinkState(state) => config.link_state = state,
        }
    }

    #[test]
    fn sets_the_vlan_first_and_the_address_before_the_spoof_check_and_goes_back_in_reverse() {
        let before = VfConfig { checks_spoofing: true, ..VfConfig::default() };
        let after = VfConfig {
            mac: [2, 0, 0, 0, 0, 1],
            vlan: VfVlanConfig { id: 100, ..Default::default() },
            max_tx_mbps: 10,
            is_trusted: true,
            ..VfConfig::default()
        };
        let there: Vec<_> =
            changes(&before, &after, Direction::There).into_iter().map(|c| Shown(c).to_string()).collect();
        let expected = [
            "VLAN 100 (priority 0)",
            "address 02:00:00:00:00:01",
            "rate 0 to 10 Mbit/s",
            "spoof check off",
            "trust on",
        ];
        assert_eq!(there, expected);
        let back: Vec<_> = changes(&after, &before, Direction::Back);
        assert!(matches!(back.first(), Some(VfChange::Trust(false))), "{back:?}");
        assert!(matches!(back.last(), Some(VfChange::Vlan(_))), "{back:?}");
    }

    /// A card that answers that it is busy so many times, and then takes what it is given, or does not.
    struct Busy {
        place: VfPlace,
        config: VfConfig,
        times: u32,
        takes: bool,
        calls: u32,
    }

    impl Settings for Busy {
        fn place(&self) -> &VfPlace {
            &self.place
        }

        fn shown(&mut self) -> Result<VfConfig, HostdevError> {
            Ok(self.config)
        }

        fn set(&mut self, change: VfChange) -> io::Result<()> {
            self.calls += 1;
            if self.calls <= self.times {
                return Err(io::ErrorKind::ResourceBusy.into());
            }
            if self.takes {
                apply(&mut self.config, change);
            }
            Ok(())
        }
    }

    fn busy(times: u32, takes: bool) -> Busy {
        let place = VfPlace { pf_interface: "eth0".into(), index: 0, address: Bdf::new(0, 1, 16, 0).unwrap() };
        Busy { place, config: VfConfig::default(), times, takes, calls: 0 }
    }

    /// No card of the lab is busy when it is wanted to be: igb answers at once.
    #[test]
    fn a_card_that_still_resets_its_function_is_asked_again_and_not_for_ever() {
        let wanted = VfConfig { mac: [2, 0, 0, 0, 0, 1], is_trusted: true, ..VfConfig::default() };
        let mut card = busy(3, true);
        settle(&mut card, &wanted, Direction::There).unwrap();
        assert_eq!((card.config, card.calls), (wanted, 5));
        let mut card = busy(u32::MAX, true);
        let error = settle(&mut card, &wanted, Direction::There).unwrap_err();
        assert_eq!(card.calls, SETTLE_ROUNDS);
        assert!(error.to_string().starts_with("network card eth0 refuses address 02:00:00:00:00:01"), "{error}");
        let mut card = busy(0, false);
        let error = settle(&mut card, &wanted, Direction::There).unwrap_err();
        assert!(error.to_string().ends_with("address 02:00:00:00:00:01, trust on"), "{error}");
        assert_eq!(card.calls, 2 * SETTLE_ROUNDS);
    }

    proptest! {
        #[test]
        fn what_differs_is_all_that_has_to_be_written(from in any_config(), to in any_config(), is_back in any::<bool>()) {
            let direction = if is_back { Direction::Back } else { Direction::There };
            let mut config = from;
            changes(&from, &to, direction).into_iter().for_each(|change| apply(&mut config, change));
            prop_assert_eq!(config, to);
            prop_assert!(changes(&to, &to, direction).is_empty());
        }
    }
}
