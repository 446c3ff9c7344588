//! Opens a VM's console: the vmm's socket while it lives, what is kept of the past otherwise. Key types: [`Console`],
//! [`Window`].

use tokio::net::UnixStream;

use super::{Node, Principal, ServiceError};
use crate::daemon::supervisor::VmHandle;
use crate::model::{DeviceId, TenantId, VmName, WindowSize};
use crate::wire::console_ring;

/// A console.
#[derive(Debug)]
pub enum Console {
    /// Gives the past, then what comes; takes input.
    Live(UnixStream, Window),
    /// The VM has no process: what it said last.
    Kept {
        /// At most 64 KiB, oldest first.
        output: Vec<u8>,
        /// Where the VM is.
        state: &'static str,
    },
}

/// What shows the console to a person.
#[derive(Debug)]
pub struct Window {
    /// Whom to tell of it: a serial line has nothing that could.
    guest: Option<(VmHandle, DeviceId)>,
}

impl Window {
    /// Has the guest told that it is of this size now; not waited for, and lost on a VM that is paused.
    pub async fn resize(&self, size: WindowSize) {
        if let Some((vm, console)) = &self.guest {
            // The VM has gone: its console says so.
            let _ = vm.tell_window(console.clone(), size).await;
        }
    }
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
            let guest = self.handles.get(vm.uid).zip(vm.spec.console().id().cloned());
            return Ok(Console::Live(stream, Window { guest }));
        }
        // Absent before the first start.
        let file = tokio::fs::read(paths.console_ring()).await.unwrap_or_default();
        let output = console_ring::tail(&file).unwrap_or_default();
        Ok(Console::Kept { output, state: vm.state.name() })
    }
}
