//! Reading a tree that was recorded from a host with a card of two virtual functions.

use std::os::unix::fs::symlink;

use super::*;
use crate::sys::rtnl::VfVlanConfig;

/// `/sys` as far as it is read: PF 01:00.0 behind root port 00:02.0, VFs 01:10.0 (driverless) and 01:10.2 (igbvf, up),
/// a disk controller without virtual functions, and one with some that is no network card.
fn recorded() -> tempfile::TempDir {
    let sys = tempfile::tempdir().unwrap();
    let root = sys.path();
    let write = |path: String, content: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    let link = |path: String, target: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    };
    let port = "devices/pci0000:00/0000:00:02.0";
    let places = [
        ("0000:00:02.0", port.to_owned(), "0x060400", Some("pcieport")),
        ("0000:01:00.0", format!("{port}/0000:01:00.0"), "0x020000", Some("igb")),
        ("0000:01:10.0", format!("{port}/0000:01:10.0"), "0x020000", None),
        ("0000:01:10.2", format!("{port}/0000:01:10.2"), "0x020000", Some("igbvf")),
        ("0000:00:03.0", "devices/pci0000:00/0000:00:03.0".to_owned(), "0x010802", Some("nvme")),
    ];
    for (address, place, class, driver) in &places {
        write(format!("{place}/class"), &format!("{class}\n"));
        write(format!("{place}/numa_node"), "-1\n");
        link(format!("bus/pci/devices/{address}"), &format!("../../../{place}"));
        if let Some(driver) = driver {
            link(format!("{place}/driver"), &format!("../../../../bus/pci/drivers/{driver}"));
        }
    }
    let pf = &places[1].1;
    for (file, content) in
        [("vendor", "0x8086\n"), ("device", "0x10c9\n"), ("sriov_totalvfs", "7\n"), ("sriov_numvfs", "2\n")]
    {
        write(format!("{pf}/{file}"), content);
    }
    write(format!("{}/sriov_totalvfs", places[4].1), "4\n");
    // Of the port Access Control Services, of the first function MSI-X.
    let config = |path: String, bytes: &[(usize, u8)]| {
        let mut space = vec![0; 4096];
        bytes.iter().for_each(|(at, byte)| space[*at] = *byte);
        fs::write(root.join(path), space).unwrap();
    };
    config(format!("{port}/config"), &[(0x100, 0x0d), (0x106, 1)]);
    config(format!("{}/config", places[2].1), &[(6, 0x10), (0x34, 0x70), (0x70, 0x11), (0x72, 2)]);
    write(format!("{pf}/net/eth0/flags"), "0x1003\n");
    write("class/net/eth0/speed".to_owned(), "1000\n");
    for (index, (address, place, ..), group) in [(0, &places[2], 7), (1, &places[3], 8)] {
        link(format!("{pf}/virtfn{index}"), &format!("../{address}"));
        write(format!("{place}/reset_method"), "flr bus\n");
        link(format!("{place}/iommu_group"), &format!("../../../../kernel/iommu_groups/{group}"));
        link(format!("kernel/iommu_groups/{group}/devices/{address}"), &format!("../../../../{place}"));
    }
    // The second one shares its group with the port and with the disk controller.
    for (address, place, ..) in [&places[0], &places[4]] {
        link(format!("kernel/iommu_groups/8/devices/{address}"), &format!("../../../../{place}"));
    }
    write(format!("{}/net/eth1/flags", places[3].1), "0x1003\n");
    sys
}

fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

