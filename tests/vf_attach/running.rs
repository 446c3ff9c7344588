//! Functions that come to a running guest and leave it.

use std::thread;
use std::time::Duration;

use ostler::api::v1::attach_device_request::Device;
use ostler::api::v1::device_status::State as DeviceState;

use super::*;
use crate::support::console::Console;
use crate::support::guest::{appears, boot, vanishes};
use crate::support::holdings::{Holdings, holdings};
use crate::support::wait::within;

/// Longest that a guest may take to let a device go: emulated, and busy.
const PATIENCE_MS: u64 = 60_000;
/// Times that a function comes to one guest and leaves it.
const CYCLES: usize = 20;
/// Longer than a guest has for a device that the host wants back.
const RECLAIM: Duration = Duration::from_secs(6);
const MAC: &str = "02:aa:00:00:00:07";
/// The lab's gateway, on the card's network.
const GATEWAY: &str = "10.0.2.2";
const CARRIER: &str = "/sys/class/net/eth0/carrier";

fn function() -> Device {
    with_mac(MAC, 0)
}

/// A function as `net1`.
pub(super) fn with_mac(mac: &str, vlan: u32) -> Device {
    let sriov = Some(v1::SriovNic { mac: mac.into(), vlan });
    Device::Nic(v1::NicSpec { id: "net1".into(), sriov, ..Default::default() })
}

/// A guest without any device of the host, that has the drivers for one.
fn plain(words: &str) -> v1::VirtualMachineSpec {
    let mut spec = bootable("linux-6.12-full", "vmlinux");
    spec.memory_mib = 512;
    add_words(&mut spec, words);
    spec
}

/// Names of the VM's devices, each with what is under way with it.
pub(super) fn devices(vm: &v1::VirtualMachine) -> Vec<(&str, DeviceState)> {
    vm.devices.iter().map(|device| (device.id.as_str(), device.state())).collect()
}

/// Interrupts that all vectors of the guest's interface have had.
fn interrupts(console: &mut Console) -> u64 {
    let sum = "busybox awk '/eth0/ {for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) sum += $i} END {print sum + 0}'";
    console.number("irqs", &format!("{sum} /proc/interrupts"))
}

/// Pings, of which none may be lost; each answer comes by an interrupt or with another one.
fn pings(console: &mut Console, count: u32, address: &str) {
    let before = interrupts(console);
    let printed = console.run(&format!("ping -q -A -c {count} -W 5 {address}"));
    assert!(printed.contains(&format!("{count} packets received, 0% packet loss")), "{printed}");
    let after = interrupts(console);
    assert!(after > before, "no interrupts: {before} before, {after} after");
}

/// Brings the guest's interface up, and pings the outside.
fn uses(console: &mut Console, count: u32) {
    appears(console, "/sys/class/net/eth0");
    assert!(console.run("cat /sys/class/net/eth0/address").contains(MAC));
    console.run("ip addr add 10.0.2.20/24 dev eth0; ip link set eth0 up");
    console.run(&format!("until [ \"$(cat {CARRIER})\" = 1 ]; do usleep 50000; done"));
    pings(console, count, GATEWAY);
}

/// The card's own interface has an address for the time of a test, on a network without any other.
struct OwnAddress<'a>(&'a Card);

impl<'a> OwnAddress<'a> {
    const HOST: &'static str = "172.31.255.1";
    const GUEST: &'static str = "172.31.255.2";

    fn give(card: &'a Card) -> Self {
        run("ip", &["addr", "add", &format!("{}/24", Self::HOST), "dev", &card.interface]);
        Self(card)
    }
}

impl Drop for OwnAddress<'_> {
    fn drop(&mut self) {
        run("ip", &["addr", "del", &format!("{}/24", Self::HOST), "dev", &self.0.interface]);
    }
}

/// A thousand pings each to the outside and to the card itself, of which none is lost; all that comes, comes by MSI-X.
fn is_lossless(console: &mut Console, card: &Card) {
    let _address = OwnAddress::give(card);
    console.run(&format!("ip addr add {}/24 dev eth0", OwnAddress::GUEST));
    for address in [GATEWAY, OwnAddress::HOST] {
        pings(console, 1000, address);
    }
    let kinds = console
        .run("busybox awk '/eth0/ {print \"kind=\" ($0 ~ /PCI-MSIX-0000:00:/ ? \"msix\" : $0)}' /proc/interrupts");
    assert!(kinds.contains("\nkind=msix"), "{kinds}");
    assert!(!kinds.lines().any(|line| line.starts_with("kind=") && line.trim_end() != "kind=msix"), "{kinds}");
}

