//! One call of a plugin, on a fresh instance that is thrown away behind it. Key types: [`Code`], [`Site`].
//!
//! The only place that enters WebAssembly: hooks ask for decisions, `load` for a plugin's name and its opinion on
//! its settings. Every way that a call can end badly becomes a [`PolicyFault`] here.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use wasmtime::component::{Instance, InstancePre};
use wasmtime::{FrameInfo, PoolConcurrencyLimitError, Store, Trap, WasmBacktrace};

use crate::model::{InventoryView, KvView, PolicyFault, SubjectVm};
use crate::wire::policy::{InventorySpoken, KvSpoken, Spoken};

use super::engine::Sandbox;
use super::imports::bindings::exports::ostler::policy::lifecycle::{self, Manifest, SettingError};
use super::imports::bindings::exports::ostler::policy::{
    admit_hook, attach_hook, detach_hook, observe_hook, place_hook, select_nvme_hook, select_vf_hook,
};
use super::imports::bindings::ostler::policy::types;
use super::imports::{Call, Memory, NoMemory, NoSight, NoSubject, Notes, Sight, TooManyHostCalls};
use super::limits::{Limits, MAX_FRAME_BYTES, MAX_MESSAGE_BYTES};
use super::plugin::Settings;
use super::text::to_line;

/// Machine code of a component, linked with what it imports, and where its exports are.
pub(super) struct Code {
    pub instance: InstancePre<Call>,
    pub lifecycle: lifecycle::GuestIndices,
    /// `None`: not a hook of this plugin. So are the next ones.
    pub admit: Option<admit_hook::GuestIndices>,
    pub select_vf: Option<select_vf_hook::GuestIndices>,
    pub select_nvme: Option<select_nvme_hook::GuestIndices>,
    pub attach: Option<attach_hook::GuestIndices>,
    pub detach: Option<detach_hook::GuestIndices>,
    pub place: Option<place_hook::GuestIndices>,
    pub observe: Option<observe_hook::GuestIndices>,
}

impl Code {
    /// Whether each function that may be called has the types with which it is called.
    fn check_types(&self, store: &mut Store<Call>, instance: &Instance) -> wasmtime::Result<()> {
        macro_rules! check {
            ($($hook:ident)*) => {$(
                if let Some(hook) = &self.$hook {
                    hook.load(&mut *store, instance).map_err(|error| error.context(stringify!($hook)))?;
                }
            )*};
        }
        self.lifecycle.load(&mut *store, instance).map_err(|error| error.context("lifecycle"))?;
        check!(admit select_vf select_nvme attach detach place observe);
        Ok(())
    }
}

/// Where a call happens: the sandbox, the code, and the settings that the plugin sees.
pub(super) struct Site<'a> {
    sandbox: &'a Sandbox,
    code: &'a Code,
    settings: &'a Settings,
    /// What its calls have cost so far, in units of about one WebAssembly instruction.
    fuel: Cell<u64>,
    /// What they have left for the log.
    notes: RefCell<Notes>,
    /// What the plugin remembers and sees of the inventory, for its one call that decides.
    views: RefCell<(Option<KvView>, Option<InventoryView>)>,
    /// What that did with them.
    spoken: RefCell<(Option<KvSpoken>, Option<InventorySpoken>)>,
    /// The VM that it decides about, if its hook says.
    subject: RefCell<Option<SubjectVm>>,
    /// Where the last of its calls failed, if it did.
    backtrace: RefCell<Vec<String>>,
}

impl<'a> Site<'a> {
    pub(super) fn new(sandbox: &'a Sandbox, code: &'a Code, settings: &'a Settings) -> Self {
        Self {
            sandbox,
            code,
            settings,
            fuel: Cell::default(),
            notes: RefCell::default(),
            views: RefCell::default(),
            spoken: RefCell::default(),
            subject: RefCell::default(),
            backtrace: RefCell::default(),
        }
    }

    /// The same with what the plugin remembers, and sees of the inventory.
    pub(super) fn seeing(self, kv: Option<KvView>, inventory: Option<InventoryView>) -> Self {
        self.views.replace((kv, inventory));
        self
    }

    /// The same about this VM.
    pub(super) fn about(self, subject: Option<SubjectVm>) -> Self {
        self.subject.replace(subject);
        self
    }

    /// What was said here, with what the calls cost and left behind.
    pub(super) fn spoken<T>(self, said: Result<T, PolicyFault>) -> Spoken<T> {
        let Notes { lines, dropped } = self.notes.into_inner();
        let (kv, inventory) = self.spoken.into_inner();
        let backtrace = self.backtrace.into_inner();
        Spoken { said, fuel: self.fuel.get(), notes: lines, dropped, kv, inventory, backtrace }
    }

    /// The first difference between the types of its functions and ours, if there is one: the engine compares them where an
    /// instance is, and it need not be called for that. That there is no instance is for the first call to tell.
    pub(super) fn different_types(&self) -> Option<String> {
        let checked = self.call(|code, store, instance| Ok(code.check_types(store, instance)));
        checked.ok()?.err().map(|error| format!("{error:#}"))
    }

