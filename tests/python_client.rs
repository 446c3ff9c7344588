//! The Python client against a real daemon: every call through the code that is generated from the protocol files. Needs
//! no guest; `python_guests` has what boots one.

use std::fs;

use crate::support::{Host, assets};

/// Runs its own tests, one after the other, on one node.
#[test]
fn the_client_does_what_its_own_tests_say() {
    let host = Host::without_policy();
    let plugin = assets::plugin("admission");
    host.operator().load("operator/plugins/admission", &plugin, &[("max-vcpus", "2")]).unwrap();
    let component = tempfile::NamedTempFile::new().unwrap();
    fs::write(component.path(), &plugin).unwrap();
    let output = assets::python()
        .args(["-c", include_str!("../clients/python/tests/control.py")])
        .env("ENDPOINT", format!("127.0.0.1:{}", host.port()))
        .env("CERTS", host.certs())
        .env("KERNEL", assets::PLACEHOLDER)
        .env("PLUGIN", component.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    assert!(output.status.success(), "{}", output.status);
    let count = include_str!("../clients/python/tests/control.py").matches("    def test_").count();
    assert!(said.contains(&format!("Ran {count} tests")), "not all of {count} tests ran");
}
