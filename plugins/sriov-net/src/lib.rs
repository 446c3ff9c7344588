//! Chooses SR-IOV virtual functions for NICs. Settings, all optional:
//!
//! | key | meaning |
//! |---|---|
//! | `require-link` | `true` (default): a PF without carrier is out |
//! | `min-link-mbps` | a PF whose link is slower, or of unknown speed, is out |
//! | `numa-node` | PFs of this node first |
//! | `numa-strict` | `true`: PFs of other nodes are out (needs `numa-node`) |
//! | `spread` | `balance` (default): the PF with the largest free share first; `pack`: the smallest |
//! | `root-port` | `any` (default); `apart`: PFs first that share no root port, and so no bandwidth, with the tenant's VFs; `together`: those that do |
//! | `other-tenants` | `share` (default); `avoid`: PFs without other tenants first; `refuse`: PFs with any are out |
//! | `last-tenant` | `any` (default); `avoid`: VFs that another tenant had come last; `refuse`: they are out |
//! | `vlans` | VLANs that may be wished for, such as `100,200-210`; without it none |
//! | `vlan` | every NIC gets this VLAN; wishing for another is denied |
//! | `macs` | beginning of addresses that may be wished for, such as `02:aa`; without it any may |
//! | `max-tx-mbps` | highest transmit rate |
//! | `trust`, `spoof-check` | `true` or `false`; to grant (`trust` on, `spoof-check` off) is the operator's |
//!
//! A tenant's VFs on PFs without candidates are not known, and PFs without a root port count as sharing one. [`rules`]
//! decides, [`settings`] says by which rules; this file is what the host sees of it.

mod rules;
mod settings;

use ostler_policy::select_vf::{Ranking, SelectVf, SelectVfRequest, Verdict};
use ostler_policy::{Error, Policy, Reader, Source};
use rules::{Rules, own_roots};

impl Policy for Rules {
    const NAME: &'static str = "sriov-net";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &'static str = "ranks virtual functions by link, locality, load and who had them";
    const SETTINGS: &'static [&'static str] = &settings::KEYS;

    fn read(settings: &mut Reader<'_, impl Source>) -> Self {
        settings::read(settings)
    }
}

impl SelectVf for Rules {
    fn select_vf(&self, request: &SelectVfRequest) -> Result<Verdict, Error> {
        let settings = match self.settle(&request.wish) {
            Ok(settings) => settings,
            Err(refusal) => return Ok(refusal.into()),
        };
        let own_roots = own_roots(&request.pfs);
        let ranking = request.rank(|row| Ok(self.judge(row)? + self.weigh_root(row.pf, &own_roots)));
        Ok(Verdict::Rank(Ranking { settings, ..ranking }))
    }
}

ostler_policy::export!(Rules: select_vf);

#[cfg(test)]
mod tests {
    use super::*;
    use ostler_policy::select_vf::{LastTenant, Mark, Pf, VfSetting};
    use ostler_policy::testing;

    #[test]
    fn ranks_each_candidate_and_sets_what_the_settings_say() {
        let rules: Rules = testing::read([("max-tx-mbps", "100"), ("last-tenant", "refuse")]).unwrap();
        let pfs = vec![Pf { free_vfs: 4, ..testing::pf("eth0") }, Pf { link_mbps: None, ..testing::pf("eth1") }];
        let candidates = [(0, 0, LastTenant::Same), (0, 1, LastTenant::Other), (1, 0, LastTenant::Nobody)];
        let Ok(Verdict::Rank(ranking)) = rules.select_vf(&testing::select_vf(pfs, &candidates)) else { panic!() };
        assert_eq!(ranking.marks, [Mark::Score(500), Mark::Reject(0), Mark::Reject(1)]);
        let codes: Vec<_> = ranking.reasons.iter().map(|reason| reason.code.as_str()).collect();
        assert_eq!(codes, ["tenant.last-other", "link.down"]);
        assert_eq!(ranking.settings, [VfSetting::MaxTxMbps(100)]);
    }

    #[test]
    fn a_second_vf_is_kept_apart_from_the_first_or_beside_it() {
        let below = |root: &str, own_vfs| Pf { root: Some(root.into()), own_vfs, ..testing::pf(root) };
        let pfs = vec![below("0000:00:01.0", 0), below("0000:00:01.0", 1), below("0000:00:02.0", 0)];
        let request = testing::select_vf(pfs, &[0, 1, 2].map(|pf| (pf, 0, LastTenant::Nobody)));
        let first = |root_port| {
            let rules: Rules = testing::read([("root-port", root_port)]).unwrap();
            let Ok(Verdict::Rank(ranking)) = rules.select_vf(&request) else { panic!() };
            ranking.marks.iter().map(|mark| matches!(mark, Mark::Score(5_000..))).collect::<Vec<_>>()
        };
        assert_eq!(first("apart"), [false, false, true]);
        assert_eq!(first("together"), [true, true, false]);
        assert_eq!(first("any"), [false; 3]);
    }

    #[test]
    fn a_wish_that_is_not_allowed_denies_the_nic() {
        let mut request = testing::select_vf(vec![testing::pf("eth0")], &[(0, 0, LastTenant::Nobody)]);
        request.wish.vlan = Some(7);
        let verdict = Rules::default().select_vf(&request).unwrap();
        assert!(matches!(verdict, Verdict::Deny(denial) if denial.code == "vlan.not-allowed"));
    }
}
