//! Namespaces and controllers that come to a running guest and leave it.

use ostler::api::v1::attach_device_request::Device;
use ostler::api::v1::device_status::State as DeviceState;

use super::*;
use crate::support::guest::{appears, vanishes};
use crate::support::holdings::holdings;

/// Longest that a guest may take to let a device go: emulated, and busy.
const PATIENCE_MS: u64 = 60_000;
/// Times that a namespace comes to one guest and leaves it.
const CYCLES: usize = 3;

fn device(kind: Kind) -> Device {
    Device::Nvme(v1::NvmeSpec { id: "data".into(), kind: Some(kind) })
}

fn namespace(mib: u64) -> Device {
    device(Kind::Namespace(v1::NvmeNamespace { min_bytes: mib * MIB }))
}

/// A guest without any device of the host, that has the drivers for one.
fn plain(host: &Host, caller: &Caller, vm: &str) -> Console {
    caller.register(vm, v1::VirtualMachineSpec { nvme: vec![], ..of_size(16) }).unwrap();
    caller.start(vm).unwrap();
    let mut console = host.console(caller, vm);
    console.expect_ready();
    console
}

/// A namespace comes and goes, as often as wanted, and its controller with it.
fn comes_and_goes(host: &Host, drives: &Drives, acme: &Caller, web: &mut Console) {
    let before = drives.shown();
    let pid = acme.get("web").unwrap().vmm_pid;
    let held = holdings(pid);
    for cycle in 0..CYCLES {
        let vm = acme.attach("web", namespace(16)).unwrap_or_else(|error| panic!("cycle {cycle}: {error:?}"));
        let of_web = &vm.nvme[0];
        assert_eq!((of_web.namespace_id, of_web.size_bytes), (2, 16 * MIB));
        assert_eq!(vm.devices[0].state(), DeviceState::Attached);
        appears(web, "/dev/nvme0n1");
        assert_eq!(sectors(web), 16 * MIB / 512);
        assert!(is_zero(web), "cycle {cycle}: it reads what was written before");
        writes_and_reads(web);
        // It reads while it is asked to let go.
        web.run("(while :; do dd if=/dev/nvme0n1 of=/dev/null bs=64k || break; done) 2>/dev/null & true");
        let vm = acme
            .detach("web", "data", Some(PATIENCE_MS), false)
            .unwrap_or_else(|error| panic!("cycle {cycle}: {error:?}"));
        assert!(vm.nvme.is_empty() && vm.devices.is_empty());
        vanishes(web, "/dev/nvme0n1");
        assert_eq!(holdings(pid), held, "cycle {cycle}");
        until_all_is_free(host, drives);
        drives.expect_shown(&before);
    }
}

#[test]
fn namespaces_and_controllers_come_to_running_guests_and_come_back_empty() {
    const NAME: &str = "namespaces_and_controllers_come_to_running_guests_and_come_back_empty";
    let Some(drives) = Drives::find() else { return assets::skip(NAME, "an SR-IOV NVMe controller") };
    let mut host = host();
    let untouched = drives.shown();
    provision(&host, &drives, "1").unwrap();
    let before = drives.shown();
    let acme = host.tenant("acme");
    let mut web = plain(&host, &acme, "web");
    comes_and_goes(&host, &drives, &acme, &mut web);

    // Its data lies there until it is detached: off and on, and through the daemon's death.
    acme.attach("web", namespace(16)).unwrap();
    appears(&mut web, "/dev/nvme0n1");
    writes_and_reads(&mut web);
    host.kill_daemon();
    host.start_daemon();
    let acme = host.tenant("acme");
    assert_eq!(acme.get("web").unwrap().devices[0].state(), DeviceState::Attached);
    drop(web);
    acme.stop("web", Some(0)).unwrap();
    let (mut web, _) = super::boot(&host, &acme, "web");
    assert!(secret(&mut web), "its data is gone");
    acme.stop("web", Some(0)).unwrap();
    // Detached from a VM that is off, it is erased all the same.
    let vm = acme.detach("web", "data", None, false).unwrap();
    assert!(vm.nvme.is_empty() && vm.spec.unwrap().nvme.is_empty());
    until_all_is_free(&host, &drives);

    // Another tenant's running guest gets what acme's had, and reads zeroes.
    let globex = host.tenant("globex");
    let mut next = plain(&host, &globex, "next");
    let vm = globex.attach("next", namespace(16)).unwrap();
    assert_eq!(vm.nvme[0].namespace_id, 2);
    appears(&mut next, "/dev/nvme0n1");
    assert!(is_zero(&mut next), "it reads what another tenant wrote");
    globex.detach("next", "data", Some(PATIENCE_MS), false).unwrap();
    vanishes(&mut next, "/dev/nvme0n1");
    until_all_is_free(&host, &drives);

    // A whole controller.
    let vm = globex.attach("next", device(Kind::Controller(v1::NvmeController {}))).unwrap();
    assert_eq!((vm.nvme[0].serial.as_str(), vm.nvme[0].size_bytes), ("ALONE", 32 * MIB));
    appears(&mut next, "/dev/nvme0n1");
    writes_and_reads(&mut next);
    globex.detach("next", "data", Some(PATIENCE_MS), false).unwrap();
    vanishes(&mut next, "/dev/nvme0n1");
    until("the controller on the host", BOOT, || (drives.shown() == before).then_some(()));

    // By force, last: a guest that was not asked does not know that its device has gone.
    globex.attach("next", namespace(16)).unwrap();
    appears(&mut next, "/dev/nvme0n1");
    globex.detach("next", "data", None, true).unwrap();
    until_all_is_free(&host, &drives);
    let too_large = facts(&globex.attach("next", namespace(1 << 20)).unwrap_err());
    assert!(too_large.reason == "DEVICE_NOT_LENT" && too_large.message.contains("the largest holds"), "{too_large:?}");
    provision(&host, &drives, "0").unwrap();
    drives.expect_shown(&untouched);
}
