//! The decision itself: [`Rules`] settle what is wished for and judge each candidate.

use ostler_policy::preferences::{NumaRule, Preference, RootPort, Spread};
use ostler_policy::select_vf::{LastTenant, Pf, Row, VfSetting, VfWish};
use ostler_policy::{Refusal, refuse};

/// Root ports below which the tenant has VFs.
pub(crate) fn own_roots(pfs: &[Pf]) -> Vec<Option<&str>> {
    pfs.iter().filter(|pf| pf.own_vfs > 0).map(|pf| pf.root.as_deref()).collect()
}

/// The settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    pub requires_link: bool,
    pub min_link_mbps: Option<u32>,
    pub numa: Option<NumaRule>,
    pub spread: Spread,
    pub root_port: RootPort,
    pub other_tenants: Preference,
    pub last_tenant: Preference,
    /// Inclusive ranges of VLANs that may be wished for.
    pub vlans: Vec<(u16, u16)>,
    pub vlan: Option<u16>,
    /// Beginning of addresses that may be wished for, in lower case.
    pub macs: Option<String>,
    pub max_tx_mbps: Option<u32>,
    pub trust: Option<bool>,
    pub spoof_check: Option<bool>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            requires_link: true,
            min_link_mbps: None,
            numa: None,
            spread: Spread::default(),
            root_port: RootPort::default(),
            other_tenants: Preference::default(),
            last_tenant: Preference::default(),
            vlans: Vec::new(),
            vlan: None,
            macs: None,
            max_tx_mbps: None,
            trust: None,
            spoof_check: None,
        }
    }
}

/// Each preference outweighs all below it together: the free share, in permille, and the tenant's own VFs.
const NUMA_WEIGHT: i32 = 40_000;
const OTHERS_WEIGHT: i32 = 20_000;
const LAST_WEIGHT: i32 = 10_000;
const ROOT_WEIGHT: i32 = 5_000;
/// Own VFs that count; each is worth ten permille.
const MAX_OWN_VFS: u32 = 256;
const OWN_WEIGHT: i32 = 10;

impl Rules {
    /// What the VF is set to, whichever it will be; or why the wish is not granted.
    pub(crate) fn settle(&self, wish: &VfWish) -> Result<Vec<VfSetting>, Refusal> {
        if let (Some(mac), Some(prefix)) = (&wish.mac, &self.macs)
            && !mac.starts_with(prefix.as_str())
        {
            let message = format!("address {mac} is wished for, only those that begin with {prefix} are allowed");
            return Err(refuse("mac.not-allowed", message));
        }
        let vlan = match (wish.vlan, self.vlan) {
            (Some(wish), Some(fixed)) if wish != fixed => {
                let message = format!("VLAN {wish} is wished for, every NIC gets VLAN {fixed}");
                return Err(refuse("vlan.not-allowed", message));
            }
            (_, Some(fixed)) => Some(fixed),
            (Some(wish), None) if !self.vlans.iter().any(|(first, last)| (*first..=*last).contains(&wish)) => {
                let message = match &self.vlans[..] {
                    [] => format!("VLAN {wish} is wished for, none is allowed; the setting vlans allows some"),
                    _ => format!("VLAN {wish} is wished for, and it is not among those that are allowed"),
                };
                return Err(refuse("vlan.not-allowed", message));
            }
            (wish, None) => wish,
        };
        let rate = self.max_tx_mbps.map(VfSetting::MaxTxMbps);
        let trust = self.trust.map(VfSetting::Trust);
        let spoof_check = self.spoof_check.map(VfSetting::SpoofCheck);
        Ok(vlan.map(VfSetting::Vlan).into_iter().chain(rate).chain(trust).chain(spoof_check).collect())
    }

