//! The node's devices as JSON and as a tree. Key types: [`PfView`], [`LeaseView`].

use serde::Serialize;

use crate::api::v1;
use crate::cli::print::clean;

/// A network card.
#[derive(Debug, Serialize)]
pub(crate) struct PfView {
    address: String,
    interface: String,
    driver: String,
    pci_id: String,
    numa_node: Option<u32>,
    root_complex: String,
    root_port: String,
    mac: String,
    up: bool,
    carrier: bool,
    speed_mbps: u32,
    total_vfs: u32,
    num_vfs: u32,
    virtual_functions: Vec<VfView>,
    bridges: Vec<BridgeView>,
    iommu_group: Option<u32>,
    group_members: Vec<String>,
    /// `legacy`, `switchdev`; empty if its driver knows one way only.
    eswitch_mode: String,
}

/// A bridge above a device.
#[derive(Debug, Serialize)]
pub(crate) struct BridgeView {
    address: String,
    acs: bool,
    acs_controls: Vec<String>,
}

/// A virtual function.
#[derive(Debug, Serialize)]
pub(crate) struct VfView {
    address: String,
    index: u32,
    driver: String,
    interface: String,
    iommu_group: Option<u32>,
    group_members: Vec<String>,
    reset_methods: Vec<String>,
    msix_vectors: Option<u32>,
    settings: Option<SettingsView>,
    lease: Option<LeaseView>,
}

#[derive(Debug, Serialize)]
pub(crate) struct SettingsView {
    mac: String,
    vlan: u32,
    spoof_check: bool,
    trust: bool,
    min_tx_mbps: u32,
    max_tx_mbps: u32,
    link_state: String,
}

/// Who has a virtual function.
#[derive(Debug, Serialize)]
pub(crate) struct LeaseView {
    state: String,
    generation: u64,
    vm_uid: String,
    tenant: String,
    last_tenant: String,
    reason: String,
    etag: String,
}

impl From<v1::PhysicalFunction> for PfView {
    fn from(pf: v1::PhysicalFunction) -> Self {
        Self {
            address: pf.address,
            interface: pf.interface,
            driver: pf.driver,
            pci_id: pf.pci_id,
            numa_node: pf.numa_node,
            root_complex: pf.root_complex,
            root_port: pf.root_port,
            mac: pf.mac,
            up: pf.up,
            carrier: pf.carrier,
            speed_mbps: pf.speed_mbps,
            total_vfs: pf.total_vfs,
            num_vfs: pf.num_vfs,
            virtual_functions: pf.virtual_functions.into_iter().map(VfView::from).collect(),
            bridges: pf.bridges.into_iter().map(BridgeView::from).collect(),
            iommu_group: pf.iommu_group,
            group_members: pf.group_members,
            eswitch_mode: pf.eswitch_mode,
        }
    }
}

impl From<v1::PciBridge> for BridgeView {
    fn from(bridge: v1::PciBridge) -> Self {
        let v1::PciBridge { address, acs, acs_controls } = bridge;
        Self { address, acs, acs_controls }
    }
}

impl BridgeView {
    /// Where a device is: its root complex, and the bridges down to it, with those that do not keep functions apart.
    pub(crate) fn path(root_complex: &str, bridges: &[Self]) -> String {
        let text = |bridge: &Self| format!(" below {}{}", bridge.address, if bridge.acs { "" } else { " (no ACS)" });
        root_complex.to_owned() + &bridges.iter().map(text).collect::<String>()
    }
}

impl From<v1::VirtualFunction> for VfView {
    fn from(vf: v1::VirtualFunction) -> Self {
        Self {
            address: vf.address,
            index: vf.index,
            driver: vf.driver,
            interface: vf.interface,
            iommu_group: vf.iommu_group,
            group_members: vf.group_members,
            reset_methods: vf.reset_methods,
            msix_vectors: vf.msix_vectors,
            settings: vf.settings.map(SettingsView::from),
            lease: vf.lease.map(LeaseView::from),
        }
    }
}

