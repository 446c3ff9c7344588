//! What is tested without a guest: a real daemon, its store, its policy host, its clients. Runs anywhere.
//!
//! One program for all: each would link a daemon of its own. `cargo xtask test --program NAME` runs one module alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

mod api_reference;
mod apply;
mod audit;
mod bad_input;
mod canary;
mod changes;
mod cli;
#[cfg(feature = "crash-points")]
mod crash;
mod decisions;
mod doctor;
mod following;
mod hostile_clients;
mod labels;
mod languages;
mod lists;
mod matrix;
mod observers;
mod operations;
mod placement;
mod plugin_aliases;
mod plugin_inventory;
mod plugin_kv;
mod plugins_offline;
mod policy;
mod policy_host;
mod protos;
mod python_client;
mod shadows;
mod signatures;
mod swap;
mod tenancy;
mod tenants;
mod trust;
mod watch;
mod wit_reference;
