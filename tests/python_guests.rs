//! VMs driven from Python, among them by the script of the docs. Boots guests (feature `lab`); in the lab with the lab's
//! own Python.

use crate::support::{Host, assets};

#[test]
fn the_client_does_with_guests_what_its_own_tests_say() {
    let host = Host::with_guests();
    let output = assets::python()
        .args(["-c", include_str!("../clients/python/tests/guests.py")])
        .env("ENDPOINT", format!("127.0.0.1:{}", host.port()))
        .env("CERTS", host.certs())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    assert!(output.status.success(), "{}", output.status);
    assert!(said.contains("Ran 2 tests"), "not all tests ran");
    assert_eq!(host.vmm_processes(), [] as [u32; 0]);
}

#[test]
fn the_script_of_the_docs_does_what_it_says() {
    let script = include_str!("../docs/first_vm.py");
    assert!(script.lines().count() < 40, "it has {} lines", script.lines().count());
    let host = Host::with_guests();
    let output = assets::python()
        .args(["-c", script])
        .arg(format!("127.0.0.1:{}", host.port()))
        .arg(host.certs().join("tenant-acme"))
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    let states: Vec<_> =
        printed.lines().filter_map(|line| line.strip_prefix("watch: tenants/acme/vms/hello ")).collect();
    // The watch may begin after the VM was asked to start.
    let expected = ["STARTING", "RUNNING", "STOPPING", "STOPPED", "DESTROYING", "DESTROYED"];
    assert!(expected.iter().all(|state| states.contains(state)), "{printed}");
    assert!(printed.contains("ostler-guest: ready") && printed.contains("GNU/Linux"), "{printed}");
    assert_eq!(host.tenant("acme").list("").unwrap(), vec![]);
    assert_eq!(host.vmm_processes(), [] as [u32; 0]);
}
