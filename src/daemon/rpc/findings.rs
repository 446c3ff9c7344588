//! Findings of a comparison of store and host as the API shows them, and as the audit log has them.

use tonic::Status;

use super::audit::{Audit, Change};
use crate::api::v1;
use crate::api::v1::host_finding::{Kind, State};
use crate::daemon::service::{Finding, FindingKind, FindingState, Identity};

/// Findings of one answer.
const MAX_FINDINGS: usize = 1000;

/// As many as an answer holds, and how many more there are.
pub(super) fn told(found: &[Finding]) -> (Vec<v1::HostFinding>, u32) {
    let told = found.iter().take(MAX_FINDINGS).map(finding).collect();
    (told, u32::try_from(found.len().saturating_sub(MAX_FINDINGS)).unwrap_or(u32::MAX))
}

/// A line for each thing that was repaired, or not.
pub(super) fn audit(audit: &Audit, caller: &Identity, found: &[Finding]) {
    for finding in found {
        let failed = match &finding.state {
            FindingState::Repairable | FindingState::NeedsOperator => continue,
            FindingState::Repaired => None,
            FindingState::NotRepaired(cause) => Some(Status::internal(cause.clone())),
        };
        let change = Change::new(caller, "RepairHost", &finding.object);
        audit.record(&change, failed.as_ref().map_or(Ok(()), Err));
    }
}

fn finding(finding: &Finding) -> v1::HostFinding {
    let (state, failure) = match &finding.state {
        FindingState::Repairable => (State::Repairable, ""),
        FindingState::NeedsOperator => (State::NeedsOperator, ""),
        FindingState::Repaired => (State::Repaired, ""),
        FindingState::NotRepaired(cause) => (State::NotRepaired, cause.as_str()),
    };
    v1::HostFinding {
        kind: kind(finding.kind).into(),
        object: finding.object.clone(),
        detail: finding.detail.clone(),
        remedy: finding.remedy(),
        state: state.into(),
        failure: failure.to_owned(),
    }
}

fn kind(kind: FindingKind) -> Kind {
    match kind {
        FindingKind::ProcessOrphaned => Kind::ProcessOrphaned,
        FindingKind::ProcessLost => Kind::ProcessLost,
        FindingKind::ProcessSilent => Kind::ProcessSilent,
        FindingKind::TaskLost => Kind::TaskLost,
        FindingKind::TapOrphaned => Kind::TapOrphaned,
        FindingKind::CgroupOrphaned => Kind::CgroupOrphaned,
        FindingKind::RunDirectoryOrphaned => Kind::RunDirectoryOrphaned,
        FindingKind::StateDirectoryOrphaned => Kind::StateDirectoryOrphaned,
        FindingKind::VmIncomplete => Kind::VmIncomplete,
        FindingKind::VmUnconfined => Kind::VmUnconfined,
        FindingKind::LeaseStranded => Kind::LeaseStranded,
        FindingKind::DeviceQuarantined => Kind::DeviceQuarantined,
        FindingKind::BindingUnexplained => Kind::BindingUnexplained,
        FindingKind::DeviceChanged => Kind::DeviceChanged,
        FindingKind::HeldTwice => Kind::HeldTwice,
        FindingKind::RecordUnreadable => Kind::RecordUnreadable,
        FindingKind::RecordUnwritten => Kind::RecordUnwritten,
        FindingKind::ImageUnusable => Kind::ImageUnusable,
        FindingKind::FileStale => Kind::FileStale,
        FindingKind::NotLookedAt => Kind::NotLookedAt,
    }
}
