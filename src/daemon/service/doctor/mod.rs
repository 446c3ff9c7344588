//! Compares what the store says with what the host shows, and does away with what is nobody's. Key functions:
//! [`Node::examine_host`], [`Node::repair_host`].
//!
//! ```text
//!   look: records · tasks · host · records ──▶ compare (pure) ──▶ what two looks have seen ──▶ findings
//!                                                                   repair: each looked at once more ──▶ look again
//! ```
//! It never acts on what belongs to a VM: who runs, and who has something under way, is not judged by it at all.

mod compare;
mod finding;
mod look;
mod repair;

use std::time::Duration;

use super::access::require_operator;
use super::{Node, Principal, ServiceError, Terms};
use crate::daemon::operation::Step;
use compare::compare;
use finding::lasting;
pub use finding::{Finding, FindingKind, FindingState};

/// Between two looks: what was under way at the first one has gone on by the second.
const BETWEEN_LOOKS: Duration = Duration::from_millis(300);

impl Node {
    /// Everything that store and host do not agree about. For operators.
    pub async fn examine_host(&self, principal: &Principal) -> Result<Vec<Finding>, ServiceError> {
        require_operator(principal)?;
        Ok(self.findings().await)
    }

    /// The same, after what can be repaired was. For operators.
    pub async fn repair_host(
        &self,
        principal: &Principal,
        terms: &Terms<Vec<Finding>>,
    ) -> Result<Vec<Finding>, ServiceError> {
        require_operator(principal)?;
        if terms.validate_only {
            return Ok(self.findings().await);
        }
        let operation = self.begin_on_host(terms);
        operation.tell(Step::new("waiting for another repair of the host"));
        // One at a time: what one repairs, another would find changed.
        let _turn = self.repairs.lock().await;
        operation.tell(Step::new("looking for what store and host do not agree about"));
        let mut findings = self.findings().await;
        if !findings.iter().any(|finding| finding.state == FindingState::Repairable) {
            return Ok(findings);
        }
        let total = count(findings.len());
        for (done, finding) in findings.iter_mut().enumerate() {
            operation.tell(Step::of("repairing", count(done), total, "findings"));
            self.repair(finding, principal).await;
        }
        operation.tell(Step::of("looking again", total, total, "findings"));
        // What can be seen counts: a tap goes with its process.
        let now = self.findings().await;
        for finding in &mut findings {
            match now.iter().any(|other| other.is(finding)) {
                false => finding.state = FindingState::Repaired,
                true if finding.state == FindingState::Repaired => {
                    finding.state = FindingState::NotRepaired("it is still there".to_owned());
                }
                true => {}
            }
        }
        Ok(findings)
    }

    async fn findings(&self) -> Vec<Finding> {
        let first = compare(&self.look().await);
        tokio::time::sleep(BETWEEN_LOOKS).await;
        let second = compare(&self.look().await);
        lasting(&first, second)
    }
}

fn count(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
