//! Signatures of policy plugins: Ed25519 (RFC 8032) over a component's digest. Key types: [`SignerKey`],
//! [`PluginSignature`]. Pure.
//!
//! ```text
//!   signed:  "ostler plugin signature 1" NUL, the 32 bytes of the component's SHA-256
//!   a file:  lines of  ostler-plugin-signature-1 <public key> <signature>
//! ```
//!
//! A public key is its SubjectPublicKeyInfo (RFC 8410), in base64 what stands between the lines of a PEM file.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::signature::{ED25519, UnparsedPublicKey};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

use super::{PluginDigest, SignerId};

/// What a signature is for, apart from all others that a key may make.
const DOMAIN: &[u8] = b"ostler plugin signature 1\0";
/// First word of a signature's line.
const WORD: &str = "ostler-plugin-signature-1";
/// What stands before the 32 bytes of every Ed25519 key in its SubjectPublicKeyInfo (RFC 8410 §4, DER).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// Most signatures that one version of a plugin may bear.
pub const MAX_SIGNATURES: usize = 8;

/// Bytes that are no signature, or no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Something else than an Ed25519 key.
    #[error("this is no public Ed25519 key; `openssl pkey -in KEY.pem -pubout` writes one")]
    NotAKey,
    /// Something else than an Ed25519 signature.
    #[error("{0} bytes are no Ed25519 signature, which has 64")]
    NotASignature(usize),
    /// Something else than a line of a signature's file.
    #[error("this is no line of a signature: `{WORD} KEY SIGNATURE`, as `ostler plugin sign` writes it")]
    NotALine,
    /// More than a version may bear.
    #[error("{0} signatures, at most {MAX_SIGNATURES} are allowed")]
    TooMany(usize),
}

/// A public key of somebody who signs plugins. As text: its SubjectPublicKeyInfo in base64; read from PEM, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SignerKey([u8; 32]);

impl SignerKey {
    /// The key with these bytes (RFC 8032 §5.1.5).
    pub fn from_raw(raw: &[u8]) -> Result<Self, SignatureError> {
        raw.try_into().map(Self).map_err(|_| SignatureError::NotAKey)
    }

    /// The key in a SubjectPublicKeyInfo (DER).
    pub fn from_spki(spki: &[u8]) -> Result<Self, SignatureError> {
        spki.strip_prefix(&SPKI_PREFIX).ok_or(SignatureError::NotAKey).and_then(Self::from_raw)
    }

    /// Its SubjectPublicKeyInfo (DER).
    pub fn spki(&self) -> Vec<u8> {
        [SPKI_PREFIX.as_slice(), &self.0].concat()
    }

    /// Its name: SHA-256 of the SubjectPublicKeyInfo.
    pub fn id(&self) -> SignerId {
        SignerId(Sha256::digest(self.spki()).into())
    }
}

impl fmt::Display for SignerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.spki()))
    }
}

impl FromStr for SignerKey {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let text = text.trim();
        if text.starts_with("-----") {
            let spki = SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes());
            return spki.map_err(|_| SignatureError::NotAKey).and_then(|spki| Self::from_spki(&spki));
        }
        BASE64_STANDARD.decode(text).map_err(|_| SignatureError::NotAKey).and_then(|spki| Self::from_spki(&spki))
    }
}

/// A signature with the key that it claims to be of. As text: a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginSignature {
    /// Whose.
    pub key: SignerKey,
    /// R and S (RFC 8032 §5.1.6).
    bytes: [u8; 64],
}

impl PluginSignature {
    /// The signature with these bytes.
    pub fn new(key: SignerKey, bytes: &[u8]) -> Result<Self, SignatureError> {
        let bytes = bytes.try_into().map_err(|_| SignatureError::NotASignature(bytes.len()))?;
        Ok(Self { key, bytes })
    }

    /// R and S.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether its key has signed the component with this digest.
    pub fn is_of(&self, digest: PluginDigest) -> bool {
        UnparsedPublicKey::new(&ED25519, self.key.0).verify(&signed_message(digest), &self.bytes).is_ok()
    }

    /// That a version may bear so many.
    pub fn check_count(count: usize) -> Result<(), SignatureError> {
        if count > MAX_SIGNATURES { Err(SignatureError::TooMany(count)) } else { Ok(()) }
    }

    /// The signatures in a file's text; blank lines, and those that begin with `#`, say nothing.
    pub fn read_all(text: &str) -> Result<Vec<Self>, SignatureError> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let signatures: Vec<_> = lines.map(str::parse).collect::<Result<_, _>>()?;
        Self::check_count(signatures.len())?;
        Ok(signatures)
    }
}

impl fmt::Display for PluginSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{WORD} {} {}", self.key, BASE64_STANDARD.encode(self.bytes))
    }
}

impl FromStr for PluginSignature {
    type Err = SignatureError;

    fn from_str(line: &str) -> Result<Self, SignatureError> {
        let mut words = line.split_ascii_whitespace();
        let (Some(WORD), Some(key), Some(bytes), None) = (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(SignatureError::NotALine);
        };
        let bytes = BASE64_STANDARD.decode(bytes).map_err(|_| SignatureError::NotALine)?;
        Self::new(key.parse()?, &bytes)
    }
}

