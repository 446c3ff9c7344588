//! Who must have signed a plugin before it is loaded, and what becomes of it when that changes. Needs no guest.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::assets::plugin;
use crate::support::client::wait;
use crate::support::wait::{SOON, until};
use crate::support::{Caller, Host, assets, facts, small};
use crate::tenants::write;
use ostler::api::v1;
use ostler::api::v1::end_plugin_canary_request::End;
use ostler::api::v1::load_plugin_request::{Header, Part};
use ostler::api::v1::plugin::Mode;
use ostler::model::{PluginDigest, SignerKey, signed_message};
use ring::signature::{Ed25519KeyPair, KeyPair};
use sha2::{Digest, Sha256};
use tonic::{Code, Status};

const ADMISSION: &str = "operator/plugins/admission";
const OWN: &str = "tenants/acme/plugins/own";

/// What `openssl genpkey -algorithm ed25519` (3.0) wrote, and what it says is the public key.
const OPENSSL: [&str; 2] = [
    "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIKtzVGAMy2OymGN9h+9u3ZJYTYfHAZsjKBhgPxN3H3ic\n-----END PRIVATE KEY-----\n",
    "MCowBQYDK2VwAyEA3wspJS/fkDgWWFc/ZyCDDKOYN4tO9HTKyDPCgKZr4N0=",
];

/// Somebody with a key.
struct Signer(Ed25519KeyPair);

impl Signer {
    fn new(seed: u8) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap())
    }

    fn key(&self) -> SignerKey {
        SignerKey::from_raw(self.0.public_key().as_ref()).unwrap()
    }

    fn id(&self) -> String {
        self.key().id().to_string()
    }

    fn sign(&self, component: &[u8]) -> v1::PluginSignature {
        let digest = PluginDigest(Sha256::digest(component).into());
        let signature = self.0.sign(&signed_message(digest)).as_ref().to_vec();
        v1::PluginSignature { public_key: self.key().spki(), signature }
    }
}

/// Three of them.
fn signers() -> [Signer; 3] {
    [1, 2, 3].map(Signer::new)
}

/// `[signers]` with their names, and whom a section requires.
fn required(sections: &[(&str, &[&str])]) -> String {
    let [release, ci, globex] = signers().map(|signer| signer.key());
    let mut text = format!("[signers]\nrelease = \"{release}\"\nci = \"{ci}\"\nglobex = \"{globex}\"\n");
    for (section, names) in sections {
        text += &format!("[{section}]\nrequired-signers = {names:?}\n");
    }
    text
}

/// The same plugin with another digest: a custom section that nobody reads (core specification §5.5.3).
fn built(name: &str, build: u8) -> Vec<u8> {
    [plugin(name), vec![0, 2, 1, build]].concat()
}

fn load_as(caller: &Caller, header: Header, bytes: &[u8]) -> Result<v1::Plugin, Status> {
    let chunks = bytes.chunks(64 << 10).map(|chunk| Part::Chunk(chunk.to_vec()));
    caller.load_parts(std::iter::once(Part::Header(header)).chain(chunks).collect())
}

fn signed(name: &str, signatures: Vec<v1::PluginSignature>) -> Header {
    Header { name: name.to_owned(), signatures, ..Default::default() }
}

fn load(caller: &Caller, name: &str, bytes: &[u8], by: &[&Signer]) -> Result<v1::Plugin, Status> {
    load_as(caller, signed(name, by.iter().map(|signer| signer.sign(bytes)).collect()), bytes)
}

fn set_mode(caller: &Caller, name: &str, mode: Mode) -> Result<v1::Plugin, Status> {
    let request = v1::SetPluginModeRequest { name: name.into(), mode: mode.into(), force: true, ..Default::default() };
    wait(caller.plugins.clone().set_plugin_mode(request)).map(tonic::Response::into_inner)
}

fn end(caller: &Caller, name: &str, end: End) -> Result<v1::Plugin, Status> {
    let request = v1::EndPluginCanaryRequest { name: name.to_owned(), end: end.into(), ..Default::default() };
    wait(caller.plugins.clone().end_plugin_canary(request)).map(tonic::Response::into_inner)
}

