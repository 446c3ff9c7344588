//! `ostler plugin sign|keygen`: signatures of plugins, made without a daemon.
//!
//! ```text
//!   KEY.pem     PKCS #8 (RFC 8410), as `openssl genpkey -algorithm ed25519` writes it; readable by its owner only
//!   FILE.sig    one line per signature (`model/signature.rs`); `plugin load` sends it if it lies beside FILE
//! ```

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::model::{PluginDigest, PluginSignature, SignatureError, SignerKey, signed_message};

use super::super::args::{Output, PluginKeygenArgs, PluginSignArgs};
use super::super::failure::{Exit, Failure};
use super::super::view::json;
use super::super::{print, show};
use super::certs::create;
use super::component::{is_file, read};

/// Longest file of a key or of signatures, in bytes.
const MAX_TEXT_LEN: u64 = 64 << 10;
/// What stands before the 32 bytes of every Ed25519 private key in PKCS #8, version 1 (RFC 8410 §7, DER), which all
/// programs read.
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// What was made, and whose it is.
#[derive(Serialize)]
struct Report {
    file: String,
    /// Of the component; none of a new key.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    signer: String,
    public_key: String,
}

/// Signs a component, and writes that to a file beside it.
pub(crate) fn sign(arguments: &PluginSignArgs, output: Output) -> Result<(), Failure> {
    let (path, digest, key) = write(arguments)?;
    report(&path, Some(digest), key, output)
}

/// The same without a word: the file, what was signed, by whom.
pub(crate) fn write(arguments: &PluginSignArgs) -> Result<(PathBuf, PluginDigest, SignerKey), Failure> {
    let digest = PluginDigest(Sha256::digest(read(&arguments.file)?).into());
    let pair = private_key(&arguments.key)?;
    let key = public_key(&pair)?;
    let made = PluginSignature::new(key, pair.sign(&signed_message(digest)).as_ref()).map_err(|error| bad(&error))?;
    let path = match &arguments.out {
        Some(path) => path.clone(),
        None if is_file(&arguments.file) => beside(&arguments.file),
        None => return Err(Failure::new(Exit::Usage, "the signature needs a file: name it with --out")),
    };
    // Others may have signed the same content; what is of another is of no use to anybody.
    let mut signatures = if path.exists() { signatures(&path)? } else { Vec::new() };
    signatures.retain(|other| other.key != key && other.is_of(digest));
    signatures.push(made);
    PluginSignature::check_count(signatures.len()).map_err(|error| bad(&error))?;
    let text: String = signatures.iter().map(|signature| format!("{signature}\n")).collect();
    let part = path.with_added_extension("part");
    let written = fs::write(&part, text).and_then(|()| fs::rename(&part, &path));
    written.map_err(|error| Failure::local(format_args!("cannot write {}", path.display()), &error))?;
    Ok((path, digest, key))
}

/// Makes a key to sign with.
pub(crate) fn keygen(arguments: &PluginKeygenArgs, output: Output) -> Result<(), Failure> {
    let mut seed = [0; 32];
    let no_random = |_| Failure::new(Exit::Refused, "the system gives no random numbers");
    SystemRandom::new().fill(&mut seed).map_err(no_random)?;
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| unusable(&arguments.file))?;
    let der = BASE64_STANDARD.encode([PKCS8_PREFIX.as_slice(), &seed].concat());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{der}\n-----END PRIVATE KEY-----\n");
    create(&arguments.file, pem.as_bytes(), 0o600)?;
    report(&arguments.file, None, public_key(&pair)?, output)
}

/// The signatures that go with a component: those of the files that are named, else of the one beside it, if there is one.
pub(super) fn signatures_for(component: &Path, files: &[PathBuf]) -> Result<Vec<PluginSignature>, Failure> {
    let own = beside(component);
    let files = if files.is_empty() && own.exists() { std::slice::from_ref(&own) } else { files };
    let mut all = Vec::new();
    for file in files {
        all.extend(signatures(file)?);
    }
    PluginSignature::check_count(all.len()).map_err(|error| bad(&error))?;
    Ok(all)
}

/// Where a component's signatures lie.
fn beside(component: &Path) -> PathBuf {
    component.with_added_extension("sig")
}

fn signatures(path: &Path) -> Result<Vec<PluginSignature>, Failure> {
    let text = text(File::open(path), path)?;
    PluginSignature::read_all(&text).map_err(|error| {
        Failure::new(Exit::Usage, format!("{}: {error}", path.display()))
            .hint("remove it, and sign the component with `ostler plugin sign`")
    })
}

