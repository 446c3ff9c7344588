//! NVMe as the API shows it.

use super::encode::{bridge, device_lease, members};
use crate::api::v1;
use crate::daemon::service::{NvmeController, NvmeDevice, NvmeFacts, NvmePart, NvmeView};

/// A VM's device.
pub(super) fn device(nvme: &NvmeDevice) -> v1::NvmeStatus {
    v1::NvmeStatus {
        id: nvme.id.to_string(),
        function: nvme.function.map(|function| function.to_string()).unwrap_or_default(),
        controller: nvme.controller.to_string(),
        serial: nvme.serial.clone(),
        namespace_id: nvme.nsid.unwrap_or(0),
        size_bytes: nvme.size_bytes,
    }
}

/// A controller of the host.
pub(super) fn controller(view: &NvmeView) -> v1::NvmeHostController {
    let NvmeController { function, device, pci_id, numa_node, .. } = &view.controller;
    let NvmeController { root_complex, root_port, bridges, total_vfs, num_vfs, facts, .. } = &view.controller;
    let shown = v1::NvmeHostController {
        address: function.address.to_string(),
        device: device.clone().unwrap_or_default(),
        driver: function.driver.clone().unwrap_or_default(),
        pci_id: pci_id.clone(),
        numa_node: *numa_node,
        root_complex: root_complex.clone(),
        root_port: root_port.map(|port| port.to_string()).unwrap_or_default(),
        bridges: bridges.iter().map(bridge).collect(),
        iommu_group: function.iommu_group,
        group_members: members(&function.group_members),
        reset_methods: function.reset_methods.clone(),
        msix_vectors: function.msix_vectors.map(Into::into),
        total_vfs: *total_vfs,
        num_vfs: *num_vfs,
        lease: view.lease(NvmePart::Whole).map(device_lease),
        ..Default::default()
    };
    match facts {
        Ok(facts) => with_facts(shown, view, facts),
        Err(problem) => v1::NvmeHostController { problem: problem.clone(), ..shown },
    }
}

fn with_facts(shown: v1::NvmeHostController, view: &NvmeView, facts: &NvmeFacts) -> v1::NvmeHostController {
    let resources = facts.resources.unwrap_or_default();
    let secondaries = facts.secondaries.iter().map(|secondary| {
        let function = secondary.function.as_ref();
        v1::NvmeSecondary {
            controller_id: secondary.id.into(),
            online: secondary.is_online,
            queues: secondary.queues.into(),
            interrupts: secondary.interrupts.into(),
            function: function.map(|function| function.address.to_string()).unwrap_or_default(),
            driver: function.and_then(|function| function.driver.clone()).unwrap_or_default(),
            iommu_group: function.and_then(|function| function.iommu_group),
            reset_methods: function.map(|function| function.reset_methods.clone()).unwrap_or_default(),
            lease: view.lease(NvmePart::Secondary(secondary.id)).map(device_lease),
        }
    });
    let namespaces = facts.namespaces.iter().map(|namespace| v1::NvmeHostNamespace {
        namespace_id: namespace.nsid,
        size_bytes: namespace.size_bytes,
        block_bytes: namespace.block_bytes,
        metadata_bytes: namespace.metadata_bytes.into(),
        controllers: namespace.controllers.iter().map(|id| (*id).into()).collect(),
        block_device: namespace.block_device.clone().unwrap_or_default(),
        uses: namespace.uses.clone(),
        formats: namespace
            .formats
            .iter()
            .map(|(block_bytes, metadata_bytes)| v1::NvmeFormat {
                block_bytes: *block_bytes,
                metadata_bytes: (*metadata_bytes).into(),
            })
            .collect(),
        unique_id: namespace.unique_id.clone().unwrap_or_default(),
        lease: view.lease(NvmePart::Namespace(namespace.nsid)).map(device_lease),
    });
    v1::NvmeHostController {
        serial: facts.identity.serial.clone(),
        model: facts.identity.model.clone(),
        firmware: facts.identity.firmware.clone(),
        controller_id: facts.identity.id.into(),
        wear_percent: facts.wear_percent.map(Into::into),
        supports: supports(facts),
        flexible_queues: resources.queues.total,
        max_queues_each: resources.queues.max_each.into(),
        flexible_interrupts: resources.interrupts.total,
        max_interrupts_each: resources.interrupts.max_each.into(),
        secondaries: secondaries.collect(),
        namespaces: namespaces.collect(),
        ..shown
    }
}

fn supports(facts: &NvmeFacts) -> Vec<String> {
    let supports = &facts.identity.supports;
    [
        ("namespace-management", supports.namespace_management),
        ("virtualization-management", supports.virtualization_management),
        ("lockdown", supports.lockdown),
        ("format", supports.format),
        ("sanitize", supports.sanitize),
        ("deallocate", supports.deallocate),
        ("write-zeroes", supports.write_zeroes),
    ]
    .into_iter()
    .filter(|(_, is_supported)| *is_supported)
    .map(|(name, _)| name.to_owned())
    .collect()
}
