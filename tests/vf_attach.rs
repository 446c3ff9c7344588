//! Virtual functions of the lab's network card for VMs: chosen by policy, set, given, taken back. Boots guests (feature
//! `lab`). What the card shows is asked with `ip`, not with the code under test.

mod races;
mod requests;
mod running;

use std::fs;

use crate::support::card::Card;
use crate::support::guest::{add_words, bootable};
use crate::support::operations::steps_of_start;
use crate::support::shell::{run, write};
use crate::support::wait::{BOOT, SOON, until};
use crate::support::{Caller, Host, assets, facts};
use ostler::api::v1;
use ostler::api::v1::device_lease::State as Lease;
use ostler::api::v1::virtual_machine::State;

/// A VM with a virtual function as `vf`.
fn with_vf(mac: &str, vlan: u32, words: &str) -> v1::VirtualMachineSpec {
    let mut spec = bootable("linux-6.12-full", "vmlinux");
    spec.memory_mib = 512;
    add_words(&mut spec, words);
    spec.nics = vec![v1::NicSpec {
        id: "vf".into(),
        sriov: Some(v1::SriovNic { mac: mac.into(), vlan }),
        ..Default::default()
    }];
    spec
}

/// A node whose operator lets tenants have virtual functions, in VLAN 100 if they wish.
fn host() -> Host {
    let host = Host::with_guests();
    let sriov_net = assets::plugin("sriov-net");
    host.operator().load("operator/plugins/sriov-net", &sriov_net, &[("vlans", "100")]).unwrap();
    host
}

/// Leases by number on the card; `STATE_UNSPECIFIED` for one that nobody ever had.
fn leases(host: &Host) -> Vec<v1::DeviceLease> {
    let card = host.operator().devices().unwrap().remove(0);
    card.virtual_functions.into_iter().map(|vf| vf.lease.unwrap_or_default()).collect()
}