    /// A candidate's score, or why it is out.
    pub(crate) fn judge(&self, row: Row<'_>) -> Result<i32, Refusal> {
        let (pf, name) = (row.pf, &row.pf.name);
        if self.requires_link && pf.link_mbps.is_none() {
            return Err(refuse("link.down", format!("PF {name} has no carrier")));
        }
        if let Some(least) = self.min_link_mbps.filter(|least| pf.link_mbps.unwrap_or(0) < *least) {
            let speed = pf.link_mbps.unwrap_or(0);
            let message = format!("PF {name} has a link of {speed} Mbit/s, at least {least} are required");
            return Err(refuse("link.slow", message));
        }
        if let Some(rule) = self.numa.filter(|rule| rule.forbids(pf.numa_node)) {
            return Err(refuse("numa.remote", format!("PF {name} is not on NUMA node {}", rule.node)));
        }
        if self.other_tenants == Preference::Refuse && pf.other_tenants > 0 {
            return Err(refuse("tenant.shared-pf", format!("PF {name} serves {} other tenants", pf.other_tenants)));
        }
        if self.last_tenant == Preference::Refuse && row.last_tenant == LastTenant::Other {
            return Err(refuse("tenant.last-other", format!("another tenant had this VF of PF {name}")));
        }
        Ok(self.score(row))
    }

    /// What a PF's root port is worth beside that, where the tenant has VFs below `own_roots`.
    pub(crate) fn weigh_root(&self, pf: &Pf, own_roots: &[Option<&str>]) -> i32 {
        if self.root_port.prefers(pf.root.as_deref(), own_roots) { ROOT_WEIGHT } else { 0 }
    }

    fn score(&self, row: Row<'_>) -> i32 {
        let pf = row.pf;
        let when = |is_good: bool, weight: i32| if is_good { weight } else { 0 };
        let is_near = self.numa.is_some_and(|rule| rule.is_near(pf.numa_node));
        let is_alone = self.other_tenants == Preference::Avoid && pf.other_tenants == 0;
        let is_clean = self.last_tenant == Preference::Avoid && row.last_tenant != LastTenant::Other;
        let free = u64::from(pf.free_vfs.min(pf.total_vfs)) * 1000 / u64::from(pf.total_vfs.max(1));
        let free = i32::try_from(free).unwrap_or(1000);
        // At most 256, so that it cannot reach a preference's weight.
        let own = i32::try_from(pf.own_vfs.min(MAX_OWN_VFS)).unwrap_or(0) * OWN_WEIGHT;
        let load = match self.spread {
            // Two NICs of a tenant are better on two PFs.
            Spread::Balance => free - own,
            Spread::Pack => own - free,
        };
        when(is_near, NUMA_WEIGHT) + when(is_alone, OTHERS_WEIGHT) + when(is_clean, LAST_WEIGHT) + load
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Link 1000 Mbit/s, node 0, half of eight VFs free.
    const PF: Pf = Pf {
        address: String::new(),
        name: String::new(),
        numa_node: Some(0),
        root: None,
        link_mbps: Some(1000),
        total_vfs: 8,
        free_vfs: 4,
        own_vfs: 0,
        other_tenants: 0,
    };

    fn judge(rules: &Rules, pf: &Pf, was_anothers: bool) -> Result<i32, Refusal> {
        let last_tenant = if was_anothers { LastTenant::Other } else { LastTenant::Same };
        rules.judge(Row { pf, index: 0, last_tenant })
    }

    fn score(rules: &Rules, pf: &Pf, was_anothers: bool) -> i32 {
        judge(rules, pf, was_anothers).unwrap()
    }

    fn rejected(rules: &Rules, pf: &Pf, was_anothers: bool) -> &'static str {
        judge(rules, pf, was_anothers).err().map_or("", |refusal| refusal.code)
    }

    #[test]
    fn links_are_required_unless_told_otherwise() {
        let down = Pf { link_mbps: None, ..PF };
        assert_eq!(rejected(&Rules::default(), &down, false), "link.down");
        assert_eq!(rejected(&Rules::default(), &PF, false), "");
        let lax = Rules { requires_link: false, ..Rules::default() };
        assert_eq!(rejected(&lax, &down, false), "");
        let fast = Rules { min_link_mbps: Some(1001), ..lax };
        assert_eq!((rejected(&fast, &PF, false), rejected(&fast, &down, false)), ("link.slow", "link.slow"));
        assert_eq!(rejected(&fast, &Pf { link_mbps: Some(1001), ..PF }, false), "");
    }

