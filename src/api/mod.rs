//! The public contract in Rust: generated gRPC types, their conversion to `model`, and its names.
//!
//! Only `daemon/rpc` and `cli` may name this module; everything else speaks `model`.

pub mod convert;
mod names;
pub mod reasons;
mod resources;
mod times;

pub use names::{Parent, PluginName, VmRef, decision_name, parse_decision_name, parse_operation_name, scope_name};

#[allow(missing_docs, clippy::pedantic, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("ostler.v1");

    /// Encoded `FileDescriptorSet` of the package, for the reflection service.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ostler_v1.descriptors"));
}
