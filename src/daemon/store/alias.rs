//! Names of a plugin's versions. Key types: [`Aliases`], [`AliasRefused`].
//!
//! A version that has a name is kept for that, however many are bound after it. One name may be *followed*: it is that of
//! the version that is bound, whichever that becomes, so that who gives it to another version binds that.

use std::collections::BTreeMap;

use super::plugin::PluginVersion;
use crate::model::PluginAlias;

/// Names that a plugin's versions have: each keeps a component.
const MAX_ALIASES: usize = 16;

/// Why a name is not given, taken or followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AliasRefused {
    /// No version has it.
    #[error("the plugin has no alias {alias}; `ostler plugin alias list` shows those that it has")]
    Unknown {
        /// The name.
        alias: PluginAlias,
    },
    /// There are as many as there may be.
    #[error("the plugin has {MAX_ALIASES} aliases already; remove one first")]
    TooMany {
        /// How many may be.
        limit: usize,
    },
    /// The bound version would lose it.
    #[error(
        "the plugin follows its alias {alias}; have it follow another one, or none, first (`ostler plugin alias follow`)"
    )]
    Followed {
        /// The name.
        alias: PluginAlias,
    },
}

/// The names that a plugin's versions have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aliases {
    named: BTreeMap<PluginAlias, PluginVersion>,
    /// One of `named`, with the version that is bound.
    follows: Option<PluginAlias>,
}

impl Aliases {
    /// As they are on record.
    pub(super) fn restored(
        named: BTreeMap<PluginAlias, PluginVersion>,
        follows: Option<PluginAlias>,
    ) -> Result<Self, AliasRefused> {
        let mut aliases = Self { named, follows: None };
        aliases.follow(follows)?;
        Ok(aliases)
    }

    /// The version of this name.
    pub fn get(&self, alias: &PluginAlias) -> Result<&PluginVersion, AliasRefused> {
        self.named.get(alias).ok_or_else(|| AliasRefused::Unknown { alias: alias.clone() })
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&PluginAlias, &PluginVersion)> {
        self.named.iter()
    }

    /// The name that is followed.
    pub fn followed(&self) -> Option<&PluginAlias> {
        self.follows.as_ref()
    }

    /// Gives a name, which another version may have had. Who gives the one that is followed binds `version` with it.
    pub fn name(&mut self, alias: PluginAlias, version: PluginVersion) -> Result<(), AliasRefused> {
        if self.named.len() >= MAX_ALIASES && !self.named.contains_key(&alias) {
            return Err(AliasRefused::TooMany { limit: MAX_ALIASES });
        }
        self.named.insert(alias, version);
        Ok(())
    }

    /// Takes a name away.
    pub fn remove(&mut self, alias: &PluginAlias) -> Result<(), AliasRefused> {
        self.get(alias)?;
        if self.follows.as_ref() == Some(alias) {
            return Err(AliasRefused::Followed { alias: alias.clone() });
        }
        self.named.remove(alias);
        Ok(())
    }

    /// Follows a name, or none. Whoever calls this binds the version of that name with it.
    pub fn follow(&mut self, alias: Option<PluginAlias>) -> Result<(), AliasRefused> {
        if let Some(alias) = &alias {
            self.get(alias)?;
        }
        self.follows = alias;
        Ok(())
    }

    /// `version` is bound: the name that is followed is its own. One that was known with other signatures or grants has
    /// these now.
    pub fn bound(&mut self, version: &PluginVersion) {
        let followed = self.follows.as_ref().and_then(|alias| self.named.get_mut(alias));
        followed.into_iter().for_each(|named| *named = version.clone());
        let same = self.named.values_mut().filter(|named| named.is_same(version));
        same.for_each(|named| *named = version.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Grant, PluginDigest};
    use proptest::prelude::*;
    use std::time::SystemTime;

    fn version(at: u8) -> PluginVersion {
        PluginVersion {
            digest: PluginDigest([at; 32]),
            settings: BTreeMap::new(),
            signatures: vec![],
            grants: Default::default(),
            loaded: SystemTime::UNIX_EPOCH,
        }
    }

    fn alias(name: &str) -> PluginAlias {
        name.parse().unwrap()
    }

    #[test]
    fn a_plugin_has_so_many_names_and_each_can_be_moved() {
        let mut aliases = Aliases::default();
        for at in 0..MAX_ALIASES {
            aliases.name(alias(&format!("a{at}")), version(at as u8)).unwrap();
        }
        assert_eq!(aliases.name(alias("more"), version(0)), Err(AliasRefused::TooMany { limit: MAX_ALIASES }));
        aliases.name(alias("a3"), version(9)).unwrap();
        assert_eq!(aliases.get(&alias("a3")), Ok(&version(9)));
        aliases.remove(&alias("a4")).unwrap();
        aliases.name(alias("more"), version(0)).unwrap();
        assert_eq!(aliases.get(&alias("a4")), Err(AliasRefused::Unknown { alias: alias("a4") }));
        assert_eq!(aliases.iter().count(), MAX_ALIASES);
    }

    #[test]
    fn a_version_with_other_grants_is_the_same_one() {
        let mut aliases = Aliases::default();
        aliases.name(alias("stable"), version(1)).unwrap();
        aliases.name(alias("next"), version(2)).unwrap();
        let granted = PluginVersion { grants: [Grant::Kv].into(), ..version(1) };
        aliases.bound(&granted);
        assert_eq!(aliases.get(&alias("stable")), Ok(&granted));
        assert_eq!(aliases.get(&alias("next")), Ok(&version(2)));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Name(u8, u8),
        Remove(u8),
        Follow(Option<u8>),
        Bind(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0u8..4, 0u8..6).prop_map(|(alias, version)| Step::Name(alias, version)),
            (0u8..4).prop_map(Step::Remove),
            prop::option::of(0u8..4).prop_map(Step::Follow),
            (0u8..6).prop_map(Step::Bind),
        ];
        prop::collection::vec(step, 0..40)
    }

    proptest! {
        /// As the service takes these steps: who moves or follows a name binds its version.
        #[test]
        fn the_name_that_is_followed_is_always_that_of_the_bound_version(steps in steps()) {
            let (mut aliases, mut bound) = (Aliases::default(), 0);
            let name = |at: u8| alias(&format!("a{at}"));
            for step in steps {
                let followed = aliases.followed().cloned();
                match step {
                    Step::Name(at, to) if followed == Some(name(at)) => bound = to,
                    Step::Name(at, to) => aliases.name(name(at), version(to)).unwrap(),
                    Step::Remove(at) => {
                        let is_refused = aliases.remove(&name(at)).is_err();
                        prop_assert!(is_refused || followed != Some(name(at)));
                    }
                    Step::Follow(None) => aliases.follow(None).unwrap(),
                    Step::Follow(Some(at)) => {
                        if let Ok(to) = aliases.get(&name(at)).cloned() {
                            aliases.follow(Some(name(at))).unwrap();
                            bound = to.digest.0[0];
                        } else {
                            prop_assert!(aliases.follow(Some(name(at))).is_err());
                        }
                    }
                    Step::Bind(to) => bound = to,
                }
                aliases.bound(&version(bound));
                if let Some(followed) = aliases.followed() {
                    prop_assert_eq!(aliases.get(followed), Ok(&version(bound)));
                }
            }
        }
    }
}
