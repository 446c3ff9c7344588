//! What goes wrong with virtual functions elsewhere, and here does not. Which test shows it:
//!
//! | race or failure | shown by |
//! |---|---|
//! | an old owner's release reaches what the next one holds | [`an_owner_that_is_late_touches_nothing_and_each_gets_the_function_reset`]; of the lease, the model in `service/devices/claim/tests.rs` |
//! | nobody cleaned up, and an address is left somewhere | [`what_cannot_be_lent_is_refused_with_the_reason_and_changes_nothing`]; after a crash `crash_devices` |
//! | a function vanishes with the network namespace that has it | the same: it is not taken; [`functions_made_while_the_daemon_runs_are_lent_and_what_the_card_does_is_noticed`]: it has no interface while it is lent |
//! | what a guest left in a function stays there | the first one, at each owner; not to be reset, quarantined: `a_function_that_cannot_be_reset_…` |
//! | two want the last function | `of_two_starts_for_the_last_function_one_wins_…`, [`requests`](super::requests), the model |
//! | IOMMU groups have other numbers | [`a_lease_stays_with_its_function_when_the_iommu_group_has_another_number`] |
//! | fewer functions than were asked for | the same; `of_fewer_functions_than_were_asked_for_…` in `inventory/devices/tests.rs`; of NVMe `secondary_controllers_are_made_…` |
//! | the hardware changed, and no record says so | `crash_devices`, at every step |
//! | the list of devices is that of the daemon's start | `functions_made_while_…` |
//! | the number of functions changes under a guest | the same: the kernel refuses another one; to none, `a_card_that_fails_under_a_running_guest_…` |
//! | a card that is down, without carrier, without driver | `functions_made_while_…`, `what_cannot_be_lent_…`; under a guest `a_card_that_fails_under_a_running_guest_…` |
//! | a card that still resets its function | `a_card_that_still_resets_its_function_…` in `hostdev/sriov.rs`: no card of the lab is busy when it should be |
//! | a card and its functions in one IOMMU group | `what_cannot_be_lent_…`: the lab's second card |
//! | a group of which a part is the host's | the same, what VFIO itself says of it included |

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify;

use super::*;
use crate::support::card::{cards, interface};
use crate::support::client::wait;
use crate::support::drives::Drives;
use crate::support::guest::linux;
use crate::support::shell::{DEVICES, read};
use ostler::api::v1::decision_record::enforcement::State as Enforced;
use ostler::daemon::hostdev::{self, VfPlace};
use ostler::daemon::operation::Underway;
use ostler::sys::rtnl::VfConfig;

/// A VM with a virtual function, whose guest nobody waits for.
fn idle(mac: &str) -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec { nics: with_vf(mac, 0, "").nics, ..linux() }
}

/// Counts resets of a function, as they are written into sysfs.
struct Resets(OwnedFd, usize);

impl Resets {
    fn of(function: &Path) -> Self {
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        // Both, since events that are alike and follow each other come as one.
        let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CLOSE_WRITE;
        inotify::add_watch(&watch, function.join("reset"), flags).unwrap();
        Self(watch, 0)
    }

    fn count(&mut self) -> usize {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
        let mut events = inotify::Reader::new(&self.0, &mut buffer);
        while let Ok(event) = events.next() {
            self.1 += usize::from(event.events().contains(inotify::ReadFlags::MODIFY));
        }
        self.1
    }
}

