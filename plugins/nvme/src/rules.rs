//! The decision itself, on plain values: [`Rules`] allow what is asked for and judge each [`Candidate`].

/// What is first, or out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Preference {
    /// It makes no difference.
    #[default]
    Any,
    /// Others first.
    Avoid,
    /// Out.
    Refuse,
}

/// How namespaces are dealt out over controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Spread {
    /// The controller with the largest free share first.
    #[default]
    Balance,
    /// The controller with the smallest free share first, so that others stay whole.
    Pack,
}

/// Where controllers should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NumaRule {
    pub node: u32,
    /// Other nodes are out.
    pub is_strict: bool,
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
            other_tenants: Preference::default(),
            last_tenant: Preference::default(),
            whole: Vec::new(),
        }
    }
}

/// What the device's owner asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    Namespace { min_bytes: u64 },
    Controller,
}

/// A controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Controller<'a> {
    pub address: &'a str,
    pub serial: &'a str,
    pub numa_node: Option<u32>,
    pub wear_percent: Option<u8>,
    pub online: u32,
    pub free: u32,
    pub other_tenants: u32,
}

/// A namespace that could be given, or a whole controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate<'a> {
    pub controller: &'a Controller<'a>,
    pub nsid: u32,
    pub size_bytes: u64,
    pub block_bytes: u32,
    pub was_anothers: bool,
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub code: &'static str,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Judged {
    Score(i32),
    Reject(Refusal),
}

/// Each preference outweighs all below it together: fit (0 to 4,000), free share in permille, wear (twice the percent).
const NUMA_WEIGHT: i32 = 40_000;
const OTHERS_WEIGHT: i32 = 20_000;
const LAST_WEIGHT: i32 = 10_000;
/// A namespace loses one point for each permille that it is too large, until nothing is left.
const FIT_WEIGHT: i32 = 4_000;
const WEAR_WEIGHT: i32 = 2;
const MIB: u64 = 1 << 20;

