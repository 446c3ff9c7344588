//! The one harness of all capability tests: a real daemon in temporary directories, clients with real certificates,
//! guests seen through their consoles. Nothing is faked; nothing survives a test.
//!
//! ```no_run
//! let host = Host::start();
//! let acme = host.tenant("acme");
//! acme.register("web", small())?;
//! ```
//!
//! Environment: `OSTLER_BIN` (else the binary that cargo built), `OSTLER_ASSETS` (a directory with `images/`, `plugins/`,
//! `client/`, `python/` and `examples/`; else `target/lab/images`, `target/plugins`, `target/python`, `target/lab/python`
//! and `target/lab/examples`) and `OSTLER_PYTHON` (an interpreter; else `target/lab/python/bin/python3`).

#![allow(dead_code, unreachable_pub, reason = "each test binary uses another part")]

pub mod assets;
pub mod card;
pub mod certs;
pub mod client;
pub mod console;
pub mod corpus;
pub mod crash;
pub mod desk;
pub mod drives;
pub mod fio;
pub mod guest;
pub mod guest_ram;
pub mod holdings;
pub mod host;
pub mod operations;
pub mod shell;
pub mod storm;
pub mod strays;
pub mod tally;
pub mod terminal;
pub mod unhurried;
pub mod vmm;
pub mod wait;

#[allow(unused_imports, reason = "each test binary uses another part")]
pub use client::{Caller, ErrorFacts, facts};
#[allow(unused_imports, reason = "each test binary uses another part")]
pub use host::Host;

use ostler::api::v1;

/// Tenants that every host has certificates for.
pub const TENANTS: [&str; 2] = ["acme", "globex"];

/// A VM that is registered and never started: its kernel is a file of a few bytes, which every host has.
pub fn small() -> v1::VirtualMachineSpec {
    v1::VirtualMachineSpec {
        vcpus: 1,
        memory_mib: 128,
        boot: Some(v1::BootSpec { kernel: assets::PLACEHOLDER.into(), initrd: String::new(), cmdline: String::new() }),
        disks: vec![],
        nics: vec![],
        ..Default::default()
    }
}