#[test]
fn reads_cards_and_their_virtual_functions() {
    let sys = recorded();
    let devices = Devices::read_sysfs(sys.path()).unwrap();
    let [pf] = &devices.pfs[..] else { panic!("{devices:?}") };
    assert_eq!(
        (pf.address, pf.interface.as_deref(), pf.driver.as_deref()),
        (bdf("01:00.0"), Some("eth0"), Some("igb"))
    );
    assert_eq!((pf.pci_id.as_str(), pf.numa_node, pf.total_vfs), ("8086:10c9", None, 7));
    assert_eq!((pf.root_complex.as_str(), pf.root_port), ("pci0000:00", Some(bdf("00:02.0"))));
    let on_root_bus = Path::new("/nonexistent/pci0000:00/0000:00:03.0");
    let on_root_bus = Place::of(on_root_bus, bdf("00:03.0"));
    assert_eq!(on_root_bus, Place { root_complex: "pci0000:00".to_owned(), bridges: vec![] });
    let port = Bridge { address: bdf("00:02.0"), acs: Acs::Present(vec!["source-validation"]) };
    assert_eq!((&pf.bridges[..], pf.iommu_group), (&[port][..], None));
    assert_eq!([pf.vfs[0].msix_vectors, pf.vfs[1].msix_vectors], [Some(3), None]);
    let [free, used] = &pf.vfs[..] else { panic!("{pf:?}") };
    assert_eq!((free.address, free.index, free.driver.as_deref()), (bdf("01:10.0"), 0, None));
    assert_eq!((free.iommu_group, free.reset_methods.as_slice()), (Some(7), &["flr".to_owned(), "bus".to_owned()][..]));
    assert!(!free.is_used_by_host && free.obstacles().next().is_none());
    assert_eq!((used.interface.as_deref(), used.is_used_by_host), (Some("eth1"), true));
    assert_eq!(devices.vf(bdf("01:10.2")).unwrap().1, used);
    assert_eq!(devices.vf(bdf("01:00.0")), None, "a physical function is no virtual one");
}

#[test]
fn only_members_that_a_host_driver_uses_are_obstacles() {
    let sys = recorded();
    let devices = Devices::read_sysfs(sys.path()).unwrap();
    let (_, vf) = devices.vf(bdf("01:10.2")).unwrap();
    assert_eq!(vf.group_members.len(), 3);
    assert_eq!(vf.obstacles().map(|member| member.address).collect::<Vec<_>>(), [bdf("00:03.0")]);
    let mut lent = vf.clone();
    for driver in [None, Some(VFIO_DRIVER.to_owned())] {
        lent.group_members.iter_mut().for_each(|member| member.driver.clone_from(&driver));
        assert_eq!(lent.obstacles().count(), 0);
    }
}

#[test]
fn takes_settings_from_the_link_by_number() {
    let sys = recorded();
    let mut devices = Devices::read_sysfs(sys.path()).unwrap();
    let config =
        VfConfig { mac: [2, 0, 0, 0, 0, 1], vlan: VfVlanConfig { id: 9, ..Default::default() }, ..Default::default() };
    let link = Link {
        name: "eth0".into(),
        index: 2,
        permanent_mac: Some([0x52, 0x54, 0, 0, 0, 1]),
        mac: None,
        is_up: true,
        has_carrier: true,
        vfs: vec![VfConfig::default(), config],
    };
    devices.pfs[0].add_link(sys.path(), link);
    let facts = devices.pfs[0].link.unwrap();
    assert_eq!((facts.mac.to_string().as_str(), facts.speed_mbps), ("52:54:00:00:00:01", Some(1000)));
    assert_eq!(devices.pfs[0].vfs[1].config, Some(config));
    assert_eq!(devices.vfs().count(), 2);
}

/// Linux makes all functions of a card or none; a card's driver may have brought up fewer.
#[test]
fn of_fewer_functions_than_were_asked_for_each_keeps_its_number_and_settings() {
    let sys = recorded();
    let read = || Devices::read_sysfs(sys.path()).unwrap().pfs.remove(0);
    // The card's driver shows settings of one only.
    let mut pf = read();
    let link = Link {
        name: "eth0".into(),
        index: 2,
        permanent_mac: Some([0x52, 0x54, 0, 0, 0, 1]),
        mac: None,
        is_up: true,
        has_carrier: true,
        vfs: vec![VfConfig::default()],
    };
    pf.add_link(sys.path(), link);
    assert_eq!(pf.vfs.iter().map(|vf| vf.config.is_some()).collect::<Vec<_>>(), [true, false]);
    // The first one never came: the number of the other one stays its own.
    fs::remove_file(sys.path().join("devices/pci0000:00/0000:00:02.0/0000:01:00.0/virtfn0")).unwrap();
    assert_eq!(read().vfs.iter().map(|vf| vf.index).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_host_without_pci_has_no_cards() {
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(Devices::read_sysfs(empty.path()).unwrap(), Devices::default());
    assert!(Devices::read().is_ok());
}
