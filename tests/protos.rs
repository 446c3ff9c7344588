//! The protocol files keep to their rules, and to what clients of the last release were promised. Host only.
//!
//! `buf.yaml` has the rules, `proto/released.json` the public package as of the last release; `cargo xtask protos --release`
//! renews it.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::assets;

const LINT: &[&str] = &["lint"];
const BREAKING: &[&str] = &["breaking", "--against", "proto/released.json"];

/// Runs buf in a directory that has `buf.yaml` and `proto/`: nothing, or what it found.
fn buf(directory: &Path, check: &[&str]) -> Result<(), String> {
    let output = Command::new(assets::buf()).args(check).current_dir(directory).output().unwrap();
    let found = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(()) } else { Err(found) }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn copy(from: &Path, to: &Path) {
    if from.is_file() {
        fs::copy(from, to).unwrap();
        return;
    }
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}

/// What a check says of a copy in whose `file` the text `old` has become `new`.
fn with_fault(check: &[&str], file: &str, old: &str, new: &str) -> String {
    let copied = tempfile::tempdir().unwrap();
    for part in ["buf.yaml", "proto"] {
        copy(&root().join(part), &copied.path().join(part));
    }
    let path = copied.path().join("proto").join(file);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.matches(old).count(), 1, "{old:?} in {file}");
    fs::write(&path, text.replace(old, new)).unwrap();
    buf(copied.path(), check).expect_err("the fault is not found")
}

#[test]
fn the_protocol_files_keep_to_their_rules() {
    buf(root(), LINT).unwrap_or_else(|found| panic!("see buf.yaml:\n{found}"));
}

#[test]
fn no_client_of_the_last_release_is_broken() {
    buf(root(), BREAKING).unwrap_or_else(|found| {
        panic!("a change that is meant waits for the next major version of the package:\n{found}")
    });
}

#[test]
fn a_planted_fault_of_style_is_found() {
    let found = with_fault(LINT, "ostler/v1/tenant.proto", "TenantUsage usage = 3;", "TenantUsage theUsage = 3;");
    assert!(found.contains("tenant.proto:") && found.contains("theUsage"), "{found}");
    let found = with_fault(LINT, "ostler/v1/decision.proto", "  // One record.\n", "");
    assert!(found.contains("GetDecision"), "{found}");
}

#[test]
fn a_planted_break_is_found() {
    let gone = with_fault(BREAKING, "ostler/v1/tenant.proto", "  TenantUsage usage = 3;\n", "");
    assert!(gone.contains("usage") && gone.contains("deleted"), "{gone}");
    let other = with_fault(BREAKING, "ostler/v1/vm.proto", "uint32 vmm_pid = 6;", "uint64 vmm_pid = 6;");
    assert!(other.contains("vmm_pid") && other.contains("type"), "{other}");
    let method = with_fault(BREAKING, "ostler/v1/vm.proto", "rpc InjectNmi(", "rpc SendNmi(");
    assert!(method.contains("InjectNmi"), "{method}");
    let enumerated = with_fault(BREAKING, "ostler/v1/nvme.proto", "QUARANTINED = 6;", "QUARANTINED = 7;");
    assert!(enumerated.contains("\"6\""), "{enumerated}");
}

#[test]
fn what_is_added_breaks_nobody() {
    let copied = tempfile::tempdir().unwrap();
    for part in ["buf.yaml", "proto"] {
        copy(&root().join(part), &copied.path().join(part));
    }
    let path = copied.path().join("proto/ostler/v1/tenant.proto");
    let text = fs::read_to_string(&path).unwrap();
    let added = "  TenantUsage usage = 3;\n  string display_name = 900;\n";
    fs::write(&path, text.replace("  TenantUsage usage = 3;\n", added)).unwrap();
    buf(copied.path(), BREAKING).unwrap();
}
