//! What a VM's process has and may do, as the kernel shows it. Key function: [`Node::inspect_jail`].

use std::sync::Arc;

use super::{Node, Principal, ServiceError};
use crate::daemon::record::VmRecord;
use crate::daemon::supervisor::CallError;
use crate::model::{Refused, TenantId, VmName};
pub use crate::sys::confinement::Confinement;

impl Node {
    /// The confinement of the VM's process. Refused while it has none.
    pub async fn inspect_jail(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
    ) -> Result<(Arc<VmRecord>, Confinement), ServiceError> {
        let vm = self.get(principal, tenant, name)?;
        let no_process = || CallError::Refused(Refused { state: vm.state.name(), verb: "inspect the jail of" });
        let process = vm.run.as_ref().and_then(|run| run.process).ok_or_else(no_process)?;
        // A thread of ours waits until those of the VM stand still: one for each tenant.
        let turn = self.inspections.take(tenant).await;
        match self.supervisor.confinement(process, turn).await {
            Ok(Some(confinement)) => Ok((vm, confinement)),
            // It ended, and its task is about to learn of it.
            Ok(None) => Err(no_process().into()),
            Err(source) => Err(ServiceError::Host { what: "what the process has: /proc cannot be read", source }),
        }
    }
}
