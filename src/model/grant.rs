//! What a binding grants a plugin beyond its settings and the log. Key type: [`Grant`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An interface of `wit/` that a plugin may import only where it is bound with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// It remembers: `wit/kv.wit`.
    Kv,
    /// It sees what the tenant has: `wit/inventory.wit`.
    Inventory,
}

/// A word that is no grant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is nothing that can be granted: {grants}", grants = Grant::ALL.map(Grant::name).join(", "))]
pub struct NoGrant(String);

impl Grant {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Kv, Self::Inventory];

    /// As the interface is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kv => "kv",
            Self::Inventory => "inventory",
        }
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Grant {
    type Err = NoGrant;

    fn from_str(text: &str) -> Result<Self, NoGrant> {
        // A refused text may be long.
        let refuse = || NoGrant(text.chars().take(64).collect());
        Self::ALL.into_iter().find(|grant| grant.name() == text).ok_or_else(refuse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_nothing_else() {
        for grant in Grant::ALL {
            assert_eq!(grant.to_string().parse(), Ok(grant));
        }
        let refused = "clock".parse::<Grant>().unwrap_err().to_string();
        assert!(refused.contains("\"clock\"") && refused.contains("kv, inventory"), "{refused}");
    }
}
