//! From a [`Policy`] to a component's exports. Key macro: [`export!`](crate::export).

use crate::host::base::exports::ostler::policy::lifecycle::{Manifest, SettingError};
use crate::settings::Host;
use crate::{Error, Policy, read};

/// Makes a component of a policy: `export!(Limits: admit, attach)`. Once in a crate of type `cdylib`.
///
/// The hooks are `admit`, `attach`, `detach`, `observe`, `place`, `select_vf` and `select_nvme`; the type implements the trait of
/// each. Memory is [`Arena`](crate::Arena)'s.
#[macro_export]
macro_rules! export {
    ($policy:ident: $($hook:ident),+ $(,)?) => {
        #[cfg(target_arch = "wasm32")]
        #[global_allocator]
        static ARENA: $crate::Arena = $crate::Arena::new();

        #[allow(unsafe_code, reason = "generated: the functions that the host calls")]
        mod exports {
            use super::$policy;
            use $crate::host::base::exports::ostler::policy::lifecycle;

            struct Component;

            impl lifecycle::Guest for Component {
                fn describe() -> lifecycle::Manifest {
                    $crate::describe::<$policy>()
                }

                fn validate_settings() -> Result<(), Vec<lifecycle::SettingError>> {
                    $crate::validate::<$policy>()
                }
            }

            $crate::host::base::export!(Component with_types_in $crate::host::base);
            $($crate::export_hook!($hook, $policy);)+
        }
    };
}

/// One hook of [`export!`](crate::export).
#[doc(hidden)]
#[macro_export]
macro_rules! export_hook {
    (admit, $policy:ident) => {
        impl $crate::host::admit::exports::ostler::policy::admit_hook::Guest for Component {
            fn admit_vm(request: $crate::admit::AdmitRequest) -> Result<$crate::admit::Verdict, $crate::Error> {
                $crate::decide(|policy: &$policy| $crate::admit::Admit::admit(policy, &request))
            }
        }
        $crate::host::admit::export!(Component with_types_in $crate::host::admit);
    };
    (attach, $policy:ident) => {
        impl $crate::host::attach::exports::ostler::policy::attach_hook::Guest for Component {
            fn attach_device(request: $crate::attach::AttachRequest) -> Result<$crate::attach::Verdict, $crate::Error> {
                $crate::decide(|policy: &$policy| $crate::attach::Attach::attach(policy, &request))
            }
        }
        $crate::host::attach::export!(Component with_types_in $crate::host::attach);
    };
    (detach, $policy:ident) => {
        impl $crate::host::detach::exports::ostler::policy::detach_hook::Guest for Component {
            fn detach_device(request: $crate::detach::DetachRequest) -> Result<$crate::detach::Verdict, $crate::Error> {
                $crate::decide(|policy: &$policy| $crate::detach::Detach::detach(policy, &request))
            }
        }
        $crate::host::detach::export!(Component with_types_in $crate::host::detach);
    };
    (observe, $policy:ident) => {
        impl $crate::host::observe::exports::ostler::policy::observe_hook::Guest for Component {
            fn on_events(batch: $crate::observe::Batch) -> Result<(), $crate::Error> {
                $crate::decide(|policy: &$policy| $crate::observe::Observe::observe(policy, &batch))
            }
        }
        $crate::host::observe::export!(Component with_types_in $crate::host::observe);
    };
    (place, $policy:ident) => {
        impl $crate::host::place::exports::ostler::policy::place_hook::Guest for Component {
            fn place_vm(request: $crate::place::PlaceRequest) -> Result<$crate::place::Verdict, $crate::Error> {
                $crate::decide(|policy: &$policy| $crate::place::Place::place(policy, &request))
            }
        }
        $crate::host::place::export!(Component with_types_in $crate::host::place);
    };
    (select_vf, $policy:ident) => {
        impl $crate::host::select_vf::exports::ostler::policy::select_vf_hook::Guest for Component {
            fn select_vf(request: $crate::select_vf::SelectVfRequest) -> Result<$crate::select_vf::Verdict, $crate::Error> {
                $crate::decide(|policy: &$policy| $crate::select_vf::SelectVf::select_vf(policy, &request))
            }
        }
        $crate::host::select_vf::export!(Component with_types_in $crate::host::select_vf);
    };
    (select_nvme, $policy:ident) => {
        impl $crate::host::select_nvme::exports::ostler::policy::select_nvme_hook::Guest for Component {
            fn select_nvme(request: $crate::select_nvme::SelectNvmeRequest) -> Result<$crate::select_nvme::Verdict, $crate::Error> {
                $crate::decide(|policy: &$policy| $crate::select_nvme::SelectNvme::select_nvme(policy, &request))
            }
        }
        $crate::host::select_nvme::export!(Component with_types_in $crate::host::select_nvme);
    };
}

/// What the plugin says about itself.
pub fn describe<P: Policy>() -> Manifest {
    Manifest { name: P::NAME.into(), version: P::VERSION.into(), summary: P::SUMMARY.into() }
}

/// What is wrong with the settings that the host gives.
pub fn validate<P: Policy>() -> Result<(), Vec<SettingError>> {
    match read::<P>(&Host) {
        Ok(_) => Ok(()),
        Err(wrong) => Err(wrong.into_iter().map(|e| SettingError { key: e.key, message: e.message }).collect()),
    }
}

/// What the plugin answers with the settings that the host gives.
pub fn decide<P: Policy, V>(answer: impl FnOnce(&P) -> Result<V, Error>) -> Result<V, Error> {
    match read::<P>(&Host) {
        Ok(policy) => answer(&policy),
        Err(wrong) => {
            let wrong = wrong.into_iter().map(|e| format!("{}: {}", e.key, e.message)).collect::<Vec<_>>();
            Err(Error::BadSettings(wrong.join("; ")))
        }
    }
}
