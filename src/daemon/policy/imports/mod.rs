//! What a plugin sees of the host: one file per import of its world. Key type: [`Call`].

mod inventory;
mod kv;
mod log;
mod settings;
mod subject;

use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Engine, ResourceLimiter};

use crate::model::{Grant, SubjectVm};

use super::limits::MAX_HOST_CALLS;
use super::plugin::Settings;

pub(super) use inventory::{NoSight, Sight};
pub(super) use kv::{Memory, NoMemory};
pub(super) use log::Notes;
pub(super) use subject::NoSubject;

/// Bindings of the world `full`, generated from `wit/`, which carries the documentation.
#[allow(missing_docs, unreachable_pub, clippy::pedantic, reason = "generated")]
pub(super) mod bindings {
    wasmtime::component::bindgen!({ path: "wit", world: "full", imports: { default: trappable } });
}

/// Interfaces that every plugin may import, without their version.
pub(super) const GRANTED: [&str; 4] =
    ["ostler:policy/log", "ostler:policy/settings", "ostler:policy/subject", "ostler:policy/types"];
/// Those that a binding grants.
pub(super) const GRANTABLE: [(Grant, &str); 2] =
    [(Grant::Kv, "ostler:policy/kv"), (Grant::Inventory, "ostler:policy/inventory")];

/// A linker with every granted import, and nothing else.
pub(super) fn linker(engine: &Engine) -> wasmtime::Result<Linker<Call>> {
    let mut linker = Linker::new(engine);
    bindings::Full::add_to_linker::<_, HasSelf<Call>>(&mut linker, |call| call)?;
    Ok(linker)
}

/// State of one call: what the plugin may read, what it left behind, and its memory cap.
pub(super) struct Call {
    settings: Settings,
    pub(super) notes: Notes,
    /// Its store, if it decides and has one.
    pub(super) memory: Option<Memory>,
    /// What it sees of the tenant's inventory, if it decides and may.
    pub(super) sight: Option<Sight>,
    /// The VM that it is asked about, if its hook says.
    subject: Option<SubjectVm>,
    memory_limit_bytes: usize,
    host_calls: u32,
    /// The plugin asked for more than the cap.
    pub(super) is_memory_refused: bool,
}

impl Call {
    pub(super) fn new(settings: Settings, memory_limit_bytes: usize) -> Self {
        Self {
            settings,
            notes: Notes::default(),
            memory: None,
            sight: None,
            subject: None,
            memory_limit_bytes,
            host_calls: 0,
            is_memory_refused: false,
        }
    }

    /// The same about this VM.
    pub(super) fn about(self, subject: Option<SubjectVm>) -> Self {
        Self { subject, ..self }
    }

    /// The same with what the plugin remembers, and sees of the inventory.
    pub(super) fn seeing(self, memory: Option<Memory>, sight: Option<Sight>) -> Self {
        Self { memory, sight, ..self }
    }

    /// Counts one call of an import; the error ends the plugin's call.
    fn count(&mut self) -> wasmtime::Result<()> {
        self.host_calls += 1;
        if self.host_calls > MAX_HOST_CALLS { Err(TooManyHostCalls.into()) } else { Ok(()) }
    }
}

/// The plugin called its imports more than [`MAX_HOST_CALLS`] times.
#[derive(Debug, thiserror::Error)]
#[error("more than {MAX_HOST_CALLS} calls of the host")]
pub(super) struct TooManyHostCalls;

impl ResourceLimiter for Call {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired_bytes: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired_bytes <= self.memory_limit_bytes {
            return Ok(true);
        }
        // An error ends the call; `false` would let the plugin try again.
        self.is_memory_refused = true;
        Err(wasmtime::Error::msg("memory limit"))
    }

    fn table_growing(&mut self, _current: usize, _desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        // Bounded by the pool's size of a table.
        Ok(true)
    }
}