fn listed(caller: &Caller, name: &str) -> v1::Plugin {
    caller.plugins("").unwrap().into_iter().find(|plugin| plugin.name == name).unwrap()
}

/// Name (else key) of each signer, and the code if they are not enough.
fn shown(signers: &[v1::PluginSigner], unsigned_code: &str) -> (Vec<String>, String) {
    let name = |one: &v1::PluginSigner| if one.name.is_empty() { one.key.clone() } else { one.name.clone() };
    (signers.iter().map(name).collect(), unsigned_code.to_owned())
}

fn of_plugin(plugin: &v1::Plugin) -> (Vec<String>, String) {
    shown(&plugin.signers, &plugin.unsigned_code)
}

fn of_version(version: &v1::PluginVersion) -> (Vec<String>, String) {
    shown(&version.signers, &version.unsigned_code)
}

fn good(names: &[&str]) -> (Vec<String>, String) {
    (names.iter().map(|name| (*name).to_owned()).collect(), String::new())
}

/// That the call is refused for this reason, and with the code that belongs to it.
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, reason: &str) {
    let (code, told) = match reason {
        "SIGNATURE_MALFORMED" => (Code::InvalidArgument, "signature.malformed"),
        "SIGNATURE_MISMATCH" => (Code::InvalidArgument, "signature.mismatch"),
        "SIGNATURE_MISSING" => (Code::FailedPrecondition, "signature.missing"),
        "SIGNER_UNKNOWN" => (Code::FailedPrecondition, "signature.unknown-signer"),
        other => panic!("{other}"),
    };
    let facts = facts(&answer.unwrap_err());
    assert_eq!((facts.code, facts.reason.as_str()), (code, reason), "{facts:?}");
    assert_eq!(facts.metadata.get("code").map(String::as_str), Some(told), "{facts:?}");
}

#[test]
fn what_is_not_signed_as_is_required_is_refused_with_its_code() {
    let host = Host::without_policy();
    let operator = host.operator();
    write(&host, &required(&[("operator", &["release"])]), true);
    let [release, ci, _] = signers();
    let bytes = plugin("admission");
    let try_with = |signature: v1::PluginSignature| load_as(&operator, signed(ADMISSION, vec![signature]), &bytes);

    refused(load(&operator, ADMISSION, &bytes, &[]), "SIGNATURE_MISSING");
    refused(load(&operator, ADMISSION, &bytes, &[&ci]), "SIGNER_UNKNOWN");
    // The content, the signature, or its key is another.
    for at in [0, bytes.len() / 2, bytes.len() - 1] {
        let mut altered = bytes.clone();
        altered[at] ^= 1;
        refused(load_as(&operator, signed(ADMISSION, vec![release.sign(&bytes)]), &altered), "SIGNATURE_MISMATCH");
    }
    for at in [0, 31, 32, 63] {
        let mut altered = release.sign(&bytes);
        altered.signature[at] ^= 0x10;
        refused(try_with(altered), "SIGNATURE_MISMATCH");
    }
    refused(
        try_with(v1::PluginSignature { public_key: release.key().spki(), ..ci.sign(&bytes) }),
        "SIGNATURE_MISMATCH",
    );
    // A bad one is not outweighed by a good one.
    let both = vec![release.sign(&bytes), ci.sign(b"another")];
    refused(load_as(&operator, signed(ADMISSION, both), &bytes), "SIGNATURE_MISMATCH");
    // What is none.
    let whole = release.sign(&bytes);
    for (public_key, signature) in [
        (whole.public_key.clone(), whole.signature[..63].to_vec()),
        (whole.public_key.clone(), vec![]),
        (whole.public_key[12..].to_vec(), whole.signature.clone()),
        (vec![], whole.signature.clone()),
    ] {
        refused(try_with(v1::PluginSignature { public_key, signature }), "SIGNATURE_MALFORMED");
    }
    refused(load_as(&operator, signed(ADMISSION, vec![whole; 9]), &bytes), "SIGNATURE_MALFORMED");
    // All that comes before anything is compiled, and nothing is lent by a mere trial.
    refused(load(&operator, ADMISSION, b"no component", &[]), "SIGNATURE_MISSING");
    assert_eq!(facts(&load(&operator, ADMISSION, b"no component", &[&release]).unwrap_err()).reason, "PLUGIN_REFUSED");
    let dry = Header { validate_only: true, ..signed(ADMISSION, vec![]) };
    refused(load_as(&operator, dry, &bytes), "SIGNATURE_MISSING");
    assert_eq!(operator.plugins("").unwrap(), []);
    // Whose chain it is comes first.
    let stranger = load(&host.tenant("acme"), ADMISSION, &bytes, &[]).unwrap_err();
    assert_eq!(facts(&stranger).reason, "NOT_ALLOWED");

    let loaded = load(&operator, ADMISSION, &bytes, &[&release]).unwrap();
    assert_eq!(of_plugin(&loaded), good(&["release"]));
    host.tenant("acme").register("web", small()).unwrap();
    let audit = fs::read_to_string(host.data().join("audit.log")).unwrap();
    for reason in ["SIGNATURE_MISSING", "SIGNER_UNKNOWN", "SIGNATURE_MISMATCH"] {
        assert!(audit.lines().any(|line| line.contains(reason) && line.contains(ADMISSION)), "{reason}: {audit}");
    }
    let log = host.daemon_log();
    assert!(log.lines().any(|line| line.contains("plugin loaded") && line.contains(&release.id())), "{log}");
}

