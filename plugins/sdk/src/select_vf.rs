//! Which virtual function does a NIC get? `wit/select-vf.wit`. Key types: [`SelectVf`], [`Row`].

use crate::{Error, Policy, Reasons, Refusal};

pub use crate::host::select_vf::exports::ostler::policy::select_vf_hook::{
    LastTenant, Mark, Pf, Ranking, SelectVfRequest, Verdict, VfSetting, VfTable, VfWish,
};

/// A plugin with the hook `select-vf`.
pub trait SelectVf: Policy {
    /// Decides. An error never means yes: the host denies.
    fn select_vf(&self, request: &SelectVfRequest) -> Result<Verdict, Error>;
}

/// A candidate: one row of the table, with its PF.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The physical function that it is of.
    pub pf: &'a Pf,
    /// Its number on the PF, from 0.
    pub index: u16,
    /// Who had it before. It was reset since.
    pub last_tenant: LastTenant,
}

impl SelectVfRequest {
    /// The candidates, in the host's order. Nothing is copied.
    ///
    /// # Panics
    ///
    /// If a row names a PF that is not there, which the host never does: a trap, and a denial.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        let VfTable { pf, index, last_tenant } = &self.candidates;
        let rows = pf.iter().zip(index).zip(last_tenant);
        rows.map(|((pf, index), last_tenant)| Row {
            pf: &self.pfs[usize::from(*pf)],
            index: *index,
            last_tenant: *last_tenant,
        })
    }

    /// What `judge` makes of each candidate: a score, or why not. Settings are the caller's to add.
    pub fn rank(&self, mut judge: impl FnMut(Row<'_>) -> Result<i32, Refusal>) -> Ranking {
        let mut reasons = Reasons::default();
        let marks = self.rows().map(|row| match judge(row) {
            Ok(score) => Mark::Score(score),
            Err(refusal) => Mark::Reject(reasons.number(refusal)),
        });
        Ranking { marks: marks.collect(), reasons: reasons.into_list(), settings: Vec::new() }
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
    use crate::{refuse, testing};

    #[test]
    fn rows_are_the_columns_with_their_pfs() {
        let request = testing::select_vf(
            vec![testing::pf("eth0"), testing::pf("eth1")],
            &[(1, 0, LastTenant::Nobody), (0, 7, LastTenant::Other)],
        );
        let rows: Vec<_> = request.rows().map(|row| (row.pf.name.as_str(), row.index, row.last_tenant)).collect();
        assert_eq!(rows, [("eth1", 0, LastTenant::Nobody), ("eth0", 7, LastTenant::Other)]);
        assert!(std::ptr::eq(request.rows().next().unwrap().pf, &request.pfs[1]), "by reference");
    }

    #[test]
    fn a_ranking_has_a_mark_for_each_row_and_each_reason_once() {
        let rows: Vec<_> = (0..4).map(|index| (0, index, LastTenant::Nobody)).collect();
        let request = testing::select_vf(vec![testing::pf("eth0")], &rows);
        let ranking =
            request.rank(|row| if row.index % 2 == 0 { Ok(row.index.into()) } else { Err(refuse("odd", "no")) });
        assert_eq!(ranking.marks, [Mark::Score(0), Mark::Reject(0), Mark::Score(2), Mark::Reject(0)]);
        assert_eq!(ranking.reasons, [refuse("odd", "no").into()]);
    }
}