impl From<v1::VirtualFunctionSettings> for SettingsView {
    fn from(settings: v1::VirtualFunctionSettings) -> Self {
        let v1::VirtualFunctionSettings { mac, vlan, spoof_check, trust, min_tx_mbps, max_tx_mbps, link_state } =
            settings;
        Self { mac, vlan, spoof_check, trust, min_tx_mbps, max_tx_mbps, link_state }
    }
}

impl From<v1::DeviceLease> for LeaseView {
    fn from(lease: v1::DeviceLease) -> Self {
        Self {
            state: lease.state().as_str_name().to_owned(),
            generation: lease.generation,
            vm_uid: lease.vm_uid,
            tenant: lease.tenant,
            last_tenant: lease.last_tenant,
            reason: lease.reason,
            etag: lease.etag,
        }
    }
}

impl PfView {
    fn text(&self) -> String {
        let link = match (self.up, self.carrier) {
            (false, _) => "down".to_owned(),
            (true, false) => "no carrier".to_owned(),
            (true, true) if self.speed_mbps == 0 => "up".to_owned(),
            (true, true) => format!("up, {} Mbit/s", self.speed_mbps),
        };
        let or = |text: &str, none: &str| if text.is_empty() { none.to_owned() } else { text.to_owned() };
        let (interface, driver) = (or(&self.interface, "no interface"), or(&self.driver, "no driver"));
        let numa = self.numa_node.map(|node| format!(", NUMA node {node}")).unwrap_or_default();
        let path = BridgeView::path(&self.root_complex, &self.bridges);
        let eswitch =
            if self.eswitch_mode.is_empty() { String::new() } else { format!(", {} mode", self.eswitch_mode) };
        format!(
            "{} {interface} ({driver}, {}) {}, {link}{eswitch}{numa}, {path}, {} of {} VFs",
            self.address, self.pci_id, self.mac, self.num_vfs, self.total_vfs
        )
    }
}

impl VfView {
    fn text(&self) -> String {
        let driver = if self.driver.is_empty() { "no driver" } else { self.driver.as_str() };
        let mut words = vec![format!("VF {} {} ({driver})", self.index, self.address)];
        match self.iommu_group {
            Some(group) if self.group_members.len() > 1 => {
                words.push(format!("group {group} with {} others", self.group_members.len() - 1));
            }
            Some(group) => words.push(format!("group {group}")),
            None => words.push("no IOMMU group".to_owned()),
        }
        words.push(if self.reset_methods.is_empty() { "no reset".to_owned() } else { self.reset_methods.join("/") });
        words.extend(self.msix_vectors.map(|vectors| format!("{vectors} interrupts")));
        words.extend(self.settings.as_ref().map(SettingsView::text));
        words.extend(self.lease.as_ref().map(LeaseView::text));
        words.join(", ")
    }
}

impl SettingsView {
    fn text(&self) -> String {
        let mut words = vec![self.mac.clone()];
        if self.vlan != 0 {
            words.push(format!("VLAN {}", self.vlan));
        }
        if self.min_tx_mbps != 0 {
            words.push(format!("at least {} Mbit/s", self.min_tx_mbps));
        }
        if self.max_tx_mbps != 0 {
            words.push(format!("at most {} Mbit/s", self.max_tx_mbps));
        }
        if !self.spoof_check {
            words.push("no spoof check".to_owned());
        }
        if self.trust {
            words.push("trusted".to_owned());
        }
        if self.link_state != "auto" {
            words.push(format!("link {}", self.link_state));
        }
        words.join(" ")
    }
}

impl LeaseView {
    /// The state, with whom and why.
    pub(crate) fn text(&self) -> String {
        let mut text = self.state.clone();
        if !self.tenant.is_empty() {
            text += &format!(" for {}'s VM {}", self.tenant, self.vm_uid);
        } else if !self.last_tenant.is_empty() {
            text += &format!(" (last: {})", self.last_tenant);
        }
        if !self.reason.is_empty() {
            text += &format!(": {}", self.reason);
        }
        text
    }
}

