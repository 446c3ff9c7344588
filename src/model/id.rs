//! Names and ids. Key types: [`TenantId`], [`VmName`], [`VmId`], [`InstanceId`], [`DeviceId`], [`PluginId`],
//! [`SignerName`], [`RequestId`].
//!
//! Names come from people and are DNS labels (RFC 1123 §2.1), so that they are safe in paths, logs, cgroup names and
//! URIs. Ids are made by the daemon and are ULIDs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use ulid::Ulid;
use uuid::Uuid;

/// Longest name of a tenant, VM or device, in bytes (RFC 1035 §2.3.4: one DNS label).
const MAX_NAME_LEN: usize = 63;

/// Why a name or an id was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The name has no characters.
    #[error("name is empty")]
    Empty,
    /// The name is longer than a DNS label.
    #[error("name has {len} bytes, at most {MAX_NAME_LEN} are allowed")]
    TooLong {
        /// Length of the refused name, in bytes.
        len: usize,
    },
    /// The name holds something other than `a-z`, `0-9` and inner `-`.
    #[error("name {name:?} may hold only a-z, 0-9 and '-', and must start and end with a letter or a digit")]
    BadCharacter {
        /// The refused name.
        name: String,
    },
    /// Not a ULID.
    #[error("{text:?} is not a valid id")]
    NotAnId {
        /// The refused text.
        text: String,
    },
    /// Not a UUID.
    #[error("this is not a UUID such as 123e4567-e89b-42d3-a456-426614174000: make up a new one for each change")]
    NotAUuid,
}

/// Whether a text is a DNS label.
pub(super) fn check_label(name: &str) -> Result<(), IdError> {
    if name.is_empty() {
        return Err(IdError::Empty);
    }
    if name.len() > MAX_NAME_LEN {
        return Err(IdError::TooLong { len: name.len() });
    }
    let is_edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    let is_label = bytes.iter().all(|&b| is_edge(b) || b == b'-')
        && bytes.first().copied().is_some_and(is_edge)
        && bytes.last().copied().is_some_and(is_edge);
    if is_label { Ok(()) } else { Err(IdError::BadCharacter { name: name.to_owned() }) }
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text: 1 to 63 bytes of `a-z`, `0-9` and inner `-`.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                check_label(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                check_label(&text)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

label! {
    /// A tenant, as named by the client certificate's SPIFFE id.
    TenantId
}
label! {
    /// A VM's name, unique within its tenant.
    VmName
}
label! {
    /// A device's name, unique within its VM.
    DeviceId
}
label! {
    /// A policy plugin's name, unique within its scope.
    PluginId
}
label! {
    /// What the operator calls somebody who signs plugins.
    SignerName
}

macro_rules! ulid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Ulid);

        impl $name {
            /// A new id: 48 bits of time, 80 bits of randomness.
            #[allow(clippy::new_without_default, reason = "each call gives another value")]
            pub fn new() -> Self {
                Self(Ulid::generate())
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Ulid::from_string(text).map(Self).map_err(|_| IdError::NotAnId { text: text.to_owned() })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

ulid_id! {
    /// A VM for as long as it is registered.
    VmId
}
ulid_id! {
    /// One run of a VM: a new one at each start, so that a late message of an earlier run is recognised.
    InstanceId
}

/// A client's own id of one request, by which a repetition is recognised (AIP-155).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(Uuid);

impl FromStr for RequestId {
    type Err = IdError;

    /// Reads the hyphenated form of RFC 9562 §4, in upper or lower case; the nil UUID is none.
    fn from_str(text: &str) -> Result<Self, IdError> {
        let is_hyphenated = text.len() == uuid::fmt::Hyphenated::LENGTH;
        let parsed = is_hyphenated.then(|| Uuid::try_parse(text).ok()).flatten();
        parsed.filter(|uuid| !uuid.is_nil()).map(Self).ok_or(IdError::NotAUuid)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.hyphenated(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_uuids_of_one_form() {
        let id: RequestId = "123E4567-e89b-42d3-a456-426614174000".parse().unwrap();
        assert_eq!(id.to_string(), "123e4567-e89b-42d3-a456-426614174000");
        let nil = "00000000-0000-0000-0000-000000000000";
        for text in ["", nil, "123e4567e89b42d3a456426614174000", "{123e4567-e89b-42d3-a456-426614174000}", "é"] {
            assert_eq!(text.parse::<RequestId>(), Err(IdError::NotAUuid), "{text}");
        }
    }

    #[test]
    fn accepts_dns_labels() {
        for name in ["a", "web-1", "0", &"x".repeat(63)] {
            assert!(name.parse::<VmName>().is_ok(), "{name}");
        }
    }

    #[test]
    fn refuses_names_that_would_escape_a_path_or_a_label() {
        assert_eq!("".parse::<VmName>(), Err(IdError::Empty));
        assert_eq!("x".repeat(300).parse::<VmName>(), Err(IdError::TooLong { len: 300 }));
        for name in ["a/b", "..", "-a", "a-", "A", "a b", "a\0", "ä", "a_b"] {
            assert!(matches!(name.parse::<VmName>(), Err(IdError::BadCharacter { .. })), "{name:?}");
        }
    }

    #[test]
    fn ids_round_trip_as_text() {
        let id = VmId::new();
        assert_eq!(id.to_string().parse::<VmId>(), Ok(id));
    }
}
