//! What store and host do not agree about. Key types: [`Finding`], [`FindingKind`], [`Remedy`].

use std::fmt;
use std::path::PathBuf;

use crate::daemon::record::{NvmeKey, VfKey};
use crate::daemon::supervisor::DirKind;
use crate::model::{Bdf, VmId};
use crate::sys::process::Identity;

/// What is wrong. `proto/ostler/v1/host.proto` says more of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FindingKind {
    /// A process of ours that no record knows.
    ProcessOrphaned,
    /// A VM's process is gone, and its task does not know.
    ProcessLost,
    /// A VM's process does not listen.
    ProcessSilent,
    /// A VM has no task.
    TaskLost,
    /// A tap that no running VM has.
    TapOrphaned,
    /// A cgroup that no running VM has.
    CgroupOrphaned,
    /// A directory of sockets that no running VM has.
    RunDirectoryOrphaned,
    /// A directory of consoles that no VM has.
    StateDirectoryOrphaned,
    /// A running VM lacks something of the host.
    VmIncomplete,
    /// A running VM is not confined as it should be.
    VmUnconfined,
    /// A lease whose VM has no use of it.
    LeaseStranded,
    /// A device that could not be cleaned.
    DeviceQuarantined,
    /// A function in vfio-pci without a lease.
    BindingUnexplained,
    /// A running VM's function is not as its lease says.
    DeviceChanged,
    /// Two VMs have what only one may.
    HeldTwice,
    /// A record that is none.
    RecordUnreadable,
    /// The file says something else than the daemon.
    RecordUnwritten,
    /// An image that cannot be opened.
    ImageUnusable,
    /// A file that was left behind.
    FileStale,
    /// Something could not be looked at.
    NotLookedAt,
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Kill a process of a VM that does not exist.
    Kill(VmId, Identity),
    /// Remove the cgroup of a VM that does not exist.
    RemoveCgroup(VmId),
    /// Remove a directory of a VM that does not exist.
    RemoveDir(VmId, DirKind),
    /// Have the task of a VM that is off remove what is left of a run.
    Tidy(VmId),
    /// Remove a tap that nobody has open.
    RemoveTap(String),
    /// Clean a function and free its lease, which has this generation.
    CleanVf(VfKey, u64),
    /// The same of NVMe.
    CleanNvme(NvmeKey, u64),
    /// Take a function that is free from vfio-pci.
    Unbind(VfKey, Bdf),
    /// Remove a file.
    RemoveFile(PathBuf),
    /// Nothing: a person is to do this.
    Person(String),
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(..) => f.write_str("kill it"),
            Self::RemoveCgroup(_) => f.write_str("kill what runs in it, and remove it"),
            Self::RemoveDir(..) | Self::RemoveTap(_) | Self::RemoveFile(_) => f.write_str("remove it"),
            Self::Tidy(_) => f.write_str("remove what is left of the VM's last run"),
            Self::CleanVf(..) => f.write_str("reset it, give it its settings back and free it"),
            Self::CleanNvme(..) => f.write_str("reset or erase it, and free it"),
            Self::Unbind(..) => f.write_str("reset it and take it from vfio-pci, if no program has it open"),
            Self::Person(what) => f.write_str(what),
        }
    }
}

/// What came of a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FindingState {
    /// A repair would do away with it.
    Repairable,
    /// Only a person can.
    NeedsOperator,
    /// It is not there any more.
    Repaired,
    /// It is, because.
    NotRepaired(String),
}

/// Something that store and host do not agree about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// With what.
    pub object: String,
    /// In words.
    pub detail: String,
    pub(super) remedy: Remedy,
    /// What came of it.
    pub state: FindingState,
}

impl Finding {
    pub(super) fn new(kind: FindingKind, object: String, detail: impl Into<String>, remedy: Remedy) -> Self {
        let state = match remedy {
            Remedy::Person(_) => FindingState::NeedsOperator,
            _ => FindingState::Repairable,
        };
        Self { kind, object, detail: detail.into(), remedy, state }
    }

    /// One that only a person can do something about.
    pub(super) fn for_person(kind: FindingKind, object: String, detail: impl Into<String>, advice: &str) -> Self {
        Self::new(kind, object, detail, Remedy::Person(advice.to_owned()))
    }

    /// What a repair does, or a person is to do.
    pub fn remedy(&self) -> String {
        self.remedy.to_string()
    }

    /// Whether both are about the same fault.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.kind == other.kind && self.object == other.object
    }
}

/// What of the first look the second one has seen too, in the second one's words: the rest was under way.
pub(super) fn lasting(first: &[Finding], second: Vec<Finding>) -> Vec<Finding> {
    let mut lasting: Vec<_> = second.into_iter().filter(|finding| first.iter().any(|seen| seen.is(finding))).collect();
    lasting.sort_by(|a, b| (a.kind, &a.object).cmp(&(b.kind, &b.object)));
    lasting.dedup_by(|a, b| a.is(b));
    lasting
}