/// Cards with their virtual functions as branches.
pub(crate) fn device_tree(pfs: &[PfView]) -> String {
    if pfs.is_empty() {
        return "no SR-IOV network cards\n".to_owned();
    }
    let mut lines = Vec::new();
    for pf in pfs {
        lines.push(pf.text());
        let last = pf.virtual_functions.len().saturating_sub(1);
        for (index, vf) in pf.virtual_functions.iter().enumerate() {
            lines.push(format!("{} {}", if index == last { "└─" } else { "├─" }, vf.text()));
        }
    }
    lines.iter().map(|line| clean(line).replace('\n', " ") + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    fn card() -> v1::PhysicalFunction {
        let vf = |index: u32, lease| v1::VirtualFunction {
            address: format!("0000:01:10.{index}"),
            index,
            iommu_group: Some(20 + index),
            reset_methods: vec!["flr".into()],
            msix_vectors: Some(3),
            settings: Some(v1::VirtualFunctionSettings {
                mac: "02:00:00:00:00:01".into(),
                vlan: 100,
                spoof_check: true,
                link_state: "auto".into(),
                ..Default::default()
            }),
            lease,
            ..Default::default()
        };
        let lease = v1::DeviceLease {
            state: v1::device_lease::State::Quarantined.into(),
            generation: 5,
            vm_uid: "01J".into(),
            tenant: "acme".into(),
            reason: "device cannot be reset\u{1b}[2J".into(),
            ..Default::default()
        };
        let bridge =
            |address: &str, acs| v1::PciBridge { address: address.into(), acs, acs_controls: vec!["x".into(); 2] };
        v1::PhysicalFunction {
            address: "0000:01:00.0".into(),
            interface: "eth0".into(),
            driver: "igb".into(),
            pci_id: "8086:10c9".into(),
            mac: "52:54:00:00:00:01".into(),
            up: true,
            carrier: true,
            speed_mbps: 1000,
            root_complex: "pci0000:00".into(),
            total_vfs: 7,
            num_vfs: 2,
            virtual_functions: vec![vf(0, None), vf(1, Some(lease))],
            bridges: vec![bridge("0000:00:02.0", true), bridge("0000:00:05.0", false)],
            eswitch_mode: "legacy".into(),
            ..Default::default()
        }
    }

    #[test]
    fn draws_cards_with_their_functions_and_owners() {
        let tree = device_tree(&[PfView::from(card())]);
        let lines: Vec<_> = tree.lines().collect();
        assert_eq!(
            lines[..2],
            [
                "0000:01:00.0 eth0 (igb, 8086:10c9) 52:54:00:00:00:01, up, 1000 Mbit/s, legacy mode, pci0000:00 below \
                 0000:00:02.0 below 0000:00:05.0 (no ACS), 2 of 7 VFs",
                "├─ VF 0 0000:01:10.0 (no driver), group 20, flr, 3 interrupts, 02:00:00:00:00:01 VLAN 100",
            ]
        );
        assert!(lines[2].starts_with("└─ VF 1 ") && lines[2].contains("QUARANTINED for acme's VM 01J: "), "{tree}");
        assert!(!tree.contains('\u{1b}'));
        assert_eq!(device_tree(&[]), "no SR-IOV network cards\n");
    }

    #[test]
    fn json_keys_mirror_the_proto() {
        let json = serde_json::to_value(PfView::from(card())).unwrap();
        let described = prost_types::FileDescriptorSet::decode(v1::DESCRIPTORS).unwrap();
        let messages: Vec<_> = described.file.iter().flat_map(|file| &file.message_type).collect();
        let vf = &json["virtual_functions"][1];
        let shown = [
            (&json, "PhysicalFunction"),
            (&json["bridges"][0], "PciBridge"),
            (vf, "VirtualFunction"),
            (&vf["settings"], "VirtualFunctionSettings"),
            (&vf["lease"], "DeviceLease"),
        ];
        for (json, name) in shown {
            let message = messages.iter().find(|message| message.name() == name).unwrap();
            for field in &message.field {
                assert!(json.as_object().unwrap().contains_key(field.name()), "{name} lacks {}", field.name());
            }
        }
    }
}
