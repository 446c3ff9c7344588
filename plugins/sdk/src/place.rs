//! On which NUMA node does a VM run? `wit/place.wit`. Key types: [`Place`], [`Row`].

use crate::{Error, Policy, Reasons, Refusal};

pub use crate::host::place::exports::ostler::policy::place_hook::{
    Mark, NodeTable, Pages, PlaceRequest, Ranking, Verdict,
};

/// A plugin with the hook `place`.
pub trait Place: Policy {
    /// Decides. An error never means yes: the host denies.
    fn place(&self, request: &PlaceRequest) -> Result<Verdict, Error>;
}

/// A candidate: one row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Number of the node.
    pub node: u32,
    /// Its CPUs.
    pub cpus: u32,
    /// All its memory, in MiB.
    pub memory_mib: u64,
    /// Memory that is free now, or would be if the kernel dropped what it keeps of files, in MiB.
    pub available_mib: u64,
    /// Reserved pages of 2 MiB that are free.
    pub two_mib_pages: u64,
    /// Reserved pages of 1 GiB that are free.
    pub one_gib_pages: u64,
    /// VMs there, of whichever tenant.
    pub vms: u32,
    /// Those of the asking tenant.
    pub own_vms: u32,
    /// vCPUs of the VMs there.
    pub placed_vcpus: u32,
    /// Memory of the VMs there, touched or not, in MiB.
    pub placed_mib: u64,
    /// Devices of the host that this VM has been given and that are near.
    pub own_devices: u32,
    /// Virtual functions near it that nobody has.
    pub free_vfs: u32,
}

impl PlaceRequest {
    /// The candidates, in the host's order.
    ///
    /// # Panics
    ///
    /// If a column is shorter than the first, which the host never makes: a trap, and a denial.
    pub fn rows(&self) -> impl Iterator<Item = Row> {
        let table = &self.candidates;
        (0..table.node.len()).map(|at| Row {
            node: table.node[at],
            cpus: table.cpus[at],
            memory_mib: table.memory_mib[at],
            available_mib: table.available_mib[at],
            two_mib_pages: table.two_mib_pages[at],
            one_gib_pages: table.one_gib_pages[at],
            vms: table.vms[at],
            own_vms: table.own_vms[at],
            placed_vcpus: table.placed_vcpus[at],
            placed_mib: table.placed_mib[at],
            own_devices: table.own_devices[at],
            free_vfs: table.free_vfs[at],
        })
    }

    /// What `judge` makes of each candidate: a score, or why not.
    pub fn rank(&self, mut judge: impl FnMut(Row) -> Result<i32, Refusal>) -> Ranking {
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
    use crate::{refuse, testing};

    #[test]
    fn rows_are_the_columns() {
        let rows = [testing::node(0), Row { cpus: 8, placed_mib: 7, ..testing::node(1) }];
        let request = testing::place(&rows);
        assert_eq!(request.rows().collect::<Vec<_>>(), rows);
        let ranking = request.rank(|row| match row.node {
            0 => Err(refuse("node.first", "not the first")),
            node => Ok(i32::try_from(node).unwrap()),
        });
        assert_eq!(ranking.marks, [Mark::Reject(0), Mark::Score(1)]);
    }
}
