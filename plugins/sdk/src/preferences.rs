//! Rules that plugins which choose among devices have in common, with their settings. Key types: [`Preference`], [`Spread`],
//! [`RootPort`], [`NumaRule`].
//!
//! | key | words | read by |
//! |---|---|---|
//! | `spread` | `balance` (default), `pack` | [`Spread::read`] |
//! | `root-port` | `any` (default), `apart`, `together` | [`RootPort::read`] |
//! | `other-tenants` | `share` (default), `avoid`, `refuse` | [`Preference::of_other_tenants`] |
//! | `last-tenant` | `any` (default), `avoid`, `refuse` | [`Preference::of_last_tenant`] |
//! | `numa-node`, `numa-strict` | a node's number; `true` or `false` | [`NumaRule::read`] |

use crate::{Reader, Source};

/// What is first, or out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preference {
    /// It makes no difference.
    #[default]
    Any,
    /// Others first.
    Avoid,
    /// Out.
    Refuse,
}

/// How what is asked for is dealt out over what gives it: VFs over PFs, namespaces over controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Spread {
    /// The one with the largest free share first.
    #[default]
    Balance,
    /// The one with the smallest free share first, so that others stay whole.
    Pack,
}

/// Which root port a tenant's next device should be below. Devices that share one share its bandwidth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RootPort {
    /// It makes no difference.
    #[default]
    Any,
    /// One without devices of the tenant first.
    Apart,
    /// One with devices of the tenant first.
    Together,
}

/// Where devices should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumaRule {
    /// The node.
    pub node: u32,
    /// Other nodes are out.
    pub is_strict: bool,
}

impl Preference {
    /// About devices that serve other tenants, too.
    pub fn of_other_tenants(reader: &mut Reader<'_, impl Source>) -> Self {
        reader.choice("other-tenants", &[("share", Self::Any), ("avoid", Self::Avoid), ("refuse", Self::Refuse)])
    }

    /// About devices that another tenant had.
    pub fn of_last_tenant(reader: &mut Reader<'_, impl Source>) -> Self {
        reader.choice("last-tenant", &[("any", Self::Any), ("avoid", Self::Avoid), ("refuse", Self::Refuse)])
    }
}

impl Spread {
    /// From the settings.
    pub fn read(reader: &mut Reader<'_, impl Source>) -> Self {
        reader.choice("spread", &[("balance", Self::Balance), ("pack", Self::Pack)])
    }
}

impl RootPort {
    /// From the settings.
    pub fn read(reader: &mut Reader<'_, impl Source>) -> Self {
        reader.choice("root-port", &[("any", Self::Any), ("apart", Self::Apart), ("together", Self::Together)])
    }

    /// Whether a device below `root` comes first, when the tenant has devices below `own`. No root port is one, too.
    pub fn prefers(self, root: Option<&str>, own: &[Option<&str>]) -> bool {
        match self {
            Self::Any => false,
            Self::Apart => !own.contains(&root),
            Self::Together => own.contains(&root),
        }
    }
}

impl NumaRule {
    /// From the settings.
    pub fn read(reader: &mut Reader<'_, impl Source>) -> Option<Self> {
        let node = reader.number("numa-node", 0..=u32::MAX.into()).and_then(|node| u32::try_from(node).ok());
        let is_strict = reader.flag("numa-strict").unwrap_or(false);
        if is_strict && node.is_none() {
            reader.refuse("numa-strict", "it needs numa-node: which node is meant?".into());
        }
        Some(Self { node: node?, is_strict })
    }

    /// Whether a device of this node is where it should be.
    pub fn is_near(self, numa_node: Option<u32>) -> bool {
        numa_node == Some(self.node)
    }

    /// Whether it is out.
    pub fn forbids(self, numa_node: Option<u32>) -> bool {
        self.is_strict && !self.is_near(numa_node)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use std::collections::BTreeMap;

    const KEYS: [&str; 6] = ["last-tenant", "numa-node", "numa-strict", "other-tenants", "root-port", "spread"];

    type Read = (Preference, Preference, Spread, RootPort, Option<NumaRule>);

    fn read(entries: &[(&'static str, &'static str)]) -> Result<Read, Vec<&'static str>> {
        let source: BTreeMap<&str, &str> = entries.iter().copied().collect();
        let mut reader = Reader::new(&source, &KEYS);
        let all = (
            Preference::of_other_tenants(&mut reader),
            Preference::of_last_tenant(&mut reader),
            Spread::read(&mut reader),
            RootPort::read(&mut reader),
            NumaRule::read(&mut reader),
        );
        let keys = |wrong: Vec<crate::Invalid>| {
            wrong.iter().map(|one| *KEYS.iter().find(|key| **key == one.key).unwrap()).collect()
        };
        reader.finish(all).map_err(keys)
    }

    #[test]
    fn each_setting_has_its_words() {
        assert_eq!(read(&[]), Ok((Preference::Any, Preference::Any, Spread::Balance, RootPort::Any, None)));
        let all = [
            ("other-tenants", "avoid"),
            ("last-tenant", "refuse"),
            ("spread", "pack"),
            ("root-port", "apart"),
            ("numa-node", "3"),
            ("numa-strict", "true"),
        ];
        let numa = Some(NumaRule { node: 3, is_strict: true });
        assert_eq!(read(&all), Ok((Preference::Avoid, Preference::Refuse, Spread::Pack, RootPort::Apart, numa)));
        assert_eq!(read(&[("other-tenants", "any")]), Err(vec!["other-tenants"]));
        assert_eq!(read(&[("last-tenant", "share")]), Err(vec!["last-tenant"]));
        assert_eq!(read(&[("numa-strict", "true")]), Err(vec!["numa-strict"]));
        assert_eq!(read(&[("spread", "x"), ("root-port", "y")]), Err(vec!["spread", "root-port"]));
    }

    #[test]
    fn root_ports_and_nodes_are_told_apart() {
        let own = [Some("a"), None];
        for (root, is_own) in [(Some("a"), true), (Some("b"), false), (None, true)] {
            let prefer = [RootPort::Any, RootPort::Apart, RootPort::Together].map(|rule| rule.prefers(root, &own));
            assert_eq!(prefer, [false, !is_own, is_own], "{root:?}");
        }
        let (lax, strict) = (NumaRule { node: 1, is_strict: false }, NumaRule { node: 1, is_strict: true });
        assert_eq!([Some(1), Some(0), None].map(|node| lax.is_near(node)), [true, false, false]);
        assert_eq!([Some(1), Some(0), None].map(|node| lax.forbids(node)), [false; 3]);
        assert_eq!([Some(1), Some(0), None].map(|node| strict.forbids(node)), [false, true, true]);
    }
}
