//! What a policy plugin in Rust is made with. Key items: [`Policy`], [`export!`], a module per hook, [`testing`].
//!
//! A plugin is a type that is read from its settings ([`Policy`]) and answers at one or more hooks. It sees the request by
//! reference, decides on plain values, and is tested natively; [`export!`] makes the component's door of it.
//!
//! ```text
//! struct Limits { max_vcpus: Option<u64> }
//!
//! impl Policy for Limits {
//!     const NAME: &'static str = "limits";
//!     const VERSION: &'static str = env!("CARGO_PKG_VERSION");
//!     const SUMMARY: &'static str = "admits small VMs";
//!     const SETTINGS: &'static [&'static str] = &["max-vcpus"];
//!
//!     fn read(settings: &mut Reader<'_, impl Source>) -> Self {
//!         Self { max_vcpus: settings.number("max-vcpus", 1..=64) }
//!     }
//! }
//!
//! impl Admit for Limits {
//!     fn admit(&self, request: &AdmitRequest) -> Result<Verdict, Error> {
//!         match self.max_vcpus {
//!             Some(most) if u64::from(request.vm.vcpus) > most => Ok(refuse("limit.vcpus", "too many vCPUs").into()),
//!             _ => Ok(Verdict::Allow(Vec::new())),
//!         }
//!     }
//! }
//!
//! ostler_policy::export!(Limits: admit);
//! ```

pub mod admit;
mod arena;
pub mod attach;
pub mod detach;
mod export;
#[doc(hidden)]
pub mod host;
pub mod inventory;
pub mod kv;
pub mod log;
#[cfg(not(target_arch = "wasm32"))]
mod memory;
pub mod observe;
pub mod place;
mod policy;
pub mod preferences;
mod reasons;
pub mod select_nvme;
pub mod select_vf;
mod settings;
pub mod subject;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use arena::Arena;
#[doc(hidden)]
pub use export::{decide, describe, validate};
pub use host::base::ostler::policy::types::{Denial, Error, Usage, Vm};
pub use policy::{Policy, read};
pub use reasons::{Reasons, Refusal, refuse};
pub use settings::{Invalid, Reader, Source};
