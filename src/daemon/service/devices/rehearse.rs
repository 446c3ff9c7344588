//! Whether a VM would get its virtual functions and NVMe devices now, and where it would run, without taking anything.

use super::{HostDevices, choose, read};
use crate::daemon::record::VmRecord;
use crate::daemon::supervisor::DevicesError;
use crate::model::{Placement, VfOutcome, denier};

impl HostDevices {
    /// Where `vm` would run, as near as can be to devices that it has already; `None`: anywhere. What policy says is on no
    /// record: nobody acts on it.
    pub(in crate::daemon::service) async fn rehearse_place(
        &self,
        vm: &VmRecord,
    ) -> Result<Option<Placement>, DevicesError> {
        self.placer.rehearse(vm).await
    }

    /// Asks policy about each NIC that is to be a virtual function, and each NVMe device that has nothing yet, with what
    /// is free now. What it says is on no record: nobody acts on it.
    pub(in crate::daemon::service) async fn rehearse(&self, vm: &VmRecord) -> Result<(), DevicesError> {
        let lacking = vm.spec.nics().iter().filter(|nic| vm.vfs.iter().all(|vf| vf.id != nic.id));
        for (nic, wish) in lacking.filter_map(|nic| Some((nic, nic.vf_wish()?))) {
            let devices = read().await.map_err(DevicesError)?;
            let offer = choose::offer(&devices, &self.store.snapshot().leases, vm, &nic.id, wish)?;
            let decision =
                self.policy.select_vf(self.plugins.chain(&vm.tenant, &vm.name), offer.request).await.dry_run();
            if let VfOutcome::Deny { code, message, plugin } = decision.outcome {
                let who = denier(plugin.as_deref());
                return Err(DevicesError(format!("{who} gives NIC {} no VF: {message} ({code})", nic.id)));
            }
        }
        self.nvme().rehearse(vm).await
    }
}
