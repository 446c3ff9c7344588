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
/// scores add up, ties keep the table's order.
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
                Mark::Score(score) => *total = total.map(|total| total.saturating_add(i64::from(score))),
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
