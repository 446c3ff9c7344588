//! The port-mapped devices of the machine: COM1, the ACPI power registers, and the registers of its slots.

pub mod power;
pub mod serial;
pub mod slots;