    #[test]
    fn the_near_node_comes_first_or_alone() {
        let near = |is_strict| Rules { numa: Some(NumaRule { node: 1, is_strict }), ..Rules::default() };
        let (here, there) = (Pf { numa_node: Some(1), free_vfs: 1, ..PF }, Pf { free_vfs: 8, ..PF });
        assert!(score(&near(false), &here, false) > score(&near(false), &there, false));
        assert_eq!((rejected(&near(true), &here, false), rejected(&near(true), &there, false)), ("", "numa.remote"));
    }

    #[test]
    fn load_is_balanced_or_packed() {
        let (empty, full) = (Pf { free_vfs: 7, ..PF }, Pf { free_vfs: 1, ..PF });
        let balance = Rules::default();
        assert!(score(&balance, &empty, false) > score(&balance, &full, false));
        assert!(score(&balance, &PF, false) > score(&balance, &Pf { own_vfs: 1, ..PF }, false));
        let pack = Rules { spread: Spread::Pack, ..Rules::default() };
        assert!(score(&pack, &full, false) > score(&pack, &empty, false));
        // A PF that says nonsense breaks nothing.
        score(&balance, &Pf { total_vfs: 0, free_vfs: u32::MAX, own_vfs: u32::MAX, ..PF }, true);
    }

    #[test]
    fn other_tenants_and_earlier_ones_are_avoided_or_refused() {
        let shared = Pf { other_tenants: 1, free_vfs: 8, ..PF };
        let crowded = Pf { own_vfs: 300, free_vfs: 0, ..PF };
        let avoid = Rules { other_tenants: Preference::Avoid, last_tenant: Preference::Avoid, ..Rules::default() };
        assert!(score(&avoid, &crowded, true) > score(&avoid, &shared, false));
        assert!(score(&avoid, &crowded, false) > score(&avoid, &Pf { free_vfs: 8, ..PF }, true));
        let refuse = Rules { other_tenants: Preference::Refuse, last_tenant: Preference::Refuse, ..Rules::default() };
        assert_eq!(rejected(&refuse, &shared, false), "tenant.shared-pf");
        assert_eq!((rejected(&refuse, &PF, true), rejected(&refuse, &PF, false)), ("tenant.last-other", ""));
    }

    #[test]
    fn wishes_are_granted_within_the_rules() {
        let code = |rules: &Rules, mac: Option<&str>, vlan| {
            let wish = VfWish { mac: mac.map(str::to_owned), vlan };
            rules.settle(&wish).err().map_or("", |refusal| refusal.code)
        };
        let rules = Rules { vlans: vec![(100, 100), (200, 210)], macs: Some("02:aa".into()), ..Rules::default() };
        assert_eq!(code(&rules, Some("02:aa:00:00:00:01"), Some(205)), "");
        assert_eq!(code(&rules, Some("02:ab:00:00:00:01"), None), "mac.not-allowed");
        for vlan in [99, 101, 199, 211] {
            assert_eq!(code(&rules, None, Some(vlan)), "vlan.not-allowed", "{vlan}");
        }
        assert_eq!(code(&Rules::default(), Some("02:ab:00:00:00:01"), None), "");
        assert_eq!(code(&Rules::default(), None, Some(1)), "vlan.not-allowed");
        let fixed = Rules { vlan: Some(7), max_tx_mbps: Some(100), trust: Some(true), ..Rules::default() };
        assert_eq!((code(&fixed, None, Some(7)), code(&fixed, None, Some(8))), ("", "vlan.not-allowed"));
        let settings = vec![VfSetting::Vlan(7), VfSetting::MaxTxMbps(100), VfSetting::Trust(true)];
        assert_eq!(fixed.settle(&VfWish { mac: None, vlan: None }), Ok(settings));
    }
}