fn states(host: &Host) -> Vec<Lease> {
    leases(host).iter().map(v1::DeviceLease::state).collect()
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn reaches(caller: &Caller, vm: &str, state: State) -> v1::VirtualMachine {
    until(state.as_str_name(), BOOT, || caller.get(vm).ok().filter(|vm| vm.state() == state))
}

/// What the inventory says of the cards, beside what the kernel does. The second one's port keeps its functions apart from
/// nothing; this kernel's driver knows one way to switch frames.
fn is_shown_as_it_is(host: &Host, card: &Card) {
    let cards = host.operator().devices().unwrap();
    let [first, second] = &cards[..] else { panic!("{cards:?}") };
    assert_eq!(first.address, card.directory.file_name().unwrap().to_str().unwrap());
    let group = fs::read_link(card.directory.join("iommu_group")).unwrap();
    assert_eq!(first.iommu_group.unwrap().to_string(), group.file_name().unwrap().to_str().unwrap());
    assert_eq!(
        (first.group_members.clone(), first.eswitch_mode.as_str()),
        (vec![format!("{} igb", first.address)], "")
    );
    for (card, has_acs) in [(first, true), (second, false)] {
        let [port] = &card.bridges[..] else { panic!("{card:?}") };
        assert_eq!((&port.address, port.acs), (&card.root_port, has_acs), "{port:?}");
        assert_eq!(port.acs_controls.iter().any(|control| control == "request-redirect"), has_acs, "{port:?}");
    }
    assert_eq!(first.virtual_functions.iter().map(|vf| vf.msix_vectors).collect::<Vec<_>>(), [Some(3); 2]);
}

#[test]
fn two_tenants_with_their_own_plugins_get_functions_and_give_them_back_as_they_were() {
    const NAME: &str = "two_tenants_with_their_own_plugins_get_functions_and_give_them_back_as_they_were";
    let Some(card) = Card::with_vfs(2) else { return assets::skip(NAME, "an SR-IOV network card") };
    let before = card.shown();
    let host = host();
    is_shown_as_it_is(&host, &card);
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    let sriov_net = assets::plugin("sriov-net");
    acme.load("tenants/acme/plugins/own", &sriov_net, &[("macs", "02:aa"), ("max-tx-mbps", "100")]).unwrap();
    globex.load("tenants/globex/plugins/own", &sriov_net, &[("vlans", "100")]).unwrap();

    // An address that acme's own plugin does not allow, a VLAN that the operator's does not: nothing changes.
    acme.register("wrong-mac", with_vf("02:bb:00:00:00:01", 0, "")).unwrap();
    globex.register("wrong-vlan", with_vf("", 7, "")).unwrap();
    for (caller, vm) in [(&acme, "wrong-mac"), (&globex, "wrong-vlan")] {
        let refused = facts(&caller.start(vm).unwrap_err());
        assert!(refused.message.contains("policy plugin"), "{refused:?}");
        let failed = caller.get(vm).unwrap();
        assert_eq!((failed.state(), failed.nics[0].vf_address.as_str()), (State::Failed, ""));
    }
    assert_eq!((card.shown(), states(&host)), (before.clone(), vec![Lease::Unspecified; 2]));

    let mac = "02:aa:00:00:00:01";
    acme.register("web", with_vf(mac, 0, "ip=10.0.2.20::10.0.2.2:255.255.255.0::eth0:off ostler.nic")).unwrap();
    let running = acme.start("web").unwrap();
    let nic = &running.nics[0];
    assert_eq!((nic.mac.as_str(), nic.pf_interface.as_str()), (mac, card.interface.as_str()));
    let steps = [
        "looking for virtual functions",
        "asking policy for a virtual function",
        "waiting for the network card's carrier",
        "writing the virtual function's settings",
        "binding the device to vfio-pci",
        "resetting the device",
        "checking the virtual function's settings",
    ];
    assert_eq!(steps_of_start(&acme, "web"), steps);
    globex.register("web", with_vf("", 100, "")).unwrap();
    let other = globex.start("web").unwrap();
    assert_ne!(other.nics[0].vf_address, nic.vf_address);
    assert_eq!(states(&host), [Lease::Attached; 2]);
    let shown = card.shown();
    let of = |nic: &v1::NicStatus| {
        let shown = shown.iter().find(|vf| vf["address"] == nic.mac.as_str());
        shown.unwrap_or_else(|| panic!("no function has {}: {shown:?}", nic.mac)).clone()
    };
    assert_eq!((&of(nic)["rate"]["max_tx"], &of(nic)["spoofchk"]), (&100.into(), &true.into()));
    assert_eq!(of(&other.nics[0])["vlan_list"][0]["vlan"], 100);
    // An address is given once, and both functions are taken.
    acme.register("late", with_vf("", 0, "")).unwrap();
    let now = (card.shown(), leases(&host));
    let late = acme.start("late").unwrap_err();
    assert!(late.message().contains("of 2, 2 are taken"), "{late:?}");
    assert!(!late.message().contains("globex"));
    assert_eq!((card.shown(), leases(&host)), now);

    let line = host.console(&acme, "web").expect("ostler-guest: nic ");
    assert!(line.contains(&format!("nic igbvf {mac} carrier 1")), "{line}");
    acme.stop("web", Some(0)).unwrap();
    globex.destroy("web", true).unwrap();
    assert_eq!(card.shown(), before);
    card.assert_unbound(2);
    let leases = leases(&host);
    assert!(leases.iter().all(|lease| lease.state() == Lease::Free && lease.vm_uid.is_empty()), "{leases:?}");
    let mut last: Vec<_> = leases.iter().map(|lease| lease.last_tenant.as_str()).collect();
    last.sort_unstable();
    assert_eq!(last, ["acme", "globex"]);
    assert_eq!(acme.get("web").unwrap().nics[0].vf_address, "");
}

#[test]
fn of_two_starts_for_the_last_function_one_wins_and_a_killed_daemon_loses_nothing() {
    const NAME: &str = "of_two_starts_for_the_last_function_one_wins_and_a_killed_daemon_loses_nothing";
    let Some(card) = Card::with_vfs(1) else { return assets::skip(NAME, "an SR-IOV network card") };
    let before = card.shown();
    let mut host = host();
    let callers = [host.tenant("acme"), host.tenant("globex")];
    for caller in &callers {
        caller.register("web", with_vf("", 0, "")).unwrap();
    }
    let started = std::thread::scope(|scope| {
        let starts = callers.each_ref().map(|caller| scope.spawn(|| caller.start("web")));
        starts.map(|start| start.join().unwrap())
    });
    assert_eq!(started.iter().filter(|start| start.is_ok()).count(), 1, "{started:?}");
    let winner = if started[0].is_ok() { "acme" } else { "globex" };
    let running = started.into_iter().find_map(Result::ok).unwrap();
    assert_eq!((states(&host), leases(&host)[0].tenant.as_str()), (vec![Lease::Attached], winner));

    // While it runs a daemon that is killed costs it nothing.
    let shown = card.shown();
    host.kill_daemon();
    host.start_daemon();
    let adopted = host.tenant(winner).get("web").unwrap();
    assert_eq!((adopted.state(), &adopted.nics, adopted.vmm_pid), (State::Running, &running.nics, running.vmm_pid));
    assert_eq!((states(&host), card.shown()), (vec![Lease::Attached], shown));
    let in_use = facts(&host.operator().release_device(&running.nics[0].vf_address).unwrap_err());
    assert_eq!(in_use.reason, "DEVICE_IN_USE", "{in_use:?}");

    // It ends while no daemon is there: the next one cleans.
    host.kill_daemon();
    kill(running.vmm_pid);
    host.start_daemon();
    reaches(&host.tenant(winner), "web", State::Failed);
    assert_eq!((states(&host), card.shown()), (vec![Lease::Free], before.clone()));
    card.assert_unbound(1);

    // Killed in the middle of a start, wherever that is: the function is clean, or its VM runs with it.
    let caller = host.tenant(winner);
    let start = std::thread::spawn(move || caller.start("web").map(drop));
    until("the claim", SOON, || (states(&host) != [Lease::Free]).then_some(()));
    host.kill_daemon();
    assert!(start.join().unwrap().is_err());
    host.start_daemon();
    let caller = host.tenant(winner);
    let settled = until("the end of the start", BOOT, || {
        caller.get("web").ok().filter(|vm| matches!(vm.state(), State::Failed | State::Running))
    });
    if settled.state() == State::Running {
        assert_eq!(states(&host), [Lease::Attached]);
        caller.stop("web", Some(0)).unwrap();
    }
    assert_eq!((states(&host), card.shown()), (vec![Lease::Free], before));
    card.assert_unbound(1);
}

#[test]
fn a_function_that_cannot_be_reset_is_quarantined_until_an_operator_has_it_released() {
    const NAME: &str = "a_function_that_cannot_be_reset_is_quarantined_until_an_operator_has_it_released";
    let Some(card) = Card::with_vfs(1) else { return assets::skip(NAME, "an SR-IOV network card") };
    let before = card.shown();
    let host = host();
    let (acme, operator) = (host.tenant("acme"), host.operator());
    acme.register("web", with_vf("", 0, "")).unwrap();
    let address = acme.start("web").unwrap().nics[0].vf_address.clone();
    // An empty line: no method is to be used (linux/Documentation/ABI/testing/sysfs-bus-pci).
    write(card.vf(0).join("reset_method"), "\n");
    acme.stop("web", Some(0)).unwrap();
    let lease = leases(&host).remove(0);
    assert_eq!(lease.state(), Lease::Quarantined);
    assert!(lease.reason.contains("cannot be reset"), "{lease:?}");
    let refused = acme.start("web").unwrap_err();
    assert!(refused.message().contains("no SR-IOV virtual function is free"), "{refused:?}");
    let unclean = facts(&operator.release_device(&address).unwrap_err());
    assert_eq!(unclean.reason, "DEVICE_UNCLEAN", "{unclean:?}");
    let denied = facts(&acme.release_device(&address).unwrap_err());
    assert_eq!(denied.reason, "NOT_ALLOWED", "{denied:?}");

    write(card.vf(0).join("reset_method"), "default\n");
    let (tree, released) = (host.command("operator-admin").args(["host", "devices"]).output().unwrap(), operator);
    let tree = String::from_utf8(tree.stdout).unwrap();
    assert!(tree.contains("VF 0") && tree.contains("QUARANTINED for acme's VM"), "{tree}");
    println!("{tree}");
    assert_eq!(released.release_device(&address).unwrap().state(), Lease::Free);
    assert_eq!(card.shown(), before);
    card.assert_unbound(1);
    assert_eq!(facts(&released.release_device(&address).unwrap_err()).reason, "DEVICE_NOT_HELD");
    assert_eq!(acme.start("web").unwrap().nics[0].vf_address, address);
    acme.destroy("web", true).unwrap();
    assert_eq!(card.shown(), before);
}