#[test]
fn each_chain_has_signers_of_its_own() {
    let host = Host::start();
    let (operator, acme) = (host.operator(), host.tenant("acme"));
    write(&host, &required(&[("tenants.acme", &["ci", "release"]), ("tenants.globex", &["globex"])]), true);
    let [release, ci, globex] = signers();
    let bytes = plugin("hostile/abstain");
    refused(load(&acme, OWN, &bytes, &[]), "SIGNATURE_MISSING");
    refused(load(&acme, OWN, &bytes, &[&globex]), "SIGNER_UNKNOWN");
    // Nor may an operator there.
    refused(load(&operator, OWN, &bytes, &[&globex]), "SIGNER_UNKNOWN");
    for by in [&[&ci][..], &[&release], &[&globex, &ci]] {
        load(&acme, OWN, &bytes, by).unwrap();
    }
    // Whom another chain trusts is nobody's business here.
    assert_eq!(of_plugin(&listed(&acme, OWN)), (vec![globex.id(), "ci".into()], String::new()));
    let tenant = |caller: &Caller| {
        let request = v1::GetTenantRequest { name: format!("tenants/{}", caller.tenant) };
        let tenant = wait(caller.tenants.clone().get_tenant(request)).unwrap().into_inner();
        shown(&tenant.required_signers, "")
    };
    assert_eq!((tenant(&acme), tenant(&host.tenant("globex"))), (good(&["ci", "release"]), good(&["globex"])));
    // The operator's own chain requires nobody here; who signed is shown all the same, and checked.
    assert_eq!(of_plugin(&listed(&operator, ADMISSION)), good(&[]));
    let admission = plugin("admission");
    assert_eq!(of_plugin(&load(&operator, ADMISSION, &admission, &[&release]).unwrap()), good(&[&release.id()]));
    let wrong = signed(ADMISSION, vec![release.sign(&bytes)]);
    refused(load_as(&operator, wrong, &admission), "SIGNATURE_MISMATCH");
}

#[test]
fn one_of_another_signer_replaces_the_signature_and_not_the_version() {
    let host = Host::without_policy();
    let operator = host.operator();
    let [release, ci, _] = signers();
    let bytes = plugin("admission");
    let unsigned = load(&operator, ADMISSION, &bytes, &[]).unwrap();
    write(&host, &required(&[("operator", &["release"])]), true);
    assert_eq!(of_plugin(&listed(&operator, ADMISSION)), (vec![], "signature.missing".into()));
    let signed = load(&operator, ADMISSION, &bytes, &[&ci, &release, &release]).unwrap();
    assert_eq!((of_plugin(&signed), signed.previous.len()), (good(&[&ci.id(), "release"]), 0));
    assert_ne!(signed.etag, unsigned.etag);
}

