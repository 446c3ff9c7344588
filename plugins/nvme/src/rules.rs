//! The decision itself: [`Rules`] allow what is wished for and judge each candidate.

use ostler_policy::preferences::{NumaRule, Preference, RootPort, Spread};
use ostler_policy::select_nvme::{Controller, LastTenant, NvmeWish, Row};
use ostler_policy::{Refusal, refuse};

/// Root ports below which the tenant has namespaces.
pub(crate) fn own_roots(controllers: &[Controller]) -> Vec<Option<&str>> {
    controllers.iter().filter(|one| one.own_namespaces > 0).map(|one| one.root.as_deref()).collect()
}

/// The settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    pub slack_percent: u64,
    pub max_mib: Option<u64>,
    pub block_bytes: Option<u32>,
    pub max_wear: Option<u8>,
    pub spread: Spread,
    pub numa: Option<NumaRule>,
    pub root_port: RootPort,
    pub other_tenants: Preference,
    pub last_tenant: Preference,
    /// Serial numbers of controllers that may be given whole.
    pub whole: Vec<String>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            slack_percent: 100,
            max_mib: None,
            block_bytes: None,
            max_wear: None,
            spread: Spread::default(),
            numa: None,
            root_port: RootPort::default(),
            other_tenants: Preference::default(),
            last_tenant: Preference::default(),
            whole: Vec::new(),
        }
    }
}

/// Each preference outweighs all below it together: fit (0 to 4,000), free share in permille, wear (twice the percent).
const NUMA_WEIGHT: i32 = 80_000;
const OTHERS_WEIGHT: i32 = 40_000;
const LAST_WEIGHT: i32 = 20_000;
const ROOT_WEIGHT: i32 = 10_000;
/// A namespace loses one point for each permille that it is too large, until nothing is left.
const FIT_WEIGHT: i32 = 4_000;
const WEAR_WEIGHT: i32 = 2;
const MIB: u64 = 1 << 20;

impl Rules {
    /// Whether this may be wished for at all.
    pub(crate) fn allow(&self, wish: NvmeWish) -> Result<(), Refusal> {
        match (wish, self.max_mib) {
            (NvmeWish::Namespace(min_bytes), Some(most)) if min_bytes.div_ceil(MIB) > most => {
                let message = format!("{} MiB are asked for, at most {most} are allowed", min_bytes.div_ceil(MIB));
                Err(refuse("size.not-allowed", message))
            }
            (NvmeWish::Controller, _) if self.whole.is_empty() => {
                let message = "no controller may be given whole; the setting whole allows some";
                Err(refuse("controller.not-allowed", message))
            }
            _ => Ok(()),
        }
    }

    /// A candidate's score, or why it is out.
    pub(crate) fn judge(&self, wish: NvmeWish, row: Row<'_>) -> Result<i32, Refusal> {
        let Row { controller, nsid, .. } = row;
        let address = &controller.address;
        self.check_form(wish, row)?;
        if let Some(most) = self.max_wear
            && controller.wear_percent.is_none_or(|wear| wear > most)
        {
            let wear = controller.wear_percent.map_or_else(|| "an unknown part".to_owned(), |wear| format!("{wear} %"));
            return Err(refuse("wear.worn", format!("{address} is worn by {wear}, at most {most} % are allowed")));
        }
        if let Some(rule) = self.numa.filter(|rule| rule.forbids(controller.numa_node)) {
            return Err(refuse("numa.remote", format!("{address} is not on NUMA node {}", rule.node)));
        }
        if self.other_tenants == Preference::Refuse && controller.other_tenants > 0 {
            let message = format!("{address} serves {} other tenants", controller.other_tenants);
            return Err(refuse("tenant.shared", message));
        }
        if self.last_tenant == Preference::Refuse && row.last_tenant == LastTenant::Other {
            let message = format!("another tenant had namespace {nsid} of {address}");
            return Err(refuse("tenant.last-other", message));
        }
        Ok(self.score(wish, row))
    }

