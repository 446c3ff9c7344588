//! Where a PCI function sits on the host. Key type: [`Bdf`].

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A PCI function's address: domain, bus, device, function; `0000:03:10.0` as sysfs writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bdf {
    domain: u16,
    bus: u8,
    /// Device in bits 3 to 7, function in bits 0 to 2 (PCI Local Bus 3.0, section 3.2.2.3.2).
    devfn: u8,
}

impl Bdf {
    /// `None` if `device` is above 31 or `function` above 7.
    pub fn new(domain: u16, bus: u8, device: u8, function: u8) -> Option<Self> {
        (device < 32 && function < 8).then_some(Self { domain, bus, devfn: device << 3 | function })
    }

    /// The segment.
    pub fn domain(self) -> u16 {
        self.domain
    }

    /// The bus in its domain.
    pub fn bus(self) -> u8 {
        self.bus
    }

    /// The device on its bus, 0 to 31.
    pub fn device(self) -> u8 {
        self.devfn >> 3
    }

    /// The function of its device, 0 to 7.
    pub fn function(self) -> u8 {
        self.devfn & 7
    }

    /// Has `write` take the address as sysfs writes it. Without formatting: a question of policy spells hundreds.
    fn spell<T>(self, write: impl FnOnce(&str) -> T) -> T {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |value: u8| DIGITS[usize::from(value & 15)];
        let hex = |byte: u8| [digit(byte >> 4), digit(byte)];
        let [high, low] = self.domain.to_be_bytes();
        let ([a, b], [c, d]) = (hex(high), hex(low));
        let ([e, f], [g, h]) = (hex(self.bus), hex(self.device()));
        let text = [a, b, c, d, b':', e, f, b':', g, h, b'.', digit(self.function())];
        write(std::str::from_utf8(&text).unwrap_or_else(|_| unreachable!("hexadecimal digits and signs")))
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.spell(|text| f.write_str(text))
    }
}

/// A text that is no PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a PCI address: expected domain:bus:device.function in hexadecimal, such as 0000:03:10.0")]
pub struct BdfError(String);

/// A text where people may read it, else three numbers: a question of policy holds hundreds.
impl Serialize for Bdf {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            self.spell(|text| serializer.serialize_str(text))
        } else {
            (self.domain, self.bus, self.devfn).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Bdf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            let (domain, bus, devfn) = Deserialize::deserialize(deserializer)?;
            Ok(Self { domain, bus, devfn })
        }
    }
}

impl FromStr for Bdf {
    type Err = BdfError;

    /// Takes the domain in four digits, as sysfs has it, or leaves it out for 0000.
    fn from_str(text: &str) -> Result<Self, BdfError> {
        let parse = || {
            let (rest, function) = text.split_once('.')?;
            let mut parts = rest.rsplit(':');
            let (device, bus) = (digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
            let domain = parts.next().map_or(Some(0), |domain| digits(domain, 4))?;
            if parts.next().is_some() {
                return None;
            }
            let bus = u8::try_from(bus).ok()?;
            Self::new(domain, bus, u8::try_from(device).ok()?, u8::try_from(digits(function, 1)?).ok()?)
        };
        parse().ok_or_else(|| BdfError(text.chars().take(64).collect()))
    }
}

/// A number of exactly `len` hexadecimal digits.
fn digits(text: &str, len: usize) -> Option<u16> {
    let is_hexadecimal = text.len() == len && text.bytes().all(|b| b.is_ascii_hexdigit());
    is_hexadecimal.then(|| u16::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for text in ["0000:03:10.0", "abcd:ff:1f.7"] {
            assert_eq!(text.parse::<Bdf>().unwrap().to_string(), text);
        }
        assert_eq!("03:10.0".parse::<Bdf>(), "0000:03:10.0".parse());
    }

    #[test]
    fn is_a_text_for_people_and_short_for_programs() {
        let address: Bdf = "abcd:ff:1f.7".parse().unwrap();
        assert_eq!(serde_json::to_string(&address).unwrap(), "\"abcd:ff:1f.7\"");
        assert_eq!(serde_json::from_str::<Bdf>("\"abcd:ff:1f.7\"").unwrap(), address);
        assert!(serde_json::from_str::<Bdf>("\"abcd:ff:20.0\"").is_err());
        let bytes = postcard::to_allocvec(&address).unwrap();
        assert_eq!((postcard::from_bytes(&bytes), bytes.len()), (Ok(address), 5));
    }

    #[test]
    fn refuses_what_is_no_address() {
        let texts = [
            "",
            "0000:03:10",
            "0000:03:20.0",
            "0000:03:10.8",
            "3:10.0",
            "0:0000:03:10.0",
            "00+0:03:10.0",
            "03:10.0/..",
        ];
        for text in texts {
            assert!(text.parse::<Bdf>().is_err(), "{text}");
        }
    }
}