#[test]
fn shadows_and_canaries_are_signed_too_and_a_signer_who_goes_takes_what_comes_next() {
    let mut host = Host::without_policy();
    let operator = host.operator();
    write(&host, &required(&[("operator", &["release", "ci"])]), true);
    let [release, ci, globex] = signers();
    let [v1, v2, v3] = [1, 2, 3].map(|build| built("admission", build));
    let next = "operator/plugins/next";
    load(&operator, ADMISSION, &v1, &[&release]).unwrap();
    load(&operator, ADMISSION, &v2, &[&ci]).unwrap();
    let canary = |by: &[&Signer]| {
        let header = signed(ADMISSION, by.iter().map(|signer| signer.sign(&v3)).collect());
        load_as(&operator, Header { canary_percent: 50, ..header }, &v3)
    };
    refused(canary(&[]), "SIGNATURE_MISSING");
    refused(canary(&[&globex]), "SIGNER_UNKNOWN");
    canary(&[&ci]).unwrap();
    let shadow = |by: &[&Signer]| {
        let header = signed(next, by.iter().map(|signer| signer.sign(&v3)).collect());
        load_as(&operator, Header { mode: Mode::Shadow.into(), ..header }, &v3)
    };
    refused(shadow(&[]), "SIGNATURE_MISSING");
    refused(shadow(&[&globex]), "SIGNER_UNKNOWN");
    shadow(&[&ci]).unwrap();

    // Without ci: what it signed stays as it is, and is shown; nothing of it is bound any more.
    write(&host, &required(&[("operator", &["release"])]), true);
    let gone = (vec![ci.id()], "signature.unknown-signer".to_owned());
    let bound = listed(&operator, ADMISSION);
    assert_eq!((of_plugin(&bound), of_version(&bound.previous[0])), (gone.clone(), good(&["release"])));
    assert_eq!(of_version(&bound.canary.unwrap().version.unwrap()), gone);
    assert_eq!(of_plugin(&listed(&operator, next)), gone);
    (0..4).for_each(|at| drop(host.tenant("acme").register(&format!("vm-{at}"), small()).unwrap()));
    refused(end(&operator, ADMISSION, End::Promote), "SIGNER_UNKNOWN");
    refused(set_mode(&operator, next, Mode::Enforced), "SIGNER_UNKNOWN");
    assert_eq!(end(&operator, ADMISSION, End::Drop).unwrap().canary, None);
    let back = operator.roll_back(ADMISSION, "").unwrap();
    assert_eq!((of_plugin(&back), of_version(&back.previous[0])), (good(&["release"]), gone.clone()));
    refused(operator.roll_back(ADMISSION, ""), "SIGNER_UNKNOWN");
    assert_eq!(listed(&operator, ADMISSION).digest, back.digest);
    // To take something out of a chain nobody has to have signed it.
    assert_eq!(set_mode(&operator, ADMISSION, Mode::Shadow).unwrap().mode(), Mode::Shadow);
    assert_eq!(set_mode(&operator, ADMISSION, Mode::Enforced).unwrap().mode(), Mode::Enforced);

    // The next daemon goes on with all of it; and believes ci again when the operator does.
    host.kill_daemon();
    host.start_daemon();
    let operator = host.operator();
    let again = listed(&operator, ADMISSION);
    assert_eq!((of_plugin(&again), of_version(&again.previous[0])), (good(&["release"]), gone.clone()));
    assert_eq!(of_plugin(&listed(&operator, next)), gone);
    until("it is told", SOON, || host.last_logged("is not signed as is required now").filter(|l| l.contains("next")));
    refused(set_mode(&operator, next, Mode::Enforced), "SIGNER_UNKNOWN");
    host.tenant("acme").register("late", small()).unwrap();
    write(&host, &required(&[("operator", &["ci"])]), true);
    assert_eq!(of_plugin(&set_mode(&operator, next, Mode::Enforced).unwrap()), good(&["ci"]));
    refused(set_mode(&operator, ADMISSION, Mode::Enforced), "SIGNER_UNKNOWN");
}