/// Its driver's name.
fn driver(function: &Path) -> Option<String> {
    let link = fs::read_link(function.join("driver")).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

/// Gives a function to the driver of this name, whatever has it.
fn bind(function: &Path, driver: &str) {
    let address = function.file_name().unwrap().to_str().unwrap();
    let _ = fs::write(function.join("driver/unbind"), address);
    write(function.join("driver_override"), driver);
    write("/sys/bus/pci/drivers_probe", address);
    assert_eq!(self::driver(function).as_deref(), Some(driver));
}

fn unbind(function: &Path) {
    write(function.join("driver/unbind"), function.file_name().unwrap().to_str().unwrap());
    write(function.join("driver_override"), "\n");
}

#[test]
fn an_owner_that_is_late_touches_nothing_and_each_gets_the_function_reset() {
    const NAME: &str = "an_owner_that_is_late_touches_nothing_and_each_gets_the_function_reset";
    let Some(card) = Card::with_vfs(1) else { return assets::skip(NAME, "an SR-IOV network card") };
    let before = card.shown();
    let mut host = host();
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    let mut resets = Resets::of(&card.vf(0));
    let stop = |caller: &Caller| {
        let (name, request_id) = (caller.name("web"), "9f3c5d2e-4f6a-4b0e-8a70-2d1f6f1f0001".to_owned());
        let grace = Some(ostler::api::convert::duration_to_proto(std::time::Duration::ZERO));
        let request = v1::StopVirtualMachineRequest { name, grace, request_id, ..Default::default() };
        wait(caller.vms.clone().stop_virtual_machine(request))
    };
    acme.register("web", idle("")).unwrap();
    globex.register("web", idle("")).unwrap();
    let address = acme.start("web").unwrap().nics[0].vf_address.clone();
    let old = leases(&host).remove(0);
    assert_eq!((old.state(), resets.count()), (Lease::Attached, 1), "before its first owner");
    stop(&acme).unwrap();
    assert_eq!((states(&host), resets.count()), (vec![Lease::Free], 2), "after it");
    globex.start("web").unwrap();
    let held = leases(&host).remove(0);
    assert_eq!((held.tenant.as_str(), resets.count()), ("globex", 3), "before the second one");
    assert!(held.generation > old.generation);
    let now = (leases(&host), card.shown());

    // Whatever is said again, or comes late, of the first one: by itself, by an operator, by a daemon that starts.
    stop(&acme).unwrap();
    assert_eq!(facts(&acme.stop("web", Some(0)).unwrap_err()).reason, "WRONG_STATE");
    let release =
        v1::ReleaseHostDeviceRequest { address: address.clone(), etag: old.etag.clone(), ..Default::default() };
    let refused = wait(host.operator().host.release_host_device(release)).unwrap_err();
    assert_eq!(facts(&refused).reason, "DEVICE_IN_USE");
    assert_eq!(host.operator().repair_host("").unwrap(), []);
    acme.destroy("web", true).unwrap();
    assert_eq!((leases(&host), card.shown()), now);
    host.kill_daemon();
    host.start_daemon();
    assert_eq!((leases(&host), card.shown()), now);
    assert_eq!((driver(&card.vf(0)).as_deref(), resets.count()), (Some("vfio-pci"), 3));

    host.tenant("globex").destroy("web", true).unwrap();
    assert_eq!((states(&host), resets.count()), (vec![Lease::Free], 4));
    assert_eq!(card.shown(), before);
    card.assert_unbound(1);
}

#[test]
fn functions_made_while_the_daemon_runs_are_lent_and_what_the_card_does_is_noticed() {
    const NAME: &str = "functions_made_while_the_daemon_runs_are_lent_and_what_the_card_does_is_noticed";
    let Some(card) = Card::with_vfs(0) else { return assets::skip(NAME, "an SR-IOV network card") };
    let host = host();
    let (acme, operator) = (host.tenant("acme"), host.operator());
    acme.register("web", idle("")).unwrap();
    let link = || run("ip", &["-j", "link", "show", "dev", &card.interface]);
    let (count, before) = (card.directory.join("sriov_numvfs"), link());
    let none = acme.start("web").unwrap_err();
    assert!(none.message().contains("this node has no SR-IOV virtual functions"), "{none:?}");
    assert_eq!((read(&count).as_str(), link()), ("0", before));

    // Made now, and the card is down: by its default the plugin does not take it so.
    write(&count, "2");
    run("ip", &["link", "set", &card.interface, "down"]);
    let down = acme.start("web").unwrap_err();
    assert!(down.message().contains("link.down"), "{down:?}");
    assert_eq!(states(&host), [Lease::Unspecified; 2]);
    let settings = [("vlans", "100"), ("require-link", "false")];
    operator.load("operator/plugins/sriov-net", &assets::plugin("sriov-net"), &settings).unwrap();
    acme.start("web").unwrap();
    assert_eq!(states(&host), [Lease::Attached, Lease::Unspecified]);
    let vf = card.vf(0);
    // No interface of it that could be in a network namespace, and go with it.
    assert!(driver(&vf).as_deref() == Some("vfio-pci") && !vf.join("net").exists());
    fs::write(&count, "3").expect_err("the kernel changes the number by way of none only");
    assert_eq!(states(&host), [Lease::Attached, Lease::Unspecified]);
    acme.stop("web", Some(0)).unwrap();
    card.assert_unbound(2);
}

/// Makes the card's functions anew, so that the first one comes into another IOMMU group: a function of the NVMe
/// controller has its old one meanwhile.
fn renumber(card: &Card, drives: &Drives) {
    let group = || fs::read_link(card.vf(0).join("iommu_group")).unwrap();
    let before = group();
    write(card.directory.join("sriov_numvfs"), "0");
    let drive = Path::new(DEVICES).join(&drives.lab);
    write(drive.join("sriov_drivers_autoprobe"), "0");
    write(drive.join("sriov_numvfs"), "1");
    write(card.directory.join("sriov_numvfs"), "1");
    assert_ne!(group(), before);
    card.wait_for_carrier();
}

#[test]
fn a_lease_stays_with_its_function_when_the_iommu_group_has_another_number() {
    const NAME: &str = "a_lease_stays_with_its_function_when_the_iommu_group_has_another_number";
    let Some(card) = Card::with_vfs(2) else { return assets::skip(NAME, "an SR-IOV network card") };
    let Some(drives) = Drives::find() else { return assets::skip(NAME, "an SR-IOV NVMe controller") };
    let host = host();
    let (acme, globex, operator) = (host.tenant("acme"), host.tenant("globex"), host.operator());
    acme.register("web", idle("")).unwrap();
    globex.register("web", idle("")).unwrap();
    acme.start("web").unwrap();
    // Fewer of them are of use than the card has.
    let before = card.shown();
    write(card.vf(1).join("reset_method"), "\n");
    let refused = globex.start("web").unwrap_err();
    assert!(refused.message().contains("of 2, 1 are taken and 1 cannot be lent (it cannot be reset)"), "{refused:?}");
    assert_eq!((states(&host), card.shown()), (vec![Lease::Attached, Lease::Unspecified], before));

    // It goes to quarantine, and stays there under another group's number: a lease is of a card and a number on it.
    let address = acme.get("web").unwrap().nics[0].vf_address.clone();
    write(card.vf(0).join("reset_method"), "\n");
    acme.stop("web", Some(0)).unwrap();
    assert_eq!(states(&host)[0], Lease::Quarantined);
    let lease = leases(&host).remove(0);
    renumber(&card, &drives);
    assert_eq!(leases(&host), std::slice::from_ref(&lease));
    let refused = globex.start("web").unwrap_err();
    assert!(refused.message().contains("of 1, 1 are taken"), "{refused:?}");
    assert_eq!(operator.release_device(&address).unwrap().state(), Lease::Free);
    assert_eq!(leases(&host)[0].last_tenant, "acme");
    globex.start("web").unwrap();
    globex.stop("web", Some(0)).unwrap();
    card.assert_unbound(1);
}

/// Both functions are a host driver's: one has an interface that is up, the other one's is in a network namespace.
struct Used {
    functions: [PathBuf; 2],
    interfaces: [String; 2],
}

impl Used {
    const NAMESPACE: &str = "ostler-test";

    fn make(card: &Card) -> Self {
        run("modprobe", &["igbvf"]);
        let functions = [0, 1].map(|index| card.vf(index));
        functions.iter().for_each(|function| bind(function, "igbvf"));
        let interfaces = functions.each_ref().map(|function| interface(function));
        run("ip", &["link", "set", &interfaces[0], "up"]);
        run("ip", &["netns", "add", Self::NAMESPACE]);
        run("ip", &["link", "set", &interfaces[1], "netns", Self::NAMESPACE]);
        Self { functions, interfaces }
    }

    /// The host has done with them; they stay its driver's.
    fn leave(&self) {
        run("ip", &["link", "set", &self.interfaces[0], "down"]);
        run("ip", &["netns", "delete", Self::NAMESPACE]);
        let back = Path::new("/sys/class/net").join(&self.interfaces[1]);
        until("the interface that was in a namespace", SOON, || back.exists().then_some(()));
    }
}

/// The second card's functions are in one group with it: neither is one lent, nor does VFIO give it.
fn is_not_lent_in_one_group_with_its_card(starts: &dyn Fn(&str), card: &Card) {
    let other = cards().pop().unwrap();
    assert_ne!(other, card.directory, "the lab has two cards");
    write(card.directory.join("sriov_numvfs"), "0");
    run("ip", &["link", "set", &interface(&other), "up"]);
    write(other.join("sriov_drivers_autoprobe"), "0");
    write(other.join("sriov_numvfs"), "1");
    starts("of 1, 0 are taken and 1 cannot be lent (its IOMMU group has another function that a host driver uses)");
    let function = fs::canonicalize(other.join("virtfn0")).unwrap();
    bind(&function, "vfio-pci");
    let address = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let refused = hostdev::open(address(&function).parse().unwrap()).unwrap_err().to_string();
    assert!(refused.contains(&format!("with {} (igb); bind these", address(&other))), "{refused}");
    unbind(&function);
    write(other.join("sriov_numvfs"), "0");
}

#[test]
fn what_cannot_be_lent_is_refused_with_the_reason_and_changes_nothing() {
    const NAME: &str = "what_cannot_be_lent_is_refused_with_the_reason_and_changes_nothing";
    let Some(card) = Card::with_vfs(2) else { return assets::skip(NAME, "an SR-IOV network card") };
    let host = host();
    let acme = host.tenant("acme");
    // A card without carrier; the lab cannot unplug its own, so that it is asked for of a tap that nobody has open.
    run("ip", &["tuntap", "add", "dev", "nocarrier", "mode", "tap"]);
    let address = card.vf(0).file_name().unwrap().to_str().unwrap().parse().unwrap();
    let place = VfPlace { pf_interface: "nocarrier".into(), index: 0, address };
    let unplugged = std::thread::spawn(move || hostdev::prepare(&place, &VfConfig::default(), &Underway::unseen()));

    let drivers = || [0, 1].map(|index| driver(&fs::canonicalize(card.directory.join(format!("virtfn{index}"))).ok()?));
    let refused = |mac: &str, text: &str| {
        let before = (card.shown(), drivers());
        acme.register("web", idle(mac)).unwrap();
        let refused = acme.start("web").unwrap_err();
        assert!(refused.message().contains(text), "{text}: {refused:?}");
        assert_eq!(acme.get("web").unwrap().nics[0].vf_address, "");
        acme.destroy("web", false).unwrap();
        assert_eq!((card.shown(), drivers()), before, "{text}");
        assert!(states(&host).iter().all(|state| matches!(state, Lease::Free | Lease::Unspecified)), "{text}");
    };
    // Policy chose a function for it: that it was overruled is on its record.
    let is_taken = |mac: &str| {
        let text = format!("another network interface of this node has the address {mac}");
        refused(mac, &text);
        let request = v1::ListDecisionsRequest { hook: "select-vf".into(), ..Default::default() };
        let decision = acme.decisions(request).unwrap().remove(0);
        let enforcement = decision.enforcement.clone().unwrap();
        assert!(decision.allowed && enforcement.state() == Enforced::Overruled, "{decision:?}");
        assert!(enforcement.code == "core.unfit" && enforcement.detail.contains(&text), "{enforcement:?}");
    };
    is_taken(&read(Path::new("/sys/class/net").join(&card.interface).join("address")));
    let (left, set) =
        ("02:aa:00:00:00:09", |mac: &str| run("ip", &["link", "set", &card.interface, "vf", "1", "mac", mac]));
    set(left);
    is_taken(left);
    set("00:00:00:00:00:00");
    run("modprobe", &["-r", "vfio_pci"]);
    refused("", "driver vfio-pci is not there; load the module vfio-pci");
    run("modprobe", &["vfio_pci"]);
    let used = Used::make(&card);
    refused(
        "",
        "of 2, 0 are taken and 2 cannot be lent (a host driver has it, and shows no network interface here: a container may \
         use it; the host uses its network interface)",
    );
    used.leave();

    // What the host's driver has and nobody uses is lent, and is without one then.
    let shown = card.shown();
    acme.register("web", idle(left)).unwrap();
    acme.start("web").unwrap();
    acme.destroy("web", true).unwrap();
    assert_eq!((card.shown(), drivers()), (shown, [None, Some("igbvf".to_owned())]));
    used.functions[1..].iter().for_each(|function| unbind(function));

    is_not_lent_in_one_group_with_its_card(&|text| refused("", text), &card);
    let unplugged = unplugged.join().unwrap().unwrap_err().to_string();
    assert_eq!(unplugged, "network card nocarrier has no carrier after 10 s; connect it, or take it out of service");
    run("ip", &["link", "delete", "nocarrier"]);
}

#[test]
fn a_choice_of_functions_is_explained_candidate_by_candidate() {
    use v1::decision_explanation::cell::Mark;
    const NAME: &str = "a_choice_of_functions_is_explained_candidate_by_candidate";
    let Some(card) = Card::with_vfs(3) else { return assets::skip(NAME, "an SR-IOV network card") };
    let host = host();
    let (acme, globex) = (host.tenant("acme"), host.tenant("globex"));
    let own = |settings: &[(&str, &str)]| {
        acme.load("tenants/acme/plugins/own", &assets::plugin("sriov-net"), settings).unwrap();
    };
    // acme wants no function that another tenant had; the operator does not mind.
    globex.register("web", idle("")).unwrap();
    globex.start("web").unwrap();
    globex.destroy("web", true).unwrap();
    own(&[("last-tenant", "refuse"), ("spread", "pack")]);
    acme.register("web", idle("")).unwrap();
    let given = acme.start("web").unwrap().nics[0].vf_address.clone();
    let all = [0, 1, 2].map(|index| card.vf(index).file_name().unwrap().to_str().unwrap().to_owned());
    assert_eq!(given, all[1]);

    let decision = |outcome: bool| {
        let request = v1::ListDecisionsRequest {
            hook: "select-vf".into(),
            subject: "vms/web/nics/vf".into(),
            ..Default::default()
        };
        let found = acme.decisions(request).unwrap();
        found.into_iter().find(|decision| decision.allowed == outcome).unwrap().name
    };
    let explained = acme.explain(&decision(true)).unwrap();
    assert_eq!(explained.plugins, ["sriov-net", "own"]);
    let row = |row: &v1::decision_explanation::Row| {
        let cells: Vec<_> = row.cells.iter().map(|cell| (cell.mark(), cell.score, cell.code.clone())).collect();
        (row.candidate.clone(), cells, row.total_score, row.rank)
    };
    let score = |score: i64| (Mark::Score, score, String::new());
    let expected = [
        (all[1].clone(), vec![score(1000), score(-1000)], 0, 1),
        (all[2].clone(), vec![score(1000), score(-1000)], 0, 2),
        (all[0].clone(), vec![score(1000), (Mark::Reject, 0, "tenant.last-other".to_owned())], 1000, 0),
    ];
    println!("{:#?}", explained.rows);
    assert_eq!(explained.rows.iter().map(row).collect::<Vec<_>>(), expected);
    let enforced = until("what was done is on record", SOON, || {
        let enforcement = acme.decision(&decision(true)).unwrap().enforcement.unwrap();
        (enforcement.state() == v1::decision_record::enforcement::State::Enforced).then_some(enforcement)
    });
    assert_eq!(enforced.detail, given);

    // None is good enough: what each plugin has against each of them.
    own(&[("min-link-mbps", "400000")]);
    acme.register("late", idle("")).unwrap();
    acme.stop("web", Some(0)).unwrap();
    let denied = acme.start("web").unwrap_err();
    assert!(denied.message().contains("link.slow"), "{denied:?}");
    let output = host.command("tenant-acme").args(["decision", "explain", &decision(false)]).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    println!("{table}");
    for address in &all {
        let line = table.lines().find(|line| line.contains(address.as_str())).unwrap();
        assert!(line.contains("1000") && line.contains("link.slow"), "{line}");
    }
}
