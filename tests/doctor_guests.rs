//! `ostler doctor` beside running guests: taps, cgroups and devices that are nobody's are named and removed, and what is a
//! guest's stays. Boots guests (feature `lab`).

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Child;

use crate::support::card::Card;
use crate::support::guest::{boot, disk, linux, nic};
use crate::support::host::taps;
use crate::support::shell::{DEVICES, read, run, write};
use crate::support::strays::{Stray, all, found, sleeper};
use crate::support::wait::{BOOT, SOON, until};
use crate::support::{Caller, Host, assets, facts};
use ostler::api::v1;
use ostler::api::v1::device_lease::State as Lease;
use ostler::api::v1::host_finding::{Kind, State};
use ostler::api::v1::virtual_machine::State as Vm;
use ostler::daemon::record::Subnet;
use ostler::model::VmId;
use rustix::process::{Pid, Signal, kill_process};

fn spec() -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec { disks: vec![disk("root", "hello.img", true)], nics: vec![nic("eth0")], ..linux() }
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// A cgroup of a VM, with a process in it.
struct Group {
    path: PathBuf,
    process: Child,
}

impl Group {
    fn plant(beside: &Path, uid: &str) -> Self {
        let path = beside.with_file_name(uid);
        fs::create_dir(&path).unwrap();
        let process = sleeper("somebody", Path::new("/dev/null"));
        write(path.join("cgroup.procs"), &process.id().to_string());
        Self { path, process }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir(&self.path);
    }
}

#[test]
fn what_is_nobody_s_beside_a_guest_is_removed_and_the_guest_goes_on() {
    let host = Host::with_guests();
    let (acme, operator) = (host.tenant("acme"), host.operator());
    let (mut console, _) = boot(&host, &acme, "web", spec());
    let off = acme.register("off", spec()).unwrap();
    let running = acme.get("web").unwrap();
    let own = (host.cgroups(), host.run_entries(), taps(), host.vmm_processes());
    assert_eq!(found(&operator.check_host().unwrap()), []);

    let mut stray = Stray::plant(&host);
    let mut expected = stray.expected();
    // Cgroups of a VM that does not exist, and of one that is off; that one's directory of sockets too.
    let mut groups: Vec<_> = [VmId::new().to_string(), off.uid.clone()]
        .iter()
        .map(|uid| {
            expected.push((Kind::CgroupOrphaned, format!("cgroup {uid}")));
            Group::plant(&own.0[0], uid)
        })
        .collect();
    fs::create_dir(host.run_dir().join("vms").join(&off.uid)).unwrap();
    expected.push((Kind::RunDirectoryOrphaned, format!("run directory {}", off.uid)));
    // A tap as those of VMs are, and one of another network, which may be another daemon's.
    let of = |network: [u8; 4]| Subnet::new(network.into()).unwrap().tap_name();
    let (tap, other) = (of([172, 30, 200, 0]), of([172, 31, 0, 0]));
    for name in [&tap, &other] {
        run("ip", &["tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr"]);
    }
    expected.push((Kind::TapOrphaned, format!("tap {tap}")));

    assert_eq!(found(&operator.check_host().unwrap()), all(&expected, State::Repairable));
    assert_eq!(found(&operator.repair_host("").unwrap()), all(&expected, State::Repaired));
    assert_eq!(found(&operator.check_host().unwrap()), []);
    assert!(!stray.is_there() && groups.iter().all(|group| !group.path.exists()));
    assert!(groups.iter_mut().all(|group| group.process.try_wait().unwrap().is_some()));
    assert!(taps().contains(&other) && !taps().contains(&tap));
    run("ip", &["link", "delete", &other]);

    assert_eq!((host.cgroups(), host.run_entries(), taps(), host.vmm_processes()), own);
    assert_eq!(acme.get("web").unwrap(), running);
    assert!(console.run("echo alive").contains("alive"));
    // It can be started as if nothing had been.
    assert_eq!(acme.start("off").unwrap().state(), Vm::Running);
    assert_eq!(found(&operator.check_host().unwrap()), []);
}

