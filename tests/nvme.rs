//! NVMe of the lab for VMs: secondary controllers made, namespaces chosen by policy, given, kept, taken back clean; a
//! whole controller. Boots guests (feature `lab`). The lab has an SR-IOV controller LAB with a namespace of the host and
//! detached ones of 16, 64, 64 and 96 MiB, and a controller ALONE of 32 MiB.

mod running;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::support::console::Console;
use crate::support::drives::Drives;
use crate::support::guest::bootable;
use crate::support::operations::{began, steps_of_start};
use crate::support::shell::{DEVICES, run};
use crate::support::wait::{BOOT, until};
use crate::support::{Caller, Host, assets, facts, fio};
use ostler::api::v1;
use ostler::api::v1::device_lease::State as Lease;
use ostler::api::v1::nvme_spec::Kind;
use ostler::api::v1::virtual_machine::State;
use ostler::sys::nvme::Admin;

const MIB: u64 = 1 << 20;

/// A node whose operator lets tenants have namespaces, and the controller ALONE as a whole.
fn host() -> Host {
    let host = Host::with_guests();
    host.operator().load("operator/plugins/nvme", &assets::plugin("nvme"), &[("whole", "ALONE")]).unwrap();
    host
}

/// `ostler host nvme provision`, as an operator does it.
fn provision(host: &Host, drives: &Drives, vfs: &str) -> Result<String, String> {
    let mut command = host.command("operator-admin");
    let output = command.args(["host", "nvme", "provision", &drives.lab, "--vfs", vfs]).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn with_nvme(kind: Kind) -> v1::VirtualMachineSpec {
    let mut spec = bootable("linux-6.12-full", "vmlinux");
    spec.memory_mib = 512;
    spec.nvme = vec![v1::NvmeSpec { id: "data".into(), kind: Some(kind) }];
    spec
}

fn of_size(mib: u64) -> v1::VirtualMachineSpec {
    with_nvme(Kind::Namespace(v1::NvmeNamespace { min_bytes: mib * MIB }))
}

fn lab(host: &Host, drives: &Drives) -> v1::NvmeHostController {
    let all = host.operator().nvme_controllers().unwrap();
    all.into_iter().find(|controller| controller.address == drives.lab).unwrap()
}

/// Leases of the namespaces, by id.
fn namespace_leases(host: &Host, drives: &Drives) -> Vec<(u32, v1::DeviceLease)> {
    let namespaces = lab(host, drives).namespaces.into_iter();
    namespaces.filter_map(|namespace| Some((namespace.namespace_id, namespace.lease?))).collect()
}

/// Waits until nobody has anything of the controller, and nothing is attached but the host's namespace.
fn until_all_is_free(host: &Host, drives: &Drives) -> v1::NvmeHostController {
    until("the end of the cleaning", BOOT, || {
        let lab = lab(host, drives);
        let of_secondaries = lab.secondaries.iter().map(|secondary| secondary.lease.clone());
        let leases = lab.namespaces.iter().map(|namespace| namespace.lease.clone()).chain(of_secondaries);
        let is_free = |lease: v1::DeviceLease| lease.state() == Lease::Free;
        let is_detached = lab.namespaces.iter().all(|one| one.namespace_id == 1 || one.controllers.is_empty());
        (leases.flatten().all(is_free) && is_detached).then_some(lab)
    })
}

/// Starts the VM and waits for its shell and its disk.
fn boot(host: &Host, caller: &Caller, vm: &str) -> (Console, v1::NvmeStatus) {
    let running = caller.start(vm).unwrap_or_else(|error| panic!("{}: {}", vm, error.message()));
    assert_eq!(running.state(), State::Running);
    let mut console = host.console(caller, vm);
    console.expect_ready();
    console.run("until [ -b /dev/nvme0n1 ]; do usleep 50000; done");
    (console, running.nvme[0].clone())
}

fn sectors(console: &mut Console) -> u64 {
    console.number("sectors", "cat /sys/block/nvme0n1/size")
}

/// Reads the whole disk in the guest, which takes its time when it is emulated: whether all of it is zero.
fn is_zero(console: &mut Console) -> bool {
    // The echo of the line holds "$((", only the output the number.
    let count = "dd if=/dev/nvme0n1 bs=1M 2>/dev/null | busybox tr -d '\\000' | wc -c";
    console.type_line(&format!("echo left=$({count}); echo end-$((70+7))"));
    let printed = console.expect("end-77");
    let left = printed.split("left=").find_map(|part| part.lines().next()?.trim().parse::<u64>().ok());
    left.unwrap_or_else(|| panic!("no count in {printed:?}")) == 0
}

const WRITE: &str = "dd if=/dev/urandom of=/tmp/w bs=64k count=32 2>/dev/null; \
                     dd if=/tmp/w of=/dev/nvme0n1 bs=64k seek=16 conv=fsync 2>/dev/null; \
                     echo tenants-secret | dd of=/dev/nvme0n1 bs=4k seek=4000 conv=fsync 2>/dev/null; \
                     echo 3 >/proc/sys/vm/drop_caches";
const COMPARE: &str = "dd if=/dev/nvme0n1 bs=64k skip=16 count=32 2>/dev/null | md5sum; md5sum </tmp/w";

fn writes_and_reads(console: &mut Console) {
    console.run(WRITE);
    let sums = console.run(COMPARE);
    let sums: Vec<_> = sums.split_whitespace().filter(|word| word.len() == 32).collect();
    assert!(sums.len() == 2 && sums[0] == sums[1], "{sums:?}");
}

fn secret(console: &mut Console) -> bool {
    console.run("dd if=/dev/nvme0n1 bs=4k skip=4000 count=1 2>/dev/null | head -c 14").contains("tenants-secret")
}

/// Of acme's `web`, which holds `of_web`: through the daemon's death, and off and on again.
fn keeps_its_data_while_it_exists(host: &mut Host, drives: &Drives, of_web: &v1::NvmeStatus) {
    // A daemon that is killed costs a running VM nothing.
    host.kill_daemon();
    host.start_daemon();
    let acme = host.tenant("acme");
    let adopted = acme.get("web").unwrap();
    assert_eq!((adopted.state(), &adopted.nvme[0]), (State::Running, of_web));
    let mut web = host.console(&acme, "web");
    // It begins with what was printed before, the ends of earlier commands among it.
    web.type_line("echo again-$((70+7))");
    web.expect("again-77");
    assert!(secret(&mut web));

    // Off and on again: another run, the same data.
    acme.stop("web", Some(0)).unwrap();
    let off = acme.get("web").unwrap();
    assert_eq!((off.nvme[0].namespace_id, off.nvme[0].function.as_str()), (3, ""));
    let (mut web, again) = boot(host, &acme, "web");
    assert_eq!(again.namespace_id, 3);
    assert!(secret(&mut web), "its data is gone");
    let kept = facts(&host.operator().release_nvme(&drives.lab, 3).unwrap_err());
    assert_eq!((kept.reason.as_str(), kept.metadata["vm"].as_str()), ("DEVICE_IN_USE", "acme/web"));
}

/// Of globex, which gets what acme's `web` had.
fn another_tenant_reads_zeroes(host: &Host, drives: &Drives) {
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    // Destroyed: another tenant gets the same namespace, and reads zeroes.
    acme.destroy("web", true).unwrap();
    until("the end of the cleaning", BOOT, || {
        let leases = namespace_leases(host, drives);
        let (_, lease) = leases.into_iter().find(|(id, _)| *id == 3)?;
        (lease.state() == Lease::Free && lease.last_tenant == "acme").then_some(())
    });
    globex.register("next", of_size(64)).unwrap();
    let (mut next, of_next) = boot(host, &globex, "next");
    assert_eq!(of_next.namespace_id, 3);
    let unique_id = |id| lab(host, drives).namespaces.into_iter().find(|one| one.namespace_id == id).unwrap().unique_id;
    assert_eq!([1, 3].map(unique_id), ["", "eui64:5254000000000003"]);
    assert!(is_zero(&mut next), "it reads what another tenant wrote");
    globex.destroy("next", true).unwrap();
}

/// While it is mounted, and while it is just held.
fn is_not_provisioned_while_the_host_uses_it(host: &Host, drives: &Drives) {
    let disk = lab(host, drives).namespaces[0].block_device.clone();
    let (path, mount) = (format!("/dev/{disk}"), tempfile::tempdir().unwrap());
    run("mke2fs", &["-q", "-F", "-t", "ext4", &path, "16M"]);
    run("mount", &["-t", "ext4", &path, mount.path().to_str().unwrap()]);
    let used = lab(host, drives).namespaces[0].uses.clone();
    assert_eq!(used, [format!("{disk} is mounted at {}", mount.path().display())]);
    let refused = provision(host, drives, "1").unwrap_err();
    assert!(refused.contains("is in use by the host") && refused.contains("is mounted at"), "{refused}");
    run("umount", &[mount.path().to_str().unwrap()]);
    let held = File::options().read(true).custom_flags(libc::O_EXCL).open(&path).unwrap();
    let refused = provision(host, drives, "1").unwrap_err();
    assert!(refused.contains("the host uses it"), "{refused}");
    drop(held);
}

/// What the first start with a namespace takes that nobody had before.
const FIRST_START: [&str; 8] = [
    "looking for namespaces and controllers",
    "asking policy for a namespace or a controller",
    "formatting the namespace, one command that may take long",
    "reading the namespace back",
    "choosing a controller for the namespace",
    "binding the device to vfio-pci",
    "resetting the device",
    "attaching the namespace to its controller",
];

/// What the inventory says of the lab's controller: of 16 vectors four are for its secondaries. Of what may erase it knows
/// formatting, and neither deletion nor sanitising.
fn is_shown_as_it_is(shown: &v1::NvmeHostController) {
    let supports = ["namespace-management", "virtualization-management", "format", "deallocate", "write-zeroes"];
    assert_eq!((&shown.supports[..], shown.msix_vectors), (&supports.map(str::to_owned)[..], Some(12)));
    let formats: Vec<_> = shown.namespaces[1].formats.iter().map(|one| (one.block_bytes, one.metadata_bytes)).collect();
    assert!(formats.contains(&(512, 0)) && formats.contains(&(4096, 0)), "{formats:?}");
    let [port] = &shown.bridges[..] else { panic!("{shown:?}") };
    assert!(port.address == shown.root_port && port.acs, "{port:?}");
}

#[test]
fn tenants_get_namespaces_by_their_own_plugins_keep_their_data_and_leave_none() {
    const NAME: &str = "tenants_get_namespaces_by_their_own_plugins_keep_their_data_and_leave_none";
    let Some(drives) = Drives::find() else { return assets::skip(NAME, "an SR-IOV NVMe controller") };
    let before = drives.shown();
    let mut host = host();
    let Some(with_fio) = fio::disk(&host, "globex") else {
        return assets::skip(NAME, "fio, built from Debian's sources");
    };
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    let plugin = assets::plugin("nvme");
    acme.load("tenants/acme/plugins/own", &plugin, &[("size-slack", "0")]).unwrap();
    acme.register("web", of_size(64)).unwrap();
    let unprovisioned = acme.start("web").unwrap_err();
    assert!(unprovisioned.message().contains("ostler host nvme provision"), "{unprovisioned:?}");
    let tree = provision(&host, &drives, "2").unwrap();
    println!("{tree}");
    assert_eq!(tree.matches(", online, 2 queues, 1 interrupts").count(), 2, "{tree}");
    assert!(tree.contains("namespace 3 of 64 MiB") && tree.contains("attached to nothing"), "{tree}");
    provision(&host, &drives, "2").unwrap();
    is_shown_as_it_is(&lab(&host, &drives));

    // Each tenant's plugin chooses: acme takes nothing but 64 MiB, globex what is not too large for 80.
    let (mut web, of_web) = boot(&host, &acme, "web");
    assert_eq!((of_web.namespace_id, of_web.size_bytes), (3, 64 * MIB));
    assert_eq!(sectors(&mut web), 64 * MIB / 512);
    assert!(is_zero(&mut web));
    assert_eq!(steps_of_start(&acme, "web"), FIRST_START);
    writes_and_reads(&mut web);
    let late = v1::NvmeSpec { id: "b".into(), ..of_size(63).nvme[0].clone() };
    acme.register("exact", v1::VirtualMachineSpec { nvme: vec![late], ..of_size(63) }).unwrap();
    let refused = acme.start("exact").unwrap_err();
    assert!(
        refused.message().contains("policy plugin own") && refused.message().contains("size.no-fit"),
        "{refused:?}"
    );
    globex.register("db", v1::VirtualMachineSpec { disks: vec![with_fio], ..of_size(80) }).unwrap();
    let (mut db, of_db) = boot(&host, &globex, "db");
    assert_eq!((of_db.namespace_id, of_db.size_bytes), (5, 96 * MIB));
    assert_eq!(sectors(&mut db), 96 * MIB / 512);
    assert_ne!(of_db.function, of_web.function);
    fio::verifies(&mut db, "/dev/nvme0n1", 94).unwrap();
    fio::reads_whole(&mut db, "/dev/nvme0n1", 94).unwrap();
    let held: Vec<_> = namespace_leases(&host, &drives).into_iter().map(|(id, lease)| (id, lease.state())).collect();
    assert_eq!(held, [(3, Lease::Attached), (5, Lease::Attached)]);
    // No secondary controller is left, and the text says nothing of who has them.
    acme.register("late", of_size(16)).unwrap();
    let late = acme.start("late").unwrap_err();
    assert!(late.message().contains("all 2 are taken") && !late.message().contains("globex"), "{late:?}");
    let in_use = facts(&host.operator().provision_nvme(&drives.lab, 1).unwrap_err());
    assert_eq!(in_use.reason, "DEVICE_IN_USE", "{in_use:?}");

    drop(web);
    keeps_its_data_while_it_exists(&mut host, &drives, &of_web);
    another_tenant_reads_zeroes(&host, &drives);
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    globex.destroy("db", true).unwrap();
    for vm in ["exact", "late"] {
        acme.destroy(vm, false).unwrap();
    }
    until_all_is_free(&host, &drives);
    provision(&host, &drives, "0").unwrap();
    drives.expect_shown(&before);
}

#[test]
fn a_daemon_killed_at_any_step_finishes_or_undoes_it() {
    const NAME: &str = "a_daemon_killed_at_any_step_finishes_or_undoes_it";
    let Some(drives) = Drives::find() else { return assets::skip(NAME, "an SR-IOV NVMe controller") };
    let mut host = host();
    provision(&host, &drives, "1").unwrap();
    let before = drives.shown();
    host.tenant("acme").register("web", of_size(64)).unwrap();
    let states = |host: &Host| -> Vec<_> {
        let lab = lab(host, &drives);
        let of_secondaries = lab.secondaries.into_iter().filter_map(|secondary| secondary.lease);
        let leases = lab.namespaces.into_iter().filter_map(|namespace| namespace.lease).chain(of_secondaries);
        leases.map(|lease| lease.state()).collect()
    };
    // In the middle of a start: when the namespace is claimed, when it is clean, when its controller is claimed. What the
    // start has begun stays to be read; leases may be the next step's before anybody has looked at them.
    for number in [2, 4, 5] {
        let step = FIRST_START[number];
        let caller = host.tenant("acme");
        let start = std::thread::spawn(move || caller.start("web").map(drop));
        let acme = host.tenant("acme");
        until(step, BOOT, || began(&acme, "StartVirtualMachine", step).then_some(()));
        host.kill_daemon();
        let _ = start.join().unwrap();
        host.start_daemon();
        let acme = host.tenant("acme");
        let settled = until("the end of the start", BOOT, || {
            acme.get("web").ok().filter(|vm| matches!(vm.state(), State::Failed | State::Running))
        });
        println!("{step}: {:?}", settled.state());
        if settled.state() == State::Running {
            acme.stop("web", Some(0)).unwrap();
        } else {
            // What its guest never saw is not kept, unless it was already on record that it was about to.
            let of_data = || namespace_leases(&host, &drives).into_iter().map(|(_, lease)| lease.state());
            if of_data().all(|state| state != Lease::Attached) {
                until_all_is_free(&host, &drives);
            }
        }
        let is_taken = lab(&host, &drives).secondaries[0].lease.clone().is_some_and(|l| l.state() != Lease::Free);
        assert!(!is_taken);
    }
    // While what a guest wrote is erased.
    let acme = host.tenant("acme");
    let (mut web, _) = boot(&host, &acme, "web");
    writes_and_reads(&mut web);
    acme.destroy("web", true).unwrap();
    println!("destroyed: {:?}", states(&host));
    host.kill_daemon();
    host.start_daemon();
    until_all_is_free(&host, &drives);
    drives.expect_shown(&before);
    host.tenant("globex").register("web", of_size(64)).unwrap();
    let (mut web, of_web) = boot(&host, &host.tenant("globex"), "web");
    assert_eq!(of_web.namespace_id, 3);
    assert!(is_zero(&mut web));
    // A vmm that dies while no daemon is there, and its guest writes.
    web.run("dd if=/dev/urandom of=/tmp/w bs=64k count=4 2>/dev/null");
    web.run("(while :; do dd if=/tmp/w of=/dev/nvme0n1 bs=64k conv=fsync || break; done) 2>/dev/null & true");
    web.run("until [ $(busybox awk '{print $7}' /sys/block/nvme0n1/stat) -gt 4096 ]; do usleep 20000; done");
    let pid = host.tenant("globex").get("web").unwrap().vmm_pid;
    host.kill_daemon();
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    host.start_daemon();
    host.tenant("globex").destroy("web", true).unwrap();
    until_all_is_free(&host, &drives);
    drives.expect_shown(&before);
}

#[test]
fn a_whole_controller_is_given_and_comes_back_empty() {
    const NAME: &str = "a_whole_controller_is_given_and_comes_back_empty";
    let Some(drives) = Drives::find() else { return assets::skip(NAME, "an NVMe controller") };
    let before = drives.shown();
    let host = host();
    let acme = host.tenant("acme");
    acme.register("web", with_nvme(Kind::Controller(v1::NvmeController {}))).unwrap();
    let (mut web, of_web) = boot(&host, &acme, "web");
    assert_eq!((of_web.serial.as_str(), of_web.namespace_id, of_web.size_bytes), ("ALONE", 0, 32 * MIB));
    assert_eq!(sectors(&mut web), 32 * MIB / 512);
    writes_and_reads(&mut web);
    // On the host it has an interrupt pin; a guest is given MSI-X, and shown nothing else.
    let pin =
        |config: &str| format!("dd if={config} bs=1 skip=61 count=1 2>/dev/null | busybox hexdump -e '1/1 \"%d\"'");
    let own = fs::read(Path::new(DEVICES).join(&of_web.function).join("config")).unwrap()[61];
    assert_eq!((own, web.number("pin", &pin("/sys/class/nvme/nvme0/device/config"))), (1, 0));
    // The operator's plugin lets only that one go, and it is gone.
    acme.register("late", with_nvme(Kind::Controller(v1::NvmeController {}))).unwrap();
    let late = acme.start("late").unwrap_err();
    assert!(late.message().contains("0000:"), "{late:?}");
    acme.stop("web", Some(0)).unwrap();
    let (mut web, _) = boot(&host, &acme, "web");
    assert!(secret(&mut web), "its data is gone");
    acme.destroy("web", true).unwrap();
    acme.destroy("late", false).unwrap();
    until("the controller on the host", BOOT, || (drives.shown() == before).then_some(()));
    let alone = until("the end of the cleaning", BOOT, || {
        let all = host.operator().nvme_controllers().unwrap();
        all.into_iter().find(|one| one.serial == "ALONE" && one.lease.as_ref().unwrap().state() == Lease::Free)
    });
    let mut bytes = Vec::new();
    let disk = Path::new("/dev").join(&alone.namespaces[0].block_device);
    File::open(disk).unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!((bytes.len() as u64, bytes.iter().find(|byte| **byte != 0)), (32 * MIB, None));
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    const NAME: &str = "what_cannot_be_is_refused_and_changes_nothing";
    let Some(drives) = Drives::find() else { return assets::skip(NAME, "an SR-IOV NVMe controller") };
    let host = host();
    let (acme, operator) = (host.tenant("acme"), host.operator());
    let untouched = drives.shown();
    is_not_provisioned_while_the_host_uses_it(&host, &drives);
    let refused = facts(&operator.provision_nvme(&drives.lab, 99).unwrap_err());
    assert_eq!((refused.reason.as_str(), refused.metadata["field"].as_str()), ("BAD_FIELD", "vfs"));
    let alone = operator.nvme_controllers().unwrap().into_iter().find(|one| one.serial == "ALONE").unwrap();
    let refused = facts(&operator.provision_nvme(&alone.address, 1).unwrap_err());
    assert!(refused.reason == "NVME_NOT_PRIMARY" || refused.reason == "BAD_FIELD", "{refused:?}");
    assert_eq!(facts(&operator.provision_nvme("0000:7f:00.0", 1).unwrap_err()).reason, "DEVICE_NOT_FOUND");
    assert_eq!(facts(&acme.provision_nvme(&drives.lab, 1).unwrap_err()).reason, "NOT_ALLOWED");
    drives.expect_shown(&untouched);

    provision(&host, &drives, "1").unwrap();
    let before = drives.shown();
    let fails = |vm: &str, spec: v1::VirtualMachineSpec, text: &str| {
        acme.register(vm, spec).unwrap();
        let refused = acme.start(vm).unwrap_err();
        assert!(refused.message().contains(text), "{refused:?}");
        acme.destroy(vm, false).unwrap();
        until_all_is_free(&host, &drives);
        drives.expect_shown(&before);
    };
    fails("huge", of_size(1 << 20), &format!("the largest holds {}", 256 * MIB));
    fails("taken", of_size(200), "all 1 are taken, the host's");
    run("modprobe", &["-r", "vfio_pci"]);
    fails("no-vfio", of_size(16), "driver vfio-pci is not there; load the module vfio-pci");
    run("modprobe", &["vfio-pci"]);
    let spec = of_size(0);
    assert_eq!(facts(&acme.register("none", spec).unwrap_err()).metadata["field"], "spec.nvme[0].min_bytes");

    // What cannot be reset is nobody's until an operator has it released; the namespace stays the VM's.
    acme.register("web", of_size(16)).unwrap();
    let (_web, of_web) = boot(&host, &acme, "web");
    assert_eq!(of_web.namespace_id, 2);
    let function = Path::new(DEVICES).join(&of_web.function);
    fs::write(function.join("reset_method"), "\n").unwrap();
    acme.stop("web", Some(0)).unwrap();
    let lease = lab(&host, &drives).secondaries[0].lease.clone().unwrap();
    assert!(lease.state() == Lease::Quarantined && lease.reason.contains("cannot be reset"), "{lease:?}");
    let refused = acme.start("web").unwrap_err();
    assert!(refused.message().contains("no secondary controller is free"), "{refused:?}");
    fs::write(function.join("reset_method"), "default\n").unwrap();
    assert_eq!(operator.release_nvme(&of_web.function, 0).unwrap().state(), Lease::Free);
    // Nor is a controller that had more attached than its guest was given.
    let (_web, of_web) = boot(&host, &acme, "web");
    let now = lab(&host, &drives);
    let id = u16::try_from(now.secondaries[0].controller_id).unwrap();
    Admin::open(&now.device).unwrap().attach_namespace(4, id).unwrap();
    acme.stop("web", Some(0)).unwrap();
    let lease = lab(&host, &drives).secondaries[0].lease.clone().unwrap();
    assert!(lease.state() == Lease::Quarantined && lease.reason.contains("had namespace 4 attached"), "{lease:?}");
    assert_eq!(operator.release_nvme(&of_web.function, 0).unwrap().state(), Lease::Free);
    acme.destroy("web", true).unwrap();
    until_all_is_free(&host, &drives);
    drives.expect_shown(&before);
}
