//! NVMe as JSON and as a tree. Key types: [`NvmeControllerView`], [`NvmeStatusView`].

use serde::Serialize;

use super::host::{BridgeView, LeaseView};
use crate::api::v1;
use crate::cli::print::clean;

/// A device of a spec.
#[derive(Debug, Serialize)]
pub(crate) struct NvmeSpecView {
    pub(crate) id: String,
    namespace: Option<NamespaceWishView>,
    /// An empty object: a whole controller.
    controller: Option<WholeView>,
}

#[derive(Debug, Serialize)]
struct NamespaceWishView {
    min_bytes: u64,
}

#[derive(Debug, Serialize)]
struct WholeView {}

/// A device that a VM has.
#[derive(Debug, Serialize)]
pub(crate) struct NvmeStatusView {
    pub(crate) id: String,
    function: String,
    controller: String,
    serial: String,
    namespace_id: u32,
    size_bytes: u64,
}

/// A controller of the host.
#[derive(Debug, Serialize)]
pub(crate) struct NvmeControllerView {
    address: String,
    device: String,
    driver: String,
    pci_id: String,
    serial: String,
    model: String,
    firmware: String,
    controller_id: u32,
    numa_node: Option<u32>,
    root_complex: String,
    root_port: String,
    wear_percent: Option<u32>,
    supports: Vec<String>,
    flexible_queues: u32,
    max_queues_each: u32,
    flexible_interrupts: u32,
    max_interrupts_each: u32,
    total_vfs: u32,
    num_vfs: u32,
    secondaries: Vec<SecondaryView>,
    namespaces: Vec<NamespaceView>,
    problem: String,
    lease: Option<LeaseView>,
    bridges: Vec<BridgeView>,
    iommu_group: Option<u32>,
    group_members: Vec<String>,
    reset_methods: Vec<String>,
    msix_vectors: Option<u32>,
}

#[derive(Debug, Serialize)]
struct SecondaryView {
    controller_id: u32,
    online: bool,
    queues: u32,
    interrupts: u32,
    function: String,
    driver: String,
    iommu_group: Option<u32>,
    reset_methods: Vec<String>,
    lease: Option<LeaseView>,
}

#[derive(Debug, Serialize)]
struct NamespaceView {
    namespace_id: u32,
    size_bytes: u64,
    block_bytes: u32,
    metadata_bytes: u32,
    controllers: Vec<u32>,
    block_device: String,
    uses: Vec<String>,
    /// `nguid:…`, `eui64:…`; empty if the controller does not say it.
    unique_id: String,
    lease: Option<LeaseView>,
    formats: Vec<FormatView>,
}

#[derive(Debug, Serialize)]
struct FormatView {
    block_bytes: u32,
    metadata_bytes: u32,
}

impl From<v1::NvmeSpec> for NvmeSpecView {
    fn from(nvme: v1::NvmeSpec) -> Self {
        use v1::nvme_spec::Kind;
        let (namespace, controller) = match nvme.kind {
            Some(Kind::Namespace(namespace)) => (Some(NamespaceWishView { min_bytes: namespace.min_bytes }), None),
            Some(Kind::Controller(v1::NvmeController {})) => (None, Some(WholeView {})),
            None => (None, None),
        };
        Self { id: nvme.id, namespace, controller }
    }
}

impl From<v1::NvmeStatus> for NvmeStatusView {
    fn from(nvme: v1::NvmeStatus) -> Self {
        let v1::NvmeStatus { id, function, controller, serial, namespace_id, size_bytes } = nvme;
        Self { id, function, controller, serial, namespace_id, size_bytes }
    }
}

impl From<v1::NvmeHostController> for NvmeControllerView {
    fn from(controller: v1::NvmeHostController) -> Self {
        Self {
            address: controller.address,
            device: controller.device,
            driver: controller.driver,
            pci_id: controller.pci_id,
            serial: controller.serial,
            model: controller.model,
            firmware: controller.firmware,
            controller_id: controller.controller_id,
            numa_node: controller.numa_node,
            root_complex: controller.root_complex,
            root_port: controller.root_port,
            wear_percent: controller.wear_percent,
            supports: controller.supports,
            flexible_queues: controller.flexible_queues,
            max_queues_each: controller.max_queues_each,
            flexible_interrupts: controller.flexible_interrupts,
            max_interrupts_each: controller.max_interrupts_each,
            total_vfs: controller.total_vfs,
            num_vfs: controller.num_vfs,
            secondaries: controller.secondaries.into_iter().map(SecondaryView::from).collect(),
            namespaces: controller.namespaces.into_iter().map(NamespaceView::from).collect(),
            problem: controller.problem,
            lease: controller.lease.map(LeaseView::from),
            bridges: controller.bridges.into_iter().map(BridgeView::from).collect(),
            iommu_group: controller.iommu_group,
            group_members: controller.group_members,
            reset_methods: controller.reset_methods,
            msix_vectors: controller.msix_vectors,
        }
    }
}