#[test]
fn what_a_running_guest_lacks_is_told_and_left_alone() {
    let host = Host::with_guests();
    let (acme, operator) = (host.tenant("acme"), host.operator());
    acme.register("web", spec()).unwrap();
    let vm = acme.start("web").unwrap();
    let told = |kind: Kind, word: &str| {
        let findings = operator.repair_host("").unwrap();
        assert_eq!(found(&findings), [(kind, "VM acme/web".to_owned(), State::NeedsOperator)]);
        assert!(findings[0].detail.contains(word), "{findings:?}");
    };
    let well = |what: &str| assert_eq!(found(&operator.check_host().unwrap()), [], "{what}");
    well("running");

    signal(vm.vmm_pid, Signal::STOP);
    // A moment later, when its vCPU has left the guest.
    let stat = format!("/proc/{}/stat", vm.vmm_pid);
    until("its standstill", SOON, || read(&stat).contains(") T ").then_some(()));
    told(Kind::ProcessSilent, "stopped by a signal");
    signal(vm.vmm_pid, Signal::CONT);
    well("let go on");

    let limit = host.cgroups()[0].join("memory.max");
    let before = fs::read_to_string(&limit).unwrap();
    write(&limit, "max");
    told(Kind::VmUnconfined, "memory.max");
    write(&limit, &before);
    well("limited");

    let socket = host.run_entries()[0].join("control.sock");
    let aside = socket.with_extension("aside");
    fs::rename(&socket, &aside).unwrap();
    told(Kind::VmIncomplete, "control socket");
    fs::rename(&aside, &socket).unwrap();
    well("with its socket");

    run("ip", &["link", "delete", &vm.nics[0].tap]);
    told(Kind::VmIncomplete, &vm.nics[0].tap);
    assert_eq!(acme.get("web").unwrap().vmm_pid, vm.vmm_pid);
    acme.stop("web", Some(0)).unwrap();
    well("off");
}

fn with_vf() -> v1::VirtualMachineSpec {
    let vf = v1::NicSpec { id: "vf".into(), sriov: Some(v1::SriovNic::default()), ..Default::default() };
    v1::VirtualMachineSpec { nics: vec![vf], ..linux() }
}

fn lend(host: &Host) {
    host.operator().load("operator/plugins/sriov-net", &assets::plugin("sriov-net"), &[]).unwrap();
}

fn bind(address: &str) {
    let dir = Path::new(DEVICES).join(address);
    write(dir.join("driver_override"), "vfio-pci");
    write("/sys/bus/pci/drivers_probe", address);
    assert!(fs::read_link(dir.join("driver")).unwrap().ends_with("vfio-pci"));
}

fn states(caller: &Caller) -> Vec<Lease> {
    let functions = caller.devices().unwrap().into_iter().flat_map(|card| card.virtual_functions);
    functions.map(|vf| vf.lease.unwrap_or_default().state()).collect()
}

