//! A version of a plugin that is tried on a share of the VMs before it decides for all: which VMs, and when it is taken back.
//! Key types: [`CanaryShare`], [`Trial`], [`CanaryCause`]. Pure.
//!
//! The share is of VMs, not of calls: a VM's decisions all go to one version, so that a repeated call gets the answer
//! that it got before, and that who asks again and again counts once.

use std::collections::{HashMap, VecDeque};

use sha2::{Digest, Sha256};

use super::{PluginDigest, PluginId, PolicyScope, SpecError, TenantId, VmName};

/// VMs that each version must have decided about before the two are compared.
const MIN_ASKED: u64 = 20;
/// By how much a rate must be above the stable version's: 10 percentage points …
const MARGIN: f64 = 0.1;
/// … and so many standard errors of the difference between two proportions (pooled), so that chance takes nothing back:
/// the two are compared after every decision.
const STANDARD_ERRORS: f64 = 3.0;
/// VMs of each version that are looked at: the last so many.
const WINDOW: usize = 1000;
/// What a VM's lot is drawn for, apart from all other hashes.
const DOMAIN: &[u8] = b"ostler canary 1";

/// Of 100 VMs, so many are decided about by the canary: 1 to 99.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CanaryShare(u8);

impl CanaryShare {
    /// `percent` of the VMs; an error names the API's field.
    pub fn new(percent: u32) -> Result<Self, SpecError> {
        match u8::try_from(percent) {
            Ok(percent @ 1..=99) => Ok(Self(percent)),
            _ => Err(SpecError::new("canary_percent", format!("{percent} is no share: 1 to 99 are"))),
        }
    }

    /// In percent.
    pub fn percent(self) -> u32 {
        self.0.into()
    }

    /// Whether the VM with this lot is among them. A larger share has all VMs of a smaller one.
    pub fn has(self, lot: u64) -> bool {
        (u128::from(lot) * 100) >> 64 < u128::from(self.0)
    }
}

/// The lot of a tenant's VM at the canary `digest` of a plugin: the same each time, and another one at another canary, so
/// that it is not always the same VMs that are tried on.
pub fn canary_lot(scope: &PolicyScope, plugin: &PluginId, digest: PluginDigest, tenant: &TenantId, vm: &VmName) -> u64 {
    let owner = match scope {
        PolicyScope::Operator => "",
        PolicyScope::Tenant(tenant) => tenant.as_str(),
    };
    let mut hash = Sha256::new_with_prefix(DOMAIN);
    // No name has a NUL byte.
    for part in [owner, plugin.as_str(), tenant.as_str(), vm.as_str()] {
        hash.update(b"\0");
        hash.update(part);
    }
    hash.update(digest.0);
    let hash: [u8; 32] = hash.finalize().into();
    hash.first_chunk().copied().map_or(0, u64::from_be_bytes)
}

/// One of the two versions of a plugin that has a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edition {
    /// The one that is bound.
    Stable,
    /// The one that is tried.
    Canary,
}

/// What came of a decision that a version was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// It was allowed.
    Allowed,
    /// It was denied, by whom and for what reason ever: what a version does not say can deny as well as what it says.
    Denied,
    /// The version gave no usable answer.
    Failed,
}

/// How often what came of a version's decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// VMs that it was asked about; at each hook for itself.
    pub asked: u64,
    /// Of these, denied.
    pub denied: u64,
    /// Of these, without a usable answer.
    pub failed: u64,
}

/// Why a canary was taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CanaryCause {
    /// It failed so often in a row that a breaker opened.
    BreakerOpen,
    /// It fails more often than the stable version.
    Failures,
    /// More is denied with it than with the stable version.
    Denials,
    /// It could not be loaded again.
    Lost,
}

impl CanaryCause {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::BreakerOpen, Self::Failures, Self::Denials, Self::Lost];

    /// A stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::BreakerOpen => "canary.breaker-open",
            Self::Failures => "canary.failures",
            Self::Denials => "canary.denials",
            Self::Lost => "canary.lost",
        }
    }
}

/// What came of the decisions of both versions, VM by VM.
#[derive(Debug, Default)]
pub struct Trial {
    stable: Window,
    canary: Window,
}

