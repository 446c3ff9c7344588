//! Memory that a guest can do without. Key type: [`BalloonSpec`].

use super::{DeviceId, SpecError};

/// Least that a guest is left with, in MiB: as little as any VM has.
const MIN_KEEP_MIB: u64 = 64;
/// Id of the device.
const ID: &str = "balloon";

/// A balloon device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalloonSpec {
    id: DeviceId,
    keep_mib: Option<u64>,
}

impl BalloonSpec {
    /// Of `memory_mib` the guest keeps `keep_mib`, from [`MIN_KEEP_MIB`] on; `None`: all. `field` names it in the error.
    pub fn new(field: &str, keep_mib: Option<u64>, memory_mib: u64) -> Result<Self, SpecError> {
        let range = MIN_KEEP_MIB..=memory_mib;
        if let Some(keep) = keep_mib.filter(|keep| !range.contains(keep)) {
            let reason = format!("{keep} MiB to keep of {memory_mib}: from {MIN_KEEP_MIB} on, or 0 for all");
            return Err(SpecError::new(field, reason));
        }
        let id = ID.parse().unwrap_or_else(|_| unreachable!("a DNS label"));
        Ok(Self { id, keep_mib })
    }

    /// The device's name, always the same: a VM has one.
    pub fn id(&self) -> &DeviceId {
        &self.id
    }

    /// What the guest shall keep, in MiB; `None`: all.
    pub fn keep_mib(&self) -> Option<u64> {
        self.keep_mib
    }

    /// The same for a VM of less memory: what was to be kept, or all.
    pub(super) fn within(self, memory_mib: u64) -> Self {
        Self { keep_mib: self.keep_mib.filter(|&keep| keep <= memory_mib), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_keeps_something_and_no_more_than_it_has() {
        let new = |keep| BalloonSpec::new("spec.memory.balloon.keep_mib", keep, 256);
        for keep in [0, 63, 257, u64::MAX] {
            assert_eq!(new(Some(keep)).unwrap_err().field, "spec.memory.balloon.keep_mib");
        }
        for keep in [None, Some(64), Some(256)] {
            assert_eq!(new(keep).unwrap().keep_mib(), keep);
        }
        let balloon = new(Some(128)).unwrap();
        assert_eq!((balloon.clone().within(128).keep_mib(), balloon.within(100).keep_mib()), (Some(128), None));
    }
}
