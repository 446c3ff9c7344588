//! Generates the public API (`ostler.v1`) and the internal messages (`ostler.wire.v1`) from `proto/`.

use std::path::PathBuf;

const PUBLIC: [&str; 6] = [
    "ostler/v1/vm.proto",
    "ostler/v1/plugin.proto",
    "ostler/v1/host.proto",
    "ostler/v1/decision.proto",
    "ostler/v1/tenant.proto",
    "ostler/v1/operation.proto",
];
const WIRE: [&str; 1] = ["wire/v1/vmm.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let public = protox::compile(PUBLIC, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // For the reflection service.
    std::fs::write(out.join("ostler_v1.descriptors"), prost::Message::encode_to_vec(&public))?;
    // Ordered maps: one request has one encoding, by which a repetition of it is recognised.
    tonic_prost_build::configure().btree_map(".").compile_fds(public)?;
    prost_build::Config::new().compile_fds(protox::compile(WIRE, ["proto"])?)?;
    Ok(())
}