impl From<v1::NvmeSecondary> for SecondaryView {
    fn from(secondary: v1::NvmeSecondary) -> Self {
        Self {
            controller_id: secondary.controller_id,
            online: secondary.online,
            queues: secondary.queues,
            interrupts: secondary.interrupts,
            function: secondary.function,
            driver: secondary.driver,
            iommu_group: secondary.iommu_group,
            reset_methods: secondary.reset_methods,
            lease: secondary.lease.map(LeaseView::from),
        }
    }
}

impl From<v1::NvmeHostNamespace> for NamespaceView {
    fn from(namespace: v1::NvmeHostNamespace) -> Self {
        let format = |format: v1::NvmeFormat| FormatView {
            block_bytes: format.block_bytes,
            metadata_bytes: format.metadata_bytes,
        };
        Self {
            formats: namespace.formats.into_iter().map(format).collect(),
            namespace_id: namespace.namespace_id,
            size_bytes: namespace.size_bytes,
            block_bytes: namespace.block_bytes,
            metadata_bytes: namespace.metadata_bytes,
            controllers: namespace.controllers,
            block_device: namespace.block_device,
            uses: namespace.uses,
            unique_id: namespace.unique_id,
            lease: namespace.lease.map(LeaseView::from),
        }
    }
}

impl NvmeSpecView {
    /// What it is, or is to be.
    pub(crate) fn text(&self, status: Option<&NvmeStatusView>) -> String {
        let id = &self.id;
        if let Some(status) = status {
            let size = size(status.size_bytes);
            let what = match status.namespace_id {
                0 => "controller".to_owned(),
                nsid => format!("namespace {nsid} of"),
            };
            let by = if status.function.is_empty() { String::new() } else { format!(", by {}", status.function) };
            return format!("{id}: {size}, {what} {} ({}){by}", status.controller, status.serial);
        }
        match &self.namespace {
            Some(wish) => format!("{id}: NVMe namespace of at least {}", size(wish.min_bytes)),
            None => format!("{id}: NVMe controller"),
        }
    }
}

impl NvmeControllerView {
    fn text(&self) -> String {
        let or = |text: &str, none: &str| if text.is_empty() { none.to_owned() } else { text.to_owned() };
        let (device, driver) = (or(&self.device, "no device"), or(&self.driver, "no driver"));
        let mut words = vec![format!("{} {device} ({driver}, {})", self.address, self.pci_id)];
        if self.problem.is_empty() {
            words.push(format!("{} serial {} firmware {}", self.model, self.serial, self.firmware));
        } else {
            words.push(self.problem.clone());
        }
        words.extend(self.wear_percent.map(|wear| format!("{wear} % worn")));
        words.extend(self.numa_node.map(|node| format!("NUMA node {node}")));
        words.push(BridgeView::path(&self.root_complex, &self.bridges));
        words.push(format!("{} of {} VFs", self.num_vfs, self.total_vfs));
        words.extend(self.lease.as_ref().map(LeaseView::text));
        words.join(", ")
    }

    fn branches(&self) -> Vec<String> {
        let secondaries = self.secondaries.iter().filter(|one| one.online || !one.function.is_empty());
        let secondaries = secondaries.map(SecondaryView::text);
        secondaries.chain(self.namespaces.iter().map(|one| one.text(self.controller_id))).collect()
    }
}

impl SecondaryView {
    fn text(&self) -> String {
        let function = if self.function.is_empty() { "no function" } else { self.function.as_str() };
        let driver = if self.driver.is_empty() { "no driver" } else { self.driver.as_str() };
        let mut words = vec![format!("controller {} {function} ({driver})", self.controller_id)];
        words.push(if self.online { "online" } else { "offline" }.to_owned());
        words.push(format!("{} queues, {} interrupts", self.queues, self.interrupts));
        words.push(self.iommu_group.map_or_else(|| "no IOMMU group".to_owned(), |group| format!("group {group}")));
        words.push(if self.reset_methods.is_empty() { "no reset".to_owned() } else { self.reset_methods.join("/") });
        words.extend(self.lease.as_ref().map(LeaseView::text));
        words.join(", ")
    }
}

impl NamespaceView {
    fn text(&self, own: u32) -> String {
        let mut words = vec![format!("namespace {} of {}", self.namespace_id, size(self.size_bytes))];
        words.push(format!("blocks of {} bytes", self.block_bytes));
        let others: Vec<_> = self.controllers.iter().filter(|id| **id != own).map(ToString::to_string).collect();
        if self.controllers.contains(&own) {
            words.push(format!("the host's {}", self.block_device));
        }
        if !others.is_empty() {
            words.push(format!("attached to controller {}", others.join(", ")));
        }
        if self.controllers.is_empty() {
            words.push("attached to nothing".to_owned());
        }
        words.extend(self.uses.iter().cloned());
        words.extend(self.lease.as_ref().map(LeaseView::text));
        words.join(", ")
    }
}

