//! Function-level resets through sysfs (PCIe 6.0 §6.6.2; linux/Documentation/ABI/testing/sysfs-bus-pci, `reset` and
//! `reset_method`). Key function: [`reset`].

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::HostdevError;
use crate::model::Bdf;

/// Attempts at a reset that the kernel cannot do at the moment, and the time between them.
const ATTEMPTS: u32 = 10;
const STEP: Duration = Duration::from_millis(100);

/// What is told of it.
pub(super) const RESETTING: &str = "resetting the device";

/// Resets the function whose directory is `dir`. The kernel waits until it answers again, or says that it does not.
pub(super) fn reset(dir: &Path, device: Bdf) -> Result<(), HostdevError> {
    // Empty when no method works (or an operator switched all of them off).
    let methods = fs::read_to_string(dir.join("reset_method")).unwrap_or_default();
    if methods.split_whitespace().next().is_none() {
        return Err(HostdevError::NoReset { device });
    }
    let mut attempt = 1;
    loop {
        let written = fs::OpenOptions::new().write(true).open(dir.join("reset")).and_then(|mut file| {
            use io::Write;
            file.write_all(b"1")
        });
        match written {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && attempt < ATTEMPTS => {
                attempt += 1;
                std::thread::sleep(STEP);
            }
            Err(source) => return Err(HostdevError::Sysfs { what: "do the reset", device, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_for_a_reset_only_where_the_kernel_knows_how() {
        let dir = tempfile::tempdir().unwrap();
        let device = Bdf::new(0, 1, 16, 0).unwrap();
        assert!(matches!(reset(dir.path(), device), Err(HostdevError::NoReset { .. })));
        fs::write(dir.path().join("reset_method"), "flr bus\n").unwrap();
        assert!(matches!(reset(dir.path(), device), Err(HostdevError::Sysfs { .. })));
        fs::write(dir.path().join("reset"), "").unwrap();
        reset(dir.path(), device).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("reset")).unwrap(), "1");
        fs::write(dir.path().join("reset_method"), "\n").unwrap();
        assert!(matches!(reset(dir.path(), device), Err(HostdevError::NoReset { .. })));
    }
}
