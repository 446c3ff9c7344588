//! Whose signatures plugins must bear, by chain: what the operator's file says of that. Key types: [`Signers`],
//! [`ChainSigners`].
//!
//! ```text
//!   [signers]  name = "public key"
//!   the operator's chain ── [operator] required-signers, else nobody
//!   a tenant's           ── [tenants.<name>] required-signers, else [defaults], else nobody
//! ```
//!
//! A tenant with a section of its own has the signers of [defaults] unless that section names others: whoever adds a
//! quota must not lift this by that.

use std::collections::BTreeMap;

use crate::model::{PluginSignature, PolicyScope, SignerId, SignerKey, SignerName, TenantId};

/// Names of signers, as a section has them.
pub(super) type Written = Vec<String>;

/// Who must sign for which chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Signers {
    operator: ChainSigners,
    defaults: ChainSigners,
    tenants: BTreeMap<TenantId, ChainSigners>,
}

/// The keys of a file's `[signers]`.
pub(super) struct Keys(BTreeMap<SignerName, SignerKey>);

impl Keys {
    /// Reads them; the error says where it is wrong.
    pub(super) fn parse(written: BTreeMap<String, String>) -> Result<Self, String> {
        let mut keys = BTreeMap::<SignerName, SignerKey>::new();
        for (name, key) in written {
            let key = key.parse().map_err(|error| format!("[signers]: {name:?}: {error}"))?;
            // Taking one name out of a list must take the key out of it.
            if let Some((other, _)) = keys.iter().find(|(_, known)| **known == key) {
                return Err(format!("[signers]: {name:?} has the key of {:?}", other.as_str()));
            }
            keys.insert(name.parse().map_err(|error| format!("[signers]: {error}"))?, key);
        }
        Ok(Self(keys))
    }

    fn chain(&self, section: &str, names: Written) -> Result<ChainSigners, String> {
        let of = |name: String| {
            let known = name.parse::<SignerName>().ok().and_then(|name| self.0.get_key_value(&name));
            let known = known.map(|(name, key)| (name.clone(), *key));
            known.ok_or_else(|| format!("[{section}]: required-signers: {name:?} is not in [signers]"))
        };
        names.into_iter().map(of).collect::<Result<_, _>>().map(ChainSigners)
    }
}

impl Signers {
    /// What the sections say.
    pub(super) fn new(
        keys: &Keys,
        operator: Option<Written>,
        defaults: Option<Written>,
        tenants: Vec<(TenantId, Written)>,
    ) -> Result<Self, String> {
        let tenant = |(tenant, names): (TenantId, Written)| {
            let signers = keys.chain(&format!("tenants.{tenant}"), names)?;
            Ok((tenant, signers))
        };
        Ok(Self {
            operator: keys.chain("operator", operator.unwrap_or_default())?,
            defaults: keys.chain("defaults", defaults.unwrap_or_default())?,
            tenants: tenants.into_iter().map(tenant).collect::<Result<_, String>>()?,
        })
    }

    /// Whose signatures plugins in the chain of `scope` must bear.
    pub(super) fn of(&self, scope: &PolicyScope) -> &ChainSigners {
        match scope {
            PolicyScope::Operator => &self.operator,
            PolicyScope::Tenant(tenant) => self.tenants.get(tenant).unwrap_or(&self.defaults),
        }
    }
}

/// Whose signature a chain requires of each plugin in it: that of any one of these. Nobody's if there are none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChainSigners(Vec<(SignerName, SignerKey)>);

/// Nobody whom a chain requires has signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsigned {
    /// Nobody at all has.
    #[error("it bears no signature, and this chain takes only what one of these has signed: {}", listed(required))]
    Missing {
        /// Whose would do.
        required: Vec<SignerName>,
    },
    /// Others have.
    #[error(
        "it is signed by {}, and this chain takes only what one of these has signed: {}",
        listed(signers),
        listed(required)
    )]
    UnknownSigner {
        /// Whose key it was.
        signers: Vec<SignerId>,
        /// Whose would do.
        required: Vec<SignerName>,
    },
}

impl Unsigned {
    /// A stable, machine-readable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "signature.missing",
            Self::UnknownSigner { .. } => "signature.unknown-signer",
        }
    }
}

impl ChainSigners {
    /// Each with its key.
    pub fn iter(&self) -> impl Iterator<Item = &(SignerName, SignerKey)> {
        self.0.iter()
    }

    /// Who has the key, if it is one of these.
    pub fn name_of(&self, key: &SignerKey) -> Option<&SignerName> {
        self.0.iter().find(|(_, own)| own == key).map(|(name, _)| name)
    }

    /// Whether what bears these signatures, which are good, is signed as the chain requires.
    pub fn check(&self, signatures: &[PluginSignature]) -> Result<(), Unsigned> {
        if self.0.is_empty() || signatures.iter().any(|signature| self.name_of(&signature.key).is_some()) {
            return Ok(());
        }
        let required = self.0.iter().map(|(name, _)| name.clone()).collect();
        match signatures.iter().map(|signature| signature.key.id()).collect::<Vec<_>>() {
            none if none.is_empty() => Err(Unsigned::Missing { required }),
            signers => Err(Unsigned::UnknownSigner { signers, required }),
        }
    }
}

fn listed(names: &[impl ToString]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PluginDigest, signed_message};
    use ring::signature::{Ed25519KeyPair, KeyPair};

    fn signed(seed: u8) -> PluginSignature {
        let (pair, digest) = (Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap(), PluginDigest([7; 32]));
        let key = SignerKey::from_raw(pair.public_key().as_ref()).unwrap();
        PluginSignature::new(key, pair.sign(&signed_message(digest)).as_ref()).unwrap()
    }

    fn chain(seeds: &[u8]) -> ChainSigners {
        ChainSigners(seeds.iter().map(|seed| (format!("s{seed}").parse().unwrap(), signed(*seed).key)).collect())
    }

    #[test]
    fn one_signer_of_a_chain_is_enough_and_others_are_not() {
        let by = |seeds: &[u8]| seeds.iter().map(|seed| signed(*seed)).collect::<Vec<_>>();
        let code = |chain: ChainSigners, signatures: &[PluginSignature]| {
            chain.check(signatures).map_err(|unsigned| unsigned.code())
        };
        assert_eq!(code(chain(&[]), &[]), Ok(()));
        assert_eq!(code(chain(&[]), &by(&[9])), Ok(()));
        assert_eq!(code(chain(&[1, 2]), &by(&[2])), Ok(()));
        assert_eq!(code(chain(&[1, 2]), &by(&[9, 1])), Ok(()));
        assert_eq!(code(chain(&[1, 2]), &[]), Err("signature.missing"));
        assert_eq!(code(chain(&[1, 2]), &by(&[9, 8])), Err("signature.unknown-signer"));
        let said = chain(&[1, 2]).check(&by(&[9])).unwrap_err().to_string();
        assert!(said.contains(&by(&[9])[0].key.id().to_string()) && said.contains("s1, s2"), "{said}");
    }
}
