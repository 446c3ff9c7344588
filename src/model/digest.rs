//! SHA-256 digests as `sha256:` and 64 hexadecimal digits. Key types: [`PluginDigest`], [`RecordHash`],
//! [`SignerId`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest: expected sha256: and 64 hexadecimal digits in lower case")]
pub struct DigestError(String);

const PREFIX: &str = "sha256:";

fn parse(text: &str) -> Result<[u8; 32], DigestError> {
    // A refused text may be long: the error shows as much as a digest would have.
    let refuse = || DigestError(text.chars().take(PREFIX.len() + 64).collect());
    let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let hex = text.strip_prefix(PREFIX).filter(|hex| hex.len() == 64 && hex.bytes().all(is_hex)).ok_or_else(refuse)?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| refuse())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| refuse())?;
    }
    Ok(bytes)
}

macro_rules! digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(PREFIX)?;
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = DigestError;

            fn from_str(text: &str) -> Result<Self, DigestError> {
                parse(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = DigestError;

            fn try_from(text: String) -> Result<Self, DigestError> {
                parse(&text).map(Self)
            }
        }

        impl From<$name> for String {
            fn from(digest: $name) -> Self {
                digest.to_string()
            }
        }
    };
}

digest! {
    /// Content address of a plugin: SHA-256 of the component's bytes.
    PluginDigest
}
digest! {
    /// Hash of a record in a tenant's chain of decisions: SHA-256 of its canonical bytes, which hold the hash before it.
    RecordHash
}

digest! {
    /// Names a key that signs plugins: SHA-256 of its SubjectPublicKeyInfo.
    SignerId
}

impl RecordHash {
    /// Stands before the first record of a chain.
    pub const START: Self = Self([0; 32]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_nothing_else() {
        let digest = PluginDigest(std::array::from_fn(|at| at as u8 * 7));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        let text = digest.to_string();
        for wrong in [&text[1..], &text[..70], &format!("{text}0"), &text.to_uppercase(), &text.replace('7', "g"), ""] {
            assert!(wrong.parse::<PluginDigest>().is_err(), "{wrong}");
        }
        assert!("x".repeat(1 << 16).parse::<RecordHash>().unwrap_err().to_string().len() < 300);
    }
}
