//! Settings to [`Rules`].

use crate::rules::Rules;
use ostler_policy::preferences::{NumaRule, Preference, RootPort, Spread};
use ostler_policy::{Reader, Source};

/// Every key.
pub(crate) const KEYS: [&str; 14] = [
    "last-tenant",
    "macs",
    "max-tx-mbps",
    "min-link-mbps",
    "numa-node",
    "numa-strict",
    "other-tenants",
    "require-link",
    "root-port",
    "spoof-check",
    "spread",
    "trust",
    "vlan",
    "vlans",
];
/// IEEE 802.1Q, table 9-2: 0 is untagged, 4095 reserved.
const MAX_VLAN: u16 = 4094;

pub(crate) fn read(reader: &mut Reader<'_, impl Source>) -> Rules {
    let rate = |value: u64| u32::try_from(value).ok();
    Rules {
        requires_link: reader.flag("require-link").unwrap_or(true),
        min_link_mbps: reader.number("min-link-mbps", 1..=u32::MAX.into()).and_then(rate),
        numa: NumaRule::read(reader),
        spread: Spread::read(reader),
        root_port: RootPort::read(reader),
        other_tenants: Preference::of_other_tenants(reader),
        last_tenant: Preference::of_last_tenant(reader),
        vlans: reader.parsed("vlans", ranges).unwrap_or_default(),
        vlan: reader.number("vlan", 1..=MAX_VLAN.into()).and_then(|vlan| u16::try_from(vlan).ok()),
        macs: reader.parsed("macs", mac_prefix),
        max_tx_mbps: reader.number("max-tx-mbps", 1..=u32::MAX.into()).and_then(rate),
        trust: reader.flag("trust"),
        spoof_check: reader.flag("spoof-check"),
    }
}

/// `100,200-210` as inclusive ranges.
fn ranges(text: &str) -> Result<Vec<(u16, u16)>, String> {
    let number = |text: &str| match text.trim().parse() {
        Ok(vlan @ 1..=MAX_VLAN) => Ok(vlan),
        _ => Err(format!("{text:?} is no VLAN: 1 to {MAX_VLAN} are allowed")),
    };
    text.split(',')
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first <= last { Ok((first, last)) } else { Err(format!("{part:?} is an empty range")) }
        })
        .collect()
}

/// Whole bytes of an Ethernet address, in lower case.
fn mac_prefix(text: &str) -> Result<String, String> {
    let is_byte = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
    if text.split(':').all(is_byte) && text.len() <= "02:00:00:00:00:01".len() {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!("{text:?} is no beginning of an Ethernet address; write whole bytes, such as 02:aa"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ostler_policy::testing::read;

    #[test]
    fn reads_every_setting() {
        let rules = read([
            ("require-link", "false"),
            ("min-link-mbps", "10"),
            ("numa-node", "1"),
            ("numa-strict", "true"),
            ("spread", "pack"),
            ("root-port", "apart"),
            ("other-tenants", "refuse"),
            ("last-tenant", "avoid"),
            ("vlans", "100, 200-210"),
            ("vlan", "100"),
            ("macs", "02:AA"),
            ("max-tx-mbps", "50"),
            ("trust", "true"),
            ("spoof-check", "false"),
        ]);
        let expected = Rules {
            requires_link: false,
            min_link_mbps: Some(10),
            numa: Some(NumaRule { node: 1, is_strict: true }),
            spread: Spread::Pack,
            root_port: RootPort::Apart,
            other_tenants: Preference::Refuse,
            last_tenant: Preference::Avoid,
            vlans: vec![(100, 100), (200, 210)],
            vlan: Some(100),
            macs: Some("02:aa".into()),
            max_tx_mbps: Some(50),
            trust: Some(true),
            spoof_check: Some(false),
        };
        assert_eq!(rules, Ok(expected));
        assert_eq!(read([]), Ok(Rules::default()));
    }

    #[test]
    fn names_every_setting_that_is_wrong() {
        let wrong = read::<Rules>([
            ("min-link", "1"),
            ("numa-strict", "true"),
            ("spread", "evenly"),
            ("root-port", "0000:00:01.0"),
            ("vlans", "1-5000"),
            ("vlan", "0"),
            ("macs", "2:a"),
        ]);
        let wrong = wrong.unwrap_err();
        let keys: Vec<_> = wrong.iter().map(|invalid| invalid.key.as_str()).collect();
        assert_eq!(keys, ["min-link", "numa-strict", "spread", "root-port", "vlans", "vlan", "macs"]);
    }

    #[test]
    fn lists_of_vlans_are_read_strictly() {
        for text in ["", ",", "1-", "9-8", "4095", "x", "1,,2"] {
            assert!(ranges(text).is_err(), "{text:?}");
        }
        assert_eq!(ranges("4094"), Ok(vec![(4094, 4094)]));
    }
}
