//! Candidates ranked by several plugins. Key type: [`Tally`], for hooks that choose one of several.

use crate::daemon::policy::limits::MAX_REASONS;
use crate::model::{Mark, Opinion, PolicyScope};

use super::{NO_OPINION, check_denial};

/// Every candidate was rejected by some plugin.
pub(super) const NO_CANDIDATE: &str = "policy.no-candidate";

/// What of a ranking breaks the contract: one mark for each of so many `candidates`, and reasons that are there.
pub(super) fn check_marks(marks: &[Mark], reasons: &[(String, String)], candidates: usize) -> Result<(), String> {
    if marks.len() != candidates {
        return Err(format!("{} marks for {candidates} candidates", marks.len()));
    }
    if reasons.len() > MAX_REASONS {
        return Err(format!("{} reasons, at most {MAX_REASONS} are allowed", reasons.len()));
    }
    reasons.iter().try_for_each(|(code, message)| check_denial(code, message))?;
    let unknown = marks.iter().find_map(|mark| match mark {
        Mark::Reject(reason) if *reason >= reasons.len() => Some(reason),
        _ => None,
    });
    unknown.map_or(Ok(()), |reason| Err(format!("a mark names reason {reason} of {}", reasons.len())))
}

/// What is wrong with a choice: code, text, and the plugin that decided, if one did.
pub(super) type Denial = (String, String, Option<String>);

/// Scores of the candidates so far. A candidate is feasible if a plugin of the *operator* ranked and none rejected it;
/// scores add up, each times its plugin's weight; ties keep the table's order.
pub(super) struct Tally<'a> {
    /// `None`: rejected.
    scores: Vec<Option<i64>>,
    /// Plugin, and code and text of its reason.
    first_rejection: Option<(&'a String, &'a (String, String))>,
    has_operator_ranked: bool,
    has_opinion: bool,
}

impl<'a> Tally<'a> {
    pub(super) fn of(candidates: usize) -> Self {
        Self {
            scores: vec![Some(0); candidates],
            first_rejection: None,
            has_operator_ranked: false,
            has_opinion: false,
        }
    }

    /// Somebody was asked, whatever came of it.
    pub(super) fn asked(&mut self) {
        self.has_opinion = true;
    }

    /// Adds one plugin's marks; `reasons` is what its rejections name.
    pub(super) fn add<V>(&mut self, opinion: &'a Opinion<V>, marks: &[Mark], reasons: &'a [(String, String)]) {
        self.has_operator_ranked |= opinion.scope == PolicyScope::Operator;
        for (total, mark) in self.scores.iter_mut().zip(marks) {
            match *mark {
                Mark::Score(score) => *total = total.map(|total| total.saturating_add(opinion.weight.of(score))),
                Mark::Reject(reason) => {
                    *total = None;
                    let why = reasons.get(reason).map(|why| (&opinion.plugin, why));
                    self.first_rejection = self.first_rejection.or(why);
                }
            }
        }
    }

