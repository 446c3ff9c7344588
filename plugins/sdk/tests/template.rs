//! What `ostler plugin new` makes compiles, and its own tests pass.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../src/cli/commands/author/template/lib.rs"]
mod template;