/// What is signed for the component with this digest.
pub fn signed_message(digest: PluginDigest) -> Vec<u8> {
    [DOMAIN, &digest.0].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ring::signature::{Ed25519KeyPair, KeyPair};

    /// By `openssl genpkey -algorithm ed25519` and `openssl pkeyutl -sign -rawin`, of the message for [`digest`].
    const OPENSSL_KEY: &str = "MCowBQYDK2VwAyEA3wspJS/fkDgWWFc/ZyCDDKOYN4tO9HTKyDPCgKZr4N0=";
    const OPENSSL_SIGNATURE: &str =
        "/tjRdRe8gKgbCESW0374gRwMoVLB1PXF2vuPAqSj88vuGDPp5+/bR6TEIyPMCT4VzcnanQv426612ARJJUCFAw==";

    fn digest() -> PluginDigest {
        PluginDigest([7; 32])
    }

    fn signed(seed: u8, digest: PluginDigest) -> PluginSignature {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let key = SignerKey::from_raw(pair.public_key().as_ref()).unwrap();
        PluginSignature::new(key, pair.sign(&signed_message(digest)).as_ref()).unwrap()
    }

    #[test]
    fn a_signature_of_openssl_is_good_and_only_of_its_content() {
        let line = format!("{WORD} {OPENSSL_KEY} {OPENSSL_SIGNATURE}");
        let signature: PluginSignature = line.parse().unwrap();
        assert!(signature.is_of(digest()));
        assert!(!signature.is_of(PluginDigest([8; 32])));
        assert_eq!(signature.to_string(), line);
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{OPENSSL_KEY}\n-----END PUBLIC KEY-----\n");
        assert_eq!(pem.parse(), Ok(signature.key));
        assert_eq!(signature.key.to_string(), OPENSSL_KEY);
        // The digest alone, without what it is signed for, is another message.
        let pair = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
        let key = SignerKey::from_raw(pair.public_key().as_ref()).unwrap();
        assert!(!PluginSignature::new(key, pair.sign(&digest().0).as_ref()).unwrap().is_of(digest()));
    }

    #[test]
    fn a_bit_more_or_less_is_no_good_signature() {
        let good = signed(1, digest());
        assert!(good.is_of(digest()));
        for at in 0..64 {
            let mut bad = good.clone();
            bad.bytes[at] ^= 1;
            assert!(!bad.is_of(digest()), "byte {at}");
        }
        for at in 0..32 {
            let (mut digest, mut bad) = (digest(), good.clone());
            digest.0[at] ^= 1;
            bad.key.0[at] ^= 1;
            assert!(!good.is_of(digest) && !bad.is_of(self::digest()), "byte {at}");
        }
    }

    #[test]
    fn a_file_has_lines_and_says_what_is_none() {
        let (one, two) = (signed(1, digest()), signed(2, digest()));
        let text = format!("# made by hand\n\n{one}\r\n  {two}\n");
        assert_eq!(PluginSignature::read_all(&text), Ok(vec![one.clone(), two]));
        assert_eq!(PluginSignature::read_all(""), Ok(vec![]));
        let many = format!("{one}\n").repeat(MAX_SIGNATURES + 1);
        assert_eq!(PluginSignature::read_all(&many), Err(SignatureError::TooMany(9)));
        let line = one.to_string();
        let short = BASE64_STANDARD.encode([0; 63]);
        for (text, error) in [
            (line.replace("-1 ", "-2 "), SignatureError::NotALine),
            (line.replace(WORD, ""), SignatureError::NotALine),
            (format!("{line} x"), SignatureError::NotALine),
            (format!("{line}="), SignatureError::NotALine),
            (format!("{WORD} {}", one.key), SignatureError::NotALine),
            (format!("{WORD} {} {short}", one.key), SignatureError::NotASignature(63)),
            (format!("{WORD} AAAA {short}"), SignatureError::NotAKey),
            ("\0".into(), SignatureError::NotALine),
        ] {
            assert_eq!(PluginSignature::read_all(&text), Err(error), "{text}");
        }
    }

    #[test]
    fn keys_of_other_kinds_are_none() {
        let ed25519 = signed(1, digest()).key;
        assert_eq!(SignerKey::from_spki(&ed25519.spki()), Ok(ed25519));
        let mut x25519 = ed25519.spki();
        x25519[8] = 0x6e; // RFC 8410 §3: 1.3.101.110
        let longer = [ed25519.spki(), vec![0]].concat();
        for spki in [x25519, longer, ed25519.spki()[..43].to_vec(), ed25519.0.to_vec(), vec![]] {
            assert_eq!(SignerKey::from_spki(&spki), Err(SignatureError::NotAKey));
            assert_eq!(BASE64_STANDARD.encode(&spki).parse::<SignerKey>(), Err(SignatureError::NotAKey));
        }
        let private = format!("-----BEGIN PRIVATE KEY-----\n{ed25519}\n-----END PRIVATE KEY-----\n");
        assert_eq!(private.parse::<SignerKey>(), Err(SignatureError::NotAKey));
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_as_it_was(text in "(ostler-plugin-signature-1 )?[A-Za-z0-9+/= \n#]{0,200}") {
            if let Ok(signatures) = PluginSignature::read_all(&text) {
                let again: Vec<PluginSignature> = signatures.iter().map(|signature| signature.to_string().parse().unwrap()).collect();
                prop_assert_eq!(again, signatures);
            }
            let _ = text.parse::<SignerKey>();
        }

        #[test]
        fn any_key_and_signature_come_back(key: [u8; 32], bytes: [[u8; 32]; 2]) {
            let key = SignerKey::from_raw(&key).unwrap();
            let signature = PluginSignature::new(key, &bytes.concat()).unwrap();
            prop_assert_eq!(signature.to_string().parse(), Ok(signature.clone()));
            prop_assert_eq!(key.to_string().parse(), Ok(key));
            prop_assert!(!signature.is_of(digest()));
        }
    }
}