/// The last VMs of a version, each with what came of its last decision.
#[derive(Debug, Default)]
struct Window {
    last: HashMap<u64, Came>,
    /// In the order in which they came first.
    order: VecDeque<u64>,
    /// Of `last`.
    counts: Counts,
}

impl Trial {
    /// Counts a decision; `subject` tells VMs, and hooks, apart.
    pub fn note(&mut self, edition: Edition, subject: u64, came: Came) {
        match edition {
            Edition::Stable => self.stable.note(subject, came),
            Edition::Canary => self.canary.note(subject, came),
        }
    }

    /// Of a version.
    pub fn counts(&self, edition: Edition) -> Counts {
        match edition {
            Edition::Stable => self.stable.counts,
            Edition::Canary => self.canary.counts,
        }
    }

    /// Why the canary is to be taken back, if so. A stable version that was hardly asked counts as one that never fails;
    /// how much it denies nobody can know then.
    pub fn verdict(&self) -> Option<CanaryCause> {
        let (stable, canary) = (self.stable.counts, self.canary.counts);
        if canary.asked < MIN_ASKED {
            return None;
        }
        let is_known = stable.asked >= MIN_ASKED;
        let failed = if is_known { stable.failed } else { 0 };
        if is_above((canary.failed, canary.asked), (failed, stable.asked.max(MIN_ASKED))) {
            return Some(CanaryCause::Failures);
        }
        let denies = is_known && is_above((canary.denied, canary.asked), (stable.denied, stable.asked));
        denies.then_some(CanaryCause::Denials)
    }
}

impl Window {
    fn note(&mut self, subject: u64, came: Came) {
        let mut gone = self.last.insert(subject, came);
        if gone.is_none() {
            self.order.push_back(subject);
            if self.order.len() > WINDOW {
                gone = self.order.pop_front().and_then(|oldest| self.last.remove(&oldest));
            }
        }
        let of = |came: Came| (u64::from(came == Came::Denied), u64::from(came == Came::Failed));
        let (denied, failed) = of(came);
        let (no_more_denied, no_more_failed) = gone.map_or((0, 0), of);
        self.counts = Counts {
            asked: self.last.len() as u64,
            denied: self.counts.denied + denied - no_more_denied,
            failed: self.counts.failed + failed - no_more_failed,
        };
    }
}