#[test]
fn a_function_comes_to_a_running_guest_and_leaves_it_under_traffic() {
    const NAME: &str = "a_function_comes_to_a_running_guest_and_leaves_it_under_traffic";
    let Some(card) = Card::with_vfs(2) else { return assets::skip(NAME, "an SR-IOV network card") };
    let before = card.shown();
    let host = host();
    let acme = host.tenant("acme");
    acme.load("tenants/acme/plugins/own", &assets::plugin("sriov-net"), &[("macs", "02:aa")]).unwrap();
    let (mut console, _) = boot(&host, &acme, "web", plain(""));
    let pid = acme.get("web").unwrap().vmm_pid;
    let held = holdings(pid);
    assert!(held.lockable.split_whitespace().any(|word| word == "0"), "{held:?}");
    for cycle in 0..CYCLES {
        let vm = acme.attach("web", function()).unwrap_or_else(|error| panic!("cycle {cycle}: {error:?}"));
        assert_eq!((vm.nics[0].mac.as_str(), &vm.nics[0].pf_interface), (MAC, &card.interface));
        assert_eq!(devices(&vm), [("net1", DeviceState::Attached)]);
        assert!(leases(&host).iter().any(|lease| lease.state() == Lease::Attached && lease.tenant == "acme"));
        assert!(card.shown().iter().any(|vf| vf["address"] == MAC), "cycle {cycle}");
        uses(&mut console, 20);
        if cycle == 0 {
            is_lossless(&mut console, &card);
        }
        console.run(&format!("(ping -q -A -w 3 {GATEWAY} >/dev/null 2>&1) & true"));
        let vm = acme
            .detach("web", "net1", Some(PATIENCE_MS), false)
            .unwrap_or_else(|error| panic!("cycle {cycle}: {error:?}"));
        assert!(vm.nics.is_empty() && vm.devices.is_empty(), "{vm:?}");
        vanishes(&mut console, "/sys/class/net/eth0");
        assert_eq!(card.shown(), before, "cycle {cycle}");
        card.assert_unbound(2);
        assert!(states(&host).iter().all(|state| matches!(state, Lease::Free | Lease::Unspecified)));
        assert_eq!(holdings(pid), held, "cycle {cycle}");
    }
    assert!(console.run("dmesg | grep -c -i -e 'call trace' -e 'BUG:'").contains("\n0"));

    // What policy does not give leaves nothing, and says who it was.
    let refused = facts(&acme.attach("web", with_mac("02:bb:00:00:00:01", 0)).unwrap_err());
    assert_eq!(refused.reason, "DEVICE_NOT_LENT");
    assert!(refused.message.contains("policy plugin own"), "{refused:?}");
    assert!(acme.get("web").unwrap().devices.is_empty());
    assert_eq!((card.shown(), holdings(pid)), (before, held));
}

/// Waits until the VM has settled after a daemon's death: it has the function with its lease, or nothing is left of it.
fn settles(host: &Host, card: &Card, before: &[serde_json::Value], pid: u32) -> bool {
    let acme = host.tenant("acme");
    let vm = until("the end of what was under way", BOOT, || {
        let vm = acme.get("web").ok()?;
        let is_settled = devices(&vm).iter().all(|(_, state)| *state == DeviceState::Attached);
        is_settled.then_some(vm)
    });
    assert_eq!((vm.state(), vm.vmm_pid), (State::Running, pid));
    if vm.devices.is_empty() {
        assert!(matches!(states(host)[..], [Lease::Free]));
        assert_eq!(card.shown(), before);
        card.assert_unbound(1);
        return false;
    }
    assert_eq!((states(host), vm.nics[0].mac.as_str()), (vec![Lease::Attached], MAC));
    true
}

