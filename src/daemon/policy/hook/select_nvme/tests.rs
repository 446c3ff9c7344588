//! Cases and properties of the selection.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::{NvmeCandidate, PluginDigest};

fn request() -> SelectNvmeRequest {
    let candidate = |nsid| NvmeCandidate {
        controller: 0,
        nsid,
        size_bytes: 1 << 26,
        block_bytes: 512,
        last_tenant: LastTenant::Nobody,
    };
    SelectNvmeRequest {
        tenant: "blue".parse().unwrap(),
        vm: "web".parse().unwrap(),
        vcpus: 1,
        memory_mib: 256,
        disks: 0,
        nics: 0,
        device: "data".parse().unwrap(),
        wish: NvmeWish::Namespace { min_bytes: 1 << 20 },
        controllers: vec![],
        candidates: (2..5).map(candidate).collect(),
    }
}

fn opinion(scope: PolicyScope, verdict: Result<NvmeVerdict, PolicyFault>) -> Opinion<NvmeVerdict> {
    let plugin = if scope == PolicyScope::Operator { "op" } else { "own" };
    let (digest, weight, took) = (PluginDigest([0; 32]), Default::default(), Duration::ZERO);
    Opinion { plugin: plugin.into(), digest, scope, weight, verdict, fuel: 0, took }
}

fn operator(verdict: NvmeVerdict) -> Opinion<NvmeVerdict> {
    opinion(PolicyScope::Operator, Ok(verdict))
}

fn tenant(verdict: NvmeVerdict) -> Opinion<NvmeVerdict> {
    opinion(PolicyScope::Tenant("blue".parse().unwrap()), Ok(verdict))
}

/// Scores, where `None` rejects for the only reason.
fn rank(scores: [Option<i32>; 3]) -> NvmeVerdict {
    NvmeVerdict::Rank(NvmeRanking {
        marks: scores.map(|score| score.map_or(Mark::Reject(0), Mark::Score)).to_vec(),
        reasons: vec![("size.too-large".into(), "namespace 2 is too large".into())],
    })
}

fn order(opinions: &[Opinion<NvmeVerdict>]) -> Vec<usize> {
    match combine(opinions, 3) {
        NvmeOutcome::Select { order } => order,
        NvmeOutcome::Deny { code, message, .. } => panic!("{code}: {message}"),
    }
}

fn denial(opinions: &[Opinion<NvmeVerdict>]) -> (String, String) {
    match combine(opinions, 3) {
        NvmeOutcome::Deny { code, message, .. } => (code, message),
        NvmeOutcome::Select { order } => panic!("{order:?}"),
    }
}

#[test]
fn the_best_score_of_all_plugins_comes_first_and_one_rejection_is_enough() {
    assert_eq!(order(&[operator(rank([Some(0); 3]))]), [0, 1, 2]);
    assert_eq!(order(&[operator(rank([Some(1), Some(2), Some(3)])), tenant(rank([Some(9), None, Some(0)]))]), [0, 2]);
    let (code, message) = denial(&[operator(rank([None; 3]))]);
    assert_eq!(code, "policy.no-candidate");
    assert!(message.contains("no candidate of 3 suits") && message.contains("(size.too-large)"), "{message}");
}

#[test]
fn only_a_plugin_of_the_operator_selects_and_whatever_fails_denies() {
    assert!(denial(&[]).1.contains("hook select-nvme is loaded"));
    assert_eq!(denial(&[tenant(rank([Some(0); 3]))]).0, "policy.no-opinion");
    assert_eq!(denial(&[operator(NvmeVerdict::Abstain)]).0, "policy.no-opinion");
    let deny = NvmeVerdict::Deny { code: "wear.worn".into(), message: "worn out".into() };
    assert_eq!(denial(&[operator(rank([Some(0); 3])), tenant(deny)]).0, "wear.worn");
    let fault = PolicyFault::Trap("unreachable".into());
    assert_eq!(denial(&[opinion(PolicyScope::Operator, Err(fault))]).0, "policy.trap");
}

#[test]
fn an_answer_that_breaks_the_contract_is_told() {
    let check = |marks: Vec<Mark>, reasons: Vec<(String, String)>| {
        request().check(&NvmeVerdict::Rank(NvmeRanking { marks, reasons }), &PolicyScope::Operator)
    };
    assert_eq!(check(vec![Mark::Score(0); 3], vec![]), Ok(()));
    assert!(check(vec![Mark::Score(0); 2], vec![]).unwrap_err().contains("2 marks for 3 candidates"));
    assert!(check(vec![Mark::Reject(0); 3], vec![]).unwrap_err().contains("reason 0 of 0"));
    assert!(check(vec![Mark::Score(0); 3], vec![("a".into(), "b".into()); 17]).is_err());
    assert!(check(vec![Mark::Score(0); 3], vec![("policy.mine".into(), "b".into())]).is_err());
}

fn any_verdict() -> impl Strategy<Value = NvmeVerdict> {
    prop_oneof![
        4 => prop::array::uniform3(prop::option::of(any::<i32>())).prop_map(rank),
        1 => Just(NvmeVerdict::Abstain),
        1 => Just(NvmeVerdict::Deny { code: "x".into(), message: "y".into() }),
    ]
}

proptest! {
    /// What is selected was rejected by nobody, and the operator ranked it.
    #[test]
    fn never_selects_what_somebody_rejects(verdicts in prop::collection::vec((any::<bool>(), any_verdict()), 0..5)) {
        let opinions: Vec<_> = verdicts
            .iter()
            .map(|(is_operator, verdict)| if *is_operator { operator(verdict.clone()) } else { tenant(verdict.clone()) })
            .collect();
        if let NvmeOutcome::Select { order } = combine(&opinions, 3) {
            prop_assert!(!order.is_empty());
            let ranked = |verdict: &NvmeVerdict| matches!(verdict, NvmeVerdict::Rank(_));
            prop_assert!(verdicts.iter().any(|(is_operator, verdict)| *is_operator && ranked(verdict)));
            for (_, verdict) in &verdicts {
                let is_denied = matches!(verdict, NvmeVerdict::Deny { .. });
                prop_assert!(!is_denied);
                if let NvmeVerdict::Rank(ranking) = verdict {
                    prop_assert!(order.iter().all(|index| matches!(ranking.marks[*index], Mark::Score(_))));
                }
            }
        }
    }
}
