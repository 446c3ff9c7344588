//! Settings to [`Rules`].

use crate::rules::Rules;
use ostler_policy::preferences::{NumaRule, Preference, RootPort, Spread};
use ostler_policy::{Reader, Source};

/// Every key.
pub(crate) const KEYS: [&str; 11] = [
    "block-bytes",
    "last-tenant",
    "max-mib",
    "max-wear",
    "numa-node",
    "numa-strict",
    "other-tenants",
    "root-port",
    "size-slack",
    "spread",
    "whole",
];
/// Most slack that makes sense, in percent: a hundred times as large.
const MAX_SLACK: u64 = 10_000;
/// NVM Express Base 2.0, figure 275: a serial number has 20 bytes.
const MAX_SERIAL_LEN: usize = 20;

pub(crate) fn read(reader: &mut Reader<'_, impl Source>) -> Rules {
    Rules {
        slack_percent: reader.number("size-slack", 0..=MAX_SLACK).unwrap_or(Rules::default().slack_percent),
        max_mib: reader.number("max-mib", 1..=u64::MAX >> 20),
        block_bytes: reader.parsed("block-bytes", block_size),
        max_wear: reader.number("max-wear", 0..=u8::MAX.into()).and_then(|wear| u8::try_from(wear).ok()),
        spread: Spread::read(reader),
        numa: NumaRule::read(reader),
        root_port: RootPort::read(reader),
        other_tenants: Preference::of_other_tenants(reader),
        last_tenant: Preference::of_last_tenant(reader),
        whole: reader.parsed("whole", serials).unwrap_or_default(),
    }
}

fn block_size(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(bytes) if bytes.is_power_of_two() && (512..=64 << 10).contains(&bytes) => Ok(bytes),
        _ => Err(format!("{text:?} is no size of a logical block: 512, 4096, … up to 65536")),
    }
}

fn serials(text: &str) -> Result<Vec<String>, String> {
    let serial = |text: &str| match text.trim() {
        serial if (1..=MAX_SERIAL_LEN).contains(&serial.len()) => Ok(serial.to_owned()),
        serial => Err(format!("{serial:?} is no serial number: 1 to {MAX_SERIAL_LEN} bytes")),
    };
    text.split(',').map(serial).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ostler_policy::testing::read;

    #[test]
    fn reads_every_setting() {
        let rules = read([
            ("size-slack", "10"),
            ("max-mib", "1024"),
            ("block-bytes", "4096"),
            ("max-wear", "80"),
            ("spread", "pack"),
            ("numa-node", "1"),
            ("numa-strict", "true"),
            ("root-port", "together"),
            ("other-tenants", "refuse"),
            ("last-tenant", "avoid"),
            ("whole", "S1, S2"),
        ]);
        let expected = Rules {
            slack_percent: 10,
            max_mib: Some(1024),
            block_bytes: Some(4096),
            max_wear: Some(80),
            spread: Spread::Pack,
            numa: Some(NumaRule { node: 1, is_strict: true }),
            root_port: RootPort::Together,
            other_tenants: Preference::Refuse,
            last_tenant: Preference::Avoid,
            whole: vec!["S1".into(), "S2".into()],
        };
        assert_eq!(rules, Ok(expected));
        assert_eq!(read([]), Ok(Rules::default()));
    }

    #[test]
    fn names_every_setting_that_is_wrong() {
        let wrong = read::<Rules>([
            ("slack", "1"),
            ("numa-strict", "true"),
            ("size-slack", "10001"),
            ("max-mib", "0"),
            ("block-bytes", "1000"),
            ("max-wear", "256"),
            ("spread", "evenly"),
            ("root-port", "0000:00:01.0"),
            ("whole", "S1,"),
        ]);
        let wrong = wrong.unwrap_err();
        let keys: Vec<_> = wrong.iter().map(|invalid| invalid.key.as_str()).collect();
        let expected = "slack size-slack max-mib block-bytes max-wear spread numa-strict root-port whole";
        assert_eq!(keys.join(" "), expected);
    }
}