/// Bytes in the largest unit that keeps them whole.
fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = units.iter().find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1 << shift));
    whole.map_or_else(|| format!("{bytes} bytes"), |(shift, unit)| format!("{} {unit}", bytes >> shift))
}

/// Controllers with their secondaries and namespaces as branches; nothing without any.
pub(crate) fn nvme_tree(controllers: &[NvmeControllerView]) -> String {
    let mut lines = Vec::new();
    for controller in controllers {
        lines.push(controller.text());
        let branches = controller.branches();
        let last = branches.len().saturating_sub(1);
        let drawn = branches.iter().enumerate();
        lines.extend(drawn.map(|(index, text)| format!("{} {text}", if index == last { "└─" } else { "├─" })));
    }
    lines.iter().map(|line| clean(line).replace('\n', " ") + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    fn controller() -> v1::NvmeHostController {
        let lease = v1::DeviceLease {
            state: v1::device_lease::State::Attached.into(),
            vm_uid: "01J".into(),
            tenant: "acme".into(),
            ..Default::default()
        };
        let namespace = |namespace_id, controllers, lease| v1::NvmeHostNamespace {
            namespace_id,
            size_bytes: 64 << 20,
            block_bytes: 512,
            controllers,
            block_device: if namespace_id == 1 { "nvme0n1".into() } else { String::new() },
            uses: if namespace_id == 1 { vec!["nvme0n1 is mounted at /srv\u{1b}[2J".into()] } else { vec![] },
            lease,
            ..Default::default()
        };
        v1::NvmeHostController {
            address: "0000:02:00.0".into(),
            device: "nvme0".into(),
            driver: "nvme".into(),
            pci_id: "1b36:0010".into(),
            serial: "LAB".into(),
            model: "QEMU NVMe Ctrl".into(),
            firmware: "10.0".into(),
            wear_percent: Some(3),
            root_complex: "pci0000:00".into(),
            total_vfs: 4,
            num_vfs: 1,
            secondaries: vec![
                v1::NvmeSecondary {
                    controller_id: 1,
                    online: true,
                    queues: 2,
                    interrupts: 1,
                    function: "0000:02:00.1".into(),
                    iommu_group: Some(21),
                    reset_methods: vec!["flr".into()],
                    ..Default::default()
                },
                v1::NvmeSecondary { controller_id: 2, ..Default::default() },
            ],
            namespaces: vec![
                namespace(1, vec![0], None),
                namespace(2, vec![1], Some(lease)),
                namespace(3, vec![], None),
            ],
            ..Default::default()
        }
    }

    #[test]
    fn draws_controllers_with_their_parts_and_owners() {
        let tree = nvme_tree(&[NvmeControllerView::from(controller())]);
        let lines: Vec<_> = tree.lines().collect();
        assert_eq!(
            lines[..2],
            [
                "0000:02:00.0 nvme0 (nvme, 1b36:0010), QEMU NVMe Ctrl serial LAB firmware 10.0, 3 % worn, pci0000:00, 1 of 4 VFs",
                "├─ controller 1 0000:02:00.1 (no driver), online, 2 queues, 1 interrupts, group 21, flr",
            ]
        );
        assert!(lines[2].starts_with("├─ namespace 1 of 64 MiB, blocks of 512 bytes, the host's nvme0n1"), "{tree}");
        assert!(lines[3].ends_with("attached to controller 1, ATTACHED for acme's VM 01J"), "{tree}");
        assert!(lines[4].ends_with("└─ namespace 3 of 64 MiB, blocks of 512 bytes, attached to nothing"), "{tree}");
        assert!(!tree.contains('\u{1b}'));
        assert_eq!((size(0), size(1025), size(3 << 30)), ("0 bytes".into(), "1025 bytes".into(), "3 GiB".into()));
    }

    #[test]
    fn json_keys_mirror_the_proto() {
        let json = serde_json::to_value(NvmeControllerView::from(controller())).unwrap();
        let status = serde_json::to_value(NvmeStatusView::from(v1::NvmeStatus::default())).unwrap();
        let spec = serde_json::to_value(NvmeSpecView::from(v1::NvmeSpec::default())).unwrap();
        let described = prost_types::FileDescriptorSet::decode(v1::DESCRIPTORS).unwrap();
        let messages: Vec<_> = described.file.iter().flat_map(|file| &file.message_type).collect();
        let shown = [
            (&json, "NvmeHostController"),
            (&json["secondaries"][0], "NvmeSecondary"),
            (&json["namespaces"][0], "NvmeHostNamespace"),
            (&status, "NvmeStatus"),
            (&spec, "NvmeSpec"),
        ];
        for (json, name) in shown {
            let message = messages.iter().find(|message| message.name() == name).unwrap();
            for field in &message.field {
                assert!(json.as_object().unwrap().contains_key(field.name()), "{name} lacks {}", field.name());
            }
        }
    }
}