    /// What the plugin says about itself, unchecked.
    pub(super) fn describe(&self) -> Result<Manifest, PolicyFault> {
        self.call(|code, store, instance| code.lifecycle.load(&mut *store, instance)?.call_describe(store))
    }

    /// What the plugin finds wrong with its settings.
    pub(super) fn validate_settings(&self) -> Result<Vec<SettingError>, PolicyFault> {
        let answer = self
            .call(|code, store, instance| code.lifecycle.load(&mut *store, instance)?.call_validate_settings(store))?;
        Ok(answer.err().unwrap_or_default())
    }

    /// Calls one export, found by `f`, on an instance of its own.
    pub(super) fn call<T>(
        &self,
        f: impl FnOnce(&Code, &mut Store<Call>, &Instance) -> wasmtime::Result<T>,
    ) -> Result<T, PolicyFault> {
        let limits = self.sandbox.limits();
        let (kv, inventory) = self.views.take();
        let call = Call::new(Arc::clone(self.settings), limits.memory_bytes);
        let call = call.seeing(kv.map(Memory::new), inventory.map(Sight::new)).about(self.subject.take());
        let (mut store, _running) = self
            .sandbox
            .store(call)
            .map_err(|e| PolicyFault::Unavailable(to_line(&e.to_string(), MAX_MESSAGE_BYTES)))?;
        let instance = self.code.instance.instantiate(&mut store);
        let answer = instance.and_then(|instance| f(self.code, &mut store, &instance));
        let spent = limits.fuel.saturating_sub(store.get_fuel().unwrap_or(0));
        self.fuel.set(self.fuel.get().saturating_add(spent));
        let answer = answer.map_err(|error| {
            self.backtrace.replace(backtrace(&error));
            fault(&error, store.data(), limits)
        });
        let Call { notes, memory, sight, .. } = store.into_data();
        self.notes.replace(notes);
        let kv = memory.map(|memory| memory.into_spoken(answer.is_err()));
        self.spoken.replace((kv, sight.map(Sight::into_spoken)));
        answer
    }
}

/// The functions under way when it failed, the innermost first.
fn backtrace(error: &wasmtime::Error) -> Vec<String> {
    let frame = |frame: &FrameInfo| {
        let function = match frame.func_name() {
            Some(name) => name.to_owned(),
            None => format!("function {}", frame.func_index()),
        };
        let at = frame.module_offset().map(|offset| format!(" at {offset:#x}")).unwrap_or_default();
        // The end is kept: names may be long.
        to_line(&function, MAX_FRAME_BYTES - at.len()) + &at
    };
    error.downcast_ref::<WasmBacktrace>().map(|trace| trace.frames().iter().map(frame).collect()).unwrap_or_default()
}

fn fault(error: &wasmtime::Error, call: &Call, limits: &Limits) -> PolicyFault {
    if call.is_memory_refused {
        return PolicyFault::Memory { limit_bytes: limits.memory_bytes as u64 };
    }
    match error.downcast_ref::<NoMemory>() {
        // Nobody's fault, and nothing that the plugin could be asked about.
        Some(unknown @ NoMemory::Unknown(_)) => {
            return PolicyFault::Unavailable(to_line(&unknown.to_string(), MAX_MESSAGE_BYTES));
        }
        Some(none) => return PolicyFault::Trap(none.to_string()),
        None => {}
    }
    match error.downcast_ref::<NoSight>() {
        Some(hidden @ NoSight::NotShown(_)) => return PolicyFault::Unavailable(hidden.to_string()),
        Some(none) => return PolicyFault::Trap(none.to_string()),
        None => {}
    }
    match error.downcast_ref::<NoSubject>() {
        Some(unsaid @ NoSubject::NotSaid(_)) => return PolicyFault::Unavailable(unsaid.to_string()),
        Some(none) => return PolicyFault::Trap(none.to_string()),
        None => {}
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => PolicyFault::Deadline(limits.deadline),
        Some(Trap::OutOfFuel) => PolicyFault::Budget { fuel: limits.fuel },
        Some(trap) => PolicyFault::Trap(trap.to_string()),
        None if error.is::<PoolConcurrencyLimitError>() => PolicyFault::Unavailable("too many plugins at work".into()),
        None if error.is::<TooManyHostCalls>() => PolicyFault::Trap(TooManyHostCalls.to_string()),
        // The canonical ABI could not read the answer: not UTF-8, outside the memory, larger than allowed.
        None => PolicyFault::BadAnswer(to_line(&error.root_cause().to_string(), MAX_MESSAGE_BYTES)),
    }
}

/// A plugin's own words for why it cannot decide.
pub(super) fn refusal(error: types::Error) -> String {
    let (kind, text) = match error {
        types::Error::BadSettings(text) => ("bad settings: ", text),
        types::Error::Unsupported(text) => ("unsupported: ", text),
        types::Error::Internal(text) => ("", text),
    };
    format!("{kind}{}", to_line(&text, MAX_MESSAGE_BYTES))
}