    /// Whether it has the size and the blocks, or may be given whole.
    fn check_form(&self, wish: NvmeWish, row: Row<'_>) -> Result<(), Refusal> {
        let Row { controller, nsid, size_bytes, block_bytes, .. } = row;
        let address = &controller.address;
        match wish {
            NvmeWish::Namespace(min_bytes) => {
                // In 128 bits nothing wraps.
                let most = u128::from(min_bytes) * u128::from(100 + self.slack_percent) / 100;
                if size_bytes < min_bytes || u128::from(size_bytes) > most {
                    let (has, asked) = (size_bytes / MIB, min_bytes.div_ceil(MIB));
                    let slack = self.slack_percent;
                    let message =
                        format!("namespace {nsid} of {address} has {has} MiB, {asked} and {slack} % more are allowed");
                    return Err(refuse("size.no-fit", message));
                }
                if self.block_bytes.is_some_and(|wanted| wanted != block_bytes) {
                    let message = format!("namespace {nsid} of {address} has blocks of {block_bytes} bytes");
                    return Err(refuse("format.block", message));
                }
                Ok(())
            }
            NvmeWish::Controller if !self.whole.contains(&controller.serial) => {
                Err(refuse("controller.not-allowed", format!("{address} may not be given whole")))
            }
            NvmeWish::Controller => Ok(()),
        }
    }

    /// What a controller's root port is worth beside that, where the tenant has namespaces below `own_roots`.
    pub(crate) fn weigh_root(&self, controller: &Controller, own_roots: &[Option<&str>]) -> i32 {
        if self.root_port.prefers(controller.root.as_deref(), own_roots) { ROOT_WEIGHT } else { 0 }
    }

    fn score(&self, wish: NvmeWish, row: Row<'_>) -> i32 {
        let Row { controller, size_bytes, last_tenant, .. } = row;
        let when = |is_good: bool, weight: i32| if is_good { weight } else { 0 };
        let is_near = self.numa.is_some_and(|rule| rule.is_near(controller.numa_node));
        let is_alone = self.other_tenants == Preference::Avoid && controller.other_tenants == 0;
        let is_clean = self.last_tenant == Preference::Avoid && last_tenant != LastTenant::Other;
        let fit = match wish {
            NvmeWish::Namespace(min_bytes) => {
                let excess = u128::from(size_bytes.saturating_sub(min_bytes)) * 1000 / u128::from(min_bytes.max(1));
                FIT_WEIGHT - i32::try_from(excess).unwrap_or(FIT_WEIGHT).min(FIT_WEIGHT)
            }
            NvmeWish::Controller => 0,
        };
        let free = u64::from(controller.free.min(controller.online)) * 1000 / u64::from(controller.online.max(1));
        let free = i32::try_from(free).unwrap_or(1000);
        let load = match self.spread {
            Spread::Balance => free,
            Spread::Pack => -free,
        };
        let wear = i32::from(controller.wear_percent.unwrap_or(0)) * WEAR_WEIGHT;
        let preferred = when(is_near, NUMA_WEIGHT) + when(is_alone, OTHERS_WEIGHT) + when(is_clean, LAST_WEIGHT);
        preferred + fit + load - wear
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half of four secondary controllers free, a medium hardly worn.
    const CONTROLLER: Controller = Controller {
        address: String::new(),
        serial: String::new(),
        model: String::new(),
        numa_node: Some(0),
        root: None,
        wear_percent: Some(5),
        online: 4,
        free: 2,
        own_namespaces: 0,
        other_tenants: 0,
    };
    static GIVEN: Controller = CONTROLLER;
    const ASK: NvmeWish = NvmeWish::Namespace(64 * MIB);

    fn namespace(controller: &Controller, mib: u64) -> Row<'_> {
        Row { controller, nsid: 2, size_bytes: mib * MIB, block_bytes: 512, last_tenant: LastTenant::Nobody }
    }

    fn score(rules: &Rules, row: Row<'_>) -> i32 {
        rules.judge(ASK, row).unwrap()
    }

