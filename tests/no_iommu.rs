//! A host whose IOMMU is off: nothing of it is lent, and nothing of it is changed. Needs a lab of its own kind (`kernel` of
//! `[package.metadata.lab]`); no guest comes up.

use std::fs;

use crate::support::assets;
use crate::support::card::Card;
use crate::support::drives::Drives;
use crate::support::guest::linux;
use crate::support::{Host, facts};
use ostler::api::v1;
use ostler::api::v1::attach_device_request::Device;
use ostler::api::v1::nvme_spec::Kind;
use ostler::api::v1::virtual_machine::State;
use ostler::daemon::hostdev;

const SWITCH_IT_ON: &str = "it has no IOMMU group: switch the IOMMU on";

fn virtual_function() -> v1::NicSpec {
    v1::NicSpec { id: "vf".into(), sriov: Some(v1::SriovNic::default()), ..Default::default() }
}

fn nvme(kind: Kind) -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec { nvme: vec![v1::NvmeSpec { id: "data".into(), kind: Some(kind) }], ..linux() }
}

#[test]
fn without_an_iommu_nothing_is_lent_and_each_error_says_what_to_switch_on() {
    const NAME: &str = "without_an_iommu_nothing_is_lent_and_each_error_says_what_to_switch_on";
    if fs::read_dir("/sys/kernel/iommu_groups").is_ok_and(|mut groups| groups.next().is_some()) {
        return assets::skip(NAME, "a host whose IOMMU is off");
    }
    let Some(card) = Card::with_vfs(1) else { return assets::skip(NAME, "an SR-IOV network card") };
    let Some(drives) = Drives::find() else { return assets::skip(NAME, "an SR-IOV NVMe controller") };
    let host = Host::with_guests();
    let (acme, operator) = (host.tenant("acme"), host.operator());
    operator.load("operator/plugins/sriov-net", &assets::plugin("sriov-net"), &[]).unwrap();
    operator.load("operator/plugins/nvme", &assets::plugin("nvme"), &[("whole", "ALONE")]).unwrap();
    operator.provision_nvme(&drives.lab, 1).unwrap();

    let before = (card.shown(), drives.shown());
    let cases = [
        ("nic", v1::VirtualMachineSpec { nics: vec![virtual_function()], ..linux() }),
        ("namespace", nvme(Kind::Namespace(v1::NvmeNamespace { min_bytes: 1 << 20 }))),
        ("whole", nvme(Kind::Controller(v1::NvmeController {}))),
    ];
    for (vm, spec) in cases {
        acme.register(vm, spec).unwrap();
        let refused = acme.start(vm).unwrap_err();
        assert!(refused.message().contains(SWITCH_IT_ON), "{vm}: {refused:?}");
        acme.destroy(vm, false).unwrap();
    }
    // The same of one that runs already.
    acme.register("plain", linux()).unwrap();
    let pid = acme.start("plain").unwrap().vmm_pid;
    let refused = facts(&acme.attach("plain", Device::Nic(virtual_function())).unwrap_err());
    assert!(refused.reason == "DEVICE_NOT_LENT" && refused.message.contains(SWITCH_IT_ON), "{refused:?}");
    let plain = acme.get("plain").unwrap();
    assert!((plain.state(), plain.vmm_pid) == (State::Running, pid) && plain.devices.is_empty(), "{plain:?}");
    let address = card.vf(0).file_name().unwrap().to_str().unwrap().parse().unwrap();
    let refused = hostdev::open(address).unwrap_err().to_string();
    assert!(refused.contains("is in no IOMMU group; switch the IOMMU on in the firmware"), "{refused}");

    let shown = operator.devices().unwrap().remove(0);
    assert_eq!((shown.iommu_group, shown.virtual_functions[0].iommu_group), (None, None));
    assert!(shown.virtual_functions[0].lease.is_none(), "{shown:?}");
    assert_eq!((card.shown(), drives.shown()), before);
    card.assert_unbound(1);
    acme.destroy("plain", true).unwrap();
    operator.provision_nvme(&drives.lab, 0).unwrap();
}