impl Rules {
    /// Whether this may be asked for at all.
    pub(crate) fn allow(&self, ask: Ask) -> Result<(), Refusal> {
        match (ask, self.max_mib) {
            (Ask::Namespace { min_bytes }, Some(most)) if min_bytes.div_ceil(MIB) > most => {
                let message = format!("{} MiB are asked for, at most {most} are allowed", min_bytes.div_ceil(MIB));
                Err(Refusal { code: "size.not-allowed", message })
            }
            (Ask::Controller, _) if self.whole.is_empty() => Err(Refusal {
                code: "controller.not-allowed",
                message: "no controller may be given whole; the setting whole allows some".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// What is to be said of one candidate.
    pub(crate) fn judge(&self, ask: Ask, candidate: Candidate<'_>) -> Judged {
        match self.refusal(ask, candidate) {
            Some(refusal) => Judged::Reject(refusal),
            None => Judged::Score(self.score(ask, candidate)),
        }
    }

    fn refusal(&self, ask: Ask, candidate: Candidate<'_>) -> Option<Refusal> {
        let Candidate { controller, nsid, size_bytes, block_bytes, was_anothers } = candidate;
        let address = controller.address;
        let refuse = |code, message| Some(Refusal { code, message });
        match ask {
            Ask::Namespace { min_bytes } => {
                // In 128 bits nothing wraps.
                let most = u128::from(min_bytes) * u128::from(100 + self.slack_percent) / 100;
                if size_bytes < min_bytes || u128::from(size_bytes) > most {
                    let (has, asked) = (size_bytes / MIB, min_bytes.div_ceil(MIB));
                    let slack = self.slack_percent;
                    return refuse(
                        "size.no-fit",
                        format!("namespace {nsid} of {address} has {has} MiB, {asked} and {slack} % more are allowed"),
                    );
                }
                if self.block_bytes.is_some_and(|wanted| wanted != block_bytes) {
                    let message = format!("namespace {nsid} of {address} has blocks of {block_bytes} bytes");
                    return refuse("format.block", message);
                }
            }
            Ask::Controller if !self.whole.iter().any(|serial| serial == controller.serial) => {
                return refuse("controller.not-allowed", format!("{address} may not be given whole"));
            }
            Ask::Controller => {}
        }
        if let Some(most) = self.max_wear
            && controller.wear_percent.is_none_or(|wear| wear > most)
        {
            let wear = controller.wear_percent.map_or_else(|| "an unknown part".to_owned(), |wear| format!("{wear} %"));
            return refuse("wear.worn", format!("{address} is worn by {wear}, at most {most} % are allowed"));
        }
        if let Some(rule) = self.numa.filter(|rule| rule.is_strict && controller.numa_node != Some(rule.node)) {
            return refuse("numa.remote", format!("{address} is not on NUMA node {}", rule.node));
        }
        if self.other_tenants == Preference::Refuse && controller.other_tenants > 0 {
            return refuse("tenant.shared", format!("{address} serves {} other tenants", controller.other_tenants));
        }
        if self.last_tenant == Preference::Refuse && was_anothers {
            return refuse("tenant.last-other", format!("another tenant had namespace {nsid} of {address}"));
        }
        None
    }

    fn score(&self, ask: Ask, candidate: Candidate<'_>) -> i32 {
        let Candidate { controller, size_bytes, was_anothers, .. } = candidate;
        let when = |is_good: bool, weight: i32| if is_good { weight } else { 0 };
        let is_near = self.numa.is_some_and(|rule| controller.numa_node == Some(rule.node));
        let is_alone = self.other_tenants == Preference::Avoid && controller.other_tenants == 0;
        let is_clean = self.last_tenant == Preference::Avoid && !was_anothers;
        let fit = match ask {
            Ask::Namespace { min_bytes } => {
                let excess = u128::from(size_bytes.saturating_sub(min_bytes)) * 1000 / u128::from(min_bytes.max(1));
                FIT_WEIGHT - i32::try_from(excess).unwrap_or(FIT_WEIGHT).min(FIT_WEIGHT)
            }
            Ask::Controller => 0,
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

    const CONTROLLER: Controller<'static> = Controller {
        address: "0000:02:00.0",
        serial: "S1",
        numa_node: Some(0),
        wear_percent: Some(5),
        online: 4,
        free: 2,
        other_tenants: 0,
    };
    const ASK: Ask = Ask::Namespace { min_bytes: 64 * MIB };

    fn namespace<'a>(controller: &'a Controller<'a>, mib: u64) -> Candidate<'a> {
        Candidate { controller, nsid: 2, size_bytes: mib * MIB, block_bytes: 512, was_anothers: false }
    }

    fn score(rules: &Rules, candidate: Candidate<'_>) -> i32 {
        match rules.judge(ASK, candidate) {
            Judged::Score(score) => score,
            Judged::Reject(refusal) => panic!("{refusal:?}"),
        }
    }

    fn code(rules: &Rules, ask: Ask, candidate: Candidate<'_>) -> &'static str {
        match rules.judge(ask, candidate) {
            Judged::Score(_) => "",
            Judged::Reject(refusal) => refusal.code,
        }
    }

    #[test]
    fn the_namespace_that_fits_best_comes_first_within_the_slack() {
        let rules = Rules::default();
        assert!(score(&rules, namespace(&CONTROLLER, 64)) > score(&rules, namespace(&CONTROLLER, 96)));
        assert_eq!(code(&rules, ASK, namespace(&CONTROLLER, 128)), "");
        assert_eq!(code(&rules, ASK, namespace(&CONTROLLER, 129)), "size.no-fit");
        assert_eq!(code(&rules, ASK, namespace(&CONTROLLER, 63)), "size.no-fit", "whatever the host says");
        let exact = Rules { slack_percent: 0, ..Rules::default() };
        assert_eq!(code(&exact, ASK, namespace(&CONTROLLER, 64)), "");
        assert_eq!(code(&exact, ASK, namespace(&CONTROLLER, 65)), "size.no-fit");
        let huge = Ask::Namespace { min_bytes: u64::MAX };
        let candidate = Candidate { size_bytes: u64::MAX, ..namespace(&CONTROLLER, 1) };
        assert_eq!(code(&rules, huge, candidate), "");
    }

    #[test]
    fn sizes_and_whole_controllers_are_allowed_or_not() {
        let refusal = |rules: &Rules, ask| rules.allow(ask).err().map_or("", |refusal| refusal.code);
        let bounded = Rules { max_mib: Some(64), ..Rules::default() };
        assert_eq!(refusal(&bounded, ASK), "");
        assert_eq!(refusal(&bounded, Ask::Namespace { min_bytes: 64 * MIB + 1 }), "size.not-allowed");
        assert_eq!(refusal(&bounded, Ask::Controller), "controller.not-allowed");
        let whole = Rules { whole: vec!["S1".into()], ..Rules::default() };
        assert_eq!(refusal(&whole, Ask::Controller), "");
        assert_eq!(code(&whole, Ask::Controller, namespace(&CONTROLLER, 1)), "");
        let other = Controller { serial: "S10", ..CONTROLLER };
        assert_eq!(code(&whole, Ask::Controller, namespace(&other, 1)), "controller.not-allowed");
    }

    #[test]
    fn formats_and_worn_media_are_out() {
        let rules = Rules { block_bytes: Some(4096), max_wear: Some(10), ..Rules::default() };
        let good = Candidate { block_bytes: 4096, ..namespace(&CONTROLLER, 64) };
        assert_eq!(code(&rules, ASK, good), "");
        assert_eq!(code(&rules, ASK, namespace(&CONTROLLER, 64)), "format.block");
        for wear_percent in [Some(11), None] {
            let worn = Controller { wear_percent, ..CONTROLLER };
            assert_eq!(code(&rules, ASK, Candidate { controller: &worn, ..good }), "wear.worn");
        }
        let fresh = Controller { wear_percent: Some(0), ..CONTROLLER };
        let plain = Rules::default();
        assert!(score(&plain, namespace(&fresh, 64)) > score(&plain, namespace(&CONTROLLER, 64)));
    }

    #[test]
    fn locality_load_and_tenants_are_weighed() {
        let near = |is_strict| Rules { numa: Some(NumaRule { node: 1, is_strict }), ..Rules::default() };
        let here = Controller { numa_node: Some(1), free: 1, ..CONTROLLER };
        assert!(score(&near(false), namespace(&here, 120)) > score(&near(false), namespace(&CONTROLLER, 64)));
        assert_eq!(code(&near(true), ASK, namespace(&CONTROLLER, 64)), "numa.remote");
        let (empty, full) = (Controller { free: 4, ..CONTROLLER }, Controller { free: 1, ..CONTROLLER });
        let (balance, pack) = (Rules::default(), Rules { spread: Spread::Pack, ..Rules::default() });
        assert!(score(&balance, namespace(&empty, 64)) > score(&balance, namespace(&full, 64)));
        assert!(score(&pack, namespace(&full, 64)) > score(&pack, namespace(&empty, 64)));
        let shared = Controller { other_tenants: 1, ..CONTROLLER };
        let last = Candidate { was_anothers: true, ..namespace(&CONTROLLER, 64) };
        let avoid = Rules { other_tenants: Preference::Avoid, last_tenant: Preference::Avoid, ..Rules::default() };
        assert!(score(&avoid, namespace(&CONTROLLER, 128)) > score(&avoid, namespace(&shared, 64)));
        assert!(score(&avoid, namespace(&CONTROLLER, 128)) > score(&avoid, last));
        let refuse = Rules { other_tenants: Preference::Refuse, last_tenant: Preference::Refuse, ..Rules::default() };
        assert_eq!(code(&refuse, ASK, namespace(&shared, 64)), "tenant.shared");
        assert_eq!(code(&refuse, ASK, last), "tenant.last-other");
        // A controller that says nonsense breaks nothing.
        score(&balance, namespace(&Controller { online: 0, free: u32::MAX, ..CONTROLLER }, 64));
    }
}
