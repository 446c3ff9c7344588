//! The host's files and programs, short.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Where Linux lists PCI functions.
pub const DEVICES: &str = "/sys/bus/pci/devices";

/// A file's text without its end of line; empty if there is none.
pub fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

pub fn write(path: impl AsRef<Path>, text: &str) {
    fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()));
}

/// What a program prints, which must succeed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
