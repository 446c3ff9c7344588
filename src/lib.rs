#![doc = include_str!("../ARCHITECTURE.md")]

#[cfg(feature = "node")]
pub mod api;
#[cfg(feature = "node")]
pub mod cli;
#[cfg(feature = "node")]
pub mod daemon;
pub mod jail;
pub mod model;
pub mod sys;
pub mod vmm;
pub mod wire;
