//! One call of a plugin, on a fresh instance that is thrown away behind it. Key types: [`Compiled`], [`Site`].
//!
//! The only place that enters WebAssembly: `executor` asks for decisions, `load` for a plugin's name and its opinion on
//! its settings. Every way that a call can end badly becomes a [`PolicyFault`] here.

use std::sync::Arc;

use wasmtime::{PoolConcurrencyLimitError, Store, Trap};

use crate::model::{AdmitRequest, Patch, PolicyFault, Verdict};

use super::engine::Sandbox;
use super::host::bindings::exports::ostler::policy::admit_hook;
use super::host::bindings::exports::ostler::policy::lifecycle::{Manifest, SettingError};
use super::host::bindings::ostler::policy::types;
use super::host::bindings::{Admit, AdmitPre};
use super::host::{Call, TooManyHostCalls};
use super::limits::{Limits, MAX_MESSAGE_BYTES};
use super::plugin::{About, Settings};
use super::text::to_line;

/// Machine code of a component, linked with what it imports.
pub(super) struct Compiled {
    pub about: About,
    pub code: AdmitPre<Call>,
}

/// Where a call happens: the sandbox, the code, the settings that the plugin sees, and its name in the log.
pub(super) struct Site<'a> {
    pub sandbox: &'a Sandbox,
    pub code: &'a AdmitPre<Call>,
    pub settings: &'a Settings,
    pub name: &'a str,
}

impl Site<'_> {
    /// What the plugin says about itself, unchecked.
    pub(super) fn describe(&self) -> Result<Manifest, PolicyFault> {
        self.call(|plugin, store| plugin.ostler_policy_lifecycle().call_describe(store))
    }

    /// What the plugin finds wrong with its settings.
    pub(super) fn validate_settings(&self) -> Result<Vec<SettingError>, PolicyFault> {
        let answer = self.call(|plugin, store| plugin.ostler_policy_lifecycle().call_validate_settings(store))?;
        Ok(answer.err().unwrap_or_default())
    }

    /// The plugin's verdict, not yet checked against the request.
    pub(super) fn admit(&self, request: &AdmitRequest) -> Result<Verdict, PolicyFault> {
        let question = question(request);
        let answer = self.call(|plugin, store| plugin.ostler_policy_admit_hook().call_admit_vm(store, &question))?;
        answer.map(verdict).map_err(|error| PolicyFault::Refused(refusal(error)))
    }

    fn call<T>(&self, f: impl FnOnce(&Admit, &mut Store<Call>) -> wasmtime::Result<T>) -> Result<T, PolicyFault> {
        let limits = self.sandbox.limits();
        let call = Call::new(Arc::clone(self.settings), limits.memory_bytes);
        let (mut store, _running) = self
            .sandbox
            .store(call)
            .map_err(|e| PolicyFault::Unavailable(to_line(&e.to_string(), MAX_MESSAGE_BYTES)))?;
        let answer = self.code.instantiate(&mut store).and_then(|plugin| f(&plugin, &mut store));
        let answer = answer.map_err(|error| fault(&error, store.data(), limits));
        store.into_data().notes.write(self.name);
        answer
    }
}

fn fault(error: &wasmtime::Error, call: &Call, limits: &Limits) -> PolicyFault {
    if call.is_memory_refused {
        return PolicyFault::Memory { limit_bytes: limits.memory_bytes as u64 };
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

fn question(request: &AdmitRequest) -> admit_hook::AdmitRequest {
    admit_hook::AdmitRequest {
        tenant: request.tenant.to_string(),
        vm: types::Vm {
            name: request.vm.to_string(),
            vcpus: request.vcpus,
            memory_mib: request.memory_mib,
            disks: request.disks,
            nics: request.nics,
        },
        in_use: types::Usage {
            vms: request.in_use.vms,
            vcpus: request.in_use.vcpus,
            memory_mib: request.in_use.memory_mib,
        },
    }
}

fn verdict(answer: admit_hook::Verdict) -> Verdict {
    match answer {
        admit_hook::Verdict::Allow(patches) => Verdict::Allow(
            patches
                .into_iter()
                .map(|patch| match patch {
                    admit_hook::VmPatch::CapVcpus(vcpus) => Patch::CapVcpus(vcpus),
                    admit_hook::VmPatch::CapMemoryMib(mib) => Patch::CapMemoryMib(mib),
                })
                .collect(),
        ),
        admit_hook::Verdict::Deny(denial) => Verdict::Deny { code: denial.code, message: denial.message },
        admit_hook::Verdict::Abstain => Verdict::Abstain,
    }
}

fn refusal(error: types::Error) -> String {
    let (kind, text) = match error {
        types::Error::BadSettings(text) => ("bad settings: ", text),
        types::Error::Unsupported(text) => ("unsupported: ", text),
        types::Error::Internal(text) => ("", text),
    };
    format!("{kind}{}", to_line(&text, MAX_MESSAGE_BYTES))
}