    fn code(rules: &Rules, wish: NvmeWish, row: Row<'_>) -> &'static str {
        rules.judge(wish, row).err().map_or("", |refusal| refusal.code)
    }

    #[test]
    fn the_namespace_that_fits_best_comes_first_within_the_slack() {
        let rules = Rules::default();
        assert!(score(&rules, namespace(&GIVEN, 64)) > score(&rules, namespace(&GIVEN, 96)));
        assert_eq!(code(&rules, ASK, namespace(&GIVEN, 128)), "");
        assert_eq!(code(&rules, ASK, namespace(&GIVEN, 129)), "size.no-fit");
        assert_eq!(code(&rules, ASK, namespace(&GIVEN, 63)), "size.no-fit", "whatever the host says");
        let exact = Rules { slack_percent: 0, ..Rules::default() };
        assert_eq!(code(&exact, ASK, namespace(&GIVEN, 64)), "");
        assert_eq!(code(&exact, ASK, namespace(&GIVEN, 65)), "size.no-fit");
        let huge = NvmeWish::Namespace(u64::MAX);
        let candidate = Row { size_bytes: u64::MAX, ..namespace(&GIVEN, 1) };
        assert_eq!(code(&rules, huge, candidate), "");
    }

    #[test]
    fn sizes_and_whole_controllers_are_allowed_or_not() {
        let refusal = |rules: &Rules, ask| rules.allow(ask).err().map_or("", |refusal| refusal.code);
        let bounded = Rules { max_mib: Some(64), ..Rules::default() };
        assert_eq!(refusal(&bounded, ASK), "");
        assert_eq!(refusal(&bounded, NvmeWish::Namespace(64 * MIB + 1)), "size.not-allowed");
        assert_eq!(refusal(&bounded, NvmeWish::Controller), "controller.not-allowed");
        let whole = Rules { whole: vec!["S1".into()], ..Rules::default() };
        let first = Controller { serial: "S1".into(), ..CONTROLLER };
        assert_eq!(refusal(&whole, NvmeWish::Controller), "");
        assert_eq!(code(&whole, NvmeWish::Controller, namespace(&first, 1)), "");
        let other = Controller { serial: "S10".into(), ..CONTROLLER };
        assert_eq!(code(&whole, NvmeWish::Controller, namespace(&other, 1)), "controller.not-allowed");
    }

    #[test]
    fn formats_and_worn_media_are_out() {
        let rules = Rules { block_bytes: Some(4096), max_wear: Some(10), ..Rules::default() };
        let good = Row { block_bytes: 4096, ..namespace(&GIVEN, 64) };
        assert_eq!(code(&rules, ASK, good), "");
        assert_eq!(code(&rules, ASK, namespace(&GIVEN, 64)), "format.block");
        for wear_percent in [Some(11), None] {
            let worn = Controller { wear_percent, ..CONTROLLER };
            assert_eq!(code(&rules, ASK, Row { controller: &worn, ..good }), "wear.worn");
        }
        let fresh = Controller { wear_percent: Some(0), ..CONTROLLER };
        let plain = Rules::default();
        assert!(score(&plain, namespace(&fresh, 64)) > score(&plain, namespace(&GIVEN, 64)));
    }

    #[test]
    fn locality_load_and_tenants_are_weighed() {
        let near = |is_strict| Rules { numa: Some(NumaRule { node: 1, is_strict }), ..Rules::default() };
        let here = Controller { numa_node: Some(1), free: 1, ..CONTROLLER };
        assert!(score(&near(false), namespace(&here, 120)) > score(&near(false), namespace(&GIVEN, 64)));
        assert_eq!(code(&near(true), ASK, namespace(&GIVEN, 64)), "numa.remote");
        let (empty, full) = (Controller { free: 4, ..CONTROLLER }, Controller { free: 1, ..CONTROLLER });
        let (balance, pack) = (Rules::default(), Rules { spread: Spread::Pack, ..Rules::default() });
        assert!(score(&balance, namespace(&empty, 64)) > score(&balance, namespace(&full, 64)));
        assert!(score(&pack, namespace(&full, 64)) > score(&pack, namespace(&empty, 64)));
        let shared = Controller { other_tenants: 1, ..CONTROLLER };
        let last = Row { last_tenant: LastTenant::Other, ..namespace(&GIVEN, 64) };
        let avoid = Rules { other_tenants: Preference::Avoid, last_tenant: Preference::Avoid, ..Rules::default() };
        assert!(score(&avoid, namespace(&GIVEN, 128)) > score(&avoid, namespace(&shared, 64)));
        assert!(score(&avoid, namespace(&GIVEN, 128)) > score(&avoid, last));
        let refuse = Rules { other_tenants: Preference::Refuse, last_tenant: Preference::Refuse, ..Rules::default() };
        assert_eq!(code(&refuse, ASK, namespace(&shared, 64)), "tenant.shared");
        assert_eq!(code(&refuse, ASK, last), "tenant.last-other");
        // A controller that says nonsense breaks nothing.
        score(&balance, namespace(&Controller { online: 0, free: u32::MAX, ..CONTROLLER }, 64));
    }
}
