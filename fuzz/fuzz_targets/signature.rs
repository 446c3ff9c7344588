//! Signatures of plugins and keys that sign: what is read from a file, from the API's bytes, or from `tenants.toml`. What is
//! read is written the same again, and checking it ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ostler::model::{MAX_SIGNATURES, PluginDigest, PluginSignature, SignerKey};

/// A line that is read is that of one signature, and of no component that nobody has signed.
fn is_one(signature: &PluginSignature) {
    assert_eq!(signature.to_string().parse().as_ref(), Ok(signature));
    assert_eq!(SignerKey::from_spki(&signature.key.spki()), Ok(signature.key));
    assert!(!signature.is_of(PluginDigest([0; 32])));
}

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input) {
        if let Ok(signatures) = PluginSignature::read_all(text) {
            assert!(signatures.len() <= MAX_SIGNATURES);
            let again: String = signatures.iter().map(|signature| format!("{signature}\n")).collect();
            assert_eq!(PluginSignature::read_all(&again).as_ref(), Ok(&signatures));
            signatures.iter().for_each(is_one);
        }
        if let Ok(key) = text.parse::<SignerKey>() {
            assert_eq!(key.to_string().parse(), Ok(key));
        }
    }
    // As a call has them: the key's bytes, then the signature's.
    let (spki, bytes) = input.split_at(input.len().min(44));
    if let Ok(key) = SignerKey::from_spki(spki) {
        assert_eq!(key.spki(), spki);
        if let Ok(signature) = PluginSignature::new(key, bytes) {
            assert_eq!(signature.bytes(), bytes);
            is_one(&signature);
        }
    }
});
