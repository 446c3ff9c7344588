#![doc = include_str!("../ARCHITECTURE.md")]

pub mod api;
pub mod cli;
pub mod daemon;
pub mod jail;
pub mod model;
pub mod sys;
pub mod vmm;
pub mod wire;
