//! Chooses NVMe namespaces, and whole controllers, for VMs. Settings, all optional:
//!
//! | key | meaning |
//! |---|---|
//! | `size-slack` | percent by which a namespace may be larger than asked for: 100 (default) is up to twice as large, 0 is exact |
//! | `max-mib` | asking for more than so many MiB is denied |
//! | `block-bytes` | namespaces with other logical blocks are out: 512, 4096, … |
//! | `max-wear` | controllers whose medium is worn by more than so many percent, or by nobody knows how much, are out |
//! | `spread` | `balance` (default): the controller with the largest free share first; `pack`: the smallest |
//! | `numa-node` | controllers of this node first |
//! | `numa-strict` | `true`: controllers of other nodes are out (needs `numa-node`) |
//! | `root-port` | `any` (default); `apart`: controllers first that share no root port, and so no bandwidth, with the tenant's namespaces; `together`: those that do |
//! | `other-tenants` | `share` (default); `avoid`: controllers without other tenants first; `refuse`: those with any are out |
//! | `last-tenant` | `any` (default); `avoid`: what another tenant had comes last; `refuse`: it is out |
//! | `whole` | serial numbers of controllers that may be given whole, such as `S1,S2`; without it none |
//!
//! Of what is left the namespace that fits best comes first. A tenant's namespaces on controllers without candidates are
//! not known, and controllers without a root port count as sharing one. [`rules`] decides, [`settings`] says by which
//! rules; this file is what the host sees of it.

mod rules;
mod settings;

use ostler_policy::select_nvme::{Row, SelectNvme, SelectNvmeRequest, Verdict};
use ostler_policy::{Error, Policy, Reader, Source};
use rules::{Rules, own_roots};

impl Policy for Rules {
    const NAME: &'static str = "nvme";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &'static str = "ranks NVMe namespaces by size, wear, locality, load and who had them";
    const SETTINGS: &'static [&'static str] = &settings::KEYS;

    fn read(settings: &mut Reader<'_, impl Source>) -> Self {
        settings::read(settings)
    }
}

impl SelectNvme for Rules {
    fn select_nvme(&self, request: &SelectNvmeRequest) -> Result<Verdict, Error> {
        Ok(match self.allow(request.wish) {
            Ok(()) => {
                let own_roots = own_roots(&request.controllers);
                let score =
                    |row: Row<'_>| Ok(self.judge(request.wish, row)? + self.weigh_root(row.controller, &own_roots));
                Verdict::Rank(request.rank(score))
            }
            Err(refusal) => refusal.into(),
        })
    }
}

ostler_policy::export!(Rules: select_nvme);

#[cfg(test)]
mod tests {
    use super::*;
    use ostler_policy::select_nvme::{Controller, Mark, NvmeWish};
    use ostler_policy::testing;

    #[test]
    fn ranks_what_fits_and_says_why_the_rest_is_out() {
        let rules: Rules = testing::read([("size-slack", "0")]).unwrap();
        let rows = [(0, 1, 64 << 20), (0, 2, 65 << 20)];
        let request = testing::select_nvme(NvmeWish::Namespace(64 << 20), vec![testing::controller("S1")], &rows);
        let Ok(Verdict::Rank(ranking)) = rules.select_nvme(&request) else { panic!() };
        assert!(matches!(ranking.marks[..], [Mark::Score(_), Mark::Reject(0)]), "{ranking:?}");
        assert_eq!(ranking.reasons[0].code, "size.no-fit");
        let whole = testing::select_nvme(NvmeWish::Controller, vec![testing::controller("S1")], &[(0, 0, 1 << 30)]);
        assert!(
            matches!(rules.select_nvme(&whole), Ok(Verdict::Deny(denial)) if denial.code == "controller.not-allowed")
        );
    }

    #[test]
    fn a_second_namespace_is_kept_apart_from_the_first_or_beside_it() {
        let below = |root: &str, own_namespaces| Controller {
            root: Some(root.into()),
            own_namespaces,
            ..testing::controller("S1")
        };
        let controllers = vec![below("0000:00:01.0", 0), below("0000:00:01.0", 1), below("0000:00:02.0", 0)];
        let rows = [0, 1, 2].map(|controller| (controller, 1, 64 << 20));
        let request = testing::select_nvme(NvmeWish::Namespace(64 << 20), controllers, &rows);
        let first = |root_port| {
            let rules: Rules = testing::read([("root-port", root_port)]).unwrap();
            let Ok(Verdict::Rank(ranking)) = rules.select_nvme(&request) else { panic!() };
            ranking.marks.iter().map(|mark| matches!(mark, Mark::Score(10_000..))).collect::<Vec<_>>()
        };
        assert_eq!(first("apart"), [false, false, true]);
        assert_eq!(first("together"), [true, true, false]);
        assert_eq!(first("any"), [false; 3]);
    }
}
