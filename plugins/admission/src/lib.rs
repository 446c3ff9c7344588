//! Admits VMs by a tenant's limits. The example to read first when writing a plugin.
//!
//! Settings, all optional; a limit that is not set does not limit:
//!
//! | key | meaning |
//! |---|---|
//! | `max-vms` | registered VMs of the tenant |
//! | `max-vcpus`, `max-memory-mib` | size of one VM |
//! | `max-disks`, `max-nics` | disks and network interfaces of one VM, when it is registered and when one is attached |
//! | `total-vcpus`, `total-memory-mib` | all VMs of the tenant together |
//! | `mode` | `deny` (default): a VM that is too large is denied; `cap`: it is made smaller instead |
//!
//! [`limits`] decides, on plain values; this file is the door to the host (`wit/`).

mod limits;
mod settings;

#[allow(missing_docs, unsafe_code, unreachable_pub, reason = "generated from wit/, which carries the documentation")]
mod host {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package ostler:admission; world admission {
            include ostler:policy/admit@0.1.0;
            include ostler:policy/attach@0.1.0;
        }",
        world: "ostler:admission/admission",
        generate_all,
    });
}

use host::exports::ostler::policy::admit_hook::{self, AdmitRequest, VmPatch};
use host::exports::ostler::policy::attach_hook::{self, AttachRequest, AttachVerdict, Device};
use host::exports::ostler::policy::lifecycle::{self, Manifest, SettingError};
use host::ostler::policy::types::{Denial, Error};
use limits::{Answer, Ask};

/// Instances live for one call: see the crate.
#[cfg(target_arch = "wasm32")]
#[global_allocator]
static ARENA: plugin_arena::Arena = plugin_arena::Arena::new();

struct Admission;

impl lifecycle::Guest for Admission {
    fn describe() -> Manifest {
        Manifest {
            name: "admission".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "admits VMs by the tenant's limits".into(),
        }
    }

    fn validate_settings() -> Result<(), Vec<SettingError>> {
        match settings::read(&settings::Host) {
            Ok(_) => Ok(()),
            Err(errors) => Err(errors.into_iter().map(|e| SettingError { key: e.key, message: e.message }).collect()),
        }
    }
}

impl admit_hook::Guest for Admission {
    fn admit_vm(request: AdmitRequest) -> Result<admit_hook::Verdict, Error> {
        let limits = limits()?;
        let ask = Ask {
            disks: request.vm.disks,
            nics: request.vm.nics,
            vcpus: request.vm.vcpus,
            memory_mib: request.vm.memory_mib,
            vms_in_use: request.in_use.vms,
            vcpus_in_use: request.in_use.vcpus,
            memory_mib_in_use: request.in_use.memory_mib,
        };
        Ok(match limits.judge(ask) {
            Answer::Allow { cap_vcpus, cap_memory_mib } => {
                let vcpus = cap_vcpus.map(VmPatch::CapVcpus);
                let memory = cap_memory_mib.map(VmPatch::CapMemoryMib);
                admit_hook::Verdict::Allow(vcpus.into_iter().chain(memory).collect())
            }
            Answer::Deny { code, message } => admit_hook::Verdict::Deny(Denial { code: code.into(), message }),
        })
    }
}

impl attach_hook::Guest for Admission {
    fn attach_device(request: AttachRequest) -> Result<AttachVerdict, Error> {
        let limits = limits()?;
        let judged = match request.device {
            Device::Disk(_) => limits.judge_disks(request.vm.disks.saturating_add(1)),
            Device::Nic(_) => limits.judge_nics(request.vm.nics.saturating_add(1)),
            // Whether there is one for it is for plugins with the hook `select-nvme`.
            Device::Nvme(_) => Ok(()),
        };
        Ok(match judged {
            Ok(()) => AttachVerdict::Allow,
            Err((code, message)) => AttachVerdict::Deny(Denial { code: code.into(), message }),
        })
    }
}

/// What the settings say.
fn limits() -> Result<limits::Limits, Error> {
    settings::read(&settings::Host).map_err(|errors| {
        Error::BadSettings(errors.into_iter().map(|e| format!("{}: {}", e.key, e.message)).collect::<String>())
    })
}

#[allow(unsafe_code, reason = "generated: the functions that the host calls")]
mod exports {
    use super::{Admission, host};

    host::export!(Admission with_types_in host);
}
