//! Which NVMe namespace, or controller, does a device get? `wit/select-nvme.wit`. Key types: [`SelectNvme`], [`Row`].

use crate::{Error, Policy, Reasons, Refusal};

pub use crate::host::select_nvme::exports::ostler::policy::select_nvme_hook::{
    Controller, LastTenant, Mark, NvmeTable, NvmeWish, Ranking, SelectNvmeRequest, Verdict,
};

/// A plugin with the hook `select-nvme`.
pub trait SelectNvme: Policy {
    /// Decides. An error never means yes: the host denies.
    fn select_nvme(&self, request: &SelectNvmeRequest) -> Result<Verdict, Error>;
}

/// A candidate: one row of the table, with its controller.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The controller that it is on.
    pub controller: &'a Controller,
    /// Id of the namespace in its subsystem; 0 for the whole controller.
    pub nsid: u32,
    /// Bytes that the guest would see.
    pub size_bytes: u64,
    /// Bytes of a logical block; 0 for the whole controller.
    pub block_bytes: u32,
    /// Who had it before. It was erased since.
    pub last_tenant: LastTenant,
}

impl SelectNvmeRequest {
    /// The candidates, in the host's order. Nothing is copied.
    ///
    /// # Panics
    ///
    /// If a row names a controller that is not there, which the host never does: a trap, and a denial.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        let NvmeTable { controller, nsid, size_bytes, block_bytes, last_tenant } = &self.candidates;
        let rows = controller.iter().zip(nsid).zip(size_bytes).zip(block_bytes).zip(last_tenant);
        rows.map(|((((controller, nsid), size_bytes), block_bytes), last_tenant)| Row {
            controller: &self.controllers[usize::from(*controller)],
            nsid: *nsid,
            size_bytes: *size_bytes,
            block_bytes: *block_bytes,
            last_tenant: *last_tenant,
        })
    }

    /// What `judge` makes of each candidate: a score, or why not.
    pub fn rank(&self, mut judge: impl FnMut(Row<'_>) -> Result<i32, Refusal>) -> Ranking {
        let mut reasons = Reasons::default();
        let marks = self.rows().map(|row| match judge(row) {
            Ok(score) => Mark::Score(score),
            Err(refusal) => Mark::Reject(reasons.number(refusal)),
        });
        Ranking { marks: marks.collect(), reasons: reasons.into_list() }
    }
}

impl From<Refusal> for Verdict {
    fn from(refusal: Refusal) -> Self {
        Self::Deny(refusal.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn rows_are_the_columns_with_their_controllers() {
        let controllers = vec![testing::controller("S1"), testing::controller("S2")];
        let request = testing::select_nvme(NvmeWish::Namespace(1), controllers, &[(1, 3, 64 << 20), (0, 4, 128 << 20)]);
        let rows: Vec<_> =
            request.rows().map(|row| (row.controller.serial.as_str(), row.nsid, row.size_bytes)).collect();
        assert_eq!(rows, [("S2", 3, 64 << 20), ("S1", 4, 128 << 20)]);
        let ranking = request.rank(|row| Ok(i32::try_from(row.nsid).unwrap()));
        assert_eq!(ranking.marks, [Mark::Score(3), Mark::Score(4)]);
    }
}
