//! The two port-mapped devices of the machine: COM1 and the ACPI power registers.

pub mod power;
pub mod serial;
