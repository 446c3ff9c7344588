//! Who has which virtual function of a network card. Key types: [`VfLease`], [`VfKey`], [`Holder`].

use std::fmt;

use super::lease::{HeldFor, Lease};
use crate::model::{Bdf, DeviceId, MacAddr, TenantId, VmId};
use crate::sys::rtnl::VfConfig;

/// What is known of a virtual function's owner.
pub type VfLease = Lease<VfKey, Holder>;

/// Which virtual function: the card, by place and permanent address, and the number on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VfKey {
    /// The physical function.
    pub pf: Bdf,
    /// Its permanent address: another card in the same slot is another key.
    pub pf_mac: MacAddr,
    /// Number on it, from 0.
    pub index: u16,
}

impl fmt::Display for VfKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.pf, self.pf_mac, self.index)
    }
}

/// For whom a virtual function was taken, and how it was before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The VM.
    pub vm: VmId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The VM's NIC.
    pub nic: DeviceId,
    /// The address that it gets: nobody else may have it.
    pub mac: MacAddr,
    /// Settings to be given back.
    pub original: VfConfig,
}

impl HeldFor for Holder {
    fn vm(&self) -> VmId {
        self.vm
    }

    fn tenant(&self) -> &TenantId {
        &self.tenant
    }
}

/// A VM's NIC that is a virtual function, while the VM has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfNic {
    /// The NIC.
    pub id: DeviceId,
    /// The virtual function.
    pub address: Bdf,
    /// Its card's network interface.
    pub pf_interface: String,
    /// The guest's address.
    pub mac: MacAddr,
}

/// Leases for tests.
#[cfg(test)]
pub mod samples {
    use super::*;
    use crate::sys::rtnl::{LinkState, VfVlanConfig};

    /// The lease of a VF that nobody ever had.
    pub fn unheld(index: u16) -> VfLease {
        let pf_mac = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
        let key = VfKey { pf: Bdf::new(0, 1, 0, 0).unwrap(), pf_mac, index };
        VfLease::unheld(key, Bdf::new(0, 1, 0x10 + (index / 8) as u8, (index % 8) as u8).unwrap())
    }

    /// A VM of `tenant` that takes one.
    pub fn holder(tenant: &str) -> Holder {
        let original = VfConfig {
            mac: [0x02, 0, 0, 0, 0, 7],
            vlan: VfVlanConfig { id: 12, qos: 3, is_service_tag: true },
            min_tx_mbps: 1,
            max_tx_mbps: 100,
            checks_spoofing: true,
            is_trusted: true,
            link_state: LinkState::Enable,
        };
        let mac = MacAddr([0x02, 0, 0, 0, 0, 8]);
        Holder { vm: VmId::new(), tenant: tenant.parse().unwrap(), nic: "eth0".parse().unwrap(), mac, original }
    }
}
