//! Who signed a plugin, and whether its chain takes it: checked before anything is compiled, and again whenever a version is
//! bound that was loaded earlier. Key type: [`SignatureRefused`].
//!
//! What is bound stays when the operator's list changes: that must not, by a slip in a file, deny everything at once.

use super::plugins::Plugins;
use super::{Node, ServiceError};
use crate::daemon::store::PluginVersion;
use crate::daemon::tenants::{ChainSigners, Tenants, Unsigned};
use crate::model::{PluginDigest, PluginSignature, PolicyScope, SignatureError, SignerId};

/// Why a version is not bound, for what it is signed with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureRefused {
    /// No signature at all.
    #[error("a signature is malformed: {0}")]
    Malformed(#[from] SignatureError),
    /// A signature of something else.
    #[error("the signature of {signer} is not of this component: it was changed, or built anew, since it was signed")]
    Mismatch {
        /// Whose key it claims to be of.
        signer: SignerId,
    },
    /// Nobody has signed who had to.
    #[error(transparent)]
    Unsigned(#[from] Unsigned),
}

impl SignatureRefused {
    /// A stable, machine-readable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "signature.malformed",
            Self::Mismatch { .. } => "signature.mismatch",
            Self::Unsigned(unsigned) => unsigned.code(),
        }
    }
}

impl Node {
    /// Whose signatures plugins in the chain of `scope` must bear now.
    pub fn chain_signers(&self, scope: &PolicyScope) -> ChainSigners {
        self.tenants.tenants.borrow().signers(scope).clone()
    }

    /// That the component with this digest may be loaded into the chain of `scope`. Gives its signatures, one of each key.
    pub(super) fn require_signed(
        &self,
        scope: &PolicyScope,
        digest: PluginDigest,
        signatures: Vec<PluginSignature>,
    ) -> Result<Vec<PluginSignature>, SignatureRefused> {
        let mut good = Vec::<PluginSignature>::new();
        for signature in signatures {
            if !signature.is_of(digest) {
                return Err(SignatureRefused::Mismatch { signer: signature.key.id() });
            }
            if good.iter().all(|other| other.key != signature.key) {
                good.push(signature);
            }
        }
        self.chain_signers(scope).check(&good)?;
        Ok(good)
    }

    /// That a version which was loaded into the chain of `scope` earlier is signed as that requires now.
    pub(super) fn require_still_signed(
        &self,
        scope: &PolicyScope,
        version: &PluginVersion,
    ) -> Result<(), ServiceError> {
        check_again(&self.chain_signers(scope), version).map_err(|unsigned| SignatureRefused::from(unsigned).into())
    }
}

/// Whether a version is signed as `signers` require. Who changed its record in the store gains nothing by that.
fn check_again(signers: &ChainSigners, version: &PluginVersion) -> Result<(), Unsigned> {
    let good = version.signatures.iter().filter(|signature| signature.is_of(version.digest)).cloned();
    signers.check(&good.collect::<Vec<_>>())
}

impl Plugins {
    /// The plugins that were found again, having said which of them are not signed as `tenants` has it now.
    pub(super) fn warned(self, tenants: &Tenants) -> Self {
        for view in self.table().values() {
            let record = &view.record;
            if let Err(unsigned) = tenants.signers(&record.scope).check(&record.signatures) {
                let code = unsigned.code();
                tracing::warn!(plugin = %record.name, digest = %record.digest, scope = ?record.scope, code, "plugin is not signed as is required now; it stays as it is");
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::time::SystemTime;

    use crate::model::{SignerKey, signed_message};
    use ring::signature::{Ed25519KeyPair, KeyPair};

    #[test]
    fn a_record_with_the_signature_of_another_component_is_not_signed() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
        let key = SignerKey::from_raw(pair.public_key().as_ref()).unwrap();
        let text = format!("[signers]\nrelease = \"{key}\"\n[operator]\nrequired-signers = [\"release\"]");
        let tenants = Tenants::parse(&text).unwrap();
        let version = |digest: u8, signed: u8| PluginVersion {
            digest: PluginDigest([digest; 32]),
            settings: BTreeMap::new(),
            signatures: vec![
                PluginSignature::new(key, pair.sign(&signed_message(PluginDigest([signed; 32]))).as_ref()).unwrap(),
            ],
            grants: Default::default(),
            loaded: SystemTime::UNIX_EPOCH,
        };
        let signers = tenants.signers(&PolicyScope::Operator);
        assert_eq!(check_again(signers, &version(7, 7)), Ok(()));
        let refused = check_again(signers, &version(7, 8)).map_err(|unsigned| unsigned.code());
        assert_eq!(refused, Err("signature.missing"));
    }
}