    /// Indices of the feasible candidates, best first; never none. `what` is one of them in an error: `VF`.
    pub(super) fn order(self, what: &str, hook: &str) -> Result<Vec<usize>, Denial> {
        if !self.has_operator_ranked {
            let message = if self.has_opinion {
                format!("no policy plugin of the operator ranked the {what}s")
            } else {
                let only = "and only a plugin of the operator can select";
                format!("no policy plugin with the hook {hook} is loaded, {only}")
            };
            return Err((NO_OPINION.to_owned(), message, None));
        }
        let candidates = self.scores.len();
        let feasible = self.scores.into_iter().enumerate();
        let mut feasible: Vec<_> = feasible.filter_map(|(index, score)| Some((index, score?))).collect();
        if feasible.is_empty() {
            let (plugin, message) = match self.first_rejection {
                Some((plugin, (code, why))) => {
                    (Some(plugin.clone()), format!("no {what} of {candidates} suits; the first: {why} ({code})"))
                }
                None => (None, format!("no {what} is free")),
            };
            return Err((NO_CANDIDATE.to_owned(), message, plugin));
        }
        // Stable: candidates with the same score stay in the table's order.
        feasible.sort_by_key(|(_, score)| std::cmp::Reverse(*score));
        Ok(feasible.into_iter().map(|(index, _)| index).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::model::{PluginDigest, PluginWeight, Verdict};

    fn weighing(weight: u32) -> Opinion {
        Opinion {
            plugin: "op".into(),
            digest: PluginDigest([0; 32]),
            scope: PolicyScope::Operator,
            weight: PluginWeight::new(weight).unwrap(),
            verdict: Ok(Verdict::Abstain),
            fuel: 0,
            took: Duration::ZERO,
        }
    }

    /// The order that plugins come to, each with its weight and its scores; `None` rejects.
    fn order(said: &[(u32, Vec<Option<i32>>)]) -> Option<Vec<usize>> {
        let (reasons, candidates) = ([("full".to_owned(), "it is full".to_owned())], said[0].1.len());
        let opinions: Vec<_> = said.iter().map(|(weight, _)| weighing(*weight)).collect();
        let mut tally = Tally::of(candidates);
        for (opinion, (_, scores)) in opinions.iter().zip(said) {
            let marks: Vec<_> = scores.iter().map(|score| score.map_or(Mark::Reject(0), Mark::Score)).collect();
            tally.add(opinion, &marks, &reasons);
        }
        tally.order("VF", "select-vf").ok()
    }

    #[test]
    fn a_weight_multiplies_scores_and_no_rejection() {
        let (near, spread) = (vec![Some(5), Some(3), None], vec![Some(-1), Some(0), Some(9)]);
        assert_eq!(order(&[(1, near.clone()), (1, spread.clone())]), Some(vec![0, 1]));
        assert_eq!(order(&[(1, near.clone()), (3, spread.clone())]), Some(vec![1, 0]));
        assert_eq!(order(&[(2, near.clone()), (3, spread.clone())]), Some(vec![0, 1]), "it is their ratio that counts");
        // A tie keeps the table's order.
        assert_eq!(order(&[(1, near), (2, spread)]), Some(vec![0, 1]));
        assert_eq!(
            order(&[(1, vec![None, Some(i32::MIN)]), (100, vec![Some(i32::MAX), Some(i32::MIN)])]),
            Some(vec![1])
        );
    }

    #[test]
    fn the_largest_chain_with_the_largest_weights_is_added_exactly() {
        let chain = |scores: [i32; 2]| vec![(100, scores.map(Some).to_vec()); 31];
        let close = |scores: [i32; 2]| (1, scores.map(Some).to_vec());
        for (most, next) in [(i32::MAX, i32::MAX - 1), (i32::MIN + 1, i32::MIN)] {
            let said = [chain([next, next]), vec![close([next, most])]].concat();
            assert_eq!(order(&said), Some(vec![1, 0]), "one more counts");
        }
    }

    proptest! {
        #[test]
        fn the_order_is_that_of_exact_sums(
            weights in prop::collection::vec(1u32..=100, 1..=32),
            scores in prop::collection::vec(prop::collection::vec(prop_oneof![any::<i32>(), -2i32..3], 4), 32),
        ) {
            let said: Vec<_> = weights.into_iter().zip(scores.iter().map(|row| row.iter().copied().map(Some).collect())).collect();
            let sum = |at: usize| said.iter().map(|(weight, row): &(u32, Vec<Option<i32>>)| {
                i128::from(*weight) * i128::from(row[at].unwrap())
            }).sum::<i128>();
            let mut expected: Vec<_> = (0..4).collect();
            expected.sort_by_key(|at| std::cmp::Reverse(sum(*at)));
            prop_assert_eq!(order(&said), Some(expected));
        }
    }
}
