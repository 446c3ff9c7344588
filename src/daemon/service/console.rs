//! Opens a VM's console: the vmm's socket while it lives, what is kept of the past otherwise. Key type: [`Console`].

use tokio::net::UnixStream;

use super::{Node, Principal, ServiceError};
use crate::model::{TenantId, VmName};
use crate::wire::console_ring;

/// A console.
#[derive(Debug)]
pub enum Console {
    /// Gives the past, then what comes; takes input.
    Live(UnixStream),
    /// The VM has no process: what it said last.
    Kept {
        /// At most 64 KiB, oldest first.
        output: Vec<u8>,
        /// Where the VM is.
        state: &'static str,
    },
}

impl Node {
    /// The console of a VM that `principal` may see.
    pub async fn open_console(
        &self,
        principal: &Principal,
        tenant: &TenantId,
        name: &VmName,
    ) -> Result<Console, ServiceError> {
        let vm = self.get(principal, tenant, name)?;
        let paths = self.supervisor.paths(vm.uid);
        if vm.state.has_process()
            && let Ok(stream) = UnixStream::connect(paths.console()).await
        {
            return Ok(Console::Live(stream));
        }
        // Absent before the first start.
        let file = tokio::fs::read(paths.console_ring()).await.unwrap_or_default();
        let output = console_ring::tail(&file).unwrap_or_default();
        Ok(Console::Kept { output, state: vm.state.name() })
    }
}