/// The key in a file that only its owner may read.
fn private_key(path: &Path) -> Result<Ed25519KeyPair, Failure> {
    let file = File::open(path);
    let seen = file.as_ref().ok().and_then(|file| file.metadata().ok());
    // A pipe is whoever's who made it.
    if let Some(mode) =
        seen.filter(fs::Metadata::is_file).map(|seen| seen.mode() & 0o777).filter(|mode| mode & 0o077 != 0)
    {
        let message = format!("{} is not its owner's alone: its mode is {mode:04o}", path.display());
        return Err(Failure::new(Exit::Usage, message).hint(format!("chmod 600 {}", path.display())));
    }
    let text = text(file, path)?;
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") {
        let hint = format!("openssl pkey -in {} | ostler plugin sign FILE --key /dev/stdin", path.display());
        return Err(Failure::new(Exit::Usage, format!("{} is encrypted", path.display())).hint(hint));
    }
    let der = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|_| unusable(path))?;
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).map_err(|_| unusable(path))
}

fn public_key(pair: &Ed25519KeyPair) -> Result<SignerKey, Failure> {
    SignerKey::from_raw(pair.public_key().as_ref()).map_err(|error| bad(&error))
}

fn text(file: io::Result<File>, path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let length = file.and_then(|file| file.take(MAX_TEXT_LEN + 1).read_to_string(&mut text)).map_err(|error| {
        let failure = Failure::local(format_args!("cannot read {}", path.display()), &error);
        Failure { exit: Exit::Usage, ..failure }
    })?;
    if length as u64 > MAX_TEXT_LEN {
        return Err(Failure::new(Exit::Usage, format!("{} is no such file: it is far too long", path.display())));
    }
    Ok(text)
}

fn unusable(path: &Path) -> Failure {
    Failure::new(Exit::Usage, format!("{} is no private Ed25519 key in PEM", path.display()))
        .hint("make one: ostler plugin keygen KEY.pem, or openssl genpkey -algorithm ed25519")
}

fn bad(error: &SignatureError) -> Failure {
    Failure::new(Exit::Usage, error.to_string())
}

fn report(path: &Path, digest: Option<PluginDigest>, key: SignerKey, output: Output) -> Result<(), Failure> {
    let (file, digest) = (path.display().to_string(), digest.map(|digest| digest.to_string()));
    let report = Report { file, digest, signer: key.id().to_string(), public_key: key.to_string() };
    match output {
        Output::Json => show(&json(&report, false)?),
        Output::Table => {
            let Report { file, digest, signer, public_key } = report;
            let component = digest.map(|digest| ("component", digest));
            let rest = [("signer", signer), ("public key", public_key)];
            show(&print::facts(&[("written", file)].into_iter().chain(component).chain(rest).collect::<Vec<_>>()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_its_owners_alone_and_of_the_right_kind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        keygen(&PluginKeygenArgs { file: path.clone() }, Output::Json).unwrap();
        let made = fs::read_to_string(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        private_key(&path).unwrap();
        // It is never replaced.
        keygen(&PluginKeygenArgs { file: path.clone() }, Output::Json).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), made);
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let failure = private_key(&path).unwrap_err();
            assert!(failure.message.contains(&format!("{mode:04o}")), "{failure}");
            assert!(failure.hint.unwrap().contains("chmod 600"));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let p256 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem();
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMA==\n-----END ENCRYPTED PRIVATE KEY-----\n";
        for (text, part) in [
            (p256.as_str(), "no private Ed25519 key"),
            (encrypted, "is encrypted"),
            ("", "no private Ed25519 key"),
            (&"x".repeat(1 << 17), "too long"),
        ] {
            fs::write(&path, text).unwrap();
            let failure = private_key(&path).unwrap_err();
            assert!(failure.message.contains(part), "{failure}");
        }
        // The newer form, with the public key in it.
        fs::write(&path, rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem()).unwrap();
        private_key(&path).unwrap();
    }

    #[test]
    fn several_sign_into_one_file_and_what_is_of_other_content_goes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let component = at("x.wasm");
        for name in ["a.pem", "b.pem"] {
            keygen(&PluginKeygenArgs { file: at(name) }, Output::Json).unwrap();
        }
        let by = |name: &str| {
            let arguments = PluginSignArgs { file: component.clone(), key: at(name), out: None };
            sign(&arguments, Output::Json).unwrap();
            let all = signatures_for(&component, &[]).unwrap();
            let digest = PluginDigest(Sha256::digest(fs::read(&component).unwrap()).into());
            assert!(all.iter().all(|signature| signature.is_of(digest)));
            all.len()
        };
        fs::write(&component, "one").unwrap();
        assert_eq!(signatures_for(&component, &[]).unwrap(), []);
        assert_eq!((by("a.pem"), by("b.pem"), by("a.pem")), (1, 2, 2));
        assert_eq!(signatures_for(&component, &[at("x.wasm.sig"), at("x.wasm.sig")]).unwrap().len(), 4);
        fs::write(&component, "two").unwrap();
        assert_eq!(by("b.pem"), 1);
        assert_eq!(signatures_for(&component, &[at("none.sig")]).unwrap_err().exit, Exit::Usage);
        fs::write(at("x.wasm.sig"), "nothing").unwrap();
        assert!(signatures_for(&component, &[]).unwrap_err().message.contains("x.wasm.sig: this is no line"));
    }
}