#[test]
fn what_an_alias_names_is_signed_when_it_is_kept_and_again_when_it_is_bound() {
    let host = Host::without_policy();
    let operator = host.operator();
    write(&host, &required(&[("operator", &["release", "ci"])]), true);
    let [release, ci, globex] = signers();
    let [v1, v2] = [1, 2].map(|build| built("admission", build));
    load(&operator, ADMISSION, &v1, &[&release]).unwrap();
    operator.alias(ADMISSION, "stable", "").unwrap();
    operator.follow(ADMISSION, "stable").unwrap();
    let keep = |by: &[&Signer]| {
        let header = signed(ADMISSION, by.iter().map(|signer| signer.sign(&v2)).collect());
        load_as(&operator, Header { alias: "next".into(), ..header }, &v2)
    };
    refused(keep(&[]), "SIGNATURE_MISSING");
    refused(keep(&[&globex]), "SIGNER_UNKNOWN");
    keep(&[&ci]).unwrap();
    let next = |plugin: &v1::Plugin| of_version(plugin.aliases[0].version.as_ref().unwrap());
    assert_eq!(next(&listed(&operator, ADMISSION)), good(&["ci"]));

    // Without ci: what it signed may have names, and none of them binds it.
    write(&host, &required(&[("operator", &["release"])]), true);
    operator.alias(ADMISSION, "other", "next").unwrap();
    let before = listed(&operator, ADMISSION);
    assert_eq!(next(&before), (vec![ci.id()], "signature.unknown-signer".to_owned()));
    refused(operator.alias(ADMISSION, "stable", "next"), "SIGNER_UNKNOWN");
    refused(operator.follow(ADMISSION, "other"), "SIGNER_UNKNOWN");
    refused(operator.roll_back(ADMISSION, "next"), "SIGNER_UNKNOWN");
    assert_eq!(listed(&operator, ADMISSION), before);
    write(&host, &required(&[("operator", &["ci"])]), true);
    assert_eq!(of_plugin(&operator.alias(ADMISSION, "stable", "next").unwrap()), good(&["ci"]));
}

#[test]
fn a_list_that_is_not_usable_lifts_nothing() {
    let host = Host::without_policy();
    let operator = host.operator();
    write(&host, &required(&[("operator", &["release"])]), true);
    for text in [required(&[("operator", &["nobody"])]), "[operator]\nrequired-signers = []\nx = 1".into(), "[".into()]
    {
        write(&host, &text, false);
        refused(load(&operator, ADMISSION, &plugin("admission"), &[]), "SIGNATURE_MISSING");
    }
    fs::remove_file(host.data().join("tenants.toml")).unwrap();
    until("it is told", SOON, || host.last_logged("not usable").filter(|line| line.contains("No such file")));
    refused(load(&operator, ADMISSION, &plugin("admission"), &[]), "SIGNATURE_MISSING");
}

/// Exit code, stdout, stderr.
fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

/// A private key in a file of its owner's, and its public key, as openssl makes them; where there is none, as it made them once.
fn openssl_key(path: &Path) -> String {
    let [fixed, public] = OPENSSL;
    let made = Command::new("openssl").args(["genpkey", "-algorithm", "ed25519", "-out"]).arg(path).status();
    if !made.is_ok_and(|status| status.success()) {
        fs::write(path, fixed).unwrap();
        run(Command::new("chmod").arg("600").arg(path));
        return public.to_owned();
    }
    openssl_public(path).unwrap()
}

/// The public key of the key in a file, if openssl is here to say.
fn openssl_public(path: &Path) -> Option<String> {
    let said = Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(path).output().ok()?;
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    Some(String::from_utf8(said.stdout).unwrap().lines().nth(1)?.to_owned())
}