/// Whether the first proportion is above the second by more than the margin, and by more than chance explains.
#[expect(clippy::cast_precision_loss, reason = "at most the window's length")]
fn is_above(canary: (u64, u64), stable: (u64, u64)) -> bool {
    let (hits, asked) = (canary.0 as f64, canary.1 as f64);
    let (stable_hits, stable_asked) = (stable.0 as f64, stable.1 as f64);
    let difference = hits / asked - stable_hits / stable_asked;
    let pooled = (hits + stable_hits) / (asked + stable_asked);
    let standard_error = (pooled * (1.0 - pooled) * (1.0 / asked + 1.0 / stable_asked)).sqrt();
    difference > MARGIN && difference > STANDARD_ERRORS * standard_error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lot(plugin: &str, digest: u8, vm: usize) -> u64 {
        let (plugin, vm) = (plugin.parse().unwrap(), format!("vm-{vm}").parse().unwrap());
        canary_lot(&PolicyScope::Operator, &plugin, PluginDigest([digest; 32]), &"acme".parse().unwrap(), &vm)
    }

    #[test]
    fn a_share_has_about_so_many_vms_and_always_the_same() {
        for percent in [1, 10, 50, 90, 99] {
            let share = CanaryShare::new(percent).unwrap();
            let chosen = (0..20_000).filter(|vm| share.has(lot("p", 1, *vm))).count();
            // Within five standard deviations of a binomial distribution.
            let (mean, p) = (200.0 * f64::from(percent), f64::from(percent) / 100.0);
            let off = (chosen as f64 - mean).abs();
            assert!(off < 5.0 * (20_000.0 * p * (1.0 - p)).sqrt(), "{percent} %: {chosen}");
        }
        // Known once and for all: a daemon of another build must choose the same.
        assert_eq!(lot("p", 1, 0), LOT_OF_VM_0);
        assert!((0..1000).all(|vm| lot("p", 1, vm) == lot("p", 1, vm)));
    }

    /// By another program, of the bytes that `canary_lot` describes.
    const LOT_OF_VM_0: u64 = 0xfc8b_a427_d3d8_8633;

    #[test]
    fn a_larger_share_has_the_vms_of_a_smaller_one_and_another_canary_has_others() {
        let (small, large) = (CanaryShare::new(10).unwrap(), CanaryShare::new(30).unwrap());
        let chosen = |share: CanaryShare, plugin: &str, digest| {
            (0..2000).filter(|vm| share.has(lot(plugin, digest, *vm))).collect::<Vec<_>>()
        };
        assert!(chosen(small, "p", 1).iter().all(|vm| chosen(large, "p", 1).contains(vm)));
        assert_ne!(chosen(small, "p", 1), chosen(small, "p", 2));
        assert_ne!(chosen(small, "p", 1), chosen(small, "q", 1));
        assert!(small.has(0) && !small.has(u64::MAX) && !CanaryShare::new(99).unwrap().has(u64::MAX));
    }

    #[test]
    fn all_and_none_are_no_shares() {
        for percent in [0, 100, 256 + 10, u32::MAX] {
            assert!(CanaryShare::new(percent).unwrap_err().to_string().contains("1 to 99"), "{percent}");
        }
        assert_eq!(CanaryShare::new(99).unwrap().percent(), 99);
    }

    /// So many VMs of each version, of which so many came to `came`.
    fn trial(stable: (u64, u64), canary: (u64, u64), came: Came) -> Option<CanaryCause> {
        let mut trial = Trial::default();
        for (edition, (hits, asked)) in [(Edition::Stable, stable), (Edition::Canary, canary)] {
            (0..asked).for_each(|vm| trial.note(edition, vm, if vm < hits { came } else { Came::Allowed }));
        }
        trial.verdict()
    }

    #[test]
    fn a_rise_takes_it_back_and_chance_does_not() {
        use Came::{Denied, Failed};
        // Not before both are known.
        assert_eq!(trial((0, 180), (19, 19), Denied), None);
        assert_eq!(trial((0, 19), (20, 20), Denied), None);
        assert_eq!(trial((0, 20), (20, 20), Denied), Some(CanaryCause::Denials));
        assert_eq!(trial((0, 180), (3, 20), Denied), Some(CanaryCause::Denials));
        // What the stable version denies, too, is no rise; nor is what chance may do, or hardly anything.
        assert_eq!(trial((90, 180), (10, 20), Denied), None);
        assert_eq!(trial((90, 180), (15, 20), Denied), None);
        assert_eq!(trial((90, 180), (18, 20), Denied), Some(CanaryCause::Denials));
        assert_eq!(trial((0, 900), (90, 900), Denied), None);
        assert_eq!(trial((0, 900), (100, 900), Denied), Some(CanaryCause::Denials));
        // A fault is one whether or not there is something to compare it with.
        assert_eq!(trial((0, 0), (2, 20), Failed), None);
        assert_eq!(trial((0, 0), (12, 20), Failed), Some(CanaryCause::Failures));
        assert_eq!(trial((5, 5), (12, 20), Failed), Some(CanaryCause::Failures));
        assert_eq!(trial((100, 180), (12, 20), Failed), None);
        assert_eq!(trial((180, 180), (0, 20), Denied), None);
    }

    #[test]
    fn a_vm_counts_once_with_its_last_decision_and_the_oldest_go() {
        let mut trial = Trial::default();
        for _ in 0..100 {
            trial.note(Edition::Canary, 7, Came::Denied);
        }
        assert_eq!(trial.counts(Edition::Canary), Counts { asked: 1, denied: 1, failed: 0 });
        trial.note(Edition::Canary, 7, Came::Allowed);
        trial.note(Edition::Canary, 8, Came::Failed);
        assert_eq!(trial.counts(Edition::Canary), Counts { asked: 2, denied: 0, failed: 1 });
        assert_eq!(trial.counts(Edition::Stable), Counts::default());
        (100..).take(WINDOW).for_each(|vm| trial.note(Edition::Canary, vm, Came::Allowed));
        assert_eq!(trial.counts(Edition::Canary), Counts { asked: 1000, denied: 0, failed: 0 });
        assert_eq!((trial.canary.last.len(), trial.canary.order.len()), (WINDOW, WINDOW));
    }
}