#[test]
fn a_daemon_killed_while_a_function_comes_or_goes_finishes_or_undoes_it() {
    const NAME: &str = "a_daemon_killed_while_a_function_comes_or_goes_finishes_or_undoes_it";
    let Some(card) = Card::with_vfs(1) else { return assets::skip(NAME, "an SR-IOV network card") };
    let before = card.shown();
    let mut host = host();
    let (console, _) = boot(&host, &host.tenant("acme"), "web", plain(""));
    drop(console);
    let pid = host.tenant("acme").get("web").unwrap().vmm_pid;
    let held = holdings(pid);
    let coming: [fn(Lease) -> bool; 3] = [
        |state| !matches!(state, Lease::Unspecified | Lease::Free),
        |state| matches!(state, Lease::Prepared | Lease::Attached),
        |state| state == Lease::Attached,
    ];
    for (number, is_reached) in coming.iter().enumerate() {
        let acme = host.tenant("acme");
        let attach = thread::spawn(move || acme.attach("web", function()).map(drop));
        until("the step", BOOT, || is_reached(states(&host)[0]).then_some(()));
        host.kill_daemon();
        let _ = attach.join().unwrap();
        host.start_daemon();
        let has_it = settles(&host, &card, &before, pid);
        println!("step {number} of an attach: {}", if has_it { "finished" } else { "undone" });
        if has_it {
            host.tenant("acme").detach("web", "net1", Some(PATIENCE_MS), false).unwrap();
        }
    }
    // While it leaves: asked for, then while it is cleaned.
    for wanted in [Lease::Attached, Lease::Releasing] {
        let acme = host.tenant("acme");
        acme.attach("web", function()).unwrap();
        let detach = thread::spawn(move || acme.detach("web", "net1", Some(PATIENCE_MS), false).map(drop));
        let acme = host.tenant("acme");
        until("the step", BOOT, || {
            let is_leaving = acme.get("web").ok()?.devices.iter().all(|one| one.state() == DeviceState::Detaching);
            let is_reached = states(&host)[0] == wanted || states(&host)[0] == Lease::Free;
            (is_leaving && is_reached).then_some(())
        });
        host.kill_daemon();
        let _ = detach.join().unwrap();
        host.start_daemon();
        assert!(!settles(&host, &card, &before, pid), "it was to go");
    }
    let after = holdings(pid);
    assert_eq!((after.device_mappings, &after.lockable), (0, &held.lockable));
    // Consoles and daemons come and go.
    let lasting = |held: &Holdings| held.descriptors.iter().filter(|descriptor| *descriptor != "socket").count();
    assert_eq!((after.threads, lasting(&after)), (held.threads, lasting(&held)));
}

#[test]
fn a_function_is_taken_by_force_from_a_guest_that_does_not_let_go() {
    const NAME: &str = "a_function_is_taken_by_force_from_a_guest_that_does_not_let_go";
    let Some(card) = Card::with_vfs(1) else { return assets::skip(NAME, "an SR-IOV network card") };
    let before = card.shown();
    let host = host();
    let (acme, operator) = (host.tenant("acme"), host.operator());
    // A guest without a driver for its slots, which has the function from its start.
    let mut spec = with_vf(MAC, 0, "acpiphp.disable=1");
    spec.nics[0].id = "net1".into();
    let (mut console, _) = boot(&host, &acme, "web", spec);
    uses(&mut console, 20);
    console.run(&format!("(ping -q -A -w 20 {GATEWAY} >/dev/null 2>&1) & true"));
    let refused = facts(&acme.detach("web", "net1", Some(1_000), false).unwrap_err());
    assert_eq!(refused.reason, "GUEST_UNPLUG_REFUSED", "{refused:?}");
    assert_eq!(states(&host), [Lease::Attached]);
    // It cannot be reset afterwards: nobody gets it, and the VM is rid of it all the same.
    let address = acme.get("web").unwrap().nics[0].vf_address.clone();
    write(card.vf(0).join("reset_method"), "\n");
    let vm = acme.detach("web", "net1", None, true).unwrap();
    assert!(vm.devices.is_empty() && vm.nics.is_empty() && vm.state() == State::Running);
    let lease = leases(&host).remove(0);
    assert!(lease.state() == Lease::Quarantined && lease.reason.contains("cannot be reset"), "{lease:?}");
    let held = holdings(vm.vmm_pid);
    assert_eq!(held.device_mappings, 0);
    console.run("echo still here");
    let none = facts(&acme.attach("web", function()).unwrap_err());
    assert!(
        none.reason == "DEVICE_NOT_LENT" && none.message.contains("no SR-IOV virtual function is free"),
        "{none:?}"
    );
    write(card.vf(0).join("reset_method"), "default\n");
    assert_eq!(operator.release_device(&address).unwrap().state(), Lease::Free);
    assert_eq!(card.shown(), before);
    card.assert_unbound(1);
}

