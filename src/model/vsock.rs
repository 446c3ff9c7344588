//! Sockets between a guest and programs of the host. Key type: [`VsockSpec`].

use super::{DeviceId, SpecError};

/// Programs of the host that a VM's socket serves at once, whatever they wait for; others wait to be let in.
pub const MAX_VSOCK_CONNECTIONS: u32 = 2048;

/// Context ids below are the hypervisor's, the loopback's and the host's; all ones means any (VIRTIO 1.3 §5.10.4).
const FIRST_CID: u32 = 3;
/// Id of the device.
const ID: &str = "vsock";

/// A virtio socket device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockSpec {
    id: DeviceId,
    cid: u32,
}

impl VsockSpec {
    /// The guest's context id: 3 to 2^32 - 2. It need not differ from other VMs': a guest reaches the host alone.
    pub fn new(cid: u32) -> Result<Self, SpecError> {
        if !(FIRST_CID..u32::MAX).contains(&cid) {
            let reason = format!("{cid} is no guest's context id: {FIRST_CID} to {}", u32::MAX - 1);
            return Err(SpecError::new("spec.vsock.cid", reason));
        }
        let id = ID.parse().unwrap_or_else(|_| unreachable!("a DNS label"));
        Ok(Self { id, cid })
    }

    /// The device's name, always the same: a VM has one.
    pub fn id(&self) -> &DeviceId {
        &self.id
    }

    /// The guest's context id.
    pub fn cid(&self) -> u32 {
        self.cid
    }
}

impl Default for VsockSpec {
    fn default() -> Self {
        Self::new(FIRST_CID).unwrap_or_else(|_| unreachable!("within the range"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_ids_of_others_are_refused() {
        for cid in [0, 1, 2, u32::MAX] {
            assert_eq!(VsockSpec::new(cid).unwrap_err().field, "spec.vsock.cid");
        }
        assert_eq!((VsockSpec::default().cid(), VsockSpec::new(u32::MAX - 1).unwrap().cid()), (3, u32::MAX - 1));
    }
}
