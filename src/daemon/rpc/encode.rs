//! Records to responses.

use crate::api::convert::{decision_to_proto, failure_to_proto, spec_to_proto, state_to_proto, timestamp_to_proto};
use crate::api::v1::virtual_machine::State;
use crate::api::{PluginName, VmRef, v1};
use crate::daemon::service::{PluginView, Subnet, VmRecord, WatchItem};

/// A VM as the API shows it.
pub(super) fn vm(vm: &VmRecord) -> v1::VirtualMachine {
    let process = vm.run.as_ref().and_then(|run| run.process);
    let nics = vm.nics.iter().map(|nic| v1::NicStatus {
        id: nic.id.to_string(),
        mac: nic.mac.to_string(),
        tap: process.map(|_| nic.subnet.tap_name()).unwrap_or_default(),
        host_address: format!("{}/{}", nic.subnet.host(), Subnet::PREFIX_LEN),
        guest_address: format!("{}/{}", nic.subnet.guest(), Subnet::PREFIX_LEN),
    });
    v1::VirtualMachine {
        name: VmRef { tenant: vm.tenant.clone(), vm: vm.name.clone() }.to_string(),
        uid: vm.uid.to_string(),
        spec: Some(spec_to_proto(&vm.spec)),
        state: state_to_proto(&vm.state).into(),
        failure: failure_to_proto(&vm.state),
        vmm_pid: process.map_or(0, |process| process.pid),
        nics: nics.collect(),
        create_time: Some(timestamp_to_proto(vm.created)),
        update_time: Some(timestamp_to_proto(vm.updated)),
        admission: Some(decision_to_proto(&vm.admission)),
    }
}

/// A message of a watch.
pub(super) fn watch_item(item: &WatchItem) -> v1::WatchVirtualMachinesResponse {
    let mut shown = vm(&item.vm);
    if item.is_gone {
        shown.state = State::Destroyed.into();
        shown.vmm_pid = 0;
    }
    v1::WatchVirtualMachinesResponse { virtual_machine: Some(shown), revision: item.revision, initial: item.is_initial }
}

/// A plugin as the API shows it.
pub(super) fn plugin(view: &PluginView) -> v1::Plugin {
    let PluginView { record, plugin } = view;
    v1::Plugin {
        name: PluginName { scope: record.scope.clone(), plugin: record.name.clone() }.to_string(),
        digest: record.digest.to_string(),
        hooks: plugin.hooks().iter().map(|hook| (*hook).to_owned()).collect(),
        version: plugin.version().to_owned(),
        summary: plugin.summary().to_owned(),
        settings: record.settings.clone().into_iter().collect(),
        size_bytes: plugin.size_bytes(),
        load_time: Some(timestamp_to_proto(record.loaded)),
        failure: plugin.broken_cause().unwrap_or_default().to_owned(),
    }
}
