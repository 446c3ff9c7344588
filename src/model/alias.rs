//! Names that stay while the versions of a plugin change. Key types: [`PluginAlias`], [`VersionName`].

use std::fmt;
use std::str::FromStr;

use super::digest::{DigestError, PluginDigest};
use super::id::{IdError, check_label};

/// Hexadecimal digits from which on a name may be taken for the beginning of a digest: as many as tables show of one.
const DIGEST_LIKE: usize = 12;

/// Why a text names no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AliasError {
    /// Not a name.
    #[error("{0}")]
    BadName(#[from] IdError),
    /// It could be taken for a digest.
    #[error("{0} looks like a digest; an alias is a name such as stable, next or 2026-11")]
    LikeADigest(String),
    /// It begins as a digest does.
    #[error(transparent)]
    BadDigest(#[from] DigestError),
}

/// A name for one of a plugin's versions: a label as a plugin's own name, and nothing that looks like a digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PluginAlias(String);

impl FromStr for PluginAlias {
    type Err = AliasError;

    fn from_str(text: &str) -> Result<Self, AliasError> {
        check_label(text)?;
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.starts_with("sha256") || (text.len() >= DIGEST_LIKE && text.bytes().all(is_hex)) {
            return Err(AliasError::LikeADigest(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for PluginAlias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a client names one of a plugin's versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionName {
    /// By its content.
    Digest(PluginDigest),
    /// By a name that was given to it.
    Alias(PluginAlias),
}

impl FromStr for VersionName {
    type Err = AliasError;

    fn from_str(text: &str) -> Result<Self, AliasError> {
        // No alias has a colon.
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { Ok(Self::Alias(text.parse()?)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_alias_is_a_label_and_no_digest() {
        for good in ["stable", "next", "2026-11", "20261130", "v1-2-3", "facade", "deadbeef", "x0123456789abcdef"] {
            assert_eq!(good.parse::<PluginAlias>().unwrap().to_string(), good);
        }
        for bad in ["", "Stable", "-next", "a.b", "a/b", "a:b", &"x".repeat(64)] {
            assert!(matches!(bad.parse::<PluginAlias>(), Err(AliasError::BadName(_))), "{bad}");
        }
        for bad in ["sha256", "sha256-8f0c", "8f0c8f0c8f0c", "000000000000", &"a".repeat(63)] {
            assert_eq!(bad.parse::<PluginAlias>(), Err(AliasError::LikeADigest(bad.to_owned())));
        }
    }

    #[test]
    fn a_version_is_named_by_its_digest_or_by_an_alias() {
        let digest = PluginDigest([7; 32]);
        assert_eq!(digest.to_string().parse(), Ok(VersionName::Digest(digest)));
        assert_eq!("next".parse(), Ok(VersionName::Alias("next".parse().unwrap())));
        for bad in ["sha256:8f0c", "md5:00", ":"] {
            assert!(matches!(bad.parse::<VersionName>(), Err(AliasError::BadDigest(_))), "{bad}");
        }
        assert!("".parse::<VersionName>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_an_alias_is_never_a_digest(text in "(sha256:)?[a-z0-9:-]{0,70}") {
            if text.parse::<PluginAlias>().is_ok() {
                prop_assert!(text.parse::<PluginDigest>().is_err());
                prop_assert_eq!(text.parse(), Ok(VersionName::Alias(text.parse().unwrap())));
            }
        }
    }
}