#[test]
fn a_card_that_fails_under_a_running_guest_costs_it_the_function_alone() {
    const NAME: &str = "a_card_that_fails_under_a_running_guest_costs_it_the_function_alone";
    let Some(card) = Card::with_vfs(1) else { return assets::skip(NAME, "an SR-IOV network card") };
    let host = host();
    let acme = host.tenant("acme");
    let (mut console, _) = boot(&host, &acme, "web", plain(""));
    let pid = acme.get("web").unwrap().vmm_pid;

    // The card's interface goes down and comes up again: the function stays the guest's, and works again.
    acme.attach("web", function()).unwrap();
    uses(&mut console, 5);
    run("ip", &["link", "set", &card.interface, "down"]);
    assert_eq!((states(&host), acme.get("web").unwrap().state()), (vec![Lease::Attached], State::Running));
    run("ip", &["link", "set", &card.interface, "up"]);
    card.wait_for_carrier();
    console.run(&format!("until ping -q -c 1 -W 1 {GATEWAY} >/dev/null 2>&1; do usleep 100000; done"));

    // The function disappears: the kernel waits until it is given up. Asked for or not, the guest lives on without it.
    let path = card.directory.join("sriov_numvfs");
    let removing = thread::spawn(move || write(path, "0"));
    until("the end of the function", BOOT, || {
        let vm = acme.get("web").unwrap();
        (vm.devices.is_empty() && vm.state() == State::Running && vm.vmm_pid == pid).then_some(())
    });
    removing.join().unwrap();
    vanishes(&mut console, "/sys/class/net/eth0");
    assert_eq!(holdings(pid).device_mappings, 0);

    // Made anew, it is of use again. Then the card's driver goes away.
    write(card.directory.join("sriov_numvfs"), "1");
    card.wait_for_carrier();
    assert!(matches!(states(&host)[..], [Lease::Free]));
    acme.attach("web", function()).unwrap();
    uses(&mut console, 5);
    let lost = within(RECLAIM, || (states(&host) != [Lease::Attached]).then_some(()));
    assert!(lost.is_none(), "it is not the one that the host wanted back");
    let (driver, address) = (fs::canonicalize(card.directory.join("driver")).unwrap(), card.directory.clone());
    let address = address.file_name().unwrap().to_str().unwrap().to_owned();
    let unbinding = {
        let (unbind, address) = (driver.join("unbind"), address.clone());
        thread::spawn(move || write(unbind, &address))
    };
    until("the end of the function", BOOT, || acme.get("web").unwrap().devices.is_empty().then_some(()));
    unbinding.join().unwrap();
    write(driver.join("bind"), &address);
    console.run("echo still here");
    assert_eq!((acme.get("web").unwrap().state(), acme.get("web").unwrap().vmm_pid), (State::Running, pid));

    // Last, the VM's own process dies while the function reads and writes its memory.
    run("ip", &["link", "set", &card.interface, "up"]);
    card.wait_for_carrier();
    write(card.directory.join("sriov_drivers_autoprobe"), "0");
    write(card.directory.join("sriov_numvfs"), "1");
    card.wait_for_carrier();
    let before = card.shown();
    acme.attach("web", function()).unwrap();
    uses(&mut console, 5);
    console.run(&format!("for i in 1 2 3 4; do (ping -q -A -w 60 {GATEWAY} >/dev/null 2>&1) & true; done"));
    kill(pid);
    reaches(&acme, "web", State::Failed);
    assert!(matches!(states(&host)[..], [Lease::Free]), "{:?}", leases(&host));
    assert_eq!(card.shown(), before);
    card.assert_unbound(1);
}
