//! Cases and properties of the selection.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::PluginDigest;

fn request() -> PlaceRequest {
    let candidate = |node: u32| PlaceCandidate {
        node,
        cpus: format!("{node}").parse().unwrap(),
        memory_mib: 1024,
        available_mib: 512,
        two_mib_pages: 0,
        one_gib_pages: 0,
        vms: 0,
        own_vms: 0,
        placed_vcpus: 0,
        placed_mib: 0,
        own_devices: 0,
        free_vfs: 0,
    };
    PlaceRequest {
        tenant: "blue".parse().unwrap(),
        vm: "web".parse().unwrap(),
        vcpus: 1,
        memory_mib: 256,
        disks: 0,
        nics: 0,
        pages: PageSize::Small,
        devices: 0,
        candidates: (0..3).map(candidate).collect(),
    }
}

fn opinion(scope: PolicyScope, verdict: Result<PlaceVerdict, PolicyFault>) -> Opinion<PlaceVerdict> {
    let plugin = if scope == PolicyScope::Operator { "op" } else { "own" };
    let (digest, weight, took) = (PluginDigest([0; 32]), Default::default(), Duration::ZERO);
    Opinion { plugin: plugin.into(), digest, scope, weight, verdict, fuel: 0, took }
}

fn operator(verdict: PlaceVerdict) -> Opinion<PlaceVerdict> {
    opinion(PolicyScope::Operator, Ok(verdict))
}

fn tenant(verdict: PlaceVerdict) -> Opinion<PlaceVerdict> {
    opinion(PolicyScope::Tenant("blue".parse().unwrap()), Ok(verdict))
}

/// Scores, where `None` rejects for the only reason.
fn rank(scores: [Option<i32>; 3]) -> PlaceVerdict {
    PlaceVerdict::Rank(PlaceRanking {
        marks: scores.map(|score| score.map_or(Mark::Reject(0), Mark::Score)).to_vec(),
        reasons: vec![("memory.promised".into(), "node 2 is full".into())],
    })
}

fn order(opinions: &[Opinion<PlaceVerdict>]) -> Vec<usize> {
    match combine(opinions, 3) {
        PlaceOutcome::Select { order } => order,
        other => panic!("{other:?}"),
    }
}

fn denial(opinions: &[Opinion<PlaceVerdict>]) -> (String, String) {
    match combine(opinions, 3) {
        PlaceOutcome::Deny { code, message, .. } => (code, message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_best_score_of_all_plugins_comes_first_and_one_rejection_is_enough() {
    assert_eq!(order(&[operator(rank([Some(0); 3]))]), [0, 1, 2]);
    assert_eq!(order(&[operator(rank([Some(1), Some(2), Some(3)])), tenant(rank([Some(9), None, Some(0)]))]), [0, 2]);
    let (code, message) = denial(&[operator(rank([None; 3]))]);
    assert_eq!(code, "policy.no-candidate");
    assert!(message.contains("no NUMA node of 3 suits") && message.contains("(memory.promised)"), "{message}");
}

#[test]
fn once_somebody_decides_only_a_plugin_of_the_operator_selects_and_whatever_fails_denies() {
    assert_eq!(combine(&[], 3), PlaceOutcome::Anywhere {}, "nobody decides: it is no choice at all");
    assert_eq!(denial(&[tenant(rank([Some(0); 3]))]).0, "policy.no-opinion");
    assert_eq!(denial(&[operator(PlaceVerdict::Abstain)]).0, "policy.no-opinion");
    let deny = PlaceVerdict::Deny { code: "node.none".into(), message: "nowhere".into() };
    assert_eq!(denial(&[operator(rank([Some(0); 3])), tenant(deny)]).0, "node.none");
    let fault = PolicyFault::Trap("unreachable".into());
    assert_eq!(denial(&[opinion(PolicyScope::Operator, Err(fault))]).0, "policy.trap");
}

#[test]
fn an_answer_that_breaks_the_contract_is_told() {
    let check = |marks: Vec<Mark>, reasons: Vec<(String, String)>| {
        request().check(&PlaceVerdict::Rank(PlaceRanking { marks, reasons }), &PolicyScope::Operator)
    };
    assert_eq!(check(vec![Mark::Score(0); 3], vec![]), Ok(()));
    assert!(check(vec![Mark::Score(0); 2], vec![]).unwrap_err().contains("2 marks for 3 candidates"));
    assert!(check(vec![Mark::Reject(0); 3], vec![]).unwrap_err().contains("reason 0 of 0"));
    assert!(check(vec![Mark::Score(0); 3], vec![("a".into(), "b".into()); 17]).is_err());
    assert!(check(vec![Mark::Score(i32::MAX); 3], vec![]).is_ok());
    assert!(check(vec![Mark::Score(0); 3], vec![("a".into(), "b".into()); 1_000_000]).unwrap_err().contains("1000000"));
    assert!(check(vec![Mark::Score(0); 3], vec![("policy.mine".into(), "b".into())]).is_err());
}

#[test]
fn scores_beyond_all_bounds_add_up_without_wrapping() {
    let most = || rank([Some(i32::MAX), Some(0), Some(i32::MIN)]);
    assert_eq!(order(&[operator(most()), operator(most()), tenant(most())]), [0, 1, 2]);
}

fn any_verdict() -> impl Strategy<Value = PlaceVerdict> {
    prop_oneof![
        4 => prop::array::uniform3(prop::option::of(any::<i32>())).prop_map(rank),
        1 => Just(PlaceVerdict::Abstain),
        1 => Just(PlaceVerdict::Deny { code: "x".into(), message: "y".into() }),
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
        if let PlaceOutcome::Select { order } = combine(&opinions, 3) {
            prop_assert!(!order.is_empty());
            let ranked = |verdict: &PlaceVerdict| matches!(verdict, PlaceVerdict::Rank(_));
            prop_assert!(verdicts.iter().any(|(is_operator, verdict)| *is_operator && ranked(verdict)));
            for (_, verdict) in &verdicts {
                let is_denied = matches!(verdict, PlaceVerdict::Deny { .. });
                prop_assert!(!is_denied);
                if let PlaceVerdict::Rank(ranking) = verdict {
                    prop_assert!(order.iter().all(|index| matches!(ranking.marks[*index], Mark::Score(_))));
                }
            }
        }
    }
}