#[test]
fn the_command_line_makes_keys_signs_and_loads() {
    let host = Host::without_policy();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let offline =
        |arguments: &[&str]| run(Command::new(assets::binary()).env_clear().current_dir(dir.path()).args(arguments));
    let load = || run(host.command("operator-admin").args(["plugin", "load", "--operator"]).arg(at("admission.wasm")));
    let public = openssl_key(&at("release.pem"));
    let (code, made, error) = offline(&["plugin", "keygen", "ci.pem", "-o", "json"]);
    assert_eq!((code, error.as_str()), (0, ""));
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    let ci = made["public_key"].as_str().unwrap().to_owned();
    assert!(openssl_public(&at("ci.pem")).is_none_or(|said| said == ci), "{made}");
    write(
        &host,
        &format!("[signers]\nrelease = {public:?}\nci = {ci:?}\n[operator]\nrequired-signers = [\"release\"]"),
        true,
    );

    fs::write(at("admission.wasm"), plugin("admission")).unwrap();
    let (code, _, error) = load();
    assert!(code == 1 && error.contains("SIGNATURE_MISSING") && error.contains("hint: have it signed"), "{error}");
    let (code, said, error) = offline(&["plugin", "sign", "admission.wasm", "--key", "ci.pem"]);
    assert!(code == 0 && said.contains("admission.wasm.sig") && said.contains(&ci), "{said}{error}");
    let (code, _, error) = load();
    assert!(code == 1 && error.contains("SIGNER_UNKNOWN") && error.contains("release"), "{error}");
    let (code, said, error) = offline(&["plugin", "sign", "admission.wasm", "--key", "release.pem"]);
    assert!(code == 0 && said.contains(&public), "{said}{error}");
    let (code, table, error) = load();
    assert!(code == 0 && table.contains("SIGNERS") && table.contains("release"), "{table}{error}");
    let (_, json, _) = run(host.command("operator-admin").args(["plugin", "list", "-o", "json"]));
    let list: serde_json::Value = serde_json::from_str(&json).unwrap();
    let signers = list["plugins"][0]["signers"].as_array().unwrap();
    assert_eq!((signers.len(), &signers[0]["key"], &signers[1]["name"]), (2, &made["signer"], &"release".into()));

    // Built anew and not signed anew; then signed elsewhere.
    fs::write(at("admission.wasm"), built("admission", 1)).unwrap();
    let (code, _, error) = load();
    assert!(code == 2 && error.contains("SIGNATURE_MISMATCH"), "{error}");
    let (code, _, error) = offline(&["plugin", "sign", "admission.wasm", "--key", "release.pem", "--out", "elsewhere"]);
    assert_eq!((code, error.as_str()), (0, ""));
    let mut elsewhere = host.command("operator-admin");
    elsewhere.args(["plugin", "load", "--operator", "--signature"]).arg(at("elsewhere")).arg(at("admission.wasm"));
    assert_eq!(run(&mut elsewhere).0, 0);
    fs::write(at("admission.wasm.sig"), "-----BEGIN").unwrap();
    let (code, _, error) = load();
    assert!(code == 2 && error.contains("admission.wasm.sig: this is no line"), "{error}");

    // A key that others may read is no secret.
    run(Command::new("chmod").arg("644").arg(at("release.pem")));
    let (code, _, error) = offline(&["plugin", "sign", "admission.wasm", "--key", "release.pem"]);
    assert!(code == 2 && error.contains("0644") && error.contains("hint: chmod 600"), "{error}");
    write(&host, &format!("[signers]\nci = {ci:?}\n[tenants.acme]\nrequired-signers = [\"ci\"]"), true);
    let (_, table, _) = run(host.command("operator-admin").args(["tenant", "list"]));
    assert!(
        table.contains("SIGNERS") && table.lines().any(|line| line.starts_with("acme") && line.ends_with("ci")),
        "{table}"
    );
    let (_, table, _) = run(host.command("operator-admin").args(["plugin", "list"]));
    assert!(!table.contains("missing") && table.contains("sha256:"), "{table}");
}