#[test]
fn a_function_without_a_vm_is_taken_back_unless_somebody_uses_it_or_it_was_never_ours() {
    const NAME: &str = "a_function_without_a_vm_is_taken_back_unless_somebody_uses_it_or_it_was_never_ours";
    let Some(card) = Card::with_vfs(2) else { return assets::skip(NAME, "an SR-IOV network card") };
    let before = card.shown();
    let host = Host::with_guests();
    lend(&host);
    let (acme, operator) = (host.tenant("acme"), host.operator());
    acme.register("web", with_vf()).unwrap();
    let ours = acme.start("web").unwrap().nics[0].vf_address.clone();
    assert_eq!(found(&operator.check_host().unwrap()), []);
    let object = |address: &str| format!("virtual function {address}");

    // Quarantined: released by a repair once its cause is gone.
    let methods = Path::new(DEVICES).join(&ours).join("reset_method");
    write(&methods, "\n");
    acme.stop("web", Some(0)).unwrap();
    assert!(states(&operator).contains(&Lease::Quarantined));
    let findings = operator.repair_host("").unwrap();
    let quarantined = |state| [(Kind::DeviceQuarantined, object(&ours), state)];
    assert_eq!(found(&findings), quarantined(State::NotRepaired));
    assert!(findings[0].detail.contains("cannot be reset") && findings[0].failure.contains("cannot be reset"));
    write(&methods, "default\n");
    assert_eq!(found(&operator.repair_host("").unwrap()), quarantined(State::Repaired));
    assert_eq!(card.shown(), before);
    card.assert_unbound(2);

    // Bound by hand: one that was lent before, and one that never was.
    let all_functions = operator.devices().unwrap().remove(0).virtual_functions;
    let other = all_functions.into_iter().map(|vf| vf.address).find(|address| *address != ours).unwrap();
    bind(&ours);
    bind(&other);
    let unexplained = |of_ours, addresses: &[&String]| {
        let state = |address: &String| if *address == ours { of_ours } else { State::NeedsOperator };
        let mut all: Vec<_> =
            addresses.iter().map(|address| (Kind::BindingUnexplained, object(address), state(address))).collect();
        all.sort_by(|a, b| a.1.cmp(&b.1));
        all
    };
    let both = [&ours, &other];
    assert_eq!(found(&operator.check_host().unwrap()), unexplained(State::Repairable, &both));
    let group = fs::read_link(Path::new(DEVICES).join(&ours).join("iommu_group")).unwrap();
    let group = Path::new("/dev/vfio").join(group.file_name().unwrap());
    let used = File::options().read(true).write(true).open(group).unwrap();
    let findings = operator.repair_host("").unwrap();
    assert_eq!(found(&findings), unexplained(State::NotRepaired, &both), "{findings:?}");
    drop(used);
    assert_eq!(found(&operator.repair_host("").unwrap()), unexplained(State::Repaired, &both));
    assert_eq!(found(&operator.repair_host("").unwrap()), unexplained(State::Repaired, &[&other]));
    write(Path::new(DEVICES).join(&other).join("driver/unbind"), &other);
    write(Path::new(DEVICES).join(&other).join("driver_override"), "\n");
    assert_eq!(found(&operator.check_host().unwrap()), []);
    card.assert_unbound(2);
    assert_eq!(card.shown(), before);
}

#[test]
fn a_lease_that_outlived_its_run_on_a_full_disk_is_released() {
    const NAME: &str = "a_lease_that_outlived_its_run_on_a_full_disk_is_released";
    let Some(card) = Card::with_vfs(1) else { return assets::skip(NAME, "an SR-IOV network card") };
    let before = card.shown();
    let host = Host::with_guests_on(32);
    lend(&host);
    let (acme, operator) = (host.tenant("acme"), host.operator());
    acme.register("web", with_vf()).unwrap();
    let vm = acme.start("web").unwrap();
    let filler = host.data().join("filler");
    let mut file = File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    drop(file);
    // The store's file may have some room left.
    let refused = (0..10_000).find_map(|number| acme.register(&format!("vm{number}"), linux()).err());
    assert_eq!(facts(&refused.expect("the disk is not full")).reason, "STORE_FAILED");
    signal(vm.vmm_pid, Signal::KILL);
    until("the end of the VM", BOOT, || (acme.get("web").unwrap().state() == Vm::Failed).then_some(()));
    assert_eq!(states(&operator), [Lease::Attached], "its release could not be recorded");
    fs::remove_file(&filler).unwrap();

    let findings = operator.check_host().unwrap();
    println!("{findings:#?}");
    let stranded = (Kind::LeaseStranded, format!("virtual function {}", vm.nics[0].vf_address), State::Repairable);
    assert_eq!(found(&findings)[0], stranded);
    // Its file is behind, which the next write makes good.
    assert!(findings[1..].iter().all(|finding| finding.kind() == Kind::RecordUnwritten));
    let repaired = found(&operator.repair_host("").unwrap());
    assert!(repaired.len() == findings.len() && repaired.iter().all(|(_, _, state)| *state == State::Repaired));
    assert_eq!(found(&operator.check_host().unwrap()), []);
    assert_eq!(states(&operator), [Lease::Free]);
    assert_eq!(card.shown(), before);
    card.assert_unbound(1);
    assert_eq!(acme.start("web").unwrap().state(), Vm::Running);
}
