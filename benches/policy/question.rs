//! What is asked in all parts, and of whom.

use std::path::PathBuf;

use ostler::model::{LastTenant, PfView, SelectVfRequest, VfCandidate, VfWish};

/// `plugins/sriov-net`.
pub fn component() -> Result<Vec<u8>, String> {
    let plugins = std::env::var_os("OSTLER_PLUGINS").map_or_else(|| "target/plugins".into(), PathBuf::from);
    let path = plugins.join("sriov-net.wasm");
    std::fs::read(&path).map_err(|error| format!("{}: {error}: run `cargo xtask plugins`", path.display()))
}

/// A question about VFs of four cards.
pub fn question(candidates: usize) -> Result<SelectVfRequest, String> {
    let wrong = |error: &dyn std::fmt::Display| error.to_string();
    let pf = |at: usize| -> Result<PfView, String> {
        Ok(PfView {
            address: format!("0000:{:02x}:00.0", 0x10 + at).parse().map_err(|error| wrong(&error))?,
            name: format!("eth{at}"),
            numa_node: Some(u32::from(at >= 2)),
            root: None,
            link_mbps: Some(25_000),
            total_vfs: 256,
            free_vfs: 256,
            own_vfs: 0,
            other_tenants: 0,
        })
    };
    let candidate = |at: usize| -> Result<VfCandidate, String> {
        let (pf, index) = (at % 4, at / 4);
        let address = format!("0000:{:02x}:{:02x}.{}", 0x10 + pf, index / 8, index % 8);
        Ok(VfCandidate {
            address: address.parse().map_err(|error| wrong(&error))?,
            pf,
            index: u16::try_from(index).map_err(|error| wrong(&error))?,
            last_tenant: LastTenant::Nobody,
        })
    };
    Ok(SelectVfRequest {
        tenant: "acme".parse().map_err(|error| wrong(&error))?,
        vm: "web".parse().map_err(|error| wrong(&error))?,
        vcpus: 4,
        memory_mib: 1024,
        disks: 1,
        nics: 1,
        nic: "eth0".parse().map_err(|error| wrong(&error))?,
        wish: VfWish { mac: None, vlan: None },
        pfs: (0..4).map(pf).collect::<Result<_, String>>()?,
        candidates: (0..candidates).map(candidate).collect::<Result<_, String>>()?,
    })
}
