//! NICs of the guest, each linked to this host: a virtual function by its card, virtio-net by a tap. Key type: [`Link`].

use std::net::Ipv4Addr;
use std::process::Command;

use ostler::api::v1;

use super::support::console::Console;
use super::support::shell::run;

/// The card's own interface, and the guest's behind the virtual function.
const CARD: Ipv4Addr = Ipv4Addr::new(172, 31, 255, 1);
const BEHIND_CARD: &str = "172.31.255.2/24";

/// A NIC of the guest.
pub struct Link {
    pub kind: &'static str,
    mac: String,
    /// With the length of its prefix.
    guest: String,
    pub host: Ipv4Addr,
}

impl Link {
    pub fn new(kind: &'static str, nic: &v1::NicStatus) -> Self {
        let (guest, host) = match nic.tap.is_empty() {
            true => (BEHIND_CARD.to_owned(), CARD),
            false => (nic.guest_address.clone(), before_prefix(&nic.host_address)),
        };
        Self { kind, mac: nic.mac.clone(), guest, host }
    }

    /// Gives the guest's interface its address, and sees that the host is reached. The interface's name.
    pub fn bring_up(&self, console: &mut Console) -> String {
        let Self { mac, guest, host, .. } = self;
        let printed = console.run(&format!(
            "for n in /sys/class/net/*; do [ $(cat $n/address) = {mac} ] && i=${{n##*/}}; done; ip addr flush dev $i; \
             ip addr add {guest} dev $i; ip link set $i up; \
             until [ \"$(cat /sys/class/net/$i/carrier)\" = 1 ]; do usleep 50000; done; echo is=$i."
        ));
        console.run(&format!("until ping -q -c 1 -W 1 {host} >/dev/null 2>&1; do usleep 100000; done"));
        // The echo of the line has "is=$i".
        let mut names = printed.split("is=").filter_map(|rest| rest.split_once('.')).map(|(name, _)| name);
        names.find(|name| name.starts_with("eth")).expect("the NIC's name").to_owned()
    }
}

fn before_prefix(address: &str) -> Ipv4Addr {
    let (address, _) = address.split_once('/').expect("an address with a prefix");
    address.parse().expect("an IPv4 address")
}

/// The address of the card's own interface, for as long as it is measured.
pub struct Address<'a>(&'a str);

impl<'a> Address<'a> {
    pub fn on(interface: &'a str) -> Self {
        run("ip", &["addr", "add", &format!("{CARD}/24"), "dev", interface]);
        Self(interface)
    }
}

impl Drop for Address<'_> {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["addr", "del", &format!("{CARD}/24"), "dev", self.0]).status();
    }
}
